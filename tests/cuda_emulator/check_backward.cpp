// Checks a layer backward, of one type: every gradient, against the equations. What forward would
// have left is noise: the gradients are functions of it, whether or not the parts agree.
#include "check.h"

namespace gatedrnn {

struct Given {
  Array<Real>*h0, *c0 = nullptr, *y, *gates, *dy = nullptr, *dhn = nullptr, *dcn = nullptr;
  Array<Real>* dc = nullptr;
  Array<Grad>* w_hr_t = nullptr;
  std::function<double(int64_t, int64_t)> w_hh_t;
  Array<Wide>* c = nullptr;
};
struct Wanted {
  Array<Grad>*dgates, *dh = nullptr, *hidden = nullptr, *previous = nullptr;
  Array<Real>*dh0, *dc0 = nullptr;
};

template <class T>
Rows<const T> read_only(const Array<T>& array) {
  return {array.rows.data, array.rows.step, array.rows.row, array.rows.offsets};
}

void solve(const Case& of, const CudaBackward<Real>& p, const Given& in, const Wanted& out,
           Product product) {
  const int64_t T = of.T, B = of.B, H = of.H, P = of.P, G = of.gates();
  const bool gru = of.cell == Cell::gru;
  const int64_t q_column = gru ? p.dq : 3 * H;
  std::vector<double> dh(size_t(B * P)), dc(size_t(B * H)), dgates(size_t(4 * H));
  std::vector<double> sums(static_cast<size_t>(H));
  for (int64_t b = 0; b < B; ++b) {
    for (int64_t u = 0; u < P && in.dhn; ++u) dh[size_t(b * P + u)] = (*in.dhn)(b, u);
    for (int64_t u = 0; u < H && in.dcn; ++u) dc[size_t(b * H + u)] = (*in.dcn)(b, u);
  }
  for (int64_t s = T; s-- > 0;) {
    const int64_t t = p.step(s);
    for (int64_t b = 0; b < p.active(t); ++b) {
      double *d = &dh[size_t(b * P)], *dcell = &dc[size_t(b * H)];
      const bool first = s == 0 || b >= p.active(p.step(s - 1));
      const auto h_before = [&](int64_t u) {
        return first ? (*in.h0)(b, u) : (*in.y)(p.step(s - 1), b, u);
      };
      for (int64_t u = 0; u < P; ++u) {
        d[u] += in.dy ? (*in.dy)(t, b, u) : 0;
        if (out.previous) out.previous->expect(t, b, u, h_before(u));
        if (of.projected()) d[u] = out.dh->expect(t, b, u, d[u]);
      }
      for (int64_t u = 0; u < H; ++u) {
        double whole = of.projected() ? 0 : d[u];
        for (int64_t k = 0; k < P && of.projected(); ++k)
          whole += operand((*in.w_hr_t)(u, k), product) * operand(d[k], product);
        const auto gate = [&](int64_t g) { return (*in.gates)(t, b, g * H + u); };
        double da[4];
        if (gru) {
          const double r = gate(0), z = gate(1), q = gate(2), before = h_before(u);
          const double n = ((*in.y)(t, b, u) - z * before) / (1 - z);
          da[2] = whole * (1 - z) * (1 - n * n);
          da[1] = whole * (before - n) * z * (1 - z);
          da[0] = da[2] * q * r * (1 - r);
          da[3] = da[2] * r;
          sums[size_t(u)] = whole * z;
        } else {
          const double i = gate(0), f = gate(1), g = gate(2), o = gate(3);
          const double tanh_c = std::tanh((*in.c)(t, b, u));
          const double before = first ? (*in.c0)(b, u) : (*in.c)(p.step(s - 1), b, u);
          dcell[u] += in.dc ? (*in.dc)(t, b, u) : 0;
          const double dwhole = dcell[u] + whole * o * (1 - tanh_c * tanh_c);
          da[0] = dwhole * g * i * (1 - i);
          da[1] = dwhole * before * f * (1 - f);
          da[2] = dwhole * i * (1 - g * g);
          da[3] = whole * tanh_c * o * (1 - o);
          dcell[u] = dwhole * f;
          if (out.hidden) out.hidden->expect(t, b, u, o * tanh_c);
        }
        for (int64_t g = 0; g < 4; ++g)
          dgates[size_t(g * H + u)] =
              out.dgates->expect(t, b, g < 3 ? g * H + u : q_column + u, da[g]);
      }
      for (int64_t u = 0; u < P; ++u) {
        double sum = gru ? sums[size_t(u)] : 0;
        for (int64_t k = 0; k < G * H; ++k)  // a GRU's third block meets dq
          sum += operand(in.w_hh_t(u, k), product) *
                 operand(dgates[size_t(gru && k >= 2 * H ? k + H : k)], product);
        d[u] = sum;
      }
    }
  }
  for (int64_t b = 0; b < B; ++b) {
    for (int64_t u = 0; u < P; ++u) out.dh0->expect(0, b, u, dh[size_t(b * P + u)]);
    for (int64_t u = 0; u < H && out.dc0; ++u) out.dc0->expect(0, b, u, dc[size_t(b * H + u)]);
  }
}

void lay_out(const Case& of, Arrays& all, CudaBackward<Real>& p, bool reverse, Skew skew,
             Product product) {
  const int64_t B = of.B, H = of.H, P = of.P, G = of.gates();
  const bool gru = of.cell == Cell::gru;
  p = {};
  static_cast<Sizes&>(p) = {of.T, B, 0, H, P, all.offsets(), reverse};
  p.cell = of.cell;
  Given in;
  Wanted out;
#ifdef PERSISTENT
  auto& w_hh = all.flat<Real>("w_hh", G * H, P);
  p.w_hh = w_hh.rows.data;
  in.w_hh_t = [&](int64_t u, int64_t k) { return w_hh(k, u); };
#else
  auto& w_hh = all.flat<Grad>("w_hh_t", P, G * H);
  p.w_hh_t = w_hh.rows.data;
  in.w_hh_t = [&](int64_t u, int64_t k) { return w_hh(u, k); };
#endif
  p.h0 = (in.h0 = &all.flat<Real>("h0", B, P))->rows.data;
  p.y = read_only(*(in.y = &all.rows<Real>("y", P)));
  p.gates = read_only(*(in.gates = &all.rows<Real>("gates", G * H)));
  w_hh.fill(all.noise, 2 / std::sqrt(double(G * H)));
#ifdef PERSISTENT
  single_out(P, G * H, [&](int64_t u, int64_t i) -> auto& { return w_hh.rows.at(0, i)[u]; });
#endif
  in.h0->fill(all.noise, 0.4);
  in.y->fill(all.noise, 0.4);
  in.gates->fill(all.noise, 0.15, 0.25);  // far from 1, which a z must be
  // Room for q's gradient behind the others, with a gap where rows have padding.
  p.dq = 3 * H + (of.padding ? kPart + skew.of(0, Skew::dq) : 0);
  out.dgates = &all.rows<Grad>("dgates", gru ? p.dq + H : 4 * H);
  p.dgates = out.dgates->rows;
  p.dh0 = (out.dh0 = &all.flat<Real>("dh0", B, P))->rows.data;
  const auto scratch = [&](const char* name) {
    auto& array = all.flat<Wide>(name, B, H);
    array.scratch();
    return array.rows.data;
  };
  if (gru) p.carry_h = scratch("carry_h");
  if (of.full) {
    p.dy = read_only(*(in.dy = &all.rows<Real>("dy", P)));
    p.dhn = (in.dhn = &all.flat<Real>("dhn", B, P))->rows.data;
    p.previous = (out.previous = &all.rows<Grad>("previous", P))->rows;
    in.dhn->fill(all.noise, 1);
    in.dy->fill(all.noise, 1);
#ifdef PERSISTENT
    single_out(B, P, [&](int64_t b, int64_t u) -> auto& { return in.dhn->rows.at(0, b)[u]; });
    for (int64_t t = 0; t < of.T; ++t)
      single_out(p.active(t), P,
                 [&](int64_t b, int64_t u) -> auto& { return in.dy->rows.at(t, b)[u]; });
#endif
  }
  if (!gru) {
    p.c0 = (in.c0 = &all.flat<Real>("c0", B, H))->rows.data;
    p.c = read_only(*(in.c = &all.rows<Wide>("c", H)));
    p.dc0 = (out.dc0 = &all.flat<Real>("dc0", B, H))->rows.data;
    p.carry_c = scratch("carry_c");
    in.c0->fill(all.noise, 1);
    in.c->fill(all.noise, 1);
    if (of.full || of.projected()) {
      p.dcn = (in.dcn = &all.flat<Real>("dcn", B, H))->rows.data;
      in.dcn->fill(all.noise, 1);
      p.dc = read_only(*(in.dc = &all.rows<Real>("dc", H)));
      in.dc->fill(all.noise, 1);
    }
  }
  if (of.projected()) {
    p.w_hr_t = (in.w_hr_t = &all.flat<Grad>("w_hr_t", H, P))->rows.data;
    in.w_hr_t->fill(all.noise, 2 / std::sqrt(double(P)));
    p.dh = (out.dh = &all.rows<Grad>("dh", P))->rows;
    if (of.full) p.hidden = (out.hidden = &all.rows<Grad>("hidden", H))->rows;
  }
  solve(of, p, in, out, product);
}

std::unique_ptr<Prepared> prepare(const Case& of, Skew skew, Product product) {
  auto prepared = std::make_unique<Prepared>(Arrays(of, skew));
  std::vector<CudaBackward<Real>> p(static_cast<size_t>(of.directions));
  for (size_t d = 0; d < p.size(); ++d) lay_out(of, prepared->arrays, p[d], d == 1, skew, product);
  prepared->launches = (of.T + 1) * (of.projected() ? 2 : 1);
  for (int64_t t = 0; t <= of.T; ++t)  // a step's sequences, and those that the one after it has
    prepared->blocks +=
        of.blocks({t - 1, t}, of.P, 64) + (of.projected() ? of.blocks({t - 1, t}, of.H, 64) : 0);
#ifdef PERSISTENT
  prepared->launches = 1 + !kLatency + of.persistent.grid() + of.packed;
  prepared->blocks = of.packed + of.persistent_blocks(of.persistent.units, false);
  const auto scratch = scratch_of(of, false);
  const auto places = places_of(of);
  for (size_t d = 0; d < p.size(); ++d) {
    p[d].packed = scratch->data() + d * scratch->size() / p.size();
    p[d].uneven.places = places->data();
  }
  prepared->launch = [p, scratch, places](const CudaPlan& plan) {
    return GATEDRNN_WALK(backward)(plan.persistent_backward, p.data(), int(p.size()), nullptr);
  };
#else
  prepared->launch = [p](const CudaPlan& plan) {
    return layer_backward_cuda(plan, p.data(), int(p.size()), nullptr);
  };
#endif
  return prepared;
}

}  // namespace gatedrnn

