// The inner loop of every matrix product, attention included.
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

// What one step of the loop does with each type of weight. A step takes kStep values of k: kStep weights of each of a
// panel's 16 outputs, kStep inputs of each row. Sums are stored as Element.

struct Float32Step {
  using Input = float;
  using Weight = float;
  using Element = float;
  static constexpr int64_t kStep = 1;
  KAOKEN_INLINE Vec zero() { return broadcast(0.0f); }
  KAOKEN_INLINE Vec spread(const Input *x) { return broadcast(*x); }
  KAOKEN_INLINE Vec weights(const Weight *w) { return load(w); }
  KAOKEN_INLINE Vec multiply(Vec x, Vec w, Vec sum) { return fma(x, w, sum); }
};

struct BFloat16Step {
  using Input = uint16_t;
  using Weight = uint16_t;
  using Element = float;
  static constexpr int64_t kStep = 2;
  KAOKEN_INLINE Vec zero() { return broadcast(0.0f); }
  KAOKEN_INLINE Pairs spread(const Input *x) { return spread_pair(x); }
  KAOKEN_INLINE Pairs weights(const Weight *w) { return load_pairs(w); }
  KAOKEN_INLINE Vec multiply(Pairs x, Pairs w, Vec sum) { return dot(x, w, sum); }
};

// Of the KV cache: unsigned inputs less kInputOffset.
struct Int8Step {
  using Input = uint8_t;
  using Weight = int8_t;
  using Element = int32_t;
  static constexpr int64_t kStep = 4;
  KAOKEN_INLINE Ints zero() { return broadcast_int(0); }
  KAOKEN_INLINE Quad spread(const Input *x) { return spread_quad(x); }
  KAOKEN_INLINE Bytes weights(const Weight *w) { return load_bytes(w); }
  KAOKEN_INLINE Ints multiply(Quad x, Bytes w, Ints sum) { return dot(x, w, sum); }
};

template <class Step, class Sum, int... I>
KAOKEN_INLINE void set_zero(Sum *sums, Indices<I...>) {
  ((sums[I] = Step::zero()), ...);
}

template <int Panels, class Sum, class Element, int... I>
KAOKEN_INLINE void load_tile(Sum *sums, const Element *from, int64_t stride, Indices<I...>) {
  ((sums[I] = load(from + I / Panels * stride + I % Panels * kLanes)), ...);
}

template <int Panels, class Sum, class Element, int... I>
KAOKEN_INLINE void store_tile(const Sum *sums, Element *out, int64_t stride, Indices<I...>) {
  (store(out + I / Panels * stride + I % Panels * kLanes, sums[I]), ...);
}

template <class Step, class Spread, class Weights, class Sum, int... P>
KAOKEN_INLINE void multiply_row(Spread x, const Weights *w, Sum *sums, Indices<P...>) {
  ((sums[P] = Step::multiply(x, w[P], sums[P])), ...);
}

// Lines to prefetch while a tile runs, so that memory is busy even where one matrix ends and the next begins: at each
// step i that `mask` has no bit of, and for panel p, the one at first + p * panel_stride + (i >> shift) * 64. Where
// several tiles share weights, a mask spreads the lines over all of them: memory takes only so many at a time.
struct Ahead {
  const char *first;
  int64_t panel_stride;  // bytes
  int64_t mask = 0;      // 2^shift - 1
  int shift = 0;
};
struct NothingAhead {};

KAOKEN_INLINE void prefetch_line(const char *line) {
  constexpr int into_l2 = 2;
  __builtin_prefetch(line, 0, into_l2);
}
template <int... P>
KAOKEN_INLINE void prefetch(const Ahead &ahead, int64_t i, Indices<P...>) {
  if (i & ahead.mask) return;
  (prefetch_line(ahead.first + P * ahead.panel_stride + (i >> ahead.shift) * 64), ...);
}
template <int... P>
KAOKEN_INLINE void prefetch(NothingAhead, int64_t, Indices<P...>) {}

template <class Step, int Panels, class Sum, int... R, int... P>
KAOKEN_INLINE void multiply_step(const typename Step::Input *x, int64_t x_stride, const typename Step::Weight *w,
                                 int64_t w_stride, Sum *sums, Indices<R...>, Indices<P...> panels) {
  const decltype(Step::weights(w)) weights[] = {Step::weights(w + P * w_stride)...};
  (multiply_row<Step>(Step::spread(x + R * x_stride), weights, sums + R * Panels, panels), ...);
}

// out[r * out_stride + p * 16 + lane] = sum over k of x[r * x_stride + k] * panel p [k][lane], for `steps` steps of k.
// With `resume` the sums are added to what is there.
//
// A panel is [steps][16][kStep] weights, the next one w_stride weights behind it. Every output is one chain in
// ascending k, whatever the tile: that is what makes results independent of batch, threads and prefill split. The
// expansions are folds over constant indices because g++ 12 keeps an array of accumulators on the stack when it is
// indexed by a loop. One instance for each tile shape serves every matrix.
template <class Step, int Rows, int Panels, class Prefetched = NothingAhead>
__attribute__((noinline)) void tile(const typename Step::Input *x, int64_t x_stride, const typename Step::Weight *w,
                                    int64_t w_stride, int64_t steps, typename Step::Element *out, int64_t out_stride,
                                    bool resume, const Prefetched &ahead = {}) {
  decltype(Step::zero()) sums[Rows * Panels];
  if (resume) {
    load_tile<Panels>(sums, out, out_stride, UpTo<Rows * Panels>());
  } else {
    set_zero<Step>(sums, UpTo<Rows * Panels>());
  }
  for (int64_t i = 0; i < steps; ++i) {
    prefetch(ahead, i, UpTo<Panels>());
    multiply_step<Step, Panels>(x + i * Step::kStep, x_stride, w + i * Step::kStep * kLanes, w_stride, sums,
                                UpTo<Rows>(), UpTo<Panels>());
  }
  store_tile<Panels>(sums, out, out_stride, UpTo<Rows * Panels>());
}

// Calls tile.run<R>() with the largest R of Rows, Rows / 2, ... 1 that is at most `rows`; returns it.
template <int Rows, class Tile>
KAOKEN_INLINE int64_t run_largest(int64_t rows, const Tile &tile) {
  if constexpr (Rows > 1) {
    if (rows < Rows) return run_largest<Rows / 2>(rows, tile);
  }
  tile.template run<Rows>();
  return Rows;
}

}  // namespace kaoken::KAOKEN_ISA
