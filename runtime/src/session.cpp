#include "session.h"

#include <stdio.h>
#include <string.h>

#include <algorithm>
#include <limits>
#include <numeric>

#include "errors.h"
#include "machine.h"

namespace kaoken {
namespace {

// Bytes of scratch for each row of a pass.
int64_t scratch_bytes(const Model &model) {
  const int64_t floats = model.hidden_width + model.qkv_width + model.attention_width + model.inner_width;
  return floats * static_cast<int64_t>(sizeof(float)) + model.input_bytes;
}

bool has_decoder(const Model &model) { return model.info.kind != KAOKEN_ENCODER; }
bool has_encoder(const Model &model) { return model.info.kind != KAOKEN_DECODER; }

// Pages that the texts of an encoder's pass take at most.
int64_t encoder_pages(const Model &model, int64_t pass_rows) {
  return has_encoder(model) ? pass_rows / kPage + kPassTexts : 0;
}

bool has_windows(const Model &model) { return model.window_page_bytes > 0; }

// Pages that a sequence keeps where blocks see a window: what the rows of a pass see, and what a row sees behind a
// rewind of kRewind positions, wherever in a page they begin.
int64_t window_pages(const Model &model, int64_t positions, int64_t pass_rows) {
  if (!has_windows(model)) return 0;
  const int64_t kept = model.window_reach + std::max(pass_rows, kRewind);
  return std::min(pages_of(positions), pages_of(kept + kPage - 1));
}

// The bytes of each part of the arena, in order: multiples of kAlignment.
struct Sizes {
  double cache, window, source, encoder, rows;
  Sizes(const Model &model, int64_t batch, int64_t positions, int64_t pass_rows)
      : cache(bytes(batch, has_decoder(model) ? pages_of(positions) : 0, model.page_bytes)),
        window(bytes(batch, window_pages(model, positions, pass_rows), model.window_page_bytes)),
        source(bytes(batch, pages_of(model.info.source_positions), model.source_page_bytes)),
        encoder(static_cast<double>(encoder_pages(model, pass_rows)) * model.encoder_page_bytes),
        rows(static_cast<double>(pass_rows) * scratch_bytes(model)) {}
  size_t total() const {
    const double bytes = cache + window + source + encoder + rows;
    if (bytes > static_cast<double>(std::numeric_limits<int64_t>::max() / 2)) throw std::bad_alloc();
    return static_cast<size_t>(bytes);
  }

