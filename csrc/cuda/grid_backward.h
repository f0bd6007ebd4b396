// All steps backward in one launch, with the blocks and sequences of grid_forward.h. As in
// persistent_backward.h a block multiplies the gradients of its own gates, which nobody else needs,
// by its part of W_hh, transposed, and so makes a part of dh of all units. For their owners those
// are less to read than everybody's gates' gradients would be.
//
//   step k     parts of dh(t) [blocks][own units] in L2 -> sums over an eighth of the blocks a
//   warp,
//              over the warps in shared memory                                buffer (k - 1) % 2
//              two warps: dh(t) -> gates' gradients, operands of 16 bits in shared memory
//              products, an eighth of all units a warp: parts of dh(t - 1) -> L2   buffer k % 2
//
// Operands of float16 are scaled by a power of two for each block, sequence and step. A block meets
// twice a tile and step, before and behind the two warps' work, so that one buffer of sums and one
// of operands suffice.
#pragma once

#include "grid.h"
#include "persistent_backward.h"

namespace gatedrnn::cuda {

template <class Real>
struct GridBackward : PersistentBackward<Real> {
  int units;           // padded
  Fragment* exchange;  // [tiles of all groups, 2, blocks, blocks, 32] to, from
};

template <class Real, Cell kCell>
struct GridBackwardMemory {
  static constexpr int G = kGates<kCell>, kBytes = sizeof(Real);
  static constexpr int kRing = GridShape::backward_ring(G, kBytes);

  unsigned char* const shared;
  const int units;

  // What the products of a row, of dh's unit, are to be multiplied by.
  __device__ float* unscale(int unit) const { return reinterpret_cast<float*>(shared) + unit; }
  // A warp's part of dh: of the finishing warp `item`.
  __device__ Two<float>* sum(int warp, int item) const {
    return reinterpret_cast<Two<float>*>(unscale(units)) + (warp * 2 + item) * 32 +
           threadIdx.x % 32;
  }
  // As the MMA's lanes have it in their registers.
  __device__ uint32_t* operand(int gate, int half, int lane) const {
    return reinterpret_cast<uint32_t*>(shared + 4 * units + GridShape::kWarps * GridShape::kLanes) +
           (gate * 2 + half) * 32 + lane;
  }
  // What the products of a sequence are to be multiplied by.
  __device__ float* inverse(int column) const {
    return reinterpret_cast<float*>(operand(G, 0, 0)) + column;
  }
  // dy, the gates; GRU: h(t - 1).
  __device__ Two<Real>* saved(int slot, int which) const {
    return reinterpret_cast<Two<Real>*>(inverse(GridShape::kColumns)) +
           (slot * GridShape::kSaved + which) * GridShape::kFinishing + threadIdx.x;
  }
  // LSTM: c(t - 1).
  __device__ Two<float>* cell(int slot) const {
    return reinterpret_cast<Two<float>*>(saved(GridShape::kBackwardRing, 0) - threadIdx.x) +
           slot * GridShape::kFinishing + threadIdx.x;
  }
  // As BackwardMemory's.
  __device__ Two<float>* carried(int tile) const {
    return reinterpret_cast<Two<float>*>(
               reinterpret_cast<unsigned char*>(inverse(GridShape::kColumns)) + kRing) +
           tile * 2 * GridShape::kFinishing + threadIdx.x;
  }
  __device__ Two<float>* state(int tile) const { return carried(tile) + GridShape::kFinishing; }
};

template <class Real, Cell kCell>
class GridBackwardWalk {
 public:
  using Grad = typename Types<Real>::Grad;
  using Operand = OperandOf<Real>;
  static constexpr bool kGru = kCell == Cell::gru, kScaled = std::is_same_v<Operand, Half>;
  static constexpr int G = kGates<kCell>;

  __device__ GridBackwardWalk(const GridBackward<Real>& p, unsigned char* shared)
      : p_(p),
        memory_{shared + GridShape::weights(G, p.units), p.units},
        place_(p),
        weights_(p.weights + int64_t(place_.first_tile()) * G * 32 + place_.lane, place_.share(),
                 shared, [](int i, int g) { return i * G + g; }) {
    prepare();
  }

  __device__ void run() const {
    constexpr int kSlots = GridShape::kBackwardRing;
    walk<kSlots>([&] { return p_.T; }, place_.tiles,
                 [&](int64_t k, int tile, int slot) {
                   if (place_.finishes()) fetch(k, tile, slot);
                 },
                 [&](int64_t k, int tile, int slot) {
                   if (k > 0) receive(k, tile);
                   wait_copies<kSlots - 1>();
                   __syncthreads();
                   Two<float> da[4];
                   if (place_.finishes()) update(k, tile, slot, da);
                   __syncthreads();
                   multiply_and_send(k, tile);
                   if (place_.finishes()) store(k, tile, da);
                 });
    for (int tile = 0; tile < place_.tiles; ++tile) {
      receive(p_.T, tile);
      __syncthreads();
      if (place_.finishes()) leave(tile);
      __syncthreads();
    }
  }

