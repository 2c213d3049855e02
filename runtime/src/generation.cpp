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
  if (options.eos_count > 0 && (options.pad_token_id < 0 || options.pad_token_id >= model.info.vocab_size)) {
    throw Error(KAOKEN_INVALID_ARGUMENT, "pad_token_id is " + std::to_string(options.pad_token_id) +
                                             "; it must be in the vocabulary, 0 to " +
                                             std::to_string(model.info.vocab_size - 1));
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

// How many tokens a generation may add to each sequence.
int64_t checked_steps(const Session &session, int64_t count, const kaoken_generation_options &options) {
  check(options, session.model());
  const int64_t n_positions = session.model().info.n_positions;
  const int64_t room = n_positions - session.length() - std::max<int64_t>(count, 0);
  if (count >= 1 && room == 0) {
    throw Error(KAOKEN_CONTEXT_FULL, "the prompt fills the model's " + std::to_string(n_positions) +
                                         " positions and leaves no room to generate; give a shorter one");
  }
  const int64_t steps = std::min(options.max_new_tokens, room);
  if (steps > 0) session.check_memory(count + steps, 1);
  return steps;
}

}  // namespace

Generation::Generation(Session &session, const int64_t *ids, int64_t count, const kaoken_generation_options &options)
    : session_(session),
      left_(checked_steps(session, count, options)),
      eos_(options.eos_token_ids, options.eos_token_ids + (options.eos_token_ids ? options.eos_count : 0)),
      pad_(options.pad_token_id),
      sampler_(options, session.batch(), session.model().info.vocab_size, session.threads()),
      logits_(static_cast<size_t>(session.batch() * session.model().info.vocab_size)),
      tokens_(static_cast<size_t>(session.batch())),
      finished_(static_cast<size_t>(session.batch()), false) {
  session.append(ids, count, KAOKEN_LOGITS_LAST, logits_.data(), false);
}

bool Generation::next(int64_t *tokens) {
  if (left_ == 0) throw Error(KAOKEN_INVALID_ARGUMENT, "this generation is done; start another");
  if (!tokens) throw Error(KAOKEN_INVALID_ARGUMENT, "tokens is null");
  if (pending_) session_.append(tokens_.data(), 1, KAOKEN_LOGITS_LAST, logits_.data(), false);
  pending_ = false;
  const int64_t left = left_ - 1;
  left_ = 0;
  sampler_.choose(session_, logits_.data(), finished_, session_.length(), tokens_.data());
  bool all_finished = true;
  for (size_t row = 0; row < finished_.size(); ++row) {
    if (finished_[row]) tokens_[row] = pad_;
    finished_[row] = finished_[row] || is_eos(tokens_[row]);
    all_finished = all_finished && finished_[row];
    tokens[row] = tokens_[row];
  }
  pending_ = true;
  left_ = all_finished ? 0 : left;
  return left_ == 0;
}

bool Generation::is_eos(int64_t token) const { return std::find(eos_.begin(), eos_.end(), token) != eos_.end(); }

}  // namespace kaoken
