// 16 float lanes as two ymm registers; needs AVX2, FMA and F16C, and uses AVX-VNNI where the ISA has it.
// Included by vector.h only, inside namespace kaoken::KAOKEN_ISA.

// Rows and panels of a tile: accumulators, weights and an input in 16 registers.
constexpr int kTileRows = 6, kTilePanels = 1;
constexpr int kGroupRows = 6, kGroupPanels = 1;
constexpr bool kGroupSumsInRegisters = false;
constexpr int kNibbleRows = 2;
constexpr int kStreamPanels = 4;

struct Vec {
  __m256 low, high;
};

KAOKEN_INLINE Vec load(const float *p) { return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
KAOKEN_INLINE void store(float *p, Vec v) {
  _mm256_storeu_ps(p, v.low);
  _mm256_storeu_ps(p + 8, v.high);
}
KAOKEN_INLINE Vec broadcast(float x) { return {_mm256_set1_ps(x), _mm256_set1_ps(x)}; }
KAOKEN_INLINE Vec add(Vec a, Vec b) { return {_mm256_add_ps(a.low, b.low), _mm256_add_ps(a.high, b.high)}; }
KAOKEN_INLINE Vec sub(Vec a, Vec b) { return {_mm256_sub_ps(a.low, b.low), _mm256_sub_ps(a.high, b.high)}; }
KAOKEN_INLINE Vec mul(Vec a, Vec b) { return {_mm256_mul_ps(a.low, b.low), _mm256_mul_ps(a.high, b.high)}; }
KAOKEN_INLINE Vec div(Vec a, Vec b) { return {_mm256_div_ps(a.low, b.low), _mm256_div_ps(a.high, b.high)}; }
KAOKEN_INLINE Vec fma(Vec a, Vec b, Vec c) {
  return {_mm256_fmadd_ps(a.low, b.low, c.low), _mm256_fmadd_ps(a.high, b.high, c.high)};
}
KAOKEN_INLINE Vec max(Vec a, Vec b) { return {_mm256_max_ps(a.low, b.low), _mm256_max_ps(a.high, b.high)}; }
KAOKEN_INLINE Vec min(Vec a, Vec b) { return {_mm256_min_ps(a.low, b.low), _mm256_min_ps(a.high, b.high)}; }

// a < b ? x : y, lane by lane.
KAOKEN_INLINE Vec select_less(Vec a, Vec b, Vec x, Vec y) {
  return {_mm256_blendv_ps(y.low, x.low, _mm256_cmp_ps(a.low, b.low, _CMP_LT_OQ)),
          _mm256_blendv_ps(y.high, x.high, _mm256_cmp_ps(a.high, b.high, _CMP_LT_OQ))};
}

// To integers, ties to even.
KAOKEN_INLINE __m256 nearest(__m256 v) { return _mm256_round_ps(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
KAOKEN_INLINE Vec nearest(Vec v) { return {nearest(v.low), nearest(v.high)}; }

constexpr float kLowestExponent = -127.0f;
// y * 2^n for integers n from kLowestExponent, where it is 0, on; infinity from n = 128 on.
KAOKEN_INLINE __m256 scale_exponent(__m256 y, __m256 n) {
  const __m256 biased = _mm256_min_ps(_mm256_add_ps(n, _mm256_set1_ps(127.0f)), _mm256_set1_ps(255.0f));
  return _mm256_mul_ps(y, _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtps_epi32(biased), 23)));
}
KAOKEN_INLINE Vec scale_exponent(Vec y, Vec n) {
  return {scale_exponent(y.low, n.low), scale_exponent(y.high, n.high)};
}

KAOKEN_INLINE float reduce_add(Vec v) {
  const __m256 sum8 = _mm256_add_ps(v.low, v.high);
  const __m128 sum4 = _mm_add_ps(_mm256_castps256_ps128(sum8), _mm256_extractf128_ps(sum8, 1));
  const __m128 sum2 = _mm_add_ps(sum4, _mm_movehl_ps(sum4, sum4));
  return _mm_cvtss_f32(_mm_add_ss(sum2, _mm_shuffle_ps(sum2, sum2, 1)));
}
KAOKEN_INLINE float reduce_max(Vec v) {
  const __m256 max8 = _mm256_max_ps(v.low, v.high);
  const __m128 max4 = _mm_max_ps(_mm256_castps256_ps128(max8), _mm256_extractf128_ps(max8, 1));
  const __m128 max2 = _mm_max_ps(max4, _mm_movehl_ps(max4, max4));
  return _mm_cvtss_f32(_mm_max_ss(max2, _mm_shuffle_ps(max2, max2, 1)));
}

// Integer sums.

struct Ints {
  __m256i low, high;
};

KAOKEN_INLINE __m256i load_half_line(const void *p) { return _mm256_loadu_si256(static_cast<const __m256i *>(p)); }
KAOKEN_INLINE void store_half_line(void *p, __m256i v) { _mm256_storeu_si256(static_cast<__m256i *>(p), v); }
KAOKEN_INLINE Ints load(const int32_t *p) { return {load_half_line(p), load_half_line(p + 8)}; }
KAOKEN_INLINE void store(int32_t *p, Ints v) {
  store_half_line(p, v.low);
  store_half_line(p + 8, v.high);
}
KAOKEN_INLINE void keep_in_register(Ints &v) { __asm__("" : "+x"(v.low), "+x"(v.high)); }
KAOKEN_INLINE Ints broadcast_int(int32_t x) { return {_mm256_set1_epi32(x), _mm256_set1_epi32(x)}; }
KAOKEN_INLINE Ints add(Ints a, Ints b) { return {_mm256_add_epi32(a.low, b.low), _mm256_add_epi32(a.high, b.high)}; }
KAOKEN_INLINE Ints sub(Ints a, Ints b) { return {_mm256_sub_epi32(a.low, b.low), _mm256_sub_epi32(a.high, b.high)}; }
KAOKEN_INLINE Ints mul(Ints a, Ints b) {
  return {_mm256_mullo_epi32(a.low, b.low), _mm256_mullo_epi32(a.high, b.high)};
}
KAOKEN_INLINE Ints bit_and(Ints a, Ints b) {
  return {_mm256_and_si256(a.low, b.low), _mm256_and_si256(a.high, b.high)};
}
KAOKEN_INLINE Ints bit_or(Ints a, Ints b) { return {_mm256_or_si256(a.low, b.low), _mm256_or_si256(a.high, b.high)}; }
template <int Bits>
KAOKEN_INLINE Ints shift_left(Ints v) {
  return {_mm256_slli_epi32(v.low, Bits), _mm256_slli_epi32(v.high, Bits)};
}
template <int Bits>
KAOKEN_INLINE Ints shift_right(Ints v) {
  return {_mm256_srai_epi32(v.low, Bits), _mm256_srai_epi32(v.high, Bits)};
}
KAOKEN_INLINE Vec to_float(Ints v) { return {_mm256_cvtepi32_ps(v.low), _mm256_cvtepi32_ps(v.high)}; }
// The nearest, ties to even.
KAOKEN_INLINE Ints to_int(Vec v) { return {_mm256_cvtps_epi32(v.low), _mm256_cvtps_epi32(v.high)}; }

// Narrow numbers in memory.

KAOKEN_INLINE __m128i load_quarter_line(const void *p) { return _mm_loadu_si128(static_cast<const __m128i *>(p)); }
// float16
KAOKEN_INLINE Vec load_half(const uint16_t *p) {
  return {_mm256_cvtph_ps(load_quarter_line(p)), _mm256_cvtph_ps(load_quarter_line(p + 8))};
}
// The upper half of each lane, rounded to nearest, ties to even.
KAOKEN_INLINE __m256i round_bfloat16(__m256 v) {
  const __m256i bits = _mm256_castps_si256(v);
  const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
  return _mm256_srli_epi32(_mm256_add_epi32(_mm256_add_epi32(bits, _mm256_set1_epi32(0x7fff)), odd), 16);
}
KAOKEN_INLINE void store_bfloat16(uint16_t *p, Vec v) {
  const __m256i packed = _mm256_packus_epi32(round_bfloat16(v.low), round_bfloat16(v.high));  // within 128-bit lanes
  store_half_line(p, _mm256_permute4x64_epi64(packed, 0xd8));
}
// The low byte of each lane.
KAOKEN_INLINE void store_bytes(uint8_t *p, Ints v) {
  const Ints bytes32 = bit_and(v, broadcast_int(0xff));
  const __m256i words = _mm256_permute4x64_epi64(_mm256_packus_epi32(bytes32.low, bytes32.high), 0xd8);
  const __m128i bytes = _mm_packus_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1));
  _mm_storeu_si128(reinterpret_cast<__m128i *>(p), bytes);
}