 private:
  __device__ int64_t time(int64_t k) const { return p_.reverse ? k : p_.T - 1 - k; }
  __device__ int64_t time_before(int64_t k) const { return time(k + 1); }

  __device__ void prepare() const {
    if constexpr (kScaled)
      for (int i = int(threadIdx.x); i < p_.units; i += GridShape::kThreads)
        *memory_.unscale(i) = p_.unscale[i];
    for (int tile = 0; tile < place_.tiles && place_.finishes(); ++tile) {
      const int b = place_.sequence(tile);
      Two<float> carried = {}, state = {};
      if (place_.here(b)) {
        carried = place_.access.load_or_zero(kGru ? p_.dhn : p_.dcn, b * p_.H + place_.unit);
        if constexpr (kGru)
          state = place_.access.load(p_.y.at(time(0), b) + place_.unit);
        else
          state = place_.access.load(p_.c.at(time(0), b) + place_.unit);
      }
      *memory_.carried(tile) = carried;
      *memory_.state(tile) = state;
    }
    __syncthreads();
  }

  // Begins the copies of what forward has left of a step.
  __device__ void fetch(int64_t k, int tile, int slot) const {
    const bool at_begin = k + 1 == p_.T;  // of the sequence
    const int b = place_.sequence(tile), u = place_.unit;
    const bool here = place_.here(b);
    const auto copy = [&](int which, const Real* from, bool there) {
      copy_pair(memory_.saved(slot, which), from + u, there, place_.access, p_.gates.data);
    };
    copy(0, p_.dy.data ? p_.dy.at(time(k), b) : p_.gates.data, here && p_.dy.data);
    const Real* gates = p_.gates.at(time(k), b);
#pragma unroll
    for (int g = 0; g < G; ++g) copy(1 + g, gates + g * p_.H, here);
    if constexpr (kGru) {
      copy(1 + G, at_begin ? p_.h0 + b * p_.H : p_.y.at(time_before(k), b), here);
    } else if (at_begin) {  // c0 may be of another type
      *memory_.cell(slot) = here ? place_.access.load(p_.c0 + b * p_.H + u) : Two<float>{};
    } else {
      copy_pair(memory_.cell(slot), p_.c.at(time_before(k), b) + u, here, place_.access, p_.c.data);
    }
  }

  // What one block gives another of a step's products.
  __device__ Fragment* given(int64_t k, int tile, int to, int from) const {
    const int64_t tiles = int64_t(place_.group) * p_.tiles + tile;
    return p_.exchange + (((tiles * 2 + k % 2) * place_.blocks + to) * place_.blocks + from) * 32 +
           place_.lane;
  }
  __device__ static uint32_t mark(int64_t k) { return k / 2 % 2; }

  // Leaves this warp's part of what of dh(t) comes through the products of the step after it.
  __device__ void receive(int64_t k, int tile) const {
    const uint32_t marked = mark(k - 1);
    float sums[4] = {};
    read_all<GridShape::kTilesOfWarp>(
        given(k - 1, tile, place_.rank, place_.warp * place_.share()), place_.share(),
        [](uint32_t (&word)[4], const Fragment* from) { load_relaxed_words(word, from); },
        [&](const uint32_t (&word)[4]) {
          bool stale = false;
#pragma unroll
          for (int i = 0; i < 4; ++i) stale |= (word[i] & 1) != marked;
          return stale;
        },
        [&](int, const Fragment& part) {
#pragma unroll
          for (int i = 0; i < 4; ++i) sums[i] += __uint_as_float(part.word[i] & ~1u);
        });
#pragma unroll
    for (int item = 0; item < 2; ++item)
      *memory_.sum(place_.warp, item) = {sums[item], sums[2 + item]};
  }

  // All warps' parts together.
  __device__ Two<float> received() const {
    Two<float> dh = {};
#pragma unroll
    for (int warp = 0; warp < GridShape::kWarps; ++warp) {
      const Two<float> part = *memory_.sum(warp, place_.warp);
      dh = {dh.of[0] + part.of[0], dh.of[1] + part.of[1]};
    }
    return dh;
  }

