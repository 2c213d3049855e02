// Disentangled attention (DeBERTa, arXiv:2006.03654): scores with keys and queries that stand for distances.
//
// The score of query i and key j is q_i . k_j + q_i . K[b] + Q[b] . k_j, where b is the bucket of j - i. Rows and keys
// that lie together have few distances, and buckets never decrease with distance, so they meet a run of buckets: one
// product for the run, from which each score takes its own value. A worked example: rows 8 to 15 and keys 0 to 63 have
// the distances -15 to 55, so each row meets 71 of the K; rows 0 to 63 and keys 0 to 15 have the distances -63 to 15,
// so each key meets 79 of the Q.
#pragma once

#include "attention.h"

namespace kaoken::KAOKEN_ISA {

// The tables of a block: Keys and Queries say which there are. Count buckets, in whole panels.
template <class Type_, int64_t Count, bool Keys, bool Queries>
struct RelativeBias {
  static constexpr bool kNone = false, kRelative = true, kBiasedKeys = Queries;
  static constexpr bool kKeys = Keys, kQueries = Queries;
  static constexpr int64_t kCount = Count;
  using Type = Type_;

  // K of all heads, panels of buckets as the cache has panels of keys; with scales and sums where those have some.
  struct Table {
    const typename Type::Element *weights;  // [heads][Count / 16][Dim / S][16][S]
    const float *scales;                    // [heads][Count]
    const int32_t *sums;
    KAOKEN_MEMBER const float *key_scales() const { return scales; }
    KAOKEN_MEMBER const int32_t *key_sums() const { return sums; }
    KAOKEN_MEMBER Table from(int64_t bucket, int64_t dim) const {
      return {weights + bucket * dim, scales ? scales + bucket : scales, sums ? sums + bucket : sums};
    }
  };
  Table keys;
  const float *queries;    // [heads][Count][Dim]
  const int32_t *buckets;  // of the distance from query to key, from -limit on; behind the largest, room for a page
  int64_t limit;

