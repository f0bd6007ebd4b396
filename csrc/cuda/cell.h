// A cell's step from its two products: pointwise, a thread a unit.
#pragma once

#include "numbers.h"

namespace gatedrnn::cuda {

constexpr int kCellThreads = 256;

template <class Real>
__global__ void __launch_bounds__(kCellThreads)
    cell_forward_kernel(const __grid_constant__ CudaCellForward<Real> p) {
  const int64_t at = int64_t(blockIdx.x) * kCellThreads + threadIdx.x, H = p.H;
  if (at >= p.B * H) return;
  const int64_t b = at / H, u = at % H;
  const int G = p.cell == Cell::gru ? 3 : 4;
  const Real *x = p.gates_x + b * G * H + u, *h = p.gates_h + b * G * H + u;
  const auto x_at = [&](int g) { return wide(x[g * H]); };
  const auto h_at = [&](int g) { return wide(h[g * H]); };
  const auto save = [&](auto... values) {
    if (!p.saved) return;
    Real* saved = p.saved + b * int64_t(sizeof...(values)) * H + u;
    ((*saved = narrow<Real>(values), saved += H), ...);
  };
  if (p.cell == Cell::gru) {
    const auto q = h_at(2);
    const auto cell = gru_gates(x_at(0) + h_at(0), x_at(1) + h_at(1), x_at(2), q, wide(p.h[at]));
    p.h_next[at] = narrow<Real>(cell.h);
    save(cell.r, cell.z, cell.n, q);
  } else {
    const auto cell = lstm_gates(x_at(0) + h_at(0), x_at(1) + h_at(1), x_at(2) + h_at(2),
                                 x_at(3) + h_at(3), wide(p.c[at]));
    p.h_next[at] = narrow<Real>(cell.h);
    p.c_next[at] = narrow<Real>(cell.c);
    save(cell.i, cell.f, cell.g, cell.o, tanh(cell.c));
  }
}

template <class Real>
__global__ void __launch_bounds__(kCellThreads)
    cell_backward_kernel(const __grid_constant__ CudaCellBackward<Real> p) {
  using Wide = WideOf<Real>;
  const int64_t at = int64_t(blockIdx.x) * kCellThreads + threadIdx.x, H = p.H;
  if (at >= p.B * H) return;
  const int64_t b = at / H, u = at % H;
  const Wide dh = p.dh ? wide(p.dh[at]) : 0;
  const auto put = [&](Real* row, auto... values) {
    row += b * int64_t(sizeof...(values)) * H + u;
    ((*row = narrow<Real>(values), row += H), ...);
  };
  if (p.cell == Cell::gru) {
    const Real* saved = p.saved + b * 4 * H + u;
    const auto d = gru_gates_backward(dh, wide(saved[0]), wide(saved[H]), wide(saved[2 * H]),
                                      wide(saved[3 * H]), wide(p.h[at]));
    put(p.dgates_x, d.da_r, d.da_z, d.da_n);
    put(p.dgates_h, d.da_r, d.da_z, d.dq);
    p.dh_prev[at] = narrow<Real>(d.dh_prev);
  } else {
    const Real* saved = p.saved + b * 5 * H + u;
    const Wide dc = p.dc ? wide(p.dc[at]) : 0;
    const auto d = lstm_gates_backward(dh, dc, wide(saved[0]), wide(saved[H]), wide(saved[2 * H]),
                                       wide(saved[3 * H]), wide(p.c[at]), wide(saved[4 * H]));
    put(p.dgates_x, d.da_i, d.da_f, d.da_g, d.da_o);
    p.dc_prev[at] = narrow<Real>(d.dc_prev);
  }
}

}  // namespace gatedrnn::cuda
