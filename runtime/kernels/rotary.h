// What becomes of a head's query or key before they meet: rotary positions (Su et al., RoFormer, arXiv:2104.09864), by
// which the two halves of a head are turned by each other, and norms (Henry et al., arXiv:2010.04245).
//
// Each type below has query<Dim>(x, position, y) and key<Dim>(x, position, y): x as it meets others, in y, which may be
// x, or x itself where nothing becomes of it. With kNormsRows it also has norm_queries() and norm_keys(), of all heads.
#pragma once

#include "kaoken/pass.h"
#include "norm.h"

namespace kaoken::KAOKEN_ISA {

// The angles of a position's pairs are those of position % kPage and of the multiple of kPage below it, added:
//
//   cos(a + b) = cos a cos b - sin a sin b        sin(a + b) = sin a cos b + cos a sin b
//
// Each cosine and sine c is a head h, which is c rounded to a multiple of 2^-11, and a rest r = c - h. Products of
// heads and their sums are exact, and the others are so small that their rounding does not show. So a result is the
// float32 nearest to the exact value, but for 1 in 600 of them, which is its neighbour; and with no instruction that an
// ISA may lack, it is the same everywhere.
struct Rotary {
  static constexpr bool kNone = false, kNormsRows = false;
  // Rows [4][Dim / 2] of heads and rests of cosines, heads and rests of sines: kPage rows of positions 0, 1, ..., then
  // rows of positions 0, kPage, 2 kPage, ...
  const float *table;

  struct Value {
    Vec head, rest;
    KAOKEN_MEMBER Value(const float *row, int64_t half) : head(load(row)), rest(load(row + half)) {}
  };

  // x y without the product of their heads.
  KAOKEN_INLINE Vec rest(const Value &x, const Value &y) {
    return add(mul(x.head, y.rest), mul(x.rest, add(y.head, y.rest)));
  }

  // x turned by its position into y, which may be x; returns y.
  template <int64_t Dim>
  KAOKEN_MEMBER const float *turn(const float *x, int64_t position, float *y) const {
    constexpr int64_t half = Dim / 2;
    static_assert(half % kLanes == 0);
    const float *fine = table + position % kPage * 4 * half;
    const float *coarse = table + (kPage + position / kPage) * 4 * half;
    for (int64_t i = 0; i < half; i += kLanes) {
      const Value cos_a(coarse + i, half), sin_a(coarse + 2 * half + i, half);
      const Value cos_b(fine + i, half), sin_b(fine + 2 * half + i, half);
      const Vec cosine = add(sub(mul(cos_a.head, cos_b.head), mul(sin_a.head, sin_b.head)),
                             sub(rest(cos_a, cos_b), rest(sin_a, sin_b)));
      const Vec sine = add(add(mul(sin_a.head, cos_b.head), mul(cos_a.head, sin_b.head)),
                           add(rest(sin_a, cos_b), rest(cos_a, sin_b)));
      const Vec first = load(x + i), second = load(x + half + i);
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
  static constexpr bool kNone = true, kNormsRows = false;

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
  static constexpr bool kNone = false, kNormsRows = false;
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

// An RMSNorm of all queries of a row together and one of all its keys (OLMo 2, arXiv:2501.00656), of which Queries and
// Keys values are no padding, and then what Turned makes of each head.
template <class Turned, int64_t Queries, int64_t Keys>
struct NormedRows : Turned {
  static constexpr bool kNone = false, kNormsRows = true;
  const float *query_weight, *key_weight;  // of all heads, zeros in their padding
  float epsilon;

  // Padded floats from x to y, which may be x.
  template <int64_t Padded>
  KAOKEN_MEMBER void norm_queries(const float *x, float *y) const {
    rms_norm<Queries, Padded>(x, y, epsilon, query_weight, nullptr);
  }
  template <int64_t Padded>
  KAOKEN_MEMBER void norm_keys(const float *x, float *y) const {
    rms_norm<Keys, Padded>(x, y, epsilon, key_weight, nullptr);
  }
};

}  // namespace kaoken::KAOKEN_ISA
