// The KV cache of one block: how each type stores keys and values, and how queries and probabilities meet them.
//
// For each sequence and head, with C positions of capacity and D padded head dimensions, S of them to a step:
//   keys          [C / 16][D / S][16][S]   16 positions a panel: scores are a matrix product with the query
//   values        [D / 16][C / S][16][S]   16 dimensions a panel: the sum of values is one with the probabilities
// and where keys and values are int8, each position of each head by itself:
//   key scales    [C] float32
//   value scales  [C] float32
//   key sums      [C] int32, of the integers of a key
//
// Queries and probabilities take the type that the cache's products take: float32, bfloat16, or, for int8, 14 bits in
// two planes of 7. Such planes are unsigned and signed alike and their products exact on every ISA.
#pragma once

#include "functions.h"
#include "kinds.h"

namespace kaoken::KAOKEN_ISA {

constexpr int64_t kTileVecs = kAttentionTile / kLanes;

// Keys and values of one sequence and head.
template <class Type, int64_t Dim>
struct HeadCache {
  using Element = typename Type::Element;
  Element *keys;
  int64_t positions;

  KAOKEN_MEMBER Element *values() const { return keys + positions * Dim; }
  KAOKEN_MEMBER float *key_scales() const { return reinterpret_cast<float *>(keys + 2 * positions * Dim); }
  KAOKEN_MEMBER float *value_scales() const { return key_scales() + positions; }
  KAOKEN_MEMBER int32_t *key_sums() const { return reinterpret_cast<int32_t *>(value_scales() + positions); }
};

// A block's cache; `before` is the bytes that a position of the blocks before takes.
template <class Type, int64_t Heads, int64_t HeadDim>
struct BlockCache {
  static constexpr int64_t kDim = round_up(HeadDim, kLanes);
  static constexpr int64_t kHeadBytes =
      2 * kDim * static_cast<int64_t>(sizeof(typename Type::Element)) + Type::kExtraBytes;
  uint8_t *block;
  int64_t positions;

  BlockCache(const Pass &pass, int64_t before)
      : block(static_cast<uint8_t *>(pass.cache) + before * pass.positions * pass.batch), positions(pass.positions) {}
  KAOKEN_MEMBER HeadCache<Type, kDim> head(int64_t sequence, int64_t head) const {
    uint8_t *begin = block + (sequence * Heads + head) * kHeadBytes * positions;
    return {reinterpret_cast<typename Type::Element *>(begin), positions};
  }
};

// Writes one position's key and value, Dim elements each, to their places.
template <class Type, int64_t Dim>
KAOKEN_INLINE void scatter_position(const HeadCache<Type, Dim> &cache, int64_t position,
                                    const typename Type::Element *key, const typename Type::Element *value) {
  constexpr int64_t step = Type::Step::kStep;
  auto *keys = cache.keys + position / kLanes * kLanes * Dim + position % kLanes * step;
  for (int64_t d = 0; d < Dim; d += step) __builtin_memcpy(keys + d * kLanes, key + d, step * sizeof *key);
  auto *values = cache.values() + position / step * step * kLanes + position % step;
  for (int64_t d = 0; d < Dim; d += kLanes) {
    for (int64_t lane = 0; lane < kLanes; ++lane) values[d * cache.positions + lane * step] = value[d + lane];
  }
}

// Each type below has
//   store<Dim>(cache, position, key, value): writes [Dim] floats into the cache
//   query<Dim>(q, out): a query as [kPlanes][Dim] inputs; returns the scale that `score` takes
//   score(sums, scale, cache, position): 16 scores from the sums of [kPlanes][kAttentionTile]
//   probabilities(p, cache, begin, out): a tile's as [kPlanes][kAttentionTile] inputs; returns what `value` takes
//   value<Dim>(sums, scale): 16 sums of values from those of [kPlanes][Dim]
// kExact says that a probability of zero leaves a sum as it is, whatever the value.

// What the caches whose sums are floats share.
struct FloatCache {
  static constexpr int kPlanes = 1;
  static constexpr int64_t kExtraBytes = 0;
  static constexpr bool kExact = false;

  template <class Cache>
  KAOKEN_INLINE Vec score(const float *sums, float, const Cache &, int64_t) {
    return load(sums);
  }
  template <int64_t Dim>
  KAOKEN_INLINE Vec value(const float *sums, float) {
    return load(sums);
  }
};

struct CacheFloat32 : FloatCache {
  using Element = float;
  using Step = Float32Step;

  template <int64_t Dim>
  KAOKEN_INLINE void store(const HeadCache<CacheFloat32, Dim> &cache, int64_t position, const float *key,
                           const float *value) {
    scatter_position(cache, position, key, value);
  }
  template <int64_t Dim>
  KAOKEN_INLINE float query(const float *q, float *out) {
    for (int64_t d = 0; d < Dim; d += kLanes) KAOKEN_ISA::store(out + d, load(q + d));
    return 1.0f;
  }
  template <int64_t Dim>
  KAOKEN_INLINE float probabilities(const Vec *p, const HeadCache<CacheFloat32, Dim> &, int64_t, float *out) {
    for (int64_t i = 0; i < kTileVecs; ++i) KAOKEN_ISA::store(out + i * kLanes, p[i]);
    return 1.0f;
  }
};

struct CacheBFloat16 : FloatCache {
  using Element = uint16_t;
  using Step = BFloat16Step;

