// 16 float lanes as four 4-lane vectors of the compiler's own: any processor, no intrinsics.
// Included by vector.h only, inside namespace kaoken::KAOKEN_ISA.

typedef float Lanes4 __attribute__((vector_size(16)));
typedef int32_t Ints4 __attribute__((vector_size(16)));

constexpr int kTileRows = 2;  // 2 x 4 accumulators and 4 weights in 16 registers
constexpr int kTilePanels = 1;
constexpr int kStreamPanels = 1;

struct Vec {
  Lanes4 q[4];
};

KAOKEN_INLINE Vec load(const float *p) {
  Vec v;
  __builtin_memcpy(&v, p, sizeof v);
  return v;
}
KAOKEN_INLINE void store(float *p, Vec v) { __builtin_memcpy(p, &v, sizeof v); }
KAOKEN_INLINE Vec broadcast(float x) {
  const Lanes4 q = {x, x, x, x};
  return {{q, q, q, q}};
}
KAOKEN_INLINE Vec add(Vec a, Vec b) { return {{a.q[0] + b.q[0], a.q[1] + b.q[1], a.q[2] + b.q[2], a.q[3] + b.q[3]}}; }
KAOKEN_INLINE Vec sub(Vec a, Vec b) { return {{a.q[0] - b.q[0], a.q[1] - b.q[1], a.q[2] - b.q[2], a.q[3] - b.q[3]}}; }
KAOKEN_INLINE Vec mul(Vec a, Vec b) { return {{a.q[0] * b.q[0], a.q[1] * b.q[1], a.q[2] * b.q[2], a.q[3] * b.q[3]}}; }
KAOKEN_INLINE Vec div(Vec a, Vec b) { return {{a.q[0] / b.q[0], a.q[1] / b.q[1], a.q[2] / b.q[2], a.q[3] / b.q[3]}}; }
// Rounds twice: fused multiply-add is not part of this ISA, and a software one would cost 20 times as much.
KAOKEN_INLINE Vec fma(Vec a, Vec b, Vec c) { return add(mul(a, b), c); }

// a < b ? x : y, lane by lane.
KAOKEN_INLINE Vec select_less(Vec a, Vec b, Vec x, Vec y) {
  Vec v;
  for (int i = 0; i < 4; ++i) {
    const Ints4 mask = a.q[i] < b.q[i];
    v.q[i] = (Lanes4)((mask & (Ints4)x.q[i]) | (~mask & (Ints4)y.q[i]));
  }
  return v;
}
KAOKEN_INLINE Vec max(Vec a, Vec b) { return select_less(a, b, b, a); }
KAOKEN_INLINE Vec min(Vec a, Vec b) { return select_less(b, a, b, a); }

// 2^n, with n in the low mantissa bits of `shifted` (see exp).
KAOKEN_INLINE Vec exp2_of_shifted(Vec shifted) {
  Vec v;
  for (int i = 0; i < 4; ++i) {
    const Ints4 one = {0x3f800000, 0x3f800000, 0x3f800000, 0x3f800000};
    v.q[i] = (Lanes4)(((Ints4)shifted.q[i] << 23) + one);
  }
  return v;
}

KAOKEN_INLINE float reduce_add(Vec v) {
  const Lanes4 q = (v.q[0] + v.q[2]) + (v.q[1] + v.q[3]);
  return (q[0] + q[2]) + (q[1] + q[3]);
}
KAOKEN_INLINE float reduce_max(Vec v) {
  float largest = v.q[0][0];
  for (int i = 0; i < 16; ++i) largest = v.q[i / 4][i % 4] > largest ? v.q[i / 4][i % 4] : largest;
  return largest;
}
