// A single step for the cells, from the raw weights: packed ones would be stale after the next
// optimizer step, and there is but one step to earn the packing. Included inside the namespace of
// an instruction set.
//
// For few sequences W rows of weights are multiplied lane by lane along K, and their W vectors of
// partial sums are added up crosswise, which leaves one vector of units. For more the weights of
// W units at a time are transposed into a panel, which all sequences pass while it is in the cache.
#pragma once

// The last n < W of K elements, the other lanes zero, read from whole vectors if K has one.
template <class Real>
static inline Vec<Real> tail_of(const Real* row, int64_t K, int64_t n) {
  constexpr int W = Simd<Real>::width;
  if (K < W) return load(row + K - n, n);
  typename Simd<Real>::Int lane;
  for (int k = 0; k < W; ++k) lane[k] = k;
  return lane >= int(W - n) ? load(row + K - W) : Vec<Real>{};
}

// Rows of weights that are multiplied with M sequences together: their sums fill the registers.
template <class Real, int M>
constexpr int kDotRows = [] {
  const int most = (GATEDRNN_VECTOR_REGISTERS >= 32 ? 8 : 4) * (M == 1 ? 2 : 1);
  return Simd<Real>::width < most ? Simd<Real>::width : most;
}();

template <class Real>
using Dots = Vec<Real>[Simd<Real>::width];

// GCC would rather read a vector again at each of its uses, and loads are what limits the dots.
template <class V>
static inline void in_register([[maybe_unused]] V& v) {
#ifdef __x86_64__
  asm("" : "+v"(v));
#endif
}

// Vectors of a row that are summed from zero, so that rounding errors do not grow with K.
constexpr int64_t kDotBlock = 32;

// acc[m][i], all lanes together: sum over k of w[i * K + k] * x[m * K + k] for i < n, to be added
// to what is there already unless it is the `first`.
template <int M, class Real>
static inline void dots(bool first, Dots<Real>* acc, const Real* w, const Real* x, int64_t K,
                        int64_t n) {
  constexpr int W = Simd<Real>::width, R = kDotRows<Real, M>;
  for (int r = 0; r < n; r += R) {
    const Real* rows[R];
#pragma GCC unroll 16
    for (int i = 0; i < R; ++i) rows[i] = w + min_of(r + i, n - 1) * K;
    int64_t k = 0;
    do {
      const bool set = first && k == 0;
      const int64_t end = min_of(K, k + kDotBlock * W);
      Vec<Real> sum[R][M] = {};
      for (; k + W <= end; k += W) {
        Vec<Real> xk[M];
#pragma GCC unroll 4
        for (int m = 0; m < M; ++m) xk[m] = load(x + m * K + k);
#pragma GCC unroll 16
        for (int i = 0; i < R; ++i) {
          Vec<Real> wk = load(rows[i] + k);
          in_register(wk);
#pragma GCC unroll 4
          for (int m = 0; m < M; ++m) sum[i][m] += wk * xk[m];
        }
      }
      if (k < end) {
#pragma GCC unroll 16
        for (int i = 0; i < R; ++i) {
          const Vec<Real> wk = tail_of(rows[i], K, K - k);
#pragma GCC unroll 4
          for (int m = 0; m < M; ++m) sum[i][m] += wk * tail_of(x + m * K, K, K - k);
        }
        k = end;
      }
#pragma GCC unroll 16
      for (int i = 0; i < R; ++i)
#pragma GCC unroll 4
        for (int m = 0; m < M; ++m) acc[m][r + i] = set ? sum[i][m] : acc[m][r + i] + sum[i][m];
    } while (k < K);
  }
}

// Lane m: the sum of acc[m]'s lanes. Each round adds two halves of every vector, and two vectors
// become one: those of rows that differ in bit d share lanes that differ in it.
template <class Real>
static inline Vec<Real> sums_of(Vec<Real> (&acc)[Simd<Real>::width]) {
  constexpr int W = Simd<Real>::width;
  using Int = typename Simd<Real>::Int;
#pragma GCC unroll 4
  for (int d = W / 2; d > 0; d /= 2) {
    Int low = {}, high = {};
#pragma GCC unroll 16
    for (int k = 0; k < W; ++k) {
      low[k] = k & d ? W + k - d : k;
      high[k] = k & d ? W + k : k + d;
    }
#pragma GCC unroll 8
    for (int m = 0; m < d; ++m)
      acc[m] =
          __builtin_shuffle(acc[m], acc[m + d], low) + __builtin_shuffle(acc[m], acc[m + d], high);
  }
  return acc[0];
}

