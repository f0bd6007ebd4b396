// The forward time loop of one direction of one layer, for some rows (sequences) and some units.
//
//        units ->   |panel 0|panel 1|  ...        A thread either owns rows and all units, and
//   rows   tile     +-------+-------+             then walks all T alone; or it owns units of all
//    |     kRows    | r z n | r z n |             rows, and meets the others at the barrier once
//    v              +-------+-------+             a step. Both are this same function.
//
// In a step the panel is the outer loop: its weights come from L2 once for all rows. h(t-1) is read
// from where step t-1 wrote it in y. Where storage is narrow the state is carried beside y; and
// unless products take what is stored, each step widens its share of the next one's input. Where
// the plan says so, W_ih x is made for several steps at a time. Included inside the namespace of an
// instruction set.
#pragma once

// W_ih x of some steps for the units of a part, made ahead of them.
template <class Real, class Factor>
struct Products {
  int64_t ahead;   // steps at a time, or 0: there are none
  Factor* inputs;  // [rows][x_row]
  Real* data;      // panels [rows][G][W]
  int64_t rows;    // of a panel

  Real* at(int64_t j, int64_t row, int G) const {
    return data + (j * rows + row) * G * Simd<Real>::width;
  }
};

// Whether products read copies of state and input that were widened for them.
template <class Real, class Stored, class Panel>
constexpr bool kWidened = !std::is_same_v<FactorOf<Real, Panel>, Stored>;

template <class Real, class Stored, class Panel>
struct ForwardStep {
  using Factor = FactorOf<Real, Panel>;
  const Forward<Real, Stored>& p;
  const ForwardWork<Real, Panel>& work;
  int64_t k, t, previous;
  int64_t carried;     // rows below have h(t-1) in y, the others begin at h0
  int64_t final_from;  // rows from here on have their last step at t
  const Products<Real, Factor>& products;
  int64_t place;  // of the step's first row among their rows

  const Factor* state(int64_t b) const {
    if constexpr (kWidened<Real, Stored, Panel>)
      return work.state[k % 2] + b * work.state_row;
    else
      return b < carried ? p.y.at(previous, b) : p.h0 + b * p.P;
  }
  int64_t state_stride(int64_t b) const {
    return kWidened<Real, Stored, Panel> ? work.state_row : b < carried ? p.y.row : p.P;
  }

  // h(t-1) as it is carried.
  Vec<Real> carried_state(int64_t row, int64_t u, int64_t n) const {
    if constexpr (kNarrow<Real, Stored>)
      return load(work.state[k % 2] + row * work.state_row + u, n);
    else
      return load(state(row) + u, n);
  }

  const Factor* input(int64_t b) const {
    if constexpr (kWidened<Real, Stored, Panel>)
      return work.x[k % 2] + b * work.x_row;
    else
      return p.x.at(t, b);
  }
  bool keeps_gates() const { return p.gates && k >= p.gates_from; }
  int64_t input_stride() const { return kWidened<Real, Stored, Panel> ? work.x_row : p.x.row; }

  void store_state(int64_t row, int64_t u, Vec<Real> h, int64_t n) const {
    store(p.y.at(t, row) + u, h, n);
    if (work.state[0]) store(work.state[(k + 1) % 2] + row * work.state_row + u, h, n);
    if (row >= final_from) store(p.hn + row * p.P + u, h, n);
  }
};

