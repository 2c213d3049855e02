// 16 float lanes as one zmm register; needs AVX-512 F, BW, DQ and VL, and uses VNNI and BF16 where the ISA has them.
// Included by vector.h only, inside namespace kaoken::KAOKEN_ISA.

// Rows and panels of a tile: accumulators, weights and an input in 32 registers.
constexpr int kTileRows = 8, kTilePanels = 3;
constexpr int kGroupRows = 4, kGroupPanels = 3;  // the same with two sets of accumulators
constexpr bool kGroupSumsInRegisters = true;
constexpr int kNibbleRows = 8;
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

// To integers, ties to even.
KAOKEN_INLINE Vec nearest(Vec v) { return {_mm512_roundscale_ps(v.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)}; }

constexpr float kLowestExponent = -150.0f;  // 2^-150 is 0
// y * 2^n for integers n from kLowestExponent on.
KAOKEN_INLINE Vec scale_exponent(Vec y, Vec n) { return {_mm512_scalef_ps(y.v, n.v)}; }

// Halves are combined by hand: the order of _mm512_reduce_add_ps is the compiler's choice.
KAOKEN_INLINE float reduce_add(Vec v) {
  const __m256 sum8 = _mm256_add_ps(_mm512_castps512_ps256(v.v), _mm512_extractf32x8_ps(v.v, 1));
  const __m128 sum4 = _mm_add_ps(_mm256_castps256_ps128(sum8), _mm256_extractf128_ps(sum8, 1));
  const __m128 sum2 = _mm_add_ps(sum4, _mm_movehl_ps(sum4, sum4));
  return _mm_cvtss_f32(_mm_add_ss(sum2, _mm_shuffle_ps(sum2, sum2, 1)));
}
KAOKEN_INLINE float reduce_max(Vec v) { return _mm512_reduce_max_ps(v.v); }

// Integer sums.

struct Ints {
  __m512i v;
};

KAOKEN_INLINE Ints load(const int32_t *p) { return {_mm512_loadu_si512(p)}; }
KAOKEN_INLINE void store(int32_t *p, Ints v) { _mm512_storeu_si512(p, v.v); }
KAOKEN_INLINE void keep_in_register(Ints &v) { __asm__("" : "+v"(v.v)); }
KAOKEN_INLINE Ints broadcast_int(int32_t x) { return {_mm512_set1_epi32(x)}; }
KAOKEN_INLINE Ints add(Ints a, Ints b) { return {_mm512_add_epi32(a.v, b.v)}; }
KAOKEN_INLINE Ints sub(Ints a, Ints b) { return {_mm512_sub_epi32(a.v, b.v)}; }
KAOKEN_INLINE Ints mul(Ints a, Ints b) { return {_mm512_mullo_epi32(a.v, b.v)}; }
KAOKEN_INLINE Ints bit_and(Ints a, Ints b) { return {_mm512_and_si512(a.v, b.v)}; }
KAOKEN_INLINE Ints bit_or(Ints a, Ints b) { return {_mm512_or_si512(a.v, b.v)}; }
template <int Bits>
KAOKEN_INLINE Ints shift_left(Ints v) {
  return {_mm512_slli_epi32(v.v, Bits)};
}
template <int Bits>
KAOKEN_INLINE Ints shift_right(Ints v) {
  return {_mm512_srai_epi32(v.v, Bits)};
}
KAOKEN_INLINE Vec to_float(Ints v) { return {_mm512_cvtepi32_ps(v.v)}; }
// The nearest, ties to even.
KAOKEN_INLINE Ints to_int(Vec v) { return {_mm512_cvtps_epi32(v.v)}; }

// Narrow numbers in memory.

// float16
KAOKEN_INLINE Vec load_half(const uint16_t *p) {
  return {_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i *>(p)))};
}
// Rounds to nearest, ties to even.
KAOKEN_INLINE void store_bfloat16(uint16_t *p, Vec v) {
  const __m512i bits = _mm512_castps_si512(v.v);
  const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
  const __m512i rounded = _mm512_add_epi32(_mm512_add_epi32(bits, _mm512_set1_epi32(0x7fff)), odd);
  _mm256_storeu_si256(reinterpret_cast<__m256i *>(p), _mm512_cvtepi32_epi16(_mm512_srli_epi32(rounded, 16)));
}
// The low byte of each lane.
KAOKEN_INLINE void store_bytes(uint8_t *p, Ints v) {
  _mm_storeu_si128(reinterpret_cast<__m128i *>(p), _mm512_cvtepi32_epi8(v.v));
}

// Two bfloat16 products a lane; first_of and second_of leave one.

KAOKEN_INLINE __m512i spread_word(const void *p) {
  int32_t word;
  __builtin_memcpy(&word, p, sizeof word);
  return _mm512_set1_epi32(word);
}

