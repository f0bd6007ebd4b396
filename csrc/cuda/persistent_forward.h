// All steps forward in one launch. A cluster of blocks owns some sequences for all of them; its
// blocks hold W_hh in registers, each the rows of its own units, and send one another every new
// state:
//
//   blockIdx.x   Shape::kCluster blocks for each kColumns * tiles sequences
//   blockIdx.y   direction
//
//   step k     h(k)  [sequences, all units] of 16 bits, whole in each block   buffer k % 2
//                |    a warp: 16 units, all gates; kSplit warps share the sum over k
//              gates -> own units of h(k + 1) -> every block's               buffer (k + 1) % 2
//
// Nothing meets in a step but by data: each block's mbarrier of a buffer and tile counts the bytes
// that its peers send and its own warps' arrivals. Two buffers suffice: who sends h(k + 2) has all
// of h(k + 1), each part of which was sent by a warp that had read h(k) before. A lone block has no
// peers, and meets in __syncthreads, on any architecture.
//
// Tiles are walked in turn, each a recurrence of its own: while one's states travel, the next one
// is multiplied. What a thread needs besides products, pre-activations and its own float32 states,
// lies in its own places of shared memory.
#pragma once

#include "persistent.h"

namespace gatedrnn::cuda {

template <class Real>
struct PersistentForward {
  int64_t T, B, H;
  int tiles;  // of a cluster
  bool reverse, aligned;
  Lengths lengths;
  const Fragment* weights;         // as pack_weights_kernel leaves them
  int64_t fragments;               // from one part of them to the next
  const Real* w_hh;                // [G*H, H]
  const float* unscale;            // [G, units]; float32 only
  int64_t I;                       // 0: not multiplied here, but there is
  Strided<const float> projected;  // (T, B, G*H) W_ih x
  Strided<const Real> x;           // (T, B, I)
  const Real* w_ih;                // [G*H, I]
  const Real *b_ih, *b_hh;         // [G*H] or null
  const Real *h0, *c0;             // [B, H]
  Strided<Real> y;                 // (T, B, H)
  Strided<Real> gates;             // (T, B, G*H) or null
  Strided<float> c;                // (T, B, H) LSTM; kept in training
  Real *hn, *cn;                   // [B, H]
};

// A block's part of shared memory.
template <class Shape>
struct ForwardMemory {
  static constexpr PersistentShape kShape = Shape::kShape;

  unsigned char* const shared;

  __device__ uint64_t* arrived(int buffer, int tile) const {
    return reinterpret_cast<uint64_t*>(shared) + 2 * tile + buffer;
  }
  // Of the block's units: 4 biases (GRU: r, z, n of the input, q), then what the products of each
  // gate are to be multiplied by.
  __device__ float* constants(int which, int unit) const {
    return reinterpret_cast<float*>(shared + kShape.kBarriers) + which * kShape.owned() + unit;
  }
  __device__ Two<float>* projected(int slot, int j, int gate) const {
    return pairs(kShape.kBarriers + kShape.constants()) +
           ((slot * Shape::kItems + j) * Shape::G + gate) * Shape::kThreads + threadIdx.x;
  }
  // In the place of all slots but the first: a warp's inputs, [column][feature].
  __device__ float* input(int slot, int warp) const {
    constexpr int kFeatures = int(kFewFeaturesOfKernel), kSlots = PersistentShape::kForwardRing;
    static_assert(4 * kFeatures * Shape::kColumns * kSlots * kShape.warps() <=
                  (kSlots - 1) * Shape::G * kShape.pairs());
    return reinterpret_cast<float*>(shared + kShape.kBarriers + kShape.constants() +
                                    Shape::G * kShape.pairs()) +
           (slot * kShape.warps() + warp) * Shape::kColumns * kFeatures;
  }
  // Of two units: [feature][gate][own unit].
  __device__ float* input_weight(int tiles, int i, int gate, int unit) const {
    return reinterpret_cast<float*>(shared + tile_at(tiles)) +
           (i * Shape::G + gate) * kShape.owned() + unit;
  }
  // A warp's part of a group's sums: of one item, one gate.
  __device__ Two<float>* partial(int parity, int warp, int item, int gate) const {
    return pairs(kShape.kBarriers + kShape.constants() + kShape.ring()) +
           (((parity * kShape.warps() + warp) * 2 * Shape::N + item) * Shape::G + gate) * 32 +
           threadIdx.x % 32;
  }
  // GRU: h, LSTM: c.
  __device__ Two<float>* carried(int tile, int j) const {
    return pairs(tile_at(tile)) + j * Shape::kThreads + threadIdx.x;
  }
  __device__ Column* columns(int tiles, int64_t I) const {
    return reinterpret_cast<Column*>(shared + tile_at(tiles) + I * kShape.input_bytes(1));
  }
  __device__ unsigned char* state(int buffer, int tile, int column) const {
    return shared + tile_at(tile) + kShape.pairs() +
           (buffer * Shape::kColumns + column) * kShape.state_pitch();
  }

