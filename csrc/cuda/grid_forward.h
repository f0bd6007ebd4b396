// All steps forward in one launch, for recurrent matrices that no cluster holds. A group of the
// grid's blocks owns some sequences for all steps; its blocks hold W_hh in registers, each the rows
// of its own 16 units:
//
//   blockIdx   (units / 16 blocks, a group for each 8 * tiles sequences, direction)
//
//   step k     h(k)  [8 sequences, all units] of 16 bits, in L2               buffer k % 2
//                |    a warp: an eighth of the sum over k, of all gates of the block's units
//              sums over the warps, in shared memory
//                |    two warps: a thread has all gates of two units of one sequence
//              gates -> own units of h(k + 1) -> L2                           buffer (k + 1) % 2
//
// A warp reads from L2 just what it multiplies, into the registers from which it does. Tiles are
// walked in turn, each a recurrence of its own: while one's states travel, the next one is
// multiplied. A block meets once a tile and step: sums have two buffers, and who has met there
// again has read those of before.
#pragma once

#include "grid.h"
#include "persistent_forward.h"

namespace gatedrnn::cuda {

template <class Real>
struct GridForward : PersistentForward<Real> {
  int units;           // padded
  Fragment* exchange;  // [tiles of all groups, 2, blocks, 32]
};

template <Cell kCell>
struct GridForwardMemory {
  static constexpr int G = kGates<kCell>;

  unsigned char* const shared;

  // As ForwardMemory's.
  __device__ float* constants(int which, int unit) const {
    return reinterpret_cast<float*>(shared) + which * GridShape::kOwned + unit;
  }
  __device__ Two<float>* projected(int slot, int gate) const {
    return pairs(GridShape::constants(G)) + (slot * G + gate) * GridShape::kFinishing + threadIdx.x;
  }
  // A warp's part of the sums: of a gate, for the finishing warp `item`.
  __device__ Two<float>* sum(int parity, int warp, int gate, int item) const {
    return pairs(GridShape::constants(G) + GridShape::forward_ring(G) +
                 parity * GridShape::sums(G)) +
           ((warp * G + gate) * 2 + item) * 32 + threadIdx.x % 32;
  }
  // GRU: h, LSTM: c.
  __device__ Two<float>* carried(int tile) const {
    return pairs(GridShape::forward_bytes(G, 0, tile)) + threadIdx.x;
  }

 private:
  __device__ Two<float>* pairs(int at) const { return reinterpret_cast<Two<float>*>(shared + at); }
};

template <class Real, Cell kCell>
class GridForwardWalk {
 public:
  using Operand = OperandOf<Real>;
  static constexpr int G = kGates<kCell>;

  __device__ GridForwardWalk(const GridForward<Real>& p, unsigned char* shared)
      : p_(p),
        memory_{shared + GridShape::weights(G, p.units)},
        place_(p),
        weights_(p.weights + int64_t(place_.first_tile()) * G * 32 + place_.lane, place_.share(),
                 shared, [&](int i, int g) { return g * place_.share() + i; }) {
    prepare();
  }

  __device__ void run() const {
    constexpr int kSlots = GridShape::kForwardRing;
    walk<kSlots>([&] { return p_.T; }, place_.tiles,
                 [&](int64_t k, int tile, int slot) {
                   if (place_.finishes()) fetch(k, tile, slot);
                 },
                 [&](int64_t k, int tile, int slot) {
                   multiply_state(k, tile, slot % 2);
                   wait_copies<kSlots - 1>();
                   __syncthreads();
                   if (place_.finishes()) finish(k, tile, slot);
                 });
  }

 private:
  __device__ void prepare() const {
    const int64_t first = int64_t(place_.rank) * GridShape::kOwned;
    for (int i = int(threadIdx.x); i < GridShape::kOwned; i += GridShape::kThreads) {
      const auto of = [&](const Real* bias, int g) {
        return bias && first + i < p_.H ? wide(bias[g * p_.H + first + i]) : 0;
      };
      for (int g = 0; g < 4; ++g) {
        const bool gru_n = kCell == Cell::gru && g >= 2;  // r, z, n of the input, q
        *memory_.constants(g, i) =
            gru_n ? of(g == 2 ? p_.b_ih : p_.b_hh, 2) : of(p_.b_ih, g) + of(p_.b_hh, g);
      }
      if (p_.unscale)
        for (int g = 0; g < G; ++g)
          *memory_.constants(4 + g, i) = p_.unscale[g * p_.units + first + i];
    }
    for (int tile = 0; tile < place_.tiles && place_.finishes(); ++tile) {
      const int b = place_.sequence(tile);
      const Real* initial = kCell == Cell::gru ? p_.h0 : p_.c0;
      *memory_.carried(tile) =
          place_.here(b) ? place_.access.load(initial + b * p_.H + place_.unit) : Two<float>{};
    }
    __syncthreads();
  }

  __device__ int64_t time(int64_t k) const { return p_.reverse ? p_.T - 1 - k : k; }