int main(int count, char** schedules) {
  using namespace gatedrnn;
#ifdef PERSISTENT
  const std::vector<Case> cases = persistent_cases(), small = persistent_skewed(), few = cases;
#else
  constexpr Cell gru = Cell::gru, lstm = Cell::lstm;
  constexpr Tile narrow = Tile::narrow, wide = Tile::wide;
  constexpr int64_t S = 128 / sizeof(Grad), V = kPart;
  const std::vector<Case> cases = {
      {gru, narrow, 2, 4, 19, 21, 21, true, true, 3},
      {gru, narrow, 1, 2, 3, 2 * S + 2, 2 * S + 2, false, true, V},
      {gru, wide, 1, 2, 70, S + 2 * V, S + 2 * V, false, false, V},
      {gru, narrow, 1, 3, 16, 16, 16, false, true, 2},
      {gru, wide, 2, 2, 64, 64, 64, true, true, 0},
      {lstm, narrow, 1, 2, 17, S + V, S + V, false, true, V},
      {lstm, wide, 2, 3, 67, 33, 33, true, true, 1},
      {lstm, narrow, 1, 2, 3, 18, 18, false, false, 2},
      {lstm, narrow, 2, 3, 18, 10, 5 * S + 1, true, true, 2},
      {lstm, wide, 1, 2, 66, 3 * S + 2, 2 * V, false, false, 0},
      {lstm, narrow, 1, 1, 1, 5 * S, V, false, true, 0},
      {gru, wide, 2, 2, 1, 1, 1, false, true, 0},
      {gru, wide, 1, 1, 3, S + 11, S + 11, false, true, 1},
  };
  const std::vector<Case> small = {
      {gru, narrow, 1, 2, 2, 2 * V, 2 * V, false, true, V},
      {lstm, narrow, 1, 2, 2, 2 * V, 2 * V, false, true, V},
      {lstm, narrow, 1, 2, 2, 2 * V, V, false, true, V},
      {lstm, narrow, 1, 2, 2, 2 * V, V, true, true, V},
  };
  const std::vector<Case> few = {
      {gru, narrow, 2, 2, 17, 5, 5, true, true, 1},
      {gru, wide, 1, 1, 3, S + 11, S + 11, false, true, 1},
      {lstm, narrow, 1, 1, 3, 5 * S / 4, 5 * S / 4, false, true, V},
      {lstm, wide, 1, 1, 3, 9, 4 * S, false, true, 2},
      {lstm, narrow, 1, 2, 3, 9, 5, true, true, 2},
  };
#endif
  return check_all(kThreads ? few : cases, small, prepare, products(false), count, schedules);
}
