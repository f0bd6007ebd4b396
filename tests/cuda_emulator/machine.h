// The emulator's state, and who runs next. Included by cuda_emulator.cpp only.
#pragma once

#include <algorithm>
#include <exception>
#include <map>
#include <memory>
#include <mutex>
#include <vector>

#include "cuda_emulator.h"
#include "fiber.h"

namespace cuda_emulator {
namespace {

constexpr unsigned kFull = ~0u;
constexpr int kPoison = 0xff;  // every float and half of it is NaN
constexpr size_t kStaticLimit = 48 << 10, kDynamicLimit = 227 << 10;
constexpr unsigned kMaxBlocks = 1024;     // that run at the same time
constexpr unsigned kFutileRounds = 1000;  // of yielding threads, without any barrier passed

struct Block;
struct Warp;

struct Barrier {
  const char* name;
  unsigned expected = 0, arrived = 0;
  unsigned phase = 0;
  struct Fiber* waiting = nullptr;
  uint64_t order[2] = {};  // TSan's, by the phase's parity: late leavers are not the next's
};

struct Copy {
  void* to;
  const void* from;
  int bytes, valid;
  unsigned group;
};

struct Fiber {
  Context context;
  uint3 thread;
  Block* block;
  Warp* warp;
  unsigned lane;
  bool done;
  const char* waits_for;
  const Barrier* waits_at;
  const void* waits_on;  // an mbarrier
  Fiber* next;           // waiting at the same barrier
  unsigned cluster_phase;
  std::vector<Copy> copies;  // not yet performed, oldest first
  size_t performed;
  unsigned groups;  // committed
};

// A set of 32 that knows which of its members comes next.
struct Ready {
  unsigned mask = 0;
  unsigned first = 0;
  bool descending = false;

  unsigned next() const {
    const unsigned rotated = std::rotr(mask, int(first));
    const int at = descending ? 31 - std::countl_zero(rotated) : std::countr_zero(rotated);
    return (unsigned(at) + first) % 32;
  }
};

// A warp's lanes' operands of one instruction; null: the lane takes no part.
using Lanes = void* const (&)[32];

// Lanes on their way through one instruction.
struct Meeting {
  unsigned mask = 0, arrived = 0;
  const char* name = nullptr;
  void* operands[32] = {};
  void (*act)(Lanes, const char*) = nullptr;
  unsigned phase = 0;
  uint64_t order[2] = {};  // as Barrier's
};

struct Warp {
  Ready ready;
  unsigned live = 0;
  unsigned index;  // in its block
  Block* block;
  Fiber* lanes[32] = {};
  Meeting meetings[4];  // the first: of all lanes
};

struct Static {
  const void* site;
  unsigned char* data;
  size_t bytes, alignment;
};

struct Cluster {
  Barrier barrier{"the cluster's barrier"};
  std::vector<Block*> blocks;
};

struct Block {
  Ready ready;     // warps
  unsigned index;  // among those that run
  uint3 place;
  unsigned rank;
  Cluster* cluster;
  Barrier barrier{"__syncthreads"};
  Barrier groups[15];
  unsigned char* dynamic = nullptr;
  std::vector<Static> statics;
  std::vector<Warp> warps;
  Fiber* mbarrier_waiting = nullptr;
  unsigned live;
  bool started = false;
  uint64_t start, exit;  // TSan's
};

struct Store {
  Block* block;
  unsigned char* to;
  unsigned char value[16];
  int bytes;
  uint64_t* barrier;  // null: relaxed, and nobody's
};

enum class Order { fifo, lifo, random, prio };

struct Machine {
  std::mutex launching;
  Order order = Order::fifo;
  int multiprocessors = 132;
  std::map<const void*, size_t> dynamic_limits;
  cudaError_t last_error = cudaSuccess;
  std::vector<std::unique_ptr<Fiber>> fibers;  // their stacks serve all launches

  // Of the launch:
  const Launch* launch = nullptr;
  uint64_t random = 1;
  Context main;
  std::exception_ptr error;
  uint64_t begin, end;  // TSan's

