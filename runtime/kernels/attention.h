// Causal attention over the KV cache in one pass with an online softmax (Milakov and Gimelshein, arXiv:1805.02867;
// tiled as in FlashAttention, Dao et al., arXiv:2205.14135).
//
// Keys and values are rounded to the cache's type (cache.h) before anything attends to them. Tiles of kAttentionTile
// positions start at absolute multiples of it and are merged in order, and each row stops at its own position. So a
// row's arithmetic is the same in prefill and in decode, in any batch, on any thread.
#pragma once

#include "cache.h"
#include "linear.h"
#include "rotary.h"

namespace kaoken::KAOKEN_ISA {

// How a row of queries, keys and values lies: Heads queries, then KvHeads keys, then as many values, of Dim floats
// each, in whole panels. Heads / KvHeads consecutive queries share a key; a group is a key's.
template <int64_t Heads, int64_t KvHeads, int64_t Dim>
struct Layout {
  static_assert(Heads % KvHeads == 0 && Dim % kLanes == 0);
  static constexpr int64_t kGroups = KvHeads, kShared = Heads / KvHeads, kDim = Dim;
  static constexpr int64_t kKeys = Heads * Dim, kValues = kKeys + KvHeads * Dim, kStride = kValues + KvHeads * Dim;
};

// The epilogue of the fused query, key and value product. The first Biased columns have a bias: queries, and under
// rotary keys, too. Otherwise softmax ignores the keys', and the values' is in the projection's.
template <class Layout, int64_t Biased>
struct StoreQueryKeyValue {
  float *out;  // [rows][kStride]
  const float *bias;
  KAOKEN_MEMBER void operator()(int64_t row, int64_t panel, Vec sum) const {
    const int64_t column = panel * kLanes;
    store(out + row * Layout::kStride + column, column < Biased ? add(sum, load(bias + column)) : sum);
  }
};

// The part of that product in columns [begin, end): workers divide its panels, and with them its heads.
template <class Kind, int64_t Depth, class Epilogue>
KAOKEN_INLINE void project(int64_t begin, int64_t end, const Worker &worker, const typename Kind::Inputs &x,
                           int64_t rows, const typename Kind::Matrix &w, const Epilogue &epilogue, const char *next) {
  const Share own = share((end - begin) / kLanes, worker);
  const int64_t first = begin / kLanes;
  multiply<Kind, Depth>(x, rows, w, {first + own.begin, first + own.end}, epilogue, next);
}

template <class Layout, class Kind, int64_t Depth, class Epilogue>
KAOKEN_INLINE void project_queries(const Worker &worker, const typename Kind::Inputs &x, int64_t rows,
                                   const typename Kind::Matrix &w, const Epilogue &epilogue, const char *next) {
  project<Kind, Depth>(0, Layout::kKeys, worker, x, rows, w, epilogue, next);
}

template <class Layout, class Kind, int64_t Depth, class Epilogue>
KAOKEN_INLINE void project_keys_and_values(const Worker &worker, const typename Kind::Inputs &x, int64_t rows,
                                           const typename Kind::Matrix &w, const Epilogue &epilogue) {
  constexpr int64_t keys = Layout::kKeys / kLanes, values = Layout::kValues / kLanes;
  const char *value = panel_address<Kind, Depth>(w, values + share(values - keys, worker).begin);
  const char *query = panel_address<Kind, Depth>(w, share(keys, worker).begin);
  project<Kind, Depth>(Layout::kKeys, Layout::kValues, worker, x, rows, w, epilogue, value);
  project<Kind, Depth>(Layout::kValues, Layout::kStride, worker, x, rows, w, epilogue, query);
}

// The groups that a worker attends with: its own from their projection on, so that nobody waits, where they come out
// even; else all of them in turns with `worker`.
struct HeadPart {
  Share groups;
  Worker worker;
};
template <int64_t Groups>
KAOKEN_INLINE HeadPart head_part(const Worker &worker) {
  if (Groups % worker.count) return {{0, Groups}, worker};
  return {share(Groups, worker), {0, 1, worker.team}};
}

// Rows that are attended side by side; they start at multiples of it and so lie in one tile.
constexpr int kAttentionRows = kTileRows >= 8 ? 8 : kTileRows >= 4 ? 4 : 2;
static_assert(kAttentionTile % kAttentionRows == 0);

// Running maxima of up to 16 rows, and their running sums with 16 lanes a row.
template <int Rows>
struct Softmax {
  alignas(kAlignment) float largest[kLanes];
  Vec total[Rows];
};

// out[r][0 .. 16 panels) as `tile` does, for any number of panels and for Rows rows, kAttentionRows at a time.
template <class Step, int Rows>
KAOKEN_INLINE void product(const typename Step::Input *x, int64_t x_stride, const typename Step::Weight *w,
                           int64_t w_stride, int64_t steps, typename Step::Element *out, int64_t out_stride,
                           int64_t panels, bool resume = false) {
  constexpr int rows = Rows < kAttentionRows ? Rows : kAttentionRows;
  constexpr int most = rows <= 2 ? kStreamPanels : kTilePanels;
  for (int64_t row = 0; row < Rows; row += rows) {
    const auto *inputs = x + row * x_stride;
    auto *sums = out + row * out_stride;
    int64_t panel = 0;
    for (; panel + most <= panels; panel += most) {
      tile<Step, rows, most>(inputs, x_stride, w + panel * w_stride, w_stride, steps, sums + panel * kLanes, out_stride,
                             resume);
    }
    for (; panel < panels; ++panel) {
      tile<Step, rows, 1>(inputs, x_stride, w + panel * w_stride, w_stride, steps, sums + panel * kLanes, out_stride,
                          resume);
    }
  }
}

// What a row of probabilities [kAttentionTile] gathers from the values of positions `from` to `to`, on top of sums.
// A step that reaches past `to` takes nothing of what lies there.
template <class Step, int64_t Dim>
KAOKEN_INLINE void gather_rest(const typename Step::Input *p, const typename Step::Weight *values, int64_t stride,
                               int64_t from, int64_t to, typename Step::Element *sums) {
  const int64_t whole = (to - from) / Step::kStep;
  product<Step, 1>(p + from, 0, values + from * kLanes, stride, whole, sums, 0, Dim / kLanes, true);
  if constexpr (Step::kStep == 2) {
    const int64_t last = from + whole * 2;
    for (int64_t d = 0; d < Dim && last < to; d += kLanes) {
      const auto weights = first_of(Step::weights(values + d / kLanes * stride + last * kLanes));
      store(sums + d, Step::multiply(Step::spread(p + last), weights, load(sums + d)));
    }
  }
}

// A row's scores of a tile from their sums, `count` vectors of them, of which the first `valid` count. Returns the
// running maximum.
template <class Type, int64_t Dim>
KAOKEN_INLINE float scores_of(const typename Type::Step::Element *sums, float scale, const HeadCache<Type, Dim> &cache,
                              int64_t begin, int64_t count, int64_t valid, float largest, float *scores) {
  Vec most = broadcast(largest);
  for (int64_t i = 0; i < count * kLanes; i += kLanes) {
    const Vec score = Type::score(sums + i, scale, cache, begin + i);
    const Vec masked = select_first(valid - i, score, broadcast(-__builtin_inff()));
    most = max(most, masked);
    store(scores + i, masked);
  }
  return reduce_max(most);
}

// They become probabilities relative to the maximum, with zeros up to the tile's end. Returns their sum.
KAOKEN_INLINE Vec exponentials(float *scores, int64_t count, float largest) {
  Vec sum = broadcast(0.0f);
  for (int64_t i = 0; i < count * kLanes; i += kLanes) {
    const Vec p = exp2(sub(load(scores + i), broadcast(largest)));
    sum = add(sum, p);
    store(scores + i, p);
  }
  for (int64_t i = count * kLanes; i < kAttentionTile; i += kLanes) store(scores + i, broadcast(0.0f));
  return sum;
}

// Merges the tile at `begin` into Rows consecutive rows, of which the first sees `valid` positions of it and each
// further one sees one more, up to the whole tile. query: [Rows][Dim]; out: [Rows][out_stride].
template <class Type, int Rows, int64_t Dim>
KAOKEN_INLINE void attend_tile(const typename Type::Step::Input *query, const float *query_scales, float *out,
                               int64_t out_stride, const HeadCache<Type, Dim> &cache, int64_t begin, int64_t valid,
                               Softmax<Rows> &state) {
  using Step = typename Type::Step;
  constexpr int planes = Type::kPlanes;
  alignas(kAlignment) typename Step::Element products[Rows * kAttentionTile];
  alignas(kAlignment) float p[Rows * kAttentionTile];
  alignas(kAlignment) typename Step::Input probabilities[Rows * planes * kAttentionTile];
  alignas(kAlignment) typename Step::Element sums[Rows * planes * Dim];
  const auto sees = [&](int64_t row) { return valid + row < kAttentionTile ? valid + row : kAttentionTile; };
  const int64_t seen = (sees(Rows - 1) + kLanes - 1) / kLanes;  // panels
  product<Step, Rows>(query, Dim, cache.keys + begin * Dim, Dim * kLanes, Dim / Step::kStep, products, kAttentionTile,
                      seen);

  // In stages, since each is a chain of its own for every row and one row has to wait for itself.
  const Vec before = load(state.largest);
  for (int row = 0; row < Rows; ++row) {
    state.largest[row] = scores_of<Type>(products + row * kAttentionTile, query_scales[row], cache, begin, seen,
                                         sees(row), state.largest[row], p + row * kAttentionTile);
  }
  alignas(kAlignment) float shrink[kLanes];
  store(shrink, exp2(sub(before, load(state.largest))));
  for (int row = 0; row < Rows; ++row) {
    const Vec sum = exponentials(p + row * kAttentionTile, seen, state.largest[row]);
    state.total[row] = fma(state.total[row], broadcast(shrink[row]), sum);
  }
  float scales[Rows];
  for (int row = 0; row < Rows; ++row) {
    scales[row] =
        Type::probabilities(p + row * kAttentionTile, cache, begin, probabilities + row * planes * kAttentionTile);
  }

  // What all rows see, together; then what each row sees beyond, so that no sum takes in a masked value.
  const typename Type::Element *values = cache.values() + begin * kLanes;
  const int64_t stride = cache.positions * kLanes;
  const int64_t common = Type::kExact ? round_up(sees(Rows - 1), Step::kStep) : valid / Step::kStep * Step::kStep;
  product<Step, Rows * planes>(probabilities, kAttentionTile, values, stride, common / Step::kStep, sums, Dim,
                               Dim / kLanes);
  if constexpr (!Type::kExact) {
    for (int row = 0; row < Rows; ++row) {
      if (sees(row) == common) continue;
      gather_rest<Step, Dim>(probabilities + row * kAttentionTile, values, stride, common, sees(row), sums + row * Dim);
    }
  }
  for (int row = 0; row < Rows; ++row) {
    for (int64_t d = 0; d < Dim; d += kLanes) {
      float *merged = out + row * out_stride + d;
      const Vec sum = Type::template value<Dim>(sums + row * planes * Dim + d, scales[row]);
      store(merged, begin == 0 ? sum : fma(load(merged), broadcast(shrink[row]), sum));
    }
  }
}

// Attends Rows consecutive rows of one sequence and head, the first at `position`, none of them in another tile.
template <class Type, class Rotary, int Rows, int64_t Dim>
KAOKEN_INLINE void attend_rows(const float *query, int64_t query_stride, float *out, int64_t out_stride,
                               const HeadCache<Type, Dim> &cache, const Rotary &rotary, int64_t position) {
  Softmax<Rows> state;
  alignas(kAlignment) typename Type::Step::Input queries[Rows * Dim];
  float scales[Rows];
  store(state.largest, broadcast(-__builtin_inff()));
  for (int row = 0; row < Rows; ++row) {
    state.total[row] = broadcast(0.0f);
    alignas(kAlignment) float turned[Rotary::kNone ? kLanes : Dim];
    const float *given = rotary.template turn<Dim>(query + row * query_stride, position + row, turned);
    scales[row] = Type::template query<Dim>(given, queries + row * Dim);
  }
  for (int64_t begin = 0; begin <= position; begin += kAttentionTile) {
    const int64_t left = position + 1 - begin;
    attend_tile<Type, Rows, Dim>(queries, scales, out, out_stride, cache, begin,
                                 left < kAttentionTile ? left : kAttentionTile, state);
  }
  for (int row = 0; row < Rows; ++row) {
    const Vec scale = broadcast(1.0f / reduce_add(state.total[row]));
    for (int64_t d = 0; d < Dim; d += kLanes) {
      store(out + row * out_stride + d, mul(load(out + row * out_stride + d), scale));
    }
  }
}

// The keys and values of pass.qkv -> the cache. The worker that writes a group is also the one that attends with it
// where it has groups of its own, or where there is one new position and no group has several heads; so it needs no
// barrier before that.
template <class Layout, class Type, class Rotary>
void extend_cache(const Pass &pass, const HeadPart &part, const BlockCache<Type, Layout::kGroups, Layout::kDim> &cache,
                  const Rotary &rotary) {
  constexpr int64_t step = Type::Step::kStep, stride = Layout::kStride, dim = Layout::kDim;
  const int64_t groups = part.groups.end - part.groups.begin;
  for (int64_t item = part.worker.index; item < pass.batch * groups; item += part.worker.count) {
    const int64_t sequence = item / groups, group = part.groups.begin + item % groups;
    const auto head_cache = cache.head(sequence, group);
    float *keys = pass.qkv + sequence * pass.count * stride + Layout::kKeys + group * dim;
    const float *values = keys + Layout::kValues - Layout::kKeys;
    if constexpr (!Rotary::kNone) {
      for (int64_t i = 0; i < pass.count; ++i) {
        rotary.template turn<dim>(keys + i * stride, pass.past + i, keys + i * stride);
      }
    }
    for (int64_t position = pass.past, stored; position < pass.past + pass.count; position += stored) {
      if (position % step == 0 && position + step <= pass.past + pass.count) {
        Type::template store<step>(head_cache, position, keys, values, stride);
        stored = step;
      } else {
        Type::template store<1>(head_cache, position, keys, values, stride);
        stored = 1;
      }
      keys += stored * stride;
      values += stored * stride;
    }
  }
}

// In the last block, behind extend_cache(): all but the last position of each sequence have done their part where no
// logits of theirs are asked for. Moves to the front what remains: hidden rows, the inputs of a matrix of Kind with
// `Depth` inputs, and queries, where they are there already. Makes `pass`, this worker's own copy, one of a single new
// position.
template <class Layout, class Kind, int64_t Depth, int64_t HiddenWidth>
KAOKEN_INLINE void keep_last_positions(Pass &pass, const Worker &worker) {
  if (pass.count == 1 || pass.logits_which != KAOKEN_LOGITS_LAST) return;
  constexpr int64_t input_bytes = Kind::row_stride(Depth) * static_cast<int64_t>(sizeof(typename Kind::Input));
  auto *inputs = static_cast<char *>(pass.inputs);
  barrier(worker);
  for (int64_t sequence = 0; worker.index == 0 && sequence < pass.batch; ++sequence) {
    const int64_t row = (sequence + 1) * pass.count - 1;
    __builtin_memmove(pass.hidden + sequence * HiddenWidth, pass.hidden + row * HiddenWidth,
                      HiddenWidth * sizeof *pass.hidden);
    __builtin_memmove(pass.qkv + sequence * Layout::kStride, pass.qkv + row * Layout::kStride,
                      Layout::kKeys * sizeof *pass.qkv);
    __builtin_memmove(inputs + sequence * input_bytes, inputs + row * input_bytes, input_bytes);
    pass.input_scales[sequence] = pass.input_scales[row];
  }
  barrier(worker);
  pass.past += pass.count - 1;
  pass.count = 1;
}

// The queries of pass.qkv and the cache -> pass.attended. Workers that share heads take turns at groups of rows, so
// that the longer ones at the end of a prompt are spread over all.
template <class Layout, class Type, class Rotary>
void attention(const Pass &pass, const HeadPart &part, const BlockCache<Type, Layout::kGroups, Layout::kDim> &cache,
               const Rotary &rotary) {
  constexpr int64_t dim = Layout::kDim, stride = Layout::kStride, width = Layout::kKeys, shared = Layout::kShared;
  const int64_t first_head = part.groups.begin * shared;
  const int64_t heads = (part.groups.end - part.groups.begin) * shared;
  if (pass.count > 1 || shared > 1) barrier(part.worker);

  const int64_t first_group = pass.past / kAttentionRows;
  const int64_t end = pass.past + pass.count;
  const int64_t groups = (end - 1) / kAttentionRows - first_group + 1;
  for (int64_t item = part.worker.index; item < pass.batch * heads * groups; item += part.worker.count) {
    const int64_t sequence = item / groups / heads, head = first_head + item / groups % heads;
    const int64_t group = (first_group + item % groups) * kAttentionRows;
    const HeadCache<Type, dim> head_cache = cache.head(sequence, head / shared);
    const int64_t row = sequence * pass.count - pass.past;  // of position 0
    const float *query = pass.qkv + row * stride + head * dim;
    float *out = pass.attended + row * width + head * dim;
    if (group >= pass.past && group + kAttentionRows <= end) {
      attend_rows<Type, Rotary, kAttentionRows, dim>(query + group * stride, stride, out + group * width, width,
                                                     head_cache, rotary, group);
      continue;
    }
    for (int64_t position = group < pass.past ? pass.past : group; position < end && position < group + kAttentionRows;
         ++position) {
      attend_rows<Type, Rotary, 1, dim>(query + position * stride, 0, out + position * width, 0, head_cache, rotary,
                                        position);
    }
  }
}

}  // namespace kaoken::KAOKEN_ISA
