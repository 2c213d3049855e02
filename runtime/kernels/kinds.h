// The types of matrix: how each stores its weights and inputs, and how its products become floats. codegen/layout.py
// packs what these read.
#pragma once

#include "group_tile.h"
#include "kaoken/pass.h"

namespace kaoken::KAOKEN_ISA {

static_assert(kLanes == kPanel, "a panel is one Vec wide");

constexpr int64_t kLine = 64;         // bytes of a panel's step
constexpr int64_t kRowBlock = 128;    // rows whose sums of a few panels are kept until their k is complete
constexpr int64_t kDepthBlock = 192;  // lines of each panel that stay in the caches while rows pass over them

// What the tiles that take turns at a block of rows prefetch together: `lines` lines of each panel, from `first` on,
// where that is not null.
struct SharedAhead {
  const char *first;
  int64_t panel_stride, lines;
  int64_t steps;          // of each tile
  const char *otherwise;  // for tiles that have nothing to fetch: what is in the caches
  int tiles = 0;          // that fetch: the exponent of a power of two

  KAOKEN_INLINE SharedAhead among(int64_t whole_tiles, const char *first, int64_t panel_stride, int64_t lines,
                                  int64_t steps, const char *otherwise) {
    SharedAhead ahead = {first, panel_stride, lines, steps, otherwise};
    while (whole_tiles >> (ahead.tiles + 1)) ++ahead.tiles;
    return ahead;
  }
  KAOKEN_MEMBER Ahead of(int64_t tile) const {
    const int shift = tiles + (steps > lines);
    const char *from = first && !(tile >> tiles) ? first + (tile * lines >> tiles) * kLine : otherwise;
    return {from, panel_stride, (int64_t{1} << shift) - 1, shift};
  }
};

// The products of a kind of matrix, which has tile<Rows, Panels>(x, depth, w, panel, step, steps, out, out_stride,
// resume, ahead): rows of inputs from x on by Panels panels from `panel` on, `steps` steps of kStep k from `step` on.
template <class Kind, int TileRows, int TilePanels>
struct Products {
  static constexpr bool kExploded = false;
  static constexpr int kTilePanels = TilePanels, kStreamPanels = KAOKEN_ISA::kStreamPanels;

  // out[0 .. 16 Panels) = the row x times the panels from `panel` on. `next` is what will be read after them, or null.
  template <int Panels, class Input, class Matrix, class Element>
  KAOKEN_INLINE void stream(const Input *x, const Matrix &w, int64_t panel, int64_t depth, Element *out,
                            const char *next) {
    few<1, Panels>(x, 1, w, panel, depth, out, next);
  }

  // out[row][0 .. 16 Panels) for up to kRowBlock rows. Outlined, since g++ 12 keeps the accumulators of a large tile on
  // the stack where it knows the strides.
  template <int Panels, class Input, class Matrix, class Element>
  KAOKEN_OUTLINE static void block(const Input *x, int64_t rows, const Matrix &w, int64_t panel, int64_t depth,
                                   Element *out, const char *next) {
    if (rows <= TileRows) return few<TileRows, Panels>(x, rows, w, panel, depth, out, next);
    const int64_t all = Kind::steps(depth);
    for (int64_t step = 0; step < all; step += kDepthBlock) {
      const int64_t left = all - step, steps = left < kDepthBlock ? left : kDepthBlock;
      const char *weights = line_of(w, panel, depth, step);
      const auto ahead = SharedAhead::among(rows / TileRows, left > kDepthBlock ? weights + kDepthBlock * kLine : next,
                                            Kind::panel_bytes(depth), steps, steps, weights);
      for (int64_t row = 0; row < rows;) {
        row += run_largest<TileRows>(rows - row, Tile<Panels, Input, Matrix, Element>{
                                                     x + row * Kind::row_stride(depth), depth, w, panel, step, steps,
                                                     out + row * Panels * kLanes, ahead.of(row / TileRows)});
      }
    }
  }

