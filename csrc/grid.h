// The shape of the grid-persistent kernels: who owns what, and how much memory that takes.
// Constants for the kernels, data for the plan.
#pragma once

#include "persistent.h"
#include "plan.h"

namespace gatedrnn {

// A group of blocks, one a multiprocessor, holds a whole recurrent matrix, padded to `units`, and
// walks all steps of 8 * tiles sequences; `tiles` is the caller's. A block owns 16 units, all gates
// of them. Its warps share, in forward, the sum over k, in backward the rows: each has some tiles
// of 16 units, of which it keeps as many as it can in registers, and the others in shared memory.
struct GridShape {
  static constexpr int kOwned = 16, kColumns = 8, kWarps = 8, kThreads = 32 * kWarps;
  static constexpr int kGrain = kOwned * kWarps;  // units come in multiples of it
  static constexpr int kMostUnits = 2048;
  static constexpr int kTilesOfWarp = kMostUnits / kGrain;
  static constexpr int kFinishing = 64;  // threads that have a pair of the block's units each
  static constexpr int kPair = PersistentShape::kPair;
  static constexpr int kLanes = 512;  // bytes: 16 of each lane
  static constexpr int kForwardRing = PersistentShape::kForwardRing;
  static constexpr int kBackwardRing = PersistentShape::kBackwardRing;
  static constexpr int kSaved = PersistentShape::kSaved;
  static constexpr int kMostTiles = 4;

  // A warp's tiles in registers: 128 of its 255 at the most.
  static constexpr int held(int gates) { return 32 / gates; }
  static constexpr int blocks(int units) { return units / kOwned; }
  // What the packing kernel is told.
  static constexpr PersistentShape packing(Cell cell, int units) {
    return {cell, units, 1, kWarps};
  }

  // Shared memory, bytes.
  static constexpr int weights(int gates, int units) {
    const int tiles = units / kGrain - held(gates);
    return tiles > 0 ? tiles * gates * kWarps * kLanes : 0;
  }
  // Forward.
  static constexpr int constants(int gates) { return (4 + gates) * kOwned * 4; }
  static constexpr int forward_ring(int gates) { return kForwardRing * gates * kFinishing * kPair; }
  static constexpr int sums(int gates) { return kWarps * gates * kLanes; }
  static constexpr int forward_fixed(int gates) {
    return constants(gates) + forward_ring(gates) + 2 * sums(gates);
  }
  static constexpr int forward_bytes(int gates, int units, int tiles) {
    return weights(gates, units) + forward_fixed(gates) + tiles * kFinishing * kPair;
  }
  // Backward.
  static constexpr int operand(int gates) { return gates * kLanes / 2; }
  static constexpr int backward_ring(int gates, int element) {
    return kBackwardRing * kFinishing * (kSaved * 2 * element + (gates == 4 ? kPair : 0));
  }
  static constexpr int backward_bytes(int gates, int units, int tiles, int element) {
    return weights(gates, units) + 4 * units + kWarps * kLanes + operand(gates) + 4 * kColumns +
           backward_ring(gates, element) + tiles * 2 * kFinishing * kPair;
  }
};

// Floats through which a direction's blocks exchange: two buffers of what each block gives, in
// backward to each block.
inline int64_t exchange_size(const PersistentPlan& plan, int64_t B, bool forward) {
  const int64_t blocks = GridShape::blocks(plan.units);
  const int64_t tiles = groups_of(B, plan.sequences) * (plan.sequences / GridShape::kColumns);
  return tiles * 2 * blocks * (forward ? 1 : blocks) * (GridShape::kLanes / 4);
}

// Floats of a direction's scratch for a pass, whichever kernels are planned.
inline int64_t scratch_size(int gates, const CudaPlan& plan, int64_t B, bool forward) {
  const PersistentPlan& walk = forward ? plan.persistent_forward : plan.persistent_backward;
  const int parts = packed_parts(forward ? plan.forward : plan.backward);
  return packed_size(gates, walk.units, parts) +
         (walk.grid() ? exchange_size(walk, B, forward) : 0);
}

}  // namespace gatedrnn
