// What the persistent kernels share: operands, fragments, fast activations, and how a block of a
// cluster finds its place.
//
// The weights are the MMA's A and stay in registers for all steps; the sequences are its B. The 16
// rows of a fragment are one gate of 16 units, row i being unit 2i and row 8 + i unit 2i + 1 (as in
// product.h), so that thread (g, q), g = lane / 4, q = lane % 4, has in its sums all gates of units
// 2g and 2g + 1 of sequences 2q and 2q + 1: no exchange before the cell's equations.
#pragma once

#include "../persistent.h"
#include "chaos.h"
#include "persistent_lengths.h"
#include "step_forward.h"

namespace gatedrnn::cuda {

// What the tensor cores multiply. float32's weights are scaled by a power of two for each row; its
// states are bounded by 1, or by h0, which guarded_forward_kernel looks after.
template <class Real>
using OperandOf = std::conditional_t<std::is_same_v<Real, Bfloat16>, Bfloat16, Half>;

struct alignas(16) Fragment {
  uint32_t word[4];
};

template <class Operand>
struct alignas(4) OperandPair {
  Operand of[2];
};

// Of a thread's two units. What lies beyond the last unit is zero even where infinity is about: it
// meets weights of zero.
template <class Operand>
__device__ inline OperandPair<Operand> operands(const Two<float>& x, const Access& access) {
  OperandPair<Operand> pair;
#pragma unroll
  for (int e = 0; e < 2; ++e) pair.of[e] = narrow<Operand>(e < access.count ? x.of[e] : 0.0f);
  return pair;
}

// In parts. The first is the nearest, the second what that leaves, times 2^11, so that it does not
// vanish: of an operand that is not finite, nothing.
constexpr float kRest = 2048;
template <class Operand>
__device__ inline float rest_of(float x, Operand first) {
  const float nearest = wide(first);
  return fabsf(nearest) < INFINITY ? (x - nearest) * kRest : 0;
}
template <class Operand, int kParts>
__device__ inline void operand_parts(const Two<float>& x, const Access& access,
                                     OperandPair<Operand> (&parts)[kParts]) {
  parts[0] = operands<Operand>(x, access);
  if constexpr (kParts > 1)
    parts[1] = operands<Operand>(
        {rest_of(x.of[0], parts[0].of[0]), rest_of(x.of[1], parts[0].of[1])}, access);
}

template <class Operand>
__device__ inline void multiply(float (&sums)[4], const Fragment& a, const uint32_t (&b)[2]) {
  if constexpr (std::is_same_v<Operand, Bfloat16>)
    mma_bfloat16(sums, a.word, b);
  else
    mma_half(sums, a.word, b);
}

// Where a lane finds the row of a matrix that it loads: four bring two tiles of k, or both parts of
// one.
template <int kParts>
__device__ inline int matrix_of(int lane, int part_bytes) {
  return kParts == 1 ? lane / 8 * 16 : lane / 8 % 2 * 16 + lane / 16 * part_bytes;
}

// Of operands in parts, which `b` has one after another: the products of the first ones, and those
// of a first and a second one. The product of two second ones is too small to matter.
template <class Operand, int kParts>
__device__ inline void multiply_parts(float (&sums)[kParts][4], const Fragment (&a)[kParts],
                                      const uint32_t* b) {
  multiply<Operand>(sums[0], a[0], {b[0], b[1]});
  if constexpr (kParts > 1) {
    multiply<Operand>(sums[1], a[0], {b[2], b[3]});
    multiply<Operand>(sums[1], a[1], {b[0], b[1]});
  }
}

// Their sum. Where infinity is about, the second products may be of zero and infinity.
template <int kParts>
__device__ inline float whole_sum(const float (&sums)[kParts][4], int i) {
  if constexpr (kParts == 1)
    return sums[0][i];
  else
    return fabsf(sums[0][i]) < INFINITY ? sums[0][i] + sums[1][i] * (1 / kRest) : sums[0][i];
}

// A power of two that brings `largest` up to 2^14, or as near as 2^126 does; exact, as is its
// inverse.
__device__ inline float scale_for(float largest, float& inverse) {
  const int exponent = int(__float_as_uint(largest) >> 23);
  const int by = largest == 0 ? 0 : min(127 + 14 - exponent, 126);
  inverse = __uint_as_float(unsigned(127 - by) << 23);
  return __uint_as_float(unsigned(127 + by) << 23);
}

// A float whose activations take the short way: their error is a few 1e-7 whatever they are of,
// less than that of 16-bit operands by a hundred.
struct Fast {
  float value;
  constexpr Fast(float x = 0) : value(x) {}
  explicit constexpr operator float() const { return value; }
  friend constexpr Fast operator+(Fast a, Fast b) { return a.value + b.value; }
  friend constexpr Fast operator-(Fast a, Fast b) { return a.value - b.value; }
  friend constexpr Fast operator*(Fast a, Fast b) { return a.value * b.value; }
  friend __device__ Fast operator/(Fast a, Fast b) { return __fdividef(a.value, b.value); }
  friend constexpr bool operator<(Fast a, Fast b) { return a.value < b.value; }
  friend constexpr bool operator>(Fast a, Fast b) { return a.value > b.value; }
  friend constexpr bool operator==(Fast a, Fast b) { return a.value == b.value; }
};
__device__ inline Fast sigmoid(Fast x) { return __fdividef(1, 1 + __expf(-x.value)); }
__device__ inline Fast tanh(Fast x) { return 1 - 2 * __fdividef(1, 1 + __expf(2 * x.value)); }

// One row per step and sequence.
template <class Real>
struct Strided {
  Real* data;
  int64_t step, row;
  __device__ Real* at(int64_t t, int64_t b) const { return data + t * step + b * row; }
};

template <Cell kCell, int kUnits, int kGroups, int kSplit, int kPartsOfOperand, bool kStacked>
struct Persistent {
  static constexpr PersistentShape kShape{kCell,  kUnits,          kGroups,
                                          kSplit, kPartsOfOperand, kStacked};
  static constexpr Cell cell = kCell;
  static constexpr int kParts = kPartsOfOperand;
  using Gate = std::conditional_t<kParts == 1, Fast, float>;
  static constexpr int G = kShape.gates(), N = kShape.products();
  static constexpr int kCluster = kShape.cluster(), kWarps = kShape.warps();
  static constexpr int kThreads = kShape.threads(), kItems = kShape.items();
  static constexpr int kColumns = kShape.columns();
  static constexpr bool exists() { return kCluster > 1 ? kHasClusters : kHasBfloat16; }
};

// A thread's place in its block, cluster and batch. `access`: how it reads and writes its two
// units, of which `access.count` are there.
template <class Shape>
struct Place {
  static constexpr PersistentShape kShape = Shape::kShape;
  static constexpr int kColumns = Shape::kColumns;

