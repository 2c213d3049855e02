// The generation loop and the choice of a token, with the meanings of transformers' GenerationMixin.generate.
#pragma once

#include <random>
#include <vector>

#include "session.h"

namespace kaoken {

// How a token is drawn from logits [vocab_size].
class Sampler {
 public:
  Sampler(const kaoken_generation_options &options, int64_t vocab_size);

  // The first of the largest logits where do_sample is off; else a draw from softmax(logits / temperature) after
  // top-k, then top-p (Holtzman et al., arXiv:1904.09751). Ties at the k-th logit are all kept. Allocates nothing.
  int64_t choose(const float *logits, std::mt19937_64 &random);

 private:
  int64_t draw(const float *logits, std::mt19937_64 &random);

  const bool do_sample_;
  const float temperature_;
  const int64_t top_k_;
  const float top_p_;
  const int64_t vocab_size_;
  std::vector<int32_t> order_;   // [vocab_size]: tokens, the likeliest first
  std::vector<double> weights_;  // [vocab_size]: of those
};

class Generation {
 public:
  // Appends the prompt, ids [batch, count], to the session, which must outlive this. Raises Error.
  Generation(Session &session, const int64_t *ids, int64_t count, const kaoken_generation_options &options);

  // Writes the next token of each sequence; returns whether they were the last. Raises Error after that.
  bool next(int64_t *tokens);

 private:
  bool is_eos(int64_t token) const;

  Session &session_;
  Sampler sampler_;
  const std::vector<int64_t> eos_;
  const int64_t pad_;
  int64_t left_;  // tokens of each sequence still to come
  std::vector<float> logits_;
  std::vector<int64_t> tokens_;           // chosen by the last call
  bool pending_ = false;                  // whether they are still to be appended to the session
  std::vector<std::mt19937_64> randoms_;  // one a sequence, so that a row's draws do not depend on the batch
  std::vector<bool> finished_;
};

}  // namespace kaoken
