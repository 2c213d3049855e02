// The KV cache of one block: how each type stores keys and values, and how queries and probabilities meet them.
//
// It lies in pages of kPage positions P, each with all blocks and all heads of a sequence. A head's part of a page,
// with D padded head dimensions, S of them to a step, is
//   keys          [P / 16][D / S][16][S]   16 positions a panel: scores are a matrix product with the query
//   values        [D / 16][P / S][16][S]   16 dimensions a panel: the sum of values is one with the probabilities
// and where keys and values are int8, each position of each head by itself:
//   key scales    [P] float32
//   value scales  [P] float32
//   key sums      [P] int32, of the integers of a key
//
// Queries and probabilities take the type that the cache's products take: float32, bfloat16, or, for int8, inputs of 8
// bits (kinds.h). A query is rounded as a key is. Of a page's probabilities, many of which may be small beside the
// largest, 14 bits are kept, as two planes of 7.
#pragma once

#include "functions.h"
#include "kinds.h"

namespace kaoken::KAOKEN_ISA {

constexpr int64_t kTileVecs = kPage / kLanes;

// Keys and values of one head in one page.
template <class Type, int64_t Dim>
struct HeadPage {
  using Element = typename Type::Element;
  Element *keys;

  KAOKEN_MEMBER Element *values() const { return keys + kPage * Dim; }
  KAOKEN_MEMBER float *key_scales() const { return reinterpret_cast<float *>(keys + 2 * kPage * Dim); }
  KAOKEN_MEMBER float *value_scales() const { return key_scales() + kPage; }
  KAOKEN_MEMBER int32_t *key_sums() const { return reinterpret_cast<int32_t *>(value_scales() + kPage); }
};

// A block's cache; `before` is the bytes that a position of the blocks before takes.
template <class Type, int64_t Heads, int64_t HeadDim>
struct BlockCache {
  static constexpr int64_t kDim = round_up(HeadDim, kLanes);
  static constexpr int64_t kHeadBytes =
      2 * kDim * static_cast<int64_t>(sizeof(typename Type::Element)) + Type::kExtraBytes;
  uint8_t *block;  // in page 0
  int64_t page_bytes;

  BlockCache(const Cache &cache, int64_t before)
      : block(static_cast<uint8_t *>(cache.memory) + before * kPage), page_bytes(cache.page_bytes) {}
  KAOKEN_MEMBER HeadPage<Type, kDim> page(const int32_t *pages, int64_t head, int64_t position) const {
    uint8_t *begin = block + pages[position / kPage] * page_bytes + head * kHeadBytes * kPage;
    return {reinterpret_cast<typename Type::Element *>(begin)};
  }
  // In bytes, to the page behind that of a position.
  KAOKEN_MEMBER int64_t to_next(const int32_t *pages, int64_t position) const {
    return (pages[position / kPage + 1] - pages[position / kPage]) * page_bytes;
  }
  // What lies behind keys and values, `next` bytes from a page on.
  KAOKEN_MEMBER void prefetch_extra(const HeadPage<Type, kDim> &page, int64_t next) const {
    const auto *begin = reinterpret_cast<const char *>(page.keys) + (kHeadBytes - Type::kExtraBytes) * kPage + next;
    for (int64_t i = 0; i < Type::kExtraBytes * kPage; i += kLine) __builtin_prefetch(begin + i);
  }
  // Pages do not follow each other in memory, so the processor does not do this by itself.
  KAOKEN_MEMBER void prefetch(const int32_t *pages, int64_t head, int64_t position) const {
    const auto *begin = reinterpret_cast<const char *>(page(pages, head, position).keys);
    for (int64_t i = 0; i < kHeadBytes * kPage; i += kLine) __builtin_prefetch(begin + i);
  }
};

// Writes the keys and values of Count positions of a page, [Count][Dim] each, to their places. They are one position,
// or a step's from a multiple of it on.
template <int64_t Count, class Type, int64_t Dim>
KAOKEN_INLINE void scatter(const HeadPage<Type, Dim> &page, int64_t position, const typename Type::Element *keys,
                           const typename Type::Element *values) {
  constexpr int64_t step = Type::Step::kStep;
  for (int64_t i = 0; i < Count; ++i) {
    auto *to = page.keys + (position + i) / kLanes * kLanes * Dim + (position + i) % kLanes * step;
    for (int64_t d = 0; d < Dim; d += step) {
      __builtin_memcpy(to + d * kLanes, keys + i * Dim + d, step * sizeof *keys);
    }
  }
  auto *to = page.values() + position / step * step * kLanes + position % step;
  for (int64_t d = 0; d < Dim; d += kLanes) {
    for (int64_t lane = 0; lane < kLanes; ++lane) {
      for (int64_t i = 0; i < Count; ++i) to[d * kPage + lane * step + i] = values[i * Dim + d + lane];
    }
  }
}

// Each type below has
//   store<Count>(page, position, keys, values, stride): Count positions' [Dim] floats, `stride` apart, into a page
//   query<Dim>(q, out): a query as [Dim] inputs; returns the scale that `score` takes
//   score(sums, scale, page, position): 16 scores, times log2 e, from their sums
//   probabilities(p, page, out): a page's as [kPlanes][kPage] inputs; returns what `value` takes
//   value<Dim>(sums, scale): 16 sums of values from those of [kPlanes][Dim]
// kExact says that a probability of zero leaves a sum as it is, whatever the value.

// What the caches whose sums are floats share.
struct FloatCache {
  static constexpr int kPlanes = 1;
  static constexpr int64_t kExtraBytes = 0;
  static constexpr bool kExact = false;

