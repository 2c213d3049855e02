#include "generation.h"

#include <algorithm>
#include <cmath>

#include "errors.h"

namespace kaoken {
namespace {

void check(const kaoken_generation_options &options, const Model &model) {
  if (options.max_new_tokens < 1) {
    throw Error(KAOKEN_INVALID_ARGUMENT,
                "max_new_tokens is " + std::to_string(options.max_new_tokens) + "; it must be at least 1");
  }
  if (options.eos_count > 0 && !options.eos_token_ids) throw Error(KAOKEN_INVALID_ARGUMENT, "eos_token_ids is null");
  if (options.eos_count > 0 && (options.pad_token_id < -1 || options.pad_token_id >= model.info.vocab_size)) {
    throw Error(KAOKEN_INVALID_ARGUMENT, "pad_token_id is " + std::to_string(options.pad_token_id) +
                                             "; it must be in the vocabulary, 0 to " +
                                             std::to_string(model.info.vocab_size - 1) + ", or -1");
  }
  if (!options.do_sample) return;
  if (!(options.temperature > 0) || !std::isfinite(options.temperature)) {
    throw Error(KAOKEN_INVALID_ARGUMENT, "temperature is " + std::to_string(options.temperature) +
                                             "; it must be greater than 0 (do_sample=0 is the greedy choice)");
  }
  if (options.top_k < 0) {
    throw Error(KAOKEN_INVALID_ARGUMENT,
                "top_k is " + std::to_string(options.top_k) + "; it must be at least 1, or 0 to keep every token");
  }
  if (!(options.top_p > 0 && options.top_p <= 1)) {
    throw Error(KAOKEN_INVALID_ARGUMENT,
                "top_p is " + std::to_string(options.top_p) + "; it must be greater than 0 and at most 1");
  }
}

// How many tokens a generation may add to the sequence with the most room, once `lengths` are appended.
int64_t checked_steps(const Session &session, const std::vector<int64_t> &lengths,
                      const kaoken_generation_options &options) {
  check(options, session.model());
  if (session.model().info.kind == KAOKEN_ENCODER) {
    throw Error(KAOKEN_INVALID_ARGUMENT, "this model is an encoder, which generates nothing; encode whole texts");
  }
  const int64_t n_positions = session.positions();
  int64_t room = 0;
  for (int64_t slot = 0; slot < session.batch(); ++slot) {
    if (lengths[slot] < 1) throw Error(KAOKEN_INVALID_ARGUMENT, "no token ids were given; give at least one");
    if (lengths[slot] > n_positions - session.length(slot)) {
      throw Error(KAOKEN_CONTEXT_FULL, std::to_string(lengths[slot]) + " tokens behind " +
                                           std::to_string(session.length(slot)) + " pass the session's " +
                                           std::to_string(n_positions) +
                                           " positions; give fewer, or start a new session");
    }
    room = std::max(room, n_positions - session.length(slot) - lengths[slot]);
  }
  if (room == 0) {
    throw Error(KAOKEN_CONTEXT_FULL, "the prompt fills the session's " + std::to_string(n_positions) +
                                         " positions and leaves no room to generate; give a shorter one");
  }
  return std::min(options.max_new_tokens, room);
}

}  // namespace

Generation::Generation(Session &session, const int64_t *ids, std::vector<int64_t> lengths,
                       const kaoken_generation_options &options)
    : session_(session),
      left_(checked_steps(session, lengths, options)),
      eos_(options.eos_token_ids, options.eos_token_ids + (options.eos_token_ids ? options.eos_count : 0)),
      pad_(options.pad_token_id),
      sampler_(options, session.batch(), session.model().info.vocab_size, session.threads()),
      lengths_(std::move(lengths)) {
  const size_t batch = lengths_.size();
  tokens_.reserve(batch);
  slots_.resize(batch);
  ids_.resize(batch);
  std::vector<int64_t> outputs(batch);
  for (size_t slot = 0; slot < batch; ++slot) {
    const auto length = session.length(static_cast<int64_t>(slot)) + lengths_[slot];
    outputs[slot] = length < session.positions();
    if (outputs[slot]) tokens_.push_back({slot, length, 0});
  }
  kaoken_step prompts = {sizeof prompts, session.batch(), nullptr, lengths_.data(), ids, outputs.data(), nullptr};
  session.check_memory(prompts, left_, session.batch());
  logits_.resize(batch * static_cast<size_t>(session.model().info.vocab_size));
  prompts.logits = logits_.data();
  session.step(prompts, false);
  lengths_.assign(batch, 1);
}

bool Generation::next(int64_t *tokens) {
  if (left_ == 0) throw Error(KAOKEN_INVALID_ARGUMENT, "this generation is done; start another");
  if (!tokens) throw Error(KAOKEN_INVALID_ARGUMENT, "tokens is null");
  if (pending_) {
    const auto count = static_cast<int64_t>(tokens_.size());
    for (size_t i = 0; i < tokens_.size(); ++i) {
      slots_[i] = static_cast<int64_t>(tokens_[i].row);
      ids_[i] = tokens_[i].id;
    }
    session_.step({sizeof(kaoken_step), count, slots_.data(), lengths_.data(), ids_.data(), nullptr, logits_.data()},
                  false);
  }
  pending_ = false;
  const int64_t left = left_ - 1;
  left_ = 0;
  for (Sampler::Token &token : tokens_) token.position = session_.length(static_cast<int64_t>(token.row));
  sampler_.choose(session_, logits_.data(), tokens_);
  std::fill(tokens, tokens + session_.batch(), pad_);
  for (const Sampler::Token &token : tokens_) tokens[token.row] = token.id;
  const auto end = std::remove_if(tokens_.begin(), tokens_.end(), [&](const auto &each) { return has_finished(each); });
  tokens_.erase(end, tokens_.end());
  pending_ = true;
  left_ = tokens_.empty() ? 0 : left;
  return left_ == 0;
}

// Whether a sequence ends with this token, or has no room for one more behind it.
bool Generation::has_finished(const Sampler::Token &token) const {
  return std::find(eos_.begin(), eos_.end(), token.id) != eos_.end() || token.position + 1 >= session_.positions();
}

}  // namespace kaoken