// From pre-activations to states, for n units from u on. GRU: r, z, n, q; LSTM: i, f, g, o.
template <class Real>
static inline void cell_gates(const CellForward<Real>& p, int64_t b, int64_t u, int64_t n,
                              Vec<Real> a0, Vec<Real> a1, Vec<Real> a2, Vec<Real> a3) {
  const int64_t H = p.H, at = b * H + u;
  if (p.cell == Cell::gru) {
    const auto cell = gru_gates(a0, a1, a2, a3, load(p.h + at, n));
    store(p.h_next + at, cell.h, n);
    if (p.saved) {
      Real* saved = p.saved + b * 4 * H + u;
      store(saved, cell.r, n);
      store(saved + H, cell.z, n);
      store(saved + 2 * H, cell.n, n);
      store(saved + 3 * H, a3, n);
    }
  } else {
    const auto cell = lstm_gates(a0, a1, a2, a3, load(p.c + at, n));
    store(p.h_next + at, cell.h, n);
    store(p.c_next + at, cell.c, n);
    if (p.saved) {
      Real* saved = p.saved + b * 5 * H + u;
      store(saved, cell.i, n);
      store(saved + H, cell.f, n);
      store(saved + 2 * H, cell.g, n);
      store(saved + 3 * H, cell.o, n);
      store(saved + 4 * H, tanh(cell.c), n);
    }
  }
}

// The biases of n units from u on, laid out as the gates; those of input and state in one, but for
// the GRU's n and q.
template <class Real>
static inline void cell_bias(const CellForward<Real>& p, int64_t u, int64_t n,
                             Vec<Real> (&bias)[4]) {
  const bool gru = p.cell == Cell::gru;
  for (int g = 0; g < 4; ++g) {
    bias[g] = Vec<Real>{};
    if (p.b_ih && !(gru && g == 3)) bias[g] += load(p.b_ih + g * p.H + u, n);
    if (p.b_hh && !(gru && g == 2)) bias[g] += load(p.b_hh + (gru && g == 3 ? 2 : g) * p.H + u, n);
  }
}

template <int M, class Real>
static void cell_forward_rows(const CellForward<Real>& p, int64_t b, int64_t u, int64_t n,
                              const Vec<Real> (&bias)[4]) {
  const bool gru = p.cell == Cell::gru;
  Vec<Real> a[M][4];
  for (int g = 0; g < 4; ++g) {
    Dots<Real> acc[M];
    if (n < Simd<Real>::width) __builtin_memset(acc, 0, sizeof acc);
    const bool input = !(gru && g == 3), state = !(gru && g == 2);
    if (input) dots<M>(true, acc, p.w_ih + (g * p.H + u) * p.I, p.x + b * p.I, p.I, n);
    if (state) {
      const int64_t row = (input ? g : 2) * p.H + u;
      dots<M>(!input, acc, p.w_hh + row * p.H, p.h + b * p.H, p.H, n);
    }
    for (int m = 0; m < M; ++m) a[m][g] = bias[g] + sums_of<Real>(acc[m]);
  }
  for (int m = 0; m < M; ++m) cell_gates(p, b + m, u, n, a[m][0], a[m][1], a[m][2], a[m][3]);
}

// `panel` holds the weights of W units for the input, [I][G][W], and then for the state.
template <class Real, int G>
static void cell_forward_panel(const CellForward<Real>& p, int64_t row0, int64_t row1, int64_t u,
                               int64_t n, const Vec<Real> (&bias)[4], Real* panel) {
  constexpr int W = Simd<Real>::width;
  constexpr auto to = [] {
    struct {
      int x[G], h[G];
    } rows{};
    for (int g = 0; g < G; ++g) rows.x[g] = rows.h[g] = g;
    rows.h[2] = G == 3 ? 3 : 2;
    return rows;
  }();
  Real* state = panel + p.I * G * W;
  pack_rows(p.w_ih + u * p.I, p.I, G, n, p.H, W, panel, 0, 1);
  pack_rows(p.w_hh + u * p.H, p.H, G, n, p.H, W, state, 0, 1);
  tiles<G>(1, Part{}, 0, row0, row1, row1, [&](int64_t, int64_t b, int M) {
    Tile<Real> a;
    for (int g = 0; g < 4; ++g)
      for (int m = 0; m < M; ++m) a.v[g][m] = bias[g];
    product<G>(a, to.x, M, p.x + b * p.I, p.I, p.I, panel);
    product<G>(a, to.h, M, p.h + b * p.H, p.H, p.H, state);
    for (int m = 0; m < M; ++m)
      cell_gates(p, b + m, u, n, a.v[0][m], a.v[1][m], a.v[2][m], a.v[3][m]);
  });
}

