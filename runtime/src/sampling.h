// The choice of a token for each sequence of a batch, on the session's team.
#pragma once

#include <stdint.h>

#include <memory>
#include <vector>

#include "session.h"

namespace kaoken {

// A number in [0, 1) that depends on the three alone: Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy
// as 1, 2, 3", SC 2011) with the seed as its key.
double uniform(uint64_t seed, uint64_t row, uint64_t position);

// The first of the largest logits where do_sample is off; else a draw from softmax(logits / temperature) after top-k,
// then top-p (Holtzman et al., arXiv:1904.09751). Ties at the k-th logit are all kept. A NaN counts as -infinity, and
// the first logit of +infinity is taken in any case. top_k beyond one in kSampleBlock tokens, and top_p, tell weights
// below 2^-32 of the largest not apart: all of them are kept, or none.
class Sampler {
 public:
  Sampler(const kaoken_generation_options &options, int64_t batch, int64_t vocab_size, int workers);
  ~Sampler();

  // Chooses for every row that is not finished from logits [batch, vocab_size], which are overwritten. Draws depend on
  // the seed, the row and `position`. Raises Error where a row holds nothing larger than -infinity. Allocates nothing.
  void choose(Session &session, float *logits, const std::vector<bool> &finished, int64_t position, int64_t *tokens);

 private:
  struct Row {
    float *logits;  // [vocab_size], then weights
    float *maxima;  // [blocks]
    float *sums;    // [blocks], of the weights
    float largest;
    double uniform;  // of this step's draw
    int64_t token;
  };
  struct Scratch;  // of one worker

  void work(const SamplingCode &code, const Worker &worker);
  bool decided(Row &row) const;
  void draw_from_few(const SamplingCode &code, Row &row, Scratch &scratch) const;
  void draw_from_all(const SamplingCode &code, Row &row, Scratch &scratch) const;
  void draw(const SamplingCode &code, Row &row, float *weights, int64_t count, const int32_t *tokens,
            Scratch &scratch) const;

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
