// LayerNorm (Ba, Kiros, Hinton, arXiv:1607.06450), population variance, epsilon inside the root.
#pragma once

#include "vector.h"

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

}  // namespace kaoken::KAOKEN_ISA
