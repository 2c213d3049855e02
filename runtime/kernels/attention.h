// Attention over the KV cache with an online softmax (Milakov and Gimelshein, arXiv:1805.02867; in tiles as in
// FlashAttention, Dao et al., arXiv:2205.14135).
//
// Keys and values are rounded to the cache's type (cache.h) before anything attends to them. The cache's pages are
// merged in order, and each row begins and stops where its own sight does. So a row's arithmetic is the same in prefill
// and in decode, in any batch, on any thread.
//
// What follows is made for a Scheme, which blocks that attend alike share: their code is in a library once.
#pragma once

#include "cache.h"
#include "linear.h"
#include "rotary.h"

namespace kaoken::KAOKEN_ISA {

// The positions that a row attends to: its own and those before it, all of its sequence, or its source.
enum class Sees { kPast, kAll, kSource };

// What is added to scores: nothing, or a value by head and distance (T5, arXiv:1910.10683), in units of log2 e.
struct NoBias {
  static constexpr bool kNone = true, kRelative = false, kBiasedKeys = false;
  KAOKEN_MEMBER const float *row(int64_t, int64_t) const { return nullptr; }
  KAOKEN_INLINE const float *behind(const float *, int) { return nullptr; }
};
struct DistanceBias {
  static constexpr bool kNone = false, kRelative = false, kBiasedKeys = false;
  const float *table;  // [heads][stride]: of the distance from query to key, from -limit on
  int64_t stride;      // past the largest distance there is room for a page
  int64_t limit;

