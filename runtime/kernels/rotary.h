// What becomes of a head's query or key before they meet: rotary positions (Su et al., RoFormer, arXiv:2104.09864), by
// which the two halves of a head are turned by each other, and norms (Henry et al., arXiv:2010.04245).
//
// Each type below has query<Dim>(x, position, y) and key<Dim>(x, position, y): x as it meets others, in y, which may be
// x, or x itself where nothing becomes of it.
#pragma once

#include "norm.h"

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
  template <int64_t Dim>
  KAOKEN_MEMBER const float *query(const float *x, int64_t position, float *y) const {
    return turn<Dim>(x, position, y);
  }
  template <int64_t Dim>
  KAOKEN_MEMBER const float *key(const float *x, int64_t position, float *y) const {
    return turn<Dim>(x, position, y);
  }
};

// Of a model without.
struct NoRotary {
  static constexpr bool kNone = true;

  template <int64_t Dim>
  KAOKEN_MEMBER const float *query(const float *x, int64_t, float *) const {
    return x;
  }
  template <int64_t Dim>
  KAOKEN_MEMBER const float *key(const float *x, int64_t, float *) const {
    return x;
  }
};

// An RMSNorm of each head, of which HeadDim values are no padding, and then what Turned makes of it.
template <class Turned, int64_t HeadDim>
struct NormedHeads {
  static constexpr bool kNone = false;
  Turned turned;
  const float *query_weight, *key_weight;  // [Dim], zeros in the padding
  float epsilon;

  template <int64_t Dim>
  KAOKEN_MEMBER const float *query(const float *x, int64_t position, float *y) const {
    rms_norm<HeadDim, Dim>(x, y, epsilon, query_weight, nullptr);
    return turned.template query<Dim>(y, position, y);
  }
  template <int64_t Dim>
  KAOKEN_MEMBER const float *key(const float *x, int64_t position, float *y) const {
    rms_norm<HeadDim, Dim>(x, y, epsilon, key_weight, nullptr);
    return turned.template key<Dim>(y, position, y);
  }
};

}  // namespace kaoken::KAOKEN_ISA