  template <int64_t Dim>
  KAOKEN_INLINE void store(const HeadCache<CacheBFloat16, Dim> &cache, int64_t position, const float *key,
                           const float *value) {
    uint16_t rounded[2 * Dim];
    for (int64_t d = 0; d < Dim; d += kLanes) store_bfloat16(rounded + d, load(key + d));
    for (int64_t d = 0; d < Dim; d += kLanes) store_bfloat16(rounded + Dim + d, load(value + d));
    scatter_position(cache, position, rounded, rounded + Dim);
  }
  template <int64_t Dim>
  KAOKEN_INLINE float query(const float *q, uint16_t *out) {
    for (int64_t d = 0; d < Dim; d += kLanes) store_bfloat16(out + d, load(q + d));
    return 1.0f;
  }
  template <int64_t Dim>
  KAOKEN_INLINE float probabilities(const Vec *p, const HeadCache<CacheBFloat16, Dim> &, int64_t, uint16_t *out) {
    for (int64_t i = 0; i < kTileVecs; ++i) store_bfloat16(out + i * kLanes, p[i]);
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
  static constexpr float kMiddle = 8192.0f;    // what stands for a zero in a query

  template <int64_t Dim>
  KAOKEN_INLINE void store(const HeadCache<CacheInt8, Dim> &cache, int64_t position, const float *key,
                           const float *value) {
    int8_t rounded[2 * Dim];
    cache.key_scales()[position] = round<Dim>(key, rounded, cache.key_sums() + position);
    cache.value_scales()[position] = round<Dim>(value, rounded + Dim, nullptr);
    scatter_position(cache, position, rounded, rounded + Dim);
  }
  template <int64_t Dim>
  KAOKEN_INLINE float query(const float *q, uint8_t *out) {
    const float largest = largest_magnitude<Dim>(q);
    const float inverse = largest > kSmallest ? (kMiddle - 1) / largest : 0.0f;
    for (int64_t d = 0; d < Dim; d += kLanes) {
      store_planes(add(nearest(load(q + d), inverse), broadcast(kMiddle)), out + d, out + Dim + d);
    }
    return largest / (kMiddle - 1);
  }
  template <int64_t Dim>
  KAOKEN_INLINE Vec score(const int32_t *sums, float scale, const HeadCache<CacheInt8, Dim> &cache, int64_t position) {
    const Ints middle = mul(broadcast_int(static_cast<int32_t>(kMiddle)), load(cache.key_sums() + position));
    const Ints sum = sub(join_planes(sums, kAttentionTile), middle);
    return mul(to_float(sum), mul(broadcast(scale), load(cache.key_scales() + position)));
  }
  // Times the values' scales, so that what remains of a value is its integer.
  template <int64_t Dim>
  KAOKEN_INLINE float probabilities(const Vec *p, const HeadCache<CacheInt8, Dim> &cache, int64_t begin, uint8_t *out) {
    const Vec zero = broadcast(0.0f);
    Vec scaled[kTileVecs], most = zero;
    for (int64_t i = 0; i < kTileVecs; ++i) {
      const Vec product = mul(p[i], load(cache.value_scales() + begin + i * kLanes));
      scaled[i] = select_less(zero, p[i], product, zero);  // a masked position's scale may be anything
      most = max(scaled[i], most);
    }
    const float largest = reduce_max(most);
    const float inverse = largest > kSmallest ? kLargest / largest : 0.0f;
    for (int64_t i = 0; i < kTileVecs; ++i) {
      store_planes(min(nearest(scaled[i], inverse), broadcast(kLargest)), out + i * kLanes,
                   out + kAttentionTile + i * kLanes);
    }
    return largest / kLargest;
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
  KAOKEN_INLINE Vec nearest(Vec x, float factor) {
    const Vec round = broadcast(12582912.0f);  // 1.5 * 2^23: adding it rounds to an integer, ties to even
    return sub(fma(x, broadcast(factor), round), round);
  }
  // Symmetric, the largest magnitude at 127. Returns the scale.
  template <int64_t Dim>
  KAOKEN_INLINE float round(const float *x, int8_t *out, int32_t *total) {
    const float largest = largest_magnitude<Dim>(x);
    const float inverse = largest > kSmallest ? 127.0f / largest : 0.0f;
    Vec sum = broadcast(0.0f);
    for (int64_t d = 0; d < Dim; d += kLanes) {
      const Vec integers = nearest(load(x + d), inverse);
      sum = add(sum, integers);
      store_bytes(reinterpret_cast<uint8_t *>(out + d), integers);
    }
    if (total) *total = static_cast<int32_t>(reduce_add(sum));
    return largest / 127.0f;
  }
  // Integers from 0 to kLargest, as 128 high + low.
  KAOKEN_INLINE void store_planes(Vec integers, uint8_t *high, uint8_t *low) {
    const Vec upper = nearest(sub(integers, broadcast(63.5f)), 1.0f / 128);  // rounds down: no ties
    store_bytes(high, upper);
    store_bytes(low, fma(upper, broadcast(-128.0f), integers));
  }
  KAOKEN_INLINE Ints join_planes(const int32_t *sums, int64_t stride) {
    return add(mul(broadcast_int(128), load(sums)), load(sums + stride));
  }
};

}  // namespace kaoken::KAOKEN_ISA