  // What a query at `position` adds to the score of key 0, and behind it of the others.
  KAOKEN_MEMBER const float *row(int64_t head, int64_t position) const {
    return table + head * stride + limit - position;
  }
  // What the row `rows` behind a row adds.
  KAOKEN_INLINE const float *behind(const float *bias, int rows) { return bias - rows; }
};

// How a row of queries, keys and values lies: Heads queries, then KvHeads keys, then as many values, of Dim floats
// each, in whole panels. Heads / KvHeads consecutive queries share a key; a group is a key's.
template <int64_t Heads, int64_t KvHeads, int64_t Dim>
struct Layout {
  static_assert(Heads % KvHeads == 0 && Dim % kLanes == 0);
  static constexpr int64_t kGroups = KvHeads, kShared = Heads / KvHeads, kDim = Dim;
  static constexpr int64_t kKeys = Heads * Dim, kValues = kKeys + KvHeads * Dim, kStride = kValues + KvHeads * Dim;
};

// The same where a row has its queries alone, and where it has keys and values alone: attention to a source.
template <int64_t Heads, int64_t KvHeads, int64_t Dim>
struct QueryLayout : Layout<Heads, KvHeads, Dim> {
  static constexpr int64_t kStride = Heads * Dim;
};
template <int64_t Heads, int64_t KvHeads, int64_t Dim>
struct SourceLayout : Layout<Heads, KvHeads, Dim> {
  static constexpr int64_t kKeys = 0, kValues = KvHeads * Dim, kStride = 2 * kValues;
};

constexpr int64_t kUnlimited = -1;

// With a window, which is a Reach, a row sees no position that is farther than that from its own.
template <class Layout_, class Cache_, class Rotary_, class Bias_, Sees sees, int64_t Reach = kUnlimited>
struct Scheme {
  using Layout = Layout_;
  using Cache = Cache_;
  using Rotary = Rotary_;
  using Bias = Bias_;
  static constexpr Sees kSees = sees;
  static constexpr int64_t kReach = Reach;
  static constexpr bool kWindow = Reach != kUnlimited;
  static constexpr bool kKeepsWindow = kWindow && sees == Sees::kPast;
  static_assert(!kWindow || (Reach >= 0 && sees != Sees::kSource));
};

// The epilogue of the fused query, key and value product. The first Biased columns have a bias: queries, and keys where
// scores depend on it. Otherwise softmax ignores the keys', and the values' is in the projection's.
template <class Layout, int64_t Biased>
struct StoreQueryKeyValue {
  float *out;  // [rows][kStride]
  const float *bias;
  KAOKEN_MEMBER void operator()(int64_t row, int64_t panel, Vec sum) const {
    const int64_t column = panel * kLanes;
    store(out + row * Layout::kStride + column, column < Biased ? add(sum, load(bias + column)) : sum);
  }
};

// The columns of that product in [begin, end): workers divide its panels, and with them its heads.
template <class Kind, int64_t Depth, class Epilogue>
KAOKEN_INLINE void project(int64_t begin, int64_t end, const Worker &worker, const typename Kind::Input *x,
                           int64_t rows, const typename Kind::Matrix &w, const Epilogue &epilogue, const char *next) {
  const Share mine = share((end - begin) / kLanes, worker);
  const int64_t first = begin / kLanes;
  multiply<Kind, Depth>(x, rows, w, {first + mine.begin, first + mine.end}, epilogue, next);
}

template <class Layout, class Kind, int64_t Depth, class Epilogue>
KAOKEN_INLINE void project_queries(const Worker &worker, const typename Kind::Input *x, int64_t rows,
                                   const typename Kind::Matrix &w, const Epilogue &epilogue, const char *next) {
  project<Kind, Depth>(0, Layout::kKeys, worker, x, rows, w, epilogue, next);
}

template <class Layout, class Kind, int64_t Depth, class Epilogue>
KAOKEN_INLINE void project_keys_and_values(const Worker &worker, const typename Kind::Input *x, int64_t rows,
                                           const typename Kind::Matrix &w, const Epilogue &epilogue) {
  constexpr int64_t keys = Layout::kKeys / kLanes, values = Layout::kValues / kLanes;
  const char *value = panel_address<Kind, Depth>(w, values + share(values - keys, worker).begin);
  const char *query = panel_address<Kind, Depth>(w, share(keys, worker).begin);
  project<Kind, Depth>(Layout::kKeys, Layout::kValues, worker, x, rows, w, epilogue, value);
  project<Kind, Depth>(Layout::kValues, Layout::kStride, worker, x, rows, w, epilogue, query);
}

// The groups that a worker attends with: its own from their projection on, so that nobody waits, where they come out
// even; else all of them in turns with `worker`.
struct HeadShare {
  Share groups;
  Worker worker;
};
template <int64_t Groups>
KAOKEN_INLINE HeadShare head_share(const Worker &worker) {
  if (Groups % worker.count) return {{0, Groups}, worker};
  return {share(Groups, worker), {0, 1, worker.team}};
}

// Rows that are attended side by side: consecutive positions of one head, which start at multiples of it and so end in
// one page, or, where positions are fewer, the heads of one group at one position.
constexpr int kAttentionRows = kTileRows >= 8 ? 8 : kTileRows >= 4 ? 4 : 2;
static_assert(kPage % kAttentionRows == 0);
enum class Beside { kPositions, kHeads };

// Running maxima of up to 16 rows, and their running sums with 16 lanes a row.
template <int Rows>
struct Softmax {
  alignas(kAlignment) float largest[kLanes];
  Vec total[Rows];
};

// How far in memory the page lies that will be read behind this one.
struct NextPage {
  int64_t bytes;
};
template <class Weight>
KAOKEN_INLINE Ahead ahead_of(const NextPage &next, const Weight *w, int64_t w_stride) {
  return {reinterpret_cast<const char *>(w) + next.bytes, w_stride * static_cast<int64_t>(sizeof *w)};
}
template <class Weight>
KAOKEN_INLINE NothingAhead ahead_of(NothingAhead, const Weight *, int64_t) {
  return {};
}

// out[r][0 .. 16 panels) as `tile` does, for any number of panels and for Rows rows, at most kAttentionRows at a time.
// Where what lies `next` bytes behind the weights will be read next, each line that is read fetches the one there.
template <class Step, int Rows, class Next = NothingAhead>
KAOKEN_INLINE void product(const typename Step::Input *x, int64_t x_stride, const typename Step::Weight *w,
                           int64_t w_stride, int64_t steps, typename Step::Element *out, int64_t out_stride,
                           int64_t panels, bool resume = false, const Next &next = {}) {
  constexpr int rows = Rows < kAttentionRows ? Rows : kAttentionRows, rest = Rows % rows;
  constexpr bool few = rows <= 2 || rows * kStreamPanels <= kTileRows * kTilePanels;
  constexpr int most = few ? kStreamPanels : kTilePanels < 2 ? kTilePanels : 2;
  for (int64_t row = 0; row < Rows - rest; row += rows) {
    const auto *inputs = x + row * x_stride;
    auto *sums = out + row * out_stride;
    int64_t panel = 0;
    for (; panel + most <= panels; panel += most) {
      tile<Step, rows, most>(inputs, x_stride, w + panel * w_stride, w_stride, steps, sums + panel * kLanes, out_stride,
                             resume, ahead_of(next, w + panel * w_stride, w_stride));
    }
    for (; panel < panels; ++panel) {
      tile<Step, rows, 1>(inputs, x_stride, w + panel * w_stride, w_stride, steps, sums + panel * kLanes, out_stride,
                          resume, ahead_of(next, w + panel * w_stride, w_stride));
    }
  }
  if constexpr (rest > 0) {
    constexpr int64_t row = Rows - rest;
    product<Step, rest>(x + row * x_stride, x_stride, w, w_stride, steps, out + row * out_stride, out_stride, panels,
                        resume);
  }
}

// What a row of probabilities [kPage] gathers from the values of positions `from` to `to`, on top of sums.
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

// A row's scores of a page from their sums, `count` vectors of them, of which the first `valid` count. Returns the
// running maximum.
template <class Scheme, class Page>
KAOKEN_INLINE float scores_of(const typename Scheme::Cache::Step::Element *sums, float scale, const Page &page,
                              const float *bias, int64_t count, int64_t valid, float largest, float *scores) {
  Vec most = broadcast(largest);
  for (int64_t i = 0; i < count * kLanes; i += kLanes) {
    Vec score = Scheme::Cache::score(sums + i, scale, page, i);
    if constexpr (!Scheme::Bias::kNone) score = add(score, load(bias + i));
    const Vec masked = select_first(valid - i, score, broadcast(-__builtin_inff()));
    most = max(most, masked);
    store(scores + i, masked);
  }
  return reduce_max(most);
}

// They become probabilities relative to the maximum, with zeros up to the page's end. Returns their sum.
KAOKEN_INLINE Vec exponentials(float *scores, int64_t count, float largest) {
  Vec sum = broadcast(0.0f);
  for (int64_t i = 0; i < count * kLanes; i += kLanes) {
    const Vec p = exp2(sub(load(scores + i), broadcast(largest)));
    sum = add(sum, p);
    store(scores + i, p);
  }
  for (int64_t i = count * kLanes; i < kPage; i += kLanes) store(scores + i, broadcast(0.0f));
  return sum;
}

// Merges a page into Rows rows, of which the first sees `valid` positions of it and, where rows are positions that see
// the past, each further one sees one more, up to the whole page. query: [Rows][Dim]; out: [Rows][out_stride]; `bias`
// is the first row's of the page's first key.
template <class Scheme, int Rows, Beside beside = Beside::kPositions, class Next = NothingAhead>
KAOKEN_INLINE void attend_page(const typename Scheme::Cache::Step::Input *query, const float *query_scales, float *out,
                               int64_t out_stride, const HeadPage<typename Scheme::Cache, Scheme::Layout::kDim> &page,
                               const float *bias, bool first, int64_t valid, Softmax<Rows> &state,
                               const Next &next = {}) {
  using Type = typename Scheme::Cache;
  using Step = typename Type::Step;
  constexpr int planes = Type::kPlanes;
  constexpr int64_t dim = Scheme::Layout::kDim;
  alignas(kAlignment) typename Step::Element products[Rows * kPage];
  alignas(kAlignment) float p[Rows * kPage];
  alignas(kAlignment) typename Step::Input probabilities[Rows * planes * kPage];
  alignas(kAlignment) typename Step::Element sums[Rows * planes * dim];
  const auto sees = [&](int64_t row) {
    if constexpr (Scheme::kSees != Sees::kPast || beside == Beside::kHeads) return valid;
    return valid + row < kPage ? valid + row : kPage;
  };
  const int64_t seen = (sees(Rows - 1) + kLanes - 1) / kLanes;  // panels
  product<Step, Rows>(query, dim, page.keys, dim * kLanes, dim / Step::kStep, products, kPage, seen, false, next);

  // In stages, since each is a chain of its own for every row and one row has to wait for itself.
  const Vec before = load(state.largest);
  for (int row = 0; row < Rows; ++row) {
    state.largest[row] =
        scores_of<Scheme>(products + row * kPage, query_scales[row], page, Scheme::Bias::behind(bias, row), seen,
                          sees(row), state.largest[row], p + row * kPage);
  }
  alignas(kAlignment) float shrink[kLanes];
  store(shrink, exp2(sub(before, load(state.largest))));
  for (int row = 0; row < Rows; ++row) {
    const Vec sum = exponentials(p + row * kPage, seen, state.largest[row]);
    state.total[row] = fma(state.total[row], broadcast(shrink[row]), sum);
  }
  float scales[Rows];
  for (int row = 0; row < Rows; ++row) {
    scales[row] = Type::probabilities(p + row * kPage, page, probabilities + row * planes * kPage);
  }

  // What all rows see, together; then what each row sees beyond, so that no sum takes in a masked value.
  constexpr int64_t stride = kPage * kLanes;
  const int64_t common = Type::kExact ? round_up(sees(Rows - 1), Step::kStep) : valid / Step::kStep * Step::kStep;
  product<Step, Rows * planes>(probabilities, kPage, page.values(), stride, common / Step::kStep, sums, dim,
                               dim / kLanes, false, next);
  if constexpr (!Type::kExact) {
    for (int row = 0; row < Rows; ++row) {
      if (sees(row) == common) continue;
      gather_rest<Step, dim>(probabilities + row * kPage, page.values(), stride, common, sees(row), sums + row * dim);
    }
  }
  for (int row = 0; row < Rows; ++row) {
    for (int64_t d = 0; d < dim; d += kLanes) {
      float *merged = out + row * out_stride + d;
      const Vec sum = Type::template value<dim>(sums + row * planes * dim + d, scales[row]);
      store(merged, first ? sum : fma(load(merged), broadcast(shrink[row]), sum));
    }
  }
}

// Windows. The functions above do without them, as what they would do with the limits that are not there changes the
// code that g++ makes of them.

// The positions of a page that rows see: the one at i positions behind the first those of [begin + i, end + i) that lie
// in the page and in the sequence, all of them counted from the page's first one. That may be none.
template <Beside beside>
struct Sight {
  int64_t begin, end, length;

