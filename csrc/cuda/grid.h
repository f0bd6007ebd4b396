// What the grid-persistent kernels share: a block's place, and how blocks exchange through L2.
//
// Each number that a block gives to others travels with a mark of its step, in one access that the
// memory model does not tear; who waits for it reads it until the mark is there. No flag, no fence
// and no barrier between blocks stands behind it. There are two buffers, for even and odd steps:
//
//   forward    8 bytes: two units' states of 16 bits, and 32 bits of mark: the number of the state
//              in the sequence, from 1, which h0 has. 32 lanes of 16 bytes are 16 units of 8
//              sequences, just as the threads that multiply them want them.
//   backward   4 bytes: a float's last bit is (step / 2) % 2, unlike that of two steps before.
//              Products of 11 or 8 bits do not miss the 24th.
//
// Why this is right. A place is written by one thread, and once for each of its steps. A relaxed
// load may find an old number, which has another mark, but never an older one than it has found
// there before. It cannot find too new a one: who writes step k + 2's number had the numbers of
// step k + 1 of all blocks, each of which was computed from all that its block has read of step k;
// a load would depend on a store that depends on it, which no order of memory allows. Nobody waits
// for a block that does not run: the launch is cooperative.
//
// seed_exchange_kernel marks both buffers, in the stream's order before the walk: whatever an
// earlier run or a replayed graph has left there, a walk meets only its own.
#pragma once

#include "../grid.h"
#include "exchange.h"
#include "persistent.h"

namespace gatedrnn::cuda {

struct GridPlace {
  const int warp = int(threadIdx.x) / 32, lane = int(threadIdx.x) % 32;
  const int blocks = int(gridDim.x), rank = int(blockIdx.x), group = int(blockIdx.y);
  const int unit = rank * GridShape::kOwned + own_unit();  // the first of a thread's two
  const Access access;
  const int batch, batch0;  // all sequences; the first of the group's
  const int tiles;          // of the group's, that are not empty

  template <class Params>
  __device__ explicit GridPlace(const Params& p)
      : access{p.aligned, int(max(int64_t(0), min(int64_t(2), p.H - unit)))},
        batch(int(p.B)),
        batch0(group * p.tiles * GridShape::kColumns),
        tiles(min(p.tiles, (batch - batch0 + GridShape::kColumns - 1) / GridShape::kColumns)) {}

  // A warp's tiles of 16 units.
  __device__ int share() const { return blocks / GridShape::kWarps; }
  // The tiles of all warps before, of the packed weights.
  __device__ int first_tile() const { return (rank * GridShape::kWarps + warp) * share(); }
  __device__ int own_unit() const { return lane / 4 * 2; }  // within the block
  // The first two warps finish the block's sums: a thread's pair is of this column of a tile.
  __device__ bool finishes() const { return threadIdx.x < GridShape::kFinishing; }
  __device__ int column() const { return lane % 4 * 2 + warp; }
  __device__ int sequence(int tile) const { return batch0 + tile * GridShape::kColumns + column(); }
  __device__ bool here(int b) const { return b < batch && access.count > 0; }
  // Where a finishing thread's pair lies in a fragment of B: in which lane's registers, and which.
  __device__ int lane_of_pair() const { return column() * 4 + lane / 4 % 4; }
  __device__ int half_of_pair() const { return lane / 16; }
};

// A thread's weights: of its warp's tiles, of G fragments each, in registers or in shared memory.
template <int G>
class GridWeights {
 public:
  // at(i, g): how many threads' fragments lie before that of tile i, gate g.
  template <class At>
  __device__ GridWeights(const Fragment* from, int count, unsigned char* shared, At at)
      : more_(reinterpret_cast<Fragment*>(shared) + threadIdx.x) {
#pragma unroll
    for (int i = 0; i < kHeld; ++i)
#pragma unroll
      for (int g = 0; g < G; ++g)
        if (i < count) held_[i][g] = from[at(i, g) * 32];
    for (int i = kHeld; i < count; ++i)
      for (int g = 0; g < G; ++g)
        more_[((i - kHeld) * G + g) * GridShape::kThreads] = from[at(i, g) * 32];
  }

  __device__ Fragment operator()(int i, int g) const {
    return i < kHeld ? held_[i < kHeld ? i : 0][g]
                     : more_[((i - kHeld) * G + g) * GridShape::kThreads];
  }

 private:
  static constexpr int kHeld = GridShape::held(G);

  Fragment held_[kHeld][G];
  Fragment* const more_;
};

constexpr int kSeedThreads = 256;

// A direction's exchange before its first step: h0, in both buffers, or, in backward, nothing.
template <class Real>
struct Seed {
  Fragment* exchange;
  const Real* h0;  // [B, H] or null
  int64_t count;   // of fragments
  int64_t B, H;
  int blocks;
};

template <class Real>
struct Seeds {
  Seed<Real> direction[2];
};

template <class Real>
__global__ void __launch_bounds__(kSeedThreads)
    seed_exchange_kernel(const __grid_constant__ Seeds<Real> all) {
  const auto& p = all.direction[blockIdx.y];
  const int64_t i = int64_t(blockIdx.x) * kSeedThreads + threadIdx.x;
  if (i >= p.count) return;
  Fragment fragment = {{~0u, ~0u, ~0u, ~0u}};
  if (p.h0) {
    const int64_t lane = i % 32, block = i / 32 % p.blocks, tile = i / 32 / p.blocks / 2;
    const int64_t b = tile * GridShape::kColumns + lane / 4;
    for (int half = 0; half < 2; ++half) {
      uint32_t bits = 0;
      for (int e = 0; e < 2; ++e) {
        const int64_t u = block * 16 + lane % 4 * 2 + 8 * half + e;
        const float h = b < p.B && u < p.H ? wide(p.h0[b * p.H + u]) : 0;
        bits |= uint32_t(narrow<OperandOf<Real>>(h).bits) << 16 * e;
      }
      fragment.word[2 * half] = bits;
      fragment.word[2 * half + 1] = 1;
    }
  }
  p.exchange[i] = fragment;
}

}  // namespace gatedrnn::cuda
