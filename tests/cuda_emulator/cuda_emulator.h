// Runs CUDA kernels on the CPU: csrc/cuda/device.h includes this under -DGATEDRNN_EMULATE instead
// of CUDA's headers. Every CUDA thread is a fiber, all on the thread that launches; a launch
// returns when the kernel has finished.
//
//   what runs   grids of blocks and clusters, warps, static and dynamic shared memory,
//               __syncthreads, barriers of some warps, __syncwarp, shuffles, ballot, atomics,
//               cluster and grid barriers, mbarrier, cp.async, st.async, relaxed loads and stores,
//               which arrive in any order, ldmatrix, mma.sync, the host's calls for launching
//   what shows  a barrier that cannot complete, lanes that meet in different instructions,
//               misaligned addresses, copies never waited for; each throws Error out of the launch
//   what helps  adversarial orders of execution; shared memory that is NaN until written, where an
//               asynchronous copy is on its way, and after its block's exit
//   sanitizers  address and undefined: compile everything with them. thread: the kernels with it,
//               cuda_emulator.cpp with -DGATEDRNN_EMULATOR_TSAN and without it. Every fiber is then
//               a thread, and only barriers order memory: a missing one is reported whatever the
//               order of execution
//
// It does not model: other memory that is reordered, fences of too narrow a scope (st.async orders
// all that its thread did before, more than PTX promises), bank conflicts, time.
#pragma once

#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <stdexcept>
#include <string>
#include <tuple>
#include <type_traits>

#ifndef GATEDRNN_ARCHITECTURE
#define GATEDRNN_ARCHITECTURE 900
#endif

// ------------------------------------------------------------------------------------------------
// The language.

#define __global__
#define __device__
#define __host__
#define __constant__ static
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __grid_constant__
#define __align__(n) alignas(n)

struct uint3 {
  unsigned x, y, z;
};
struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};
struct alignas(8) float2 {
  float x, y;
};
struct alignas(16) float4 {
  float x, y, z, w;
};
struct alignas(16) double2 {
  double x, y;
};
struct alignas(8) int2 {
  int x, y;
};
struct alignas(16) int4 {
  int x, y, z, w;
};
struct alignas(8) uint2 {
  unsigned x, y;
};
struct alignas(16) uint4 {
  unsigned x, y, z, w;
};
inline float2 make_float2(float x, float y) { return {x, y}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
inline double2 make_double2(double x, double y) { return {x, y}; }
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }

extern uint3 threadIdx, blockIdx;
extern dim3 blockDim, gridDim;
constexpr int warpSize = 32;

#define GATEDRNN_DYNAMIC_SHARED(name) unsigned char* const name = cuda_emulator::dynamic_shared()
#define GATEDRNN_SHARED(Type, name, count)                                             \
  Type(&name)[count] = *static_cast<Type(*)[count]>([] {                               \
    static const char site = 0;                                                        \
    return cuda_emulator::static_shared(&site, sizeof(Type) * (count), alignof(Type)); \
  }())