 protected:
  template <class Matrix>
  KAOKEN_INLINE const char *line_of(const Matrix &w, int64_t panel, int64_t depth, int64_t step) {
    return reinterpret_cast<const char *>(w.weights) + panel * Kind::panel_bytes(depth) + step * kLine;
  }

 private:
  template <int Panels, class Input, class Matrix, class Element>
  struct Tile {
    const Input *x;
    int64_t depth;
    const Matrix &w;
    int64_t panel, step, steps;
    Element *out;
    Ahead ahead;
    template <int Rows>
    KAOKEN_MEMBER void run() const {
      Kind::template tile<Rows, Panels>(x, depth, w, panel, step, steps, out, Panels * kLanes, step > 0, ahead);
    }
  };

  // Rows that one tile takes in: all of k in one go.
  template <int Rows, int Panels, class Input, class Matrix, class Element>
  KAOKEN_INLINE void few(const Input *x, int64_t rows, const Matrix &w, int64_t panel, int64_t depth, Element *out,
                         const char *next) {
    const Ahead ahead = {next ? next : line_of(w, panel, depth, 0), Kind::panel_bytes(depth)};
    for (int64_t row = 0; row < rows;) {
      row += run_largest<Rows>(
          rows - row, Tile<Panels, Input, Matrix, Element>{x + row * Kind::row_stride(depth), depth, w, panel, 0,
                                                           Kind::steps(depth), out + row * Panels * kLanes, ahead});
    }
  }
};

// Products without scales: one tile over all of k, in blocks of k where several rows share the weights.
template <class Kind, class Step>
struct DenseProducts : Products<Kind, kTileRows, kTilePanels> {
  using Input = typename Step::Input;
  using Element = typename Step::Element;

  static constexpr int64_t steps(int64_t depth) { return (depth + Step::kStep - 1) / Step::kStep; }
  static constexpr int64_t row_stride(int64_t depth) { return round_up(depth, kLanes * Step::kStep); }  // 64 bytes

  // Bytes of one panel.
  static constexpr int64_t panel_bytes(int64_t depth) { return steps(depth) * kLine; }

  template <int Rows, int Panels, class Matrix>
  KAOKEN_INLINE void tile(const Input *x, int64_t depth, const Matrix &w, int64_t panel, int64_t step, int64_t count,
                          Element *out, int64_t out_stride, bool resume, const Ahead &ahead) {
    const int64_t stride = steps(depth) * Step::kStep * kLanes;
    KAOKEN_ISA::tile<Step, Rows, Panels>(x + step * Step::kStep, row_stride(depth),
                                         w.weights + panel * stride + step * Step::kStep * kLanes, stride, count, out,
                                         out_stride, resume, ahead);
  }

  template <class Matrix>
  KAOKEN_INLINE Vec finish(const Element *sums, const Matrix &, int64_t) {
    return load(sums);
  }
};

struct Float32 : DenseProducts<Float32, Float32Step> {
  static constexpr bool kFloatInputs = true;
  struct Matrix {
    const float *weights;  // [N / 16][K][16]
  };

  // x: [padded to whole vectors]
  template <int64_t Depth>
  KAOKEN_INLINE void convert(const float *x, float *inputs) {
    for (int64_t i = 0; i < round_up(Depth, kLanes); i += kLanes) store(inputs + i, load(x + i));
  }
  KAOKEN_INLINE float weight(const Matrix &w, int64_t depth, int64_t output, int64_t k) {
    return w.weights[(output / kLanes * depth + k) * kLanes + output % kLanes];
  }
};

struct BFloat16 : DenseProducts<BFloat16, BFloat16Step> {
  static constexpr bool kFloatInputs = false;
  struct Matrix {
    const uint16_t *weights;  // [N / 16][K / 2][16][2]
  };

