// What choosing a token does to all logits of a row: see SamplingCode in kaoken/pass.h. A row may have any length.
#pragma once

#include "functions.h"
#include "kaoken/pass.h"

namespace kaoken::KAOKEN_ISA {

// The 16 values from i on, with `rest` in place of those from `count` on.
KAOKEN_INLINE Vec load_within(const float *x, int64_t i, int64_t count, float rest) {
  if (i + kLanes <= count) return load(x + i);
  alignas(kAlignment) float lanes[kLanes];
  for (int64_t lane = 0; lane < kLanes; ++lane) lanes[lane] = i + lane < count ? x[i + lane] : rest;
  return load(lanes);
}

KAOKEN_INLINE void store_within(float *x, int64_t i, int64_t count, Vec v) {
  if (i + kLanes <= count) return store(x + i, v);
  alignas(kAlignment) float lanes[kLanes];
  store(lanes, v);
  for (int64_t lane = 0; i + lane < count; ++lane) x[i + lane] = lanes[lane];
}

// Comparing instead of max(), which some ISAs let a NaN pass through.
inline void block_maxima(const float *logits, int64_t count, int64_t first, int64_t end, float *maxima) {
  for (int64_t block = first; block < end; ++block) {
    Vec largest = broadcast(-__builtin_inff());
    for (int64_t i = block * kSampleBlock; i < (block + 1) * kSampleBlock && i < count; i += kLanes) {
      const Vec x = load_within(logits, i, count, -__builtin_inff());
      largest = select_less(largest, x, x, largest);
    }
    maxima[block] = reduce_max(largest);
  }
}

// x[i] = Function(x[i]), 0 behind the end; sums[b] = the sum over block b.
template <class Function>
KAOKEN_INLINE void map_and_sum(float *x, int64_t count, int64_t first, int64_t end, float *sums, Function function) {
  for (int64_t block = first; block < end; ++block) {
    Vec sum = broadcast(0.0f);
    for (int64_t i = block * kSampleBlock; i < (block + 1) * kSampleBlock && i < count; i += kLanes) {
      const Vec y = function(load_within(x, i, count, -__builtin_inff()));
      store_within(x, i, count, y);
      sum = add(sum, y);
    }
    sums[block] = reduce_add(sum);
  }
}

inline void weigh(float *logits, int64_t count, int64_t first, int64_t end, float largest, float scale, float *sums) {
  const Vec zero = broadcast(0.0f), top = broadcast(largest), factor = broadcast(scale * kLog2E);
  map_and_sum(logits, count, first, end, sums, [&](Vec x) {
    const Vec weight = exp2(mul(sub(x, top), factor));
    return select_less(zero, weight, weight, zero);  // a NaN is less than nothing
  });
}

inline int64_t count_from(const float *weights, int64_t count, float least) {
  const Vec zero = broadcast(0.0f), one = broadcast(1.0f), bound = broadcast(least);
  Vec counts[] = {zero, zero};  // each lane within 2^24, where floats count
  for (int64_t i = 0; i < count; i += 2 * kLanes) {
    for (int chain = 0; chain < 2; ++chain) {
      const int64_t at = i + chain * kLanes;
      if (at >= count) break;
      counts[chain] = add(counts[chain], select_less(load_within(weights, at, count, -1.0f), bound, zero, one));
    }
  }
  return static_cast<int64_t>(reduce_add(add(counts[0], counts[1])));
}

inline void keep(float *weights, int64_t count, int64_t first, int64_t end, float least, float *sums) {
  const Vec zero = broadcast(0.0f), bound = broadcast(least);
  map_and_sum(weights, count, first, end, sums,
              [&](Vec x) { return select_less(x, bound, zero, select_less(zero, x, x, zero)); });
}

}  // namespace kaoken::KAOKEN_ISA
