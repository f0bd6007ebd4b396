// Vectors of hidden units by GCC's vector extension, and the two functions that gates
// need. One source for every instruction set: GATEDRNN_VECTOR_BYTES is the native width, and wider
// would be many times slower. Included inside the namespace of an instruction set.
#pragma once

template <class Real>
struct Simd;

template <>
struct Simd<float> {
  static constexpr int width = GATEDRNN_VECTOR_BYTES / sizeof(float);
  typedef float V __attribute__((vector_size(GATEDRNN_VECTOR_BYTES)));
  typedef int32_t Int __attribute__((vector_size(GATEDRNN_VECTOR_BYTES)));
  static constexpr float round = 12582912.f;  // 1.5 * 2^23: adding it rounds to an integer
  static constexpr float ln2_hi = 0x1.62ep-1f, ln2_lo = 0x1.0bfbe8p-15f;  // hi * n is exact
  static constexpr float largest = 88.f, flat = 40.f;
  static constexpr int mantissa = 23, bias = 127, terms = 7;
};

template <>
struct Simd<double> {
  static constexpr int width = GATEDRNN_VECTOR_BYTES / sizeof(double);
  typedef double V __attribute__((vector_size(GATEDRNN_VECTOR_BYTES)));
  typedef int64_t Int __attribute__((vector_size(GATEDRNN_VECTOR_BYTES)));
  static constexpr double round = 6755399441055744.;  // 1.5 * 2^52
  static constexpr double ln2_hi = 0x1.62e42fefa0000p-1, ln2_lo = 0x1.cf79abc9e3b3ap-40;
  static constexpr double largest = 709., flat = 80.;
  static constexpr int mantissa = 52, bias = 1023, terms = 13;
};

template <class Real>
using Vec = typename Simd<Real>::V;

template <class Real>
inline Vec<Real> load(const Real* p) {
  Vec<Real> v;
  __builtin_memcpy(&v, p, sizeof v);
  return v;
}

template <class Real>
inline void store(Real* p, Vec<Real> v) {
  __builtin_memcpy(p, &v, sizeof v);
}

// x in every lane. Adding it to zeros would be an instruction, as it turns -0 into 0; this is none.
template <class Real>
inline Vec<Real> all(Real x) {
  return x - Vec<Real>{};
}