 private:
  __device__ static int tile_at(int tile) {
    return kShape.forward_bytes(0) + tile * (kShape.forward_bytes(1) - kShape.forward_bytes(0));
  }
  __device__ Two<float>* pairs(int at) const { return reinterpret_cast<Two<float>*>(shared + at); }
};

// The cells' equations for two units. Leaves the gates, as backward wants them, in the sums' place.
template <Cell kCell, class Gate>
__device__ inline void forward_update(Two<float> (&sums)[kGates<kCell>],
                                      const Two<float> (&x)[kGates<kCell>],
                                      const Two<float>& last_bias, const Two<float>& before,
                                      Two<float>& h, Two<float>& c) {
#pragma unroll
  for (int e = 0; e < 2; ++e) {
    if constexpr (kCell == Cell::gru) {
      sums[2].of[e] += last_bias.of[e];
      const auto cell = gru_gates<Gate>(x[0].of[e] + sums[0].of[e], x[1].of[e] + sums[1].of[e],
                                        x[2].of[e], sums[2].of[e], before.of[e]);
      sums[0].of[e] = float(cell.r);
      sums[1].of[e] = float(cell.z);
      h.of[e] = float(cell.h);
    } else {
      const auto cell =
          lstm_gates<Gate>(x[0].of[e] + sums[0].of[e], x[1].of[e] + sums[1].of[e],
                           x[2].of[e] + sums[2].of[e], x[3].of[e] + sums[3].of[e], before.of[e]);
      sums[0].of[e] = float(cell.i);
      sums[1].of[e] = float(cell.f);
      sums[2].of[e] = float(cell.g);
      sums[3].of[e] = float(cell.o);
      c.of[e] = float(cell.c);
      h.of[e] = float(cell.h);
    }
  }
}

template <class Real, class Shape>
class ForwardWalk {
 public:
  using Operand = OperandOf<Real>;
  static constexpr PersistentShape kShape = Shape::kShape;
  static constexpr int G = Shape::G, N = Shape::N, kItems = Shape::kItems;
  static constexpr int kTilesOfK = kShape.depth() / 16 / kShape.split, kParts = Shape::kParts;

  __device__ ForwardWalk(const PersistentForward<Real>& p, unsigned char* shared,
                         int cluster = int(blockIdx.x) / Shape::kCluster)
      : p_(p), memory_{shared}, place_(p, cluster) {
    const int warps = int(place_.rank) * Shape::kWarps + place_.warp;
    const Fragment* from = p.weights + int64_t(warps) * G * kTilesOfK * 32 + place_.lane;
#pragma unroll
    for (int g = 0; g < G; ++g)
#pragma unroll
      for (int k = 0; k < kTilesOfK; ++k)
#pragma unroll
        for (int part = 0; part < kParts; ++part)
          weights_[g][k][part] = from[part * p.fragments + (g * kTilesOfK + k) * 32];
    prepare();
  }

