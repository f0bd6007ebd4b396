// Weights in the order in which the tiles read them: panels [K][G][W], zero beyond the last unit.
// Packed once a sequence call; its cost is that of one or two time steps. Included inside the
// namespace of an instruction set.
#pragma once

// One exchange between two rows d apart. k are a row's lanes; the lanes of the pair that make up
// the new rows are constants for the compiler, which otherwise may shuffle them one by one.
template <class Real, int d, int... k>
static inline void exchange(Vec<Real>& a, Vec<Real>& b, std::integer_sequence<int, k...>) {
  constexpr int W = Simd<Real>::width;
  using Int = typename Simd<Real>::Int;
  const Vec<Real> low = __builtin_shuffle(a, b, Int{(k & d ? W + k - d : k)...});
  b = __builtin_shuffle(a, b, Int{(k & d ? W + k : k + d)...});
  a = low;
}

// Transposes W vectors of W lanes in place: log2(W) rounds of exchanges between rows d apart.
template <class Real, int d = Simd<Real>::width / 2>
static inline void transpose(Vec<Real> (&v)[Simd<Real>::width]) {
  constexpr int W = Simd<Real>::width;
  if constexpr (d > 0) {
#pragma GCC unroll 16
    for (int m = 0; m < W; ++m)
      if (!(m & d)) exchange<Real, d>(v[m], v[m + d], std::make_integer_sequence<int, W>());
    transpose<Real, d / 2>(v);
  }
}

// Forward panels: unit u of gate g is row g * gate_stride + u of w [.., K], and lane u % W of
// panel[u / panel_stride]. With gate_stride = H, panel_stride = W the gates of a unit stand side by
// side; with gate_stride = W, panel_stride = G * W a panel holds G * W neighbouring rows.
template <class Stored, class Panel>
static void pack_rows(const Stored* w, int64_t K, int G, int64_t units, int64_t gate_stride,
                      int64_t panel_stride, Panel* panels, int64_t panel0, int64_t panel1) {
  using Real = RealOf<Stored>;
  constexpr int W = Simd<Real>::width;
  const bool gates = panel_stride == W;
  for (int64_t j = panel0; j < panel1; ++j) {
    Panel* panel = panels + j * K * G * W;
    for (int g = 0; g < G; ++g) {
      const int64_t first = j * panel_stride + g * gate_stride;
      const int64_t left = units - j * panel_stride - (gates ? 0 : g * W);
      for (int64_t k = 0; k < K; k += W) {
        Vec<Real> v[W];
#pragma GCC unroll 16
        for (int m = 0; m < W; ++m)
          v[m] = m < left ? load(w + (first + m) * K + k, K - k) : Vec<Real>{};
        transpose<Real>(v);
        for (int m = 0; m < W && k + m < K; ++m) store_gate(panel + (k + m) * G * W, g, G, v[m]);
      }
    }
  }
}

// Backward panels: the product runs over the rows of w [K, N], so columns become lanes. Panels may
// have more rows than w, for several matrices one under the other: panel_rows.
template <class Stored, class Panel>
static void pack_columns(const Stored* w, int64_t K, int64_t N, Panel* panels, int64_t panel_rows,
                         int64_t panel0, int64_t panel1) {
  using Real = RealOf<Stored>;
  constexpr int W = Simd<Real>::width, span = 4 * W;
  for (int64_t j = panel0; j < panel1; ++j)
    for (int64_t k = 0; k < K; ++k)
      for (int g = 0; g < 4; ++g) {
        const int64_t column = j * span + g * W;
        const Vec<Real> v = column < N ? load(w + k * N + column, N - column) : Vec<Real>{};
        store_gate(panels + (j * panel_rows + k) * span, g, 4, v);
      }
}
