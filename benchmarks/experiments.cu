// What the persistent kernels' design rests on, measured on a GPU before anything else is: how many
// clusters run at once, how fast tensor cores multiply what stays in registers, and what a step
// takes in which states are exchanged and nothing is computed.
//
//   experiments STEPS [FILE]    prints rows "experiment,case,value,unit", and writes them to FILE;
//                               returns how many exchanges went wrong
//
//   nvcc -std=c++20 -O2 -arch=native benchmarks/experiments.cu
//
// The test suite runs it in its emulator, where the times mean nothing.
#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>

#include "experiments.h"

namespace gatedrnn::cuda {
namespace {

#ifdef GATEDRNN_EMULATE
constexpr int kMostBlocks = 4, kRepeats = 1;
inline void* allocate(size_t bytes) { return std::aligned_alloc(64, (bytes + 63) / 64 * 64); }
inline void release(void* p) { std::free(p); }
inline void clear(void* p, size_t bytes) { std::memset(p, 0, bytes); }
#else
constexpr int kMostBlocks = 1024, kRepeats = 3;
inline void* allocate(size_t bytes) {
  void* p = nullptr;
  return cudaMallocManaged(&p, bytes) == cudaSuccess ? p : nullptr;
}
inline void release(void* p) { cudaFree(p); }
inline void clear(void* p, size_t bytes) { cudaMemset(p, 0, bytes); }
#endif

// Memory that the host and the device reach.
template <class T>
struct Array {
  const size_t size;
  T* const data;

  explicit Array(size_t size) : size(size), data(static_cast<T*>(allocate(size * sizeof(T)))) {}
  ~Array() { release(data); }
  Array(const Array&) = delete;
};

// Whether these are the states after so many steps among so many owners.
bool is_right(const Array<uint4>& found, int steps, int owners) {
  std::vector<uint32_t> x(size_t(owners) * 32);
  for (int lane = 0; lane < 32; ++lane)
    for (int owner = 0; owner < owners; ++owner) x[owner * 32 + lane] = unsigned(owner * 32 + lane);
  for (int step = 0; step < steps; ++step)
    for (int lane = 0; lane < 32; ++lane) {
      uint32_t sum = 0;
      for (int i = 0; i < owners; ++i) sum += x[i * 32 + lane];
      for (int i = 0; i < owners; ++i) x[i * 32 + lane] = next_state(sum, unsigned(i));
    }
  bool right = true;
  for (size_t i = 0; i < found.size; ++i) right &= found.data[i].x == x[i];
  return right;
}

#ifndef GATEDRNN_EMULATE
// Cycles a second, after enough products to raise the clock.
__global__ void clock_kernel(long long* out) {
  long long begin, end;
  const long long cycles = clock64();
  asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(begin)::"memory");
  while (clock64() - cycles < 10'000'000) {
  }
  asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(end)::"memory");
  out[0] = clock64() - cycles;
  out[1] = end - begin;
}
#endif

struct Launch {
  unsigned blocks, threads, cluster = 1;
  bool cooperative = false;
};

template <class... Formal, class... Actual>
cudaError_t launch(const Launch& of, void (*kernel)(Formal...), Actual... arguments) {
  cudaLaunchAttribute attributes[2] = {};
  attributes[0].id = cudaLaunchAttributeClusterDimension;
  attributes[0].val.clusterDim = {of.cluster, 1, 1};
  attributes[1].id = cudaLaunchAttributeCooperative;
  attributes[1].val.cooperative = 1;
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(of.blocks);
  config.blockDim = dim3(of.threads);
  config.attrs = of.cluster > 1 ? attributes : attributes + 1;
  config.numAttrs = of.cluster > 1 || of.cooperative ? 1 : 0;
  return cudaLaunchKernelEx(&config, kernel, arguments...);
}