  __device__ void run() const {
    constexpr int kSlots = PersistentShape::kForwardRing;
    walk<kSlots>([&] { return steps(); }, place_.tiles,
                 [&](int64_t k, int tile, int slot) {
                   with_lengths([&]<bool kRagged>() {
                     if (projects())
                       fetch_input<kRagged>(k, tile, slot);
                     else
                       fetch<kRagged>(k, tile, slot);
                   });
                 },
                 [&](int64_t k, int tile, int slot) {
                   if (projects()) {
                     wait_copies<kSlots - 1>();
                     project(slot);
                   }
                   if (k > 0) await_state(k, tile);
                   Sums all = {};
                   multiply_state(int(k % 2), tile, place_.part, all);
                   Two<float> sums[kItems][G];
                   add_up(slot % 2, all, sums);
                   wait_copies<kSlots - 1>();
                   const int from = projects() ? 0 : slot;
                   finish(
                       k, tile, sums, [&](int j, int g) { return *memory_.projected(from, j, g); },
                       [](const auto&) {});
                 });
  }

 protected:
  using Sums = float[G][N][kParts][4];  // of a warp's part of k

  // Operands in parts leave no registers for it.
  __device__ bool projects() const { return std::is_same_v<Real, float> && kParts == 1 && p_.I; }
  // Calls body with whether sequences have lengths of their own.
  template <class Body>
  __device__ void with_lengths(Body body) const {
    if (p_.lengths.of)
      body.template operator()<true>();
    else
      body.template operator()<false>();
  }
  __device__ Column* columns() const { return memory_.columns(p_.tiles, p_.I); }
  // Of the cluster's longest sequence, which is its first.
  __device__ int64_t steps() const { return p_.lengths.of ? columns()->steps : p_.T; }
  template <bool kRagged>
  __device__ Spot spot(int64_t k, int tile, int j) const {
    return find_spot<kRagged>(columns(), place_, p_, k, tile, place_.column(j),
                              place_.access.count > 0);
  }
  __device__ int sequence(int tile, int column) const {
    return p_.lengths.of ? columns()[tile * Shape::kColumns + column].sequence
                         : place_.sequence(tile, column);
  }

  // h0 and the barriers are there for all of the cluster when this returns.
  __device__ void prepare() {
    if (p_.lengths.of) find_columns(columns(), place_, p_);
    if (threadIdx.x == 0 && Shape::kCluster > 1)
      for (int tile = 0; tile < place_.tiles; ++tile)
        for (int buffer = 0; buffer < 2; ++buffer)
          mbarrier_init(memory_.arrived(buffer, tile), Shape::kWarps);
    const int64_t first = int64_t(place_.rank) * kShape.owned();
    for (int i = int(threadIdx.x); i < kShape.owned(); i += Shape::kThreads) {
      const auto of = [&](const Real* bias, int g) {
        return bias && first + i < p_.H ? wide(bias[g * p_.H + first + i]) : 0;
      };
      for (int g = 0; g < 2; ++g) *memory_.constants(g, i) = of(p_.b_ih, g) + of(p_.b_hh, g);
      if constexpr (Shape::cell == Cell::gru) {
        *memory_.constants(2, i) = of(p_.b_ih, 2);
        *memory_.constants(3, i) = of(p_.b_hh, 2);
      } else {
        for (int g = 2; g < 4; ++g) *memory_.constants(g, i) = of(p_.b_ih, g) + of(p_.b_hh, g);
      }
      for (int g = 0; g < G; ++g)
        for (int k = 0; k < int(p_.I); ++k)
          *memory_.input_weight(p_.tiles, k, g, i) =
              first + i < p_.H ? wide(p_.w_ih[(g * p_.H + first + i) * p_.I + k]) : 0;
      if (p_.unscale)
        for (int g = 0; g < G; ++g)
          *memory_.constants(4 + g, i) = p_.unscale[g * kShape.units + first + i];
    }
    for (int tile = 0; tile < place_.tiles; ++tile) {
      for (int i = int(threadIdx.x); i < Shape::kColumns * kShape.units; i += Shape::kThreads) {
        const int column = i / kShape.units, u = i % kShape.units;
        const int b = sequence(tile, column);
        const float h = b < p_.B && u < p_.H ? wide(p_.h0[b * p_.H + u]) : 0;
        auto* state = reinterpret_cast<Operand*>(memory_.state(0, tile, column));
        state[u] = narrow<Operand>(h);
        if (kParts > 1) state[kShape.units + u] = narrow<Operand>(rest_of(h, state[u]));
      }
      for (int j = 0; j < kItems; ++j) {
        const int b = sequence(tile, place_.column(j));
        const Real* initial = Shape::cell == Cell::gru ? p_.h0 : p_.c0;
        *memory_.carried(tile, j) =
            place_.here(b) ? place_.access.load(initial + b * p_.H + place_.unit) : Two<float>{};
      }
    }
    sync_all<Shape>();
  }