template <class Real>
static void cell_forward(const CellForward<Real>& p, int64_t row0, int64_t row1, int64_t unit0,
                         int64_t unit1, Real* panel) {
  constexpr int W = Simd<Real>::width;
  for (int64_t u = unit0; u < unit1; u += W) {
    const int64_t n = min_of(W, unit1 - u);
    Vec<Real> bias[4];
    cell_bias(p, u, n, bias);
    if (!panel) {
      int64_t b = row0;
      for (; row1 - b > 4 || row1 - b == 3; b += 3) cell_forward_rows<3>(p, b, u, n, bias);
      for (; row1 - b >= 2; b += 2) cell_forward_rows<2>(p, b, u, n, bias);
      for (; b < row1; ++b) cell_forward_rows<1>(p, b, u, n, bias);
    } else if (p.cell == Cell::gru) {
      cell_forward_panel<Real, 3>(p, row0, row1, u, n, bias, panel);
    } else {
      cell_forward_panel<Real, 4>(p, row0, row1, u, n, bias, panel);
    }
  }
}

template <class Real>
static void cell_gates_backward(const CellBackward<Real>& p, int64_t unit0, int64_t unit1) {
  constexpr int W = Simd<Real>::width;
  const int64_t H = p.H;
  for (int64_t b = 0; b < p.B; ++b)
    for (int64_t u = unit0; u < unit1; u += W) {
      const int64_t n = min_of(W, unit1 - u), at = b * H + u;
      const Vec<Real> dh = p.dh ? load(p.dh + at, n) : Vec<Real>{};
      if (p.cell == Cell::gru) {
        const Real* saved = p.saved + b * 4 * H + u;
        const auto d =
            gru_gates_backward(dh, load(saved, n), load(saved + H, n), load(saved + 2 * H, n),
                               load(saved + 3 * H, n), load(p.h + at, n));
        Real *dx = p.dgates_x + b * 3 * H + u, *dg = p.dgates_h + b * 3 * H + u;
        store(dx, d.da_r, n);
        store(dx + H, d.da_z, n);
        store(dx + 2 * H, d.da_n, n);
        store(dg, d.da_r, n);
        store(dg + H, d.da_z, n);
        store(dg + 2 * H, d.dq, n);
        if (p.dh_prev) store(p.dh_prev + at, d.dh_prev, n);
      } else {
        const Real* saved = p.saved + b * 5 * H + u;
        const Vec<Real> dc = p.dc ? load(p.dc + at, n) : Vec<Real>{};
        const auto d =
            lstm_gates_backward(dh, dc, load(saved, n), load(saved + H, n), load(saved + 2 * H, n),
                                load(saved + 3 * H, n), load(p.c + at, n), load(saved + 4 * H, n));
        Real* dx = p.dgates_x + b * 4 * H + u;
        store(dx, d.da_i, n);
        store(dx + H, d.da_f, n);
        store(dx + 2 * H, d.da_g, n);
        store(dx + 3 * H, d.da_o, n);
        if (p.dc_prev) store(p.dc_prev + at, d.dc_prev, n);
      }
    }
}

