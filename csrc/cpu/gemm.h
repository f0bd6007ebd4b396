// The matrix products without time dependence, on the recurrence's own tile: its blocked sums keep
// gradients as exact as the rest, and a general library leaves a third of the speed at these
// shapes. Included inside the namespace of an instruction set.
#pragma once

// c (+)= a w, for some blocks of rows and a part of the panels.
template <class Real, class Stored, class Panel>
static void multiply(const Multiply<Real, Stored, Panel>& p, int64_t block0, int64_t block1,
                     const Part& part) {
  constexpr int W = Simd<Real>::width;
  for (int64_t n = block0; n < block1; ++n) {
    const int64_t row = n * p.block, end = min_of(p.rows, row + p.block);
    tiles<4>(panels_of(p.N, 4 * W), part, n, row, end, end, [&](int64_t j, int64_t r, int M) {
      Tile<Real> sum = {};
      product_of_span(sum, p.N - j * 4 * W, M, p.a + r * p.a_row, p.a_row, p.K,
                      p.panels + j * rows_of_panel<Panel>(p.K) * 4 * W);
      for (int g = 0; g < 4 && (j * 4 + g) * W < p.N; ++g)
        for (int m = 0; m < M; ++m) {
          const int64_t column = (j * 4 + g) * W, left = p.N - column;
          Stored* to = p.c + (r + m) * p.c_row + column;
          store(to, p.accumulate ? load(to, left) + sum.v[g][m] : sum.v[g][m], left);
        }
    });
  }
}

// The factors of an outer sum's tiles: the columns [n0, n1) of b as panels [kSumChunk][4][W], and
// those of a from m0 on as they lie, rows a_row apart. Those of pairs: dots.h.
template <class Real, class Stored>
static void pack_right(const OuterSum<Real, Stored>& p, int64_t k0, int64_t rows, int64_t n0,
                       int64_t n1, Real* panels) {
  constexpr int W = Simd<Real>::width;
  for (int64_t k = 0; k < rows; ++k)
    for (int64_t v = 0; v < panels_of(n1 - n0, 4 * W) * 4; ++v) {
      const int64_t column = n0 + v * W;
      store(panels + (v / 4 * kSumChunk + k) * 4 * W + v % 4 * W,
            column < n1 ? load(p.b[k0 + k] + column, n1 - column) : Vec<Real>{});
    }
}

template <class Real, class Stored>
static const Real* left_factor(const OuterSum<Real, Stored>& p, int64_t k0, int64_t, int64_t m0,
                               int64_t, Real*) {
  return p.a + k0 * p.a_row + m0;
}

// c (+)= the sum of M rows from m on and the columns [n, n1), at most four vectors of them.
template <class Real, class Stored, class Panel>
static void add_tile(const OuterSum<Real, Stored, Panel>& p, const Tile<Real>& sum, int64_t m,
                     int M, int64_t n, int64_t n1, bool add, Stored* rounded) {
  constexpr int W = Simd<Real>::width;
  for (int64_t v = 0; v < 4 && n + v * W < n1; ++v)
    for (int64_t i = 0; i < M; ++i) {
      const int64_t column = n + v * W, left = n1 - column;
      const int64_t at = (m + i) * p.c_row + column * p.c_column;
      Real* c = p.c + at;
      const Vec<Real> part = sum.v[v][i];
      if (p.c_column == 1) {
        const Vec<Real> whole = add ? load(c, left) + part : part;
        if (rounded)
          store(rounded + at, whole, left);
        else
          store(c, whole, left);
      } else {
        for (int64_t u = 0; u < min_of(W, left); ++u)
          c[u * p.c_column] = (add ? c[u * p.c_column] : 0) + part[u];
      }
    }
}

// c (+)= a^T b, for the columns [m0, m1) of a and [n0, n1) of b. The scratch holds a chunk of b,
// and where the left factor is packed too, as many columns of a.
template <class Real, class Stored, class Panel>
static void outer_sum(const OuterSum<Real, Stored, Panel>& p, int64_t m0, int64_t m1, int64_t n0,
                      int64_t n1, Panel* scratch) {
  constexpr int W = Simd<Real>::width, R = kRows<4>;
  constexpr int64_t depth = rows_of_panel<Panel>(kSumChunk), columns = kSumColumns / R * R;
  const int64_t left_row = kPairs<Panel> ? kSumColumns : p.a_row;
  for (int64_t nb = n0; nb < n1; nb += kSumColumns)
    for (int64_t k0 = 0; k0 < p.K; k0 += kSumChunk) {
      const int64_t ne = min_of(n1, nb + kSumColumns), rows = min_of(kSumChunk, p.K - k0);
      pack_right(p, k0, rows, nb, ne, scratch);
      const bool add = p.accumulate || k0 > 0;
      Stored* rounded = k0 + rows == p.K ? p.rounded : nullptr;
      for (int64_t mb = m0; mb < m1; mb += columns) {
        const int64_t me = min_of(m1, mb + columns);
        const auto* left = left_factor(p, k0, rows, mb, me, scratch + depth * kSumColumns);
        for (int64_t m = mb; m < me; m += R)
          for (int64_t j = 0; j < panels_of(ne - nb, 4 * W); ++j) {
            const int M = int(min_of(R, me - m));
            Tile<Real> sum = {};
            if (p.c_column == 1)
              for (int64_t i = 0; i < M; ++i)
                for (int64_t v = 0; v < 4; ++v)
                  __builtin_prefetch(p.c + (m + i) * p.c_row + nb + (j * 4 + v) * W);
            product_of_span<transposed>(sum, ne - nb - j * 4 * W, M, left + (m - mb), left_row,
                                        rows_of_panel<Panel>(rows), scratch + j * depth * 4 * W);
            add_tile(p, sum, m, M, nb + j * 4 * W, ne, add, rounded);
          }
      }
    }
}

// Sums of the columns [m0, m1) of a: in blocks, then those of this call, and then of all, so that
// rounding errors grow with none of the three alone.
template <class Real, class Factor>
static void column_sums(const Factor* a, int64_t a_row, int64_t K, int64_t m0, int64_t m1,
                        Real* sums, bool accumulate) {
  constexpr int W = Simd<Real>::width;
  for (int64_t m = m0; m < m1; m += W) {
    const int64_t n = m1 - m;
    Vec<Real> total = {};
    for (int64_t k0 = 0; k0 < K; k0 += kShortBlock) {
      Vec<Real> sum = {};
      for (int64_t k = k0; k < min_of(K, k0 + kShortBlock); ++k) sum += load(a + k * a_row + m, n);
      total += sum;
    }
    store(sums + m, accumulate ? load(sums + m, n) + total : total, n);
  }
}