// ------------------------------------------------------------------------------------------------
// The emulator. Nothing here is inline that touches its state: cuda_emulator.cpp alone is compiled
// without -fsanitize=thread.
namespace cuda_emulator {

struct Error : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// The next launch's order: "fifo" and "lifo" run what comes first or last among blocks, warps and
// lanes; "random" draws at every switch; "prio" draws priorities of blocks, warps and lanes, and
// draws anew now and then. Initially GATEDRNN_EMULATOR_ORDER (or fifo), GATEDRNN_EMULATOR_SEED.
void set_schedule(const std::string& order, uint64_t seed);
void set_multiprocessors(int count);

[[noreturn]] void fail(const std::string& message);
void yield();  // in loops that wait for another thread's store
void check_alignment(const void* p, unsigned bytes);
unsigned lane();
unsigned char* dynamic_shared();
void* static_shared(const void* site, size_t bytes, size_t alignment);
void block_sync();
void group_sync(int group, int threads);

void warp_sync(unsigned mask);
unsigned ballot(unsigned mask, bool predicate);
uint64_t shuffle_bits(unsigned mask, const char* name, uint64_t value, unsigned source);

template <class T>
T shuffle(unsigned mask, const char* name, T value, unsigned source) {
  static_assert(std::is_arithmetic_v<T> && (sizeof(T) == 4 || sizeof(T) == 8));
  using Bits = std::conditional_t<sizeof(T) == 4, uint32_t, uint64_t>;
  return std::bit_cast<T>(Bits(shuffle_bits(mask, name, std::bit_cast<Bits>(value), source)));
}

// The host's side.
struct Launch {
  dim3 grid, block, cluster;
  bool cooperative;
  size_t shared;
  const void* kernel;
  void (*call)(void* arguments);
  void* arguments;
};
int launch(const Launch& launch);  // 0 or CUDA's error code; throws Error
int set_dynamic_shared_limit(const void* kernel, int bytes);
int max_active_clusters(const Launch& launch);
int max_active_blocks(int threads, size_t shared);  // of a multiprocessor
int attribute(int which, int* value);

float half_to_float(uint16_t bits);
uint16_t float_to_half(float x);
float bfloat16_to_float(uint16_t bits);
uint16_t float_to_bfloat16(float x);

void copy_async(void* shared, const void* global, int bytes, int valid);
void wait_copies(int pending);
void* map_shared_rank(const void* p, unsigned rank);
void store_async(void* to, const void* value, int bytes, uint64_t* barrier, unsigned rank);
void store_relaxed(void* to, const void* value, int bytes);

// The twins of csrc/cuda/device.h's names.
namespace device {

template <int Bytes>
void copy_async(void* shared, const void* global, int valid) {
  static_assert(Bytes == 4 || Bytes == 8 || Bytes == 16);
  cuda_emulator::copy_async(shared, global, Bytes, valid);
}
void commit_copies();
template <int Pending>
void wait_copies() {
  cuda_emulator::wait_copies(Pending);
}

inline void group_sync(int group, int threads) { cuda_emulator::group_sync(group, threads); }

void load_matrix_x4(uint32_t (&r)[4], const void* row);
uint32_t to_tf32(float x);
void mma_tf32(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]);
void mma_half_k8(float (&c)[4], uint32_t a0, uint32_t a1, uint32_t b0);
void mma_half_k16(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]);
void mma_bfloat16(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]);

void grid_sync();
unsigned cluster_rank();
unsigned cluster_size();
void cluster_arrive();
void cluster_wait();
void cluster_sync();
template <class T>
T* map_shared_rank(T* p, unsigned rank) {
  return static_cast<T*>(cuda_emulator::map_shared_rank(p, rank));
}

void mbarrier_init(uint64_t* barrier, unsigned count);
void mbarrier_arrive(uint64_t* barrier);
void mbarrier_arrive_peer(uint64_t* barrier, unsigned rank);
void mbarrier_arrive_expect(uint64_t* barrier, unsigned bytes);
void mbarrier_wait(uint64_t* barrier, unsigned parity);
template <class T>
void store_async(T* to, const T& value, uint64_t* barrier, unsigned rank) {
  static_assert(sizeof(T) == 4 || sizeof(T) == 8 || sizeof(T) == 16);
  cuda_emulator::store_async(to, &value, sizeof(T), barrier, rank);
}

inline void load_relaxed_pairs(uint32_t (&word)[4], const void* from) {
  check_alignment(from, 16);
  for (int half = 0; half < 2; ++half) {
    const uint64_t both =
        __atomic_load_n(static_cast<const uint64_t*>(from) + half, __ATOMIC_RELAXED);
    std::memcpy(word + 2 * half, &both, 8);
  }
}
inline void load_relaxed_words(uint32_t (&word)[4], const void* from) {
  check_alignment(from, 16);
  for (int i = 0; i < 4; ++i)
    word[i] = __atomic_load_n(static_cast<const uint32_t*>(from) + i, __ATOMIC_RELAXED);
}
inline void store_relaxed_word(void* to, uint32_t word) {
  check_alignment(to, 4);
  store_relaxed(to, &word, 4);
}
inline void store_relaxed_pair(void* to, uint32_t low, uint32_t high) {
  check_alignment(to, 8);
  const uint32_t both[] = {low, high};
  store_relaxed(to, both, 8);
}
void store_relaxed_words(void* to, const uint32_t (&word)[4]);
inline void look_again() { yield(); }

}  // namespace device
}  // namespace cuda_emulator

// ------------------------------------------------------------------------------------------------
// CUDA's own names in kernels.