// Two bfloat16 products a lane; first_of and second_of leave one.

KAOKEN_INLINE __m256i spread_word(const void *p) {
  int32_t word;
  __builtin_memcpy(&word, p, sizeof word);
  return _mm256_set1_epi32(word);
}

struct Pairs {
  Vec even, odd;
};
KAOKEN_INLINE __m256 even_of(__m256i words) { return _mm256_castsi256_ps(_mm256_slli_epi32(words, 16)); }
KAOKEN_INLINE __m256 odd_of(__m256i words) {
  return _mm256_castsi256_ps(_mm256_and_si256(words, _mm256_set1_epi32(-0x10000)));
}
KAOKEN_INLINE Pairs load_pairs(const uint16_t *p) {
  const __m256i low = load_half_line(p), high = load_half_line(p + 16);
  return {{even_of(low), even_of(high)}, {odd_of(low), odd_of(high)}};
}
KAOKEN_INLINE Pairs spread_pair(const uint16_t *p) {
  const __m256i words = spread_word(p);
  return {{even_of(words), even_of(words)}, {odd_of(words), odd_of(words)}};
}
KAOKEN_INLINE Pairs first_of(Pairs w) { return {w.even, broadcast(0.0f)}; }
KAOKEN_INLINE Pairs second_of(Pairs w) { return {broadcast(0.0f), w.odd}; }
KAOKEN_INLINE Vec dot(Pairs x, Pairs w, Vec sum) { return fma(x.odd, w.odd, fma(x.even, w.even, sum)); }