template <class Real, class Stored, class Panel>
static void forward_tile(const ForwardStep<Real, Stored, Panel>& s, int64_t j, int64_t b, int M) {
  constexpr int W = Simd<Real>::width;
  const Forward<Real, Stored>& p = s.p;
  const ForwardWork<Real, Panel>& work = s.work;
  const int64_t H = p.H, u = j * W, n = min_of(W, H - u), padded = panels_of(H, W) * W;
  const bool gru = p.cell == Cell::gru;
  Tile<Real> a;
  for (int g = 0; g < 4; ++g) {
    const Vec<Real> bias = load(work.bias + g * padded + u);
    for (int m = 0; m < M; ++m) a.v[g][m] = bias;
  }
  const auto* h = s.state(b);
  const int64_t ldh = s.state_stride(b);
  const int64_t G = gru ? 3 : 4;
  const Panel* w_hh = work.w_hh + j * rows_of_panel<Panel>(p.P) * G * W;
  const Panel* w_ih = work.w_ih + j * rows_of_panel<Panel>(p.I) * G * W;
  // GRU tiles: r, z, n (input side), q (recurrent side); LSTM tiles: i, f, g, o.
  if (gru)
    product<3>(a, {0, 1, 3}, M, h, ldh, p.P, w_hh);
  else
    product<4>(a, {0, 1, 2, 3}, M, h, ldh, p.P, w_hh);
  if (s.products.ahead) {
    const Real* ready = s.products.at(j, s.place + b, int(G));
    for (int m = 0; m < M; ++m)
      for (int g = 0; g < G; ++g) a.v[g][m] += load(ready + (m * G + g) * W);
  } else if (gru) {
    product<3>(a, {0, 1, 2}, M, s.input(b), s.input_stride(), p.I, w_ih);
  } else {
    product<4>(a, {0, 1, 2, 3}, M, s.input(b), s.input_stride(), p.I, w_ih);
  }
  // All gates first: they do not wait for each other, as what follows from them does.
  for (int m = 0; m < M; ++m) {
    a.v[0][m] = sigmoid(a.v[0][m]);
    a.v[1][m] = sigmoid(a.v[1][m]);
    if (gru) continue;
    a.v[2][m] = tanh(a.v[2][m]);
    a.v[3][m] = sigmoid(a.v[3][m]);
  }
  for (int m = 0; m < M; ++m) {
    const int64_t row = b + m;
    Vec<Real> out;
    if (gru) {
      const auto cell =
          gru_update(a.v[0][m], a.v[1][m], a.v[2][m], a.v[3][m], s.carried_state(row, u, n));
      if (s.keeps_gates()) {
        Stored* saved = p.gates.at(s.t, row) + u;
        store(saved, cell.r, n);
        store(saved + H, cell.z, n);
        store(saved + 2 * H, a.v[3][m], n);
        if constexpr (kNarrow<Real, Stored>) store(saved + 3 * H, cell.n, n);
      }
      out = cell.h;
    } else {
      const Vec<Real> c =
          row < s.carried ? load(p.c.at(s.previous, row) + u, n) : load(p.c0 + row * H + u, n);
      const auto cell = lstm_update(a.v[0][m], a.v[1][m], a.v[2][m], a.v[3][m], c);
      if (s.keeps_gates()) {
        Stored* saved = p.gates.at(s.t, row) + u;
        store(saved, cell.i, n);
        store(saved + H, cell.f, n);
        store(saved + 2 * H, cell.g, n);
        store(saved + 3 * H, cell.o, n);
      }
      store(p.c.at(s.t, row) + u, cell.c, n);
      if (row >= s.final_from) store(p.cn + row * H + u, cell.c, n);
      out = cell.h;
    }
    if (p.w_hr)
      store(work.hidden + row * H + u, out, n);
    else
      s.store_state(row, u, out, n);
  }
}

// LSTM with projection: h' = W_hr (o * tanh(c')), four vectors of P a tile.
template <class Real, class Stored, class Panel>
static void projection_tile(const ForwardStep<Real, Stored, Panel>& s, int64_t j, int64_t b,
                            int M) {
  constexpr int W = Simd<Real>::width;
  const Forward<Real, Stored>& p = s.p;
  Tile<Real> a = {};
  product_of_span(a, p.P - j * 4 * W, M, s.work.hidden + b * p.H, p.H, p.H,
                  s.work.w_hr + j * rows_of_panel<Panel>(p.H) * 4 * W);
  for (int m = 0; m < M; ++m)
    for (int g = 0; g < 4; ++g) {
      const int64_t u = (j * 4 + g) * W;
      if (u >= p.P) break;
      s.store_state(b + m, u, a.v[g][m], p.P - u);
    }
}

// Calls tile(panel, row, M) for the part's panels and the rows [from, to), cut at `cut` because the
// rows on either side of it have their state in different places. Tiles are as even as they can be:
// a last one of few rows would wait for its weights. Every other step goes from the last panel to
// the first: of weights that overflow L2 the ones that were read last are still there.
template <int G, class Body>
static void tiles(int64_t panels, const Part& part, int64_t step, int64_t from, int64_t cut,
                  int64_t to, Body tile) {
  const int64_t j0 = panels * part.begin / part.of, j1 = panels * part.end / part.of;
  for (int64_t n = j0; n < j1; ++n) {
    const int64_t j = step % 2 ? j0 + j1 - 1 - n : n;
    for (int64_t b = from; b < to;) {
      const int64_t left = (b < cut ? min_of(cut, to) : to) - b;
      const int64_t count = (left + kRows<G> - 1) / kRows<G>;
      const int M = int((left + count - 1) / count);
      tile(j, b, M);
      b += M;
    }
  }
}

// The part's share of the rows [row0, row1) of n numbers: `to`'s are `row` apart.
template <class To, class From>
static void widen_rows(From from, To* to, int64_t row, int64_t n, int64_t row0, int64_t row1,
                       const Part& part) {
  constexpr int W = Simd<RealOf<To>>::width;
  const int64_t count = max_of(row1 - row0, 0), end = row0 + count * part.end / part.of;
  for (int64_t b = row0 + count * part.begin / part.of; b < end; ++b)
    for (int64_t u = 0; u < n; u += W) store(to + b * row + u, load(from(b) + u, n - u), n - u);
}

