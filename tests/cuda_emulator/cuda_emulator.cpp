// Launches, and the emulator's side of the names that kernels and hosts use. Never compile this
// file with -fsanitize=thread; define GATEDRNN_EMULATOR_TSAN where the kernels are.
#include "cuda_emulator.h"

#include <numeric>
#include <utility>

#include "block.h"
#include "machine.h"
#include "tensor_cores.h"
#include "wave.h"

uint3 threadIdx, blockIdx;
dim3 blockDim, gridDim;

namespace cuda_emulator {
namespace {

int refuse(const Launch& launch) {
  const unsigned threads = volume(launch.block), cluster = volume(launch.cluster);
  const dim3 grid = launch.grid, shape = launch.cluster;
  if (!threads || threads > 1024 || launch.block.z > 64) return cudaErrorInvalidConfiguration;
  if (!grid.x || !grid.y || !grid.z || grid.y > 65535 || grid.z > 65535)
    return cudaErrorInvalidConfiguration;
  if (!cluster || cluster > 16 || grid.x % shape.x || grid.y % shape.y || grid.z % shape.z)
    return cudaErrorInvalidConfiguration;
  const auto limit = gpu.dynamic_limits.find(launch.kernel);
  if (launch.shared > (limit == gpu.dynamic_limits.end() ? 48 << 10 : limit->second))
    return cudaErrorInvalidValue;
  const size_t fit = size_t(max_active_blocks(int(threads), launch.shared));
  const size_t blocks = volume(grid);
  if (launch.cooperative && blocks > std::min<size_t>(fit * gpu.multiprocessors, kMaxBlocks))
    return cudaErrorCooperativeLaunchTooLarge;
  return cudaSuccess;
}

}  // namespace

int launch(const Launch& launch) {
  const std::lock_guard lock(gpu.launching);
  if (const int error = refuse(launch)) return gpu.last_error = cudaError_t(error);
  gpu.launch = &launch;
  blockDim = launch.block;
  gridDim = launch.grid;
  std::vector<unsigned> clusters(volume(launch.grid) / volume(launch.cluster));
  std::iota(clusters.begin(), clusters.end(), 0u);
  if (gpu.order == Order::random || gpu.order == Order::prio)
    for (size_t i = clusters.size(); i > 1; --i) std::swap(clusters[i - 1], clusters[draw() % i]);
  // One cluster after the other is fastest, but hides what they do to each other.
  const size_t threads = kTsan ? 2048 : gpu.order == Order::fifo ? 1 : 512;
  const size_t least = kTsan || gpu.order == Order::fifo ? 1 : 3;
  const size_t blocks = volume(launch.cluster), size = blocks * volume(launch.block);
  const size_t together = launch.cooperative
                              ? clusters.size()
                              : std::max(least, std::min(threads / size, kMaxBlocks / blocks));
  for (size_t done = 0; done < clusters.size();) {
    const size_t count = std::min(together, clusters.size() - done);
    const size_t first = gpu.order == Order::lifo ? clusters.size() - done - count : done;
    Wave wave(std::span<const unsigned>(clusters).subspan(first, count));
    wave.run();
    done += count;
  }
  return cudaSuccess;
}

// Of blocks of which each has a multiprocessor to itself.
int max_active_clusters(const Launch& launch) {
  return gpu.multiprocessors / int(volume(launch.cluster));
}

// Capability 9.0: 2048 threads, 228 KB, of which each block costs one more. Registers are not
// known.
int max_active_blocks(int threads, size_t shared) {
  return int(std::min<size_t>(2048 / ((threads + 31) / 32 * 32), (228 << 10) / (shared + 1024)));
}

int set_dynamic_shared_limit(const void* kernel, int bytes) {
  if (bytes < 0 || size_t(bytes) > kDynamicLimit) return gpu.last_error = cudaErrorInvalidValue;
  gpu.dynamic_limits[kernel] = bytes;
  return cudaSuccess;
}

int attribute(int which, int* value) {
  switch (which) {
    case cudaDevAttrMultiProcessorCount:
      *value = gpu.multiprocessors;
      return cudaSuccess;
    case cudaDevAttrComputeCapabilityMajor:
      *value = GATEDRNN_ARCHITECTURE / 100;
      return cudaSuccess;
    case cudaDevAttrComputeCapabilityMinor:
      *value = GATEDRNN_ARCHITECTURE / 10 % 10;
      return cudaSuccess;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin:
      *value = kDynamicLimit;
      return cudaSuccess;
  }
  return cudaErrorInvalidValue;
}

void set_schedule(const std::string& order, uint64_t seed) { gpu.set(order, seed); }
void set_multiprocessors(int count) { gpu.multiprocessors = count; }

void fail(const std::string& message) {
  throw Error(gpu.current ? message + ", in " + name_of(*gpu.current) : message);
}

void yield() {
  gpu.yielded.push_back(gpu.current);
  suspend("__nanosleep");
}

unsigned lane() { return gpu.current->lane; }
void block_sync() { sync(gpu.current->block->barrier); }

void group_sync(int group, int threads) {
  if (group < 0 || group > 14) fail("group_sync: no such group");
  if (threads <= 0 || threads % 32) fail("group_sync: not whole warps");
  Barrier& barrier = gpu.current->block->groups[group];
  if (barrier.arrived && barrier.expected != unsigned(threads))
    fail("group_sync: threads disagree about their number");
  barrier.name = "group_sync";
  barrier.expected = unsigned(threads);
  sync(barrier);
}

unsigned char* dynamic_shared() { return gpu.current->block->dynamic; }
void* static_shared(const void* site, size_t bytes, size_t alignment) {
  return static_of(*gpu.current->block, site, bytes, alignment).data;
}

void warp_sync(unsigned mask) {
  collective(mask, "__syncwarp", &mask, [](Lanes, const char*) {}, true);
}

uint64_t shuffle_bits(unsigned mask, const char* name, uint64_t value, unsigned source) {
  struct Operands {
    uint64_t value, result;
    unsigned source;
  } mine{value, 0, source};
  collective(mask, name, &mine, [](Lanes lanes, const char* name) {
    for (void* lane : lanes) {
      if (!lane) continue;
      auto* to = static_cast<Operands*>(lane);
      const auto* from = static_cast<const Operands*>(lanes[to->source]);
      if (!from) fail(std::string(name) + ": the source lane takes no part");
      to->result = from->value;
    }
  });
  return mine.result;
}

unsigned ballot(unsigned mask, bool predicate) {
  struct Operands {
    bool predicate;
    unsigned result;
  } mine{predicate, 0};
  collective(mask, "__ballot_sync", &mine, [](Lanes lanes, const char*) {
    unsigned result = 0;
    for (int i = 0; i < 32; ++i)
      if (lanes[i] && static_cast<Operands*>(lanes[i])->predicate) result |= 1u << i;
    for (void* lane : lanes)
      if (lane) static_cast<Operands*>(lane)->result = result;
  });
  return mine.result;
}

// Performed when its thread waits for it; until then nobody may rely on what is there, neither the
// new nor the old.
void copy_async(void* shared, const void* global, int bytes, int valid) {
  const auto addresses = reinterpret_cast<uintptr_t>(shared) | reinterpret_cast<uintptr_t>(global);
  if (addresses % unsigned(bytes)) fail("cp.async: misaligned address");
  if (valid < 0 || valid > bytes) fail("cp.async: more bytes to read than to write");
#ifdef __SANITIZE_ADDRESS__
  unsigned char read[16];
  std::memcpy(read, global, size_t(valid));  // a report should show this call, not the wait
#endif
  tsan_read(global, size_t(valid));
  tsan_write(shared, size_t(bytes));
  std::memset(shared, kPoison, size_t(bytes));
  Fiber& fiber = *gpu.current;
  fiber.copies.push_back({shared, global, bytes, valid, fiber.groups});
}

void device::commit_copies() { ++gpu.current->groups; }

void wait_copies(int pending) {
  Fiber& fiber = *gpu.current;
  for (; fiber.performed < fiber.copies.size(); ++fiber.performed) {
    const Copy& copy = fiber.copies[fiber.performed];
    if (copy.group + unsigned(pending) >= fiber.groups) return;
    tsan_read(copy.from, size_t(copy.valid));
    tsan_write(copy.to, size_t(copy.bytes));
    std::memset(copy.to, 0, size_t(copy.bytes));
    std::memcpy(copy.to, copy.from, size_t(copy.valid));
  }
  fiber.copies.clear();
  fiber.performed = 0;
}

namespace {

Block& peer(unsigned rank) {
  const auto& blocks = gpu.current->block->cluster->blocks;
  if (rank >= blocks.size()) fail("the cluster has no block " + std::to_string(rank));
  return *blocks[rank];
}

}  // namespace

void* map_shared_rank(const void* p, unsigned rank) {
  Block& block = *gpu.current->block;
  const auto* byte = static_cast<const unsigned char*>(p);
  if (block.dynamic && byte >= block.dynamic && byte < block.dynamic + gpu.launch->shared)
    return peer(rank).dynamic + (byte - block.dynamic);
  for (const Static& known : block.statics)
    if (byte >= known.data && byte < known.data + known.bytes)
      return static_of(peer(rank), known.site, known.bytes, known.alignment).data +
             (byte - known.data);
  fail("map_shared_rank: not an address of this block's shared memory");
}

void store_async(void* to, const void* value, int bytes, uint64_t* barrier, unsigned rank) {
  auto* target = static_cast<unsigned char*>(map_shared_rank(to, rank));
  auto* done = static_cast<uint64_t*>(map_shared_rank(barrier, rank));
  if (reinterpret_cast<uintptr_t>(target) % unsigned(bytes)) fail("st.async: misaligned address");
  tsan_write(target, size_t(bytes));
  std::memset(target, kPoison, size_t(bytes));
  check(done);
  tsan_release(target);
  if (gpu.stores.size() == gpu.stores.capacity()) deliver(0);
  Store store{&peer(rank), target, {}, bytes, done};
  std::memcpy(store.value, value, size_t(bytes));
  gpu.stores.push_back(store);
}

void check_alignment(const void* p, unsigned bytes) {
  if (reinterpret_cast<uintptr_t>(p) % bytes) fail("a relaxed access: misaligned address");
}

// On its way, as one; others may arrive before it, but none for the same place.
void store_relaxed(void* to, const void* value, int bytes) {
  auto* target = static_cast<unsigned char*>(to);
#ifdef __SANITIZE_ADDRESS__
  unsigned char was[16];
  std::memcpy(was, to, size_t(bytes));  // a report should show this call
#endif
  uint16_t& before = gpu.relaxed[place_of(to)];
  for (size_t i = 0; before && i < gpu.stores.size(); ++i) {
    const Store& other = gpu.stores[i];
    if (other.to < target + bytes && target < other.to + other.bytes) deliver(i--);
  }
  if (gpu.stores.size() == gpu.stores.capacity()) deliver(0);
  Store store{nullptr, target, {}, bytes, nullptr};
  std::memcpy(store.value, value, size_t(bytes));
  gpu.stores.push_back(store);
  ++before;
}

// Sometimes words arrive one by one.
void device::store_relaxed_words(void* to, const uint32_t (&word)[4]) {
  check_alignment(to, 16);
  if (draw() % 8) return store_relaxed(to, word, 16);
  for (int i = 0; i < 4; ++i) store_relaxed(static_cast<uint32_t*>(to) + i, word + i, 4);
}

namespace device {

void grid_sync() {
  if (!gpu.launch->cooperative) fail("grid_sync: the launch is not cooperative");
  sync(gpu.grid);
}
unsigned cluster_rank() { return gpu.current->block->rank; }
unsigned cluster_size() { return unsigned(gpu.current->block->cluster->blocks.size()); }
void cluster_arrive() { gpu.current->cluster_phase = arrive(gpu.current->block->cluster->barrier); }
void cluster_wait() { wait(gpu.current->block->cluster->barrier, gpu.current->cluster_phase); }
void cluster_sync() { sync(gpu.current->block->cluster->barrier); }

void mbarrier_init(uint64_t* barrier, unsigned count) {
  if (reinterpret_cast<uintptr_t>(barrier) % 8) fail("mbarrier: misaligned address");
  tsan_write(barrier, 8);
  const Mbarrier state{.phase = 0, .expected = count, .pending = count, .invalid = 0, .bytes = 0};
  std::memcpy(barrier, &state, 8);
}

}  // namespace device

namespace {

void arrive(Block& block, uint64_t* barrier, unsigned bytes) {
  Mbarrier& state = check(barrier);
  if (!state.pending) fail("mbarrier: more arrivals than it was initialized for");
  tsan_release(reinterpret_cast<char*>(barrier) + state.phase);
  state.bytes += int(bytes);
  --state.pending;
  complete_phase(block, barrier);
}

}  // namespace

namespace device {

void mbarrier_arrive(uint64_t* barrier) { arrive(*gpu.current->block, barrier, 0); }
void mbarrier_arrive_peer(uint64_t* barrier, unsigned rank) {
  arrive(peer(rank), map_shared_rank(barrier, rank), 0);
}
void mbarrier_arrive_expect(uint64_t* barrier, unsigned bytes) {
  arrive(*gpu.current->block, barrier, bytes);
}
void mbarrier_wait(uint64_t* barrier, unsigned parity) {
  const Mbarrier& state = check(barrier);
  while (state.phase == parity) {
    Fiber& fiber = *gpu.current;
    fiber.waits_on = barrier;
    fiber.next = fiber.block->mbarrier_waiting;
    fiber.block->mbarrier_waiting = &fiber;
    suspend("an mbarrier's wait");
  }
  tsan_acquire(reinterpret_cast<char*>(barrier) + parity);
}

}  // namespace device
}  // namespace cuda_emulator

const char* cudaGetErrorString(cudaError_t error) {
  switch (error) {
    case cudaSuccess:
      return "no error";
    case cudaErrorInvalidValue:
      return "invalid argument";
    case cudaErrorInvalidConfiguration:
      return "invalid configuration argument";
    case cudaErrorInvalidDevice:
      return "invalid device ordinal";
    case cudaErrorCooperativeLaunchTooLarge:
      return "too many blocks in cooperative launch";
  }
  return "unrecognized error code";
}
cudaError_t cudaGetLastError() { return std::exchange(cuda_emulator::gpu.last_error, cudaSuccess); }
cudaError_t cudaGetDevice(int* device) {
  *device = 0;
  return cudaSuccess;
}
cudaError_t cudaSetDevice(int device) { return device == 0 ? cudaSuccess : cudaErrorInvalidDevice; }
