// What csrc/cuda/device.h promises to kernels, held against formulas that are not its own: CuTe's
// published layouts of the tensor cores' fragments (NVIDIA/cutlass, include/cute/atom/
// mma_traits_sm80.hpp) and the PTX ISA's text. A plain program, the same for the emulator and for a
// GPU; it says what passed, and returns how many did not.
//
//   g++ -std=c++20 -DGATEDRNN_EMULATE -Itests/cuda_emulator -x c++
//       tests/cuda_emulator/conformance.cu tests/cuda_emulator/cuda_emulator.cpp
//   nvcc -std=c++20 -arch=native tests/cuda_emulator/conformance.cu
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>

#include "../../csrc/cuda/device.h"

using namespace gatedrnn::cuda;
using gatedrnn::Bfloat16;
using gatedrnn::Half;

// Memory that the host and the device reach.
#ifdef GATEDRNN_EMULATE
void* allocate(size_t bytes) { return std::malloc(bytes); }
void release(void* p) { std::free(p); }
#else
void* allocate(size_t bytes) {
  void* p = nullptr;
  return cudaMallocHost(&p, bytes) == cudaSuccess ? p : nullptr;
}
void release(void* p) { cudaFreeHost(p); }
#endif

template <class T>
struct Array {
  T* data;
  int size;

  explicit Array(int size) : data(static_cast<T*>(allocate(size * sizeof(T)))), size(size) {
    std::memset(data, 0, size * sizeof(T));
  }
  ~Array() { release(data); }
  Array(const Array&) = delete;
  T& operator[](int i) { return data[i]; }
};

struct Shape {
  dim3 grid = dim3(1), block = dim3(32);
  unsigned cluster = 1;
  bool cooperative = false;
  size_t shared = 0;
};

template <class... Formal, class... Actual>
bool run(const Shape& shape, void (*kernel)(Formal...), Actual... arguments) {
  cudaLaunchConfig_t config = {};
  config.gridDim = shape.grid;
  config.blockDim = shape.block;
  config.dynamicSmemBytes = shape.shared;
  cudaLaunchAttribute attributes[2];
  attributes[0].id = cudaLaunchAttributeClusterDimension;
  attributes[0].val.clusterDim.x = shape.cluster;
  attributes[0].val.clusterDim.y = attributes[0].val.clusterDim.z = 1;
  attributes[1].id = cudaLaunchAttributeCooperative;
  attributes[1].val.cooperative = 1;
  config.attrs = shape.cluster > 1 ? attributes : attributes + 1;
  config.numAttrs = (shape.cluster > 1) + shape.cooperative;
  cudaError_t error = cudaLaunchKernelEx(&config, kernel, arguments...);
  if (error == cudaSuccess) error = cudaDeviceSynchronize();
  if (error != cudaSuccess) std::printf("%s\n", cudaGetErrorString(error));
  return error == cudaSuccess;
}

// ------------------------------------------------------------------------------------------------
// Fragments. In CuTe's layouts (thread, value) -> m + M k for a, n + N k for b, m + M n for c, with
// the thread split as (4, 8) and the value as (2, 2, 2).

struct Layout {
  int thread[2], value[3];

  __device__ int at(int lane, int v) const {
    return lane % 4 * thread[0] + lane / 4 * thread[1] + v % 2 * value[0] + v / 2 % 2 * value[1] +
           v / 4 * value[2];
  }
};

enum class Kind { tf32, unrounded, half, half_k8, bfloat16 };

template <Kind kind>
constexpr bool kIsTf32 = kind == Kind::tf32 || kind == Kind::unrounded;

struct Fragments {
  int k, a_values, b_values;
  Layout a, b, c;
};
constexpr Layout kSums = {{32, 1}, {16, 8, 0}};
constexpr Fragments kTf32 = {8, 4, 2, {{16, 1}, {8, 64, 0}}, {{8, 1}, {32, 0, 0}}, kSums};
constexpr Fragments kHalfK8 = {8, 4, 2, {{32, 1}, {16, 8, 0}}, {{16, 1}, {8, 0, 0}}, kSums};
constexpr Fragments kHalf = {16, 8, 4, {{32, 1}, {16, 8, 128}}, {{16, 1}, {8, 64, 0}}, kSums};

__device__ uint32_t bits_of(float x, Kind kind) {
  if (kind == Kind::tf32) return to_tf32(x);
  if (kind == Kind::unrounded) return __float_as_uint(x);
  return kind == Kind::bfloat16 ? to_bfloat16(x).bits : to_half(x).bits;
}