// The input of the k-th step.
template <class Real, class Stored, class Panel>
static void widen_input(const Forward<Real, Stored>& p, const ForwardWork<Real, Panel>& work,
                        int64_t k, int64_t row0, int64_t row1, const Part& part) {
  if (!work.x[0] || k == p.T) return;
  const int64_t t = p.step(k);
  widen_rows([&](int64_t b) { return p.x.at(t, b); }, work.x[k % 2], work.x_row, p.I, row0,
             min_of(row1, p.active(t)), part);
}

// A sequence may begin at any step: h0 is where its first one looks for it.
template <class Real, class Stored, class Panel>
static void widen_state(const Forward<Real, Stored>& p, const ForwardWork<Real, Panel>& work,
                        int64_t row0, int64_t row1, const Part& part) {
  if (!work.state[0]) return;
  for (Real* state : work.state)
    widen_rows([&](int64_t b) { return p.h0 + b * p.P; }, state, work.state_row, p.P, row0, row1,
               part);
}

// The part's products of the steps [k0, k1). It copies their input: rows one after another,
// whatever lies between them in x.
template <int G, class Real, class Stored, class Panel>
static void multiply_ahead(const Forward<Real, Stored>& p, const ForwardWork<Real, Panel>& work,
                           const Products<Real, FactorOf<Real, Panel>>& to, int64_t k0, int64_t k1,
                           int64_t row0, int64_t row1, const Part& part) {
  constexpr int W = Simd<Real>::width;
  int64_t rows = 0;
  for (int64_t k = k0; k < k1; ++k) {
    const int64_t t = p.step(k), count = max_of(min_of(row1, p.active(t)) - row0, 0);
    widen_rows([&](int64_t b) { return p.x.at(t, row0 + b); }, to.inputs + rows * work.x_row,
               work.x_row, p.I, 0, count, Part{});
    rows += count;
  }
  tiles<G>(panels_of(p.H, W), part, 0, 0, rows, rows, [&](int64_t j, int64_t r, int M) {
    Tile<Real> a = {};
    const auto* x = to.inputs + r * work.x_row;
    const Panel* panel = work.w_ih + j * rows_of_panel<Panel>(p.I) * G * W;
    if constexpr (G == 3)
      product<3>(a, {0, 1, 2}, M, x, work.x_row, p.I, panel);
    else
      product<4>(a, {0, 1, 2, 3}, M, x, work.x_row, p.I, panel);
    for (int m = 0; m < M; ++m)
      for (int g = 0; g < G; ++g) store(to.at(j, r + m, G) + g * W, a.v[g][m]);
  });
}

template <class Real, class Stored, class Panel>
static void forward(const Forward<Real, Stored>& p, const ForwardWork<Real, Panel>& work,
                    int64_t row0, int64_t row1, const Part& part) {
  constexpr int W = Simd<Real>::width;
  const bool gru = p.cell == Cell::gru;
  const int64_t before = work.ahead * row0, rows_ahead = work.ahead * (row1 - row0);
  const Products<Real, FactorOf<Real, Panel>> products{
      work.ahead, work.inputs + (before * part.of + rows_ahead * part.begin) * work.x_row,
      work.products + before * panels_of(p.H, W) * (gru ? 3 : 4) * W, rows_ahead};
  int64_t place = 0;
  if (work.state[0] || work.x[0]) {
    widen_state(p, work, row0, row1, part);
    widen_input(p, work, 0, row0, row1, part);
    part.wait();
  }
  for (int64_t k = 0; k < p.T; ++k) {
    const int64_t t = p.step(k), previous = k > 0 ? p.step(k - 1) : -1;
    const int64_t rows = min_of(row1, p.active(t));
    widen_input(p, work, k + 1, row0, row1, part);
    if (work.ahead && k % work.ahead == 0) {
      const int64_t until = min_of(p.T, k + work.ahead);
      place = 0;
      if (gru)
        multiply_ahead<3>(p, work, products, k, until, row0, row1, part);
      else
        multiply_ahead<4>(p, work, products, k, until, row0, row1, part);
    }
    ForwardStep<Real, Stored, Panel> s{p,
                                       work,
                                       k,
                                       t,
                                       previous,
                                       k > 0 ? min_of(rows, p.active(previous)) : row0,
                                       k + 1 < p.T ? p.active(p.step(k + 1)) : 0,
                                       products,
                                       place - row0};
    place += max_of(rows - row0, 0);
    const auto tile = [&](int64_t j, int64_t b, int M) { forward_tile(s, j, b, M); };
    if (gru)
      tiles<3>(panels_of(p.H, W), part, k, row0, s.carried, rows, tile);
    else
      tiles<4>(panels_of(p.H, W), part, k, row0, s.carried, rows, tile);
    if (p.w_hr) {
      part.wait();
      tiles<4>(panels_of(p.P, 4 * W), part, k, row0, rows, rows,
               [&](int64_t j, int64_t b, int M) { projection_tile(s, j, b, M); });
    }
    part.wait();
  }
}
