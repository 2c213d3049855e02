// What stands behind an encoder's last norm: pooling, layers, and outputs that are no logits.
//
// The rows lie in pass.hidden. Each step writes pass.inner and exchanges the two in this worker's own Pass, so both are
// as wide as any step needs; a row's width is that of the step, padded.
#pragma once

#include "sublayers/product.h"

namespace kaoken::KAOKEN_ISA {

KAOKEN_INLINE void exchange_rows(Pass &pass) {
  float *rows = pass.hidden;
  pass.hidden = pass.inner;
  pass.inner = rows;
}

// to[i] = scale * the sum of weight(row) * rows[row][i], in ascending order.
template <int64_t Stride, class Weight>
KAOKEN_INLINE void add_up(const float *rows, int64_t count, float *to, float scale, const Weight &weight) {
  for (int64_t i = 0; i < Stride; i += kLanes) {
    Vec total = broadcast(0.0f);
    for (int64_t row = 0; row < count; ++row) {
      total = fma(load(rows + row * Stride + i), broadcast(weight(row)), total);
    }
    store(to + i, mul(total, broadcast(scale)));
  }
}

// One struct for each of codegen's POOLINGS: one row of `count` rows of a text, which are at the positions from `first`
// on.
struct first_pooling {
  template <int64_t Stride>
  KAOKEN_INLINE void apply(const float *rows, int64_t, int64_t, float *to) {
    __builtin_memcpy(to, rows, Stride * sizeof *to);
  }
};
struct last_pooling {
  template <int64_t Stride>
  KAOKEN_INLINE void apply(const float *rows, int64_t count, int64_t, float *to) {
    __builtin_memcpy(to, rows + (count - 1) * Stride, Stride * sizeof *to);
  }
};
struct max_pooling {
  template <int64_t Stride>
  KAOKEN_INLINE void apply(const float *rows, int64_t count, int64_t, float *to) {
    for (int64_t i = 0; i < Stride; i += kLanes) {
      Vec most = load(rows + i);
      for (int64_t row = 1; row < count; ++row) most = max(most, load(rows + row * Stride + i));
      store(to + i, most);
    }
  }
};
struct mean_pooling {
  template <int64_t Stride>
  KAOKEN_INLINE void apply(const float *rows, int64_t count, int64_t, float *to) {
    add_up<Stride>(rows, count, to, 1.0f / count, [](int64_t) { return 1.0f; });
  }
};
struct mean_sqrt_len_pooling {
  template <int64_t Stride>
  KAOKEN_INLINE void apply(const float *rows, int64_t count, int64_t, float *to) {
    add_up<Stride>(rows, count, to, 1.0f / __builtin_sqrtf(count), [](int64_t) { return 1.0f; });
  }
};
struct weighted_mean_pooling {
  template <int64_t Stride>
  KAOKEN_INLINE void apply(const float *rows, int64_t count, int64_t first, float *to) {
    const float scale = 2.0f / (static_cast<float>(count) * (2 * first + count + 1));
    add_up<Stride>(rows, count, to, scale, [first](int64_t row) { return first + row + 1.0f; });
  }
};

// Each text's rows become one: what each Pooling makes of them, one behind another. Workers divide the texts.
template <int64_t Width, class... Pooling>
KAOKEN_INLINE void pool(Pass &pass, const Worker &worker) {
  constexpr int64_t stride = round_up(Width, kLanes);
  constexpr int64_t width = sizeof...(Pooling) * Width, to_stride = round_up(width, kLanes);
  const Share texts = share(pass.batch.count, worker);
  for (int64_t text = texts.begin; text < texts.end; ++text) {
    const Sequence &sequence = pass.batch.sequences[text];
    const float *rows = pass.hidden + sequence.row * stride;
    float *to = pass.inner + text * to_stride;
    alignas(kAlignment) float pooled[stride];
    (..., (Pooling::template apply<stride>(rows, sequence.count, sequence.past, pooled),
           __builtin_memcpy(to, pooled, Width * sizeof *to), to += Width));
    for (int64_t i = width; i < to_stride; ++i) *to++ = 0;
  }
  barrier(worker);
  exchange_rows(pass);
  pass.batch.rows = pass.batch.count;
}

// Each row becomes norm(activation(row W^T + bias)).
template <class Kind, int64_t Depth, int64_t Width, class Activation, class Norm>
KAOKEN_INLINE void head_layer(Pass &pass, const Worker &worker, const Product<Kind> &product, float epsilon,
                              const NormVectors &norm) {
  constexpr int64_t stride = round_up(Width, kLanes);
  OwnRow<Kind, Depth> own;
  linear<Kind, Depth, stride / kLanes>(worker, converted(pass, worker, own, pass.hidden), pass.batch.rows,
                                       product.matrix, Store<Activation, stride>{pass.inner, product.bias},
                                       product.next);
  barrier(worker);
  exchange_rows(pass);
  if constexpr (!Norm::kNone) {
    const Share mine = share(pass.batch.rows, worker);
    for (int64_t row = mine.begin; row < mine.end; ++row) {
      float *x = pass.hidden + row * stride;
      Norm::template apply<Width>(x, x, epsilon, norm.weight, norm.bias);
    }
    barrier(worker);
  }
}

// The rows into pass.output, [rows][Width], with Normalize divided by their length, or by 1e-12 where that is more.
template <int64_t Width, bool Normalize>
KAOKEN_INLINE void store_rows(const Pass &pass, const Worker &worker) {
  constexpr int64_t stride = round_up(Width, kLanes);
  const Share mine = share(pass.batch.rows, worker);
  for (int64_t row = mine.begin; row < mine.end; ++row) {
    const float *x = pass.hidden + row * stride;
    float *to = pass.output + row * Width;
    if constexpr (Normalize) {
      Vec squares = broadcast(0.0f);
      for (int64_t i = 0; i < stride; i += kLanes) squares = fma(load(x + i), load(x + i), squares);
      const float length = __builtin_sqrtf(reduce_add(squares));
      for (int64_t i = 0; i < Width; ++i) to[i] = x[i] / (length > 1e-12f ? length : 1e-12f);
    } else {
      __builtin_memcpy(to, x, Width * sizeof *to);
    }
  }
}

}  // namespace kaoken::KAOKEN_ISA