  template <int64_t Depth>
  KAOKEN_INLINE void convert(const float *x, uint16_t *inputs) {
    for (int64_t i = 0; i < round_up(Depth, kLanes); i += kLanes) store_bfloat16(inputs + i, load(x + i));
  }
  KAOKEN_INLINE float weight(const Matrix &w, int64_t depth, int64_t output, int64_t k) {
    const uint32_t bits = w.weights[((output / kLanes * steps(depth) + k / 2) * kLanes + output % kLanes) * 2 + k % 2];
    return float_of_bits(bits << 16);
  }
};

// The integer nearest to x * inverse + zero, as the inputs of attention are stored: the same number on every ISA with a
// fused fma.
KAOKEN_INLINE Ints input_of(Vec x, float inverse, float zero) {
  return sub(to_int(fma(x, broadcast(inverse), broadcast(zero))), broadcast_int(kInputOffset));
}

// Stores 16 Vecs integers as bytes, integers(i) being 16 of them.
template <bool Signed, int64_t Vecs, class Integers>
KAOKEN_INLINE void store_integers(uint8_t *bytes, const Integers &integers) {
  constexpr int64_t fours = Vecs / 4 * 4;
  for (int64_t i = 0; i < fours; i += 4) {
    pack_bytes<Signed>(bytes + i * kLanes, integers(i), integers(i + 1), integers(i + 2), integers(i + 3));
  }
  for (int64_t i = fours; i < Vecs; ++i) store_bytes(bytes + i * kLanes, integers(i));
}
template <int64_t Vecs, class Integers>
KAOKEN_INLINE void store_inputs(uint8_t *inputs, const Integers &integers) {
  store_integers<kInputOffset != 0, Vecs>(inputs, integers);
}

// 16 Vecs values of a row, which share a scale: signed, symmetric, the largest magnitude at 127. Adds 0 times each to
// `poison`.
template <int64_t Vecs>
KAOKEN_INLINE void quantize_group(const float *x, uint8_t *inputs, GroupScale *group, int zero, Vec &poison) {
  const Vec none = broadcast(0.0f);
  Vec most = none;
  for (int64_t i = 0; i < Vecs; ++i) {
    const Vec v = load(x + i * kLanes);
    most = max(max(v, sub(none, v)), most);
    poison = fma(v, none, poison);
  }
  const float largest = reduce_max(most);
  const Vec inverse = broadcast(largest > 1e-30f ? 127.0f / largest : 0.0f);
  Ints integers[Vecs], sum = broadcast_int(0);
  for (int64_t i = 0; i < Vecs; ++i) {
    integers[i] = to_int(mul(load(x + i * kLanes), inverse));
    if (zero) sum = add(sum, integers[i]);
  }
  store_integers<true, Vecs>(inputs, [&](int64_t i) { return integers[i]; });
  group->scale = largest / 127.0f;
  if (zero) group->offset = -zero * static_cast<int32_t>(reduce_add(to_float(sum)));
}

// A row of inputs in 8 bits, dynamic, each group of Group values by itself. Padding stays 0. A NaN or an infinity,
// which no byte could stand for, makes all scales NaN and so every output.
template <int64_t Depth, int64_t Group, int Zero>
KAOKEN_INLINE void quantize(const float *x, uint8_t *inputs, GroupScale *groups) {
  constexpr int64_t end = round_up(Depth, kLanes), whole = end / Group, rest = end % Group / kLanes;
  Vec poison = broadcast(0.0f);
  for (int64_t i = 0; i < whole; ++i) {
    quantize_group<Group / kLanes>(x + i * Group, inputs + i * Group, groups + i, Zero, poison);
  }
  if constexpr (rest > 0) {
    quantize_group<rest>(x + whole * Group, inputs + whole * Group, groups + whole, Zero, poison);
    for (int64_t i = end; i < (whole + 1) * Group; i += kLanes) store_bytes(inputs + i, broadcast_int(0));
  }
  const float unsound = reduce_add(poison);
  if (unsound == 0.0f) return;
  for (int64_t i = 0; i < whole + (rest > 0); ++i) groups[i].scale = unsound;
}

// 8-bit inputs in groups of Group, Zero standing for a weight of 0.
template <class Kind, int64_t Group, int Zero>
struct GroupedInputs : Products<Kind, kGroupRows, kGroupPanels> {
  static constexpr bool kFloatInputs = false;
  using Input = uint8_t;
  using Element = float;

