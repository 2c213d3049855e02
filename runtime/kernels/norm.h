// LayerNorm (Ba, Kiros, Hinton, arXiv:1607.06450), population variance, epsilon inside the root, and RMSNorm (Zhang,
// Sennrich, arXiv:1910.07467).
#pragma once

#include "vector.h"

namespace kaoken::KAOKEN_ISA {

// y = (x - mean) / sqrt(variance + epsilon) over Width values, then * weight + bias where they are not null; a bias
// comes with a weight. x, y, weight and bias are padded with zeros to whole vectors; so is the result. A variance
// beyond float32 makes the whole row NaN: divided by its root, every value would be 0 and look sound.
template <int64_t Width>
KAOKEN_INLINE void layer_norm(const float *x, float *y, float epsilon, const float *weight, const float *bias) {
  constexpr int64_t padded = round_up(Width, kLanes);
  const Vec zero = broadcast(0.0f);
  Vec total[] = {zero, zero};  // two chains, as adding takes its time
  for (int64_t i = 0; i < padded; i += 2 * kLanes) {
    total[0] = add(total[0], load(x + i));
    if (i + kLanes < padded) total[1] = add(total[1], load(x + i + kLanes));
  }
  const Vec mean = broadcast(reduce_add(add(total[0], total[1])) / Width);

  Vec squares[] = {zero, zero};
  for (int64_t i = 0; i < padded; i += 2 * kLanes) {
    for (int chain = 0; chain < 2; ++chain) {
      const int64_t at = i + chain * kLanes;
      if (at >= padded) break;
      const Vec centred = select_first(Width - at, sub(load(x + at), mean), zero);
      squares[chain] = fma(centred, centred, squares[chain]);
    }
  }
  const float variance = reduce_add(add(squares[0], squares[1])) / Width;
  const Vec scale = broadcast(1.0f / __builtin_sqrtf(variance + epsilon) + 0.0f * variance);

  for (int64_t i = 0; i < padded; i += kLanes) {
    Vec normed = mul(select_first(Width - i, sub(load(x + i), mean), zero), scale);
    if (weight) normed = bias ? fma(normed, load(weight + i), load(bias + i)) : mul(normed, load(weight + i));
    store(y + i, normed);
  }
}

// y = x / sqrt(mean of squares + epsilon), otherwise as above. The zeros among Padded values may lie anywhere.
template <int64_t Width, int64_t Padded = round_up(Width, kLanes)>
KAOKEN_INLINE void rms_norm(const float *x, float *y, float epsilon, const float *weight, const float *bias) {
  Vec squares[] = {broadcast(0.0f), broadcast(0.0f)};
  for (int64_t i = 0; i < Padded; i += 2 * kLanes) {
    squares[0] = fma(load(x + i), load(x + i), squares[0]);
    if (i + kLanes < Padded) squares[1] = fma(load(x + i + kLanes), load(x + i + kLanes), squares[1]);
  }
  const float mean = reduce_add(add(squares[0], squares[1])) / Width;
  const Vec scale = broadcast(1.0f / __builtin_sqrtf(mean + epsilon) + 0.0f * mean);
  for (int64_t i = 0; i < Padded; i += kLanes) {
    Vec normed = mul(load(x + i), scale);
    if (weight) normed = mul(normed, load(weight + i));
    if (bias) normed = add(normed, load(bias + i));
    store(y + i, normed);
  }
}

// The kinds of norm, as types that kernels are given.
struct NoNorm {
  static constexpr bool kNone = true;
};
struct LayerNorm {
  static constexpr bool kNone = false;
  template <int64_t Width>
  KAOKEN_INLINE void apply(const float *x, float *y, float epsilon, const float *weight, const float *bias) {
    layer_norm<Width>(x, y, epsilon, weight, bias);
  }
};
struct RmsNorm {
  static constexpr bool kNone = false;
  template <int64_t Width>
  KAOKEN_INLINE void apply(const float *x, float *y, float epsilon, const float *weight, const float *bias) {
    rms_norm<Width>(x, y, epsilon, weight, bias);
  }
};

}  // namespace kaoken::KAOKEN_ISA
