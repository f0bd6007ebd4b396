// What float16 cannot hold. In the persistent kernels float32's states are operands of float16: a
// state beyond its range can only come from h0, since h(t) lies between h(t - 1) and a number below
// 1. A sequence that begins so is walked once more, in float32, by one block; what that leaves
// replaces what the persistent kernel has made of it. The blocks of all others return at once.
#pragma once

#include "persistent_forward.h"

namespace gatedrnn::cuda {

constexpr int kGuardThreads = 256;
constexpr float kOperandLimit = 32768;
constexpr int kMostUnits = 512;  // of kPersistentShapes

// A step of one sequence's direction, as the step kernels know it.
inline __device__ StepForward<float> step_of(const PersistentForward<float>& p, int64_t steps,
                                             int64_t k) {
  const int64_t back = steps - 1 - k, t = p.lengths.row(p.reverse ? back : k);
  const int64_t before = k > 0 ? p.lengths.row(p.reverse ? back + 1 : k - 1) : 0;
  StepForward<float> s = {};
  s.units = p.H;
  s.begun = k > 0 ? p.B : 0;
  s.staying = k + 1 < steps ? p.B : 0;
  s.product.initial = p.h0;
  s.product.a = k > 0 ? p.y.at(before, 0) : nullptr;
  s.product.a_row = p.y.row;
  if (!p.I) s.projected = p.projected.at(t, 0);
  s.projected_row = p.projected.row;
  s.b_ih = p.b_ih;
  s.b_hh = p.b_hh;
  s.y = p.y.at(t, 0);
  s.y_row = p.y.row;
  s.hn = p.hn;
  s.gates = p.gates.data ? p.gates.at(t, 0) : nullptr;
  s.gates_row = p.gates.row;
  s.c0 = p.c0;
  s.c_before = k > 0 && p.c.data ? p.c.at(before, 0) : nullptr;
  s.c = p.c.data ? p.c.at(t, 0) : nullptr;
  s.c_row = p.c.row;
  s.cn = p.cn;
  return s;
}

// Whether the block's sequence b begins with such a state.
__device__ inline bool begins_outside(const PersistentForward<float>& p, int64_t b) {
  GATEDRNN_SHARED(int, outside, 1);
  if (threadIdx.x == 0) outside[0] = 0;
  __syncthreads();
  for (int64_t u = threadIdx.x; u < p.H; u += kGuardThreads)
    if (!(fabsf(p.h0[b * p.H + u]) <= kOperandLimit)) atomicExch(outside, 1);
  __syncthreads();
  const bool found = outside[0];
  __syncthreads();  // it is asked again
  return found;
}

template <Cell kCell>
__device__ inline void walk_in_float32(const PersistentForward<float>& p, int64_t b) {
  constexpr int G = kGates<kCell>;
  GATEDRNN_SHARED(float, projected, G* kMostUnits);
  const int64_t H = p.H, steps = p.lengths.steps(b, p.T);
  const int lane = int(threadIdx.x) % 32;
#pragma unroll 1
  for (int64_t k = 0; k < steps; ++k) {
    StepForward<float> s = step_of(p, steps, k);
    if (p.I) {
      const float* x = p.x.at(p.lengths.row(p.reverse ? steps - 1 - k : k), b);
#pragma unroll 1
      for (int64_t row = threadIdx.x; row < G * H; row += kGuardThreads) {
        float sum = 0;
        for (int64_t i = 0; i < p.I; ++i) sum += p.w_ih[row * p.I + i] * x[i];
        projected[row] = sum;
      }
      __syncthreads();
      s.projected = projected;
      s.projected_row = 0;
    }
    const float* h = k > 0 ? s.product.a + b * s.product.a_row : p.h0 + b * H;
#pragma unroll 1
    for (int64_t u = threadIdx.x / 32; u < H; u += kGuardThreads / 32) {
      Two<float> sums[G] = {};
#pragma unroll 1
      for (int64_t i = lane; i < H; i += 32)
#pragma unroll
        for (int g = 0; g < G; ++g) sums[g].of[0] += p.w_hh[(g * H + u) * H + i] * h[i];
#pragma unroll
      for (int g = 0; g < G; ++g)
#pragma unroll
        for (int distance = 16; distance > 0; distance /= 2)
          sums[g].of[0] += __shfl_xor_sync(~0u, sums[g].of[0], distance);
      if (lane != 0) continue;
      if constexpr (kCell == Cell::gru)
        finish_gru(sums, s, Access{false, 1}, b, u);
      else
        finish_lstm(sums, s, Access{false, 1}, b, u);
    }
    __syncthreads();  // the next step's products are of all units
  }
}

template <Cell kCell>
__global__ void __launch_bounds__(kGuardThreads)
    guarded_forward_kernel(const __grid_constant__ Directions<PersistentForward<float>> all) {
  const auto& p = all.direction[blockIdx.y];
  if (begins_outside(p, blockIdx.x)) walk_in_float32<kCell>(p, blockIdx.x);
}

struct StackedWalks {
  PersistentForward<float> layer[kMostStacked];
  int count;
};

// A layer whose input may lie outside is walked so too.
template <Cell kCell>
__global__ void __launch_bounds__(kGuardThreads)
    guarded_stack_kernel(const __grid_constant__ StackedWalks all) {
  bool outside = false;
#pragma unroll 1
  for (int l = 0; l < all.count; ++l) {
    outside = begins_outside(all.layer[l], blockIdx.x) || outside;
    if (outside) walk_in_float32<kCell>(all.layer[l], blockIdx.x);
  }
}

}  // namespace gatedrnn::cuda
