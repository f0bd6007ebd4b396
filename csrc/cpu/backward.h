// The backward time loop of one direction of one layer: the same walk, from the last step to the
// first. A step is
//
//   dh = dy(t) + W_hh^T dgates(t+1) + dh_direct(t+1)     the product's tile, four vectors of units
//   dgates(t), dh_direct(t), dc(t) from dh               its epilogue (gates.h)
//
// "t+1" is the step walked after t in forward. A sequence's first contribution is dhn (and dcn);
// its last, after its first step, goes to dh0. dh0 and dc0 hold dh_direct and dc on the way. The
// walk stops after every chunk of steps: the driver makes the weights' and the input's gradients
// from its dgates, which nothing keeps. Included inside the namespace of an instruction set.
#pragma once

template <class Real, class Stored, class Panel>
struct BackwardStep {
  using Factor = FactorOf<Real, Panel>;
  const Backward<Real, Stored>& p;
  const BackwardWork<Real, Panel>& work;
  const Chunk<Factor>& chunk;
  const Rows<Factor>& later_gates;  // dgates of the step after t
  int64_t t, later;                 // `later`: the step after t in forward
  int64_t previous;                 // the step before t in forward
  int64_t carried;                  // rows below have a later step, the others receive dhn
  int64_t begun;                    // rows below have a previous step, the others began at h0
};

// W_hh^T dgates: over 4H columns; a GRU's recurrent side sees r, z and q but not n.
template <class Real, class Stored, class Panel>
static void recurrent_gradient(const BackwardStep<Real, Stored, Panel>& s, Tile<Real>& a,
                               const FactorOf<Real, Panel>* d, int64_t j, int M) {
  const Backward<Real, Stored>& p = s.p;
  const int64_t span = 4 * Simd<Real>::width, ld = s.work.gate_row, left = p.P - j * span;
  const int64_t K = (p.cell == Cell::gru ? 3 : 4) * p.H;
  const Panel* panel = s.work.w_hh + j * rows_of_panel<Panel>(K) * span;
  if (p.cell == Cell::gru) {
    product_of_span(a, left, M, d, ld, 2 * p.H, panel);
    panel += rows_of_panel<Panel>(2 * p.H) * span;
    product_of_span(a, left, M, d + 3 * p.H, ld, p.H, panel);
  } else {
    product_of_span(a, left, M, d, ld, K, panel);
  }
}

// All of dh that arrives at step t, for four vectors of the state.
template <class Real, class Stored, class Panel>
static void state_gradient(const BackwardStep<Real, Stored, Panel>& s, Tile<Real>& a, int64_t j,
                           int64_t b, int M) {
  const Backward<Real, Stored>& p = s.p;
  constexpr int W = Simd<Real>::width;
  const bool carried = b < s.carried;
  const Real* direct = carried && p.cell == Cell::gru ? s.work.dh0 : nullptr;
  const Stored* last = carried ? nullptr : p.dhn;
  a = {};
  if (carried) recurrent_gradient(s, a, s.later_gates.at(s.later, b), j, M);
  for (int g = 0; g < 4; ++g) {
    const int64_t u = (j * 4 + g) * W;
    if (u >= p.P) break;
    for (int m = 0; m < M; ++m) {
      if (direct) a.v[g][m] += load(direct + (b + m) * p.P + u, p.P - u);
      if (last) a.v[g][m] += load(last + (b + m) * p.P + u, p.P - u);
      if (p.dy) a.v[g][m] += load(p.dy.at(s.t, b + m) + u, p.P - u);
    }
  }
}