  // Begins the copies of a step's pre-activations, those of this thread's units alone.
  template <bool kRagged>
  __device__ void fetch(int64_t k, int tile, int slot) const {
#pragma unroll
    for (int j = 0; j < kItems; ++j) {
      const Spot at = spot<kRagged>(k, tile, j);
      const float* from = p_.projected.at(at.t, at.b) + place_.unit;
#pragma unroll
      for (int g = 0; g < G; ++g)
        copy_pair(memory_.projected(slot, j, g), from + g * p_.H, at.here, place_.access,
                  p_.projected.data);
    }
  }

  // The same for a step's input, which is the whole warp's.
  template <bool kRagged>
  __device__ void fetch_input(int64_t k, int tile, int slot) const {
#pragma unroll
    for (int n = 0; n < N; ++n) {
      const int column = 8 * n + place_.lane / 4;
      const Spot at = find_spot<kRagged>(columns(), place_, p_, k, tile, column, true);
      const Real* from = p_.x.at(at.t, at.b);
      float* to = memory_.input(slot, place_.warp) + column * kFewFeaturesOfKernel;
#pragma unroll
      for (int i = place_.lane % 4; i < int(kFewFeaturesOfKernel); i += 4)
        if (i < p_.I) copy_async<4>(to + i, at.here ? from + i : p_.x.data, at.here ? 4 : 0);
    }
  }

  // The thread's pre-activations from its warp's inputs, while others' states travel.
  __device__ void project(int slot) const {
    __syncwarp();  // all lanes' copies are there
    Two<float> sums[kItems][G] = {};
#pragma unroll 1
    for (int i = 0; i < int(p_.I); ++i) {
      float x[kItems];
#pragma unroll
      for (int j = 0; j < kItems; ++j)
        x[j] = memory_.input(slot, place_.warp)[place_.column(j) * kFewFeaturesOfKernel + i];
#pragma unroll
      for (int g = 0; g < G; ++g) {
        const auto w = *reinterpret_cast<const Two<float>*>(
            memory_.input_weight(p_.tiles, i, g, place_.own_unit()));
#pragma unroll
        for (int j = 0; j < kItems; ++j)
#pragma unroll
          for (int e = 0; e < 2; ++e) sums[j][g].of[e] += w.of[e] * x[j];
      }
    }
#pragma unroll
    for (int j = 0; j < kItems; ++j)
#pragma unroll
      for (int g = 0; g < G; ++g) *memory_.projected(0, j, g) = sums[j][g];
    __syncwarp();  // the slot may be written again
  }

  __device__ void await_state(int64_t k, int tile) const {
    if constexpr (Shape::kCluster > 1)
      mbarrier_wait(memory_.arrived(int(k % 2), tile), unsigned((k - 1) / 2 % 2));
    else
      __syncthreads();
  }