inline void __syncthreads() { cuda_emulator::block_sync(); }
inline void __syncwarp(unsigned mask = ~0u) { cuda_emulator::warp_sync(mask); }
inline void __threadfence() {}
inline void __threadfence_block() {}
inline void __nanosleep(unsigned) { cuda_emulator::yield(); }
[[noreturn]] inline void __trap() { cuda_emulator::fail("__trap"); }

template <class T>
T __shfl_sync(unsigned mask, T value, int source, int width = 32) {
  const unsigned lane = cuda_emulator::lane(), within = unsigned(width) - 1;
  return cuda_emulator::shuffle(mask, "__shfl_sync", value,
                                (lane & ~within) | (unsigned(source) & within));
}
template <class T>
T __shfl_xor_sync(unsigned mask, T value, int bits, int width = 32) {
  const unsigned lane = cuda_emulator::lane(), source = lane ^ unsigned(bits);
  const bool beyond = source > (lane | (unsigned(width) - 1));  // a later group of lanes
  return cuda_emulator::shuffle(mask, "__shfl_xor_sync", value, beyond ? lane : source);
}
template <class T>
T __shfl_down_sync(unsigned mask, T value, unsigned distance, int width = 32) {
  const unsigned lane = cuda_emulator::lane(), last = lane | (unsigned(width) - 1);
  return cuda_emulator::shuffle(mask, "__shfl_down_sync", value,
                                lane + distance > last ? lane : lane + distance);
}
template <class T>
T __shfl_up_sync(unsigned mask, T value, unsigned distance, int width = 32) {
  const unsigned lane = cuda_emulator::lane(), group = lane & (unsigned(width) - 1);
  return cuda_emulator::shuffle(mask, "__shfl_up_sync", value,
                                distance > group ? lane : lane - distance);
}
inline unsigned __ballot_sync(unsigned mask, int predicate) {
  return cuda_emulator::ballot(mask, predicate != 0);
}
inline int __any_sync(unsigned mask, int predicate) { return __ballot_sync(mask, predicate) != 0; }
inline int __all_sync(unsigned mask, int predicate) { return __ballot_sync(mask, !predicate) == 0; }

// Relaxed, and known to TSan as atomic.
template <class T>
T atomicCAS(T* p, T expected, T value) {
  __atomic_compare_exchange(p, &expected, &value, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED);
  return expected;
}
template <class T, class Change>
T atomic_change(T* p, Change change) {
  T old, next;
  __atomic_load(p, &old, __ATOMIC_RELAXED);
  do {
    next = change(old);
  } while (!__atomic_compare_exchange(p, &old, &next, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED));
  return old;
}
template <class T>
T atomicAdd(T* p, std::type_identity_t<T> value) {
  return atomic_change(p, [&](T old) { return T(old + value); });
}
template <class T>
T atomicMax(T* p, std::type_identity_t<T> value) {
  return atomic_change(p, [&](T old) { return old < value ? value : old; });
}
template <class T>
T atomicExch(T* p, std::type_identity_t<T> value) {
  return atomic_change(p, [&](T) { return value; });
}

template <class T>
T __ldg(const T* p) {
  return *p;
}
inline float __expf(float x) { return std::exp(x); }
inline float __fdividef(float a, float b) { return a / b; }
inline float __frcp_rn(float x) { return 1 / x; }
inline float __fmaf_rn(float a, float b, float c) { return std::fma(a, b, c); }
inline float __uint_as_float(unsigned bits) { return std::bit_cast<float>(bits); }
inline unsigned __float_as_uint(float x) { return std::bit_cast<unsigned>(x); }
inline float __int_as_float(int bits) { return std::bit_cast<float>(bits); }
inline int __float_as_int(float x) { return std::bit_cast<int>(x); }
inline int __popc(unsigned x) { return std::popcount(x); }
inline int min(int a, int b) { return a < b ? a : b; }
inline int max(int a, int b) { return a < b ? b : a; }
inline int64_t min(int64_t a, int64_t b) { return a < b ? a : b; }
inline int64_t max(int64_t a, int64_t b) { return a < b ? b : a; }

// ------------------------------------------------------------------------------------------------
// CUDA's own names on the host, with its values.