template <Kind kind>
__global__ void product(Fragments f, const float* a, const float* b, float* c) {
  const int lane = threadIdx.x, per = kIsTf32<kind> ? 1 : 2;
  uint32_t ra[4] = {}, rb[2] = {};
  for (int v = 0; v < f.a_values; ++v) {
    const int at = f.a.at(lane, v);
    ra[v / per] |= bits_of(a[at % 16 * f.k + at / 16], kind) << 16 * (v % per);
  }
  for (int v = 0; v < f.b_values; ++v) {
    const int at = f.b.at(lane, v);
    rb[v / per] |= bits_of(b[at % 8 * f.k + at / 8], kind) << 16 * (v % per);
  }
  float rc[4];
  for (int v = 0; v < 4; ++v) rc[v] = c[f.c.at(lane, v) % 16 * 8 + f.c.at(lane, v) / 16];
  if constexpr (kIsTf32<kind>)
    mma_tf32(rc, ra, rb);
  else if constexpr (kind == Kind::bfloat16)
    mma_bfloat16(rc, ra, rb);
  else if constexpr (kind == Kind::half)
    mma_half(rc, ra, rb);
  else
    mma_half_k8(rc, ra[0], ra[1], rb[0]);
  for (int v = 0; v < 4; ++v) c[f.c.at(lane, v) % 16 * 8 + f.c.at(lane, v) / 16] = rc[v];
}

template <Kind kind>
bool check_product(const Fragments& f) {
  Array<float> a(16 * f.k), b(8 * f.k), c(16 * 8);
  // Small integers: every format and every order of summation is exact. `dust`: what the tensor
  // core must not see of a float32 that was not rounded.
  const float dust = kind == Kind::unrounded ? 1 + 0x1p-12f : 1;
  for (int i = 0; i < a.size; ++i) a[i] = float(i * 37 % 61 - 30) * dust;
  for (int i = 0; i < b.size; ++i) b[i] = float(i * 53 % 59 - 29) * dust;
  for (int i = 0; i < c.size; ++i) c[i] = float(i);
  bool good = run({}, product<kind>, f, a.data, b.data, c.data);
  for (int m = 0; m < 16; ++m)
    for (int n = 0; n < 8; ++n) {
      float sum = float(m * 8 + n);
      for (int k = 0; k < f.k; ++k) sum += (a[m * f.k + k] / dust) * (b[n * f.k + k] / dust);
      good &= c[m * 8 + n] == sum;
    }
  return good;
}

// "each thread i holds row i / 4, elements 2 (i % 4) and 2 (i % 4) + 1", of 8 rows of 16 bytes
// whose addresses come from threads 8 j to 8 j + 7 for matrix j.
__global__ void load_rows(uint32_t* out) {
  GATEDRNN_DYNAMIC_SHARED(shared);
  auto* elements = reinterpret_cast<uint16_t*>(shared);
  for (int i = threadIdx.x; i < 32 * 8; i += 32) elements[i] = uint16_t(i);
  __syncwarp();
  uint32_t r[4];
  load_matrix_x4(r, elements + threadIdx.x * 11 % 32 * 8);
  for (int j = 0; j < 4; ++j) out[threadIdx.x * 4 + j] = r[j];
}

bool check_matrices() {
  Array<uint32_t> out(128);
  bool good = run({.shared = 512}, load_rows, out.data);
  for (int lane = 0; lane < 32; ++lane)
    for (int j = 0; j < 4; ++j) {
      const uint32_t row = (8 * j + lane / 4) * 11 % 32, first = row * 8 + lane % 4 * 2;
      good &= out[lane * 4 + j] == (first | (first + 1) << 16);
    }
  return good;
}

// ------------------------------------------------------------------------------------------------
// Numbers.

struct Conversions {
  uint32_t tf32;
  Half half;
  Bfloat16 bfloat16;
  float from_half, from_bfloat16;
};

__global__ void convert(const float* x, Conversions* out, int n) {
  for (int i = threadIdx.x; i < n; i += blockDim.x) {
    if constexpr (kHasTf32) out[i].tf32 = to_tf32(x[i]);
    out[i].half = to_half(x[i]);
    out[i].bfloat16 = to_bfloat16(x[i]);
    out[i].from_half = to_float(out[i].half);
    out[i].from_bfloat16 = to_float(out[i].bfloat16);
  }
}

// x to `digits` binary digits, in steps of 2^smallest at the least; ties to even, or away from 0.
double rounded(double x, int digits, int smallest, bool even) {
  if (x == 0 || !std::isfinite(x)) return x;
  const double step = std::ldexp(1.0, std::max(std::ilogb(x) - digits + 1, smallest));
  return (even ? std::nearbyint(x / step) : std::round(x / step)) * step;
}

bool same(double a, double b) {
  return a == b ? std::signbit(a) == std::signbit(b) : a != a && b != b;
}

