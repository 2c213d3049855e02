// Causal attention over the KV cache in one pass with an online softmax (Milakov and Gimelshein, arXiv:1805.02867;
// tiled as in FlashAttention, Dao et al., arXiv:2205.14135).
//
// The cache of one block, for each sequence and head, with C positions of capacity and D padded head dimensions:
//   keys    [C / 16][D][16]   16 positions a panel: scores are a matrix product with the query
//   values  [D / 16][C][16]   16 dimensions a panel: the sum of values is a matrix product with the probabilities
//
// Tiles of kAttentionTile positions start at absolute multiples of it and are merged in order, and each row stops at
// its own position. So a row's arithmetic is the same in prefill and in decode, in any batch, on any thread.
#pragma once

#include "linear.h"

namespace kaoken::KAOKEN_ISA {

template <int64_t Heads, int64_t HeadDim>
struct Cache {
  static constexpr int64_t kDim = round_up(HeadDim, kLanes);
  float *block;  // of the sequence-major cache of this block
  int64_t positions;

  KAOKEN_MEMBER float *keys(int64_t sequence, int64_t head) const {
    return block + (sequence * Heads + head) * 2 * positions * kDim;
  }
  KAOKEN_MEMBER float *values(int64_t sequence, int64_t head) const { return keys(sequence, head) + positions * kDim; }
};

// The block's cache: blocks lie behind one another, `width_before` being the sum of their cache widths.
template <int64_t Heads, int64_t HeadDim>
KAOKEN_INLINE Cache<Heads, HeadDim> block_cache(const Pass &pass, int64_t width_before) {
  return {pass.cache + width_before * pass.positions * pass.batch, pass.positions};
}

// The epilogue of the fused query, key and value product: panels of the query, then of the keys, then of the values,
// each head padded to whole panels. Keys have no bias (softmax ignores it) and the values' is in the projection's.
template <int64_t Heads, int64_t HeadDim>
struct StoreQueryKeyValue {
  using Cached = Cache<Heads, HeadDim>;
  static constexpr int64_t kHeadPanels = Cached::kDim / kLanes;
  static constexpr int64_t kWidth = Heads * Cached::kDim;
  const Pass &pass;
  Cached cache;
  const float *query_bias;

