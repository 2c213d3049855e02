// 16 float lanes as four q registers; every AArch64 processor has them.
// Included by vector.h only, inside namespace kaoken::KAOKEN_ISA.

constexpr int kTileRows = 4;  // 4 x 4 accumulators, 4 weights and a broadcast in 32 registers
constexpr int kTilePanels = 1;
constexpr int kStreamPanels = 2;

struct Vec {
  float32x4_t a, b, c, d;
};

KAOKEN_INLINE Vec load(const float *p) { return {vld1q_f32(p), vld1q_f32(p + 4), vld1q_f32(p + 8), vld1q_f32(p + 12)}; }
KAOKEN_INLINE void store(float *p, Vec v) {
  vst1q_f32(p, v.a);
  vst1q_f32(p + 4, v.b);
  vst1q_f32(p + 8, v.c);
  vst1q_f32(p + 12, v.d);
}
KAOKEN_INLINE Vec broadcast(float x) {
  const float32x4_t q = vdupq_n_f32(x);
  return {q, q, q, q};
}
KAOKEN_INLINE Vec add(Vec x, Vec y) {
  return {vaddq_f32(x.a, y.a), vaddq_f32(x.b, y.b), vaddq_f32(x.c, y.c), vaddq_f32(x.d, y.d)};
}
KAOKEN_INLINE Vec sub(Vec x, Vec y) {
  return {vsubq_f32(x.a, y.a), vsubq_f32(x.b, y.b), vsubq_f32(x.c, y.c), vsubq_f32(x.d, y.d)};
}
KAOKEN_INLINE Vec mul(Vec x, Vec y) {
  return {vmulq_f32(x.a, y.a), vmulq_f32(x.b, y.b), vmulq_f32(x.c, y.c), vmulq_f32(x.d, y.d)};
}
KAOKEN_INLINE Vec div(Vec x, Vec y) {
  return {vdivq_f32(x.a, y.a), vdivq_f32(x.b, y.b), vdivq_f32(x.c, y.c), vdivq_f32(x.d, y.d)};
}
KAOKEN_INLINE Vec fma(Vec x, Vec y, Vec z) {
  return {vfmaq_f32(z.a, x.a, y.a), vfmaq_f32(z.b, x.b, y.b), vfmaq_f32(z.c, x.c, y.c), vfmaq_f32(z.d, x.d, y.d)};
}
KAOKEN_INLINE Vec max(Vec x, Vec y) {
  return {vmaxq_f32(x.a, y.a), vmaxq_f32(x.b, y.b), vmaxq_f32(x.c, y.c), vmaxq_f32(x.d, y.d)};
}
KAOKEN_INLINE Vec min(Vec x, Vec y) {
  return {vminq_f32(x.a, y.a), vminq_f32(x.b, y.b), vminq_f32(x.c, y.c), vminq_f32(x.d, y.d)};
}

// a < b ? x : y, lane by lane.
KAOKEN_INLINE Vec select_less(Vec a, Vec b, Vec x, Vec y) {
  return {vbslq_f32(vcltq_f32(a.a, b.a), x.a, y.a), vbslq_f32(vcltq_f32(a.b, b.b), x.b, y.b),
          vbslq_f32(vcltq_f32(a.c, b.c), x.c, y.c), vbslq_f32(vcltq_f32(a.d, b.d), x.d, y.d)};
}

// 2^n, with n in the low mantissa bits of `shifted` (see exp).
KAOKEN_INLINE float32x4_t exp2_of_shifted(float32x4_t shifted) {
  const int32x4_t exponent = vshlq_n_s32(vreinterpretq_s32_f32(shifted), 23);
  return vreinterpretq_f32_s32(vaddq_s32(exponent, vdupq_n_s32(0x3f800000)));
}
KAOKEN_INLINE Vec exp2_of_shifted(Vec shifted) {
  return {exp2_of_shifted(shifted.a), exp2_of_shifted(shifted.b), exp2_of_shifted(shifted.c),
          exp2_of_shifted(shifted.d)};
}

KAOKEN_INLINE float reduce_add(Vec v) {
  const float32x4_t q = vaddq_f32(vaddq_f32(v.a, v.c), vaddq_f32(v.b, v.d));
  return (vgetq_lane_f32(q, 0) + vgetq_lane_f32(q, 2)) + (vgetq_lane_f32(q, 1) + vgetq_lane_f32(q, 3));
}
KAOKEN_INLINE float reduce_max(Vec v) { return vmaxvq_f32(vmaxq_f32(vmaxq_f32(v.a, v.b), vmaxq_f32(v.c, v.d))); }