bool check_conversions(bool has_tf32) {
  std::vector<float> values = {0.f,         -0.f,        INFINITY,     -INFINITY,
                               NAN,         -NAN,        65504.f,      65519.996f,
                               65520.f,     1e9f,        0x1p-24f,     0x1p-25f,
                               0x1.8p-25f,  0x1p-14f,    3e38f,        0x1.fffffep-15f,
                               1 + 0x1p-8f, 1 + 0x3p-8f, 1 + 0x1p-11f, 1 + 0x3p-11f};
  uint32_t state = 1;
  for (int i = 0; i < 4000; ++i) {  // all magnitudes, then halves' own
    state = state * 1664525 + 1013904223;
    float x;
    std::memcpy(&x, &state, 4);
    values.push_back(i % 2 ? x
                           : std::ldexp(float(state % 4096) - 2048, int(state >> 20) % 40 - 36));
  }
  Array<float> x(int(values.size()));
  Array<Conversions> out(x.size);
  std::memcpy(x.data, values.data(), values.size() * 4);
  bool good = run({}, convert, static_cast<const float*>(x.data), out.data, x.size);
  for (int i = 0; i < x.size; ++i) {
    double half = rounded(x[i], 11, -24, true);
    if (std::abs(half) > 65504) half = std::copysign(INFINITY, half);
    const double bfloat16 = float(rounded(x[i], 8, -133, true));
    float tf32;
    std::memcpy(&tf32, &out[i].tf32, 4);
    good &= same(out[i].from_half, half) && same(out[i].from_bfloat16, bfloat16);
    if (std::isnan(x[i])) good &= out[i].half.bits == 0x7fff && out[i].bfloat16.bits == 0x7fff;
    if (has_tf32) good &= same(tf32, float(rounded(x[i], 11, -136, false)));
    if (!good) {
      std::printf("at %a: %a %a %a\n", x[i], out[i].from_half, out[i].from_bfloat16, tf32);
      return false;
    }
  }
  return good;
}

// ------------------------------------------------------------------------------------------------
// Copies.

template <int Bytes>
__global__ void copy(const unsigned char* from, unsigned char* to) {
  GATEDRNN_DYNAMIC_SHARED(shared);  // one piece for each count of bytes from 0 to Bytes
  const int i = threadIdx.x;
  if (i <= Bytes) {
    copy_async<Bytes>(shared + i * Bytes, from + i * Bytes, i);
    commit_copies();
    wait_copies<0>();
    for (int k = 0; k < Bytes; ++k) to[i * Bytes + k] = shared[i * Bytes + k];
  }
}

template <int Bytes>
bool check_copy() {
  constexpr int n = (Bytes + 1) * Bytes;
  Array<unsigned char> from(n), to(n);
  for (int i = 0; i < n; ++i) from[i] = static_cast<unsigned char>(i % 251 + 1);
  bool good =
      run({.shared = n}, copy<Bytes>, static_cast<const unsigned char*>(from.data), to.data);
  for (int i = 0; i < n; ++i) good &= to[i] == (i % Bytes < i / Bytes ? from[i] : 0);
  return good;
}

// Three buffers in turn: a group is there when all but the two after it are.
__global__ void pipeline(const float* from, float* to, int groups) {
  GATEDRNN_SHARED(float, buffers, 3 * 64);
  const int i = threadIdx.x;
  for (int g = 0; g < groups + 2; ++g) {
    if (g < groups) copy_async<4>(buffers + g % 3 * 64 + i, from + g * 64 + i, 4);
    commit_copies();
    wait_copies<2>();
    __syncthreads();
    if (g >= 2) to[(g - 2) * 64 + i] = buffers[(g - 2) % 3 * 64 + (i + 1) % 64];
    __syncthreads();
  }
}

bool check_pipeline() {
  Array<float> from(7 * 64), to(7 * 64);
  for (int i = 0; i < from.size; ++i) from[i] = float(i);
  bool good = run({.block = dim3(64)}, pipeline, static_cast<const float*>(from.data), to.data, 7);
  for (int i = 0; i < to.size; ++i) good &= to[i] == float(i / 64 * 64 + (i + 1) % 64);
  return good;
}

#include "conformance_threads.h"

int main() {
  int failed = 0;
  const auto check = [&](const char* name, bool good) {
    std::printf("%s %s\n", good ? "ok  " : "FAIL", name);
    failed += !good;
  };
  int major = 0;
  if (auto error = cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, 0)) {
    std::printf("no device: %s\n", cudaGetErrorString(error));
    return 255;
  }
  if (major >= 8) {
    check("mma_tf32", check_product<Kind::tf32>(kTf32));
    check("mma_tf32 reads 19 bits", check_product<Kind::unrounded>(kTf32));
    check("mma_bfloat16", check_product<Kind::bfloat16>(kHalf));
  }
  check("mma_half", check_product<Kind::half>(kHalf));
  check("mma_half_k8", check_product<Kind::half_k8>(kHalfK8));
  check("load_matrix_x4", check_matrices());
  check("conversions", check_conversions(major >= 8));
  check("copy_async<4>", check_copy<4>());
  check("copy_async<8>", check_copy<8>());
  check("copy_async<16>", check_copy<16>());
  check("groups of copies", check_pipeline());
  check("indices", check_indices());
  check("barriers", check_barriers());
  check("group_sync", check_groups());
  check("shuffles", check_shuffles());
  check("votes", check_votes());
  check("atomics", check_atomics());
  check("grid_sync", check_grid());
  check("relaxed pairs", check_relaxed<true>());
  check("relaxed words", check_relaxed<false>());
  check("relaxed words one by one", check_words());
  if (major >= 9) {
    check("clusters", check_clusters());
    check("mbarrier", check_mbarrier());
    check("store_async<4>", check_stores<float>());
    check("store_async<8>", check_stores<float2>());
    check("store_async<16>", check_stores<float4>());
  }
  return failed;
}
