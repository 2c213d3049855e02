// exp2, exp, tanh, erf and the activations, 16 lanes at a time. The errors stated here are checked by
// tests/test_kernels.py.
#pragma once

#include "vector.h"

namespace kaoken::KAOKEN_ISA {

// c[0] + x (c[1] + x (c[2] + ...))
template <int N>
KAOKEN_INLINE Vec polynomial(Vec x, const float (&c)[N]) {
  Vec y = broadcast(c[N - 1]);
#pragma GCC unroll 8
  for (int i = N - 2; i >= 0; --i) y = fma(x, y, broadcast(c[i]));
  return y;
}

// 2^x within 2 ulp for x in [-126, 127.4]; 0 below, or a denormal, which the runtime flushes; above, 2^127 at least,
// and infinity from 2^128 on.
// 2^n 2^r with n the nearest integer and, on |r| <= 1/2, the polynomial 1 + c r + ... of degree 5 of the least largest
// relative error, 0.93e-7.
KAOKEN_INLINE Vec exp2(Vec x) {
  const Vec bounded = max(broadcast(kLowestExponent), x);
  const Vec n = nearest(bounded);
  constexpr float minimax[] = {1.0f, 0.693147004f, 0.240222469f, 0.0555071086f, 0.00967129227f, 0.00132695341f};
  return scale_exponent(polynomial(sub(bounded, n), minimax), n);
}

constexpr float kLog2E = 1.44269504f;
// e^x, of the relative error (2 + |x|) 2^-23: the exponent is rounded.
KAOKEN_INLINE Vec exp(Vec x) { return exp2(mul(x, broadcast(kLog2E))); }

// x / (1 + 2^y), which is 0 from y = 128 on where x is finite.
KAOKEN_INLINE Vec damped(Vec x, Vec y) { return div(x, add(broadcast(1.0f), exp2(min(broadcast(128.0f), y)))); }

// tanh within 6e-7: Taylor where |x| < 0.3, (1 - e^-2|x|) / (1 + e^-2|x|) with the sign elsewhere.
KAOKEN_INLINE Vec tanh(Vec x) {
  const Vec zero = broadcast(0.0f);
  const Vec one = broadcast(1.0f);
  const Vec minus = sub(zero, x);
  const Vec e = exp(mul(broadcast(-2.0f), max(x, minus)));
  const Vec far = div(sub(one, e), add(one, e));
  const Vec square = mul(x, x);
  constexpr float taylor[] = {1.0f, -1.0f / 3, 2.0f / 15, -17.0f / 315, 62.0f / 2835, -1382.0f / 155925};
  const Vec near = mul(x, polynomial(square, taylor));
  const Vec signed_far = select_less(x, zero, sub(zero, far), far);
  return select_less(square, broadcast(0.09f), near, signed_far);
}

// erf within 6e-7. Abramowitz and Stegun, Handbook of Mathematical Functions, 7.1.26.
KAOKEN_INLINE Vec erf(Vec x) {
  const Vec zero = broadcast(0.0f);
  const Vec one = broadcast(1.0f);
  const Vec size = max(x, sub(zero, x));
  const Vec t = div(one, fma(size, broadcast(0.3275911f), one));
  constexpr float series[] = {0.0f, 0.254829592f, -0.284496736f, 1.421413741f, -1.453152027f, 1.061405429f};
  const Vec tail = mul(polynomial(t, series), exp(mul(size, sub(zero, size))));
  const Vec y = sub(one, tail);
  return select_less(x, zero, sub(zero, y), y);
}

// One struct for each activation of ACTIVATIONS in codegen/families/fields.py. Each maps 0 to 0, so padding stays 0.
// 0.5 x (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))), as x sigmoid(2 ...): one exponential, no cancellation.
// Hendrycks and Gimpel, arXiv:1606.08415; gelu_new and gelu_pytorch_tanh of transformers.
struct gelu_tanh_activation {
  KAOKEN_INLINE Vec apply(Vec x) {
    const Vec cubic = fma(mul(x, x), broadcast(-0.0713548162726f * kLog2E), broadcast(-1.59576912161f * kLog2E));
    return damped(x, mul(x, cubic));
  }
};

// 0.5 x (1 + erf(x / sqrt 2))
struct gelu_erf_activation {
  KAOKEN_INLINE Vec apply(Vec x) {
    const Vec half = broadcast(0.5f);
    return mul(x, fma(half, erf(mul(x, broadcast(0.707106781f))), half));
  }
};

struct relu_activation {
  KAOKEN_INLINE Vec apply(Vec x) { return max(broadcast(0.0f), x); }  // in this order a NaN stays
};

struct silu_activation {
  KAOKEN_INLINE Vec apply(Vec x) { return damped(x, mul(x, broadcast(-kLog2E))); }
};

struct no_activation {
  KAOKEN_INLINE Vec apply(Vec x) { return x; }
};

struct tanh_activation {
  KAOKEN_INLINE Vec apply(Vec x) { return tanh(x); }
};

}  // namespace kaoken::KAOKEN_ISA
