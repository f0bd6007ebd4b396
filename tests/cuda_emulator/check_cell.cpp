// Checks a cell's step forward and backward, of one type, against the equations.
#include "check.h"

namespace gatedrnn {

void forward(const Case& of, Arrays& all, CudaCellForward<Real>& p) {
  const int64_t B = of.B, H = of.H, G = of.gates();
  p = {of.cell, B, H, {}, {}, {}, {}, {}, {}, {}};
  const auto input = [&](const char* name, int64_t width) -> Array<Real>& {
    auto& array = all.flat<Real>(name, B, width);
    array.fill(all.noise, 1);
    return array;
  };
  auto &x = input("gates_x", G * H), &h = input("gates_h", G * H);
  const bool gru = of.cell == Cell::gru;
  auto& before = input(gru ? "h" : "c", H);
  auto& next = all.flat<Real>("h_next", B, H);
  auto* saved = of.full ? &all.flat<Real>("saved", B, (G + 1) * H) : nullptr;
  auto* cell = gru ? nullptr : &all.flat<Real>("c_next", B, H);
  p.gates_x = x.rows.data;
  p.gates_h = h.rows.data;
  (gru ? p.h : p.c) = before.rows.data;
  p.h_next = next.rows.data;
  if (cell) p.c_next = cell->rows.data;
  if (saved) p.saved = saved->rows.data;
  for (int64_t b = 0; b < B; ++b)
    for (int64_t u = 0; u < H; ++u) {
      const auto a = [&](int64_t g) { return x(b, g * H + u) + h(b, g * H + u); };
      double save[5];
      if (gru) {
        const double q = h(b, 2 * H + u), r = sigmoid(a(0)), z = sigmoid(a(1));
        const double n = std::tanh(x(b, 2 * H + u) + r * q), values[] = {r, z, n, q};
        std::copy(values, values + 4, save);
        next.expect(0, b, u, (1 - z) * n + z * before(b, u));
      } else {
        for (int g = 0; g < 4; ++g) save[g] = g == 2 ? std::tanh(a(g)) : sigmoid(a(g));
        const double c = save[1] * before(b, u) + save[0] * save[2];
        save[4] = std::tanh(c);
        next.expect(0, b, u, save[3] * save[4]);
        cell->expect(0, b, u, c);
      }
      for (int64_t g = 0; g <= G && saved; ++g) saved->expect(0, b, g * H + u, save[g]);
    }
}

void backward(const Case& of, Arrays& all, CudaCellBackward<Real>& p) {
  const int64_t B = of.B, H = of.H, G = of.gates();
  p = {of.cell, B, H, {}, {}, {}, {}, {}, {}, {}, {}, {}};
  const auto input = [&](const char* name, int64_t width, double size, double centre) {
    auto* array = &all.flat<Real>(name, B, width);
    array->fill(all.noise, size, centre);
    return array;
  };
  const bool gru = of.cell == Cell::gru;
  auto& saved = *input("saved", (G + 1) * H, 0.3, 0.4);
  auto& before = *input(gru ? "h" : "c", H, 1, 0);
  auto* dh = of.full ? input("dh", H, 1, 0) : nullptr;
  auto* dc = !gru && (of.full || of.padding) ? input("dc", H, 1, 0) : nullptr;
  auto& dx = all.flat<Real>("dgates_x", B, G * H);
  auto* dgates_h = gru ? &all.flat<Real>("dgates_h", B, 3 * H) : nullptr;
  auto& previous = all.flat<Real>(gru ? "dh_prev" : "dc_prev", B, H);
  p.saved = saved.rows.data;
  (gru ? p.h : p.c) = before.rows.data;
  if (dh) p.dh = dh->rows.data;
  if (dc) p.dc = dc->rows.data;
  p.dgates_x = dx.rows.data;
  if (gru) p.dgates_h = dgates_h->rows.data;
  (gru ? p.dh_prev : p.dc_prev) = previous.rows.data;
  for (int64_t b = 0; b < B; ++b)
    for (int64_t u = 0; u < H; ++u) {
      const auto s = [&](int64_t g) { return saved(b, g * H + u); };
      const double d = dh ? (*dh)(b, u) : 0;
      if (gru) {
        const double r = s(0), z = s(1), n = s(2), q = s(3);
        const double da_n = d * (1 - z) * (1 - n * n), da_r = da_n * q * r * (1 - r);
        const double da_z = d * (before(b, u) - n) * z * (1 - z);
        const double by_x[] = {da_r, da_z, da_n}, by_h[] = {da_r, da_z, da_n * r};
        for (int g = 0; g < 3; ++g) {
          dx.expect(0, b, g * H + u, by_x[g]);
          dgates_h->expect(0, b, g * H + u, by_h[g]);
        }
        previous.expect(0, b, u, d * z);
      } else {
        const double i = s(0), f = s(1), g = s(2), o = s(3), tanh_c = s(4);
        const double whole = (dc ? (*dc)(b, u) : 0) + d * o * (1 - tanh_c * tanh_c);
        const double da[] = {whole * g * i * (1 - i), whole * before(b, u) * f * (1 - f),
                             whole * i * (1 - g * g), d * tanh_c * o * (1 - o)};
        for (int k = 0; k < 4; ++k) dx.expect(0, b, k * H + u, da[k]);
        previous.expect(0, b, u, whole * f);
      }
    }
}

// Two directions: backward.
std::unique_ptr<Prepared> prepare(const Case& of, Skew skew, Product) {
  auto prepared = std::make_unique<Prepared>(Arrays(of, skew));
  prepared->launches = 1;
  prepared->blocks = (of.B * of.H + 255) / 256;
  if (of.directions == 2) {
    CudaCellBackward<Real> p;
    backward(of, prepared->arrays, p);
    prepared->launch = [p](const CudaPlan&) { return cell_backward_cuda(p, nullptr); };
  } else {
    CudaCellForward<Real> p;
    forward(of, prepared->arrays, p);
    prepared->launch = [p](const CudaPlan&) { return cell_forward_cuda(p, nullptr); };
  }
  return prepared;
}

}  // namespace gatedrnn

int main(int count, char** schedules) {
  using namespace gatedrnn;
  std::vector<Case> cases;
  for (const Cell cell : {Cell::gru, Cell::lstm})
    for (const int passes : {1, 2})  // 2: backward
      for (const bool full : {false, true}) {
        cases.push_back({cell, Tile::narrow, passes, 1, 13, 23, 23, false, full, full});
        cases.push_back({cell, Tile::narrow, passes, 1, 32, 16, 16, false, full, 1});
        cases.push_back({cell, Tile::narrow, passes, 1, 1, 257, 257, false, full, 0});
      }
  return check_all(cases, {}, prepare, {products(true)[0]}, count, schedules);
}
