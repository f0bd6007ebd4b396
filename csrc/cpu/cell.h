// A single step for the cells. For a few sequences it runs from the raw weights, as packing them
// would cost more than the step: W rows of weights are multiplied lane by lane along K, and their W
// vectors of partial sums are transposed and added, which leaves one vector of units. Included
// inside the namespace of an instruction set.
#pragma once

// Lane m: sum over k of w[m * K + k] * x[k] for the first n rows; W rows share each load of x.
template <class Real>
static inline Vec<Real> dots(const Real* w, const Real* x, int64_t K, int64_t n) {
  constexpr int W = Simd<Real>::width;
  Vec<Real> acc[W] = {};
  const Real* rows[W];
  for (int m = 0; m < W; ++m) rows[m] = w + (m < n ? m : n - 1) * K;
  int64_t k = 0;
  for (; k + W <= K; k += W) {
    const Vec<Real> xk = load(x + k);
#pragma GCC unroll 16
    for (int m = 0; m < W; ++m) acc[m] += load(rows[m] + k) * xk;
  }
  if (k < K) {
    const Vec<Real> xk = load(x + k, K - k);
    for (int m = 0; m < W; ++m) acc[m] += load(rows[m] + k, K - k) * xk;
  }
  transpose<Real>(acc);
#pragma GCC unroll 4
  for (int half = W / 2; half > 0; half /= 2)
    for (int m = 0; m < half; ++m) acc[m] += acc[m + half];
  return acc[0];
}

template <class Real>
static void cell_forward(const CellForward<Real>& p, int64_t unit0, int64_t unit1) {
  constexpr int W = Simd<Real>::width;
  const bool gru = p.cell == Cell::gru;
  const int G = gru ? 3 : 4;
  const int64_t H = p.H;
  for (int64_t u = unit0; u < unit1; u += W) {
    const int64_t n = min_of(W, unit1 - u);
    for (int64_t b = 0; b < p.B; ++b) {
      Vec<Real> ax[4], ah[4];  // pre-activations from the input and from the state
      for (int g = 0; g < G; ++g) {
        const int64_t row = g * H + u;
        if (p.gates_x) {
          ax[g] = load(p.gates_x + b * G * H + row, n);
          ah[g] = load(p.gates_h + b * G * H + row, n);
        } else {
          ax[g] = dots(p.w_ih + row * p.I, p.x + b * p.I, p.I, n);
          ah[g] = dots(p.w_hh + row * H, p.h + b * H, H, n);
          if (p.b_ih) ax[g] += load(p.b_ih + row, n);
          if (p.b_hh) ah[g] += load(p.b_hh + row, n);
        }
      }
      const int64_t at = b * H + u;
      if (gru) {
        const auto cell = gru_gates(ax[0] + ah[0], ax[1] + ah[1], ax[2], ah[2], load(p.h + at, n));
        store(p.h_next + at, cell.h, n);
        if (p.saved) {
          Real* saved = p.saved + b * 4 * H + u;
          store(saved, cell.r, n);
          store(saved + H, cell.z, n);
          store(saved + 2 * H, cell.n, n);
          store(saved + 3 * H, ah[2], n);
        }
      } else {
        const auto cell = lstm_gates(ax[0] + ah[0], ax[1] + ah[1], ax[2] + ah[2], ax[3] + ah[3],
                                     load(p.c + at, n));
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
  }
}

template <class Real>
static void cell_backward(const CellBackward<Real>& p, int64_t unit0, int64_t unit1) {
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
        store(p.dh_prev + at, d.dh_prev, n);
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
        store(p.dc_prev + at, d.dc_prev, n);
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