  // Bytes of a row: its values, then the scales of its groups.
  static constexpr int64_t value_bytes(int64_t depth) { return round_up(depth, 64); }
  static constexpr int64_t row_stride(int64_t depth) {
    return value_bytes(depth) + round_up((depth + Group - 1) / Group * static_cast<int64_t>(sizeof(GroupScale)), 64);
  }

  // x: [padded to whole vectors]
  template <int64_t Depth>
  KAOKEN_INLINE void convert(const float *x, uint8_t *inputs) {
    quantize<Depth, Group, Zero>(x, inputs, reinterpret_cast<GroupScale *>(inputs + value_bytes(Depth)));
  }

 protected:
  // From a value on that begins a group.
  KAOKEN_INLINE GroupedRows rows_of(const uint8_t *x, int64_t depth, int64_t first) {
    return {x + first, reinterpret_cast<const GroupScale *>(x + value_bytes(depth)) + first / Group, row_stride(depth)};
  }
};

// 8-bit inputs by bytes, in groups of Group.
template <class Kind, class Scale, int64_t Group>
struct ByteProducts : GroupedInputs<Kind, Group, kWeightZero> {
  static_assert(kDepthBlock * 4 % Group == 0);
  static constexpr int64_t steps(int64_t depth) { return round_up(depth, Scale::kValues ? Group : 4) / 4; }
  static constexpr int64_t panel_bytes(int64_t depth) { return steps(depth) * kLine; }

  template <int Rows, int Panels, class Matrix>
  KAOKEN_INLINE void tile(const uint8_t *x, int64_t depth, const Matrix &w, int64_t panel, int64_t step, int64_t count,
                          float *out, int64_t out_stride, bool resume, const Ahead &ahead) {
    group_tile<ByteStep<kWeightZero>, Scale, Group, Rows, Panels>(ByteProducts::rows_of(x, depth, step * 4),
                                                                  Kind::panels_of(w, depth, panel, step), count, out,
                                                                  out_stride, resume, ahead);
  }
};

// An output's weights share a scale.
struct Int8 : ByteProducts<Int8, OutputScale, 64> {
  struct Matrix {
    const uint8_t *weights;  // [N / 16][K / 4][16][4]
    const float *scales;     // [N]
  };

  KAOKEN_INLINE GroupedPanels panels_of(const Matrix &w, int64_t depth, int64_t panel, int64_t step) {
    const int64_t stride = panel_bytes(depth);
    return {w.weights + panel * stride + step * kLine, stride, nullptr, 0};
  }
  KAOKEN_INLINE Vec finish(const float *sums, const Matrix &w, int64_t panel) {
    return mul(load(sums), load(w.scales + panel * kLanes));
  }
  KAOKEN_INLINE float weight(const Matrix &w, int64_t depth, int64_t output, int64_t k) {
    const int64_t line = output / kLanes * steps(depth) + k / 4;
    return static_cast<float>(w.weights[(line * kLanes + output % kLanes) * 4 + k % 4] - 128) * w.scales[output];
  }
};

// A scale, and whatever else a Scale has, for each group of an output: [N / 16][K / 32][..][16] float16.
template <class Scale>
struct GroupScales {
  static constexpr int64_t groups(int64_t depth) { return (depth + kGroup - 1) / kGroup; }
  static constexpr int64_t stride(int64_t depth) { return groups(depth) * Scale::kValues * kLanes; }
  // Of a group of some panel, from its first output on.
  KAOKEN_INLINE const uint16_t *at(const uint16_t *scales, int64_t depth, int64_t panel, int64_t group) {
    return scales + panel * stride(depth) + group * Scale::kValues * kLanes;
  }
  // Value `which` of an output.
  KAOKEN_INLINE float of(const uint16_t *scales, int64_t depth, int64_t output, int64_t k, int64_t which = 0) {
    float lanes[kLanes];
    store(lanes, load_half(at(scales, depth, output / kLanes, k / kGroup) + which * kLanes));
    return lanes[output % kLanes];
  }
};

struct Int8Groups : ByteProducts<Int8Groups, ScaleOfGroup, kGroup> {
  using Scales = GroupScales<ScaleOfGroup>;
  struct Matrix {
    const uint8_t *weights;  // [N / 16][K / 4][16][4]
    const uint16_t *scales;  // [N / 16][K / 32][16] float16
  };