// M sequences from the b-th on, R rows of the weights from the r-th on: a's gradient is added to
// `sums` [B, K], that of the weights to what earlier groups of sequences left.
template <class Real, int M, int R>
static void product_backward_rows(const ProductBackward<Real>& p, int64_t b, int64_t r,
                                  Real* sums) {
  constexpr int W = Simd<Real>::width;
  Real d[M][R];
  for (int m = 0; m < M; ++m)
    for (int i = 0; i < R; ++i) d[m][i] = p.d[(b + m) * p.N + r + i];
  for (int64_t k = 0; k < p.K; k += W) {
    const int64_t n = min_of(W, p.K - k);
    Vec<Real> w[R], dw[R];
#pragma GCC unroll 4
    for (int i = 0; i < R; ++i) {
      w[i] = load(p.w + (r + i) * p.K + k, n);
      dw[i] = b && p.dw ? load(p.dw + (r + i) * p.K + k, n) : Vec<Real>{};
    }
#pragma GCC unroll 4
    for (int m = 0; m < M; ++m) {
      const Vec<Real> a = load(p.a + (b + m) * p.K + k, n);
      Real* sum = sums + (b + m) * p.K + k;
      Vec<Real> da = load(sum, n);
#pragma GCC unroll 4
      for (int i = 0; i < R; ++i) {
        da += d[m][i] * w[i];
        dw[i] += d[m][i] * a;
      }
      store(sum, da, n);
    }
    if (p.dw)
#pragma GCC unroll 4
      for (int i = 0; i < R; ++i) store(p.dw + (r + i) * p.K + k, dw[i], n);
  }
}

template <class Real, int M>
static void product_backward_group(const ProductBackward<Real>& p, int64_t b, int64_t r0,
                                   int64_t r1, Real* sums) {
  int64_t r = r0;
  for (; r + 4 <= r1; r += 4) product_backward_rows<Real, M, 4>(p, b, r, sums);
  for (; r < r1; ++r) product_backward_rows<Real, M, 1>(p, b, r, sums);
}

// The weights' gradient, and each stretch's part of that of a, which product_backward_cpu adds up.
// Threads share the rows: with columns they would write into each other's pages.
template <class Real>
static void product_backward(const ProductBackward<Real>& p, int64_t stretch0, int64_t stretch1) {
  for (int64_t s = stretch0; s < stretch1; ++s) {
    const int64_t r0 = s * kStretch, r1 = min_of(p.N, r0 + kStretch);
    Real* sums = p.parts + s * p.B * p.K;
    for (int64_t k = 0; k < p.B * p.K; ++k) sums[k] = 0;
    int64_t b = 0;
    for (; b + 4 <= p.B; b += 4) product_backward_group<Real, 4>(p, b, r0, r1, sums);
    for (; b + 2 <= p.B; b += 2) product_backward_group<Real, 2>(p, b, r0, r1, sums);
    for (; b < p.B; ++b) product_backward_group<Real, 1>(p, b, r0, r1, sums);
    for (int64_t r = r0; p.db && r < r1; ++r) {
      Real sum = 0;
      for (b = 0; b < p.B; ++b) sum += p.d[b * p.N + r];
      p.db[r] = sum;
    }
  }
}

// a's gradient for the columns of the panels [panel0, panel1), 4W each, from d and the raw weights:
// kSumChunk rows of them at a time become a panel in `scratch` that all sequences pass.
template <class Real>
static void input_gradient(const ProductBackward<Real>& p, int64_t row0, int64_t row1,
                           int64_t panel0, int64_t panel1, Real* scratch) {
  constexpr int W = Simd<Real>::width, span = 4 * W;
  for (int64_t j = panel0; j < panel1; ++j)
    for (int64_t n = 0; n < p.N; n += kSumChunk) {
      const int64_t rows = min_of(kSumChunk, p.N - n), column = j * span;
      for (int64_t r = 0; r < rows; ++r)
        for (int v = 0; v < 4; ++v) {
          const int64_t k = column + v * W;
          store(scratch + r * span + v * W,
                k < p.K ? load(p.w + (n + r) * p.K + k, p.K - k) : Vec<Real>{});
        }
      const Real* sum = n ? p.da : p.direct;
      tiles<4>(1, Part{}, 0, row0, row1, row1, [&](int64_t, int64_t b, int M) {
        Tile<Real> a = {};
        product_of_span(a, p.K - column, M, p.d + b * p.N + n, p.N, rows, scratch);
        for (int m = 0; m < M; ++m)
          for (int v = 0; v < 4; ++v) {
            const int64_t k = column + v * W, at = (b + m) * p.K + k, left = p.K - k;
            if (left <= 0) break;
            store(p.da + at, sum ? load(sum + at, left) + a.v[v][m] : a.v[v][m], left);
          }
      });
    }
}
