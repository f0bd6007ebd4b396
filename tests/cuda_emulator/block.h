// Where threads meet, and what a block's threads share. Included by cuda_emulator.cpp only.
#pragma once

#include <span>

#include "machine.h"

namespace cuda_emulator {
namespace {

void complete(Barrier& barrier) {
  barrier.arrived = 0;
  ++barrier.phase;
  gpu.futile_rounds = 0;
  Fiber* fiber = barrier.waiting;
  barrier.waiting = nullptr;
  for (; fiber; fiber = fiber->next) make_ready(fiber);
}

unsigned arrive(Barrier& barrier) {
  const unsigned phase = barrier.phase;
  tsan_release(&barrier.order[phase % 2]);
  if (++barrier.arrived == barrier.expected) complete(barrier);
  return phase;
}

void wait(Barrier& barrier, unsigned phase) {
  if (barrier.phase == phase) {
    gpu.current->next = barrier.waiting;
    barrier.waiting = gpu.current;
    suspend(barrier.name, &barrier);
  }
  tsan_acquire(&barrier.order[phase % 2]);
}

void sync(Barrier& barrier) { wait(barrier, arrive(barrier)); }

// A thread that has exited is waited for no more.
void leave(Barrier& barrier) {
  if (--barrier.expected && barrier.arrived == barrier.expected) complete(barrier);
}

Meeting& meeting_of(Warp& warp, unsigned mask) {
  if (mask == kFull) return warp.meetings[0];
  for (Meeting& meeting : warp.meetings)
    if (meeting.mask == mask && meeting.arrived) return meeting;
  for (Meeting& meeting : std::span<Meeting>(warp.meetings).subspan(1))
    if (!meeting.arrived) {
      meeting.mask = mask;
      std::fill(std::begin(meeting.operands), std::end(meeting.operands), nullptr);
      return meeting;
    }
  fail("more masks in use in one warp than the emulator holds");
}

void complete(Warp& warp, Meeting& meeting) {
  meeting.act(meeting.operands, meeting.name);
  const unsigned lanes = meeting.arrived;
  meeting.arrived = 0;
  ++meeting.phase;
  make_ready(warp, lanes);
}

// What a warp's lanes do together: the last of `mask` to arrive acts for all, then all go on.
void collective(unsigned mask, const char* name, void* operands,
                void (*act)(Lanes lanes, const char* name), bool orders_memory = false) {
  const Fiber& fiber = *gpu.current;
  const unsigned me = 1u << fiber.lane;
  Warp& warp = *fiber.warp;
  if (!(mask & me)) fail(std::string(name) + ": the calling lane is not in the mask");
  Meeting& meeting = meeting_of(warp, mask);
  if (meeting.arrived && meeting.name != name && std::strcmp(meeting.name, name))
    fail(std::string("a warp's lanes meet in different instructions: ") + meeting.name + " and " +
         name);
  meeting.name = name;
  meeting.act = act;
  meeting.operands[fiber.lane] = operands;
  uint64_t* order = &meeting.order[meeting.phase % 2];
  if (orders_memory) tsan_release(order);
  if ((meeting.arrived | me) == (mask & warp.live)) {
    complete(warp, meeting);  // this lane goes on at once
  } else {
    meeting.arrived |= me;
    suspend(name);
  }
  if (orders_memory) tsan_acquire(order);
}

// ------------------------------------------------------------------------------------------------
// Shared memory.

unsigned char* new_shared(size_t bytes, size_t alignment) {
  void* data = nullptr;  // of exactly this size, for ASan
  if (posix_memalign(&data, std::max<size_t>(alignment, 16), bytes)) throw std::bad_alloc();
  std::memset(data, kPoison, bytes);
  return static_cast<unsigned char*>(data);
}

const Static& static_of(Block& block, const void* site, size_t bytes, size_t alignment) {
  for (const Static& known : block.statics)
    if (known.site == site) {
      tsan_acquire(known.data);
      return known;
    }
  size_t total = bytes;
  for (const Static& known : block.statics) total += known.bytes;
  if (total > kStaticLimit) fail("more than 48 KB of static shared memory");
  if (block.statics.size() == block.statics.capacity()) fail("too many static shared arrays");
  block.statics.push_back({site, new_shared(bytes, alignment), bytes, alignment});
  tsan_release(block.statics.back().data);
  return block.statics.back();
}

template <class Visit>
void visit_shared(Block& block, Visit visit) {
  if (block.dynamic) visit(block.dynamic, gpu.launch->shared);
  for (const Static& known : block.statics) visit(known.data, known.bytes);
}

// What is in shared memory before a block starts or after it has ended is nobody's to use; a peer
// may reach it all the same. Counts as a write by the current thread.
void spoil(Block& block) {
  if (block.cluster->blocks.size() == 1) return;
  visit_shared(block, [](unsigned char* data, size_t bytes) {
    std::memset(data, kPoison, bytes);
    tsan_write(data, bytes);
  });
}

void enter_block() {
  Block& block = *gpu.current->block;
  tsan_acquire(&gpu.begin);
  if (!block.started) {
    block.started = true;
    spoil(block);
    tsan_release(&block.start);
  }
  tsan_acquire(&block.start);
}

void leave_block() {
  Fiber& fiber = *gpu.current;
  Block& block = *fiber.block;
  if (fiber.performed < fiber.copies.size()) fail("a thread ends before its cp.async copies");
  leave(block.barrier);
  leave(block.cluster->barrier);
  leave(gpu.grid);
  Warp& warp = *fiber.warp;
  warp.live &= ~(1u << fiber.lane);
  for (Meeting& meeting : warp.meetings) {
    meeting.operands[fiber.lane] = nullptr;
    if (meeting.arrived && meeting.arrived == (meeting.mask & warp.live)) complete(warp, meeting);
  }
  tsan_release(&block.exit);
  if (--block.live) return;
  tsan_acquire(&block.exit);
  spoil(block);
  visit_shared(block, forbid);
}

void run_fiber() {
  Context::entered(gpu.main);
  try {
    enter_block();
    gpu.launch->call(gpu.launch->arguments);
    leave_block();
    gpu.current->done = true;
    --gpu.live;
  } catch (...) {
    gpu.error = std::current_exception();
  }
  tsan_release(&gpu.end);
  switch_to(gpu.error ? nullptr : choose(), true);
}

}  // namespace
}  // namespace cuda_emulator