template <class Real, class Stored, class Panel>
static void gates_gradient(const BackwardStep<Real, Stored, Panel>& s, const Tile<Real>& dh,
                           int64_t j, int64_t b, int M) {
  const Backward<Real, Stored>& p = s.p;
  constexpr int W = Simd<Real>::width;
  const int64_t H = p.H;
  for (int g = 0; g < 4; ++g) {
    const int64_t u = (j * 4 + g) * W, n = min_of(W, H - u);
    if (n <= 0) break;
    for (int m = 0; m < M; ++m) {
      const int64_t row = b + m;
      const Stored* saved = p.gates.at(s.t, row) + u;
      auto* d = s.chunk.dgates.at(s.t, row) + u;
      if (p.cell == Cell::gru) {
        const Stored* previous = row < s.begun ? p.y.at(s.previous, row) : p.h0 + row * H;
        const Vec<Real> h_prev = load(previous + u, n);
        const Vec<Real> r = load(saved, n), z = load(saved + H, n), q = load(saved + 2 * H, n);
        GruGradients<Vec<Real>> grad;
        if constexpr (kNarrow<Real, Stored>) {
          grad = gru_gates_backward(dh.v[g][m], r, z, load(saved + 3 * H, n), q, h_prev);
        } else {
          const Vec<Real> h = load(p.y.at(s.t, row) + u, n);
          grad = gru_gates_backward(dh.v[g][m], r, z, gru_candidate(z, h_prev, h), q, h_prev);
          grad.da_z = dh.v[g][m] * (h_prev - h) * z;  // as (h_prev - n) (1 - z) = h_prev - h
        }
        store(d, grad.da_r, n);
        store(d + H, grad.da_z, n);
        store(d + 2 * H, grad.da_n, n);
        store(d + 3 * H, grad.dq, n);
        store(s.work.dh0 + row * H + u, grad.dh_prev, n);
      } else {
        const Vec<Real> c_prev =
            row < s.begun ? load(p.c.at(s.previous, row) + u, n) : load(p.c0 + row * H + u, n);
        const Vec<Real> i = load(saved, n), f = load(saved + H, n);
        const Vec<Real> gg = load(saved + 2 * H, n), o = load(saved + 3 * H, n);
        const Vec<Real> tanh_c = tanh(load(p.c.at(s.t, row) + u, n));
        Real* carry = s.work.dc0 + row * H + u;
        Vec<Real> dc = {};
        if (row < s.carried)
          dc = load(carry, n);
        else if (p.dcn)
          dc = load(p.dcn + row * H + u, n);
        if (p.dc) dc += load(p.dc.at(s.t, row) + u, n);
        const auto grad = lstm_gates_backward(dh.v[g][m], dc, i, f, gg, o, c_prev, tanh_c);
        store(d, grad.da_i, n);
        store(d + H, grad.da_f, n);
        store(d + 2 * H, grad.da_g, n);
        store(d + 3 * H, grad.da_o, n);
        store(carry, grad.dc_prev, n);
        if (s.chunk.hidden) store(s.chunk.hidden.at(s.t, row) + u, o * tanh_c, n);
      }
    }
  }
}

// With projection dh is P wide, and the gates see W_hr^T dh.
template <class Real, class Stored, class Panel>
static void projected_step(const BackwardStep<Real, Stored, Panel>& s, int64_t row0, int64_t rows,
                           const Part& part) {
  const Backward<Real, Stored>& p = s.p;
  constexpr int W = Simd<Real>::width;
  tiles<4>(
      panels_of(p.P, 4 * W), part, s.t, row0, s.carried, rows, [&](int64_t j, int64_t b, int M) {
        Tile<Real> a;
        state_gradient(s, a, j, b, M);
        for (int g = 0; g < 4 && (j * 4 + g) * W < p.P; ++g)
          for (int m = 0; m < M; ++m)
            store(s.chunk.dh.at(s.t, b + m) + (j * 4 + g) * W, a.v[g][m], p.P - (j * 4 + g) * W);
      });
  part.wait();
  tiles<4>(panels_of(p.H, 4 * W), part, s.t, row0, rows, rows, [&](int64_t j, int64_t b, int M) {
    Tile<Real> a = {};
    product_of_span(a, p.H - j * 4 * W, M, s.chunk.dh.at(s.t, b), p.P, p.P,
                    s.work.w_hr + j * rows_of_panel<Panel>(p.P) * 4 * W);
    gates_gradient(s, a, j, b, M);
  });
}

template <class Real, class Stored, class Panel>
static void backward(const Backward<Real, Stored>& p, const BackwardWork<Real, Panel>& work,
                     const Chunk<FactorOf<Real, Panel>>& chunk, int64_t row0, int64_t row1,
                     const Part& part) {
  constexpr int W = Simd<Real>::width;
  for (int64_t k = chunk.k1 - 1; k >= chunk.k0; --k) {
    const int64_t t = p.step(k), rows = min_of(row1, p.active(t));
    const int64_t later = k + 1 < p.T ? p.step(k + 1) : -1, previous = k > 0 ? p.step(k - 1) : -1;
    const BackwardStep<Real, Stored, Panel> s{
        p,
        work,
        chunk,
        k + 1 < chunk.k1 ? chunk.dgates : chunk.later,
        t,
        later,
        previous,
        later < 0 ? row0 : min_of(rows, p.active(later)),
        previous < 0 ? row0 : min_of(rows, p.active(previous))};
    if (p.w_hr)
      projected_step(s, row0, rows, part);
    else
      tiles<4>(panels_of(p.P, 4 * W), part, s.t, row0, s.carried, rows,
               [&](int64_t j, int64_t b, int M) {
                 Tile<Real> a;
                 state_gradient(s, a, j, b, M);
                 gates_gradient(s, a, j, b, M);
               });
    part.wait();
    // Rows whose first step this was: their dh0 is complete after one more product.
    tiles<4>(panels_of(p.P, 4 * W), part, t, max_of(row0, s.begun), rows, rows,
             [&](int64_t j, int64_t b, int M) {
               Tile<Real> a = {};
               recurrent_gradient(s, a, chunk.dgates.at(t, b), j, M);
               for (int g = 0; g < 4 && (j * 4 + g) * W < p.P; ++g)
                 for (int m = 0; m < M; ++m) {
                   const int64_t u = (j * 4 + g) * W;
                   Real* to = work.dh0 + (b + m) * p.P + u;
                   const Vec<Real> direct = p.cell == Cell::gru ? load(to, p.P - u) : Vec<Real>{};
                   store(to, direct + a.v[g][m], p.P - u);
                 }
             });
  }
}