  KAOKEN_MEMBER int64_t from(int64_t row) const { return in_page(begin + behind(row)); }
  KAOKEN_MEMBER int64_t to(int64_t row) const {
    return in_page(end + behind(row) < length ? end + behind(row) : length);
  }
  KAOKEN_MEMBER bool empty(int64_t row) const { return from(row) >= to(row); }

 private:
  KAOKEN_INLINE int64_t behind(int64_t row) { return beside == Beside::kHeads ? 0 : row; }
  KAOKEN_INLINE int64_t in_page(int64_t position) { return position < 0 ? 0 : position < kPage ? position : kPage; }
};

// scores_of() of the vectors in `seen`, where the positions in front of `from` do not count either.
template <class Scheme, class Page>
KAOKEN_INLINE float scores_within(const typename Scheme::Cache::Step::Element *sums, float scale, const Page &page,
                                  const float *bias, Share seen, int64_t from, int64_t to, float largest,
                                  float *scores) {
  const Vec nothing = broadcast(-__builtin_inff());
  Vec most = broadcast(largest);
  for (int64_t i = 0; i < seen.begin * kLanes; i += kLanes) store(scores + i, nothing);
  for (int64_t i = seen.begin * kLanes; i < seen.end * kLanes; i += kLanes) {
    Vec score = Scheme::Cache::score(sums + i, scale, page, i);
    if constexpr (!Scheme::Bias::kNone) score = add(score, load(bias + i));
    const Vec masked = select_first(from - i, nothing, select_first(to - i, score, nothing));
    most = max(most, masked);
    store(scores + i, masked);
  }
  return reduce_max(most);
}

// gather_rest() from any position on: a step that begins in front of `from` takes nothing of what lies there.
template <class Step, int64_t Dim>
KAOKEN_INLINE void gather(const typename Step::Input *p, const typename Step::Weight *values, int64_t stride,
                          int64_t from, int64_t to, typename Step::Element *sums) {
  if (from >= to) return;
  if constexpr (Step::kStep == 2) {
    const int64_t first = from - 1;
    for (int64_t d = 0; d < Dim && from % 2; d += kLanes) {
      const auto weights = second_of(Step::weights(values + d / kLanes * stride + first * kLanes));
      store(sums + d, Step::multiply(Step::spread(p + first), weights, load(sums + d)));
    }
    from += from % 2;
  }
  gather_rest<Step, Dim>(p, values, stride, from, to, sums);
}

// attend_page() with a window, in which one row at least sees some of the page. Rows that see nothing of it stay as
// they are: a maximum of -infinity less itself would be NaN. `out` begins with zeros.
template <class Scheme, int Rows, Beside beside>
KAOKEN_INLINE void attend_window(const typename Scheme::Cache::Step::Input *query, const float *query_scales,
                                 float *out, int64_t out_stride,
                                 const HeadPage<typename Scheme::Cache, Scheme::Layout::kDim> &page, const float *bias,
                                 const Sight<beside> &sight, Softmax<Rows> &state) {
  using Type = typename Scheme::Cache;
  using Step = typename Type::Step;
  constexpr int planes = Type::kPlanes;
  constexpr int64_t dim = Scheme::Layout::kDim, step = Step::kStep;
  alignas(kAlignment) typename Step::Element products[Rows * kPage];
  alignas(kAlignment) float p[Rows * kPage];
  alignas(kAlignment) typename Step::Input probabilities[Rows * planes * kPage];
  alignas(kAlignment) typename Step::Element sums[Rows * planes * dim];
  const Share seen = {sight.from(0) / kLanes, (sight.to(Rows - 1) + kLanes - 1) / kLanes};  // panels
  product<Step, Rows>(query, dim, page.keys + seen.begin * kLanes * dim, dim * kLanes, dim / step,
                      products + seen.begin * kLanes, kPage, seen.end - seen.begin);

  const Vec before = load(state.largest);
  for (int row = 0; row < Rows; ++row) {
    if (sight.empty(row)) continue;
    state.largest[row] = scores_within<Scheme>(products + row * kPage, query_scales[row], page,
                                               Scheme::Bias::kNone ? nullptr : bias - row, seen, sight.from(row),
                                               sight.to(row), state.largest[row], p + row * kPage);
  }
  alignas(kAlignment) float shrink[kLanes];
  store(shrink, exp2(sub(before, load(state.largest))));
  for (int row = 0; row < Rows; ++row) {
    const bool empty = sight.empty(row);
    const Vec sum = exponentials(p + row * kPage, empty ? 0 : seen.end, state.largest[row]);
    if (empty) continue;
    state.total[row] = fma(state.total[row], broadcast(shrink[row]), sum);
  }
  float scales[Rows];
  for (int row = 0; row < Rows; ++row) {
    scales[row] = Type::probabilities(p + row * kPage, page, probabilities + row * planes * kPage);
  }

  // A float's sum takes in what its row sees alone, in order: what only some see, a row at a time, and what all see
  // between the two together. An exact one takes in what any row sees, as masked probabilities are zeros.
  constexpr int64_t stride = kPage * kLanes;
  const int64_t from = Type::kExact ? sight.from(0) / step * step : round_up(sight.from(Rows - 1), step);
  const int64_t end = Type::kExact ? round_up(sight.to(Rows - 1), step) : sight.to(0) / step * step;
  const int64_t to = end < from ? from : end;
  for (int row = 0; row < Rows && !Type::kExact; ++row) {
    for (int64_t d = 0; d < dim; d += kLanes) store(sums + row * dim + d, Step::zero());
    const int64_t front = sight.to(row) < from ? sight.to(row) : from;
    gather<Step, dim>(probabilities + row * kPage, page.values(), stride, sight.from(row), front, sums + row * dim);
  }
  product<Step, Rows * planes>(probabilities + from, kPage, page.values() + from * kLanes, stride, (to - from) / step,
                               sums, dim, dim / kLanes, !Type::kExact);
  for (int row = 0; row < Rows; ++row) {
    if (sight.empty(row)) continue;
    if (!Type::kExact && to < sight.to(row)) {
      gather_rest<Step, dim>(probabilities + row * kPage, page.values(), stride, to, sight.to(row), sums + row * dim);
    }
    for (int64_t d = 0; d < dim; d += kLanes) {
      float *merged = out + row * out_stride + d;
      const Vec sum = Type::template value<dim>(sums + row * planes * dim + d, scales[row]);
      store(merged, fma(load(merged), broadcast(shrink[row]), sum));
    }
  }
}

// The pages where what a row sees lies.
template <class Scheme>
KAOKEN_INLINE const int32_t *pages_of(const Sequence &sequence) {
  if constexpr (Scheme::kKeepsWindow) return sequence.window_pages;
  return Scheme::kSees == Sees::kSource ? sequence.source_pages : sequence.pages;
}

// Merges the pages of the windows of Rows rows, the first at `position`, into `out`.
template <class Scheme, int Rows, Beside beside, class Cache>
KAOKEN_INLINE void attend_windows(const typename Scheme::Cache::Step::Input *query, const float *query_scales,
                                  float *out, int64_t out_stride, const Cache &cache, const Sequence &sequence,
                                  int64_t head, int64_t position, const typename Scheme::Bias &bias,
                                  Softmax<Rows> &state) {
  constexpr int64_t reach = Scheme::kReach, in_front = Scheme::kSees == Sees::kPast ? 0 : reach;
  constexpr int64_t dim = Scheme::Layout::kDim;
  for (int row = 0; row < Rows; ++row) {
    for (int64_t d = 0; d < dim; d += kLanes) store(out + row * out_stride + d, broadcast(0.0f));
  }
  const int64_t last = position + (beside == Beside::kHeads ? 1 : Rows) + in_front,
                end = last < sequence.length ? last : sequence.length;
  const int64_t first = position > reach ? position - reach : 0, group = head / Scheme::Layout::kShared;
  const int32_t *pages = pages_of<Scheme>(sequence);
  for (int64_t begin = first / kPage * kPage; begin < end; begin += kPage) {
    if (beside == Beside::kHeads && end - begin > kPage) cache.prefetch(pages, group, begin + kPage);
    const Sight<beside> sight = {position - reach - begin, position + 1 + in_front - begin, sequence.length - begin};
    attend_window<Scheme, Rows>(query, query_scales, out, out_stride, cache.page(pages, group, begin),
                                bias.row(head, position - begin), sight, state);
  }
}

// How many positions the row at `position` sees.
template <class Scheme>
KAOKEN_INLINE int64_t seen_from(const Sequence &sequence, int64_t position) {
  if constexpr (Scheme::kSees == Sees::kPast) return position + 1;
  return Scheme::kSees == Sees::kAll ? sequence.length : sequence.source_length;
}

// What is fetched beside the page at `begin`, from which `left` positions are still to be attended to: the next one
// where few rows make it a matter of memory.
template <Beside beside, class Cache>
KAOKEN_INLINE auto next_page(const Cache &cache, const int32_t *pages, int64_t group, int64_t begin, int64_t left) {
  if constexpr (beside == Beside::kHeads) {
    const NextPage next = {left > kPage ? cache.to_next(pages, begin) : 0};
    cache.prefetch_extra(cache.page(pages, group, begin), next.bytes);
    return next;
  } else {
    return NothingAhead();
  }
}

// Attends Rows rows of one sequence: those of a head from `position` on, all of which lie in one page, or those at
// `position` of the heads from `head` on, all of which share a key.
template <class Scheme, int Rows, Beside beside, class Cache>
KAOKEN_INLINE void attend_rows(const float *query, int64_t query_stride, float *out, int64_t out_stride,
                               const Cache &cache, const Sequence &sequence, int64_t head, int64_t position,
                               const typename Scheme::Rotary &rotary, const typename Scheme::Bias &bias) {
  constexpr int64_t dim = Scheme::Layout::kDim;
  Softmax<Rows> state;
  alignas(kAlignment) typename Scheme::Cache::Step::Input queries[Rows * dim];
  float scales[Rows];
  store(state.largest, broadcast(-__builtin_inff()));
  for (int row = 0; row < Rows; ++row) {
    state.total[row] = broadcast(0.0f);
    alignas(kAlignment) float turned[Scheme::Rotary::kNone ? kLanes : dim];
    const float *given =
        rotary.template query<dim>(query + row * query_stride, position + (beside == Beside::kHeads ? 0 : row), turned);
    scales[row] = Scheme::Cache::template query<dim>(given, queries + row * dim);
  }
  if constexpr (Scheme::kWindow) {
    attend_windows<Scheme, Rows, beside>(queries, scales, out, out_stride, cache, sequence, head, position, bias,
                                         state);
  } else {
    const int32_t *pages = pages_of<Scheme>(sequence);
    const int64_t end = seen_from<Scheme>(sequence, position), group = head / Scheme::Layout::kShared;
    for (int64_t begin = 0; begin < end; begin += kPage) {
      const int64_t left = end - begin;
      const auto next = next_page<beside>(cache, pages, group, begin, left);
      attend_page<Scheme, Rows, beside>(queries, scales, out, out_stride, cache.page(pages, group, begin),
                                        bias.row(head, position - begin), begin == 0, left < kPage ? left : kPage,
                                        state, next);
    }
  }
  for (int row = 0; row < Rows; ++row) {
    const Vec scale = broadcast(1.0f / reduce_add(state.total[row]));
    for (int64_t d = 0; d < dim; d += kLanes) {
      store(out + row * out_stride + d, mul(load(out + row * out_stride + d), scale));
    }
  }
}

// Deals items out to workers in turns.
struct Turns {
  const int64_t count;
  int64_t left;
  explicit Turns(const Worker &worker) : count(worker.count), left(worker.index) {}
  KAOKEN_MEMBER bool mine() {
    if (left-- > 0) return false;
    left = count - 1;
    return true;
  }
};

template <class Scheme>
using CacheOf = BlockCache<typename Scheme::Cache, Scheme::Layout::kGroups, Scheme::Layout::kDim>;

// The keys and values of pass.qkv -> the cache. The worker that writes a group is also the one that attends with it
// where it has groups of its own, or where each sequence has one new position and no group has several heads; so it
// needs no barrier before that.
template <class Scheme>
void extend_cache(const Pass &pass, const HeadShare &own, const CacheOf<Scheme> &cache,
                  const typename Scheme::Rotary &rotary) {
  using Layout = typename Scheme::Layout;
  constexpr int64_t step = Scheme::Cache::Step::kStep, stride = Layout::kStride, dim = Layout::kDim;
  Turns turns(own.worker);
  for (int64_t i = 0; i < pass.batch.count; ++i) {
    const Sequence &sequence = pass.batch.sequences[i];
    const int32_t *pages = pages_of<Scheme>(sequence);
    for (int64_t group = own.groups.begin; group < own.groups.end; ++group) {
      if (!turns.mine()) continue;
      float *keys = pass.qkv + sequence.row * stride + Layout::kKeys + group * dim;
      const float *values = keys + Layout::kValues - Layout::kKeys;
      const int64_t end = sequence.past + sequence.count;
      if constexpr (!Scheme::Rotary::kNone) {
        for (int64_t row = 0; row < sequence.count; ++row) {
          rotary.template key<dim>(keys + row * stride, sequence.past + row, keys + row * stride);
        }
      }
      for (int64_t position = sequence.past, stored; position < end; position += stored) {
        const auto page = cache.page(pages, group, position);
        if (position % step == 0 && position + step <= end) {
          Scheme::Cache::template store<step>(page, position % kPage, keys, values, stride);
          stored = step;
        } else {
          Scheme::Cache::template store<1>(page, position % kPage, keys, values, stride);
          stored = 1;
        }
        keys += stored * stride;
        values += stored * stride;
      }
    }
  }
}

// Waits until the cache has what this worker attends to, where others write it.
template <class Scheme>
KAOKEN_INLINE void wait_for_cache(const Pass &pass, const HeadShare &own) {
  if (pass.batch.rows > pass.batch.count || Scheme::Layout::kShared > 1) barrier(own.worker);
}

// In the last block, behind extend_cache(): the rows that no logits are asked of have done their work. Moves to the
// front what remains: hidden rows, the inputs of a matrix of Kind with `Depth` inputs, and queries, where they are
// there already. Makes `pass`, this worker's own copy, one of the outputs.
template <class Layout, class Kind, int64_t Depth, int64_t HiddenWidth>
KAOKEN_INLINE void keep_outputs(Pass &pass, const Worker &worker) {
  if (pass.outputs.rows == pass.batch.rows) return;
  constexpr int64_t input_bytes = Kind::row_stride(Depth) * static_cast<int64_t>(sizeof(typename Kind::Input));
  auto *inputs = static_cast<char *>(pass.inputs);
  barrier(worker);
  for (int64_t to = 0; worker.index == 0 && to < pass.outputs.rows; ++to) {
    const int64_t row = pass.kept[to];
    if (row == to) continue;
    __builtin_memcpy(pass.hidden + to * HiddenWidth, pass.hidden + row * HiddenWidth,
                     HiddenWidth * sizeof *pass.hidden);
    __builtin_memcpy(pass.qkv + to * Layout::kStride, pass.qkv + row * Layout::kStride,
                     Layout::kKeys * sizeof *pass.qkv);
    __builtin_memcpy(inputs + to * input_bytes, inputs + row * input_bytes, input_bytes);
  }
  barrier(worker);
  pass.batch = pass.outputs;
}

// Attends the heads from `head` to `end`, which share a key, at one position, as many side by side as can be.
template <class Scheme, int Most, class Cache>
KAOKEN_INLINE void attend_heads(Turns &turns, const float *queries, float *out, const Cache &cache,
                                const Sequence &sequence, int64_t head, int64_t end, int64_t position,
                                const typename Scheme::Rotary &rotary, const typename Scheme::Bias &bias) {
  constexpr int64_t dim = Scheme::Layout::kDim;
  for (; head + Most <= end; head += Most) {
    if (!turns.mine()) continue;
    attend_rows<Scheme, Most, Beside::kHeads>(queries + head * dim, dim, out + head * dim, dim, cache, sequence, head,
                                              position, rotary, bias);
  }
  if constexpr (constexpr int rest = Scheme::Layout::kShared % Most; rest > 0) {
    if (!turns.mine()) return;
    attend_rows<Scheme, rest, Beside::kHeads>(queries + head * dim, dim, out + head * dim, dim, cache, sequence, head,
                                              position, rotary, bias);
  }
}

// The queries of pass.qkv and the cache -> pass.attended. Workers that share heads take turns at groups of rows, so
// that the longer ones at the end of a prompt are spread over all.
template <class Scheme>
void attention(const Pass &pass, const HeadShare &own, const CacheOf<Scheme> &cache,
               const typename Scheme::Rotary &rotary, const typename Scheme::Bias &bias) {
  using Layout = typename Scheme::Layout;
  constexpr int64_t dim = Layout::kDim, stride = Layout::kStride, width = Layout::kKeys, shared = Layout::kShared;
  constexpr int heads = !Scheme::Bias::kNone ? 1 : shared < kAttentionRows ? shared : kAttentionRows;
  Turns turns(own.worker);
  for (int64_t i = 0; i < pass.batch.count; ++i) {
    const Sequence &sequence = pass.batch.sequences[i];
    const int64_t begin = sequence.past, end = begin + sequence.count;
    const float *queries = pass.qkv + (sequence.row - begin) * stride;  // of position 0
    float *attended = pass.attended + (sequence.row - begin) * width;
    for (int64_t key = own.groups.begin; key < own.groups.end; ++key) {
      for (int64_t group = begin / kAttentionRows * kAttentionRows; group < end; group += kAttentionRows) {
        int64_t from = group < begin ? begin : group;
        __asm__("" : "+r"(from));  // else g++ writes the first group's code twice
        if (from == group && group + kAttentionRows <= end) {
          for (int64_t head = key * shared; head < (key + 1) * shared; ++head) {
            if (!turns.mine()) continue;
            attend_rows<Scheme, kAttentionRows, Beside::kPositions>(queries + group * stride + head * dim, stride,
                                                                    attended + group * width + head * dim, width, cache,
                                                                    sequence, head, group, rotary, bias);
          }
          continue;
        }
        for (int64_t position = from; position < end && position < group + kAttentionRows; ++position) {
          attend_heads<Scheme, heads>(turns, queries + position * stride, attended + position * width, cache, sequence,
                                      key * shared, (key + 1) * shared, position, rotary, bias);
        }
      }
    }
  }
}

}  // namespace kaoken::KAOKEN_ISA
