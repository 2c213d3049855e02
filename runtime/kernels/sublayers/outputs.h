// What leaves an encoder: its residual stream behind the last norm.
#pragma once

#include "inputs.h"

namespace kaoken::KAOKEN_ISA {

// Into pass.output, [rows][Width].
template <class Norm, int64_t Width>
KAOKEN_INLINE void store_outputs(const Pass &pass, const Worker &worker, float epsilon, const NormVectors &norm) {
  constexpr int64_t stride = round_up(Width, kLanes);
  const Share mine = share(pass.batch.rows, worker);
  for (int64_t row = mine.begin; row < mine.end; ++row) {
    alignas(kAlignment) float normed[stride];
    Norm::template apply<Width>(pass.hidden + row * stride, normed, epsilon, norm.weight, norm.bias);
    __builtin_memcpy(pass.output + row * Width, normed, Width * sizeof *normed);
  }
}

// Into the residual stream itself, for a head, or for what the blocks of a decoder make of it.
template <class Norm, int64_t Width>
KAOKEN_INLINE void norm_outputs(const Pass &pass, const Worker &worker, float epsilon, const NormVectors &norm) {
  constexpr int64_t stride = round_up(Width, kLanes);
  const Share mine = share(pass.batch.rows, worker);
  for (int64_t row = mine.begin; row < mine.end; ++row) {
    float *hidden = pass.hidden + row * stride;
    Norm::template apply<Width>(hidden, hidden, epsilon, norm.weight, norm.bias);
  }
  barrier(worker);
}

}  // namespace kaoken::KAOKEN_ISA
