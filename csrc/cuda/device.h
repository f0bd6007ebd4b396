// What the kernels ask of the GPU, behind names: this is the only header that includes CUDA's, or,
// with -DGATEDRNN_EMULATE, the test suite's emulator, which has a twin of each name. Everything
// compiles for every architecture; what one lacks traps there, so that a plan that chooses it by
// mistake is seen.
#pragma once

#include <cstdint>

#include "layer.h"

#ifdef GATEDRNN_EMULATE
#include "cuda_emulator.h"
#else
#include <cooperative_groups.h>
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

// 128 bytes: one row of all banks, and more than ldmatrix and 16-byte copies need.
#define GATEDRNN_DYNAMIC_SHARED(name) extern __shared__ __align__(128) unsigned char name[]
#define GATEDRNN_SHARED(Type, name, count) __shared__ Type name[count]

#ifdef __CUDA_ARCH__
#define GATEDRNN_ARCHITECTURE __CUDA_ARCH__
#else
#define GATEDRNN_ARCHITECTURE 0  // nvcc's host pass, which only declares kernels
#endif
#endif

namespace gatedrnn::cuda {

constexpr bool kHasTf32 = GATEDRNN_ARCHITECTURE >= 800;
constexpr bool kHasBfloat16 = GATEDRNN_ARCHITECTURE >= 800;
constexpr bool kHasClusters = GATEDRNN_ARCHITECTURE >= 900;

#ifdef GATEDRNN_EMULATE
using namespace cuda_emulator::device;

inline float to_float(Half x) { return cuda_emulator::half_to_float(x.bits); }
inline float to_float(Bfloat16 x) { return cuda_emulator::bfloat16_to_float(x.bits); }
inline Half to_half(float x) { return {cuda_emulator::float_to_half(x)}; }
inline Bfloat16 to_bfloat16(float x) { return {cuda_emulator::float_to_bfloat16(x)}; }
#else

__device__ __forceinline__ float to_float(Half x) { return __half2float(__ushort_as_half(x.bits)); }
__device__ __forceinline__ float to_float(Bfloat16 x) {
  return __bfloat162float(__ushort_as_bfloat16(x.bits));
}
__device__ __forceinline__ Half to_half(float x) { return {__half_as_ushort(__float2half_rn(x))}; }
__device__ __forceinline__ Bfloat16 to_bfloat16(float x) {
  return {__bfloat16_as_ushort(__float2bfloat16_rn(x))};
}

__device__ __forceinline__ uint32_t shared_address(const void* p) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(p));
}

// The first `valid` of Bytes (4, 8 or 16) are copied, the others become zero; `global` is not read
// where valid is 0, but must be aligned.
template <int Bytes>
__device__ __forceinline__ void copy_async(void* shared, const void* global, int valid) {
  static_assert(Bytes == 4 || Bytes == 8 || Bytes == 16);
#if GATEDRNN_ARCHITECTURE >= 800
  const uint32_t to = shared_address(shared);
  if constexpr (Bytes == 16)  // only whole lines may pass L1 by
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(global), "r"(valid)
                 : "memory");
  else
    asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;" ::"r"(to), "l"(global), "n"(Bytes),
                 "r"(valid)
                 : "memory");
#else
  struct alignas(Bytes) Words {
    uint32_t word[Bytes / 4];
  };
  Words words = {};
  if (valid == Bytes)
    words = *static_cast<const Words*>(global);
  else  // halves: the smallest element
    for (int i = 0; i < Bytes / 2; ++i)
      if (2 * i < valid)
        words.word[i / 2] |= uint32_t(static_cast<const uint16_t*>(global)[i]) << 16 * (i % 2);
  *static_cast<Words*>(shared) = words;
#endif
}

__device__ __forceinline__ void commit_copies() {
#if GATEDRNN_ARCHITECTURE >= 800
  asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}

// Waits for this thread's copies but the last `Pending` groups; others' need a barrier after it.
template <int Pending>
__device__ __forceinline__ void wait_copies() {
#if GATEDRNN_ARCHITECTURE >= 800
  asm volatile("cp.async.wait_group %0;" ::"n"(Pending) : "memory");
#endif
}

// Four 8 x 8 matrices of 16-bit elements; lane 8 j + i names row i of matrix j. r[j] is elements
// 2 (lane % 4) and the next of row lane / 4.
__device__ __forceinline__ void load_matrix_x4(uint32_t (&r)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(shared_address(row))
               : "memory");
}

// Nearest, ties away from zero. The result is a float with its last 13 bits zero.
__device__ __forceinline__ uint32_t to_tf32(float x) {
#if GATEDRNN_ARCHITECTURE >= 800
  uint32_t bits;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(bits) : "f"(x));
  return bits;
#else
  __trap();
  return __float_as_uint(x);
#endif
}