  // Adds the products of the states' `part` of k.
  __device__ void multiply_state(int buffer, int tile, int part, Sums& all) const {
    const unsigned char* from = memory_.state(buffer, tile, place_.lane % 8) +
                                part * kTilesOfK * 32 +
                                matrix_of<kParts>(place_.lane, 2 * kShape.units);
#pragma unroll
    for (int k = 0; k < kTilesOfK; k += 2 / kParts)
#pragma unroll
      for (int n = 0; n < N; ++n) {
        uint32_t columns[4];
        load_matrix_x4(columns, from + n * 8 * kShape.state_pitch() + k * 32);
#pragma unroll
        for (int half = 0; half < 2 / kParts; ++half)
#pragma unroll
          for (int g = 0; g < G; ++g)
            multiply_parts<Operand>(all[g][n], weights_[g][k + half], columns + 2 * half);
      }
  }

  // The recurrent sums of this thread's items.
  __device__ void add_up(int parity, const Sums& all, Two<float> (&sums)[kItems][G]) const {
    if constexpr (kShape.split == 1) {
#pragma unroll
      for (int j = 0; j < kItems; ++j)
#pragma unroll
        for (int g = 0; g < G; ++g)
          sums[j][g] = {whole_sum(all[g][0], j), whole_sum(all[g][0], 2 + j)};
    } else {
      share(parity, all);
#pragma unroll
      for (int g = 0; g < G; ++g) sums[0][g] = shared_sum(parity, g, 0, kShape.split);
    }
  }

  // Leaves this warp's sums for its group, and meets it.
  __device__ void share(int parity, const Sums& all) const {
#pragma unroll
    for (int item = 0; item < 2 * N; ++item)
#pragma unroll
      for (int g = 0; g < G; ++g)
        *memory_.partial(parity, place_.warp, item, g) = {
            whole_sum(all[g][item / 2], item % 2), whole_sum(all[g][item / 2], 2 + item % 2)};
    group_sync(place_.group, 32 * kShape.split);
  }

  // Of the group's warps from `first` to before `end`, for this thread's item.
  __device__ Two<float> shared_sum(int parity, int g, int first, int end) const {
    static_assert(kItems == 1);
    Two<float> sum = {};
#pragma unroll
    for (int part = first; part < end; ++part) {
      const Two<float> two =
          *memory_.partial(parity, place_.group * kShape.split + part, place_.part, g);
      sum = {sum.of[0] + two.of[0], sum.of[1] + two.of[1]};
    }
    return sum;
  }

  __device__ Two<float> constant(int which) const {
    return *reinterpret_cast<const Two<float>*>(memory_.constants(which, place_.own_unit()));
  }

  // From sums, and input(j, g), the input's products, to gates and states; these are sent, and
  // given to give(), before anything is stored.
  template <class Input, class Give>
  __device__ void finish(int64_t k, int tile, Two<float> (&sums)[kItems][G], Input input,
                         Give give) const {
    Two<float> h[kItems], c[kItems];
#pragma unroll
    for (int j = 0; j < kItems; ++j) {
      Two<float> x[G];
#pragma unroll
      for (int g = 0; g < G; ++g) {
        x[g] = input(j, g);
        const Two<float> bias = constant(g);
        x[g] = {x[g].of[0] + bias.of[0], x[g].of[1] + bias.of[1]};
        if (std::is_same_v<Real, float>) {
          const Two<float> unscale = constant(4 + g);
          sums[j][g] = {sums[j][g].of[0] * unscale.of[0], sums[j][g].of[1] * unscale.of[1]};
        }
      }
      Two<float>* carried = memory_.carried(tile, j);
      forward_update<Shape::cell, typename Shape::Gate>(sums[j], x, constant(3), *carried, h[j],
                                                        c[j]);
      *carried = Shape::cell == Cell::gru ? h[j] : c[j];
    }
    if (k + 1 < steps()) send(int((k + 1) % 2), tile, h);
    give(h);
    with_lengths([&]<bool kRagged>() {
#pragma unroll
      for (int j = 0; j < kItems; ++j) store(spot<kRagged>(k, tile, j), sums[j], h[j], c[j]);
    });
  }