  KAOKEN_INLINE GroupedPanels panels_of(const Matrix &w, int64_t depth, int64_t panel, int64_t step) {
    const int64_t stride = panel_bytes(depth);
    return {w.weights + panel * stride + step * kLine, stride, Scales::at(w.scales, depth, panel, step * 4 / kGroup),
            Scales::stride(depth)};
  }
  KAOKEN_INLINE Vec finish(const float *sums, const Matrix &, int64_t) { return load(sums); }
  KAOKEN_INLINE float weight(const Matrix &w, int64_t depth, int64_t output, int64_t k) {
    const int64_t line = output / kLanes * steps(depth) + k / 4;
    return static_cast<float>(w.weights[(line * kLanes + output % kLanes) * 4 + k % 4] - 128) *
           Scales::of(w.scales, depth, output, k);
  }
};

// 8-bit inputs by nibbles, Zero standing for 0.
template <class Scale, int Zero>
struct NibbleProducts : GroupedInputs<NibbleProducts<Scale, Zero>, kGroup, Zero> {
  using Base = GroupedInputs<NibbleProducts, kGroup, Zero>;
  using Scales = GroupScales<Scale>;
  static constexpr int kStreamPanels = 1;
  struct Matrix {
    const uint8_t *weights;  // [N / 16][K / 32][4][16][4] pairs
    const uint16_t *scales;  // [N / 16][K / 32][16] float16, or [2][16]: of minima, too
  };

  static constexpr int64_t panel_bytes(int64_t depth) { return Scales::groups(depth) * kNibbleBytes; }

  template <int Panels>
  KAOKEN_INLINE void stream(const uint8_t *x, const Matrix &w, int64_t panel, int64_t depth, float *out,
                            const char *next) {
    static_assert(Panels == 1);
    few<1>(x, 1, w, panel, depth, out, kLanes, next);
  }

  // Up to this many rows read nibbles as they lie. With more rows it pays to unpack them.
  static constexpr int64_t kFewRows = 2 * kNibbleRows;