  // The buckets of what lies behind a position at `distance` from it.
  KAOKEN_MEMBER const int32_t *from(int64_t distance) const { return buckets + limit + distance; }
  KAOKEN_INLINE const float *behind(const float *bias, int rows) { return bias + rows * kPage; }
};

// Up to a page of consecutive rows, which meet each page of keys together.
template <class Scheme>
struct RowBlock {
  static constexpr int64_t kDim = Scheme::Layout::kDim;
  static constexpr int64_t kRun = 2 * kPage - 1 + kAttentionRows - 1;
  using Step = typename Scheme::Cache::Step;
  alignas(kAlignment) typename Step::Input queries[kPage * kDim];  // zeros behind the last row
  float scales[kPage];
  alignas(kAlignment) typename Step::Input run[kRun * kDim];  // queries of the distances that they have from a page
  float run_scales[kRun];
  alignas(kAlignment) float bias[kPage * kPage];  // what is added to the scores of a page, [rows][kPage]
  int64_t position;                               // of the first
  int64_t rows;
};

// bias[row][key] = Q[bucket] . key of the rows of a block and the first panels of a page's keys.
template <class Scheme, class Page>
KAOKEN_INLINE void add_queries(RowBlock<Scheme> &block, const typename Scheme::Bias &relative, const float *table,
                               const Page &page, int64_t begin, int64_t panels) {
  using Type = typename Scheme::Cache;
  using Step = typename Type::Step;
  constexpr int64_t dim = Scheme::Layout::kDim;
  const int64_t distance = begin - block.position;  // of the first row and key
  const int32_t *nearest = relative.from(distance - block.rows + 1);
  const int64_t first = nearest[0], count = relative.from(distance)[panels * kLanes - 1] - first + 1;
  for (int64_t i = 0; i < count + kAttentionRows - 1; ++i) {  // a run that ends early is filled up
    const int64_t bucket = first + (i < count ? i : count - 1);
    block.run_scales[i] = Type::template query<dim>(table + bucket * dim, block.run + i * dim);
  }
  for (int64_t key = 0; key < panels * kLanes; key += kLanes) {
    alignas(kAlignment) float met[round_up(kPage + kLanes - 1, kAttentionRows) * kLanes];
    const int64_t own = nearest[key] - first, end = relative.from(distance + key)[kLanes - 1] - first + 1;
    for (int64_t i = own; i < end; i += kAttentionRows) {
      alignas(kAlignment) typename Step::Element sums[kAttentionRows * kLanes];
      tile<Step, kAttentionRows, 1>(block.run + i * dim, dim, page.keys + key * dim, 0, dim / Step::kStep, sums, kLanes,
                                    false);
      for (int64_t row = 0; row < kAttentionRows; ++row) {
        store(met + (i - own + row) * kLanes, Type::score(sums + row * kLanes, block.run_scales[i + row], page, key));
      }
    }
    for (int64_t row = 0; row < block.rows; ++row) {
      const int32_t *buckets = relative.from(distance + key - row);
      float *bias = block.bias + row * kPage + key;
      for (int64_t lane = 0; lane < kLanes; ++lane) bias[lane] = met[(buckets[lane] - nearest[key]) * kLanes + lane];
    }
  }
}

// bias[row][key] += query . K[bucket] of kAttentionRows rows from `group` on.
template <class Scheme>
KAOKEN_INLINE void add_keys(RowBlock<Scheme> &block, int64_t group, const typename Scheme::Bias &relative,
                            const typename Scheme::Bias::Table &table, int64_t begin, int64_t panels) {
  using Type = typename Scheme::Cache;
  using Step = typename Type::Step;
  constexpr int64_t dim = Scheme::Layout::kDim;
  constexpr int64_t most = round_up(kPage + kAttentionRows - 1 + kLanes - 1, kLanes);  // buckets
  alignas(kAlignment) typename Step::Element products[kAttentionRows * most];
  alignas(kAlignment) float met[most];
  const int64_t distance = begin - block.position - group;
  const int64_t rows = block.rows - group < kAttentionRows ? block.rows - group : kAttentionRows;
  const int64_t first = relative.from(distance - rows + 1)[0] / kLanes * kLanes;
  const int64_t count = relative.from(distance)[panels * kLanes - 1] / kLanes - first / kLanes + 1;
  const auto keys = table.from(first, dim);
  product<Step, kAttentionRows>(block.queries + group * dim, dim, keys.weights, dim * kLanes, dim / Step::kStep,
                                products, most, count);
  for (int64_t row = 0; row < rows; ++row) {
    for (int64_t i = 0; i < count * kLanes; i += kLanes) {
      store(met + i, Type::score(products + row * most + i, block.scales[group + row], keys, i));
    }
    for (int64_t key = 0; key < panels * kLanes; key += kLanes) {
      const int32_t *buckets = relative.from(distance - row + key);
      float *bias = block.bias + (group + row) * kPage + key;
      alignas(kAlignment) float taken[kLanes];
      for (int64_t lane = 0; lane < kLanes; ++lane) taken[lane] = met[buckets[lane] - first];
      store(bias, Scheme::Bias::kQueries ? add(load(bias), load(taken)) : load(taken));
    }
  }
}

// Attends the rows of a block to all of a sequence. query: [rows][query_stride]; out: [rows][out_stride].
template <class Scheme>
void attend_block(RowBlock<Scheme> &block, const float *query, int64_t query_stride, float *out, int64_t out_stride,
                  const CacheOf<Scheme> &cache, const Sequence &sequence, int64_t head,
                  const typename Scheme::Bias &relative) {
  using Bias = typename Scheme::Bias;
  using Step = typename Scheme::Cache::Step;
  constexpr int64_t dim = Scheme::Layout::kDim;
  alignas(kAlignment) float attended[kPage * dim];
  Softmax<kAttentionRows> states[kPage / kAttentionRows];
  const int64_t padded = round_up(block.rows, kAttentionRows);
  for (int64_t row = 0; row < padded; ++row) {
    typename Step::Input *to = block.queries + row * dim;
    if (row < block.rows) {
      block.scales[row] = Scheme::Cache::template query<dim>(query + row * query_stride, to);
      continue;
    }
    __builtin_memset(to, 0, dim * sizeof *to);
    block.scales[row] = 0;
    for (int64_t key = 0; key < kPage; key += kLanes) store(block.bias + row * kPage + key, broadcast(0.0f));
  }
  for (auto &state : states) {
    store(state.largest, broadcast(-__builtin_inff()));
    for (auto &total : state.total) total = broadcast(0.0f);
  }
  const int64_t group_of_keys = head / Scheme::Layout::kShared;
  const auto keys = relative.keys.from(head * Bias::kCount, dim);
  for (int64_t begin = 0; begin < sequence.length; begin += kPage) {
    const auto page = cache.page(sequence.pages, group_of_keys, begin);
    const int64_t left = sequence.length - begin, valid = left < kPage ? left : kPage;
    const int64_t panels = (valid + kLanes - 1) / kLanes;
    if constexpr (Bias::kQueries) {
      add_queries(block, relative, relative.queries + head * Bias::kCount * dim, page, begin, panels);
    }
    for (int64_t group = 0; group < padded; group += kAttentionRows) {
      if constexpr (Bias::kKeys) add_keys(block, group, relative, keys, begin, panels);
      attend_page<Scheme, kAttentionRows>(block.queries + group * dim, block.scales + group, attended + group * dim,
                                          dim, page, block.bias + group * kPage, begin == 0, valid,
                                          states[group / kAttentionRows]);
    }
  }
  for (int64_t row = 0; row < block.rows; ++row) {
    const auto &state = states[row / kAttentionRows];
    const Vec scale = broadcast(1.0f / reduce_add(state.total[row % kAttentionRows]));
    for (int64_t d = 0; d < dim; d += kLanes) {
      store(out + row * out_stride + d, mul(load(attended + row * dim + d), scale));
    }
  }
}

// The queries of pass.qkv and the cache -> pass.attended, as attention() does. Workers that share heads take turns at
// blocks of rows.
template <class Scheme>
void relative_attention(const Pass &pass, const HeadShare &own, const CacheOf<Scheme> &cache,
                        const typename Scheme::Bias &relative) {
  static_assert(Scheme::kSees == Sees::kAll && !Scheme::kWindow && Scheme::Rotary::kNone);
  using Layout = typename Scheme::Layout;
  constexpr int64_t dim = Layout::kDim, stride = Layout::kStride, width = Layout::kKeys, shared = Layout::kShared;
  Turns turns(own.worker);
  RowBlock<Scheme> block;
  for (int64_t i = 0; i < pass.batch.count; ++i) {
    const Sequence &sequence = pass.batch.sequences[i];
    for (int64_t head = own.groups.begin * shared; head < own.groups.end * shared; ++head) {
      for (int64_t first = 0; first < sequence.count; first += kPage) {
        if (!turns.mine()) continue;
        const int64_t left = sequence.count - first, row = sequence.row + first;
        block.position = sequence.past + first;
        block.rows = left < kPage ? left : kPage;
        attend_block<Scheme>(block, pass.qkv + row * stride + head * dim, stride,
                             pass.attended + row * width + head * dim, width, cache, sequence, head, relative);
      }
    }
  }
}

}  // namespace kaoken::KAOKEN_ISA
