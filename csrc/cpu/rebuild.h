// The gates of many steps at once, from their states, which backward has: the step's product for
// all rows of a chunk, whatever step they are of. A block of rows is copied, one after another,
// then goes through all panels. Included inside the namespace of an instruction set.
#pragma once

template <class Real, class Stored, class Panel>
static void rebuild_tile(const Rebuild<Real, Stored, Panel>& p, const FactorOf<Real, Panel>* x,
                         const FactorOf<Real, Panel>* h, int64_t j, int64_t row, int M) {
  constexpr int W = Simd<Real>::width;
  const int64_t G = p.cell == Cell::gru ? 3 : 4;
  const Panel* w_hh = p.w_hh + j * rows_of_panel<Panel>(p.P) * G * W;
  const Panel* w_ih = p.w_ih + j * rows_of_panel<Panel>(p.I) * G * W;
  const int64_t H = p.H, u = j * W, n = min_of(W, H - u), padded = panels_of(H, W) * W;
  const int64_t kept = gates_kept<Stored>(p.cell) * H;
  Tile<Real> a;
  for (int g = 0; g < 4; ++g) {
    const Vec<Real> bias = load(p.bias + g * padded + u);
    for (int m = 0; m < M; ++m) a.v[g][m] = bias;
  }
  if (p.cell == Cell::gru) {
    product<3>(a, {0, 1, 3}, M, h, p.state_row, p.P, w_hh);
    product<3>(a, {0, 1, 2}, M, x, p.x_row, p.I, w_ih);
  } else {
    product<4>(a, {0, 1, 2, 3}, M, h, p.state_row, p.P, w_hh);
    product<4>(a, {0, 1, 2, 3}, M, x, p.x_row, p.I, w_ih);
  }
  for (int m = 0; m < M; ++m) {
    Stored* saved = p.gates + (row + m) * kept + u;
    const Vec<Real> first = sigmoid(a.v[0][m]);
    store(saved, first, n);
    store(saved + H, sigmoid(a.v[1][m]), n);
    if (p.cell == Cell::gru) {
      store(saved + 2 * H, a.v[3][m], n);
      if constexpr (kNarrow<Real, Stored>)
        store(saved + 3 * H, tanh(a.v[2][m] + first * a.v[3][m]), n);
    } else {
      store(saved + 2 * H, tanh(a.v[2][m]), n);
      store(saved + 3 * H, sigmoid(a.v[3][m]), n);
    }
  }
}

template <class Real, class Stored, class Panel>
static void rebuild(const Rebuild<Real, Stored, Panel>& p, int64_t row0, int64_t row1,
                    FactorOf<Real, Panel>* scratch) {
  auto *x = scratch, *h = scratch + kRowBlock * p.x_row;
  const int64_t panels = panels_of(p.H, Simd<Real>::width);
  for (int64_t row = row0; row < row1; row += kRowBlock) {
    const int64_t rows = min_of(kRowBlock, row1 - row);
    widen_rows([&](int64_t k) { return p.x[row + k]; }, x, p.x_row, p.I, 0, rows, Part{});
    widen_rows([&](int64_t k) { return p.previous[row + k]; }, h, p.state_row, p.P, 0, rows,
               Part{});
    const auto tile = [&](int64_t j, int64_t r, int M) {
      rebuild_tile(p, x + r * p.x_row, h + r * p.state_row, j, row + r, M);
    };
    if (p.cell == Cell::gru)
      tiles<3>(panels, Part{}, 0, 0, rows, rows, tile);
    else
      tiles<4>(panels, Part{}, 0, 0, rows, rows, tile);
  }
}
