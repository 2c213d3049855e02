// 16 float lanes as four q registers, which every AArch64 processor has; uses the dot product where the ISA has it, and
// the one of unsigned by signed bytes.
// Included by vector.h only, inside namespace kaoken::KAOKEN_ISA.

// Rows and panels of a tile: accumulators, weights and an input in 32 registers.
constexpr int kTileRows = 4, kTilePanels = 1;
constexpr int kGroupRows = 4, kGroupPanels = 1;
constexpr bool kGroupSumsInRegisters = false;
constexpr int kNibbleRows = 2;
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

// To integers, ties to even.
KAOKEN_INLINE Vec nearest(Vec v) { return {vrndnq_f32(v.a), vrndnq_f32(v.b), vrndnq_f32(v.c), vrndnq_f32(v.d)}; }

constexpr float kLowestExponent = -127.0f;
// y * 2^n for integers n from kLowestExponent, where it is 0, on; infinity from n = 128 on.
KAOKEN_INLINE float32x4_t scale_exponent(float32x4_t y, float32x4_t n) {
  const float32x4_t biased = vminq_f32(vaddq_f32(n, vdupq_n_f32(127.0f)), vdupq_n_f32(255.0f));
  return vmulq_f32(y, vreinterpretq_f32_s32(vshlq_n_s32(vcvtq_s32_f32(biased), 23)));
}
KAOKEN_INLINE Vec scale_exponent(Vec y, Vec n) {
  return {scale_exponent(y.a, n.a), scale_exponent(y.b, n.b), scale_exponent(y.c, n.c), scale_exponent(y.d, n.d)};
}

KAOKEN_INLINE float reduce_add(Vec v) {
  const float32x4_t q = vaddq_f32(vaddq_f32(v.a, v.c), vaddq_f32(v.b, v.d));
  return (vgetq_lane_f32(q, 0) + vgetq_lane_f32(q, 2)) + (vgetq_lane_f32(q, 1) + vgetq_lane_f32(q, 3));
}
KAOKEN_INLINE float reduce_max(Vec v) { return vmaxvq_f32(vmaxq_f32(vmaxq_f32(v.a, v.b), vmaxq_f32(v.c, v.d))); }

// Integer sums.

struct Ints {
  int32x4_t a, b, c, d;
};

KAOKEN_INLINE Ints load(const int32_t *p) {
  return {vld1q_s32(p), vld1q_s32(p + 4), vld1q_s32(p + 8), vld1q_s32(p + 12)};
}
KAOKEN_INLINE void store(int32_t *p, Ints v) {
  vst1q_s32(p, v.a);
  vst1q_s32(p + 4, v.b);
  vst1q_s32(p + 8, v.c);
  vst1q_s32(p + 12, v.d);
}
KAOKEN_INLINE void keep_in_register(Ints &v) { __asm__("" : "+w"(v.a), "+w"(v.b), "+w"(v.c), "+w"(v.d)); }
KAOKEN_INLINE Ints broadcast_int(int32_t x) {
  const int32x4_t q = vdupq_n_s32(x);
  return {q, q, q, q};
}
KAOKEN_INLINE Ints add(Ints x, Ints y) {
  return {vaddq_s32(x.a, y.a), vaddq_s32(x.b, y.b), vaddq_s32(x.c, y.c), vaddq_s32(x.d, y.d)};
}
KAOKEN_INLINE Ints sub(Ints x, Ints y) {
  return {vsubq_s32(x.a, y.a), vsubq_s32(x.b, y.b), vsubq_s32(x.c, y.c), vsubq_s32(x.d, y.d)};
}
KAOKEN_INLINE Ints mul(Ints x, Ints y) {
  return {vmulq_s32(x.a, y.a), vmulq_s32(x.b, y.b), vmulq_s32(x.c, y.c), vmulq_s32(x.d, y.d)};
}
KAOKEN_INLINE Ints bit_and(Ints x, Ints y) {
  return {vandq_s32(x.a, y.a), vandq_s32(x.b, y.b), vandq_s32(x.c, y.c), vandq_s32(x.d, y.d)};
}
KAOKEN_INLINE Ints bit_or(Ints x, Ints y) {
  return {vorrq_s32(x.a, y.a), vorrq_s32(x.b, y.b), vorrq_s32(x.c, y.c), vorrq_s32(x.d, y.d)};
}
template <int Bits>
KAOKEN_INLINE Ints shift_left(Ints v) {
  return {vshlq_n_s32(v.a, Bits), vshlq_n_s32(v.b, Bits), vshlq_n_s32(v.c, Bits), vshlq_n_s32(v.d, Bits)};
}
template <int Bits>
KAOKEN_INLINE Ints shift_right(Ints v) {
  return {vshrq_n_s32(v.a, Bits), vshrq_n_s32(v.b, Bits), vshrq_n_s32(v.c, Bits), vshrq_n_s32(v.d, Bits)};
}
// The nearest, ties to even.
KAOKEN_INLINE Ints to_int(Vec v) {
  return {vcvtnq_s32_f32(v.a), vcvtnq_s32_f32(v.b), vcvtnq_s32_f32(v.c), vcvtnq_s32_f32(v.d)};
}
KAOKEN_INLINE Vec to_float(Ints v) {
  return {vcvtq_f32_s32(v.a), vcvtq_f32_s32(v.b), vcvtq_f32_s32(v.c), vcvtq_f32_s32(v.d)};
}

