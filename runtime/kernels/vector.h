// `Vec`, 16 float32 lanes, for the ISA that this file is compiled for.
//
// Every kernel is written once over Vec. KAOKEN_ISA names the ISA and its namespace; the build defines it for one
// object library per ISA, and the ISA's flags (cmake/isas.json) say which header is its and what that may use. Nothing
// here comes from the C++ library: an inline std:: function compiled with AVX-512 flags could be the copy that the
// linker keeps for everyone.
#pragma once

#include <stdint.h>

#if KAOKEN_AVX2 || KAOKEN_AVX512
#include <immintrin.h>
#elif KAOKEN_NEON
#include <arm_neon.h>
#elif !KAOKEN_SCALAR
#error "compile with -DKAOKEN_ISA=<isa> and the flags of one ISA of cmake/isas.json"
#endif

#define KAOKEN_INLINE static inline __attribute__((always_inline))
#define KAOKEN_MEMBER inline __attribute__((always_inline))
// A function of its own, of which g++ makes no copies for constant arguments.
#if defined(__clang__)
#define KAOKEN_OUTLINE __attribute__((noinline))
#else
#define KAOKEN_OUTLINE __attribute__((noinline, noclone))
#endif

namespace kaoken::KAOKEN_ISA {

constexpr int64_t kLanes = 16;

KAOKEN_INLINE float float_of_bits(uint32_t bits) {
  float x;
  __builtin_memcpy(&x, &bits, sizeof x);
  return x;
}

#if KAOKEN_AVX512
#include "isa/avx512.h"
#elif KAOKEN_AVX2
#include "isa/avx2.h"
#elif KAOKEN_NEON
#include "isa/neon.h"
#else
#include "isa/scalar.h"
#endif

constexpr int64_t round_up(int64_t n, int64_t step) { return (n + step - 1) / step * step; }

// Lane i holds i.
KAOKEN_INLINE Vec lane_numbers() {
  alignas(64) static constexpr float numbers[kLanes] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
  return load(numbers);
}

// The first `count` lanes of x, the rest of y; count may lie outside [0, 16].
KAOKEN_INLINE Vec select_first(int64_t count, Vec x, Vec y) {
  return select_less(lane_numbers(), broadcast(static_cast<float>(count)), x, y);
}

}  // namespace kaoken::KAOKEN_ISA