// c += a b for a warp: a is 16 x k, b k x 8, c 16 x 8 (PTX ISA, "Matrix Fragments for mma").
__device__ __forceinline__ void mma_tf32(float (&c)[4], const uint32_t (&a)[4],
                                         const uint32_t (&b)[2]) {
#if GATEDRNN_ARCHITECTURE >= 800
  asm volatile(
      "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
      "{%8, %9}, {%0, %1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#else
  __trap();
#endif
}

__device__ __forceinline__ void mma_half_k8(float (&c)[4], uint32_t a0, uint32_t a1, uint32_t b0) {
  asm volatile(
      "mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5}, {%6}, "
      "{%0, %1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a0), "r"(a1), "r"(b0));
}

__device__ __forceinline__ void mma_half_k16(float (&c)[4], const uint32_t (&a)[4],
                                             const uint32_t (&b)[2]) {
#if GATEDRNN_ARCHITECTURE >= 800
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
      "{%8, %9}, {%0, %1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#else
  __trap();
#endif
}

__device__ __forceinline__ void mma_bfloat16(float (&c)[4], const uint32_t (&a)[4],
                                             const uint32_t (&b)[2]) {
#if GATEDRNN_ARCHITECTURE >= 800
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
      "{%8, %9}, {%0, %1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#else
  __trap();
#endif
}

// `threads` of a block meet, whole warps that name the same group, 0 to 14.
__device__ __forceinline__ void group_sync(int group, int threads) {
  asm volatile("bar.sync %0, %1;" ::"r"(group + 1), "r"(threads) : "memory");
}

// ------------------------------------------------------------------------------------------------
// Between blocks.

// For kernels launched with cudaLaunchAttributeCooperative.
__device__ __forceinline__ void grid_sync() { cooperative_groups::this_grid().sync(); }

__device__ __forceinline__ unsigned cluster_rank() {
  unsigned rank = 0;
#if GATEDRNN_ARCHITECTURE >= 900
  asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
#endif
  return rank;
}

__device__ __forceinline__ unsigned cluster_size() {
  unsigned size = 1;
#if GATEDRNN_ARCHITECTURE >= 900
  asm("mov.u32 %0, %%cluster_nctarank;" : "=r"(size));
#endif
  return size;
}

// All lanes of a warp together, as all of this group.
__device__ __forceinline__ void cluster_arrive() {
#if GATEDRNN_ARCHITECTURE >= 900
  asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory");
#else
  __trap();
#endif
}

__device__ __forceinline__ void cluster_wait() {
#if GATEDRNN_ARCHITECTURE >= 900
  asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");
#else
  __trap();
#endif
}

__device__ __forceinline__ void cluster_sync() {
  cluster_arrive();
  cluster_wait();
}

// The same place of shared memory in the cluster's block `rank`.
template <class T>
__device__ __forceinline__ T* map_shared_rank(T* p, unsigned rank) {
#if GATEDRNN_ARCHITECTURE >= 900
  T* peer;
  asm("mapa.u64 %0, %1, %2;" : "=l"(peer) : "l"(p), "r"(rank));
  return peer;
#else
  __trap();
  return p;
#endif
}

__device__ __forceinline__ uint32_t peer_address(const void* p, unsigned rank) {
  uint32_t peer = shared_address(p);
#if GATEDRNN_ARCHITECTURE >= 900
  asm("mapa.shared::cluster.u32 %0, %0, %1;" : "+r"(peer) : "r"(rank));
#endif
  return peer;
}

// `count`: the arrivals that complete a phase. One thread initializes; the others, and the
// cluster's blocks, may use the barrier after a barrier of theirs.
__device__ __forceinline__ void mbarrier_init(uint64_t* barrier, unsigned count) {
#if GATEDRNN_ARCHITECTURE >= 900
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(barrier)), "r"(count)
               : "memory");
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
#else
  __trap();
#endif
}

__device__ __forceinline__ void mbarrier_arrive(uint64_t* barrier) {
#if GATEDRNN_ARCHITECTURE >= 900
  asm volatile(
      "{ .reg .b64 state; mbarrier.arrive.release.cta.shared::cta.b64 state, [%0]; }" ::"r"(
          shared_address(barrier))
      : "memory");
#else
  __trap();
#endif
}

// Arrives at block `rank`'s barrier.
__device__ __forceinline__ void mbarrier_arrive_peer(uint64_t* barrier, unsigned rank) {
#if GATEDRNN_ARCHITECTURE >= 900
  asm volatile("mbarrier.arrive.release.cluster.shared::cluster.b64 _, [%0];" ::"r"(
                   peer_address(barrier, rank))
               : "memory");
#else
  __trap();
#endif
}

// Arrives, and lets the phase wait for so many bytes more.
__device__ __forceinline__ void mbarrier_arrive_expect(uint64_t* barrier, unsigned bytes) {
#if GATEDRNN_ARCHITECTURE >= 900
  asm volatile(
      "{ .reg .b64 state; "
      "mbarrier.arrive.expect_tx.release.cta.shared::cta.b64 state, [%0], %1; }" ::"r"(
          shared_address(barrier)),
      "r"(bytes)
      : "memory");
#else
  __trap();
#endif
}

