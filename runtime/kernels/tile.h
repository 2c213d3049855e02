// The one inner loop of every matrix product, attention included.
#pragma once

#include "vector.h"

namespace kaoken::KAOKEN_ISA {

template <int... I>
struct Indices {};
template <int N, int... I>
struct MakeIndices : MakeIndices<N - 1, N - 1, I...> {};
template <int... I>
struct MakeIndices<0, I...> {
  using type = Indices<I...>;
};
template <int N>
using UpTo = typename MakeIndices<N>::type;

template <int... I>
KAOKEN_INLINE void set_zero(Vec *acc, Indices<I...>) {
  ((acc[I] = broadcast(0.0f)), ...);
}

template <int Panels, int... I>
KAOKEN_INLINE void store_tile(const Vec *acc, float *out, int64_t out_stride, Indices<I...>) {
  (store(out + I / Panels * out_stride + I % Panels * kLanes, acc[I]), ...);
}

template <int... P>
KAOKEN_INLINE void multiply_row(Vec x, const Vec *w, Vec *acc, Indices<P...>) {
  ((acc[P] = fma(x, w[P], acc[P])), ...);
}

template <int Panels, int... R, int... P>
KAOKEN_INLINE void multiply_step(const float *x, int64_t x_stride, const float *w, int64_t w_stride, Vec *acc,
                                 Indices<R...>, Indices<P...> panels) {
  const Vec weights[] = {load(w + P * w_stride)...};
  (multiply_row(broadcast(x[R * x_stride]), weights, acc + R * Panels, panels), ...);
}

// out[r * out_stride + p * 16 + lane] = sum over k of x[r * x_stride + k] * panel p [k][lane], for `depth` values of k.
//
// A panel is [depth][16] floats, the next one w_stride floats behind it. Every output is one chain of fused
// multiply-adds in ascending k, whatever the tile: that is what makes results independent of batch, threads and
// prefill split. The expansions are folds over constant indices because g++ 12 keeps an accumulator array on the
// stack when it is indexed by a loop. One instance for each tile shape serves every matrix.
template <int Rows, int Panels>
__attribute__((noinline)) void tile(const float *x, int64_t x_stride, const float *w, int64_t w_stride, int64_t depth,
                                    float *out, int64_t out_stride) {
  constexpr int64_t ahead = 1024;  // floats: a lone row waits for memory, not for arithmetic
  Vec acc[Rows * Panels];
  set_zero(acc, UpTo<Rows * Panels>());
  for (int64_t k = 0; k < depth; ++k) {
    if (Rows == 1) {
      for (int p = 0; p < Panels; ++p) __builtin_prefetch(w + p * w_stride + k * kLanes + ahead);
    }
    multiply_step<Panels>(x + k, x_stride, w + k * kLanes, w_stride, acc, UpTo<Rows>(), UpTo<Panels>());
  }
  store_tile<Panels>(acc, out, out_stride, UpTo<Rows * Panels>());
}

// The largest tile of at most `rows` rows, out of Rows, Rows / 2, ... 1; returns its rows.
template <int Rows, int Panels>
KAOKEN_INLINE int64_t largest_tile(int64_t rows, const float *x, int64_t x_stride, const float *w, int64_t w_stride,
                                   int64_t depth, float *out, int64_t out_stride) {
  if constexpr (Rows > 1) {
    if (rows < Rows) return largest_tile<Rows / 2, Panels>(rows, x, x_stride, w, w_stride, depth, out, out_stride);
  }
  tile<Rows, Panels>(x, x_stride, w, w_stride, depth, out, out_stride);
  return Rows;
}

}  // namespace kaoken::KAOKEN_ISA