#if KAOKEN_AVX512_BF16
struct Pairs {
  __m512bh v;
};
KAOKEN_INLINE Pairs load_pairs(const uint16_t *p) { return {(__m512bh)_mm512_loadu_si512(p)}; }
KAOKEN_INLINE Pairs spread_pair(const uint16_t *p) { return {(__m512bh)spread_word(p)}; }
KAOKEN_INLINE Pairs first_of(Pairs w) { return {(__m512bh)_mm512_and_si512((__m512i)w.v, _mm512_set1_epi32(0xffff))}; }
KAOKEN_INLINE Pairs second_of(Pairs w) {
  return {(__m512bh)_mm512_and_si512((__m512i)w.v, _mm512_set1_epi32(-0x10000))};
}
KAOKEN_INLINE Vec dot(Pairs x, Pairs w, Vec sum) { return {_mm512_dpbf16_ps(sum.v, x.v, w.v)}; }
#else
struct Pairs {
  Vec even, odd;
};
KAOKEN_INLINE Pairs widen(__m512i words) {
  return {{_mm512_castsi512_ps(_mm512_slli_epi32(words, 16))},
          {_mm512_castsi512_ps(_mm512_and_si512(words, _mm512_set1_epi32(-0x10000)))}};
}
KAOKEN_INLINE Pairs load_pairs(const uint16_t *p) { return widen(_mm512_loadu_si512(p)); }
KAOKEN_INLINE Pairs spread_pair(const uint16_t *p) { return widen(spread_word(p)); }
KAOKEN_INLINE Pairs first_of(Pairs w) { return {w.even, broadcast(0.0f)}; }
KAOKEN_INLINE Pairs second_of(Pairs w) { return {broadcast(0.0f), w.odd}; }
KAOKEN_INLINE Vec dot(Pairs x, Pairs w, Vec sum) { return fma(x.odd, w.odd, fma(x.even, w.even, sum)); }
#endif

// Four int8 products a lane. What attends is stored as unsigned bytes less kInputOffset. Inputs of matrices are signed,
// and their weights are bytes in which kWeightZero stands for 0, once load_weights() has them.

struct Bytes {
  __m512i v;
};
KAOKEN_INLINE Bytes load_bytes(const int8_t *p) { return {_mm512_loadu_si512(p)}; }

#if KAOKEN_AVX512_VNNI
constexpr int kInputOffset = 0;
using Quad = Bytes;
KAOKEN_INLINE Quad spread_quad(const uint8_t *p) { return {spread_word(p)}; }
KAOKEN_INLINE Ints dot(Quad x, Bytes w, Ints sum) { return {_mm512_dpbusd_epi32(sum.v, x.v, w.v)}; }
constexpr int kWeightZero = 128;
KAOKEN_INLINE Bytes load_weights(const uint8_t *p) { return {_mm512_loadu_si512(p)}; }
KAOKEN_INLINE Ints dot_weights(Quad x, Bytes w, Ints sum) { return {_mm512_dpbusd_epi32(sum.v, w.v, x.v)}; }
#else
// vpmaddubsw takes one unsigned side and saturates at 16 bits: with the sign of x moved to w, two products reach
// 2 * 128 * 127 at most.
constexpr int kInputOffset = 128;
struct Quad {
  __m512i size;
  __mmask64 negative;
};
KAOKEN_INLINE Quad spread_quad(const uint8_t *p) {
  const __m512i x = spread_word(p);
  return {_mm512_abs_epi8(x), _mm512_movepi8_mask(x)};
}
KAOKEN_INLINE Ints dot(Quad x, Bytes w, Ints sum) {
  const __m512i turned = _mm512_mask_sub_epi8(w.v, x.negative, _mm512_setzero_si512(), w.v);
  const __m512i pairs = _mm512_maddubs_epi16(x.size, turned);
  return {_mm512_add_epi32(sum.v, _mm512_madd_epi16(pairs, _mm512_set1_epi16(1)))};
}
constexpr int kWeightZero = 0;
KAOKEN_INLINE Bytes load_weights(const uint8_t *p) {
  return {_mm512_xor_si512(_mm512_loadu_si512(p), _mm512_set1_epi8(-128))};
}
KAOKEN_INLINE Ints dot_weights(Quad x, Bytes w, Ints sum) { return dot(x, w, sum); }
#endif

// 64 integers as the signed or the unsigned bytes nearest to them.
template <bool Signed>
KAOKEN_INLINE void pack_bytes(uint8_t *p, Ints a, Ints b, Ints c, Ints d) {
  const __m512i ab = _mm512_packs_epi32(a.v, b.v), cd = _mm512_packs_epi32(c.v, d.v);  // within 128-bit lanes
  const __m512i bytes = Signed ? _mm512_packs_epi16(ab, cd) : _mm512_packus_epi16(ab, cd);
  const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
  _mm512_storeu_si512(p, _mm512_permutexvar_epi32(order, bytes));
}

// 64 bytes of two int4 each, as unsigned bytes: the low nibbles, then the high ones.

struct Nibbles {
  Bytes low, high;
};
KAOKEN_INLINE Nibbles load_nibbles(const uint8_t *p) {
  const __m512i both = _mm512_loadu_si512(p), mask = _mm512_set1_epi8(15);
  return {{_mm512_and_si512(both, mask)}, {_mm512_and_si512(_mm512_srli_epi16(both, 4), mask)}};
}
KAOKEN_INLINE Bytes load_unpacked(const uint8_t *p) { return {_mm512_loadu_si512(p)}; }
KAOKEN_INLINE void store(uint8_t *p, Bytes v) { _mm512_storeu_si512(p, v.v); }
