// The recurrent product's tile: up to kRows<G> sequences times G vectors of units, in registers.
//
//              panel [K][G][W]                    W lanes: units j*W ... j*W + W - 1
//            k |g0|g1|..|                         G vectors: the unit's gates (forward), or
//   rows  .----+--+--+--+                                    neighbouring units (backward)
//    m    | a  |acc[m][g]|  += a[m][k] * panel[k][g]
//         '----+--+--+--+
//
// The accumulators fill the register file beside G vectors of the panel. A sum over K is cut into
// blocks, each summed from zero, so that rounding errors do not grow with K. Included inside the
// namespace of an instruction set.
#pragma once

static inline int64_t min_of(int64_t a, int64_t b) { return a < b ? a : b; }
static inline int64_t max_of(int64_t a, int64_t b) { return a > b ? a : b; }
static inline int64_t panels_of(int64_t units, int64_t span) { return (units + span - 1) / span; }

#if GATEDRNN_VECTOR_REGISTERS >= 32
template <int G>
constexpr int kRows = 24 / G;  // 8 for 3 gates, 6 for 4
#else
template <int G>
constexpr int kRows = 12 / G;
#endif
constexpr int kMaxRows = kRows<3>;
// A short sum over steps and sequences is where equal terms, whose rounding errors are equal too,
// show most, and where shorter blocks cost nothing.
constexpr int64_t kBlock = 64, kShortSum = 128, kShortBlock = 24;
// How many k ahead the panel is asked for: the hardware's own prefetch stops at every page, which
// costs a fifth of the speed where the weights come from beyond L2. But tiles of so few rows wait
// for the loads themselves, of which asking ahead is one more: it costs them up to a fifth.
constexpr int64_t kAhead = 16;
constexpr int kLoadBound = 4;

template <class Real>
struct Tile {
  Vec<Real> v[4][kMaxRows];  // pre-activations: one vector of units per gate and row
};

// How the tile's factor a lies: as [M][K], or as [K][M].
enum Layout { by_row, transposed };

// tile.v[to[g]][m] += sum over k of a[m][k] * panel[k][g], m < M, with a's rows lda apart. A
// panel's rows are S >= G vectors.
template <int M, int G, Layout layout, int S, class Real, class Panel>
static void product_rows(Tile<Real>& tile, const int* to, const Real* a, int64_t lda, int64_t K,
                         const Panel* panel) {
  constexpr int W = Simd<Real>::width;
  const int64_t block = layout == by_row || K >= kShortSum ? kBlock : kShortBlock;
  for (int64_t k0 = 0; k0 < K; k0 += block) {
    const int64_t k1 = k0 + block < K ? k0 + block : K;
    Vec<Real> acc[M][G] = {};
    for (int64_t k = k0; k < k1; ++k) {
      const Panel* row = panel + k * S * W;
      if constexpr (layout == transposed) __builtin_prefetch(a + (k + kAhead) * lda);
#pragma GCC unroll 4
      for (int g = 0; g < G; ++g)  // line by line
        if (M > kLoadBound && g * W * sizeof(Panel) % 64 == 0)
          __builtin_prefetch(row + (kAhead * S + g) * W);
      Vec<Real> w[G];
      load_gates<S>(row, w);
#pragma GCC unroll 8
      for (int m = 0; m < M; ++m) {
        const Vec<Real> am = all(layout == by_row ? a[m * lda + k] : a[k * lda + m]);
#pragma GCC unroll 4
        for (int g = 0; g < G; ++g) acc[m][g] += am * w[g];
      }
    }
#pragma GCC unroll 8
    for (int m = 0; m < M; ++m)
#pragma GCC unroll 4
      for (int g = 0; g < G; ++g) tile.v[to[g]][m] += acc[m][g];
  }
}

// The same for a number of rows known at run time, 1 <= M <= kRows<S>.
template <int G, Layout layout = by_row, int S = G, class Real, class Factor, class Panel>
static void product(Tile<Real>& tile, const int (&to)[G], int M, const Factor* a, int64_t lda,
                    int64_t K, const Panel* panel) {
  const auto rows = [&]<int count>() {
    product_rows<count, G, layout, S>(tile, to, a, lda, K, panel);
  };
  if constexpr (kRows<S> > 4) {
    if (M == 5) return rows.template operator()<5>();
    if (M == 6) return rows.template operator()<6>();
  }
  if constexpr (kRows<S> > 6) {
    if (M == 7) return rows.template operator()<7>();
    if (M == 8) return rows.template operator()<8>();
  }
  if constexpr (kRows<S> > 3) {
    if (M == 4) return rows.template operator()<4>();
  }
  if (M == 3) return rows.template operator()<3>();
  if (M == 2) return rows.template operator()<2>();
  return rows.template operator()<1>();
}

// The same where a panel's vectors are neighbouring columns, of which `left` are left: no others
// are computed.
template <Layout layout = by_row, class Real, class Factor, class Panel>
static void product_of_span(Tile<Real>& tile, int64_t left, int M, const Factor* a, int64_t lda,
                            int64_t K, const Panel* panel) {
  constexpr int W = Simd<Real>::width;
  if (left > 3 * W) return product<4, layout>(tile, {0, 1, 2, 3}, M, a, lda, K, panel);
  if (left > 2 * W) return product<3, layout, 4>(tile, {0, 1, 2}, M, a, lda, K, panel);
  if (left > W) return product<2, layout, 4>(tile, {0, 1}, M, a, lda, K, panel);
  product<1, layout, 4>(tile, {0}, M, a, lda, K, panel);
}