class Experiments {
 public:
  Experiments(int steps, std::FILE* file) : steps_(steps), file_(file) {
    int major = 0;
    cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, 0);
    cudaDeviceGetAttribute(&multiprocessors_, cudaDevAttrMultiProcessorCount, 0);
    multiprocessors_ = std::min(multiprocessors_, kMostBlocks);
    has_clusters_ = major >= 9;
    has_bfloat16_ = major >= 8;
  }

  int run() {
    write("experiment,case,value,unit\n");
    products<Operands::half>("half");
    if (has_bfloat16_) products<Operands::bfloat16>("bfloat16");
    if (has_bfloat16_) products<Operands::tf32>("tf32");
    if (has_clusters_)
      for (const unsigned cluster : {2u, 4u, 8u, 16u}) {
        fit(cluster, 100 << 10);
        fit(cluster, 227 << 10);
        for (const unsigned warps : {1u, 2u, 4u, 8u})
          if (cluster * warps <= 32) {
            exchange<Meeting::data>("data", cluster, warps);
            exchange<Meeting::cluster_barrier>("cluster barrier", cluster, warps);
          }
      }
    for (int blocks = 2; blocks <= multiprocessors_; blocks *= 2) {
      through_l2<true>("flags", blocks);
      through_l2<false>("grid barrier", blocks);
    }
    return failures_;
  }

 private:
  void write(const char* line) {
    std::fputs(line, stdout);
    std::fflush(stdout);
    if (file_) std::fputs(line, file_);
  }

  void report(const char* experiment, const char* of, double value, const char* unit) {
    char line[200];
    std::snprintf(line, sizeof line, "%s,%s,%.6g,%s\n", experiment, of, value, unit);
    write(line);
  }

  // Seconds of a launch, the best of some; not a number if it failed.
  template <class Call>
  double seconds(Call call) {
    double best = 1e300;
    for (int i = 0; i < kRepeats; ++i) {
      const auto begin = std::chrono::steady_clock::now();
      if (call() != cudaSuccess || cudaDeviceSynchronize() != cudaSuccess) {
        cudaGetLastError();
        return NAN;
      }
      const std::chrono::duration<double> time = std::chrono::steady_clock::now() - begin;
      best = std::min(best, time.count());
    }
    return best;
  }

  // What grows with the steps, not what a launch takes: of three times as many less the first.
  template <class Call>
  double seconds_of_step(Call call) {
    const double once = seconds([&] { return call(steps_); });
    const double more = seconds([&] { return call(3 * steps_); });
    return (more - once) / (2 * steps_);
  }

  double hertz() {
#ifndef GATEDRNN_EMULATE
    const Array<long long> out(2);
    if (launch({1, 1}, clock_kernel, out.data) == cudaSuccess &&
        cudaDeviceSynchronize() == cudaSuccess && out.data[1] > 0)
      return double(out.data[0]) / double(out.data[1]) * 1e9;
#endif
    return 1e9;
  }

  template <Operands kOperands>
  void products(const char* name) {
    const Array<float> out(size_t(multiprocessors_) * 32 * kWarps);
    const Array<uint32_t> weights(kWeights * 32 * kWarps);
    for (uint32_t i = 0; i < weights.size; ++i)  // pairs of 16 bits, +-0.25 to 0.5
      weights.data[i] = 0x34003400u | (i * 2654435761u & 0x83ff83ffu);
    const auto measure = [&](auto kernel, const char* loads) {
      const Launch all{unsigned(multiprocessors_), 32 * kWarps};
      const double time = seconds_of_step([&](int steps) {
                            return launch(all, kernel, 4 * steps, weights.data, out.data);
                          }) /
                          4;
      const double clock = hertz();
      char of[80];
      std::snprintf(of, sizeof of, "%s%s at %.0f MHz", name, loads, clock / 1e6);
      report("products", of, multiply_adds(kOperands) / (time * clock), "multiply-adds a cycle");
    };
    measure(multiply_kernel<kOperands, false>, "");
    measure(multiply_kernel<kOperands, true>, " with ldmatrix");
  }

  void fit(unsigned cluster, int shared) {
    int count = 0;
    const auto kernel = cluster_kernel<Meeting::data>;
    cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared - (48 << 10));
    cudaFuncSetAttribute(kernel, cudaFuncAttributeNonPortableClusterSizeAllowed, 1);
    cudaLaunchAttribute attribute = {};
    attribute.id = cudaLaunchAttributeClusterDimension;
    attribute.val.clusterDim = {cluster, 1, 1};
    cudaLaunchConfig_t config = {};
    config.gridDim = dim3(cluster);
    config.blockDim = dim3(32 * kWarps);
    config.dynamicSmemBytes = size_t(shared - (48 << 10));  // beside what the kernel has anyway
    config.attrs = &attribute;
    config.numAttrs = 1;
    if (cudaOccupancyMaxActiveClusters(&count, kernel, &config) != cudaSuccess) cudaGetLastError();
    char of[80];
    std::snprintf(of, sizeof of, "of %u blocks with %d KiB", cluster, shared >> 10);
    report("clusters at once", of, count, "clusters");
  }

  template <Meeting kMeeting>
  void exchange(const char* name, unsigned cluster, unsigned warps) {
    const auto kernel = cluster_kernel<kMeeting>;
    cudaFuncSetAttribute(kernel, cudaFuncAttributeNonPortableClusterSizeAllowed, 1);
    const Array<uint4> out(size_t(cluster) * warps * 32);
    const double time = seconds_of_step(
        [&](int steps) { return launch({cluster, 32 * warps, cluster}, kernel, steps, out.data); });
    char of[80];
    std::snprintf(of, sizeof of, "%s; %u blocks of %u warps", name, cluster, warps);
    finish("exchange in a cluster", of, time, out, int(cluster * warps));
  }

  template <bool kFlags>
  void through_l2(const char* name, int blocks) {
    const int warps = 1;
    const Array<uint4> out(size_t(blocks) * warps * 32), state(2 * out.size);
    const Array<unsigned> flags{size_t(blocks)};
    const double time = seconds_of_step([&](int steps) {
      clear(flags.data, flags.size * sizeof(unsigned));
      return launch({unsigned(blocks), unsigned(32 * warps), 1, true}, grid_kernel<kFlags>, steps,
                    state.data, flags.data, out.data);
    });
    char of[80];
    std::snprintf(of, sizeof of, "%s; %d blocks of %d warp", name, blocks, warps);
    finish("exchange through L2", of, time, out, blocks * warps);
  }

  // A device that refuses so large a cluster says nothing of its time.
  void finish(const char* experiment, const char* of, double time, const Array<uint4>& out,
              int owners) {
    const bool right = std::isnan(time) || is_right(out, 3 * steps_, owners);
    failures_ += !right;
    report(experiment, of, 1e9 * time, right ? "ns a step" : "ns a step; WRONG");
  }

  const int steps_;
  std::FILE* const file_;
  int multiprocessors_ = 0, failures_ = 0;
  bool has_clusters_ = false, has_bfloat16_ = false;
};

}  // namespace
}  // namespace gatedrnn::cuda

int main(int count, char** words) {
  const int steps = count > 1 ? std::atoi(words[1]) : 0;
  if (steps < 1) {
    std::fputs("usage: experiments STEPS [FILE]\n", stderr);
    return 255;
  }
  int found = 0;
  if (const auto error = cudaGetDevice(&found)) {
    std::fprintf(stderr, "no device: %s\n", cudaGetErrorString(error));
    return 255;
  }
  std::FILE* file = count > 2 ? std::fopen(words[2], "w") : nullptr;
  if (count > 2 && !file) {
    std::perror(words[2]);
    return 255;
  }
  const int failures = gatedrnn::cuda::Experiments(steps, file).run();
  if (file) std::fclose(file);
  return failures;
}
