// The types of matrix: how each stores its weights and inputs, and how its products become floats. codegen/layout.py
// packs what these read.
#pragma once

#include "int4_tile.h"
#include "kaoken/pass.h"

namespace kaoken::KAOKEN_ISA {

static_assert(kLanes == kPanel, "a panel is one Vec wide");

constexpr int64_t kLine = 64;         // bytes of a panel's step
constexpr int64_t kRowBlock = 128;    // rows whose sums of a few panels are kept until their k is complete
constexpr int64_t kDepthBlock = 192;  // lines of each panel that stay in the caches while rows pass over them

// Rows of inputs to a matrix, `values` being [rows][row_stride].
template <class Input>
struct InputRows {
  const Input *values;
  const RowScale *scales;  // of quantized inputs: value = scale * (input - zero)
};

// Linear products without scales inside: one tile over all of k, in blocks of k where several rows share the weights.
template <class Step>
struct DenseProducts {
  static constexpr bool kExploded = false;
  using Input = typename Step::Input;
  using Element = typename Step::Element;
  static constexpr int kTileRows = KAOKEN_ISA::kTileRows, kTilePanels = KAOKEN_ISA::kTilePanels;
  static constexpr int kStreamPanels = KAOKEN_ISA::kStreamPanels;

  static constexpr int64_t steps(int64_t depth) { return (depth + Step::kStep - 1) / Step::kStep; }
  static constexpr int64_t row_stride(int64_t depth) { return round_up(depth, kLanes * Step::kStep); }  // 64 bytes

  // Bytes of one panel.
  static constexpr int64_t panel_bytes(int64_t depth) { return steps(depth) * kLine; }

  // out[0 .. 16 Panels) = the row x times the panels from `panel` on. `next` is what will be read after them, or null.
  template <int Panels, class Matrix>
  KAOKEN_INLINE void stream(const Input *x, const Matrix &w, int64_t panel, int64_t depth, Element *out,
                            const char *next) {
    few<1, Panels>(x, 1, w, panel, depth, out, next);
  }

  // out[row][0 .. 16 Panels) for up to kRowBlock rows. Outlined, since g++ 12 keeps the accumulators of a large tile on
  // the stack where it knows the strides.
  template <int Panels, class Matrix>
  KAOKEN_OUTLINE static void block(const Input *x, int64_t rows, const Matrix &w, int64_t panel, int64_t depth,
                                   Element *out, const char *next) {
    if (rows <= kTileRows) return few<kTileRows, Panels>(x, rows, w, panel, depth, out, next);
    const int64_t stride = steps(depth) * Step::kStep * kLanes;
    for (int64_t step = 0; step < steps(depth); step += kDepthBlock) {
      const int64_t left = steps(depth) - step;
      const auto *weights = w.weights + panel * stride + step * Step::kStep * kLanes;
      const auto *after = left > kDepthBlock ? reinterpret_cast<const char *>(weights) + kDepthBlock * kLine : next;
      for (int64_t row = 0, taken; row < rows; row += taken) {
        taken = largest_tile<Step, kTileRows, Panels>(
            rows - row, x + row * row_stride(depth) + step * Step::kStep, row_stride(depth), weights, stride,
            left < kDepthBlock ? left : kDepthBlock, out + row * Panels * kLanes, Panels * kLanes, step > 0,
            NothingAhead());
        if (!after) continue;
        for (int64_t i = row * kDepthBlock / rows; i < (row + taken) * kDepthBlock / rows; ++i) {
          prefetch(Ahead{after, panel_bytes(depth)}, i, UpTo<Panels>());
        }
      }
    }
  }

 private:
  // Rows that one tile takes in: all of k in one go.
  template <int Rows, int Panels, class Matrix>
  KAOKEN_INLINE void few(const Input *x, int64_t rows, const Matrix &w, int64_t panel, int64_t depth, Element *out,
                         const char *next) {
    const int64_t stride = steps(depth) * Step::kStep * kLanes;
    const auto *weights = w.weights + panel * stride;
    const Ahead ahead = {next ? next : reinterpret_cast<const char *>(weights), panel_bytes(depth)};
    for (int64_t row = 0; row < rows;) {
      row +=
          largest_tile<Step, Rows, Panels>(rows - row, x + row * row_stride(depth), row_stride(depth), weights, stride,
                                           steps(depth), out + row * Panels * kLanes, Panels * kLanes, false, ahead);
    }
  }
};

struct Float32 : DenseProducts<Float32Step> {
  static constexpr bool kFloatInputs = true;
  using Inputs = InputRows<float>;
  struct Matrix {
    const float *weights;  // [N / 16][K][16]
  };