  KAOKEN_MEMBER void operator()(int64_t row, int64_t panel, Vec sum) const {
    const int64_t part = panel / (Heads * kHeadPanels);
    const int64_t head = panel / kHeadPanels % Heads;
    const int64_t dim = panel % kHeadPanels * kLanes;
    const int64_t sequence = row / pass.count;
    const int64_t position = pass.past + row % pass.count;
    if (part == 0) {
      const int64_t column = panel * kLanes;
      store(pass.query + row * kWidth + column, add(sum, load(query_bias + column)));
    } else if (part == 1) {
      float *keys = cache.keys(sequence, head) + (position / kLanes * Cached::kDim + dim) * kLanes + position % kLanes;
      float lanes[kLanes];
      store(lanes, sum);
      for (int64_t lane = 0; lane < kLanes; ++lane) keys[lane * kLanes] = lanes[lane];
    } else {
      store(cache.values(sequence, head) + dim * cache.positions + position * kLanes, sum);
    }
  }
};

// Running maximum and sum of a row's softmax.
struct Softmax {
  float largest, total;
};

// scores[0 .. kAttentionTile) become probabilities relative to the running maximum, zero from `valid` on. Returns the
// factor by which what was summed before shrinks.
KAOKEN_INLINE float softmax_tile(float *scores, int64_t valid, Softmax &state) {
  const Vec masked = broadcast(-__builtin_inff());
  Vec largest = broadcast(state.largest);
  for (int64_t i = 0; i < kAttentionTile; i += kLanes) {
    const Vec score = i < valid ? select_first(valid - i, load(scores + i), masked) : masked;
    store(scores + i, score);
    largest = max(largest, score);
  }
  const float previous = state.largest;
  state.largest = reduce_max(largest);

  Vec total = broadcast(0.0f);
  for (int64_t i = 0; i < kAttentionTile; i += kLanes) {
    const Vec probability = exp(sub(load(scores + i), broadcast(state.largest)));
    store(scores + i, probability);
    total = add(total, probability);
  }
  float lanes[kLanes];
  store(lanes, exp(broadcast(previous - state.largest)));
  state.total = state.total * lanes[0] + reduce_add(total);
  return lanes[0];
}

// out[r][0 .. 16 panels) = sum over k of x[r][k] * w[..][k], as `tile` does, for any number of panels.
template <int Rows, int Panels>
KAOKEN_INLINE void panels_product(const float *x, int64_t x_stride, const float *w, int64_t w_stride, int64_t depth,
                                  float *out, int64_t out_stride, int64_t panels) {
  int64_t panel = 0;
  for (; panel + Panels <= panels; panel += Panels) {
    tile<Rows, Panels>(x, x_stride, w + panel * w_stride, w_stride, depth, out + panel * kLanes, out_stride);
  }
  for (; panel < panels; ++panel) {
    tile<Rows, 1>(x, x_stride, w + panel * w_stride, w_stride, depth, out + panel * kLanes, out_stride);
  }
}

// Merges the tile at `begin` into Rows rows that all see its first `valid` positions and no more.
template <int Rows, int64_t Dim>
KAOKEN_INLINE void attend_tile(const float *query, float *out, int64_t stride, const float *keys, const float *values,
                               int64_t positions, int64_t begin, int64_t valid, Softmax *states) {
  constexpr int panels = Rows == 1 ? kStreamPanels : kTilePanels;
  alignas(kAlignment) float scores[Rows][kAttentionTile];
  alignas(kAlignment) float sums[Rows][Dim];
  panels_product<Rows, panels>(query, stride, keys + begin * Dim, Dim * kLanes, Dim, scores[0], kAttentionTile,
                               (valid + kLanes - 1) / kLanes);
  float shrink[Rows];
  for (int row = 0; row < Rows; ++row) shrink[row] = softmax_tile(scores[row], valid, states[row]);
  panels_product<Rows, panels>(scores[0], kAttentionTile, values + begin * kLanes, positions * kLanes, valid, sums[0],
                               Dim, Dim / kLanes);
  for (int row = 0; row < Rows; ++row) {
    for (int64_t d = 0; d < Dim; d += kLanes) {
      float *merged = out + row * stride + d;
      const Vec sum = load(sums[row] + d);
      store(merged, begin == 0 ? sum : fma(load(merged), broadcast(shrink[row]), sum));
    }
  }
}

// Attends Rows consecutive rows of one sequence and head; the first is at `position`.
template <int Rows, int64_t Dim>
KAOKEN_INLINE void attend_rows(const float *query, float *out, int64_t stride, const float *keys, const float *values,
                               int64_t positions, int64_t position) {
  Softmax states[Rows];
  for (int row = 0; row < Rows; ++row) states[row] = {-__builtin_inff(), 0.0f};
  // Tiles that every row sees whole, all rows at once; then each row alone, up to its own position.
  const int64_t common = (position + 1) / kAttentionTile * kAttentionTile;
  for (int64_t begin = 0; begin < common; begin += kAttentionTile) {
    attend_tile<Rows, Dim>(query, out, stride, keys, values, positions, begin, kAttentionTile, states);
  }
  for (int row = 0; row < Rows; ++row) {
    float *row_out = out + row * stride;
    const int64_t end = position + row + 1;
    for (int64_t begin = common; begin < end; begin += kAttentionTile) {
      const int64_t valid = end - begin < kAttentionTile ? end - begin : kAttentionTile;
      attend_tile<1, Dim>(query + row * stride, row_out, stride, keys, values, positions, begin, valid, &states[row]);
    }
    const Vec scale = broadcast(1.0f / states[row].total);
    for (int64_t d = 0; d < Dim; d += kLanes) store(row_out + d, mul(load(row_out + d), scale));
  }
}

// pass.query and the cache -> pass.attended. Workers take turns at groups of rows, so that the longer ones at the end
// of a prompt are spread over all.
template <int64_t Heads, int64_t HeadDim>
void attention(const Pass &pass, const Worker &worker, const Cache<Heads, HeadDim> &cache) {
  constexpr int kRows = kTileRows < 4 ? kTileRows : 4;
  constexpr int64_t dim = Cache<Heads, HeadDim>::kDim;
  constexpr int64_t stride = Heads * dim;
  const int64_t groups = (pass.count + kRows - 1) / kRows;
  const int64_t items = pass.batch * Heads * groups;
  for (int64_t item = worker.index; item < items; item += worker.count) {
    const int64_t head = item % Heads;
    const int64_t group = item / Heads % groups;
    const int64_t sequence = item / Heads / groups;
    const float *keys = cache.keys(sequence, head);
    const float *values = cache.values(sequence, head);
    const int64_t first = group * kRows;
    const int64_t last = first + kRows < pass.count ? first + kRows : pass.count;
    const int64_t offset = (sequence * pass.count + first) * stride + head * dim;
    const float *query = pass.query + offset;
    float *out = pass.attended + offset;
    if (last - first == kRows) {
      attend_rows<kRows, dim>(query, out, stride, keys, values, cache.positions, pass.past + first);
    } else {
      for (int64_t row = first; row < last; ++row, query += stride, out += stride) {
        attend_rows<1, dim>(query, out, stride, keys, values, cache.positions, pass.past + row);
      }
    }
  }
}

}  // namespace kaoken::KAOKEN_ISA