using cudaStream_t = struct CUstream_st*;
enum cudaError_t {
  cudaSuccess = 0,
  cudaErrorInvalidValue = 1,
  cudaErrorInvalidConfiguration = 9,
  cudaErrorInvalidDevice = 101,
  cudaErrorCooperativeLaunchTooLarge = 720,
};
enum cudaFuncAttribute {
  cudaFuncAttributeMaxDynamicSharedMemorySize = 8,
  cudaFuncAttributeNonPortableClusterSizeAllowed = 14,
};
enum cudaDeviceAttr {
  cudaDevAttrMultiProcessorCount = 16,
  cudaDevAttrComputeCapabilityMajor = 75,
  cudaDevAttrComputeCapabilityMinor = 76,
  cudaDevAttrMaxSharedMemoryPerBlockOptin = 97,
};
enum cudaLaunchAttributeID {
  cudaLaunchAttributeCooperative = 2,
  cudaLaunchAttributeClusterDimension = 4,
};
union cudaLaunchAttributeValue {
  struct {
    unsigned x, y, z;
  } clusterDim;
  int cooperative;
};
struct cudaLaunchAttribute {
  cudaLaunchAttributeID id;
  cudaLaunchAttributeValue val;
};
struct cudaLaunchConfig_t {
  dim3 gridDim, blockDim;
  size_t dynamicSmemBytes;
  cudaStream_t stream;
  cudaLaunchAttribute* attrs;
  unsigned numAttrs;
};

namespace cuda_emulator {
inline void read_attributes(const cudaLaunchConfig_t& config, Launch& launch) {
  for (unsigned i = 0; i < config.numAttrs; ++i) {
    const auto& [id, value] = config.attrs[i];
    if (id == cudaLaunchAttributeCooperative) launch.cooperative = value.cooperative;
    if (id == cudaLaunchAttributeClusterDimension)
      launch.cluster = {value.clusterDim.x, value.clusterDim.y, value.clusterDim.z};
  }
}
}  // namespace cuda_emulator

const char* cudaGetErrorString(cudaError_t error);
cudaError_t cudaGetLastError();
cudaError_t cudaGetDevice(int* device);
cudaError_t cudaSetDevice(int device);
inline cudaError_t cudaDeviceSynchronize() { return cudaSuccess; }
inline cudaError_t cudaMemsetAsync(void* to, int byte, size_t count, cudaStream_t) {
  std::memset(to, byte, count);
  return cudaSuccess;
}
inline cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr which, int device) {
  return device == 0 ? cudaError_t(cuda_emulator::attribute(which, value)) : cudaErrorInvalidDevice;
}
template <class... Formal>
cudaError_t cudaFuncSetAttribute(void (*kernel)(Formal...), cudaFuncAttribute which, int value) {
  if (which != cudaFuncAttributeMaxDynamicSharedMemorySize) return cudaSuccess;
  return cudaError_t(
      cuda_emulator::set_dynamic_shared_limit(reinterpret_cast<const void*>(kernel), value));
}

template <class... Formal, class... Actual>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Formal...),
                               Actual&&... arguments) {
  struct Call {
    void (*kernel)(Formal...);
    std::tuple<std::decay_t<Formal>...> arguments;
  } call{kernel, {std::forward<Actual>(arguments)...}};
  cuda_emulator::Launch launch{
      .grid = config->gridDim,
      .block = config->blockDim,
      .cluster = dim3(),
      .cooperative = false,
      .shared = config->dynamicSmemBytes,
      .kernel = reinterpret_cast<const void*>(kernel),
      .call =
          [](void* p) {
            std::apply(static_cast<Call*>(p)->kernel, static_cast<Call*>(p)->arguments);
          },
      .arguments = &call,
  };
  cuda_emulator::read_attributes(*config, launch);
  return cudaError_t(cuda_emulator::launch(launch));
}

template <class... Formal>
cudaError_t cudaOccupancyMaxActiveClusters(int* count, void (*kernel)(Formal...),
                                           const cudaLaunchConfig_t* config) {
  cuda_emulator::Launch launch{};
  launch.grid = config->gridDim;
  launch.block = config->blockDim;
  launch.shared = config->dynamicSmemBytes;
  launch.kernel = reinterpret_cast<const void*>(kernel);
  cuda_emulator::read_attributes(*config, launch);
  *count = cuda_emulator::max_active_clusters(launch);
  return cudaSuccess;
}

template <class... Formal>
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int* count, void (*)(Formal...),
                                                          int threads, size_t shared) {
  *count = cuda_emulator::max_active_blocks(threads, shared);
  return cudaSuccess;
}
