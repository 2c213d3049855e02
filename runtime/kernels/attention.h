// Causal attention over the KV cache in one pass with an online softmax (Milakov and Gimelshein, arXiv:1805.02867;
// tiled as in FlashAttention, Dao et al., arXiv:2205.14135).
//
// The cache of one block, for each sequence and head, with C positions of capacity and D padded head dimensions:
//   keys          [C / 16][D][16]   16 positions a panel: scores are a matrix product with the query
//   values        [D / 16][C][16]   16 dimensions a panel: the sum of values is a matrix product with the probabilities
//   key scales    [C] float32       where keys and values are int8, each position of each head by itself
//   value scales  [C] float32
//
// Keys and values are rounded to the cache's type before anything attends to them. Tiles of kAttentionTile positions
// start at absolute multiples of it and are merged in order, and each row stops at its own position. So a row's
// arithmetic is the same in prefill and in decode, in any batch, on any thread.
#pragma once

#include "linear.h"

namespace kaoken::KAOKEN_ISA {

// The types of cache.

struct CacheFloat32 {
  using Element = float;
  using Step = Float32Step;
  static constexpr bool kScaled = false;
};

struct CacheBFloat16 {
  using Element = uint16_t;
  using Step = FloatByBFloat16Step;
  static constexpr bool kScaled = false;
};

struct CacheInt8 {
  using Element = int8_t;
  using Step = FloatByInt8Step;
  static constexpr bool kScaled = true;
};

KAOKEN_INLINE void store_element(float *p, Vec v) { store(p, v); }
KAOKEN_INLINE void store_element(uint16_t *p, Vec v) { store_bfloat16(p, v); }
KAOKEN_INLINE void store_element(int8_t *p, Vec v) { store_bytes(reinterpret_cast<uint8_t *>(p), v); }

// Keys and values of one sequence and head.
template <class Type, int64_t Dim>
struct HeadCache {
  using Element = typename Type::Element;
  Element *keys;
  int64_t positions;

  KAOKEN_MEMBER Element *values() const { return keys + positions * Dim; }
  KAOKEN_MEMBER float *key_scales() const { return reinterpret_cast<float *>(keys + 2 * positions * Dim); }
  KAOKEN_MEMBER float *value_scales() const { return key_scales() + positions; }
};

// A block's cache; `before` is the bytes that a position of the blocks before takes.
template <class Type, int64_t Heads, int64_t HeadDim>
struct BlockCache {
  static constexpr int64_t kDim = round_up(HeadDim, kLanes);
  static constexpr int64_t kHeadBytes =
      2 * kDim * static_cast<int64_t>(sizeof(typename Type::Element)) + (Type::kScaled ? 8 : 0);
  uint8_t *block;
  int64_t positions;

