// Rotary positions (Su et al., RoFormer, arXiv:2104.09864): the two halves of a head turned by each other.
#pragma once

#include "vector.h"

namespace kaoken::KAOKEN_ISA {

// table: [limit][2][Dim / 2], the cosines and sines of each pair's angle at a position.
struct Rotary {
  static constexpr bool kNone = false;
  const float *table;

  // x turned by its position into y, which may be x; returns y.
  template <int64_t Dim>
  KAOKEN_MEMBER const float *turn(const float *x, int64_t position, float *y) const {
    constexpr int64_t half = Dim / 2;
    static_assert(half % kLanes == 0);
    const float *cosines = table + position * Dim, *sines = cosines + half;
    for (int64_t i = 0; i < half; i += kLanes) {
      const Vec first = load(x + i), second = load(x + half + i);
      const Vec cosine = load(cosines + i), sine = load(sines + i);
      store(y + i, sub(mul(first, cosine), mul(second, sine)));
      store(y + half + i, add(mul(second, cosine), mul(first, sine)));
    }
    return y;
  }
};

// Of a model without.
struct NoRotary {
  static constexpr bool kNone = true;

  template <int64_t Dim>
  KAOKEN_MEMBER const float *turn(const float *x, int64_t, float *) const {
    return x;
  }
};

}  // namespace kaoken::KAOKEN_ISA
