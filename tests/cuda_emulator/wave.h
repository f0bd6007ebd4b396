// The blocks that run at the same time, from their start to their end. Included by
// cuda_emulator.cpp only.
#pragma once

#include <map>
#include <span>
#include <tuple>
#include <utility>

#include "block.h"

namespace cuda_emulator {
namespace {

unsigned volume(dim3 d) { return d.x * d.y * d.z; }

uint3 place_in(dim3 grid, unsigned index) {
  return {index % grid.x, index / grid.x % grid.y, index / grid.x / grid.y};
}

// The clusters that run at the same time.
class Wave {
 public:
  explicit Wave(std::span<const unsigned> clusters) {
    const Launch& launch = *gpu.launch;
    threads_ = volume(launch.block);
    const dim3 shape = launch.cluster;
    const dim3 grid(launch.grid.x / shape.x, launch.grid.y / shape.y, launch.grid.z / shape.z);
    gpu.live = unsigned(clusters.size()) * volume(shape) * threads_;
    gpu.fibers_in_use = gpu.live;
    while (gpu.fibers.size() < gpu.live) gpu.fibers.push_back(std::make_unique<Fiber>());
    // Here: were one thread to grow what another one has allocated, TSan would miss their order.
    gpu.yielded.reserve(gpu.live);
    gpu.stores.reserve(1 << 14);
    gpu.grid = Barrier{.name = gpu.grid.name, .expected = gpu.live};
    for (const unsigned index : clusters) {
      const uint3 at = place_in(grid, index);
      Cluster& cluster = *gpu.clusters.emplace_back(std::make_unique<Cluster>());
      cluster.barrier.expected = volume(shape) * threads_;
      for (unsigned rank = 0; rank < volume(shape); ++rank) {
        const uint3 in = place_in(shape, rank);
        add_block(cluster, {at.x * shape.x + in.x, at.y * shape.y + in.y, at.z * shape.z + in.z});
      }
    }
    // "fifo" and "random" begin as constructed.
    const bool descending = gpu.order == Order::lifo;
    gpu.top.descending = descending;
    for (Ready& group : gpu.groups) group.descending = descending;
    for (auto& block : gpu.blocks) {
      block->ready.descending = descending;
      for (Warp& warp : block->warps) warp.ready.descending = descending;
    }
    gpu.courier.start();
    tsan_release(&gpu.begin);
  }

  Wave(const Wave&) = delete;
  Wave& operator=(const Wave&) = delete;

  ~Wave() {
    gpu.courier([] { tsan_release(&gpu.end); });
    gpu.courier.end();
    tsan_acquire(&gpu.end);
    for (auto& block : gpu.blocks) {
      if (kTsan && gpu.live) break;  // threads that never end would race with the release
      visit_shared(*block, [](unsigned char* data, size_t bytes) {
        permit(data, bytes);
        std::free(data);
      });
    }
    for (unsigned i = 0; i < gpu.fibers_in_use; ++i) gpu.fibers[i]->context.end();
    gpu.blocks.clear();
    gpu.clusters.clear();
    gpu.yielded.clear();
    gpu.stores.clear();
    std::fill(std::begin(gpu.relaxed), std::end(gpu.relaxed), uint16_t(0));
    gpu.favourite = nullptr;
    gpu.top = {};
    for (Ready& group : gpu.groups) group = {};
  }

  void run() {
    gpu.main.adopt();
    gpu.futile_rounds = 0;
    gpu.next_draw = 0;
    switch_to(choose());
    if (gpu.error) std::rethrow_exception(std::exchange(gpu.error, nullptr));
    if (gpu.live) throw Error(dead_lock());
    while (!gpu.stores.empty() && !gpu.stores.back().barrier) deliver(gpu.stores.size() - 1);
    for (auto& block : gpu.blocks) {
      if (block->cluster->blocks.size() == 1) continue;
      visit_shared(*block, [](unsigned char* data, size_t bytes) {
        permit(data, bytes);
        if (std::any_of(data, data + bytes, [](unsigned char byte) { return byte != kPoison; }))
          throw Error("a block's shared memory was written after the block's exit");
      });
    }
  }

 private:
  void add_block(Cluster& cluster, uint3 place) {
    Block& block = *gpu.blocks.emplace_back(std::make_unique<Block>());
    block.index = unsigned(gpu.blocks.size()) - 1;
    block.place = place;
    block.rank = unsigned(cluster.blocks.size());
    block.cluster = &cluster;
    cluster.blocks.push_back(&block);
    block.barrier.expected = threads_;
    block.live = threads_;
    block.statics.reserve(32);
    if (gpu.launch->shared) block.dynamic = new_shared(gpu.launch->shared, 128);
    block.warps.resize((threads_ + 31) / 32);
    for (unsigned i = 0; i < threads_; ++i) {
      const unsigned number = block.index * threads_ + i;
      Fiber& fiber = *gpu.fibers[number];
      Warp& warp = block.warps[i / 32];
      fiber.thread = place_in(gpu.launch->block, i);
      fiber.block = &block;
      fiber.warp = &warp;
      fiber.lane = i % 32;
      fiber.done = false;
      fiber.waits_for = nullptr;
      fiber.copies.clear();
      fiber.performed = 0;
      fiber.groups = 0;
      fiber.context.start(run_fiber, number);
      warp.lanes[fiber.lane] = &fiber;
      warp.live |= 1u << fiber.lane;
    }
    for (unsigned w = 0; w < block.warps.size(); ++w) {
      Warp& warp = block.warps[w];
      warp.index = w;
      warp.block = &block;
      warp.meetings[0].mask = kFull;
      make_ready(warp, warp.live);
    }
  }

  static std::string dead_lock() {
    // Threads of a block that wait for the same are one line.
    using Place = std::tuple<unsigned, std::string, const Barrier*>;
    std::map<Place, std::vector<const Fiber*>> waiting;
    for (unsigned i = 0; i < gpu.fibers_in_use; ++i) {
      const Fiber& fiber = *gpu.fibers[i];
      if (!fiber.done)
        waiting[{fiber.block->index, fiber.waits_for, fiber.waits_at}].push_back(&fiber);
    }
    std::string text = "dead-lock: " + std::to_string(gpu.live) + " threads wait";
    int lines = 0;
    for (const auto& [place, fibers] : waiting) {
      if (++lines > 16) return text + "\n  ...";
      const auto& [block, reason, barrier] = place;
      text += "\n  " + std::to_string(fibers.size()) + " in " + reason;
      if (barrier)
        text += ", where " + std::to_string(barrier->arrived) + " of " +
                std::to_string(barrier->expected) + " have arrived";
      text += ": " + name_of(*fibers.front()) + (fibers.size() > 1 ? ", ..." : "");
    }
    return text;
  }

  unsigned threads_;
};

}  // namespace
}  // namespace cuda_emulator