 private:
  static double bytes(int64_t batch, int64_t pages, int64_t page_bytes) {
    return static_cast<double>(batch * pages) * static_cast<double>(page_bytes);
  }
};

Error cannot_rewind(int64_t length, const std::string &what, int64_t held) {
  return Error(KAOKEN_INVALID_ARGUMENT,
               "cannot rewind to " + std::to_string(length) + " positions: " + what + " holds " + std::to_string(held));
}

int64_t checked_batch(int64_t batch) {
  constexpr int64_t most = 1 << 20;
  if (batch >= 1 && batch <= most) return batch;
  throw Error(KAOKEN_INVALID_ARGUMENT,
              "batch is " + std::to_string(batch) + "; it must be from 1 to " + std::to_string(most));
}

int64_t checked_positions(const Model &model, int64_t positions) {
  if (positions == 0) return model.info.n_positions;
  if (!has_decoder(model)) {
    throw Error(KAOKEN_INVALID_ARGUMENT, "n_positions is of decoders, and this model is an encoder; leave it 0");
  }
  if (positions >= 1 && positions <= model.info.n_positions) return positions;
  throw Error(KAOKEN_INVALID_ARGUMENT, "n_positions is " + std::to_string(positions) + "; it must be from 1 to " +
                                           std::to_string(model.info.n_positions) + ", or 0 for as many as that");
}

int checked_threads(int threads) {
  if (threads == 0) return default_threads();
  if (threads >= 1 && threads <= kMaxThreads) return threads;
  throw Error(KAOKEN_INVALID_ARGUMENT, "threads is " + std::to_string(threads) + "; it must be from 1 to " +
                                           std::to_string(kMaxThreads) + ", or 0 for the default");
}

}  // namespace

namespace {

constexpr double kUncheckedMemory = 64 << 20;  // bytes that are taken without a look at what the machine has

void *checked_arena(const kaoken_session_options &options, size_t bytes) {
  if (!options.arena) return nullptr;
  if (options.arena_bytes < bytes) {
    throw Error(KAOKEN_INVALID_ARGUMENT, "arena_bytes is " + std::to_string(options.arena_bytes) +
                                             "; this session takes " + std::to_string(bytes));
  }
  if (reinterpret_cast<uintptr_t>(options.arena) % kAlignment == 0) return options.arena;
  throw Error(KAOKEN_INVALID_ARGUMENT, "arena is not aligned to " + std::to_string(kAlignment) + " bytes");
}

std::string in_gib(double bytes) {
  char text[32];
  snprintf(text, sizeof text, "%.1f GiB", bytes / (1 << 30));
  return text;
}

void require_memory(double bytes, int64_t batch, int64_t longest) {
  if (bytes <= kUncheckedMemory) return;
  const double available = available_memory();
  if (bytes <= available) return;
  throw Error(KAOKEN_OUT_OF_MEMORY, "a batch of " + std::to_string(batch) + " with " + std::to_string(longest) +
                                        " positions needs " + in_gib(bytes) + " more, and " + in_gib(available) +
                                        " are available; use a smaller batch or shorter sequences");
}

}  // namespace

size_t Session::bytes(const Model &model, const kaoken_session_options &options) {
  const int64_t batch = checked_batch(options.batch);
  return Sizes(model, batch, checked_positions(model, options.n_positions), std::max(model.pass_rows, batch)).total();
}

Session::Session(const Model &model, const kaoken_session_options &options)
    : model_(model),
      choice_(choose_code(model, options.isa)),
      batch_(checked_batch(options.batch)),
      positions_(checked_positions(model, options.n_positions)),
      pass_rows_(std::max(model.pass_rows, batch_)),
      ids_(static_cast<size_t>(pass_rows_)),
      types_(ids_.size()),
      kept_(ids_.size()),
      arena_(bytes(model, options), checked_arena(options, bytes(model, options))),
      pages_(lay_out().cache, batch_, has_decoder(model) ? positions_ : 0),
      windows_(lay_out().window, batch_, has_windows(model) ? positions_ : 0,
               window_pages(model, positions_, pass_rows_)),
      sources_(lay_out().source, batch_, model.info.source_positions),
      encoder_pages_(static_cast<size_t>(encoder_pages(model, pass_rows_))),
      team_(checked_threads(options.threads)) {
  std::iota(encoder_pages_.begin(), encoder_pages_.end(), 0);
  const int64_t sequences = std::max(batch_, has_encoder(model) ? kPassTexts : 0);
  sequences_.reserve(static_cast<size_t>(sequences));
  outputs_.reserve(static_cast<size_t>(sequences));
}

int64_t Session::length() const {
  int64_t longest = 0;
  for (int64_t slot = 0; slot < batch_; ++slot) longest = std::max(longest, length(slot));
  return longest;
}

void Session::rewind(int64_t slot, int64_t length) {
  check_slot(slot);
  if (length < 0 || length > this->length(slot)) throw cannot_rewind(length, "the slot", this->length(slot));
  check_rewind(slot, length);
  pages_.rewind(slot, length);
  if (has_windows(model_)) windows_.rewind(slot, length);
}

void Session::rewind(int64_t length) {
  if (length < 0 || length > this->length()) throw cannot_rewind(length, "the session", this->length());
  for (int64_t slot = 0; slot < batch_; ++slot) check_rewind(slot, std::min(length, this->length(slot)));
  for (int64_t slot = 0; slot < batch_; ++slot) rewind(slot, std::min(length, this->length(slot)));
}

int64_t Session::earliest(int64_t slot) const {
  return windows_.first(slot) ? windows_.first(slot) * kPage + model_.window_reach : 0;
}

void Session::check_rewind(int64_t slot, int64_t length) const {
  const int64_t earliest = this->earliest(slot);
  if (length == 0 || length >= earliest) return;
  throw Error(KAOKEN_INVALID_ARGUMENT,
              "cannot rewind slot " + std::to_string(slot) + " to " + std::to_string(length) + " of its " +
                  std::to_string(this->length(slot)) + " positions: blocks that see a window keep no more than it, " +
                  "which allows " + std::to_string(earliest) + " or more; rewind to 0 and append the text again");
}

void Session::fork(int64_t from, int64_t to) {
  check_slot(from);
  check_slot(to);
  pages_.fork(from, to);
  windows_.fork(from, to);
  sources_.fork(from, to);
}

void Session::check_slot(int64_t slot) const {
  if (slot >= 0 && slot < batch_) return;
  throw Error(KAOKEN_INVALID_ARGUMENT,
              "there is no slot " + std::to_string(slot) + "; the session's are 0 to " + std::to_string(batch_ - 1));
}

void Session::check_memory(const kaoken_step &step, int64_t more, int64_t logits) const {
  int64_t pages = -pages_.spare(), window = -windows_.spare(), rows = 0, longest = 0;
  for (int64_t i = 0; i < step.count; ++i) {
    const int64_t slot = step.slots ? step.slots[i] : i, length = this->length(slot);
    const int64_t count = std::min(step.lengths[i] + more, positions_ - length);
    pages += pages_.needed(slot, count);
    if (has_windows(model_)) window += windows_.needed(slot, count);
    rows += step.lengths[i];
    longest = std::max(longest, length + count);
  }
  double bytes = static_cast<double>(std::max<int64_t>(pages, 0)) * model_.page_bytes;
  bytes += static_cast<double>(std::max<int64_t>(window, 0)) * model_.window_page_bytes;
  const double logits_bytes = static_cast<double>(logits) * model_.info.vocab_size * sizeof(float);
  bytes += scratch_needed(rows);
  require_memory((arena_.own() ? bytes : 0) + logits_bytes, step.count, longest);
}

void Session::check_memory(const kaoken_texts &texts) const {
  int64_t pages = -sources_.spare(), rows = 0, longest = 0;
  double outputs = 0;
  for (int64_t i = 0; i < texts.count; ++i) {
    rows += texts.lengths[i];
    longest = std::max(longest, texts.lengths[i]);
    if (has_decoder(model_)) pages += (texts.lengths[i] + kPage - 1) / kPage - sources_.own(i);
  }
  double bytes = static_cast<double>(std::max<int64_t>(pages, 0)) * model_.source_page_bytes;
  bytes += scratch_needed(std::min(rows, std::max(kTextRows, longest)));
  if (touched_rows_ == 0) bytes += static_cast<double>(encoder_pages_.size()) * model_.encoder_page_bytes;
  if (!has_decoder(model_)) {
    const int64_t width = texts.hidden_states ? model_.info.n_embd : model_.info.output_width;
    const int64_t asked = texts.counts ? std::accumulate(texts.counts, texts.counts + texts.count, int64_t{0}) : rows;
    outputs = static_cast<double>(pools(texts) ? texts.count : asked) * width * sizeof(float);
  }
  require_memory((arena_.own() ? bytes : 0) + outputs, texts.count, longest);
}

// Bytes of scratch that a pass of so many rows touches for the first time.
double Session::scratch_needed(int64_t rows) const {
  const int64_t more = std::min(pass_rows_, rows) - touched_rows_;
  return static_cast<double>(std::max<int64_t>(more, 0)) * scratch_bytes(model_);
}

void Session::append(const int64_t *ids, int64_t count, int32_t which, float *logits) {
  if (count < 1) throw Error(KAOKEN_INVALID_ARGUMENT, "no token ids were given; give at least one");
  if (which < KAOKEN_LOGITS_NONE || which > KAOKEN_LOGITS_ALL) {
    throw Error(KAOKEN_INVALID_ARGUMENT, "which is " + std::to_string(which) + "; it must be a KAOKEN_LOGITS_ value");
  }
  counts_.assign(static_cast<size_t>(batch_), count);
  which_.assign(counts_.size(), which == KAOKEN_LOGITS_NONE ? 0 : which == KAOKEN_LOGITS_ALL ? count : 1);
  step({sizeof(kaoken_step), batch_, nullptr, counts_.data(), ids, which_.data(), logits});
}

void Session::step(const kaoken_step &step, bool fresh) {
  check(step);
  const auto slot_of = [&](int64_t i) { return step.slots ? step.slots[i] : i; };
  const auto outputs_of = [&](int64_t i) { return step.outputs ? step.outputs[i] : 1; };
  int64_t logits = 0;
  for (int64_t i = 0; i < step.count; ++i) logits += outputs_of(i);
  check_memory(step, 0, fresh ? logits : 0);
  for (int64_t i = 0; i < step.count; ++i) pages_.reserve(slot_of(i), step.lengths[i]);

  const int64_t *ids = step.ids;
  Pass pass = lay_out();
  pass.output = step.logits;
  for (int64_t i = 0; i < step.count; ++i) {
    for (int64_t left = step.lengths[i], count; left > 0; left -= count, ids += count) {
      if (pass.batch.rows == pass_rows_) run(pass, choice_.code.forward);
      count = std::min(left, pass_rows_ - pass.batch.rows);
      add(pass, slot_of(i), count, std::clamp<int64_t>(outputs_of(i) - (left - count), 0, count), ids);
    }
  }
  run(pass, choice_.code.forward);
}

void Session::encode(const kaoken_texts &texts) {
  check(texts);
  const bool for_decoder = has_decoder(model_);
  check_memory(texts);
  const auto code = for_decoder ? choice_.code.encode : choice_.code.forward;
  const int64_t *ids = texts.ids, *types = texts.types;
  const int64_t most = std::min(kTextRows, pass_rows_);
  sequences_.clear(), outputs_.clear();  // of a call that memory ended
  int64_t pages = 0;
  Pass pass = lay_out();
  pass.cache = pass.window = pass.encoder;  // in which a text's windows of the past lie with all of it
  pass.output = texts.outputs;
  pass.hidden_states = texts.hidden_states;
  const int64_t *positions = texts.positions;
  const bool pooled = pools(texts);
  for (int64_t i = 0; i < texts.count; ++i) {
    const int64_t length = texts.lengths[i], first = pass.batch.rows;
    const bool full = first + length > most || static_cast<int64_t>(sequences_.size()) == kPassTexts;
    if (full && first > 0) run(pass, code), pages = 0;
    const int32_t *own = encoder_pages_.data() + pages;
    Sequence sequence = {pass.batch.rows, length, 0, length, own, 0, nullptr, own};
    if (for_decoder) {
      rewind(i, 0);
      sources_.rewind(i, 0);
      sources_.reserve(i, length);
      sources_.extend(i, length);
      sequence.source_length = length;
      sequence.source_pages = sources_.of(i);
    } else if (texts.counts && !pooled) {
      for (const int64_t *end = positions + texts.counts[i]; positions < end;) {
        const int64_t *first = positions++;
        while (positions < end && *positions == positions[-1] + 1) ++positions;
        ask(pass, sequence, *first, positions - first);
      }
    } else {
      const int64_t begin = texts.counts ? *positions : 0, count = texts.counts ? texts.counts[i] : length;
      if (texts.counts) positions += count;
      if (model_.reads == Reads::kAll || pass.hidden_states) {
        ask(pass, sequence, begin, count);
      } else {
        ask(pass, sequence, model_.reads == Reads::kFirst ? begin : begin + count - 1, 1);
      }
    }
    sequences_.push_back(sequence);
    std::copy(ids, ids + length, ids_.begin() + pass.batch.rows);
    if (types) {
      std::copy(types, types + length, types_.begin() + pass.batch.rows);
      types += length;
    } else {
      std::fill(types_.begin() + pass.batch.rows, types_.begin() + pass.batch.rows + length, 0);
    }
    ids += length;
    pass.batch.rows += length;
    pages += (length + kPage - 1) / kPage;
  }
  run(pass, code);
}

// Adds the next tokens of a sequence to a pass that has room for them; of the last `outputs` logits are asked.
void Session::add(Pass &pass, int64_t slot, int64_t count, int64_t outputs, const int64_t *ids) {
  const int64_t past = length(slot), first = pass.batch.rows;
  std::copy(ids, ids + count, ids_.begin() + first);
  if (has_windows(model_)) windows_.reserve(slot, count), windows_.extend(slot, count);
  const Sequence sequence = {
      first, count, past, past + count, pages_.of(slot), sources_.length(slot), sources_.of(slot), windows_.of(slot),
  };
  sequences_.push_back(sequence);
  if (outputs) ask(pass, sequence, past + count - outputs, outputs);
  pass.batch.rows += count;
  pages_.extend(slot, count);
}

// Asks for outputs of `count` of a sequence's new positions, from `position` on.
void Session::ask(Pass &pass, const Sequence &sequence, int64_t position, int64_t count) {
  outputs_.push_back(sequence);
  outputs_.back().row = pass.outputs.rows;
  outputs_.back().count = count;
  outputs_.back().past = position;
  const int64_t first = sequence.row + position - sequence.past;
  for (int64_t row = first; row < first + count; ++row) kept_[pass.outputs.rows++] = row;
}

void Session::check(const kaoken_texts &texts) const {
  if (!has_encoder(model_)) {
    throw Error(KAOKEN_INVALID_ARGUMENT,
                "this model is a decoder, which encodes no texts; append tokens to its sessions");
  }
  const bool for_decoder = has_decoder(model_);
  const int64_t limit = for_decoder ? model_.info.source_positions : model_.info.n_positions;
  if (!texts.lengths) throw Error(KAOKEN_INVALID_ARGUMENT, "lengths is null");
  if (!texts.ids) throw Error(KAOKEN_INVALID_ARGUMENT, "ids is null");
  if (!for_decoder && !texts.outputs) throw Error(KAOKEN_INVALID_ARGUMENT, "outputs is null");
  if (texts.count < 1 || (for_decoder && texts.count > batch_)) {
    throw Error(KAOKEN_INVALID_ARGUMENT, "count is " + std::to_string(texts.count) + "; it must be at least 1" +
                                             (for_decoder ? " and at most " + std::to_string(batch_) : ""));
  }
  if (!texts.counts != !texts.positions) {
    throw Error(KAOKEN_INVALID_ARGUMENT, "counts and positions belong together; give both or neither");
  }
  if (texts.counts && for_decoder) {
    throw Error(KAOKEN_INVALID_ARGUMENT, "this model has no outputs of positions; give no counts and positions");
  }
  if (texts.types && model_.info.token_types == 0) {
    throw Error(KAOKEN_INVALID_ARGUMENT, "this model has no token types; give none");
  }
  int64_t at = 0;
  const int64_t *position_of = texts.positions;
  for (int64_t i = 0; i < texts.count; ++i) {
    if (texts.lengths[i] < 1) throw Error(KAOKEN_INVALID_ARGUMENT, "a text is empty; give at least one token");
    if (texts.lengths[i] > limit) {
      throw Error(KAOKEN_CONTEXT_FULL, "text " + std::to_string(i) + " has " + std::to_string(texts.lengths[i]) +
                                           " tokens, and the model takes at most " + std::to_string(limit) +
                                           "; cut it");
    }
    check_ids(texts.ids + at, texts.lengths[i], i);
    for (int64_t position = 0; texts.types && position < texts.lengths[i]; ++position) {
      const int64_t type = texts.types[at + position];
      if (type >= 0 && type < model_.info.token_types) continue;
      throw Error(KAOKEN_INVALID_ARGUMENT, "token type " + std::to_string(type) + " of text " + std::to_string(i) +
                                               " is not one of the model's, 0 to " +
                                               std::to_string(model_.info.token_types - 1));
    }
    at += texts.lengths[i];
    const int64_t count = texts.counts ? texts.counts[i] : 0;
    bool ascending = count >= 0 && count <= texts.lengths[i];
    for (int64_t j = 0, before = -1; ascending && j < count; before = *position_of++, ++j) {
      ascending = *position_of > before && *position_of < texts.lengths[i];
    }
    if (!ascending) {
      throw Error(KAOKEN_INVALID_ARGUMENT, "the positions of text " + std::to_string(i) +
                                               " are not ascending and within its " + std::to_string(texts.lengths[i]) +
                                               " tokens");
    }
    if (texts.counts && pools(texts) && (count < 1 || position_of[-1] - position_of[-count] != count - 1)) {
      throw Error(KAOKEN_INVALID_ARGUMENT, "the positions of text " + std::to_string(i) +
                                               " that become one vector must be one at least, without a gap");
    }
  }
}

// Whether what is asked of texts is one output each.
bool Session::pools(const kaoken_texts &texts) const { return model_.info.pools && !texts.hidden_states; }

void Session::check_ids(const int64_t *ids, int64_t count, int64_t sequence) const {
  const int64_t vocab_size = model_.info.vocab_size;
  for (int64_t position = 0; position < count; ++position) {
    if (ids[position] >= 0 && ids[position] < vocab_size) continue;
    throw Error(KAOKEN_TOKEN_OUT_OF_RANGE, "token id " + std::to_string(ids[position]) + " at sequence " +
                                               std::to_string(sequence) + ", position " + std::to_string(position) +
                                               " is outside the vocabulary, 0 to " + std::to_string(vocab_size - 1));
  }
}

void Session::check(const kaoken_step &step) const {
  if (!has_decoder(model_)) {
    throw Error(KAOKEN_INVALID_ARGUMENT, "this model is an encoder, which has no cache; encode whole texts");
  }
  if (!step.lengths) throw Error(KAOKEN_INVALID_ARGUMENT, "lengths is null");
  if (!step.ids) throw Error(KAOKEN_INVALID_ARGUMENT, "ids is null");
  if (step.count < 1 || step.count > batch_) {
    throw Error(KAOKEN_INVALID_ARGUMENT, "count is " + std::to_string(step.count) +
                                             "; it must be from 1 to the session's batch, which is " +
                                             std::to_string(batch_));
  }
  const int64_t *ids = step.ids;
  for (int64_t i = 0, before = -1; i < step.count; ++i) {
    const int64_t slot = step.slots ? step.slots[i] : i, count = step.lengths[i];
    check_slot(slot);
    if (slot <= before) throw Error(KAOKEN_INVALID_ARGUMENT, "slots are not ascending; name each once, in order");
    before = slot;
    if (count < 1) throw Error(KAOKEN_INVALID_ARGUMENT, "no token ids were given; give at least one");
    const int64_t outputs = step.outputs ? step.outputs[i] : 1;
    if (outputs < 0 || outputs > count) {
      throw Error(KAOKEN_INVALID_ARGUMENT, "outputs is " + std::to_string(outputs) + "; it must be from 0 to the " +
                                               std::to_string(count) + " tokens of its sequence");
    }
    if (outputs && !step.logits) throw Error(KAOKEN_INVALID_ARGUMENT, "logits is null");
    if (count > positions_ - length(slot)) {
      throw Error(KAOKEN_CONTEXT_FULL, std::to_string(count) + " tokens behind " + std::to_string(length(slot)) +
                                           " pass the session's " + std::to_string(positions_) +
                                           " positions; give fewer, or start a new session");
    }
    if (has_encoder(model_) && sources_.length(slot) == 0) {
      throw Error(KAOKEN_INVALID_ARGUMENT, "slot " + std::to_string(slot) + " has no source; encode one first");
    }
    check_ids(ids, count, i);
    ids += count;
  }
}

// The arena: the caches, then the rows of a pass.
Pass Session::lay_out() const {
  const Sizes sizes(model_, batch_, positions_, pass_rows_);
  Pass pass = {};
  pass.ids = ids_.data();
  pass.types = types_.data();
  pass.kept = kept_.data();
  pass.executed_isa = "";
  auto *at = static_cast<char *>(arena_.data());
  pass.cache = {at, model_.page_bytes};
  pass.window = {at += static_cast<int64_t>(sizes.cache), model_.window_page_bytes};
  pass.source = {at += static_cast<int64_t>(sizes.window), model_.source_page_bytes};
  pass.encoder = {at += static_cast<int64_t>(sizes.source), model_.encoder_page_bytes};
  pass.inputs = at += static_cast<int64_t>(sizes.encoder);
  pass.hidden = reinterpret_cast<float *>(at + pass_rows_ * model_.input_bytes);
  pass.qkv = pass.hidden + pass_rows_ * model_.hidden_width;
  pass.attended = pass.qkv + pass_rows_ * model_.qkv_width;
  pass.inner = pass.attended + pass_rows_ * model_.attention_width;
  return pass;
}

// Bytes of the arena that were touched, at most.
size_t Session::touched_bytes() const {
  return static_cast<size_t>(pages_.reach() * model_.page_bytes + windows_.reach() * model_.window_page_bytes +
                             sources_.reach() * model_.source_page_bytes +
                             static_cast<int64_t>(encoder_pages_.size()) * model_.encoder_page_bytes +
                             touched_rows_ * scratch_bytes(model_));
}

// Runs a pass and empties it.
void Session::run(Pass &pass, void (*code)(Pass &pass, const Worker &worker)) {
  pass.batch.count = static_cast<int64_t>(sequences_.size());
  pass.batch.sequences = sequences_.data();
  pass.outputs.count = static_cast<int64_t>(outputs_.size());
  pass.outputs.sequences = outputs_.data();
  struct Job {
    void (*code)(Pass &pass, const Worker &worker);
    Pass &pass;
  } job = {code, pass};
  compute(
      [](void *context, const Worker &worker) {
        const Job &job = *static_cast<Job *>(context);
        job.code(job.pass, worker);
      },
      &job);
  executed_isa_ = pass.executed_isa;
  touched_rows_ = std::max(touched_rows_, pass.batch.rows);
  arena_.touched(touched_bytes());
  const bool pooled = model_.info.pools && !pass.hidden_states;
  pass.output += (pooled ? pass.outputs.count : pass.outputs.rows) *
                 (pass.hidden_states ? model_.info.n_embd : model_.info.output_width);
  pass.batch.rows = pass.outputs.rows = 0;
  sequences_.clear();
  outputs_.clear();
}

}  // namespace kaoken
