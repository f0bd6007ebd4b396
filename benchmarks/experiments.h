// What experiments.cu launches: products out of registers, and steps that only exchange states.
#pragma once

#include "../csrc/cuda/device.h"

namespace gatedrnn::cuda {

constexpr int kWarps = 8;

// ------------------------------------------------------------------------------------------------
// Products: W of three gates, 16 units a warp, 128 of k, stays in registers; 8 sequences.

enum class Operands { half, bfloat16, tf32 };

constexpr int kGates = 3, kDepth = 8, kWeights = kGates * kDepth * 4;  // of a thread

template <Operands kOperands, bool kLoads>
__global__ void __launch_bounds__(32 * kWarps, 1)
    multiply_kernel(int steps, const uint32_t* weights, float* out) {
  constexpr int kRow = 32 * kDepth + 16;  // bytes of a sequence's state
  GATEDRNN_SHARED(uint4, state, 8 * kRow / 16);
  const int lane = int(threadIdx.x) % 32;
  for (int i = int(threadIdx.x); i < 8 * kRow / 16; i += 32 * kWarps)
    state[i] = make_uint4(0x3c003800, 0xb8003400, 0x3800bc00, 0x34003c00);  // of +-0.25 to 1
  __syncthreads();
  uint32_t a[kGates][kDepth][4];
  for (int g = 0; g < kGates; ++g)
    for (int k = 0; k < kDepth; ++k)
      for (int i = 0; i < 4; ++i)
        a[g][k][i] = weights[((g * kDepth + k) * 4 + i) * 32 * kWarps + int(threadIdx.x)];
  uint32_t b[4] = {0x3c003800, 0xb8003400, 0x3800bc00, 0x34003c00};
  float sums[kGates][4] = {};
  const auto* row = reinterpret_cast<const unsigned char*>(state) + lane % 8 * kRow + lane / 8 * 16;
#pragma unroll 1
  for (int step = 0; step < steps; ++step)
#pragma unroll
    for (int k = 0; k < kDepth; k += 2) {
      if (kLoads) load_matrix_x4(b, row + 32 * k);
#pragma unroll
      for (int half = 0; half < 2; ++half)
#pragma unroll
        for (int g = 0; g < kGates; ++g) {
          const uint32_t columns[2] = {b[2 * half], b[2 * half + 1]};
          if constexpr (kOperands == Operands::half)
            mma_half(sums[g], a[g][k + half], columns);
          else if constexpr (kOperands == Operands::bfloat16)
            mma_bfloat16(sums[g], a[g][k + half], columns);
          else
            mma_tf32(sums[g], a[g][k + half], columns);
        }
    }
  float sum = 0;
  for (int g = 0; g < kGates; ++g)
    for (float s : sums[g]) sum += s;
  out[blockIdx.x * blockDim.x + threadIdx.x] = sum;
}

constexpr double multiply_adds(Operands operands) {  // of a block's step
  return kWarps * kGates * kDepth * 16.0 * 8 * (operands == Operands::tf32 ? 8 : 16);
}

// ------------------------------------------------------------------------------------------------
// Exchange. Every warp of a group of blocks owns 512 bytes of the state: 16 units of 16 sequences.
// In a step it sends them to all blocks, and makes the next ones of what it has from every warp.

__host__ __device__ inline uint32_t next_state(uint32_t sum, uint32_t owner) {
  return sum * 1664525u + 1013904223u + owner;
}

__device__ inline uint4 next_of(uint4 sum, unsigned owner) {
  return make_uint4(next_state(sum.x, owner), next_state(sum.y, owner), next_state(sum.z, owner),
                    next_state(sum.w, owner));
}

__device__ inline uint4 add(uint4 a, uint4 b) {
  return make_uint4(a.x + b.x, a.y + b.y, a.z + b.z, a.w + b.w);
}

enum class Meeting { data, cluster_barrier };

// In a cluster, as csrc/cuda/persistent_forward.h does it: peers' stores and own arrivals complete
// an mbarrier; or with a barrier of the cluster after each step.
template <Meeting kMeeting>
__global__ void __launch_bounds__(32 * kWarps, 1) cluster_kernel(int steps, uint4* out) {
  if constexpr (kHasClusters) {
    constexpr int kMostOwners = 32;
    GATEDRNN_SHARED(uint4, state, 2 * kMostOwners * 32);
    GATEDRNN_SHARED(uint64_t, arrived, 2);
    const unsigned rank = cluster_rank(), size = cluster_size();
    const int warps = int(blockDim.x) / 32, lane = int(threadIdx.x) % 32;
    const int owners = warps * int(size), owner = int(rank) * warps + int(threadIdx.x) / 32;
    if (threadIdx.x == 0)
      for (int buffer = 0; buffer < 2; ++buffer) mbarrier_init(&arrived[buffer], unsigned(warps));
    for (int i = int(threadIdx.x); i < owners * 32; i += int(blockDim.x))
      state[i] = make_uint4(unsigned(i), 0, 0, 0);
    cluster_sync();
    uint4 value = {};
#pragma unroll 1
    for (int step = 0; step < steps; ++step) {
      const uint4* from = state + step % 2 * owners * 32 + lane;
      uint4* to = state + ((step + 1) % 2 * owners + owner) * 32 + lane;
      if (kMeeting == Meeting::data && step > 0)
        mbarrier_wait(&arrived[step % 2], unsigned((step - 1) / 2 % 2));
      uint4 sum = {};
      for (int i = 0; i < owners; ++i) sum = add(sum, from[i * 32]);
      value = next_of(sum, unsigned(owner));
      *to = value;
      uint64_t* barrier = &arrived[(step + 1) % 2];
      for (unsigned k = 1; k < size; ++k) {
        const unsigned peer = (rank + k) % size;
        if (kMeeting == Meeting::data)
          store_async(to, value, barrier, peer);
        else
          *map_shared_rank(to, peer) = value;
      }
      if (kMeeting == Meeting::cluster_barrier) {
        cluster_sync();
      } else {
        __syncwarp();
        if (lane == 0) mbarrier_arrive_expect(barrier, (size - 1) * 512);
      }
    }
    if (kMeeting == Meeting::data)
      mbarrier_wait(&arrived[steps % 2], unsigned((steps - 1) / 2 % 2));
    cluster_sync();
    out[blockIdx.x * blockDim.x + threadIdx.x] = value;
  } else {
    __trap();
  }
}

#ifdef GATEDRNN_EMULATE
inline void publish(unsigned* flag, unsigned value) {
  __atomic_store_n(flag, value, __ATOMIC_RELEASE);
}
inline void await(unsigned* flag, unsigned value) {
  while (__atomic_load_n(flag, __ATOMIC_ACQUIRE) < value) __nanosleep(0);
}
#else
__device__ inline void publish(unsigned* flag, unsigned value) {
  asm volatile("st.release.gpu.u32 [%0], %1;" ::"l"(flag), "r"(value) : "memory");
}
__device__ inline void await(unsigned* flag, unsigned value) {
  unsigned found = 0;
  while (found < value)
    asm volatile("ld.acquire.gpu.u32 %0, [%1];" : "=r"(found) : "l"(flag) : "memory");
}
#endif

// Through L2, among all blocks of the grid: by a flag of each block, or by the grid's barrier.
template <bool kFlags>
__global__ void __launch_bounds__(32 * kWarps, 1)
    grid_kernel(int steps, uint4* state, unsigned* flags, uint4* out) {
  const int warps = int(blockDim.x) / 32, lane = int(threadIdx.x) % 32;
  const int owners = warps * int(gridDim.x);
  const int owner = int(blockIdx.x) * warps + int(threadIdx.x) / 32;
  uint4 value = make_uint4(unsigned(owner * 32 + lane), 0, 0, 0);
#pragma unroll 1
  for (int step = 0; step < steps; ++step) {
    uint4* at = state + step % 2 * owners * 32 + lane;
    at[owner * 32] = value;
    if constexpr (kFlags) {
      __syncthreads();
      if (threadIdx.x == 0) publish(&flags[blockIdx.x], unsigned(step + 1));
      for (unsigned i = threadIdx.x; i < gridDim.x; i += blockDim.x)
        await(&flags[i], unsigned(step + 1));
      __syncthreads();
    } else {
      grid_sync();
    }
    uint4 sum = {};
    for (int i = 0; i < owners; ++i) sum = add(sum, at[i * 32]);
    value = next_of(sum, unsigned(owner));
  }
  out[blockIdx.x * blockDim.x + threadIdx.x] = value;
}

}  // namespace gatedrnn::cuda