  // x: [padded to whole vectors]
  template <int64_t Depth>
  KAOKEN_INLINE void convert(const float *x, float *inputs, RowScale *) {
    for (int64_t i = 0; i < round_up(Depth, kLanes); i += kLanes) store(inputs + i, load(x + i));
  }
  KAOKEN_INLINE Vec finish(const float *sums, const Inputs &, int64_t, const Matrix &, int64_t) { return load(sums); }
  KAOKEN_INLINE float weight(const Matrix &w, int64_t depth, int64_t output, int64_t k) {
    return w.weights[(output / kLanes * depth + k) * kLanes + output % kLanes];
  }
};

struct BFloat16 : DenseProducts<BFloat16Step> {
  static constexpr bool kFloatInputs = false;
  using Inputs = InputRows<uint16_t>;
  struct Matrix {
    const uint16_t *weights;  // [N / 16][K / 2][16][2]
  };

  template <int64_t Depth>
  KAOKEN_INLINE void convert(const float *x, uint16_t *inputs, RowScale *) {
    for (int64_t i = 0; i < round_up(Depth, kLanes); i += kLanes) store_bfloat16(inputs + i, load(x + i));
  }
  KAOKEN_INLINE Vec finish(const float *sums, const Inputs &, int64_t, const Matrix &, int64_t) { return load(sums); }
  KAOKEN_INLINE float weight(const Matrix &w, int64_t depth, int64_t output, int64_t k) {
    const uint32_t bits = w.weights[((output / kLanes * steps(depth) + k / 2) * kLanes + output % kLanes) * 2 + k % 2];
    return float_of_bits(bits << 16);
  }
};

// The integer nearest to x * inverse + zero, as inputs are stored: the same number on every ISA with a fused fma.
KAOKEN_INLINE Ints input_of(Vec x, float inverse, float zero) {
  return sub(to_int(fma(x, broadcast(inverse), broadcast(zero))), broadcast_int(kInputOffset));
}

// Inputs in 8 bits: dynamic, asymmetric, each row by itself. 0 is exact, so padding stays 0. A NaN or an infinity,
// which no byte could stand for, makes the scale NaN and so every output.
template <int64_t Depth>
KAOKEN_INLINE void quantize(const float *x, uint8_t *inputs, RowScale *row) {
  constexpr int64_t end = round_up(Depth, kLanes);
  const Vec none = broadcast(0.0f);
  Vec low[] = {none, none}, high[] = {none, none}, poison[] = {none, none};  // two chains each: adding takes its time
  for (int64_t i = 0; i < end; i += 2 * kLanes) {
    for (int chain = 0; chain < 2 && i + chain * kLanes < end; ++chain) {
      const Vec v = load(x + i + chain * kLanes);
      low[chain] = min(v, low[chain]);
      high[chain] = max(v, high[chain]);
      poison[chain] = fma(v, none, poison[chain]);
    }
  }
  const float least = -reduce_max(sub(none, min(low[0], low[1])));
  const float range = reduce_max(max(high[0], high[1])) - least;
  const bool sound = range > 1e-30f && range <= __FLT_MAX__;
  const float inverse = sound ? 255.0f / range : 0.0f;
  const float zero = sound ? __builtin_rintf(-least * inverse) : 0.0f;
  row->scale = range / 255.0f + reduce_add(add(poison[0], poison[1]));
  row->zero = static_cast<int32_t>(zero) - kInputOffset;

  const auto quantized = [&](int64_t i) {
    const int64_t at = i < end ? i : end - kLanes;  // what lies behind the end meets no weight
    return input_of(load(x + at), inverse, zero);
  };
  for (int64_t i = 0; i < end; i += 4 * kLanes) {
    store_inputs(inputs + i, quantized(i), quantized(i + kLanes), quantized(i + 2 * kLanes), quantized(i + 3 * kLanes));
  }
}

// Stores 16 Vecs integers that are inputs, integers(i) being 16 of them.
template <int64_t Vecs, class Integers>
KAOKEN_INLINE void store_inputs(uint8_t *inputs, const Integers &integers) {
  constexpr int64_t fours = Vecs / 4 * 4;
  for (int64_t i = 0; i < fours; i += 4) {
    store_inputs(inputs + i * kLanes, integers(i), integers(i + 1), integers(i + 2), integers(i + 3));
  }
  for (int64_t i = fours; i < Vecs; ++i) store_bytes(inputs + i * kLanes, integers(i));
}

// 8-bit inputs by int8 weights: scale * (sum of products - zero * sum of weights), the difference exact.
struct Int8 : DenseProducts<Int8Step> {
  static constexpr bool kFloatInputs = false;
  using Inputs = InputRows<uint8_t>;
  struct Matrix {
    const int8_t *weights;  // [N / 16][K / 4][16][4]
    const float *scales;    // [N]
    const int32_t *sums;    // [N]: of each output's weights
  };

