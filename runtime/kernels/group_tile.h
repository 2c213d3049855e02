// The inner loops of 8-bit inputs by 8-bit and 4-bit weights, in groups along k. A group's products are summed as
// integers, exactly; groups are added in ascending order as floats, one fused multiply-add each.
#pragma once

#include "tile.h"

namespace kaoken::KAOKEN_ISA {

// How a group of a row's inputs stands for floats: value = scale * input. Weights are stored as unsigned bytes that are
// `zero` more than what they stand for, so a sum of products begins with the offset, -zero times the sum of the inputs.
struct GroupScale {
  float scale;
  int32_t offset;
};

// Rows of inputs: bytes, and each group's scale; the same of the next row lies `stride` bytes behind.
struct GroupedRows {
  const uint8_t *values;
  const GroupScale *scales;
  int64_t stride;

  KAOKEN_MEMBER const GroupScale &scale(int64_t row, int64_t group) const {
    return reinterpret_cast<const GroupScale *>(reinterpret_cast<const char *>(scales) + row * stride)[group];
  }
};

// Panels of weights, `stride` bytes apart, and of what the Scale of their groups has, `scale_stride` float16 apart.
struct GroupedPanels {
  const uint8_t *weights;
  int64_t stride;
  const uint16_t *scales;
  int64_t scale_stride;
};

// What becomes of a group's sums. Those of an output share one scale, which is applied when all groups are added.
struct OutputScale {
  static constexpr int64_t kValues = 0;  // float16 for each group and output
  struct Panel {};
  KAOKEN_INLINE Panel panel(const uint16_t *) { return {}; }
  KAOKEN_INLINE Vec add(Panel, const GroupScale &row, Ints products, Vec sum) {
    return fma(to_float(products), broadcast(row.scale), sum);
  }
};
// Each group of an output has a scale.
struct ScaleOfGroup {
  static constexpr int64_t kValues = 1;
  using Panel = Vec;
  KAOKEN_INLINE Panel panel(const uint16_t *scales) { return load_half(scales); }
  KAOKEN_INLINE Vec add(Panel scale, const GroupScale &row, Ints products, Vec sum) {
    return fma(to_float(products), mul(scale, broadcast(row.scale)), sum);
  }
};
// And a minimum, which meets the sum of the inputs: that is what the offset is for a `zero` of -1.
struct ScaleAndMinimum {
  static constexpr int64_t kValues = 2;
  struct Panel {
    Vec scale, minimum;
  };
  KAOKEN_INLINE Panel panel(const uint16_t *scales) { return {load_half(scales), load_half(scales + kLanes)}; }
  KAOKEN_INLINE Vec add(const Panel &panel, const GroupScale &row, Ints products, Vec sum) {
    const Vec whole = fma(panel.minimum, broadcast(row.scale * static_cast<float>(row.offset)), sum);
    return fma(to_float(products), mul(panel.scale, broadcast(row.scale)), whole);
  }
};

// Weights as load_weights() has them, and unpacked nibbles.
template <int Zero>
struct ByteStep {
  using Input = uint8_t;
  using Weight = uint8_t;
  static constexpr int64_t kStep = 4;
  static constexpr int kZero = Zero;
  KAOKEN_INLINE Quad spread(const Input *x) { return spread_quad(x); }
  KAOKEN_INLINE Bytes weights(const Weight *w) { return Zero == kWeightZero ? load_weights(w) : load_unpacked(w); }
  KAOKEN_INLINE Ints multiply(Quad x, Bytes w, Ints sum) { return dot_weights(x, w, sum); }
};

// What a group's sums of some rows begin with.
template <bool Offset, int Panels, int... I>
KAOKEN_INLINE void begin_group(const GroupedRows &x, int64_t group, Ints *sums, Indices<I...>) {
  ((sums[I] = broadcast_int(Offset ? x.scale(I / Panels, group).offset : 0)), ...);
}

// The sums of floats of a tile between groups: in registers, where those are enough for a second set.
template <int Rows, int Panels, bool InRegisters = kGroupSumsInRegisters>
struct GroupSums {
  Vec sums[Rows * Panels];
  KAOKEN_MEMBER void begin(const float *out, int64_t stride, bool resume) {
    if (resume) {
      load_tile<Panels>(sums, out, stride, UpTo<Rows * Panels>());
    } else {
      set_zero<Float32Step>(sums, UpTo<Rows * Panels>());
    }
  }
  KAOKEN_MEMBER Vec get(int i) const { return sums[i]; }
  KAOKEN_MEMBER void set(int i, Vec sum) { sums[i] = sum; }
  KAOKEN_MEMBER void fence() const {}
  KAOKEN_MEMBER void end(float *out, int64_t stride) const {
    store_tile<Panels>(sums, out, stride, UpTo<Rows * Panels>());
  }
};
// Or in memory.
template <int Rows, int Panels>
struct GroupSums<Rows, Panels, false> {
  float *at;
  int64_t rows_apart;
  KAOKEN_MEMBER void begin(float *out, int64_t stride, bool resume) {
    at = out;
    rows_apart = stride;
    if (!resume) clear(UpTo<Rows * Panels>());
  }
  template <int... I>
  KAOKEN_MEMBER void clear(Indices<I...>) {
    (set(I, broadcast(0.0f)), ...);
  }
  KAOKEN_MEMBER float *place(int i) const { return at + i / Panels * rows_apart + i % Panels * kLanes; }
  KAOKEN_MEMBER Vec get(int i) const { return load(place(i)); }
  KAOKEN_MEMBER void set(int i, Vec sum) { store(place(i), sum); }
  // Without it g++ would move the floats to registers, and the integers to the stack.
  KAOKEN_MEMBER void fence() const { __asm__ volatile("" ::: "memory"); }
  KAOKEN_MEMBER void end(float *, int64_t) const {}
};

template <class Scale, int Panels, class Sums, int... P, int... I>
KAOKEN_INLINE void add_group(const GroupedRows &x, int64_t group, const uint16_t *scales, int64_t scale_stride,
                             const Ints *products, Sums &sums, Indices<P...>, Indices<I...>) {
  const typename Scale::Panel panels[] = {Scale::panel(scales + P * scale_stride)...};
  (sums.set(I, Scale::add(panels[I % Panels], x.scale(I / Panels, group), products[I], sums.get(I))), ...);
}

// g++ 12 would copy the sums of a loop within a loop back and forth.
template <int... I>
KAOKEN_INLINE void keep_in_registers(Ints *sums, Indices<I...>) {
  (keep_in_register(sums[I]), ...);
}

// As `tile`, for steps of 4 k in groups of Group.
template <class Step, class Scale, int64_t Group, int Rows, int Panels>
__attribute__((noinline)) void group_tile(GroupedRows x, const GroupedPanels &w, int64_t steps, float *out,
                                          int64_t out_stride, bool resume, const Ahead &ahead) {
  constexpr int64_t lines = Group / Step::kStep;
  constexpr bool offset = Step::kZero > 0;
  GroupSums<Rows, Panels> sums;
  sums.begin(out, out_stride, resume);
  const uint8_t *weights = w.weights;
  const int64_t stride = w.stride;
  const Ahead lines_ahead = ahead;
  for (int64_t group = 0, first = 0; first < steps; ++group, first += lines) {
    Ints products[Rows * Panels];
    begin_group<offset, Panels>(x, group, products, UpTo<Rows * Panels>());
    const int64_t end = first + lines < steps ? first + lines : steps;
    int64_t i = first;
    do {
      prefetch(lines_ahead, i, UpTo<Panels>());
      multiply_step<Step, Panels>(x.values + i * Step::kStep, x.stride, weights + i * 64, stride, products,
                                  UpTo<Rows>(), UpTo<Panels>());
      keep_in_registers(products, UpTo<Rows * Panels>());
    } while (++i < end);
    sums.fence();
    add_group<Scale, Panels>(x, group, w.scales + group * Scale::kValues * kLanes, w.scale_stride, products, sums,
                             UpTo<Panels>(), UpTo<Rows * Panels>());
  }
  sums.end(out, out_stride);
}

// Nibbles of int4: a panel is [K / 32][4][16][4] bytes, byte [group][line][output][i] having k = 4 * line + i of its
// group in the low nibble and k = 16 + 4 * line + i in the high one.

constexpr int64_t kGroup = 32;  // values of k that share a scale of an output, where groups have one
constexpr int64_t kNibbleLines = 4;
constexpr int64_t kNibbleBytes = kGroup * kLanes / 2;

template <int... R>
KAOKEN_INLINE void add_line(const uint8_t *x, int64_t x_stride, Bytes weights, Ints *sums, Indices<R...>) {
  ((sums[R] = dot_weights(spread_quad(x + R * x_stride), weights, sums[R])), ...);
}

template <class Scale, int... R>
KAOKEN_INLINE void add_halves(const GroupedRows &x, int64_t group, const uint16_t *scales, const Ints *low,
                              const Ints *high, Vec *sums, Indices<R...>) {
  const typename Scale::Panel panel = Scale::panel(scales);
  ((sums[R] = Scale::add(panel, x.scale(R, group), add(low[R], high[R]), sums[R])), ...);
}

// Rows rows times one panel of `groups` groups, whose nibbles are read as they lie.
template <class Scale, int Zero, int Rows>
__attribute__((noinline)) void nibble_rows(GroupedRows x, const GroupedPanels &w, int64_t groups, float *out,
                                           int64_t out_stride, const Ahead &ahead) {
  Vec sums[Rows];
  set_zero<Float32Step>(sums, UpTo<Rows>());
  const uint8_t *values = x.values, *weights = w.weights;
  for (int64_t group = 0; group < groups; ++group, values += kGroup, weights += kNibbleBytes) {
    Ints low[Rows], high[Rows];
    begin_group<(Zero > 0), 1>(x, group, low, UpTo<Rows>());
    set_zero<Int8Step>(high, UpTo<Rows>());
#pragma GCC unroll 4
    for (int64_t line = 0; line < kNibbleLines; ++line) {
      prefetch(ahead, group * kNibbleLines + line, UpTo<1>());
      const Nibbles both = load_nibbles(weights + line * 64);
      add_line(values + line * 4, x.stride, both.low, low, UpTo<Rows>());
      add_line(values + kGroup / 2 + line * 4, x.stride, both.high, high, UpTo<Rows>());
    }
    add_halves<Scale>(x, group, w.scales + group * Scale::kValues * kLanes, low, high, sums, UpTo<Rows>());
  }
  store_tile<1>(sums, out, out_stride, UpTo<Rows>());
}

// Unpacks `groups` groups of a panel to [groups * 8][16][4] bytes.
static inline void unpack_nibbles(const uint8_t *w, int64_t groups, uint8_t *out) {
  for (int64_t group = 0; group < groups; ++group, w += kNibbleBytes, out += kGroup * kLanes) {
    for (int64_t line = 0; line < kNibbleLines; ++line) {
      const Nibbles both = load_nibbles(w + line * 64);
      store(out + line * 64, both.low);
      store(out + (kNibbleLines + line) * 64, both.high);
    }
  }
}

}  // namespace kaoken::KAOKEN_ISA