// The first n lanes, n > 0, for the last units of a row: reads and writes nothing beyond them. By
// masks, which AddressSanitizer does not see.
#if defined(__SANITIZE_ADDRESS__) || GATEDRNN_VECTOR_BYTES < 32
template <class Real>
inline Vec<Real> load_first(const Real* p, int64_t n) {
  Vec<Real> v = {};
  for (int64_t k = 0; k < n; ++k) v[k] = p[k];
  return v;
}
template <class Real>
inline void store_first(Real* p, Vec<Real> v, int64_t n) {
  for (int64_t k = 0; k < n; ++k) p[k] = v[k];
}
#elif GATEDRNN_VECTOR_BYTES == 64
inline Vec<float> load_first(const float* p, int64_t n) {
  return _mm512_maskz_loadu_ps(__mmask16((1 << n) - 1), p);
}
inline Vec<double> load_first(const double* p, int64_t n) {
  return _mm512_maskz_loadu_pd(__mmask8((1 << n) - 1), p);
}
inline void store_first(float* p, Vec<float> v, int64_t n) {
  _mm512_mask_storeu_ps(p, __mmask16((1 << n) - 1), v);
}
inline void store_first(double* p, Vec<double> v, int64_t n) {
  _mm512_mask_storeu_pd(p, __mmask8((1 << n) - 1), v);
}
#else
inline __m256i first_lanes(float, int64_t n) {
  return _mm256_cmpgt_epi32(_mm256_set1_epi32(int(n)), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}
inline __m256i first_lanes(double, int64_t n) {
  return _mm256_cmpgt_epi64(_mm256_set1_epi64x(n), _mm256_setr_epi64x(0, 1, 2, 3));
}
inline Vec<float> load_first(const float* p, int64_t n) {
  return _mm256_maskload_ps(p, first_lanes(0.f, n));
}
inline Vec<double> load_first(const double* p, int64_t n) {
  return _mm256_maskload_pd(p, first_lanes(0., n));
}
inline void store_first(float* p, Vec<float> v, int64_t n) {
  _mm256_maskstore_ps(p, first_lanes(0.f, n), v);
}
inline void store_first(double* p, Vec<double> v, int64_t n) {
  _mm256_maskstore_pd(p, first_lanes(0., n), v);
}
#endif

template <class Real>
inline Vec<Real> load(const Real* p, int64_t n) {
  return n >= Simd<Real>::width ? load(p) : load_first(p, n);
}

template <class Real>
inline void store(Real* p, Vec<Real> v, int64_t n) {
  if (n >= Simd<Real>::width)
    store(p, v);
  else
    store_first(p, v, n);
}

// e^x = 2^n e^r with |r| <= ln(2) / 2, as the pair 2^n and e^r - 1: kept apart, they give exp and
// expm1 both to the last place. The series of e^r - 1 is cut where its rest is below rounding.
template <class Real>
struct ExpParts {
  Vec<Real> scale, fraction;
};

template <class Real>
inline ExpParts<Real> exp_parts(Vec<Real> x) {
  using S = Simd<Real>;
  const Vec<Real> shifted = x * Real(1.4426950408889634074) + S::round;
  const Vec<Real> n = shifted - S::round;
  const Vec<Real> r = (x - n * S::ln2_hi) - n * S::ln2_lo;
  // Horner from the last term: r + r^2 (1/2! + r (1/3! + ... )).
  double factorial = 1;
  for (int k = 2; k <= S::terms; ++k) factorial *= k;
  Vec<Real> series = all(Real(1 / factorial));
#pragma GCC unroll 16
  for (int k = S::terms; k > 2; --k) {
    factorial /= k;
    series = series * r + Real(1 / factorial);
  }
  // The low bits of `shifted` hold n: moved into the exponent they make 2^n.
  const auto bits = (reinterpret_cast<typename S::Int>(shifted) + S::bias) << S::mantissa;
  return {reinterpret_cast<Vec<Real>>(bits), r + r * r * series};
}

template <class Real>
inline Vec<Real> magnitude(Vec<Real> x, typename Simd<Real>::Int& sign) {
  using Int = typename Simd<Real>::Int;
  sign = reinterpret_cast<Int>(x) & reinterpret_cast<Int>(-Vec<Real>{});
  return reinterpret_cast<Vec<Real>>(reinterpret_cast<Int>(x) ^ sign);
}

// From e = e^-|x|: e / (1 + e) below 0, and 1 minus that above, where it is small and its error
// too: 1 / (1 + e) would be rounded twice near 1, and the gradient has 1 - sigmoid as a factor.
template <class Real>
inline Vec<Real> sigmoid_of(Vec<Real> x) {
  using S = Simd<Real>;
  typename S::Int sign;
  Vec<Real> y = magnitude<Real>(x, sign);
  y = y > S::largest ? all<Real>(S::largest) : y;  // there 2^n becomes 0; a NaN passes by
  const auto p = exp_parts<Real>(-y);
  const Vec<Real> e = p.scale * p.fraction + p.scale;
  const Vec<Real> s = e / (1 + e);
  return x > 0 ? 1 - s : s;
}

// From m = e^2|x| - 1: m / (m + 2) near 0, which keeps the relative precision, and 1 - 2 / (m + 2)
// beyond, which loses nothing close to 1; then x's sign, that of a zero included.
template <class Real>
inline Vec<Real> tanh_of(Vec<Real> x) {
  using S = Simd<Real>;
  using Int = typename S::Int;
  Int sign;
  Vec<Real> y = 2 * magnitude<Real>(x, sign);
  y = y > S::flat ? all<Real>(S::flat) : y;
  const auto e = exp_parts<Real>(y);
  const Vec<Real> m = e.scale * e.fraction + (e.scale - 1);
  const Vec<Real> t = (m > 2 ? all(Real(2)) : m) / (m + 2);
  return reinterpret_cast<Vec<Real>>(reinterpret_cast<Int>(m > 2 ? 1 - t : t) | sign);
}

inline Vec<float> sigmoid(Vec<float> x) { return sigmoid_of<float>(x); }
inline Vec<double> sigmoid(Vec<double> x) { return sigmoid_of<double>(x); }
inline Vec<float> tanh(Vec<float> x) { return tanh_of<float>(x); }
inline Vec<double> tanh(Vec<double> x) { return tanh_of<double>(x); }
