// LayerNorm (Ba, Kiros, Hinton, arXiv:1607.06450), population variance, epsilon inside the root.
#pragma once

#include "linear.h"

namespace kaoken::KAOKEN_ISA {

// y = (x - mean) / sqrt(variance + epsilon) over Width values, then * weight + bias where they are not null (codegen
// folds them away wherever it can). x, y, weight and bias are padded with zeros to whole vectors; so is the result.
template <int64_t Width>
KAOKEN_INLINE void layer_norm(const float *x, float *y, float epsilon, const float *weight, const float *bias) {
  constexpr int64_t padded = round_up(Width, kLanes);
  const Vec zero = broadcast(0.0f);
  Vec total = zero;
  for (int64_t i = 0; i < padded; i += kLanes) total = add(total, load(x + i));
  const Vec mean = broadcast(reduce_add(total) / Width);

  Vec squares = zero;
  for (int64_t i = 0; i < padded; i += kLanes) {
    const Vec centred = select_first(Width - i, sub(load(x + i), mean), zero);
    squares = fma(centred, centred, squares);
  }
  const Vec scale = broadcast(1.0f / __builtin_sqrtf(reduce_add(squares) / Width + epsilon));

  for (int64_t i = 0; i < padded; i += kLanes) {
    Vec normed = mul(select_first(Width - i, sub(load(x + i), mean), zero), scale);
    if (weight) normed = fma(normed, load(weight + i), load(bias + i));
    store(y + i, normed);
  }
}

// Normalizes the rows of the residual stream into pass.normed. Workers divide the rows.
template <int64_t Width>
void layer_norm_rows(const Pass &pass, const Worker &worker, float epsilon) {
  constexpr int64_t stride = round_up(Width, kLanes);
  const Share rows = share(pass.batch * pass.count, worker);
  for (int64_t row = rows.begin; row < rows.end; ++row) {
    layer_norm<Width>(pass.hidden + row * stride, pass.normed + row * stride, epsilon, nullptr, nullptr);
  }
}

// Normalizes what the head reads into the first rows of pass.normed and returns how many: every row, or the last of
// each sequence. Workers divide them.
template <int64_t Width>
int64_t final_norm(const Pass &pass, const Worker &worker, float epsilon, const float *weight, const float *bias) {
  constexpr int64_t stride = round_up(Width, kLanes);
  const bool all = pass.logits_which == KAOKEN_LOGITS_ALL;
  const int64_t count = all ? pass.batch * pass.count : pass.batch;
  const Share rows = share(count, worker);
  for (int64_t row = rows.begin; row < rows.end; ++row) {
    const int64_t source = all ? row : row * pass.count + pass.count - 1;
    layer_norm<Width>(pass.hidden + source * stride, pass.normed + row * stride, epsilon, weight, bias);
  }
  return count;
}

}  // namespace kaoken::KAOKEN_ISA
