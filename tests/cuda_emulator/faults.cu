// Kernels with one fault each, which the emulator or a sanitizer must show, and the same kernels
// without it, which they must let pass.
//
//   faults NAME [right]    returns 0 if the result is right, 1 if it is wrong, 2 after an Error,
//                          whose text it writes
//   faults                 writes the names
//   faults refusals        returns how many launches that a device would refuse were not
//   faults order           writes the threads of two blocks in the order in which they ran
#include <cstdio>
#include <functional>
#include <map>
#include <vector>

#include "../../csrc/cuda/device.h"

using namespace gatedrnn::cuda;

struct Shape {
  dim3 grid = dim3(1), block = dim3(32);
  unsigned cluster = 1;
  bool cooperative = false;
  size_t shared = 0;
};

template <class... Formal, class... Actual>
cudaError_t run(const Shape& shape, void (*kernel)(Formal...), Actual... arguments) {
  cudaLaunchAttribute attributes[2];
  attributes[0].id = cudaLaunchAttributeClusterDimension;
  attributes[0].val.clusterDim = {shape.cluster, 1, 1};
  attributes[1].id = cudaLaunchAttributeCooperative;
  attributes[1].val.cooperative = shape.cooperative;
  cudaLaunchConfig_t config = {};
  config.gridDim = shape.grid;
  config.blockDim = shape.block;
  config.dynamicSmemBytes = shape.shared;
  config.attrs = attributes;
  config.numAttrs = 2;
  return cudaLaunchKernelEx(&config, kernel, arguments...);
}

#include "fault_kernels.h"

int order() {
  int threads[128], next = 0;
  if (run({.grid = dim3(2), .block = dim3(64)}, note, threads, &next) != cudaSuccess) return 1;
  for (const int thread : threads) std::printf("%d ", thread);
  return next != 128;
}

int refusals() {
  const auto kernel = [](Shape shape) { return run(shape, trap, true); };
  int wrong = 0;
  wrong += kernel({.block = dim3(1025)}) != cudaErrorInvalidConfiguration;
  wrong += kernel({.block = dim3(0)}) != cudaErrorInvalidConfiguration;
  wrong += kernel({.grid = dim3(0)}) != cudaErrorInvalidConfiguration;
  wrong += kernel({.grid = dim3(1, 65536)}) != cudaErrorInvalidConfiguration;
  wrong += kernel({.grid = dim3(3), .cluster = 2}) != cudaErrorInvalidConfiguration;
  wrong += cudaGetLastError() != cudaErrorInvalidConfiguration || cudaGetLastError() != cudaSuccess;
  wrong += kernel({.shared = (48 << 10) + 1}) != cudaErrorInvalidValue;
  const auto limit = cudaFuncAttributeMaxDynamicSharedMemorySize;
  wrong += cudaFuncSetAttribute(trap, limit, (227 << 10) + 1) != cudaErrorInvalidValue;
  wrong += cudaFuncSetAttribute(trap, limit, 227 << 10) != cudaSuccess;
  wrong += kernel({.shared = 227 << 10}) != cudaSuccess;
  cuda_emulator::set_multiprocessors(2);
  int count = 0;
  wrong += cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, 0) != cudaSuccess;
  wrong += count != 2;
  wrong += cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, 1) == cudaSuccess;
  wrong += kernel({.grid = dim3(4), .block = dim3(1024), .cooperative = true}) != cudaSuccess;
  wrong += kernel({.grid = dim3(5), .block = dim3(1024), .cooperative = true}) !=
           cudaErrorCooperativeLaunchTooLarge;
  return wrong;
}