  // The gates' gradients, and the operands that come of them.
  __device__ void update(int64_t k, int tile, int slot, Two<float> (&da)[4]) const {
    const int b = place_.sequence(tile);
    Two<float> dh = {};
    if (k > 0)
      dh = received();
    else if (!kGru && place_.here(b))
      dh = place_.access.load_or_zero(p_.dhn, b * p_.H + place_.unit);
    if (!kGru && p_.dc.data && place_.here(b))
      add_dc(p_.dc.at(time(k), b) + place_.unit, place_.access, *memory_.carried(tile));
    backward_update<kCell, Fast>(
        dh, [&](int which, int e) { return wide(memory_.saved(slot, which)->of[e]); },
        [&](int e) { return kGru ? 0 : memory_.cell(slot)->of[e]; }, *memory_.carried(tile),
        *memory_.state(tile), da);
    const float scale = kScaled ? scale_of(da) : 1;
#pragma unroll
    for (int g = 0; g < G; ++g) {
      const Two<float>& x = da[multiplied(g)];
      const auto pair =
          operands<Operand>(Two<float>{x.of[0] * scale, x.of[1] * scale}, place_.access);
      *memory_.operand(g, place_.half_of_pair(), place_.lane_of_pair()) =
          pair.of[0].bits | uint32_t(pair.of[1].bits) << 16;
    }
  }

  // Of the gates' gradients those that W_hh multiplies: a GRU's n has q's.
  static __device__ constexpr int multiplied(int g) { return kGru && g == 2 ? 3 : g; }

  // By the largest of the block's of this thread's sequence: a warp has them all.
  __device__ float scale_of(const Two<float> (&da)[4]) const {
    float largest = 0;
#pragma unroll
    for (int g = 0; g < G; ++g)
#pragma unroll
      for (int e = 0; e < 2; ++e)
        if (e < place_.access.count) largest = fmaxf(largest, fabsf(da[multiplied(g)].of[e]));
#pragma unroll
    for (int distance = 4; distance < 32; distance *= 2)
      largest = fmaxf(largest, __shfl_xor_sync(~0u, largest, distance));
    float inverse;
    const float scale = scale_for(largest, inverse);
    if (place_.lane < 4) *memory_.inverse(place_.column()) = inverse;
    return scale;
  }

  __device__ void multiply_and_send(int64_t k, int tile) const {
    uint32_t operand[G][2];
#pragma unroll
    for (int g = 0; g < G; ++g)
#pragma unroll
      for (int half = 0; half < 2; ++half)
        operand[g][half] = *memory_.operand(g, half, place_.lane);
    float inverse[2];
    for (int e = 0; e < 2 && kScaled; ++e) inverse[e] = *memory_.inverse(place_.lane % 4 * 2 + e);
    const int share = place_.share();
#pragma unroll
    for (int r = 0; r < GridShape::kTilesOfWarp; ++r) {
      if (r == share) break;
      const int to = place_.warp * share + r;
      float four[4] = {};
#pragma unroll
      for (int g = 0; g < G; ++g) multiply<Operand>(four, weights_(r, g), operand[g]);
      uint32_t word[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        if constexpr (kScaled)
          four[i] =
              four[i] * *memory_.unscale(to * 16 + place_.own_unit() + i / 2) * inverse[i % 2];
        word[i] = (__float_as_uint(four[i]) & ~1u) | mark(k);
      }
      store_relaxed_words(given(k, tile, to, place_.rank), word);
    }
  }

  __device__ void store(int64_t k, int tile, const Two<float> (&da)[4]) const {
    const int b = place_.sequence(tile), u = place_.unit;
    if (!place_.here(b)) return;
    Grad* dgates = p_.dgates.at(time(k), b) + u;
#pragma unroll
    for (int g = 0; g < 4; ++g)
      place_.access.store(dgates + (kGru && g == 3 ? p_.dq : g * p_.H), da[g]);
    if (!p_.previous.data) return;
    const Real* before = k + 1 == p_.T ? p_.h0 + b * p_.H : p_.y.at(time_before(k), b);
    place_.access.store(p_.previous.at(time(k), b) + u, place_.access.load(before + u));
  }

  __device__ void leave(int tile) const {
    const int b = place_.sequence(tile);
    if (!place_.here(b)) return;
    const Two<float> carried = *memory_.carried(tile);
    Two<float> dh = received();
    if (kGru) dh = {dh.of[0] + carried.of[0], dh.of[1] + carried.of[1]};
    place_.access.store(p_.dh0 + b * p_.H + place_.unit, dh);
    if (!kGru) place_.access.store(p_.dc0 + b * p_.H + place_.unit, carried);
  }

  const GridBackward<Real>& p_;
  const GridBackwardMemory<Real, kCell> memory_;
  const GridPlace place_;
  const GridWeights<G> weights_;
};

template <class Real, Cell kCell>
__global__ void __launch_bounds__(GridShape::kThreads, 1)
    grid_backward_kernel(const __grid_constant__ Directions<GridBackward<Real>> all) {
  if constexpr (kHasBfloat16) {
    GATEDRNN_DYNAMIC_SHARED(shared);
    GridBackwardWalk<Real, kCell>(all.direction[blockIdx.z], shared).run();
  } else {
    __trap();
  }
}

}  // namespace gatedrnn::cuda