  // Of the blocks that run at the same time:
  std::vector<std::unique_ptr<Cluster>> clusters;
  std::vector<std::unique_ptr<Block>> blocks;
  unsigned live = 0, fibers_in_use = 0;
  Barrier grid{"the grid's barrier"};
  Fiber* current = nullptr;
  Ready top, groups[kMaxBlocks / 32];
  Warp* favourite = nullptr;  // the last one to run, if no other one has become ready since
  std::vector<Fiber*> yielded;
  std::vector<Store> stores;  // on their way
  uint16_t relaxed[1 << 20];  // how many of them, by place_of
  Courier courier;
  unsigned futile_rounds = 0;
  uint64_t switches = 0, next_draw = 0;

  Machine() {
    const char* order_name = std::getenv("GATEDRNN_EMULATOR_ORDER");
    const char* seed_text = std::getenv("GATEDRNN_EMULATOR_SEED");
    set(order_name ? order_name : "fifo", seed_text ? std::strtoull(seed_text, nullptr, 10) : 1);
  }

  void set(const std::string& name, uint64_t seed) {
    const char* names[] = {"fifo", "lifo", "random", "prio"};
    const auto* found = std::find(std::begin(names), std::end(names), name);
    if (found == std::end(names))
      throw Error("the emulator's order must be fifo, lifo, random or prio, got " + name);
    order = Order(found - names);
    random = seed * 0x9e3779b97f4a7c15 | 1;
  }
};

Machine gpu;

uint64_t draw() {  // xorshift64
  gpu.random ^= gpu.random << 13;
  gpu.random ^= gpu.random >> 7;
  gpu.random ^= gpu.random << 17;
  return gpu.random;
}

// ------------------------------------------------------------------------------------------------
// Who runs.

void arrange(Ready& set) {
  const uint64_t drawn = draw() >> 20;
  set.first = drawn % 32;
  set.descending = drawn >> 5 & 1;
}

void draw_priorities() {
  gpu.favourite = nullptr;
  arrange(gpu.top);
  for (Ready& group : gpu.groups) arrange(group);
  for (auto& block : gpu.blocks) {
    arrange(block->ready);
    for (Warp& warp : block->warps) arrange(warp.ready);
  }
}

std::string name_of(const Fiber& fiber) {
  const auto triple = [](uint3 at) {
    return "(" + std::to_string(at.x) + ", " + std::to_string(at.y) + ", " + std::to_string(at.z) +
           ")";
  };
  return "block " + triple(fiber.block->place) + ", thread " + triple(fiber.thread);
}

void make_ready(Warp& warp, unsigned lanes) {
  if (gpu.favourite != &warp) gpu.favourite = nullptr;
  const Block& block = *warp.block;
  warp.ready.mask |= lanes;
  warp.block->ready.mask |= 1u << warp.index;
  gpu.groups[block.index / 32].mask |= 1u << block.index % 32;
  gpu.top.mask |= 1u << block.index / 32;
}

void make_ready(Fiber* fiber) { make_ready(*fiber->warp, 1u << fiber->lane); }

Fiber* take_ready() {
  const bool random = gpu.order == Order::random;
  // A change of warp costs most of the time, so "random" changes in one of four switches.
  if (Warp* warp = gpu.favourite;
      warp && warp->ready.mask & (warp->ready.mask - 1) && (!random || draw() >> 20 & 3)) {
    if (random) arrange(warp->ready);
    const unsigned lane = warp->ready.next();
    warp->ready.mask &= ~(1u << lane);
    return warp->lanes[lane];
  }
  if (!gpu.top.mask) return nullptr;
  if (random) arrange(gpu.top);
  const unsigned group_at = gpu.top.next();
  Ready& group = gpu.groups[group_at];
  if (random) arrange(group);
  const unsigned block_at = group.next();
  Block& block = *gpu.blocks[group_at * 32 + block_at];
  if (random) arrange(block.ready);
  const unsigned warp_at = block.ready.next();
  Warp& warp = block.warps[warp_at];
  if (random) arrange(warp.ready);
  const unsigned lane = warp.ready.next();
  gpu.favourite = &warp;
  if (warp.ready.mask &= ~(1u << lane)) return warp.lanes[lane];
  if (block.ready.mask &= ~(1u << warp_at)) return warp.lanes[lane];
  if (group.mask &= ~(1u << block_at)) return warp.lanes[lane];
  gpu.top.mask &= ~(1u << group_at);
  return warp.lanes[lane];
}

// mbarrier, in its 8 bytes. Poisoned memory is not one.
struct Mbarrier {
  uint32_t phase : 1, expected : 15, pending : 15, invalid : 1;
  int32_t bytes;
};

Mbarrier& check(uint64_t* barrier) {
  auto* p = reinterpret_cast<Mbarrier*>(barrier);
  if (reinterpret_cast<uintptr_t>(barrier) % 8) fail("mbarrier: misaligned address");
  tsan_read(barrier, 8);  // a race with its initialization is one
  if (p->invalid) fail("mbarrier: not initialized");
  return *p;
}

void complete_phase(Block& block, uint64_t* barrier) {
  Mbarrier& state = *reinterpret_cast<Mbarrier*>(barrier);
  if (state.pending || state.bytes) return;
  state.phase ^= 1;
  state.pending = state.expected;
  gpu.futile_rounds = 0;
  for (Fiber** at = &block.mbarrier_waiting; *at;) {
    Fiber* fiber = *at;
    if (fiber->waits_on == barrier) {
      *at = fiber->next;
      make_ready(fiber);
    } else {
      at = &fiber->next;
    }
  }
}

size_t place_of(const void* p) { return reinterpret_cast<uintptr_t>(p) / 16 % (1 << 20); }

void deliver(size_t which) {
  const Store store = gpu.stores[which];
  gpu.stores[which] = gpu.stores.back();
  gpu.stores.pop_back();
  if (store.barrier)
    gpu.courier([&] {
      const auto* barrier = reinterpret_cast<const Mbarrier*>(store.barrier);
      tsan_acquire(store.to);
      tsan_write(store.to, size_t(store.bytes));
      tsan_release(reinterpret_cast<char*>(store.barrier) + barrier->phase);
    });
  // Copies of known size are no calls: TSan would take a call for an access by this fiber.
  if (store.bytes == 4)
    std::memcpy(store.to, store.value, 4);
  else if (store.bytes == 8)
    std::memcpy(store.to, store.value, 8);
  else
    std::memcpy(store.to, store.value, 16);
  if (store.barrier) {
    reinterpret_cast<Mbarrier*>(store.barrier)->bytes -= store.bytes;
    complete_phase(*store.block, store.barrier);
  } else {
    --gpu.relaxed[place_of(store.to)];
    gpu.futile_rounds = 0;
  }
}

// Who runs next; null: none can.
Fiber* choose() {
  ++gpu.switches;
  if (gpu.order == Order::prio && gpu.switches >= gpu.next_draw) {
    draw_priorities();
    gpu.next_draw = gpu.switches + draw() % (20 * gpu.fibers_in_use);
  }
  if (!gpu.stores.empty() && gpu.order != Order::lifo && draw() % 4 == 0)
    deliver(draw() % gpu.stores.size());
  while (true) {
    if (Fiber* fiber = take_ready()) return fiber;
    if (!gpu.stores.empty()) {
      // Who waits in a loop may look before all have arrived, or when but one is missing.
      const unsigned missing = draw() % 4;
      size_t some = gpu.yielded.empty() ? 1 : gpu.stores.size();
      if (missing == 0)
        some = draw() % some + 1;
      else if (missing == 1 && some > 1)
        --some;
      for (; some > 0; --some) deliver(draw() % gpu.stores.size());
    }
    if (!gpu.yielded.empty()) {
      if (++gpu.futile_rounds > kFutileRounds) {
        gpu.error = std::make_exception_ptr(Error("live-lock: threads wait in loops for a store"));
        return nullptr;
      }
      for (Fiber* fiber : gpu.yielded) make_ready(fiber);
      gpu.yielded.clear();
    } else if (gpu.stores.empty() && !gpu.top.mask) {
      return nullptr;
    }
  }
}

void switch_to(Fiber* next, bool for_good = false) {
  Fiber* from = gpu.current;
  if (next == from) return;
  gpu.current = next;
  if (next) {
    threadIdx = next->thread;
    blockIdx = next->block->place;
  }
  (from ? from->context : gpu.main).switch_to(next ? next->context : gpu.main, for_good);
}

void suspend(const char* reason, const Barrier* barrier = nullptr) {
  gpu.current->waits_for = reason;
  gpu.current->waits_at = barrier;
  switch_to(choose());
}

}  // namespace
}  // namespace cuda_emulator
