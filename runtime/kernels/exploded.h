// Matrices that are code: see codegen/exploded.py.
#pragma once

#include "kinds.h"
#include "share.h"

namespace kaoken::KAOKEN_ISA {

constexpr int64_t kStripPanels = 4;

// The `panels` panels from `first` on: run() computes their sums for one row of inputs.
struct Strip {
  void (*run)(const float *x, float *sums);
  int32_t first, panels;
};

// Inputs as float32 kernels have them.
struct Exploded : Float32 {
  static constexpr bool kExploded = true;
  struct Matrix {
    const Strip *strips;
    int64_t count;
  };
};

// One step of a chain, rounded as Vec's fma rounds.
KAOKEN_INLINE float fma(float x, float w, float sum) {
#if KAOKEN_SCALAR
  return x * w + sum;
#else
  return __builtin_fmaf(x, w, sum);
#endif
}

// Between chains, so that the compiler reads x again rather than keep all of it on the stack.
KAOKEN_INLINE void next_chains() { __asm__ volatile("" ::: "memory"); }

// What linear() of linear.h does with them; workers divide the strips, and a strip's code serves all rows before the
// next is fetched.
template <class Kind, int64_t Depth, class Epilogue>
void run_strips(const Worker &worker, const typename Kind::Input *x, int64_t rows, const typename Kind::Matrix &w,
                const Epilogue &epilogue) {
  alignas(kAlignment) float sums[kStripPanels * kLanes];
  const Share strips = share(w.count, worker);
  for (int64_t i = strips.begin; i < strips.end; ++i) {
    const Strip &strip = w.strips[i];
    for (int64_t row = 0; row < rows; ++row) {
      strip.run(x + row * Kind::row_stride(Depth), sums);
      for (int64_t p = 0; p < strip.panels; ++p) epilogue(row, strip.first + p, load(sums + p * kLanes));
    }
  }
}

}  // namespace kaoken::KAOKEN_ISA