int main(int count, char** values) {
  const bool right = count > 2;
  std::vector<float> in(64), out(64, NAN), scratch(64, NAN);
  for (int i = 0; i < 64; ++i) in[i] = float(i + 1);
  alignas(16) uint32_t passed[256] = {};
  int flag = 0, written = 0;  // elements of `out`
  const float* from = in.data();
  float* to = out.data();
  const Shape one, pair{.block = dim3(64)}, two{.grid = dim3(2), .cluster = 2};
  const Shape both{.grid = dim3(2), .cooperative = true};
  Shape two_shared = two, one_shared = one;
  two_shared.shared = 144;
  one_shared.shared = 1024;
  const std::map<std::string, std::function<void()>> faults = {
      {"no_barrier",
       [&] { out.resize(written = 96), run({.block = dim3(96)}, no_barrier, out.data(), right); }},
      {"no_warp_barrier", [&] { written = 32, run(one, no_warp_barrier, to, right); }},
      {"overtaken", [&] { written = 64, run(pair, overtaken, to, right); }},
      {"no_wait", [&] { written = 64, run(pair, no_wait, from, to, right); }},
      {"wait_without_barrier",
       [&] { written = 64, run(pair, wait_without_barrier, from, to, right); }},
      {"copy_over_readers", [&] { written = 64, run(pair, copy_over_readers, from, to, right); }},
      {"between_blocks",
       [&] {
         written = 64,
         run({.grid = dim3(2), .cooperative = right}, between_blocks, to, scratch.data(), right);
       }},
      {"before_the_peer", [&] { written = 64, run(two_shared, before_the_peer, to, right); }},
      {"after_the_peer", [&] { written = 64, run(two_shared, after_the_peer, to, right); }},
      {"block_barrier_in_a_cluster",
       [&] { written = 64, run(two, block_barrier_in_a_cluster, to, right); }},
      {"store_without_wait", [&] { written = 64, run(two_shared, store_without_wait, to, right); }},
      {"store_over_readers", [&] { written = 64, run(two_shared, store_over_readers, to, right); }},
      {"one_mark_of_two", [&] { written = 64, run(both, one_mark_of_two, passed, to, right); }},
      {"overwritten", [&] { written = 64, run(both, overwritten, passed, to, right); }},
      {"different_barriers",
       [&] { run({.grid = dim3(2), .block = dim3(64), .cluster = 2}, different_barriers, right); }},
      {"too_few_bytes", [&] { run(one, too_few_bytes, right); }},
      {"different_instructions", [&] { run(one, different_instructions, right); }},
      {"not_in_the_mask", [&] { run(one, not_in_the_mask, right); }},
      {"source_not_in_the_mask", [&] { run(one, source_not_in_the_mask, right); }},
      {"half_a_warp", [&] { run(one, half_a_warp, right); }},
      {"misaligned_matrix", [&] { run(one_shared, misaligned_matrix, right); }},
      {"misaligned_copy", [&] { run(one_shared, misaligned_copy, from, right); }},
      {"misaligned_store", [&] { run({.block = dim3(1), .shared = 64}, misaligned_store, right); }},
      {"misaligned_pair", [&] { run(one, misaligned_pair, passed, right); }},
      {"misaligned_vector", [&] { run({.block = dim3(2)}, misaligned_vector, to, right); }},
      {"copies_at_exit", [&] { run(one, copies_at_exit, from, right); }},
      {"no_such_block", [&] { run(one_shared, no_such_block, right); }},
      {"not_shared", [&] { run(one_shared, not_shared, to, right); }},
      {"barrier_not_initialized", [&] { run(one, barrier_not_initialized, right); }},
      {"too_many_arrivals", [&] { run(one, too_many_arrivals, right); }},
      {"not_cooperative",
       [&] { run({.grid = dim3(2), .cooperative = right}, not_cooperative, right); }},
      {"waits_in_vain", [&] { run(one, waits_in_vain, &flag, right); }},
      {"trap", [&] { run(one, trap, right); }},
      {"beyond_dynamic", [&] { run({.shared = 32}, beyond_dynamic, right); }},
      {"beyond_static", [&] { run(one, beyond_static, right); }},
      {"beyond_global", [&] { run(one, beyond_global, to, right); }},
      {"copy_from_beyond", [&] { run(one_shared, copy_from_beyond, from, right); }},
      {"matrix_from_beyond", [&] { run({.shared = 512}, matrix_from_beyond, right); }},
      {"read_after_exit", [&] { run(two_shared, read_after_exit, to, right); }},
  };
  if (count > 1 && std::string(values[1]) == "refusals") return refusals();
  if (count > 1 && std::string(values[1]) == "order") return order();
  if (count < 2 || !faults.count(values[1])) {
    for (const auto& [name, run] : faults) std::printf("%s\n", name.c_str());
    return 3;
  }
  try {
    faults.at(values[1])();
  } catch (const cuda_emulator::Error& error) {
    std::printf("%s\n", error.what());
    return 2;
  }
  for (int i = 0; i < written; ++i)
    if (out[i] != float(i + 1)) return 1;
  return 0;
}
