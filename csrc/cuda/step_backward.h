// One step backward: dh(t) from the gates' gradients of the step after it (in the order of forward)
// by the recurrent product, and from dh(t) the gradients of this step's gates.
//
//   dh(t) = dgates(t + 1) W_hh + [GRU: dh(t + 1) z(t + 1)] + dy(t)      then gates.h
//
// One step more than forward has: the last leaves dh0. Of a packed batch the sequences end at
// different steps, and each step finishes those that ended one before.
#pragma once

#include "step_forward.h"

namespace gatedrnn::cuda {

template <class Real>
struct StepBackward {
  using Wide = WideOf<Real>;
  using Grad = typename Types<Real>::Grad;
  Operands<Grad> product;  // W_hh transposed and dgates(t + 1); or W_hr transposed and dh(t)
  int64_t units;           // H; P where dh(t) is for a projection
  int64_t batch;           // sequences of this launch: max(begun, active)
  int64_t begun;           // sequences that were active at t + 1; the others begin from dhn, dcn
  int64_t active;          // sequences active at t; the others have ended: dh0, dc0
  int64_t kept;            // sequences active at t - 1; the others' states before are h0, c0
  bool aligned;
  const Real *dy, *dhn, *dcn;        // [active, P] or null; [B, P], [B, H] or null
  const Real* dc;                    // [active, H] or null
  const Real *y, *y_before, *gates;  // [active, P], [kept, P], [active, G*H]
  const Real *h0, *c0;               // [B, P], [B, H]
  const Wide *c, *c_before;          // [active, H], [kept, H]
  int64_t dy_row, dc_row, y_row, gates_row, c_row;
  Grad* dgates;  // [active, ...]
  int64_t dgates_row, dq;
  Grad *dh, *hidden, *previous;  // [active, P], [active, H], [active, P], or null
  int64_t dh_row, hidden_row, previous_row;
  Wide *carry_h, *carry_c;  // [B, H]
  Real *dh0, *dc0;          // [B, P], [B, H]; dh0 is null where a projection's dh was before
};

template <class Real>
__device__ Two<WideOf<Real>> previous_state(const StepBackward<Real>& p, const Access& access,
                                            int64_t b, int64_t u) {
  return b < p.kept ? access.load(p.y_before + b * p.y_row + u)
                    : access.load(p.h0 + b * p.units + u);
}

template <class Real, class Wide>
__device__ void finish_gru_backward(const Two<Wide>& sums, const StepBackward<Real>& p,
                                    const Access& access, int64_t b, int64_t u) {
  const int64_t at = b * p.units + u, H = p.units;
  const auto direct = b < p.begun ? access.load(p.carry_h + at) : access.load_or_zero(p.dhn, at);
  Two<Wide> dh{sums.of[0] + direct.of[0], sums.of[1] + direct.of[1]};
  if (b >= p.active) return access.store(p.dh0 + at, dh);
  const auto dy = access.load_or_zero(p.dy, b * p.dy_row + u);
  const Real* gates = p.gates + b * p.gates_row + u;
  const auto r = access.load(gates), z = access.load(gates + H), q = access.load(gates + 2 * H);
  const auto h = access.load(p.y + b * p.y_row + u), before = previous_state(p, access, b, u);
  Two<Wide> da_r, da_z, da_n, dq;
#pragma unroll
  for (int e = 0; e < 2; ++e) {
    const Wide n = gru_candidate<Wide>(z.of[e], before.of[e], h.of[e]);
    const auto d =
        gru_gates_backward<Wide>(dh.of[e] + dy.of[e], r.of[e], z.of[e], n, q.of[e], before.of[e]);
    da_r.of[e] = d.da_r;
    da_z.of[e] = d.da_z;
    da_n.of[e] = d.da_n;
    dq.of[e] = d.dq;
    dh.of[e] = d.dh_prev;
  }
  access.store(p.carry_h + at, dh);
  auto* dgates = p.dgates + b * p.dgates_row + u;
  access.store(dgates, da_r);
  access.store(dgates + H, da_z);
  access.store(dgates + 2 * H, da_n);
  access.store(dgates + p.dq, dq);
  if (p.previous) access.store(p.previous + b * p.previous_row + u, before);
}

// With a projection the sums are the gradient of o * tanh(c), and all of it.
template <class Real, class Wide>
__device__ void finish_lstm_backward(const Two<Wide>& sums, const StepBackward<Real>& p,
                                     const Access& access, int64_t b, int64_t u) {
  const int64_t at = b * p.units + u, H = p.units;
  Two<Wide> dh = sums;
  if (b >= p.begun) {
    const auto dhn = access.load_or_zero(p.dhn, at);
    dh = {dh.of[0] + dhn.of[0], dh.of[1] + dhn.of[1]};
  }
  Two<Wide> dc = b < p.begun ? access.load(p.carry_c + at) : access.load_or_zero(p.dcn, at);
  if (b >= p.active) {
    if (p.dh0) access.store(p.dh0 + at, dh);
    return access.store(p.dc0 + at, dc);
  }
  const auto dy = access.load_or_zero(p.dy, b * p.dy_row + u);
  const auto also = access.load_or_zero(p.dc, b * p.dc_row + u);
  dc = {dc.of[0] + also.of[0], dc.of[1] + also.of[1]};
  const Real* gates = p.gates + b * p.gates_row + u;
  const auto i = access.load(gates), f = access.load(gates + H), g = access.load(gates + 2 * H),
             o = access.load(gates + 3 * H);
  const auto c = access.load(p.c + b * p.c_row + u);
  const auto before =
      b < p.kept ? access.load(p.c_before + b * p.c_row + u) : access.load(p.c0 + at);
  Two<Wide> da[4], hidden;
#pragma unroll
  for (int e = 0; e < 2; ++e) {
    const Wide tanh_c = tanh(c.of[e]);
    const auto d = lstm_gates_backward<Wide>(dh.of[e] + dy.of[e], dc.of[e], i.of[e], f.of[e],
                                             g.of[e], o.of[e], before.of[e], tanh_c);
    da[0].of[e] = d.da_i;
    da[1].of[e] = d.da_f;
    da[2].of[e] = d.da_g;
    da[3].of[e] = d.da_o;
    dc.of[e] = d.dc_prev;
    hidden.of[e] = o.of[e] * tanh_c;
  }
  access.store(p.carry_c + at, dc);
#pragma unroll
  for (int k = 0; k < 4; ++k) access.store(p.dgates + b * p.dgates_row + k * H + u, da[k]);
  if (p.hidden) access.store(p.hidden + b * p.hidden_row + u, hidden);
  if (p.previous)
    access.store(p.previous + b * p.previous_row + u, previous_state(p, access, b, u));
}

// dh(t) of a projected state, or dh0.
template <class Real, class Wide>
__device__ void finish_state(const Two<Wide>& sums, const StepBackward<Real>& p,
                             const Access& access, int64_t b, int64_t u) {
  const int64_t at = b * p.units + u;
  Two<Wide> dh = sums;
  if (b >= p.begun) {
    const auto dhn = access.load_or_zero(p.dhn, at);
    dh = {dh.of[0] + dhn.of[0], dh.of[1] + dhn.of[1]};
  }
  if (b >= p.active) return access.store(p.dh0 + at, dh);
  const auto dy = access.load_or_zero(p.dy, b * p.dy_row + u);
  dh = {dh.of[0] + dy.of[0], dh.of[1] + dy.of[1]};
  access.store(p.dh + b * p.dh_row + u, dh);
  if (p.previous)
    access.store(p.previous + b * p.previous_row + u, previous_state(p, access, b, u));
}

enum class Backward { gru, lstm, state };

template <class Real, class Policy, class Shape, Backward kPart>
__global__ void __launch_bounds__(kThreads, 2)
    step_backward_kernel(const __grid_constant__ Directions<StepBackward<Real>> all) {
  GATEDRNN_DYNAMIC_SHARED(shared);
  const auto& p = all.direction[blockIdx.z];
  const int64_t batch0 = int64_t(blockIdx.x) * Shape::kBatch;
  const int64_t unit0 = int64_t(blockIdx.y) * (16 * Shape::kRowTiles);
  if (batch0 >= p.batch) return;
  TileProduct<Policy, Shape> product(
      p.product, batch0,
      [&](int tile, int unit) {
        const int64_t u = unit0 + tile * 16 + unit;
        return u < p.units ? u : -1;
      },
      shared);
  for_each_item<Shape>(product, p, batch0, unit0,
                       [&](const auto& sums, const Access& access, int64_t b, int64_t u) {
                         if constexpr (kPart == Backward::gru)
                           finish_gru_backward(sums, p, access, b, u);
                         else if constexpr (kPart == Backward::lstm)
                           finish_lstm_backward(sums, p, access, b, u);
                         else
                           finish_state(sums, p, access, b, u);
                       });
}

}  // namespace gatedrnn::cuda
