// The inner loop of int4 weights in groups of 32 along k, each group and output with a float16 scale.
//
// A panel is [K / 32][4][16][4] bytes: byte [group][line][output][i] holds k = 4 * line + i of its group in the low
// nibble and k = 16 + 4 * line + i in the high one. A group's products are summed as integers, exactly; groups are
// added in ascending order as floats, one fused multiply-add each.
#pragma once

#include "tile.h"

namespace kaoken::KAOKEN_ISA {

constexpr int64_t kGroup = 32;  // values of k that share a scale
constexpr int64_t kGroupLines = 4;
constexpr int64_t kGroupBytes = kGroup * kLanes / 2;

// Scales of one group's 16 outputs, for sums of weights as load_nibbles gives them.
KAOKEN_INLINE Vec group_scales(const uint16_t *scales) {
  return mul(load_half(scales), broadcast(1.0f / kNibbleScale));
}

template <int... R>
KAOKEN_INLINE void add_line(const uint8_t *x, int64_t x_stride, Bytes weights, Ints *sums, Indices<R...>) {
  ((sums[R] = dot(spread_quad(x + R * x_stride), weights, sums[R])), ...);
}

template <int... R>
KAOKEN_INLINE void add_group(const Ints *low, const Ints *high, Vec scale, Vec *sums, Indices<R...>) {
  ((sums[R] = fma(to_float(add(low[R], high[R])), scale, sums[R])), ...);
}

// out[r * out_stride + lane] = Rows rows times one panel of `groups` groups, whose nibbles are read as they lie.
template <int Rows>
__attribute__((noinline)) void int4_rows(const uint8_t *x, int64_t x_stride, const uint8_t *w, const uint16_t *scales,
                                         int64_t groups, float *out, int64_t out_stride, const Ahead &ahead) {
  Vec sums[Rows];
  set_zero<Float32Step>(sums, UpTo<Rows>());
  for (int64_t group = 0; group < groups; ++group, x += kGroup, w += kGroupBytes, scales += kLanes) {
    Ints low[Rows], high[Rows];
    set_zero<Int8Step>(low, UpTo<Rows>());
    set_zero<Int8Step>(high, UpTo<Rows>());
#pragma GCC unroll 4
    for (int64_t line = 0; line < kGroupLines; ++line) {
      prefetch(ahead, group * kGroupLines + line, UpTo<1>());
      const Nibbles weights = load_nibbles(w + line * 64);
      add_line(x + line * 4, x_stride, weights.low, low, UpTo<Rows>());
      add_line(x + kGroup / 2 + line * 4, x_stride, weights.high, high, UpTo<Rows>());
    }
    add_group(low, high, group_scales(scales), sums, UpTo<Rows>());
  }
  store_tile<1>(sums, out, out_stride, UpTo<Rows>());
}

// The same for any number of rows, in tiles of Rows, Rows / 2, ... 1.
template <int Rows>
KAOKEN_INLINE void int4_panel(const uint8_t *x, int64_t x_stride, int64_t rows, const uint8_t *w,
                              const uint16_t *scales, int64_t groups, float *out, int64_t out_stride,
                              const Ahead &ahead) {
  for (; rows >= Rows; rows -= Rows, x += Rows * x_stride, out += Rows * out_stride) {
    int4_rows<Rows>(x, x_stride, w, scales, groups, out, out_stride, ahead);
  }
  if constexpr (Rows > 1) {
    if (rows > 0) int4_panel<Rows / 2>(x, x_stride, rows, w, scales, groups, out, out_stride, ahead);
  }
}

// Unpacks `groups` groups of a panel to [groups * 8][16][4] int8 times kNibbleScale.
static inline void unpack_groups(const uint8_t *w, int64_t groups, int8_t *out) {
  for (int64_t group = 0; group < groups; ++group, w += kGroupBytes, out += kGroup * kLanes) {
    for (int64_t line = 0; line < kGroupLines; ++line) {
      const Nibbles weights = load_nibbles(w + line * 64);
      store(out + line * 64, weights.low);
      store(out + (kGroupLines + line) * 64, weights.high);
    }
  }
}

template <int... P, int... I>
KAOKEN_INLINE void add_groups(const Ints *group, const uint16_t *scales, int64_t stride, Vec *sums, Indices<P...>,
                              Indices<I...>) {
  const Vec scale[] = {group_scales(scales + P * stride)...};
  ((sums[I] = fma(to_float(group[I]), scale[I % sizeof...(P)], sums[I])), ...);
}

// As `tile`, over unpacked panels w_stride bytes apart, whose scales are scale_stride apart.
template <int Rows, int Panels>
__attribute__((noinline)) void group_tile(const uint8_t *x, int64_t x_stride, const int8_t *w, int64_t w_stride,
                                          const uint16_t *scales, int64_t scale_stride, int64_t groups, float *out,
                                          int64_t out_stride, bool resume) {
  Vec sums[Rows * Panels];
  if (resume) {
    load_tile<Panels>(sums, out, out_stride, UpTo<Rows * Panels>());
  } else {
    set_zero<Float32Step>(sums, UpTo<Rows * Panels>());
  }
  for (int64_t group = 0; group < groups; ++group) {
    Ints products[Rows * Panels];
    set_zero<Int8Step>(products, UpTo<Rows * Panels>());
#pragma GCC unroll 1
    for (int64_t k = 0; k < kGroup; k += Int8Step::kStep) {
      multiply_step<Int8Step, Panels>(x + k, x_stride, w + k * kLanes, w_stride, products, UpTo<Rows>(),
                                      UpTo<Panels>());
    }
    add_groups(products, scales + group * kLanes, scale_stride, sums, UpTo<Panels>(), UpTo<Rows * Panels>());
    x += kGroup;
    w += kGroup * kLanes;
  }
  store_tile<Panels>(sums, out, out_stride, UpTo<Rows * Panels>());
}

// The largest tile of at most `rows` rows, out of Rows, Rows / 2, ... 1; returns its rows.
template <int Rows, int Panels>
KAOKEN_INLINE int64_t largest_group_tile(int64_t rows, const uint8_t *x, int64_t x_stride, const int8_t *w,
                                         int64_t w_stride, const uint16_t *scales, int64_t scale_stride, int64_t groups,
                                         float *out, int64_t out_stride, bool resume) {
  if constexpr (Rows > 1) {
    if (rows < Rows) {
      return largest_group_tile<Rows / 2, Panels>(rows, x, x_stride, w, w_stride, scales, scale_stride, groups, out,
                                                  out_stride, resume);
    }
  }
  group_tile<Rows, Panels>(x, x_stride, w, w_stride, scales, scale_stride, groups, out, out_stride, resume);
  return Rows;
}

}  // namespace kaoken::KAOKEN_ISA