  // Writes the warp's 16 units of the next state here and to all peers, 16 bytes at a time.
  __device__ void send(int buffer, int tile, const Two<float> (&h)[kItems]) const {
    const int at = place_.unit * int(sizeof(Operand));
#pragma unroll
    for (int j = 0; j < kItems; ++j) {
      OperandPair<Operand> parts[kParts];
      operand_parts(h[j], place_.access, parts);
      unsigned char* to = memory_.state(buffer, tile, place_.column(j)) + at;
#pragma unroll
      for (int part = 0; part < kParts; ++part)
        *reinterpret_cast<OperandPair<Operand>*>(to + part * 2 * kShape.units) = parts[part];
    }
    if constexpr (Shape::kCluster > 1) {
      constexpr int kPieces = 8 * kItems;  // of 16 bytes
      const int piece = place_.lane % kPieces;
      const int column =
          kItems == 2 ? piece / 2 : place_.part / 2 * 8 + piece / 2 * 2 + place_.part % 2;
      const int first = int(place_.rank) * kShape.owned() + 16 * place_.group;
      unsigned char* from =
          memory_.state(buffer, tile, column) + first * int(sizeof(Operand)) + piece % 2 * 16;
      uint64_t* arrived = memory_.arrived(buffer, tile);
      __syncwarp();
#pragma unroll
      for (int part = 0; part < kParts; ++part) {
        auto* to = reinterpret_cast<Fragment*>(from + part * 2 * kShape.units);
        const Fragment value = *to;
#pragma unroll
        for (int round = 0; round < (Shape::kCluster - 2) * kPieces / 32 + 1; ++round) {
          const unsigned peer = unsigned(1 + place_.lane / kPieces + round * (32 / kPieces));
          if (peer < unsigned(Shape::kCluster))
            store_async(to, value, arrived, (place_.rank + peer) % unsigned(Shape::kCluster));
        }
      }
      // Each of our warps arrives for as many bytes as its like at every peer sends.
      if (place_.lane == 0)
        mbarrier_arrive_expect(arrived, (Shape::kCluster - 1) * kParts * kPieces * 16);
    }
  }

  __device__ void store(const Spot& at, const Two<float> (&gates)[G], const Two<float>& h,
                        const Two<float>& c) const {
    if (!at.here) return;
    const int64_t t = at.t, b = at.b;
    place_.access.store(p_.y.at(t, b) + place_.unit, h);
    if (p_.gates.data)
#pragma unroll
      for (int g = 0; g < G; ++g)
        place_.access.store(p_.gates.at(t, b) + g * p_.H + place_.unit, gates[g]);
    if (Shape::cell == Cell::lstm && p_.gates.data)
      place_.access.store(p_.c.at(t, b) + place_.unit, c);
    if (at.last) {
      place_.access.store(p_.hn + b * p_.H + place_.unit, h);
      if (Shape::cell == Cell::lstm) place_.access.store(p_.cn + b * p_.H + place_.unit, c);
    }
  }

  const PersistentForward<Real>& p_;
  const ForwardMemory<Shape> memory_;
  const Place<Shape> place_;
  Fragment weights_[G][kTilesOfK][kParts];
};

template <class Real, class Shape>
__global__ void __launch_bounds__(Shape::kThreads, 1)
    persistent_forward_kernel(const __grid_constant__ Directions<PersistentForward<Real>> all) {
  if constexpr (Shape::exists()) {
    GATEDRNN_DYNAMIC_SHARED(shared);
    ForwardWalk<Real, Shape>(all.direction[blockIdx.y], shared).run();
  } else {
    __trap();
  }
}

}  // namespace gatedrnn::cuda