  BlockCache(const Pass &pass, int64_t before)
      : block(static_cast<uint8_t *>(pass.cache) + before * pass.positions * pass.batch), positions(pass.positions) {}
  KAOKEN_MEMBER HeadCache<Type, kDim> head(int64_t sequence, int64_t head) const {
    uint8_t *begin = block + (sequence * Heads + head) * kHeadBytes * positions;
    return {reinterpret_cast<typename Type::Element *>(begin), positions};
  }
};

// The largest magnitude of Dim values over 127, at which they become int8.
template <int64_t Dim>
KAOKEN_INLINE float int8_scale(const float *x) {
  const Vec zero = broadcast(0.0f);
  Vec largest = zero;
  for (int64_t i = 0; i < Dim; i += kLanes) largest = max(max(load(x + i), sub(zero, load(x + i))), largest);
  return reduce_max(largest) / 127.0f;
}

// Writes one position's key and value, [Dim] floats each, into the cache.
template <class Type, int64_t Dim>
KAOKEN_INLINE void store_position(const HeadCache<Type, Dim> &cache, int64_t position, const float *key,
                                  const float *value) {
  Vec key_factor = broadcast(1.0f), value_factor = key_factor;
  if constexpr (Type::kScaled) {
    const float key_scale = int8_scale<Dim>(key), value_scale = int8_scale<Dim>(value);
    cache.key_scales()[position] = key_scale;
    cache.value_scales()[position] = value_scale;
    key_factor = broadcast(key_scale > 0 ? 1.0f / key_scale : 0.0f);
    value_factor = broadcast(value_scale > 0 ? 1.0f / value_scale : 0.0f);
  }
  const auto rounded = [](Vec x, Vec factor) {
    if constexpr (!Type::kScaled) return x;
    const Vec round = broadcast(12582912.0f);  // 1.5 * 2^23: adding it rounds to an integer, ties to even
    return sub(fma(x, factor, round), round);
  };
  typename Type::Element *keys = cache.keys + position / kLanes * kLanes * Dim + position % kLanes;
  typename Type::Element *values = cache.values() + position * kLanes;
  for (int64_t d = 0; d < Dim; d += kLanes) {
    typename Type::Element lanes[kLanes];
    store_element(lanes, rounded(load(key + d), key_factor));
    for (int64_t lane = 0; lane < kLanes; ++lane) keys[(d + lane) * kLanes] = lanes[lane];
    store_element(values + d * cache.positions, rounded(load(value + d), value_factor));
  }
}

// The epilogue of the fused query, key and value product: panels of the query, then of the keys, then of the values,
// each head padded to whole panels. Keys have no bias (softmax ignores it) and the values' is in the projection's.
template <int64_t Width>
struct StoreQueryKeyValue {
  float *out;  // [rows][3 * Width]
  const float *query_bias;
  KAOKEN_MEMBER void operator()(int64_t row, int64_t panel, Vec sum) const {
    const int64_t column = panel * kLanes;
    store(out + row * 3 * Width + column, column < Width ? add(sum, load(query_bias + column)) : sum);
  }
};

// Running maximum and sum of a row's softmax.
struct Softmax {
  float largest, total;
};

// The scores of positions 0 .. valid become probabilities relative to the running maximum, times their values' scales
// where the cache has any. Returns the factor by which what was summed before shrinks.
template <bool Scaled>
KAOKEN_INLINE float softmax_tile(float *scores, int64_t valid, Softmax &state, const float *key_scales,
                                 const float *value_scales) {
  const Vec masked = broadcast(-__builtin_inff());
  Vec largest = broadcast(state.largest);
  for (int64_t i = 0; i < valid; i += kLanes) {
    Vec score = load(scores + i);
    if constexpr (Scaled) score = mul(score, load(key_scales + i));
    score = select_first(valid - i, score, masked);
    store(scores + i, score);
    largest = max(largest, score);
  }
  const float previous = state.largest;
  state.largest = reduce_max(largest);

  Vec total = broadcast(0.0f);
  for (int64_t i = 0; i < valid; i += kLanes) {
    const Vec probability = exp(sub(load(scores + i), broadcast(state.largest)));
    total = add(total, probability);
    store(scores + i, Scaled ? mul(probability, load(value_scales + i)) : probability);
  }
  float lanes[kLanes];
  store(lanes, exp(broadcast(previous - state.largest)));
  state.total = state.total * lanes[0] + reduce_add(total);
  return lanes[0];
}

// out[r][0 .. 16 panels) as `tile` does, for any number of panels.
template <class Step, int Rows>
KAOKEN_INLINE void panels_product(const float *x, int64_t x_stride, const typename Step::Weight *w, int64_t w_stride,
                                  int64_t depth, float *out, int64_t out_stride, int64_t panels, bool resume = false) {
  constexpr int most = Rows == 1 ? kStreamPanels : kTilePanels;
  int64_t panel = 0;
  for (; panel + most <= panels; panel += most) {
    tile<Step, Rows, most>(x, x_stride, w + panel * w_stride, w_stride, depth, out + panel * kLanes, out_stride,
                           resume);
  }
  for (; panel < panels; ++panel) {
    tile<Step, Rows, 1>(x, x_stride, w + panel * w_stride, w_stride, depth, out + panel * kLanes, out_stride, resume);
  }
}

// Merges the tile at `begin` into Rows consecutive rows, of which the first sees `valid` positions of it and each
// further one sees one more, up to the whole tile.
template <class Type, int Rows, int64_t Dim>
KAOKEN_INLINE void attend_tile(const float *query, int64_t query_stride, float *out, int64_t out_stride,
                               const HeadCache<Type, Dim> &cache, int64_t begin, int64_t valid, Softmax *states) {
  using Step = typename Type::Step;
  alignas(kAlignment) float scores[Rows][kAttentionTile];
  alignas(kAlignment) float sums[Rows][Dim];
  const auto sees = [&](int64_t row) { return valid + row < kAttentionTile ? valid + row : kAttentionTile; };
  panels_product<Step, Rows>(query, query_stride, cache.keys + begin * Dim, Dim * kLanes, Dim, scores[0],
                             kAttentionTile, (sees(Rows - 1) + kLanes - 1) / kLanes);
  float shrink[Rows];
  for (int row = 0; row < Rows; ++row) {
    shrink[row] = softmax_tile<Type::kScaled>(scores[row], sees(row), states[row], cache.key_scales() + begin,
                                              cache.value_scales() + begin);
  }
  // What all rows see, together; then what each row sees beyond, so that no sum takes in a masked value.
  const typename Type::Element *values = cache.values() + begin * kLanes;
  const int64_t stride = cache.positions * kLanes;
  panels_product<Step, Rows>(scores[0], kAttentionTile, values, stride, valid, sums[0], Dim, Dim / kLanes);
  for (int row = 1; row < Rows && sees(row) > valid; ++row) {
    panels_product<Step, 1>(scores[row] + valid, 0, values + valid * kLanes, stride, sees(row) - valid, sums[row], 0,
                            Dim / kLanes, true);
  }
  for (int row = 0; row < Rows; ++row) {
    for (int64_t d = 0; d < Dim; d += kLanes) {
      float *merged = out + row * out_stride + d;
      const Vec sum = load(sums[row] + d);
      store(merged, begin == 0 ? sum : fma(load(merged), broadcast(shrink[row]), sum));
    }
  }
}

// Attends Rows consecutive rows of one sequence and head, the first at `position`, none of them in another tile.
template <class Type, int Rows, int64_t Dim>
KAOKEN_INLINE void attend_rows(const float *query, int64_t query_stride, float *out, int64_t out_stride,
                               const HeadCache<Type, Dim> &cache, int64_t position) {
  Softmax states[Rows];
  for (int row = 0; row < Rows; ++row) states[row] = {-__builtin_inff(), 0.0f};
  for (int64_t begin = 0; begin <= position; begin += kAttentionTile) {
    const int64_t left = position + 1 - begin;
    attend_tile<Type, Rows, Dim>(query, query_stride, out, out_stride, cache, begin,
                                 left < kAttentionTile ? left : kAttentionTile, states);
  }
  for (int row = 0; row < Rows; ++row) {
    const Vec scale = broadcast(1.0f / states[row].total);
    for (int64_t d = 0; d < Dim; d += kLanes) {
      store(out + row * out_stride + d, mul(load(out + row * out_stride + d), scale));
    }
  }
}

// Rows that are attended side by side; they start at multiples of it and so lie in one tile.
constexpr int kAttentionRows = kTileRows >= 8 ? 8 : kTileRows >= 4 ? 4 : 2;
static_assert(kAttentionTile % kAttentionRows == 0);

// pass.qkv -> the cache and pass.attended. Workers take turns at groups of rows, so that the longer ones at the end of
// a prompt are spread over all; a lone new position is stored by the worker that attends to it.
template <class Type, int64_t Heads, int64_t HeadDim>
void attention(const Pass &pass, const Worker &worker, const BlockCache<Type, Heads, HeadDim> &cache) {
  constexpr int64_t dim = cache.kDim;
  constexpr int64_t width = Heads * dim;
  const int64_t heads = pass.batch * Heads;
  for (int64_t item = worker.index; item < heads; item += worker.count) {
    const int64_t sequence = item / Heads, head = item % Heads;
    const float *keys = pass.qkv + sequence * pass.count * 3 * width + width + head * dim;
    for (int64_t i = 0; i < pass.count; ++i, keys += 3 * width) {
      store_position<Type, dim>(cache.head(sequence, head), pass.past + i, keys, keys + width);
    }
  }
  if (pass.count > 1) barrier(worker);

  const int64_t first_group = pass.past / kAttentionRows;
  const int64_t end = pass.past + pass.count;
  const int64_t groups = (end - 1) / kAttentionRows - first_group + 1;
  for (int64_t item = worker.index; item < heads * groups; item += worker.count) {
    const int64_t sequence = item / groups / Heads, head = item / groups % Heads;
    const int64_t group = (first_group + item % groups) * kAttentionRows;
    const HeadCache<Type, dim> head_cache = cache.head(sequence, head);
    const int64_t row = sequence * pass.count - pass.past;  // of position 0
    const float *query = pass.qkv + row * 3 * width + head * dim;
    float *out = pass.attended + row * width + head * dim;
    if (group >= pass.past && group + kAttentionRows <= end) {
      attend_rows<Type, kAttentionRows, dim>(query + group * 3 * width, 3 * width, out + group * width, width,
                                             head_cache, group);
      continue;
    }
    for (int64_t position = group < pass.past ? pass.past : group; position < end && position < group + kAttentionRows;
         ++position) {
      attend_rows<Type, 1, dim>(query + position * 3 * width, 0, out + position * width, 0, head_cache, position);
    }
  }
}

}  // namespace kaoken::KAOKEN_ISA