  template <int64_t Depth>
  KAOKEN_INLINE void convert(const float *x, uint8_t *inputs, RowScale *row) {
    quantize<Depth>(x, inputs, row);
  }
  KAOKEN_INLINE Vec finish(const int32_t *sums, const Inputs &x, int64_t row, const Matrix &w, int64_t panel) {
    const Ints offset = mul(broadcast_int(x.scales[row].zero), load(w.sums + panel * kLanes));
    const Vec scale = mul(broadcast(x.scales[row].scale), load(w.scales + panel * kLanes));
    return mul(to_float(sub(load(sums), offset)), scale);
  }
  KAOKEN_INLINE float weight(const Matrix &w, int64_t depth, int64_t output, int64_t k) {
    const int64_t line = output / kLanes * steps(depth) + k / 4;
    return static_cast<float>(w.weights[(line * kLanes + output % kLanes) * 4 + k % 4]) * w.scales[output];
  }
};

// 8-bit inputs by int4 weights in groups: scale * (sum over groups - zero * sum of weights).
struct Int4 {
  static constexpr bool kExploded = false;
  static constexpr bool kFloatInputs = false;
  using Input = uint8_t;
  using Element = float;
  using Inputs = InputRows<uint8_t>;
  static constexpr int kTilePanels = kGroupPanels;
  static constexpr int kStreamPanels = 1;
  struct Matrix {
    const uint8_t *weights;  // [N / 16][K / 32][4][16][4] pairs
    const uint16_t *scales;  // [N / 16][K / 32][16] float16
    const float *sums;       // [N]: of each output's scaled weights
  };

  static constexpr int64_t groups(int64_t depth) { return (depth + kGroup - 1) / kGroup; }
  static constexpr int64_t row_stride(int64_t depth) { return round_up(depth, 64); }

  template <int64_t Depth>
  KAOKEN_INLINE void convert(const float *x, uint8_t *inputs, RowScale *row) {
    quantize<Depth>(x, inputs, row);
  }

  static constexpr int64_t panel_bytes(int64_t depth) { return groups(depth) * kGroupBytes; }

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
    constexpr int64_t most = kDepthBlock * Int8Step::kStep / kGroup;  // groups that are unpacked at a time
    constexpr int64_t w_stride = most * kGroup * kLanes;
    alignas(kAlignment) int8_t unpacked[Panels * w_stride];
    for (int64_t group = 0; group < groups(depth); group += most) {
      const int64_t left = groups(depth) - group;
      const int64_t count = left < most ? left : most;
      for (int64_t p = 0; p < Panels; ++p) {
        unpack_groups(w.weights + ((panel + p) * groups(depth) + group) * kGroupBytes, count, unpacked + p * w_stride);
      }
      for (int64_t row = 0; row < rows;) {
        row += largest_group_tile<kGroupRows, Panels>(
            rows - row, x + row * row_stride(depth) + group * kGroup, row_stride(depth), unpacked, w_stride,
            w.scales + (panel * groups(depth) + group) * kLanes, groups(depth) * kLanes, count,
            out + row * Panels * kLanes, Panels * kLanes, group > 0);
      }
    }
  }

  KAOKEN_INLINE Vec finish(const float *sums, const Inputs &x, int64_t row, const Matrix &w, int64_t panel) {
    const Vec zero = broadcast(-static_cast<float>(x.scales[row].zero));
    return mul(fma(zero, load(w.sums + panel * kLanes), load(sums)), broadcast(x.scales[row].scale));
  }
  KAOKEN_INLINE float weight(const Matrix &w, int64_t depth, int64_t output, int64_t k) {
    const int64_t group = output / kLanes * groups(depth) + k / kGroup;
    const int64_t line = k % 16 / 4;
    const int both = w.weights[group * kGroupBytes + (line * kLanes + output % kLanes) * 4 + k % 4];
    const int nibble = k % kGroup < 16 ? both & 15 : both >> 4;
    float scale[kLanes];
    store(scale, load_half(w.scales + group * kLanes));
    return static_cast<float>((nibble ^ 8) - 8) * scale[output % kLanes];
  }

 private:
  template <int Rows>
  KAOKEN_INLINE void few(const uint8_t *x, int64_t rows, const Matrix &w, int64_t panel, int64_t depth, float *out,
                         int64_t out_stride, const char *next) {
    int4_panel<Rows>(x, row_stride(depth), rows, w.weights + panel * groups(depth) * kGroupBytes,
                     w.scales + panel * groups(depth) * kLanes, groups(depth), out, out_stride,
                     {next ? next : reinterpret_cast<const char *>(w.weights), 0});
  }
};

}  // namespace kaoken::KAOKEN_ISA