  template <class Cache>
  KAOKEN_INLINE Vec score(const float *sums, float, const Cache &, int64_t) {
    return mul(load(sums), broadcast(kLog2E));
  }
  template <int64_t Dim>
  KAOKEN_INLINE Vec value(const float *sums, float) {
    return load(sums);
  }
};

struct CacheFloat32 : FloatCache {
  using Element = float;
  using Step = Float32Step;

  template <int64_t Count, int64_t Dim>
  KAOKEN_INLINE void store(const HeadPage<CacheFloat32, Dim> &page, int64_t position, const float *keys,
                           const float *values, int64_t) {
    static_assert(Count == 1);
    scatter<1>(page, position, keys, values);
  }
  template <int64_t Dim>
  KAOKEN_INLINE float query(const float *q, float *out) {
    for (int64_t d = 0; d < Dim; d += kLanes) KAOKEN_ISA::store(out + d, load(q + d));
    return 1.0f;
  }
  template <int64_t Dim>
  KAOKEN_INLINE float probabilities(const float *p, const HeadPage<CacheFloat32, Dim> &, float *out) {
    for (int64_t i = 0; i < kPage; i += kLanes) KAOKEN_ISA::store(out + i, load(p + i));
    return 1.0f;
  }
};

struct CacheBFloat16 : FloatCache {
  using Element = uint16_t;
  using Step = BFloat16Step;

  template <int64_t Count, int64_t Dim>
  KAOKEN_INLINE void store(const HeadPage<CacheBFloat16, Dim> &page, int64_t position, const float *keys,
                           const float *values, int64_t stride) {
    uint16_t rounded[2][Count * Dim];
    for (int64_t i = 0; i < Count; ++i) {
      for (int64_t d = 0; d < Dim; d += kLanes) {
        store_bfloat16(rounded[0] + i * Dim + d, load(keys + i * stride + d));
        store_bfloat16(rounded[1] + i * Dim + d, load(values + i * stride + d));
      }
    }
    scatter<Count>(page, position, rounded[0], rounded[1]);
  }
  template <int64_t Dim>
  KAOKEN_INLINE float query(const float *q, uint16_t *out) {
    for (int64_t d = 0; d < Dim; d += kLanes) store_bfloat16(out + d, load(q + d));
    return 1.0f;
  }
  template <int64_t Dim>
  KAOKEN_INLINE float probabilities(const float *p, const HeadPage<CacheBFloat16, Dim> &, uint16_t *out) {
    for (int64_t i = 0; i < kPage; i += kLanes) store_bfloat16(out + i, load(p + i));
    return 1.0f;
  }
};

struct CacheInt8 {
  using Element = int8_t;
  using Step = Int8Step;
  static constexpr int kPlanes = 2;
  static constexpr int64_t kExtraBytes = 12;
  static constexpr bool kExact = true;

  static constexpr float kLargest = 16383.0f;  // of 14 bits
  static constexpr float kSmallest = 1e-30f;   // magnitudes below it are 0: their inverses overflow
  static constexpr int kZero = 128;            // what stands for a zero in a query

