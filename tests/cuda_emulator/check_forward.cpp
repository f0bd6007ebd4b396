// Checks a layer forward, of one type: every output, against the equations.
#include "check.h"

namespace gatedrnn {

// Of layers that walk at the same time: those below, and the outputs of the last of them.
struct Below {
  int64_t layers = 0;
  Rows<Real> y;
  std::vector<double> outputs;  // [T, B, H], as they are stored
};

// One direction's, or layer's, arrays, and into them what forward must leave.
void lay_out(const Case& of, Arrays& all, CudaForward<Real>& p, bool reverse, Product product,
             Below& below) {
  const int64_t T = of.T, B = of.B, H = of.H, P = of.P, G = of.gates();
  const bool gru = of.cell == Cell::gru, carries = gru && sizeof(Real) == 2;
  p = {};
  static_cast<Sizes&>(p) = {T, B, 0, H, P, all.offsets(), reverse};
  p.cell = of.cell;
#ifdef PERSISTENT
  const bool projects = std::is_same_v<Real, float> && of.packed;
#else
  const bool projects = false;
#endif
  const bool upper = below.layers > 0;
  const int64_t features = upper ? H : 5;
  Array<Wide>* x =
      upper ? nullptr : &all.rows<Wide>(projects ? "x" : "projected", projects ? features : G * H);
  Array<Real>* w_ih = projects || upper ? &all.flat<Real>("w_ih", G * H, features) : nullptr;
  auto& w = all.flat<Real>("w_hh", G * H, P);
  auto& h0 = all.flat<Real>("h0", B, P);
  if (x) x->fill(all.noise, 1);
  w.fill(all.noise, 2 / std::sqrt(double(P)));
  h0.fill(all.noise, 1);
#ifdef PERSISTENT
  single_out(G * H, P, [&](int64_t i, int64_t k) -> auto& { return w.rows.at(0, i)[k]; });
  // One of each layer's sequences, which is multiplied in float32 from there on.
  const bool guarded = std::is_same_v<Real, float> && product == Product::half;
#else
  const bool guarded = false;
#endif
  const int64_t beyond = guarded ? 1 + below.layers : B;  // float16's range, in one unit
  const int64_t far = reverse || upper ? 0 : H - 1;
  if (beyond < B) h0.rows.at(0, beyond)[far] = stored<Real>(1e6 * h0(beyond, far));
  if (w_ih) {
    w_ih->fill(all.noise, upper ? 2 / std::sqrt(double(H)) : 1);
    if (upper)
      single_out(G * H, H, [&](int64_t i, int64_t k) -> auto& { return w_ih->rows.at(0, i)[k]; });
    p.I = features;
    p.w_ih = w_ih->rows.data;
  }
  if (upper)
    p.x = {below.y.data, below.y.step, below.y.row, below.y.offsets};
  else if (projects)
    p.x = {reinterpret_cast<const Real*>(x->rows.data), x->rows.step, x->rows.row, x->rows.offsets};
  else
    p.projected = {x->rows.data, x->rows.step, x->rows.row, x->rows.offsets};
  p.w_hh = w.rows.data;
  p.h0 = h0.rows.data;
  Array<Real>*b_ih = nullptr, *b_hh = nullptr, *gates = nullptr, *w_hr = nullptr, *c0 = nullptr;
  Array<Real>*hidden = nullptr, *cn = nullptr;
  Array<Wide>* c = nullptr;
  if (of.full) {
    b_ih = &all.flat<Real>("b_ih", 1, G * H);
    b_hh = &all.flat<Real>("b_hh", 1, G * H);
    b_ih->fill(all.noise, 1);
    b_hh->fill(all.noise, 1);
    p.b_ih = b_ih->rows.data;
    p.b_hh = b_hh->rows.data;
    gates = &all.rows<Real>("gates", G * H);
    p.gates = gates->rows;
  }
  if (of.projected()) {
    w_hr = &all.flat<Real>("w_hr", P, H);
    w_hr->fill(all.noise, 2 / std::sqrt(double(H)));
    p.w_hr = w_hr->rows.data;
    hidden = &all.rows<Real>("hidden", H, of.full);
    hidden->scratch();
    p.hidden = hidden->rows;
  }
  if (!gru) {
    c0 = &all.flat<Real>("c0", B, H);
    c0->fill(all.noise, 1);
    p.c0 = c0->rows.data;
    cn = &all.flat<Real>("cn", B, H);
    p.cn = cn->rows.data;
    c = &all.rows<Wide>("c", H, of.full);
    if (!of.full) c->scratch();
    p.c = c->rows;
  }
  if (carries) {
    auto& carry = all.flat<Wide>("carry", B, H);
    carry.scratch();
    p.carry = carry.rows.data;
  }
  auto& y = all.rows<Real>("y", P);
  auto& hn = all.flat<Real>("hn", B, P);
  p.y = y.rows;
  p.hn = hn.rows.data;

  std::vector<double> state(size_t(B * P)), cell(size_t(B * H)), sums(size_t(G * H));
  std::vector<double> o_tanh(static_cast<size_t>(H)), outputs(size_t(T * B * P));
  for (int64_t b = 0; b < B; ++b) {
    for (int64_t u = 0; u < P; ++u) state[size_t(b * P + u)] = h0(b, u);
    for (int64_t u = 0; u < H && c0; ++u) cell[size_t(b * H + u)] = (*c0)(b, u);
  }
  for (int64_t s = 0; s < T; ++s) {
    const int64_t t = p.step(s);
    for (int64_t b = 0; b < p.active(t); ++b) {
      double *h = &state[size_t(b * P)], *at_c = &cell[size_t(b * H)];
      const Product rounding = guarded && b >= 1 && b <= beyond ? Product::fma : product;
      for (int64_t i = 0; i < G * H; ++i) {
        double sum = b_hh ? (*b_hh)(0, i) : 0;
        for (int64_t k = 0; k < P; ++k)
          sum += operand(w(i, k), rounding) * operand(rounded<Real>(h[k]), rounding);
        sums[size_t(i)] = sum;
      }
      const auto input = [&](int64_t i) {
        double sum = b_ih ? (*b_ih)(0, i) : 0;
        if (!w_ih) return sum + (*x)(t, b, i);
        const double* output = upper ? &below.outputs[size_t((t * B + b) * H)] : nullptr;
        for (int64_t k = 0; k < features; ++k)
          sum += upper ? operand((*w_ih)(i, k), rounding) * operand(output[k], rounding)
                       : (*w_ih)(i, k) * (*x)(t, b, k);
        return sum;
      };
      for (int64_t u = 0; u < H; ++u) {
        const auto a = [&](int64_t g) { return sums[size_t(g * H + u)] + input(g * H + u); };
        double gate[4];
        if (gru) {
          gate[0] = sigmoid(a(0));
          gate[1] = sigmoid(a(1));
          gate[2] = sums[size_t(2 * H + u)];
          const double n = std::tanh(input(2 * H + u) + gate[0] * gate[2]);
          o_tanh[size_t(u)] = (1 - gate[1]) * n + gate[1] * h[u];
        } else {
          for (int64_t g = 0; g < 4; ++g) gate[g] = g == 2 ? std::tanh(a(g)) : sigmoid(a(g));
          at_c[u] = gate[1] * at_c[u] + gate[0] * gate[2];
          o_tanh[size_t(u)] = gate[3] * std::tanh(at_c[u]);
          if (of.full) c->expect(t, b, u, at_c[u]);
          cn->expect(0, b, u, at_c[u]);
        }
        for (int64_t g = 0; g < G && gates; ++g) gates->expect(t, b, g * H + u, gate[g]);
        if (w_hr && of.full) hidden->expect(t, b, u, o_tanh[size_t(u)]);
      }
      for (int64_t u = 0; u < P; ++u) {
        double next = w_hr ? 0 : o_tanh[size_t(u)];
        for (int64_t k = 0; k < H && w_hr; ++k)
          next +=
              operand((*w_hr)(u, k), product) * operand(rounded<Real>(o_tanh[size_t(k)]), product);
        h[u] = next;
        outputs[size_t((t * B + b) * P + u)] = y.expect(t, b, u, next);
        hn.expect(0, b, u, next);
      }
    }
  }
  below = {below.layers + 1, y.rows, std::move(outputs)};
}

std::unique_ptr<Prepared> prepare(const Case& of, Skew skew, Product product) {
  auto prepared = std::make_unique<Prepared>(Arrays(of, skew));
  std::vector<CudaForward<Real>> p(static_cast<size_t>(of.directions));
  Below below;
  for (size_t d = 0; d < p.size(); ++d) {
    if (!kWave) below = {};
    lay_out(of, prepared->arrays, p[d], d == 1 && !kWave, product, below);
  }
  prepared->launches = of.T * (of.projected() ? 2 : 1);
  for (int64_t t = 0; t < of.T; ++t)
    prepared->blocks += of.blocks({t}, of.H, 32) + (of.projected() ? of.blocks({t}, of.P, 64) : 0);
#ifdef PERSISTENT
  const bool guarded = std::is_same_v<Real, float> && !kLatency;
  prepared->launches = 1 + !kLatency + guarded + of.persistent.grid() + of.packed;
  prepared->blocks = of.packed + of.persistent_blocks(of.gates() * of.persistent.units, true);
  prepared->blocks += guarded ? of.B * (kWave ? 1 : of.directions) : 0;
#endif
#if defined(WAVE)
  const auto& [units, cluster, sequences] = of.persistent;
  const int64_t packed = 2 * packed_size(int(of.gates()), units, 1);
  for (auto& layer : p) layer.packed = prepared->arrays.scratch("packed", packed).rows.data;
  const int64_t size = stack_exchange_size(units, sequences, of.directions, of.T, of.B);
  float* exchange = prepared->arrays.scratch("exchange", size).rows.data;
  prepared->launch = [p, exchange](const CudaPlan& plan) {
    return stack_forward_cuda(plan.persistent_forward, p.data(), int(p.size()), exchange, nullptr);
  };
#elif defined(PERSISTENT)
  const auto scratch = scratch_of(of, true);
  const auto places = places_of(of);
  for (size_t d = 0; d < p.size(); ++d) {
    p[d].packed = scratch->data() + d * scratch->size() / p.size();
    p[d].uneven.places = places->data();
  }
  prepared->launch = [p, scratch, places](const CudaPlan& plan) {
    return GATEDRNN_WALK(forward)(plan.persistent_forward, p.data(), int(p.size()), nullptr);
  };
#else
  prepared->launch = [p](const CudaPlan& plan) {
    return layer_forward_cuda(plan, p.data(), int(p.size()), nullptr);
  };
#endif
  return prepared;
}

}  // namespace gatedrnn

