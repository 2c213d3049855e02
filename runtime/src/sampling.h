// The choice of a token for each sequence of a batch, on the session's team.
#pragma once

#include <stdint.h>

#include <memory>
#include <vector>

#include "session.h"

namespace kaoken {

// A number in [0, 1) that depends on these alone: Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as
// 1, 2, 3", SC 2011) with the seed as its key.
double uniform(uint64_t seed, uint64_t row, uint32_t position, uint32_t attempt);

// The first of the largest logits where do_sample is off; else a draw from softmax(logits / temperature) after top-k,
// then top-p (Holtzman et al., arXiv:1904.09751). Ties at the k-th logit are all kept. A NaN counts as -infinity, and
// the first logit of +infinity is taken in any case. Logits whose weights round to the same
// float are tied for top_p, and for a top_k of more than one in kSampleBlock tokens; top_p then keeps the first of
// them.
class Sampler {
 public:
  // A token to choose: the row of logits behind the previous one's is its. Draws depend on the seed, `row` and
  // `position`.
  struct Token {
    uint64_t row;  // of the batch
    int64_t position;
    int64_t id;  // once it is chosen
  };

  Sampler(const kaoken_generation_options &options, int64_t batch, int64_t vocab_size, int workers);
  ~Sampler();

  // Chooses from logits [tokens, vocab_size], which are overwritten; at most `batch` tokens. Raises Error where a row
  // holds nothing larger than -infinity. Allocates nothing.
  void choose(Session &session, float *logits, std::vector<Token> &tokens);

 private:
  struct Row {
    float *logits;    // [vocab_size], then weights
    float *maxima;    // [blocks]
    float *sums;      // [blocks], of the weights
    uint64_t number;  // in the batch
    uint32_t position;
    float largest;
    int64_t token;
  };
  struct Scratch;  // of one worker

  void work(const SamplingCode &code, const Worker &worker);
  bool decided(Row &row) const;
  void draw_from_few(const SamplingCode &code, Row &row, Scratch &scratch) const;
  void draw_from_all(const SamplingCode &code, Row &row) const;
  float kth_largest_weight(const SamplingCode &code, const float *weights) const;
  int64_t draw(const SamplingCode &code, const Row &row, float *weights, int64_t count) const;
  int64_t pick(const Row &row, const float *weights, int64_t count, double uniform) const;

  const int64_t vocab_size_;
  const int64_t blocks_;
  const bool do_sample_;
  const float scale_;  // 1 / temperature
  const int64_t top_k_;
  const float top_p_;
  const uint64_t seed_;
  const bool few_;  // so few tokens are kept that most blocks hold none of them
  std::vector<Row> rows_;
  size_t open_ = 0;  // rows in use
  std::vector<float> maxima_, sums_;
  std::vector<std::unique_ptr<Scratch>> scratch_;
};

}  // namespace kaoken