  template <int64_t Count, int64_t Dim>
  KAOKEN_INLINE void store(const HeadPage<CacheInt8, Dim> &page, int64_t position, const float *keys,
                           const float *values, int64_t stride) {
    int8_t rounded[2][Count * Dim];
    for (int64_t i = 0; i < Count; ++i) {
      int32_t *sum = page.key_sums() + position + i;
      page.key_scales()[position + i] = round<Dim>(keys + i * stride, rounded[0] + i * Dim, sum);
      page.value_scales()[position + i] = round<Dim>(values + i * stride, rounded[1] + i * Dim, nullptr);
    }
    scatter<Count>(page, position, rounded[0], rounded[1]);
  }
  template <int64_t Dim>
  KAOKEN_INLINE float query(const float *q, uint8_t *out) {
    const float largest = largest_magnitude<Dim>(q);
    const float inverse = largest > kSmallest ? 127.0f / largest : 0.0f;
    Vec poison = broadcast(0.0f);
    for (int64_t d = 0; d < Dim; d += kLanes) poison = fma(load(q + d), broadcast(0.0f), poison);
    store_inputs<Dim / kLanes>(out, [&](int64_t i) { return input_of(load(q + i * kLanes), inverse, kZero); });
    return largest / 127.0f * kLog2E + reduce_add(poison);
  }
  template <class Page>
  KAOKEN_INLINE Vec score(const int32_t *sums, float scale, const Page &page, int64_t position) {
    const Ints offset = mul(broadcast_int(kZero - kInputOffset), load(page.key_sums() + position));
    return mul(to_float(sub(load(sums), offset)), mul(broadcast(scale), load(page.key_scales() + position)));
  }
  // Times the values' scales, so that what remains of a value is its integer.
  template <int64_t Dim>
  KAOKEN_INLINE float probabilities(const float *p, const HeadPage<CacheInt8, Dim> &page, uint8_t *out) {
    const Vec zero = broadcast(0.0f);
    Vec scaled[kTileVecs], most = zero, poison = zero;
    for (int64_t i = 0; i < kTileVecs; ++i) {
      const Vec weight = load(p + i * kLanes);
      const Vec product = mul(weight, load(page.value_scales() + i * kLanes));
      scaled[i] = select_less(zero, weight, product, zero);  // a masked position's scale may be anything
      most = max(scaled[i], most);
      poison = fma(scaled[i], zero, poison);
    }
    const float largest = reduce_max(most);
    const Vec inverse = broadcast(largest > kSmallest ? kLargest / largest : 0.0f);
    Ints integers[kTileVecs];
    for (int64_t i = 0; i < kTileVecs; ++i) integers[i] = to_int(mul(scaled[i], inverse));
    store_inputs<kTileVecs>(out, [&](int64_t i) { return shift_right<7>(integers[i]); });
    store_inputs<kTileVecs>(out + kPage, [&](int64_t i) { return bit_and(integers[i], broadcast_int(127)); });
    return largest / kLargest + reduce_add(poison);
  }
  template <int64_t Dim>
  KAOKEN_INLINE Vec value(const int32_t *sums, float scale) {
    return mul(to_float(join_planes(sums, Dim)), broadcast(scale));
  }

 private:
  template <int64_t Dim>
  KAOKEN_INLINE float largest_magnitude(const float *x) {
    const Vec zero = broadcast(0.0f);
    Vec largest = zero;
    for (int64_t d = 0; d < Dim; d += kLanes) largest = max(max(load(x + d), sub(zero, load(x + d))), largest);
    return reduce_max(largest);
  }
  // Symmetric, the largest magnitude at 127. Returns the scale: NaN where an element is NaN or infinite.
  template <int64_t Dim>
  KAOKEN_INLINE float round(const float *x, int8_t *out, int32_t *total) {
    const float largest = largest_magnitude<Dim>(x);
    const Vec inverse = broadcast(largest > kSmallest ? 127.0f / largest : 0.0f);
    Ints sum = broadcast_int(0);
    Vec poison = broadcast(0.0f);
    for (int64_t d = 0; d < Dim; d += kLanes) {
      const Ints integers = to_int(mul(load(x + d), inverse));
      sum = add(sum, integers);
      poison = fma(load(x + d), broadcast(0.0f), poison);
      store_bytes(reinterpret_cast<uint8_t *>(out + d), integers);
    }
    if (total) *total = static_cast<int32_t>(reduce_add(to_float(sum)));
    return largest / 127.0f + reduce_add(poison);
  }
  KAOKEN_INLINE Ints join_planes(const int32_t *sums, int64_t stride) {
    return add(shift_left<7>(load(sums)), load(sums + stride));
  }
};

}  // namespace kaoken::KAOKEN_ISA
