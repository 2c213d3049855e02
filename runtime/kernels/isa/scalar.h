// 16 float lanes as four 4-lane vectors of the compiler's own: any processor, no intrinsics.
// Included by vector.h only, inside namespace kaoken::KAOKEN_ISA.

typedef float Lanes4 __attribute__((vector_size(16)));
typedef int32_t Ints4 __attribute__((vector_size(16)));

// Rows and panels of a tile: accumulators and weights in 16 registers.
constexpr int kTileRows = 2, kTilePanels = 1;
constexpr int kGroupRows = 2, kGroupPanels = 1;
constexpr bool kGroupSumsInRegisters = false;
constexpr int kNibbleRows = 2;
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
// b where either is NaN.
KAOKEN_INLINE Vec max(Vec a, Vec b) { return select_less(b, a, a, b); }
KAOKEN_INLINE Vec min(Vec a, Vec b) { return select_less(a, b, a, b); }

// To integers of less than 2^22, ties to even: what 1.5 * 2^23 is added to has no room for a fraction.
KAOKEN_INLINE Vec nearest(Vec v) { return sub(add(v, broadcast(12582912.0f)), broadcast(12582912.0f)); }

constexpr float kLowestExponent = -127.0f;
// y * 2^n for integers n from kLowestExponent, where it is 0, on; infinity from n = 128 on.
KAOKEN_INLINE Vec scale_exponent(Vec y, Vec n) {
  const Vec biased = min(add(n, broadcast(127.0f)), broadcast(255.0f));
  for (int i = 0; i < 4; ++i) y.q[i] *= (Lanes4)(__builtin_convertvector(biased.q[i], Ints4) << 23);
  return y;
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

// Integer sums.

struct Ints {
  Ints4 q[4];
};

KAOKEN_INLINE Ints load(const int32_t *p) {
  Ints v;
  __builtin_memcpy(&v, p, sizeof v);
  return v;
}
KAOKEN_INLINE void store(int32_t *p, Ints v) { __builtin_memcpy(p, &v, sizeof v); }
KAOKEN_INLINE Ints4 spread(int32_t x) { return Ints4{x, x, x, x}; }
KAOKEN_INLINE void keep_in_register(Ints &) {}
KAOKEN_INLINE Ints broadcast_int(int32_t x) { return {{spread(x), spread(x), spread(x), spread(x)}}; }
// Integers wrap around, as those of other ISAs do.
typedef uint32_t Unsigned4 __attribute__((vector_size(16)));
KAOKEN_INLINE Ints add(Ints a, Ints b) {
  for (int i = 0; i < 4; ++i) a.q[i] = (Ints4)((Unsigned4)a.q[i] + (Unsigned4)b.q[i]);
  return a;
}
KAOKEN_INLINE Ints sub(Ints a, Ints b) {
  for (int i = 0; i < 4; ++i) a.q[i] = (Ints4)((Unsigned4)a.q[i] - (Unsigned4)b.q[i]);
  return a;
}
KAOKEN_INLINE Ints mul(Ints a, Ints b) {
  for (int i = 0; i < 4; ++i) a.q[i] = (Ints4)((Unsigned4)a.q[i] * (Unsigned4)b.q[i]);
  return a;
}
KAOKEN_INLINE Ints bit_and(Ints a, Ints b) {
  return {{a.q[0] & b.q[0], a.q[1] & b.q[1], a.q[2] & b.q[2], a.q[3] & b.q[3]}};
}
KAOKEN_INLINE Ints bit_or(Ints a, Ints b) {
  return {{a.q[0] | b.q[0], a.q[1] | b.q[1], a.q[2] | b.q[2], a.q[3] | b.q[3]}};
}
template <int Bits>
KAOKEN_INLINE Ints shift_left(Ints v) {
  return {{v.q[0] << Bits, v.q[1] << Bits, v.q[2] << Bits, v.q[3] << Bits}};
}
template <int Bits>
KAOKEN_INLINE Ints shift_right(Ints v) {
  return {{v.q[0] >> Bits, v.q[1] >> Bits, v.q[2] >> Bits, v.q[3] >> Bits}};
}
// The nearest of less than 2^22, ties to even.
KAOKEN_INLINE Ints to_int(Vec v) {
  const Vec whole = nearest(v);
  return {{__builtin_convertvector(whole.q[0], Ints4), __builtin_convertvector(whole.q[1], Ints4),
           __builtin_convertvector(whole.q[2], Ints4), __builtin_convertvector(whole.q[3], Ints4)}};
}
KAOKEN_INLINE Vec to_float(Ints v) {
  return {{__builtin_convertvector(v.q[0], Lanes4), __builtin_convertvector(v.q[1], Lanes4),
           __builtin_convertvector(v.q[2], Lanes4), __builtin_convertvector(v.q[3], Lanes4)}};
}

// Narrow numbers in memory.

// float16, normal or zero: the exponent is moved by a multiplication.
KAOKEN_INLINE Vec load_half(const uint16_t *p) {
  float lanes[16];
  for (int i = 0; i < 16; ++i) {
    const uint32_t magnitude = p[i] & 0x7fffu;
    const float denormal = static_cast<float>(magnitude) * 0x1p-24f;
    const float size = magnitude < 0x400u ? denormal : float_of_bits((magnitude << 13) + (112u << 23));
    lanes[i] = p[i] & 0x8000u ? -size : size;
  }
  return load(lanes);
}
// Rounds to nearest, ties to even.
KAOKEN_INLINE void store_bfloat16(uint16_t *p, Vec v) {
  uint32_t bits[16];
  __builtin_memcpy(bits, &v, sizeof bits);
  for (int i = 0; i < 16; ++i) p[i] = static_cast<uint16_t>((bits[i] + 0x7fffu + (bits[i] >> 16 & 1)) >> 16);
}
// The low byte of each lane.
KAOKEN_INLINE void store_bytes(uint8_t *p, Ints v) {
  for (int i = 0; i < 16; ++i) p[i] = static_cast<uint8_t>(v.q[i / 4][i % 4]);
}

// Two bfloat16 products a lane; first_of and second_of leave one.

struct Pairs {
  Vec even, odd;
};
KAOKEN_INLINE Pairs widen(Ints words) {
  Pairs v;
  for (int i = 0; i < 4; ++i) {
    v.even.q[i] = (Lanes4)(words.q[i] << 16);
    v.odd.q[i] = (Lanes4)(words.q[i] & spread(-0x10000));
  }
  return v;
}
KAOKEN_INLINE int32_t load_word(const void *p) {
  int32_t word;
  __builtin_memcpy(&word, p, sizeof word);
  return word;
}
KAOKEN_INLINE Pairs load_pairs(const uint16_t *p) {
  Ints words;
  __builtin_memcpy(&words, p, sizeof words);
  return widen(words);
}
KAOKEN_INLINE Pairs spread_pair(const uint16_t *p) { return widen(broadcast_int(load_word(p))); }
KAOKEN_INLINE Pairs first_of(const Pairs &w) { return {w.even, broadcast(0.0f)}; }
KAOKEN_INLINE Pairs second_of(const Pairs &w) { return {broadcast(0.0f), w.odd}; }
KAOKEN_INLINE Vec dot(const Pairs &x, const Pairs &w, Vec sum) { return fma(x.odd, w.odd, fma(x.even, w.even, sum)); }

// Four int8 products a lane. What attends is stored as unsigned bytes less kInputOffset. Inputs of matrices are signed,
// and their weights are bytes in which kWeightZero stands for 0, once load_weights() has them. Pairs of bytes are taken
// apart as 16-bit lanes: two products of them reach 2 * 128 * 127 at most.

typedef int16_t Shorts8 __attribute__((vector_size(16)));
typedef uint8_t Bytes16 __attribute__((vector_size(16)));

constexpr int kInputOffset = 128;
struct Bytes {
  Shorts8 q[4];
};
struct Quad {
  Shorts8 even, odd;
};
KAOKEN_INLINE Shorts8 even_of(Shorts8 bytes) { return bytes << 8 >> 8; }
KAOKEN_INLINE Shorts8 odd_of(Shorts8 bytes) { return bytes >> 8; }
KAOKEN_INLINE Bytes load_bytes(const int8_t *p) {
  Bytes v;
  __builtin_memcpy(&v, p, sizeof v);
  return v;
}
KAOKEN_INLINE Quad spread_quad(const uint8_t *p) {
  const Shorts8 bytes = (Shorts8)spread(load_word(p));
  return {even_of(bytes), odd_of(bytes)};
}
KAOKEN_INLINE Ints dot(Quad x, Bytes w, Ints sum) {
  for (int i = 0; i < 4; ++i) {
    const Ints4 pairs = (Ints4)(x.even * even_of(w.q[i]) + x.odd * odd_of(w.q[i]));
    sum.q[i] += (pairs << 16 >> 16) + (pairs >> 16);
  }
  return sum;
}

constexpr int kWeightZero = 0;
KAOKEN_INLINE Bytes load_unpacked(const uint8_t *p) { return load_bytes(reinterpret_cast<const int8_t *>(p)); }
KAOKEN_INLINE Bytes load_weights(const uint8_t *p) {
  Bytes v = load_unpacked(p);
  for (int i = 0; i < 4; ++i) v.q[i] ^= static_cast<int16_t>(0x8080);
  return v;
}
KAOKEN_INLINE Ints dot_weights(Quad x, Bytes w, Ints sum) { return dot(x, w, sum); }

// 64 integers as the signed or the unsigned bytes nearest to them.
template <bool Signed>
KAOKEN_INLINE void pack_bytes(uint8_t *p, Ints v) {
  for (int i = 0; i < 4; ++i) {
    const Ints4 low = spread(Signed ? -128 : 0), high = spread(Signed ? 127 : 255);
    const Ints4 at_least = v.q[i] > low ? v.q[i] : low;
    v.q[i] = at_least < high ? at_least : high;
  }
  store_bytes(p, v);
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
KAOKEN_INLINE Nibbles load_nibbles(const uint8_t *p) {
  Nibbles v;
  for (int i = 0; i < 4; ++i) {
    Bytes16 both;
    __builtin_memcpy(&both, p + i * 16, sizeof both);
    v.low.q[i] = (Shorts8)(both & 15);
    v.high.q[i] = (Shorts8)(both >> 4);
  }
  return v;
}
KAOKEN_INLINE void store(uint8_t *p, Bytes v) { __builtin_memcpy(p, &v, sizeof v); }