// Narrow numbers in memory.

// float16
KAOKEN_INLINE float32x4_t load_half4(const uint16_t *p) { return vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(p))); }
KAOKEN_INLINE Vec load_half(const uint16_t *p) {
  return {load_half4(p), load_half4(p + 4), load_half4(p + 8), load_half4(p + 12)};
}
// The upper half of each lane, rounded to nearest, ties to even.
KAOKEN_INLINE uint16x4_t round_bfloat16(float32x4_t v) {
  const uint32x4_t bits = vreinterpretq_u32_f32(v);
  const uint32x4_t odd = vandq_u32(vshrq_n_u32(bits, 16), vdupq_n_u32(1));
  return vshrn_n_u32(vaddq_u32(vaddq_u32(bits, vdupq_n_u32(0x7fff)), odd), 16);
}
KAOKEN_INLINE void store_bfloat16(uint16_t *p, Vec v) {
  vst1q_u16(p, vcombine_u16(round_bfloat16(v.a), round_bfloat16(v.b)));
  vst1q_u16(p + 8, vcombine_u16(round_bfloat16(v.c), round_bfloat16(v.d)));
}
// The low byte of each lane.
KAOKEN_INLINE void store_bytes(uint8_t *p, Ints v) {
  const int16x8_t ab = vcombine_s16(vmovn_s32(v.a), vmovn_s32(v.b)), cd = vcombine_s16(vmovn_s32(v.c), vmovn_s32(v.d));
  vst1q_u8(p, vreinterpretq_u8_s8(vcombine_s8(vmovn_s16(ab), vmovn_s16(cd))));
}

// Two bfloat16 products a lane; first_of and second_of leave one.

struct Pairs {
  Vec even, odd;
};
KAOKEN_INLINE float32x4_t even_of(uint32x4_t words) { return vreinterpretq_f32_u32(vshlq_n_u32(words, 16)); }
KAOKEN_INLINE float32x4_t odd_of(uint32x4_t words) {
  return vreinterpretq_f32_u32(vandq_u32(words, vdupq_n_u32(0xffff0000u)));
}
KAOKEN_INLINE Pairs widen(uint32x4_t a, uint32x4_t b, uint32x4_t c, uint32x4_t d) {
  return {{even_of(a), even_of(b), even_of(c), even_of(d)}, {odd_of(a), odd_of(b), odd_of(c), odd_of(d)}};
}
KAOKEN_INLINE uint32x4_t load_words(const uint16_t *p) { return vreinterpretq_u32_u16(vld1q_u16(p)); }
KAOKEN_INLINE Pairs load_pairs(const uint16_t *p) {
  return widen(load_words(p), load_words(p + 8), load_words(p + 16), load_words(p + 24));
}
KAOKEN_INLINE uint32_t load_word(const void *p) {
  uint32_t word;
  __builtin_memcpy(&word, p, sizeof word);
  return word;
}
KAOKEN_INLINE Pairs spread_pair(const uint16_t *p) {
  const uint32x4_t words = vdupq_n_u32(load_word(p));
  return widen(words, words, words, words);
}
KAOKEN_INLINE Pairs first_of(Pairs w) { return {w.even, broadcast(0.0f)}; }
KAOKEN_INLINE Pairs second_of(Pairs w) { return {broadcast(0.0f), w.odd}; }
KAOKEN_INLINE Vec dot(Pairs x, Pairs w, Vec sum) { return fma(x.odd, w.odd, fma(x.even, w.even, sum)); }

// Four int8 products a lane. What attends is stored as unsigned bytes less kInputOffset. Inputs of matrices are signed,
// and their weights are bytes in which kWeightZero stands for 0, once load_weights() has them.