  // What a block of the group gives of a state.
  __device__ Fragment* given(int64_t state, int tile, int block) const {
    const int64_t tiles = int64_t(place_.group) * p_.tiles + tile;
    return p_.exchange + ((tiles * 2 + state % 2) * place_.blocks + block) * 32;
  }

  // Begins the copies of a step's pre-activations, those of this thread's units alone.
  __device__ void fetch(int64_t k, int tile, int slot) const {
    const int b = place_.sequence(tile);
    const float* from = p_.projected.at(time(k), b) + place_.unit;
#pragma unroll
    for (int g = 0; g < G; ++g)
      copy_pair(memory_.projected(slot, g), from + g * p_.H, place_.here(b), place_.access,
                p_.projected.data);
  }

  // Leaves this warp's part of the recurrent sums.
  __device__ void multiply_state(int64_t k, int tile, int parity) const {
    const uint32_t mark = uint32_t(k + 1);
    float all[G][4] = {};
    read_all<GridShape::kTilesOfWarp>(
        given(k, tile, place_.warp * place_.share()) + place_.lane, place_.share(),
        [](uint32_t (&word)[4], const Fragment* from) { load_relaxed_pairs(word, from); },
        [&](const uint32_t (&word)[4]) { return word[1] != mark || word[3] != mark; },
        [&](int i, const Fragment& state) {
#pragma unroll
          for (int g = 0; g < G; ++g)
            multiply<Operand>(all[g], weights_(i, g), {state.word[0], state.word[2]});
        });
#pragma unroll
    for (int g = 0; g < G; ++g)
#pragma unroll
      for (int item = 0; item < 2; ++item)
        *memory_.sum(parity, place_.warp, g, item) = {all[g][item], all[g][2 + item]};
  }

  __device__ Two<float> constant(int which) const {
    return *reinterpret_cast<const Two<float>*>(memory_.constants(which, place_.own_unit()));
  }

  // From sums to gates and states; sends the states before anything is stored.
  __device__ void finish(int64_t k, int tile, int slot) const {
    Two<float> sums[G] = {}, x[G], h, c;
#pragma unroll
    for (int g = 0; g < G; ++g) {
#pragma unroll
      for (int warp = 0; warp < GridShape::kWarps; ++warp) {
        const Two<float> part = *memory_.sum(slot % 2, warp, g, place_.warp);
        sums[g] = {sums[g].of[0] + part.of[0], sums[g].of[1] + part.of[1]};
      }
      const Two<float> bias = constant(g);
      x[g] = *memory_.projected(slot, g);
      x[g] = {x[g].of[0] + bias.of[0], x[g].of[1] + bias.of[1]};
      if (std::is_same_v<Real, float>) {
        const Two<float> unscale = constant(4 + g);
        sums[g] = {sums[g].of[0] * unscale.of[0], sums[g].of[1] * unscale.of[1]};
      }
    }
    Two<float>* carried = memory_.carried(tile);
    forward_update<kCell, Fast>(sums, x, constant(3), *carried, h, c);
    *carried = kCell == Cell::gru ? h : c;
    if (k + 1 < p_.T) send(k + 1, tile, h);
    store(k, place_.sequence(tile), sums, h, c);
  }

  __device__ void send(int64_t state, int tile, const Two<float>& h) const {
    const OperandPair<Operand> pair = operands<Operand>(h, place_.access);
    Fragment* to = given(state, tile, place_.rank) + place_.lane_of_pair();
    const uint32_t bits = pair.of[0].bits | uint32_t(pair.of[1].bits) << 16;
    store_relaxed_pair(&to->word[2 * place_.half_of_pair()], bits, uint32_t(state + 1));
  }

  __device__ void store(int64_t k, int64_t b, const Two<float> (&gates)[G], const Two<float>& h,
                        const Two<float>& c) const {
    if (!place_.here(int(b))) return;
    const Access& access = place_.access;
    const int64_t t = time(k), u = place_.unit;
    access.store(p_.y.at(t, b) + u, h);
    if (p_.gates.data) {
#pragma unroll
      for (int g = 0; g < G; ++g) access.store(p_.gates.at(t, b) + g * p_.H + u, gates[g]);
      if (kCell == Cell::lstm) access.store(p_.c.at(t, b) + u, c);
    }
    if (k + 1 == p_.T) {
      access.store(p_.hn + b * p_.H + u, h);
      if (kCell == Cell::lstm) access.store(p_.cn + b * p_.H + u, c);
    }
  }

  const GridForward<Real>& p_;
  const GridForwardMemory<kCell> memory_;
  const GridPlace place_;
  const GridWeights<G> weights_;
};

template <class Real, Cell kCell>
__global__ void __launch_bounds__(GridShape::kThreads, 1)
    grid_forward_kernel(const __grid_constant__ Directions<GridForward<Real>> all) {
  if constexpr (kHasBfloat16) {
    GATEDRNN_DYNAMIC_SHARED(shared);
    GridForwardWalk<Real, kCell>(all.direction[blockIdx.z], shared).run();
  } else {
    __trap();
  }
}

}  // namespace gatedrnn::cuda