int main(int count, char** schedules) {
  using namespace gatedrnn;
#ifdef PERSISTENT
  const std::vector<Case> cases = persistent_cases(), small = persistent_skewed();
  const std::vector<Case> few = kWave ? std::vector<Case>{cases[1], cases[4]} : cases;
#else
  constexpr Cell gru = Cell::gru, lstm = Cell::lstm;
  constexpr Tile narrow = Tile::narrow, wide = Tile::wide;
  constexpr int64_t S = kStage, V = kPart;
  const std::vector<Case> cases = {
      {gru, narrow, 2, 4, 19, 21, 21, true, true, 3},
      {gru, narrow, 1, 2, 3, 4 * S + 2, 4 * S + 2, false, true, V},
      {gru, wide, 1, 2, 70, 2 * S + 2 * V, 2 * S + 2 * V, false, false, V},
      {gru, narrow, 1, 3, 16, 16, 16, false, false, 2},
      {lstm, narrow, 1, 2, 17, 3 * S + V, 3 * S + V, false, true, V},
      {lstm, wide, 2, 3, 67, 33, 33, true, true, 1},
      {lstm, wide, 2, 2, 64, 32, 32, true, false, V},
      {lstm, narrow, 2, 3, 18, 10, 5 * S + 1, true, true, 2},
      {lstm, wide, 1, 2, 66, 3 * S + 2, 2 * V, false, false, 0},
      {lstm, narrow, 1, 1, 1, 5 * S, V, false, true, 0},
      {gru, wide, 2, 2, 1, 1, 1, false, true, 0},
      {gru, wide, 1, 1, 3, 3 * S, 3 * S, false, true, V},
      {lstm, wide, 1, 1, 3, 9, 70, false, true, 2},
  };
  const std::vector<Case> small = {
      {gru, narrow, 1, 2, 2, 2 * V, 2 * V, false, true, V},
      {lstm, narrow, 1, 2, 2, 2 * V, 2 * V, false, true, V},
      {lstm, narrow, 1, 2, 2, 2 * V, V, false, true, V},
      {lstm, narrow, 1, 2, 2, 2 * V, V, true, true, V},
  };
  const std::vector<Case> few = {
      {gru, narrow, 2, 2, 17, 5, 5, true, true, 1},
      {gru, wide, 1, 1, 3, 3 * S, 3 * S, false, true, V},
      {lstm, narrow, 1, 1, 3, 5, 5 * S, false, true, 2},
      {lstm, wide, 1, 2, 3, 2 * S + 1, 3, true, true, 2},
  };
#endif
  return check_all(kThreads ? few : cases, small, prepare, products(true), count, schedules);
}
