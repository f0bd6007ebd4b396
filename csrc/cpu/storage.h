// Numbers that are stored in 16 bits, as vectors of floats: load and store convert, to the nearest
// and to the even one of two. And the rows of a panel, [G][W]. Included inside the namespace of an
// instruction set.
#pragma once

typedef uint32_t Uint32 __attribute__((vector_size(GATEDRNN_VECTOR_BYTES)));
typedef uint16_t Uint16 __attribute__((vector_size(GATEDRNN_VECTOR_BYTES / 2)));

// GCC makes several instructions of a conversion where there is one.
inline Uint32 extended(Uint16 x) {
#if GATEDRNN_VECTOR_BYTES == 64
  return reinterpret_cast<Uint32>(
      _mm512_maskz_cvtepu16_epi32(__mmask16(-1), reinterpret_cast<__m256i>(x)));
#elif GATEDRNN_VECTOR_BYTES == 32
  return reinterpret_cast<Uint32>(_mm256_cvtepu16_epi32(reinterpret_cast<__m128i>(x)));
#elif defined(__aarch64__)
  return reinterpret_cast<Uint32>(vmovl_u16(reinterpret_cast<uint16x4_t>(x)));
#else
  return __builtin_convertvector(x, Uint32);
#endif
}

inline Vec<float> widened(Bfloat16, Uint16 x) {
  return reinterpret_cast<Vec<float>>(extended(x) << 16);
}

inline Uint16 narrowed(Bfloat16, Vec<float> x) {
  const Uint32 bits = reinterpret_cast<Uint32>(x), high = bits >> 16;
  const Uint32 nan = high | 0x40;  // what made it one may lie in the bits that go
  return __builtin_convertvector(x != x ? nan : (bits + 0x7fff + (high & 1)) >> 16, Uint16);
}

#if GATEDRNN_VECTOR_BYTES == 64
inline Vec<float> widened(Half, Uint16 x) {
  return _mm512_maskz_cvtph_ps(__mmask16(-1), reinterpret_cast<__m256i>(x));
}
inline Uint16 narrowed(Half, Vec<float> x) {
  return reinterpret_cast<Uint16>(
      _mm512_maskz_cvtps_ph(__mmask16(-1), x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}
#elif GATEDRNN_VECTOR_BYTES == 32
inline Vec<float> widened(Half, Uint16 x) { return _mm256_cvtph_ps(reinterpret_cast<__m128i>(x)); }
inline Uint16 narrowed(Half, Vec<float> x) {
  return reinterpret_cast<Uint16>(_mm256_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT));
}
#else
// The exponent is moved; where it is all ones, again; and a number below the smallest normal one,
// which has no leading one, gets it and loses it as a float.
inline Vec<float> widened(Half, Uint16 stored) {
  const Uint32 x = extended(stored), magnitude = (x & 0x7fff) << 13;
  const Uint32 exponent = magnitude & (0x7c00 << 13);
  const Uint32 moved = magnitude + ((127 - 15) << 23);
  const Uint32 special = moved + ((127 - 15) << 23);
  const Vec<float> small = reinterpret_cast<Vec<float>>(moved + (1 << 23)) - all(0x1p-14f);
  Uint32 bits = exponent == (0x7c00 << 13) ? special : moved;
  bits = exponent == 0 ? reinterpret_cast<Uint32>(small) : bits;
  return reinterpret_cast<Vec<float>>(bits | (x & 0x8000) << 16);
}

// Below the smallest normal number the sum with 1/2 rounds to the spacing of the subnormal ones.
inline Uint16 narrowed(Half, Vec<float> x) {
  const Uint32 bits = reinterpret_cast<Uint32>(x), sign = bits & 0x80000000u;
  const Uint32 magnitude = bits ^ sign, odd = (magnitude >> 13) & 1;
  const Vec<float> shifted = reinterpret_cast<Vec<float>>(magnitude) + 0.5f;
  const Uint32 small = reinterpret_cast<Uint32>(shifted) - (126u << 23);
  const Uint32 normal = (magnitude - ((127 - 15) << 23) + 0xfff + odd) >> 13;
  Uint32 y = magnitude < (113u << 23) ? small : normal;
  const Uint32 infinite = Uint32{} + 0x7c00, nan = Uint32{} + 0x7e00;
  y = magnitude >= (143u << 23) ? infinite : y;
  y = magnitude > (255u << 23) ? nan : y;
  return __builtin_convertvector(y | sign >> 16, Uint16);
}
#endif

template <class Stored>
inline Vec<float> load_narrow(const Stored* p, int64_t n) {
  Uint16 v = {};
  if (n >= Simd<float>::width)
    __builtin_memcpy(&v, p, sizeof v);
  else
    for (int64_t k = 0; k < n; ++k) v[k] = p[k].bits;
  return widened(Stored{}, v);
}

template <class Stored>
inline void store_narrow(Stored* p, Vec<float> x, int64_t n) {
  const Uint16 v = narrowed(Stored{}, x);
  if (n >= Simd<float>::width)
    __builtin_memcpy(p, &v, sizeof v);
  else
    for (int64_t k = 0; k < n; ++k) p[k].bits = v[k];
}

inline Vec<float> load(const Bfloat16* p, int64_t n) { return load_narrow(p, n); }
inline Vec<float> load(const Half* p, int64_t n) { return load_narrow(p, n); }
inline void store(Bfloat16* p, Vec<float> x, int64_t n) { store_narrow(p, x, n); }
inline void store(Half* p, Vec<float> x, int64_t n) { store_narrow(p, x, n); }

// The first G vectors of a panel's row for one k: its S vectors follow each other.
template <int S, class Real, int G>
inline void load_gates(const Real* row, Vec<Real> (&w)[G]) {
#pragma GCC unroll 4
  for (int g = 0; g < G; ++g) w[g] = load(row + g * Simd<Real>::width);
}

template <class Real>
inline void store_gate(Real* row, int g, int /* of */, Vec<Real> w) {
  store(row + g * Simd<Real>::width, w);
}

// In 16 bits two neighbouring vectors lie lane by lane side by side, the first one's lanes in the
// low halves: to part them takes one instruction each.
template <int S, int G>
inline void load_gates(const Bfloat16* row, Vec<float> (&w)[G]) {
  constexpr int W = Simd<float>::width;
#pragma GCC unroll 2
  for (int g = 0; g < G && g + 1 < S; g += 2) {
    Uint32 pair;
    __builtin_memcpy(&pair, row + g * W, sizeof pair);
    w[g] = reinterpret_cast<Vec<float>>(pair << 16);
    if (g + 1 < G) w[g + 1] = reinterpret_cast<Vec<float>>(pair & 0xffff0000u);
  }
  if constexpr (G == S && G % 2) w[G - 1] = load(row + (G - 1) * W, W);
}

inline void store_gate(Bfloat16* row, int g, int of, Vec<float> w) {
  constexpr int W = Simd<float>::width;
  if (g == of - 1 && of % 2) return store(row + g * W, w, W);
  Uint32 pair = reinterpret_cast<Uint32>(w) >> 16;
  if (g % 2) {
    Uint32 first;
    __builtin_memcpy(&first, row + (g - 1) * W, sizeof first);
    pair = first | reinterpret_cast<Uint32>(w);
  }
  __builtin_memcpy(row + g / 2 * 2 * W, &pair, sizeof pair);
}
