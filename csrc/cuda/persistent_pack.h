// Recurrent weights in the order in which the persistent kernels' threads keep them: once a
// sequence, a block for 16 rows.
#pragma once

#include "persistent.h"

namespace gatedrnn::cuda {

constexpr int kPackThreads = 256;

// The matrix [row_gates * H, k_gates * H], or its transpose, as `row` and `column` tell; each gate
// of either side padded to `units`; and where fragment (rows' gate, rows' 16, k's gate, k's 16)
// goes. Forward it may be one of several side by side, `depth` columns in all.
template <class Real>
struct Pack {
  const Real* w;
  Fragment* fragments;
  float* unscale;  // [row_gates, units] what the rows' products are to be multiplied by; or null
  int64_t H, row, column;  // from one row, or column, to the next
  int units, row_gates, k_gates, split, groups;
  int parts;
  int64_t size;       // fragments of a part
  int depth, before;  // forward: columns in all, and those before this matrix

  // Forward, groups is 0: a warp keeps its group's rows, all gates, and its part of k. Backward: a
  // block keeps all rows of its groups' k.
  __device__ int64_t place(int gate, int rows, int k_gate, int k) const {
    if (groups) {
      const int64_t row = k / groups * (units / 16) + rows;
      return (row * k_gates + k_gate) * groups + k % groups;
    }
    const int tiles_of_warp = depth / 16 / split;
    k += before / 16;
    const int64_t warp = (int64_t(rows) * split + k / tiles_of_warp);
    return (warp * row_gates + gate) * tiles_of_warp + k % tiles_of_warp;
  }
};

constexpr int kMostPacks = 2 * kMostStacked;

template <class Real>
struct Packs {
  Pack<Real> matrix[kMostPacks];
};

template <class Real>
__global__ void __launch_bounds__(kPackThreads)
    pack_weights_kernel(const __grid_constant__ Packs<Real> all) {
  constexpr int kSharing = kPackThreads / 16;  // threads of a row
  GATEDRNN_SHARED(float, scales, 16);
  const auto& p = all.matrix[blockIdx.y];
  const int tiles = p.units / 16, gate = int(blockIdx.x) / tiles, rows = int(blockIdx.x) % tiles;
  const int64_t H = p.H;
  const auto at = [&](int unit, int k_gate, int64_t k) {
    const int64_t u = rows * 16 + unit;
    return u < H && k < H ? wide(p.w[(gate * H + u) * p.row + (k_gate * H + k) * p.column]) : 0;
  };
  if (p.unscale) {
    const int unit = int(threadIdx.x) / kSharing;
    float largest = 0;
    for (int g = 0; g < p.k_gates; ++g)
      for (int64_t k = threadIdx.x % kSharing; k < H; k += kSharing) {
        const float x = fabsf(at(unit, g, k));
        if (x > largest && x < INFINITY) largest = x;
      }
    for (int distance = 1; distance < kSharing; distance *= 2)
      largest = fmaxf(largest, __shfl_xor_sync(~0u, largest, distance));
    if (threadIdx.x % kSharing == 0)
      scales[unit] = scale_for(largest, p.unscale[gate * p.units + rows * 16 + unit]);
    __syncthreads();
  }
  const int lane = int(threadIdx.x) % 32;
  for (int k = int(threadIdx.x) / 32; k < p.k_gates * tiles; k += kPackThreads / 32) {
    for (int part = 0; part < p.parts; ++part) {
      Fragment fragment;
      for (int word = 0; word < 4; ++word) {
        const int unit = lane / 4 * 2 + word % 2;
        const int64_t first = k % tiles * 16 + lane % 4 * 2 + word / 2 * 8;
        const float scale = p.unscale ? scales[unit] : 1;
        uint32_t bits = 0;
        for (int e = 0; e < 2; ++e) {
          const float x = at(unit, k / tiles, first + e) * scale;
          auto operand = narrow<OperandOf<Real>>(x);
          if (part > 0) operand = narrow<OperandOf<Real>>(rest_of(x, operand));
          bits |= uint32_t(operand.bits) << 16 * e;
        }
        fragment.word[word] = bits;
      }
      p.fragments[part * p.size + p.place(gate, rows, k / tiles, k % tiles) * 32 + lane] = fragment;
    }
  }
}

}  // namespace gatedrnn::cuda
