// What the latency kernels share. They multiply in float32, exactly as the step kernels do where
// nothing may be rounded, and know one sequence each: a cluster's blocks hold W_hh in registers,
// and what is sent between them is float32 too. As many sequences walk at the same time as there is
// room for clusters.
//
// The `lanes` neighbouring threads of a unit share its sums, and then all have them: its gates are
// computed by all of these, to the same bits.
#pragma once

#include "../latency.h"
#include "persistent.h"

namespace gatedrnn::cuda {

template <Cell kCell, int kUnits>
struct Latency {
  static constexpr LatencyShape kShape{kCell, kUnits};
  static constexpr bool kGru = kCell == Cell::gru;
  static constexpr int G = kShape.gates(), U = kShape.owned(), L = kShape.lanes();
  static constexpr int kCluster = kShape.cluster(), kThreads = kShape.kThreads;
  // A warp of a cluster has four units, 16 bytes to send.
  static_assert(kCluster == 1 || L == 8);
  static constexpr bool exists() { return kShape.runs_on(GATEDRNN_ARCHITECTURE / 10); }
};

// A thread's unit: within the block, of all; its place among the threads that share it.
template <class Shape>
struct LatencyPlace {
  const unsigned rank = Shape::kCluster > 1 ? cluster_rank() : 0;
  const int own = int(threadIdx.x) / Shape::L, lane = int(threadIdx.x) % Shape::L;
  const int unit = int(rank) * Shape::U + own;
  const int64_t b = blockIdx.x / Shape::kCluster;
};

// The sum over kCount neighbouring lanes, in each of them.
template <int kCount>
__device__ inline float sum_of_lanes(float x) {
#pragma unroll
  for (int distance = kCount / 2; distance > 0; distance /= 2)
    x += __shfl_xor_sync(~0u, x, distance);
  return x;
}

// x[lane], of numbers that all lanes have.
template <int kCount>
__device__ inline float of_lane(const float (&x)[kCount], int lane) {
  float mine = x[0];
#pragma unroll
  for (int i = 1; i < kCount; ++i) {
    const float other = x[i];  // whatever the lane: an index that is not known needs memory
    mine = lane == i ? other : mine;
  }
  return mine;
}

// Lane i's four are what lanes 4i, 4i + 1, ... of every kApart-th have.
template <int kApart>
__device__ inline float4 four_of_lanes(float x) {
  const int first = int(threadIdx.x) % 32 * 4;
  float four[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) four[i] = __shfl_sync(~0u, x, (first + i) * kApart);
  return make_float4(four[0], four[1], four[2], four[3]);
}

// Of K numbers that kLanes share in turn, four at a time, the sums of each row's products.
template <int kLanes, int kRows, int K>
__device__ inline void multiply_fours(const float (&weights)[kRows][K / kLanes], const float4* from,
                                      int lane, float (&sums)[kRows]) {
#pragma unroll
  for (int j = 0; j < K / kLanes / 4; ++j) {
    const float4 four = from[j * kLanes + lane];
    const float x[] = {four.x, four.y, four.z, four.w};
#pragma unroll
    for (int i = 0; i < 4; ++i)
#pragma unroll
      for (int r = 0; r < kRows; ++r) sums[r] = __fmaf_rn(weights[r][4 * j + i], x[i], sums[r]);
  }
}

}  // namespace gatedrnn::cuda
