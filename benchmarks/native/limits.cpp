// What the machine can do: a plain read of memory, and the multiply-adds of each type from the L1 cache alone.
#include "tile.h"
#include "timing.h"

using namespace kaoken;
using namespace kaoken::KAOKEN_ISA;

namespace {

constexpr int64_t kSteps = 64, kTurns = 256;
volatile int64_t unknown_zero = 0;  // or the compiler would make a copy of the tile that computes equal rows once

// The largest tile over inputs and a panel that stay in the L1 cache, again and again: nothing but its loads from there
// can hold the multiplications up. Returns the operations of a pass, two for each multiply-add.
template <class Step>
double time_multiplications(int64_t threads, int64_t passes, double *seconds) {
  constexpr int64_t sums = kTileRows * kTilePanels * kLanes;
  time_passes(threads, passes, seconds, [&](int64_t, const Worker &) {
    alignas(64) typename Step::Input x[kSteps * Step::kStep] = {};
    alignas(64) typename Step::Weight w[kSteps * Step::kStep * kLanes] = {};
    alignas(64) typename Step::Element out[sums];
    const int64_t zero = unknown_zero;
    for (int64_t turn = 0; turn < kTurns; ++turn) {
      tile<Step, kTileRows, kTilePanels>(x, zero, w, zero, kSteps + zero, out, kTilePanels * kLanes + zero, zero != 0);
      __asm__ volatile("" : : "r"(out) : "memory");
    }
  });
  return 2.0 * static_cast<double>(Step::kStep * sums * kSteps * kTurns * threads);
}

// The largest of `lines` lines at each of Streams places `stride` lines apart.
template <int... S>
KAOKEN_INLINE void read_streams(const float *from, int64_t lines, int64_t stride, Indices<S...>) {
  Vec largest[] = {broadcast(static_cast<float>(S))...};
  for (int64_t i = 0; i < lines; ++i) {
    ((largest[S] = max(largest[S], load(from + (i + S * stride) * kLanes))), ...);
  }
  alignas(64) float out[sizeof...(S) * kLanes];
  (store(out + S * kLanes, largest[S]), ...);
  __asm__ volatile("" : : "r"(out) : "memory");
}

template <int Streams>
double time_read(int64_t threads, const Buffer<float> &buffer, int64_t passes, double *seconds) {
  const int64_t lines = buffer.count / kLanes / Streams / threads;
  time_passes(threads, passes, seconds, [&](int64_t, const Worker &worker) {
    const float *own = buffer.data + worker.index * lines * Streams * kLanes;
    read_streams(own, lines, lines, UpTo<Streams>());
  });
  return static_cast<double>(lines * Streams * threads * kLanes * 4);
}

}  // namespace

// Reads `bytes` once a pass, each thread at 1, 2, 4 or 8 places side by side. Returns the bytes, in all.
EXPORT double limit_read(int64_t threads, int64_t bytes, int64_t streams, int64_t passes, double *seconds) {
  Buffer<float> buffer(bytes / 4);
  Random().fill(buffer);
  switch (streams) {
    case 1:
      return time_read<1>(threads, buffer, passes, seconds);
    case 2:
      return time_read<2>(threads, buffer, passes, seconds);
    case 4:
      return time_read<4>(threads, buffer, passes, seconds);
    default:
      return time_read<8>(threads, buffer, passes, seconds);
  }
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