// Waits until the phase of this parity is complete: 0 for the first, third, ...
__device__ __forceinline__ void mbarrier_wait(uint64_t* barrier, unsigned parity) {
#if GATEDRNN_ARCHITECTURE >= 900
  uint32_t done = 0;
  while (!done)
    asm volatile(
        "{ .reg .pred done; "
        "mbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 done, [%1], %2; "
        "selp.u32 %0, 1, 0, done; }"
        : "=r"(done)
        : "r"(shared_address(barrier)), "r"(parity)
        : "memory");
#else
  __trap();
#endif
}

// Stores to block `rank`'s shared memory and counts the bytes at its barrier; both addresses are
// this block's own.
template <class T>
__device__ __forceinline__ void store_async(T* to, const T& value, uint64_t* barrier,
                                            unsigned rank) {
  static_assert(sizeof(T) == 4 || sizeof(T) == 8 || sizeof(T) == 16);
#if GATEDRNN_ARCHITECTURE >= 900
  uint32_t w[sizeof(T) / 4];
  memcpy(w, &value, sizeof(T));
  const uint32_t at = peer_address(to, rank), done = peer_address(barrier, rank);
  if constexpr (sizeof(T) == 4)
    asm volatile(
        "st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.b32 [%0], %1, [%2];" ::"r"(at),
        "r"(w[0]), "r"(done)
        : "memory");
  else if constexpr (sizeof(T) == 8)
    asm volatile(
        "st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.v2.b32 [%0], {%1, %2}, "
        "[%3];" ::"r"(at),
        "r"(w[0]), "r"(w[1]), "r"(done)
        : "memory");
  else
    asm volatile(
        "st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.v4.b32 [%0], {%1, %2, %3, "
        "%4}, [%5];" ::"r"(at),
        "r"(w[0]), "r"(w[1]), "r"(w[2]), "r"(w[3]), "r"(done)
        : "memory");
#else
  __trap();
#endif
}

// ------------------------------------------------------------------------------------------------
// Between all blocks, through L2: strong and relaxed at the GPU's scope. What arrives as one is 8
// bytes, or 4: the PTX ISA has a vector's elements as accesses of their own.

__device__ __forceinline__ void load_relaxed_pairs(uint32_t (&word)[4], const void* from) {
  asm volatile(
      "{ .reg .b64 low, high; ld.relaxed.gpu.global.v2.b64 {low, high}, [%4]; "
      "mov.b64 {%0, %1}, low; mov.b64 {%2, %3}, high; }"
      : "=r"(word[0]), "=r"(word[1]), "=r"(word[2]), "=r"(word[3])
      : "l"(__cvta_generic_to_global(from))
      : "memory");
}

__device__ __forceinline__ void load_relaxed_words(uint32_t (&word)[4], const void* from) {
  asm volatile("ld.relaxed.gpu.global.v4.b32 {%0, %1, %2, %3}, [%4];"
               : "=r"(word[0]), "=r"(word[1]), "=r"(word[2]), "=r"(word[3])
               : "l"(__cvta_generic_to_global(from))
               : "memory");
}

__device__ __forceinline__ void store_relaxed_word(void* to, uint32_t word) {
  asm volatile("st.relaxed.gpu.global.b32 [%0], %1;" ::"l"(__cvta_generic_to_global(to)), "r"(word)
               : "memory");
}

__device__ __forceinline__ void store_relaxed_pair(void* to, uint32_t low, uint32_t high) {
  asm volatile(
      "{ .reg .b64 both; mov.b64 both, {%1, %2}; st.relaxed.gpu.global.b64 [%0], both; }" ::"l"(
          __cvta_generic_to_global(to)),
      "r"(low), "r"(high)
      : "memory");
}

__device__ __forceinline__ void store_relaxed_words(void* to, const uint32_t (&word)[4]) {
  asm volatile(
      "st.relaxed.gpu.global.v4.b32 [%0], {%1, %2, %3, %4};" ::"l"(__cvta_generic_to_global(to)),
      "r"(word[0]), "r"(word[1]), "r"(word[2]), "r"(word[3])
      : "memory");
}

// Between two looks at what another block is to store.
__device__ __forceinline__ void look_again() {}

#endif  // GATEDRNN_EMULATE

// Turing's product is half as deep.
__device__ __forceinline__ void mma_half(float (&c)[4], const uint32_t (&a)[4],
                                         const uint32_t (&b)[2]) {
  if constexpr (GATEDRNN_ARCHITECTURE >= 800) {
    mma_half_k16(c, a, b);
  } else {
    mma_half_k8(c, a[0], a[1], b[0]);
    mma_half_k8(c, a[2], a[3], b[1]);
  }
}

}  // namespace gatedrnn::cuda
