// What the machine can do: a plain read of memory, and the multiply-adds of each type from registers alone.
#include "tile.h"
#include "timing.h"

using namespace kaoken;
using namespace kaoken::KAOKEN_ISA;

namespace {

// Sums that a core must keep in flight, as many as registers hold for the largest tile.
constexpr int kSums = kTileRows * kTilePanels;
constexpr int64_t kTurns = 1 << 14;  // of the loop between looks at the clock

template <class Step, class Sum, class X, class W, int... I>
KAOKEN_INLINE void multiply_all(Sum *sums, X x, W w, Indices<I...>) {
  ((sums[I] = Step::multiply(x, w, sums[I])), ...);
}

// kTurns * kSums multiplications of Step, from registers.
template <class Step>
__attribute__((noinline)) void multiply_registers(const typename Step::Input *x, const typename Step::Weight *w,
                                                  typename Step::Element *out) {
  decltype(Step::zero()) sums[kSums];
  set_zero<Step>(sums, UpTo<kSums>());
  const auto spread = Step::spread(x);
  const auto weights = Step::weights(w);
  for (int64_t turn = 0; turn < kTurns; ++turn) multiply_all<Step>(sums, spread, weights, UpTo<kSums>());
  store_tile<kSums>(sums, out, 0, UpTo<kSums>());
}

// Returns the operations of a pass, two for each multiply-add.
template <class Step>
double time_multiplications(int64_t threads, int64_t passes, double *seconds) {
  time_passes(threads, passes, seconds, [&](int64_t, const Worker &) {
    alignas(64) typename Step::Input x[64] = {};
    alignas(64) typename Step::Weight w[64] = {};
    alignas(64) typename Step::Element out[kSums * kLanes];
    multiply_registers<Step>(x, w, out);
    __asm__ volatile("" : : "r"(out) : "memory");
  });
  return 2.0 * static_cast<double>(Step::kStep * kLanes * kSums * kTurns * threads);
}

template <int... I>
KAOKEN_INLINE void add_lines(Vec *sums, const float *from, Indices<I...>) {
  ((sums[I] = max(sums[I], load(from + I * kLanes))), ...);
}

}  // namespace

// Reads `bytes` once a pass, in one stream a thread.
EXPORT double limit_read(int64_t threads, int64_t bytes, int64_t passes, double *seconds) {
  constexpr int lines = 4;
  Buffer<float> buffer(round_up(bytes / 4, lines * kLanes));
  Random().fill(buffer);
  time_passes(threads, passes, seconds, [&](int64_t, const Worker &worker) {
    const Share part = share(buffer.count / (lines * kLanes), worker);
    Vec sums[lines];
    for (Vec &sum : sums) sum = broadcast(0.0f);
    for (int64_t i = part.begin; i < part.end; ++i) add_lines(sums, buffer.data + i * lines * kLanes, UpTo<lines>());
    for (const Vec &sum : sums) {
      alignas(64) float out[kLanes];
      store(out, sum);
      __asm__ volatile("" : : "r"(out) : "memory");
    }
  });
  return static_cast<double>(buffer.count * 4);
}

EXPORT double limit_float32(int64_t threads, int64_t, int64_t passes, double *seconds) {
  return time_multiplications<Float32Step>(threads, passes, seconds);
}
EXPORT double limit_bfloat16(int64_t threads, int64_t, int64_t passes, double *seconds) {
  return time_multiplications<BFloat16Step>(threads, passes, seconds);
}
EXPORT double limit_int8(int64_t threads, int64_t, int64_t passes, double *seconds) {
  return time_multiplications<Int8Step>(threads, passes, seconds);
}