// Four int8 products a lane. What attends is stored as unsigned bytes less kInputOffset. Inputs of matrices are signed,
// and their weights are bytes in which kWeightZero stands for 0, once load_weights() has them.

struct Bytes {
  __m256i low, high;
};
KAOKEN_INLINE Bytes load_bytes(const int8_t *p) { return {load_half_line(p), load_half_line(p + 32)}; }

#if KAOKEN_AVX_VNNI
constexpr int kInputOffset = 0;
struct Quad {
  __m256i v;
};
KAOKEN_INLINE Quad spread_quad(const uint8_t *p) { return {spread_word(p)}; }
KAOKEN_INLINE Ints dot(Quad x, Bytes w, Ints sum) {
  return {_mm256_dpbusd_avx_epi32(sum.low, x.v, w.low), _mm256_dpbusd_avx_epi32(sum.high, x.v, w.high)};
}
constexpr int kWeightZero = 128;
KAOKEN_INLINE Bytes load_weights(const uint8_t *p) { return {load_half_line(p), load_half_line(p + 32)}; }
KAOKEN_INLINE Ints dot_weights(Quad x, Bytes w, Ints sum) {
  return {_mm256_dpbusd_avx_epi32(sum.low, w.low, x.v), _mm256_dpbusd_avx_epi32(sum.high, w.high, x.v)};
}
#else
// vpmaddubsw takes one unsigned side and saturates at 16 bits: with the sign of x moved to w, two products reach
// 2 * 128 * 127 at most.
constexpr int kInputOffset = 128;
struct Quad {
  __m256i size, x;
};
KAOKEN_INLINE Quad spread_quad(const uint8_t *p) {
  const __m256i x = spread_word(p);
  return {_mm256_abs_epi8(x), x};
}
KAOKEN_INLINE __m256i dot(Quad x, __m256i w, __m256i sum) {
  const __m256i pairs = _mm256_maddubs_epi16(x.size, _mm256_sign_epi8(w, x.x));
  return _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
}
KAOKEN_INLINE Ints dot(Quad x, Bytes w, Ints sum) { return {dot(x, w.low, sum.low), dot(x, w.high, sum.high)}; }
constexpr int kWeightZero = 0;
KAOKEN_INLINE Bytes load_weights(const uint8_t *p) {
  const __m256i zero = _mm256_set1_epi8(-128);
  return {_mm256_xor_si256(load_half_line(p), zero), _mm256_xor_si256(load_half_line(p + 32), zero)};
}
KAOKEN_INLINE Ints dot_weights(Quad x, Bytes w, Ints sum) { return dot(x, w, sum); }
#endif

// 64 integers as the signed or the unsigned bytes nearest to them.
template <bool Signed>
KAOKEN_INLINE void pack_bytes(uint8_t *p, Ints a, Ints b) {
  const __m256i words_a = _mm256_packs_epi32(a.low, a.high), words_b = _mm256_packs_epi32(b.low, b.high);
  const __m256i bytes = Signed ? _mm256_packs_epi16(words_a, words_b) : _mm256_packus_epi16(words_a, words_b);
  store_half_line(p,
                  _mm256_permutevar8x32_epi32(bytes, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7)));  // of 128-bit lanes
}
template <bool Signed>
KAOKEN_INLINE void pack_bytes(uint8_t *p, Ints a, Ints b, Ints c, Ints d) {
  pack_bytes<Signed>(p, a, b);
  pack_bytes<Signed>(p + 32, c, d);
}

// 64 bytes of two int4 each, as unsigned bytes: the low nibbles, then the high ones.

struct Nibbles {
  Bytes low, high;
};
KAOKEN_INLINE __m256i low_nibbles(__m256i both) { return _mm256_and_si256(both, _mm256_set1_epi8(15)); }
KAOKEN_INLINE Nibbles load_nibbles(const uint8_t *p) {
  const __m256i low = load_half_line(p), high = load_half_line(p + 32);
  return {{low_nibbles(low), low_nibbles(high)},
          {low_nibbles(_mm256_srli_epi16(low, 4)), low_nibbles(_mm256_srli_epi16(high, 4))}};
}
KAOKEN_INLINE Bytes load_unpacked(const uint8_t *p) { return {load_half_line(p), load_half_line(p + 32)}; }
KAOKEN_INLINE void store(uint8_t *p, Bytes v) {
  store_half_line(p, v.low);
  store_half_line(p + 32, v.high);
}
