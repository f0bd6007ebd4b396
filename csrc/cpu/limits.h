// What the machine can do at most, for the benchmarks: multiply-adds between registers, and
// reading. Included inside the namespace of an instruction set.
#pragma once

// Independent chains in registers, as many as hide the latency; returns the multiply-adds done.
// A chain is addend and factor both: on Arm the sum takes its addend's register, and another addend
// would have to be moved there first.
template <class Real>
static double multiply_adds(int64_t repeats) {
  constexpr int chains = GATEDRNN_VECTOR_REGISTERS >= 32 ? 20 : 12;
  volatile Real opaque = Real(1e-30), sink;  // so small that the chains stay what they are
  const Vec<Real> a = all<Real>(opaque);
  Vec<Real> acc[chains];
  for (int c = 0; c < chains; ++c) acc[c] = all(Real(c));  // equal chains would be merged
  for (int64_t k = 0; k < repeats; ++k)
#pragma GCC unroll 20
    for (int c = 0; c < chains; ++c) acc[c] = acc[c] * a + acc[c];
  Vec<Real> sum = {};
  for (int c = 0; c < chains; ++c) sum += acc[c];
  sink = sum[0];
  (void)sink;
  return double(repeats) * chains * Simd<Real>::width;
}

// Reads n elements `passes` times; n is a multiple of eight vectors.
template <class Real>
static void read_all(const Real* data, int64_t n, int64_t passes) {
  constexpr int W = Simd<Real>::width;
  volatile Real sink;
  Vec<Real> sums[8] = {};
  for (int64_t pass = 0; pass < passes; ++pass) {
    for (int64_t i = 0; i < n; i += 8 * W)
#pragma GCC unroll 8
      for (int j = 0; j < 8; ++j) sums[j] += load(data + i + j * W);
    asm volatile("" : : : "memory");  // the next pass reads again
  }
  for (int j = 1; j < 8; ++j) sums[0] += sums[j];
  sink = sums[0][0];
  (void)sink;
}