  const int warp = int(threadIdx.x) / 32, lane = int(threadIdx.x) % 32;
  const int group = warp / kShape.split, part = warp % kShape.split;
  const unsigned rank = Shape::kCluster > 1 ? cluster_rank() : 0;
  const int unit;  // the first of the two
  const Access access;
  const int batch, batch0;  // all sequences; the first of the cluster's
  const int tiles;          // of the cluster's, that are not empty

  template <class Params>
  __device__ explicit Place(const Params& p, int cluster = int(blockIdx.x) / Shape::kCluster)
      : unit(int(rank) * kShape.owned() + own_unit()),
        access{p.aligned, int(max(int64_t(0), min(int64_t(2), p.H - unit)))},
        batch(int(p.B)),
        batch0(cluster * p.tiles * Shape::kColumns),
        tiles(min(p.tiles, (batch - batch0 + Shape::kColumns - 1) / Shape::kColumns)) {}

  // Of the two units, within the block.
  __device__ int own_unit() const { return 16 * group + lane / 4 * 2; }
  // Of the thread's j-th pair, within its tile.
  __device__ int column(int j) const {
    const int item = part * Shape::kItems + j;
    return item / 2 * 8 + lane % 4 * 2 + item % 2;
  }
  __device__ int sequence(int tile, int column) const {
    return batch0 + tile * Shape::kColumns + column;
  }
  __device__ bool here(int b) const { return b < batch && access.count > 0; }
};

// All threads of a cluster; or of a lone block.
template <class Shape>
__device__ inline void sync_all() {
  if constexpr (Shape::kCluster > 1)
    cluster_sync();
  else
    __syncthreads();
}

// Begins the copy of two units to the thread's own place; zeros where they are not there. `any` may
// be read.
template <class Real>
__device__ inline void copy_pair(Two<Real>* to, const Real* from, bool there, const Access& access,
                                 const Real* any) {
  constexpr int kBytes = sizeof(Real);
  const bool second = there && access.count > 1;
  if (access.aligned) {
    copy_async<2 * kBytes>(to, there ? from : any, there ? 2 * kBytes : 0);
  } else if constexpr (kBytes >= 4) {
    copy_async<kBytes>(&to->of[0], there ? from : any, there ? kBytes : 0);
    copy_async<kBytes>(&to->of[1], second ? from + 1 : any, second ? kBytes : 0);
  } else {  // no copy is so small
    to->of[0] = there ? from[0] : Real{};
    to->of[1] = second ? from[1] : Real{};
  }
}

// Calls step(k, tile, slot) for every tile of all steps() steps. What fetch(k, tile, slot) has
// begun to copy kSlots - 1 calls before is there: the thread's own copies, for which no other one
// waits.
template <int kSlots, class Steps, class Fetch, class Step>
__device__ inline void walk(Steps steps, int tiles, Fetch fetch, Step step) {
  constexpr int kAhead = kSlots - 1;
  int64_t next_step = 0;
  int next_tile = 0, slot = 0;
  chaos_of_start();
  const auto fetch_next = [&](int to) {
    if (next_step < steps()) fetch(next_step, next_tile, to);
    commit_copies();
    if (++next_tile == tiles) {
      next_tile = 0;
      ++next_step;
    }
  };
#pragma unroll 1
  for (int ahead = 0; ahead < kAhead; ++ahead) fetch_next(ahead);
#pragma unroll 1
  for (int64_t k = 0; k < steps(); ++k) {
#pragma unroll 1
    for (int tile = 0; tile < tiles; ++tile) {
      fetch_next(slot == 0 ? kAhead : slot - 1);
      chaos(k, tile);
      step(k, tile, slot);
      slot = slot == kAhead ? 0 : slot + 1;
    }
  }
}

}  // namespace gatedrnn::cuda