  template <int Panels>
  KAOKEN_OUTLINE static void block(const uint8_t *x, int64_t rows, const Matrix &w, int64_t panel, int64_t depth,
                                   float *out, const char *next) {
    if (rows <= kFewRows) {
      for (int64_t p = 0; p < Panels; ++p) {
        few<kNibbleRows>(x, rows, w, panel + p, depth, out + p * kLanes, Panels * kLanes,
                         next ? next + p * panel_bytes(depth) : nullptr);
      }
      return;
    }
    constexpr int64_t most = kDepthBlock * 4 / kGroup;  // groups that are unpacked at a time
    constexpr int64_t stride = most * kGroup * kLanes;
    alignas(kAlignment) uint8_t unpacked[Panels * stride];
    for (int64_t group = 0; group < Scales::groups(depth); group += most) {
      const int64_t left = Scales::groups(depth) - group, count = left < most ? left : most;
      const uint8_t *nibbles = nibbles_of(w, panel, depth) + group * kNibbleBytes;
      for (int64_t p = 0; p < Panels; ++p) {
        unpack_nibbles(nibbles + p * panel_bytes(depth), count, unpacked + p * stride);
      }
      const auto *after = left > most ? reinterpret_cast<const char *>(nibbles) + most * kNibbleBytes : next;
      const auto ahead = SharedAhead::among(rows / kGroupRows, after, panel_bytes(depth), count * kNibbleLines,
                                            count * kGroup / 4, reinterpret_cast<const char *>(unpacked));
      for (int64_t row = 0; row < rows;) {
        row += run_largest<kGroupRows>(
            rows - row,
            Tile<Panels>{Base::rows_of(x + row * Base::row_stride(depth), depth, group * kGroup),
                         {unpacked, stride, Scales::at(w.scales, depth, panel, group), Scales::stride(depth)},
                         count * kGroup / 4,
                         out + row * Panels * kLanes,
                         group > 0,
                         ahead.of(row / kGroupRows)});
      }
    }
  }

  KAOKEN_INLINE Vec finish(const float *sums, const Matrix &, int64_t) { return load(sums); }
  KAOKEN_INLINE float weight(const Matrix &w, int64_t depth, int64_t output, int64_t k) {
    const int64_t line = k % 16 / 4;
    const int both = (nibbles_of(w, output / kLanes, depth) +
                      k / kGroup * kNibbleBytes)[(line * kLanes + output % kLanes) * 4 + k % 4];
    const int nibble = k % kGroup < 16 ? both & 15 : both >> 4;
    const float scale = Scales::of(w.scales, depth, output, k);
    if constexpr (Scale::kValues == 1) return static_cast<float>(nibble - Zero) * scale;
    return static_cast<float>(nibble) * scale + Scales::of(w.scales, depth, output, k, Scale::kValues - 1);
  }

 private:
  template <int Panels>
  struct Tile {
    GroupedRows x;
    GroupedPanels w;
    int64_t steps;
    float *out;
    bool resume;
    Ahead ahead;
    template <int Rows>
    KAOKEN_MEMBER void run() const {
      group_tile<ByteStep<Zero>, Scale, kGroup, Rows, Panels>(x, w, steps, out, Panels * kLanes, resume, ahead);
    }
  };

  KAOKEN_INLINE const uint8_t *nibbles_of(const Matrix &w, int64_t panel, int64_t depth) {
    return w.weights + panel * panel_bytes(depth);
  }

  template <int Rows>
  KAOKEN_INLINE void few(const uint8_t *x, int64_t rows, const Matrix &w, int64_t panel, int64_t depth, float *out,
                         int64_t out_stride, const char *next) {
    const uint8_t *nibbles = nibbles_of(w, panel, depth);
    const GroupedPanels panels = {nibbles, 0, Scales::at(w.scales, depth, panel, 0), 0};
    const Ahead ahead = {next ? next : reinterpret_cast<const char *>(w.weights), 0};
    for (int64_t row = 0; row < rows;) {
      row += run_largest<Rows>(rows - row, FewRows{Base::rows_of(x + row * Base::row_stride(depth), depth, 0), panels,
                                                   Scales::groups(depth), out + row * out_stride, out_stride, ahead});
    }
  }
  struct FewRows {
    GroupedRows x;
    const GroupedPanels &w;
    int64_t groups;
    float *out;
    int64_t out_stride;
    const Ahead &ahead;
    template <int Rows>
    KAOKEN_MEMBER void run() const {
      nibble_rows<Scale, Zero, Rows>(x, w, groups, out, out_stride, ahead);
    }
  };
};

struct Int4 : NibbleProducts<ScaleOfGroup, 8> {};
struct Int4Min : NibbleProducts<ScaleAndMinimum, -1> {};

}  // namespace kaoken::KAOKEN_ISA
