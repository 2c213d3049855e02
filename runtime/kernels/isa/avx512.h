// 16 float lanes as one zmm register; needs AVX-512 F, BW, DQ and VL.
// Included by vector.h only, inside namespace kaoken::KAOKEN_ISA.

constexpr int kTileRows = 8;  // 8 x 3 accumulators, 3 weights and a broadcast in 32 registers
constexpr int kTilePanels = 3;
constexpr int kStreamPanels = 4;

struct Vec {
  __m512 v;
};

KAOKEN_INLINE Vec load(const float *p) { return {_mm512_loadu_ps(p)}; }
KAOKEN_INLINE void store(float *p, Vec v) { _mm512_storeu_ps(p, v.v); }
KAOKEN_INLINE Vec broadcast(float x) { return {_mm512_set1_ps(x)}; }
KAOKEN_INLINE Vec add(Vec a, Vec b) { return {_mm512_add_ps(a.v, b.v)}; }
KAOKEN_INLINE Vec sub(Vec a, Vec b) { return {_mm512_sub_ps(a.v, b.v)}; }
KAOKEN_INLINE Vec mul(Vec a, Vec b) { return {_mm512_mul_ps(a.v, b.v)}; }
KAOKEN_INLINE Vec div(Vec a, Vec b) { return {_mm512_div_ps(a.v, b.v)}; }
KAOKEN_INLINE Vec fma(Vec a, Vec b, Vec c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }
KAOKEN_INLINE Vec max(Vec a, Vec b) { return {_mm512_max_ps(a.v, b.v)}; }
KAOKEN_INLINE Vec min(Vec a, Vec b) { return {_mm512_min_ps(a.v, b.v)}; }

// a < b ? x : y, lane by lane.
KAOKEN_INLINE Vec select_less(Vec a, Vec b, Vec x, Vec y) {
  return {_mm512_mask_blend_ps(_mm512_cmp_ps_mask(a.v, b.v, _CMP_LT_OQ), y.v, x.v)};
}

// 2^n, with n in the low mantissa bits of `shifted` (see exp).
KAOKEN_INLINE Vec exp2_of_shifted(Vec shifted) {
  const __m512i exponent = _mm512_slli_epi32(_mm512_castps_si512(shifted.v), 23);
  return {_mm512_castsi512_ps(_mm512_add_epi32(exponent, _mm512_set1_epi32(0x3f800000)))};
}

// Halves are combined by hand: the order of _mm512_reduce_add_ps is the compiler's choice.
KAOKEN_INLINE float reduce_add(Vec v) {
  const __m256 sum8 = _mm256_add_ps(_mm512_castps512_ps256(v.v), _mm512_extractf32x8_ps(v.v, 1));
  const __m128 sum4 = _mm_add_ps(_mm256_castps256_ps128(sum8), _mm256_extractf128_ps(sum8, 1));
  const __m128 sum2 = _mm_add_ps(sum4, _mm_movehl_ps(sum4, sum4));
  return _mm_cvtss_f32(_mm_add_ss(sum2, _mm_shuffle_ps(sum2, sum2, 1)));
}
KAOKEN_INLINE float reduce_max(Vec v) { return _mm512_reduce_max_ps(v.v); }