struct Bytes {
  int8x16_t a, b, c, d;
};
KAOKEN_INLINE Bytes load_bytes(const int8_t *p) {
  return {vld1q_s8(p), vld1q_s8(p + 16), vld1q_s8(p + 32), vld1q_s8(p + 48)};
}
#if KAOKEN_I8MM
constexpr int kInputOffset = 0;
struct Quad {
  uint8x16_t v;
};
KAOKEN_INLINE Quad spread_quad(const uint8_t *p) { return {vreinterpretq_u8_u32(vdupq_n_u32(load_word(p)))}; }
KAOKEN_INLINE int32x4_t dot(uint8x16_t x, int8x16_t w, int32x4_t sum) { return vusdotq_s32(sum, x, w); }
#else
constexpr int kInputOffset = 128;
struct Quad {
  int8x16_t v;
};
KAOKEN_INLINE Quad spread_quad(const uint8_t *p) { return {vreinterpretq_s8_u32(vdupq_n_u32(load_word(p)))}; }
#if KAOKEN_DOTPROD
KAOKEN_INLINE int32x4_t dot(int8x16_t x, int8x16_t w, int32x4_t sum) { return vdotq_s32(sum, x, w); }
#else
KAOKEN_INLINE int32x4_t dot(int8x16_t x, int8x16_t w, int32x4_t sum) {
  const int32x4_t low = vpaddlq_s16(vmull_s8(vget_low_s8(x), vget_low_s8(w)));
  const int32x4_t high = vpaddlq_s16(vmull_s8(vget_high_s8(x), vget_high_s8(w)));
  return vaddq_s32(sum, vpaddq_s32(low, high));
}
#endif
#endif
KAOKEN_INLINE Ints dot(Quad x, Bytes w, Ints sum) {
  return {dot(x.v, w.a, sum.a), dot(x.v, w.b, sum.b), dot(x.v, w.c, sum.c), dot(x.v, w.d, sum.d)};
}

KAOKEN_INLINE Bytes load_unpacked(const uint8_t *p) { return load_bytes(reinterpret_cast<const int8_t *>(p)); }
#if KAOKEN_I8MM
constexpr int kWeightZero = 128;
KAOKEN_INLINE Bytes load_weights(const uint8_t *p) { return load_unpacked(p); }
KAOKEN_INLINE int32x4_t dot_weights(Quad x, int8x16_t w, int32x4_t sum) {
  return vusdotq_s32(sum, vreinterpretq_u8_s8(w), vreinterpretq_s8_u8(x.v));
}
KAOKEN_INLINE Ints dot_weights(Quad x, Bytes w, Ints sum) {
  return {dot_weights(x, w.a, sum.a), dot_weights(x, w.b, sum.b), dot_weights(x, w.c, sum.c),
          dot_weights(x, w.d, sum.d)};
}
#else
constexpr int kWeightZero = 0;
KAOKEN_INLINE Bytes load_weights(const uint8_t *p) {
  const Bytes w = load_unpacked(p);
  const int8x16_t zero = vdupq_n_s8(-128);
  return {veorq_s8(w.a, zero), veorq_s8(w.b, zero), veorq_s8(w.c, zero), veorq_s8(w.d, zero)};
}
KAOKEN_INLINE Ints dot_weights(Quad x, Bytes w, Ints sum) { return dot(x, w, sum); }
#endif

// 64 integers as the signed or the unsigned bytes nearest to them.
template <bool Signed>
KAOKEN_INLINE uint8x8_t narrow(int32x4_t a, int32x4_t b) {
  const int16x8_t words = vcombine_s16(vqmovn_s32(a), vqmovn_s32(b));
  return Signed ? vreinterpret_u8_s8(vqmovn_s16(words)) : vqmovun_s16(words);
}
template <bool Signed>
KAOKEN_INLINE void pack_bytes(uint8_t *p, Ints v) {
  vst1q_u8(p, vcombine_u8(narrow<Signed>(v.a, v.b), narrow<Signed>(v.c, v.d)));
}
template <bool Signed>
KAOKEN_INLINE void pack_bytes(uint8_t *p, Ints a, Ints b, Ints c, Ints d) {
  pack_bytes<Signed>(p, a);
  pack_bytes<Signed>(p + 16, b);
  pack_bytes<Signed>(p + 32, c);
  pack_bytes<Signed>(p + 48, d);
}

// 64 bytes of two int4 each, as unsigned bytes: the low nibbles, then the high ones.

struct Nibbles {
  Bytes low, high;
};
KAOKEN_INLINE int8x16_t low_nibbles(int8x16_t both) { return vandq_s8(both, vdupq_n_s8(15)); }
KAOKEN_INLINE int8x16_t high_nibbles(int8x16_t both) {
  return vreinterpretq_s8_u8(vshrq_n_u8(vreinterpretq_u8_s8(both), 4));
}
KAOKEN_INLINE Nibbles load_nibbles(const uint8_t *p) {
  const Bytes both = load_unpacked(p);
  return {{low_nibbles(both.a), low_nibbles(both.b), low_nibbles(both.c), low_nibbles(both.d)},
          {high_nibbles(both.a), high_nibbles(both.b), high_nibbles(both.c), high_nibbles(both.d)}};
}
KAOKEN_INLINE void store(uint8_t *p, Bytes v) {
  vst1q_u8(p, vreinterpretq_u8_s8(v.a));
  vst1q_u8(p + 16, vreinterpretq_u8_s8(v.b));
  vst1q_u8(p + 32, vreinterpretq_u8_s8(v.c));
  vst1q_u8(p + 48, vreinterpretq_u8_s8(v.d));
}
