#include "generation.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include "errors.h"
#include "float_mode.h"

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

// A logit to sort by: overflow somewhere in a model may leave a NaN, which has no place in an order.
float rank(float logit) { return std::isnan(logit) ? -std::numeric_limits<float>::max() : logit; }

// The same on every platform, which std::uniform_real_distribution is not.
double uniform(std::mt19937_64 &random) { return static_cast<double>(random() >> 11) * 0x1p-53; }

}  // namespace

Sampler::Sampler(const kaoken_generation_options &options, int64_t vocab_size)
    : do_sample_(options.do_sample != 0),
      temperature_(options.temperature),
      top_k_(options.top_k),
      top_p_(options.top_p),
      vocab_size_(vocab_size),
      order_(static_cast<size_t>(do_sample_ ? vocab_size : 0)),
      weights_(order_.size()) {}

int64_t Sampler::choose(const float *logits, std::mt19937_64 &random) {
  if (do_sample_) return draw(logits, random);
  return std::max_element(logits, logits + vocab_size_) - logits;
}

int64_t Sampler::draw(const float *logits, std::mt19937_64 &random) {
  std::iota(order_.begin(), order_.end(), 0);
  auto end = order_.end();
  const auto larger = [&](int32_t a, int32_t b) {
    const float x = rank(logits[a]), y = rank(logits[b]);
    return x > y || (x == y && a < b);
  };
  if (top_k_ > 0 && top_k_ < vocab_size_) {
    std::nth_element(order_.begin(), order_.begin() + (top_k_ - 1), end, larger);
    const float least = rank(logits[order_[static_cast<size_t>(top_k_ - 1)]]);
    end = std::remove_if(order_.begin(), end, [&](int32_t token) { return rank(logits[token]) < least; });
  }
  std::sort(order_.begin(), end, larger);

  const size_t candidates = static_cast<size_t>(end - order_.begin());
  const double largest = rank(logits[order_[0]]);
  double total = 0;
  for (size_t i = 0; i < candidates; ++i) {
    total += weights_[i] = std::exp((rank(logits[order_[i]]) - largest) / static_cast<double>(temperature_));
  }
  // A token stays while those before it hold less than top_p.
  double kept = 0;
  size_t count = 0;
  while (count < candidates && (count == 0 || top_p_ >= 1 || kept < top_p_ * total)) kept += weights_[count++];

  double target = uniform(random) * kept;
  for (size_t i = 0; i < count; ++i) {
    target -= weights_[i];
    if (target < 0) return order_[i];
  }
  return order_[count - 1];
}

Generation::Generation(Session &session, const int64_t *ids, int64_t count, const kaoken_generation_options &options)
    : session_(session),
      sampler_(options, session.model().info.vocab_size),
      eos_(options.eos_token_ids, options.eos_token_ids + (options.eos_token_ids ? options.eos_count : 0)),
      pad_(options.pad_token_id),
      finished_(static_cast<size_t>(session.batch()), false) {
  check(options, session.model());
  const int64_t room = session.model().info.n_positions - session.length() - std::max<int64_t>(count, 0);
  if (count >= 1 && room == 0) {
    throw Error(KAOKEN_CONTEXT_FULL, "the prompt fills the model's " +
                                         std::to_string(session.model().info.n_positions) +
                                         " positions and leaves no room to generate; give a shorter one");
  }
  logits_.resize(static_cast<size_t>(session.batch() * session.model().info.vocab_size));
  for (int64_t row = 0; row < session.batch(); ++row) {
    std::seed_seq seed{static_cast<uint32_t>(options.seed), static_cast<uint32_t>(options.seed >> 32),
                       static_cast<uint32_t>(row)};
    randoms_.emplace_back(seed);
  }
  session.append(ids, count, KAOKEN_LOGITS_LAST, logits_.data());
  left_ = std::min(options.max_new_tokens, room);
}

bool Generation::next(int64_t *tokens) {
  if (left_ == 0) throw Error(KAOKEN_INVALID_ARGUMENT, "this generation is done; start another");
  if (!tokens) throw Error(KAOKEN_INVALID_ARGUMENT, "tokens is null");
  const FloatMode mode;
  if (pending_) session_.append(tokens_.data(), 1, KAOKEN_LOGITS_LAST, logits_.data());
  pending_ = false;
  tokens_.resize(finished_.size());
  const int64_t vocab_size = session_.model().info.vocab_size;
  bool all_finished = true;
  for (size_t row = 0; row < finished_.size(); ++row) {
    tokens_[row] = finished_[row] ? pad_ : sampler_.choose(&logits_[row * vocab_size], randoms_[row]);
    finished_[row] = finished_[row] || is_eos(tokens_[row]);
    all_finished = all_finished && finished_[row];
    tokens[row] = tokens_[row];
  }
  pending_ = true;
  left_ = all_finished ? 0 : left_ - 1;
  return left_ == 0;
}

bool Generation::is_eos(int64_t token) const { return std::find(eos_.begin(), eos_.end(), token) != eos_.end(); }

}  // namespace kaoken
