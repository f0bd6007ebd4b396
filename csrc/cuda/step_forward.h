// One step forward: the recurrent product and, from its sums, the gates and the new state, so that
// no pre-activation goes to memory.
//
//   blockIdx.x   Shape::kBatch sequences
//   blockIdx.y   16 units for each of the warps that do not share them
//   blockIdx.z   direction
//
// A thread alone reads and writes a unit of a sequence, so the carried states are updated in place.
#pragma once

#include "product.h"

namespace gatedrnn::cuda {

// A step of one direction. Rows that `before` has not: their sequence begins here, from h0 and c0.
template <class Real>
struct StepForward {
  using Wide = WideOf<Real>;
  Operands<Real> product;  // w_hh and h(t - 1); or w_hr and `hidden`
  int64_t units, batch;    // H, or P of a projection; sequences that are active
  int64_t begun;           // sequences that were so a step before
  int64_t staying;         // sequences that will be so a step later; the others end here
  bool aligned;            // rows and units allow access by pairs
  const Wide* projected;   // [batch, G*H] W_ih x
  int64_t projected_row;
  const Real *b_ih, *b_hh;  // [G*H] or null
  const Real* c0;           // [B, H]
  const Wide* c_before;     // [begun, H]
  int64_t c_row;            // of c_before and c
  Wide* c;                  // [batch, H]
  Wide* carry;              // [B, H] GRU of 16 bits: h(t - 1), then h(t)
  Real* y;                  // [batch, units] h(t); with a projection to come, `hidden`
  int64_t y_row;
  Real *hn, *cn;  // [B, units]; hn is null where a projection is to come
  Real* gates;    // [batch, G*H] or null
  int64_t gates_row;
};

template <class Step>
struct Directions {
  Step direction[2];
};

template <Cell kCell>
constexpr int kGates = kCell == Cell::gru ? 3 : 4;

// The pre-activations from their recurrent sums. Of a GRU's n the two sides stay apart: q is its
// recurrent sum with b_hn.
template <int G, class Real, class Wide>
__device__ void add_input(Two<Wide> (&sums)[G], Two<Wide>& input_n, const StepForward<Real>& p,
                          const Access& access, int64_t b, int64_t u) {
#pragma unroll
  for (int g = 0; g < G; ++g) {
    const int64_t at = g * p.units + u;
    const auto x = access.load(p.projected + b * p.projected_row + at);
    const auto b_ih = access.load_or_zero(p.b_ih, at), b_hh = access.load_or_zero(p.b_hh, at);
#pragma unroll
    for (int e = 0; e < 2; ++e) {
      if (G == 3 && g == 2) {
        input_n.of[e] = x.of[e] + b_ih.of[e];
        sums[g].of[e] += b_hh.of[e];
      } else {
        sums[g].of[e] += x.of[e] + (b_ih.of[e] + b_hh.of[e]);
      }
    }
  }
}

template <class Real, class Wide>
__device__ void finish_gru(Two<Wide> (&sums)[3], const StepForward<Real>& p, const Access& access,
                           int64_t b, int64_t u) {
  Two<Wide> input_n;
  add_input(sums, input_n, p, access, b, u);
  Two<Wide> before, h;
  if (b >= p.begun)
    before = access.load(p.product.initial + b * p.units + u);
  else if (p.carry)
    before = access.load(p.carry + b * p.units + u);
  else
    before = access.load(p.product.a + b * p.product.a_row + u);
  Two<Wide> r, z;
#pragma unroll
  for (int e = 0; e < 2; ++e) {
    const auto cell =
        gru_gates<Wide>(sums[0].of[e], sums[1].of[e], input_n.of[e], sums[2].of[e], before.of[e]);
    r.of[e] = cell.r;
    z.of[e] = cell.z;
    h.of[e] = cell.h;
  }
  access.store(p.y + b * p.y_row + u, h);
  if (p.carry) access.store(p.carry + b * p.units + u, h);
  if (b >= p.staying) access.store(p.hn + b * p.units + u, h);
  if (p.gates) {
    Real* gates = p.gates + b * p.gates_row + u;
    access.store(gates, r);
    access.store(gates + p.units, z);
    access.store(gates + 2 * p.units, sums[2]);
  }
}

template <class Real, class Wide>
__device__ void finish_lstm(Two<Wide> (&sums)[4], const StepForward<Real>& p, const Access& access,
                            int64_t b, int64_t u) {
  Two<Wide> unused;
  add_input(sums, unused, p, access, b, u);
  const auto before =
      b < p.begun ? access.load(p.c_before + b * p.c_row + u) : access.load(p.c0 + b * p.units + u);
  Two<Wide> gates[4], c, h;
#pragma unroll
  for (int e = 0; e < 2; ++e) {
    const auto cell =
        lstm_gates<Wide>(sums[0].of[e], sums[1].of[e], sums[2].of[e], sums[3].of[e], before.of[e]);
    gates[0].of[e] = cell.i;
    gates[1].of[e] = cell.f;
    gates[2].of[e] = cell.g;
    gates[3].of[e] = cell.o;
    c.of[e] = cell.c;
    h.of[e] = cell.h;
  }
  access.store(p.y + b * p.y_row + u, h);
  access.store(p.c + b * p.c_row + u, c);
  if (b >= p.staying) {
    if (p.hn) access.store(p.hn + b * p.units + u, h);
    access.store(p.cn + b * p.units + u, c);
  }
  if (p.gates)
#pragma unroll
    for (int g = 0; g < 4; ++g) access.store(p.gates + b * p.gates_row + g * p.units + u, gates[g]);
}

template <class Policy, class Shape, Cell kCell>
__global__ void __launch_bounds__(kThreads, 2) step_forward_kernel(
    const __grid_constant__ Directions<StepForward<typename Policy::Real>> all) {
  constexpr int G = kGates<kCell>;
  static_assert(Shape::R == G);
  GATEDRNN_DYNAMIC_SHARED(shared);
  const auto& p = all.direction[blockIdx.z];
  const int64_t batch0 = int64_t(blockIdx.x) * Shape::kBatch;
  const int64_t unit0 = int64_t(blockIdx.y) * (16 * Shape::kRowTiles / G);
  if (batch0 >= p.batch) return;
  TileProduct<Policy, Shape> product(
      p.product, batch0,
      [&](int tile, int unit) {
        const int64_t u = unit0 + tile / G * 16 + unit;
        return u < p.units ? tile % G * p.units + u : -1;
      },
      shared);
  const int64_t u = unit0 + product.row_tile() / G * 16 + product.unit();
  if (u >= p.units) return;
  const Access access{p.aligned, u + 1 < p.units ? 2 : 1};
#pragma unroll 1
  for (int j = 0; j < Shape::kItems; ++j) {
    const int64_t b = batch0 + product.batch(j);
    if (b >= p.batch) continue;
    Two<WideOf<typename Policy::Real>> sums[G];
#pragma unroll
    for (int g = 0; g < G; ++g) sums[g] = product.sums(j, g);
    if constexpr (kCell == Cell::gru)
      finish_gru(sums, p, access, b, u);
    else
      finish_lstm(sums, p, access, b, u);
  }
}

// finish(sums, access, sequence, unit) for all items of a tile whose row tiles are units.
template <class Shape, class Product, class Step, class Finish>
__device__ void for_each_item(const Product& product, const Step& p, int64_t batch0, int64_t unit0,
                              Finish finish) {
#pragma unroll 1
  for (int k = 0; k < Shape::kItems * Shape::R; ++k) {
    const int j = k / Shape::R, r = k % Shape::R;
    const int64_t b = batch0 + product.batch(j);
    const int64_t u = unit0 + (product.row_tile() + r) * 16 + product.unit();
    if (b >= p.batch || u >= p.units) continue;
    finish(product.sums(j, r), Access{p.aligned, u + 1 < p.units ? 2 : 1}, b, u);
  }
}

// h(t) = W_hr (o * tanh(c)), after the step's gates.
template <class Policy, class Shape>
__global__ void __launch_bounds__(kThreads, 2)
    project_kernel(const __grid_constant__ Directions<StepForward<typename Policy::Real>> all) {
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
                       [&](const auto& h, const Access& access, int64_t b, int64_t u) {
                         access.store(p.y + b * p.y_row + u, h);
                         if (b >= p.staying) access.store(p.hn + b * p.units + u, h);
                       });
}

}  // namespace gatedrnn::cuda
