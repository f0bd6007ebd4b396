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
  static constexpr float largest = 89.f, flat = 20.f;
  static constexpr int mantissa = 23, bias = 127, terms = 7;
};

template <>
struct Simd<double> {
  static constexpr int width = GATEDRNN_VECTOR_BYTES / sizeof(double);
  typedef double V __attribute__((vector_size(GATEDRNN_VECTOR_BYTES)));
  typedef int64_t Int __attribute__((vector_size(GATEDRNN_VECTOR_BYTES)));
  static constexpr double round = 6755399441055744.;  // 1.5 * 2^52
  static constexpr double ln2_hi = 0x1.62e42fefa0000p-1, ln2_lo = 0x1.cf79abc9e3b3ap-40;
  static constexpr double largest = 710., flat = 40.;
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

// The first n lanes, for the last units of a row: reads and writes nothing beyond them.
template <class Real>
inline Vec<Real> load(const Real* p, int64_t n) {
  if (n >= Simd<Real>::width) return load(p);
  Vec<Real> v = {};
  for (int64_t k = 0; k < n; ++k) v[k] = p[k];
  return v;
}

template <class Real>
inline void store(Real* p, Vec<Real> v, int64_t n) {
  if (n >= Simd<Real>::width) return store(p, v);
  for (int64_t k = 0; k < n; ++k) p[k] = v[k];
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
  Vec<Real> series = Vec<Real>{} + Real(1 / factorial);
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
inline Vec<Real> sigmoid_of(Vec<Real> x) {
  using S = Simd<Real>;
  // Beyond these bounds e^-x is 0 beside 1, or infinite; a NaN passes both comparisons by.
  Vec<Real> y = -x;
  y = y > S::largest ? Vec<Real>{} + S::largest : y;
  y = y < -S::flat * 2 ? Vec<Real>{} - S::flat * 2 : y;
  const auto e = exp_parts<Real>(y);
  return 1 / (1 + (1 + e.fraction) * e.scale);  // in this order, as the scale may be infinite
}

// tanh |x| = m / (m + 2) with m = e^2|x| - 1, which keeps its relative precision down to 0; then
// x's sign, that of a zero included.
template <class Real>
inline Vec<Real> tanh_of(Vec<Real> x) {
  using S = Simd<Real>;
  using Int = typename S::Int;
  const Int sign = reinterpret_cast<Int>(x) & reinterpret_cast<Int>(-Vec<Real>{});
  Vec<Real> y = 2 * reinterpret_cast<Vec<Real>>(reinterpret_cast<Int>(x) ^ sign);
  y = y > S::flat * 2 ? Vec<Real>{} + S::flat * 2 : y;
  const auto e = exp_parts<Real>(y);
  const Vec<Real> m = e.scale * e.fraction + (e.scale - 1);
  return reinterpret_cast<Vec<Real>>(reinterpret_cast<Int>(m / (m + 2)) | sign);
}

inline Vec<float> sigmoid(Vec<float> x) { return sigmoid_of<float>(x); }
inline Vec<double> sigmoid(Vec<double> x) { return sigmoid_of<double>(x); }
inline Vec<float> tanh(Vec<float> x) { return tanh_of<float>(x); }
inline Vec<double> tanh(Vec<double> x) { return tanh_of<double>(x); }
