// All steps backward in one launch, with the blocks, clusters and sequences of
// persistent_forward.h. Here a block holds the part of W_hh whose rows are the gates of its own
// units, transposed: it multiplies the gradients of its own gates, which nobody else needs, and so
// makes a part of dh of all units, which it sends to their owners as float32.
//
//   step k     parts of dh(t) [blocks][own units] -> dh(t), gates' gradients     buffer (k - 1) % 2
//              their largest, column by column, then all of them of 16 bits      in the block
//              products: a part of dh(t - 1) of all units -> every block         buffer k % 2
//
// The gradients have no natural range. Operands of float16 are scaled by a power of two for each
// block, sequence and step, which is exact and is undone in the products before they are sent.
//
// A block's mbarrier of a buffer and tile counts the bytes of all blocks' parts, its own among
// them. Two buffers suffice: who sends parts of step k + 2 has had all those of step k + 1, and a
// block sends them after all its warps have met behind their reading of step k's.
#pragma once

#include "persistent.h"

namespace gatedrnn::cuda {

template <class Real>
struct PersistentBackward {
  using Grad = typename Types<Real>::Grad;
  int64_t T, B, H;
  int tiles;  // of a cluster
  bool reverse, aligned;
  Lengths lengths;
  const Fragment* weights;    // as pack_weights_kernel leaves them
  int64_t fragments;          // from one part of them to the next
  const float* unscale;       // [units]; operands of float16 only
  const Real *h0, *c0;        // [B, H]
  Strided<const Real> y;      // (T, B, H)
  Strided<const Real> gates;  // (T, B, G*H)
  Strided<const float> c;     // (T, B, H), LSTM
  Strided<const Real> dy;     // (T, B, H) or null: zero
  const Real *dhn, *dcn;      // [B, H] or null
  Strided<const Real> dc;     // (T, B, H) of every step's cell state, or null: zero
  Strided<Grad> dgates;       // (T, B, ...): r, z, n (i, f, g, o) from column 0
  int64_t dq;                 // GRU: the column of q's
  Strided<Grad> previous;     // (T, B, H) h(t - 1), or null
  Real *dh0, *dc0;            // [B, H]
};

template <class Real, class Shape>
struct BackwardMemory {
  static constexpr PersistentShape kShape = Shape::kShape;
  static constexpr bool kGru = Shape::cell == Cell::gru;

  unsigned char* const shared;

  __device__ uint64_t* arrived(int buffer, int tile) const {
    return reinterpret_cast<uint64_t*>(shared) + 2 * tile + buffer;
  }
  // What the products of a row are to be multiplied by.
  __device__ float* unscale(int unit) const {
    return reinterpret_cast<float*>(shared + kShape.kBarriers) + unit;
  }
  __device__ unsigned char* operand(int column) const {
    return reinterpret_cast<unsigned char*>(unscale(kShape.units)) +
           column * kShape.gradient_pitch();
  }
  // dy, the gates; GRU: h(t - 1).
  __device__ Two<Real>* saved(int slot, int j, int which) const {
    return reinterpret_cast<Two<Real>*>(operand(Shape::kColumns)) +
           ((slot * kShape.kSaved + which) * Shape::kItems + j) * Shape::kThreads + threadIdx.x;
  }
  // LSTM: c(t - 1).
  __device__ Two<float>* cell(int slot, int j) const {
    return reinterpret_cast<Two<float>*>(saved(kShape.kBackwardRing, 0, 0) - threadIdx.x) +
           (slot * Shape::kItems + j) * Shape::kThreads + threadIdx.x;
  }
  // GRU: what of dh(t) reaches h(t - 1) directly, LSTM: dc(t).
  __device__ Two<float>* carried(int tile, int j) const {
    return reinterpret_cast<Two<float>*>(shared + tile_at(tile)) + j * Shape::kThreads +
           threadIdx.x;
  }
  // GRU: h(t), LSTM: c(t).
  __device__ Two<float>* state(int tile, int j) const { return carried(tile, Shape::kItems + j); }
  // Of a group's gradients, column by column. Two buffers, since who goes on to the next step meets
  // the block's other warps only after he has written there.
  __device__ float* largest(int buffer, int tile, int group, int column) const {
    return reinterpret_cast<float*>(shared + tile_at(tile) + 2 * kShape.pairs()) +
           (buffer * kShape.groups + group) * Shape::kColumns + column;
  }
  // From block `from`, for a group of this one's, as the product's thread `lane` had it.
  __device__ float4* received(int buffer, int tile, int from, int group, int n, int lane) const {
    return reinterpret_cast<float4*>(largest(2, tile, 0, 0)) +
           (((buffer * Shape::kCluster + from) * kShape.groups + group) * Shape::N + n) * 32 + lane;
  }

  __device__ Column* columns(int tiles) const {
    return reinterpret_cast<Column*>(shared + tile_at(tiles));
  }

 private:
  __device__ static int tile_at(int tile) {
    constexpr int kFixed = kShape.backward_bytes(0, sizeof(Real));
    return kFixed + tile * (kShape.backward_bytes(1, sizeof(Real)) - kFixed);
  }
};

// From dh(t), or what comes of it by products, the gates' gradients of two units: r, z, n, q or i,
// f, g, o. saved(which, unit) is what BackwardMemory says, cell(unit) an LSTM's c(t - 1).
template <Cell kCell, class Gate, class Saved, class Before>
__device__ inline void backward_update(const Two<float>& dh, Saved saved, Before cell,
                                       Two<float>& carried, Two<float>& state,
                                       Two<float> (&da)[4]) {
#pragma unroll
  for (int e = 0; e < 2; ++e) {
    const float d = dh.of[e] + saved(0, e);
    if constexpr (kCell == Cell::gru) {
      const float r = saved(1, e), z = saved(2, e), q = saved(3, e), before = saved(4, e);
      const Gate n = gru_candidate<Gate>(z, before, state.of[e]);
      const auto g = gru_gates_backward<float>(d + carried.of[e], r, z, float(n), q, before);
      da[0].of[e] = g.da_r;
      da[1].of[e] = g.da_z;
      da[2].of[e] = g.da_n;
      da[3].of[e] = g.dq;
      carried.of[e] = g.dh_prev;
      state.of[e] = before;
    } else {
      const float before = cell(e);
      const Gate tanh_c = tanh(Gate(state.of[e]));
      const auto g = lstm_gates_backward<float>(d, carried.of[e], saved(1, e), saved(2, e),
                                                saved(3, e), saved(4, e), before, float(tanh_c));
      da[0].of[e] = g.da_i;
      da[1].of[e] = g.da_f;
      da[2].of[e] = g.da_g;
      da[3].of[e] = g.da_o;
      carried.of[e] = g.dc_prev;
      state.of[e] = before;
    }
  }
}

// Loaded where it is wanted: few ask for the cell states, and the ring has no place for them.
template <class Real>
__device__ inline void add_dc(const Real* dc, const Access& access, Two<float>& carried) {
  const auto of = access.load(dc);
  carried = {carried.of[0] + of.of[0], carried.of[1] + of.of[1]};
}

template <class Real, class Shape>
class BackwardWalk {
 public:
  using Grad = typename Types<Real>::Grad;
  using Operand = OperandOf<Real>;
  static constexpr PersistentShape kShape = Shape::kShape;
  static constexpr bool kGru = Shape::cell == Cell::gru, kScaled = std::is_same_v<Operand, Half>;
  static constexpr int G = Shape::G, N = Shape::N, kItems = Shape::kItems;
  static constexpr int kRows = kShape.units / 16 / Shape::kWarps;  // tiles of 16 a warp
  static constexpr int kTilesOfK = G * kShape.groups;
  static constexpr int kParts = Shape::kParts;
  static constexpr int kSums = kRows * kParts == 1 ? 2 : 1;  // at once, of each product
  // Where weights and sums leave no registers for gradients that wait for their storing. Of
  // float16, whose pairs may have to be loaded one by one, more are taken.
  static constexpr int kFewLeft = std::is_same_v<Real, Half> ? 199 : 200;
  static constexpr bool kStoreFirst = 4 * kRows * kParts * (kTilesOfK + N * kSums) > kFewLeft;

  __device__ BackwardWalk(const PersistentBackward<Real>& p, unsigned char* shared)
      : p_(p), memory_{shared}, place_(p) {
    const int warps = int(place_.rank) * Shape::kWarps + place_.warp;
    const Fragment* from = p.weights + int64_t(warps) * kRows * kTilesOfK * 32 + place_.lane;
#pragma unroll
    for (int r = 0; r < kRows; ++r)
#pragma unroll
      for (int k = 0; k < kTilesOfK; ++k)
#pragma unroll
        for (int part = 0; part < kParts; ++part)
          weights_[r][k][part] = from[part * p.fragments + (r * kTilesOfK + k) * 32];
    prepare();
  }

  __device__ void run() const {
    constexpr int kSlots = PersistentShape::kBackwardRing;
    walk<kSlots>([&] { return steps(); }, place_.tiles,
                 [&](int64_t k, int tile, int slot) {
                   with_lengths([&]<bool kRagged>() { fetch<kRagged>(k, tile, slot); });
                 },
                 [&](int64_t k, int tile, int slot) {
                   Two<float> dh[kItems], da[kItems][4];
                   receive(k, tile, dh);
                   wait_copies<kSlots - 1>();
                   update(k, tile, slot, dh, da);
                   const auto store_all = [&] {
                     with_lengths([&]<bool kRagged>() { store<kRagged>(k, tile, slot, da); });
                   };
                   leave_operand(int(k % 2), tile, da, [&] {
                     if (kStoreFirst) store_all();
                   });
                   multiply_and_send(int(k % 2), tile);
                   if (!kStoreFirst) store_all();
                 });
    for (int tile = 0; tile < place_.tiles; ++tile) {
      Two<float> dh[kItems];
      receive(steps(), tile, dh);
#pragma unroll
      for (int j = 0; j < kItems; ++j) {
        const int b = sequence(tile, j);
        if (!place_.here(b)) continue;
        const Two<float> carried = *memory_.carried(tile, j);
        if (kGru) dh[j] = {dh[j].of[0] + carried.of[0], dh[j].of[1] + carried.of[1]};
        place_.access.store(p_.dh0 + b * p_.H + place_.unit, dh[j]);
        if (!kGru) place_.access.store(p_.dc0 + b * p_.H + place_.unit, carried);
      }
    }
  }

 private:
  // Calls body with whether sequences have lengths of their own.
  template <class Body>
  __device__ void with_lengths(Body body) const {
    if (p_.lengths.of)
      body.template operator()<true>();
    else
      body.template operator()<false>();
  }
  __device__ Column* columns() const { return memory_.columns(p_.tiles); }
  // Of the cluster's longest sequence, which is its first.
  __device__ int64_t steps() const { return p_.lengths.of ? columns()->steps : p_.T; }
  // Of the k-th step back, or of so many before it.
  template <bool kRagged>
  __device__ Spot spot(int64_t k, int tile, int j, int before = 0) const {
    const int64_t s = (kRagged ? steps() : p_.T) - 1 - k - before;
    return find_spot<kRagged>(columns(), place_, p_, s, tile, place_.column(j),
                              place_.access.count > 0);
  }
  __device__ int sequence(int tile, int j) const {
    const int column = place_.column(j);
    return p_.lengths.of ? columns()[tile * Shape::kColumns + column].sequence
                         : place_.sequence(tile, column);
  }
  // A sequence's last step.
  __device__ int64_t last_time(int tile, int j) const {
    if (!p_.lengths.of) return p_.reverse ? 0 : p_.T - 1;
    const Column& c = columns()[tile * Shape::kColumns + place_.column(j)];
    return p_.lengths.row(p_.reverse ? 0 : c.steps - 1);
  }

  __device__ void prepare() const {
    if (p_.lengths.of) find_columns(columns(), place_, p_);
    if (threadIdx.x == 0 && Shape::kCluster > 1)
      for (int tile = 0; tile < place_.tiles; ++tile)
        for (int buffer = 0; buffer < 2; ++buffer) mbarrier_init(memory_.arrived(buffer, tile), 1);
    if constexpr (kScaled)
      for (int i = int(threadIdx.x); i < kShape.units; i += Shape::kThreads)
        *memory_.unscale(i) = p_.unscale[i];
    for (int tile = 0; tile < place_.tiles; ++tile)
      for (int j = 0; j < kItems; ++j) {
        const int b = sequence(tile, j);
        Two<float> carried = {}, state = {};
        if (place_.here(b)) {
          const int64_t at = b * p_.H + place_.unit;
          carried = place_.access.load_or_zero(kGru ? p_.dhn : p_.dcn, at);
          if constexpr (kGru)
            state = place_.access.load(p_.y.at(last_time(tile, j), b) + place_.unit);
          else
            state = place_.access.load(p_.c.at(last_time(tile, j), b) + place_.unit);
        }
        *memory_.carried(tile, j) = carried;
        *memory_.state(tile, j) = state;
      }
    sync_all<Shape>();
  }

  // Begins the copies of what forward has left of a step.
  template <bool kRagged>
  __device__ void fetch(int64_t k, int tile, int slot) const {
    const bool at_begin = k + 1 == steps();  // of the sequence
#pragma unroll
    for (int j = 0; j < kItems; ++j) {
      const Spot at = spot<kRagged>(k, tile, j);
      const int64_t t = at.t, before = spot<kRagged>(k, tile, j, 1).t;
      const int b = at.b, u = place_.unit;
      const bool here = at.here;
      const auto copy = [&](int which, const Real* from, bool there) {
        copy_pair(memory_.saved(slot, j, which), from + u, there, place_.access, p_.gates.data);
      };
      copy(0, p_.dy.data ? p_.dy.at(t, b) : p_.gates.data, here && p_.dy.data);
      const Real* gates = p_.gates.at(t, b);
#pragma unroll
      for (int g = 0; g < G; ++g) copy(1 + g, gates + g * p_.H, here);
      if constexpr (kGru) {
        copy(1 + G, at_begin ? p_.h0 + b * p_.H : p_.y.at(before, b), here);
      } else if (at_begin) {  // c0 may be of another type
        *memory_.cell(slot, j) = here ? place_.access.load(p_.c0 + b * p_.H + u) : Two<float>{};
      } else {
        copy_pair(memory_.cell(slot, j), p_.c.at(before, b) + u, here, place_.access, p_.c.data);
      }
    }
  }

  // What of dh(t) comes through the products of the step after it; LSTM: from the end, dhn, unless
  // each sequence has its own.
  __device__ void receive(int64_t k, int tile, Two<float> (&dh)[kItems]) const {
    if (k == 0) {
#pragma unroll
      for (int j = 0; j < kItems; ++j) {
        const int b = place_.sequence(tile, place_.column(j));
        dh[j] = {};
        if (!kGru && !p_.lengths.of && place_.here(b))
          dh[j] = place_.access.load_or_zero(p_.dhn, b * p_.H + place_.unit);
      }
      return;
    }
    const int buffer = int((k - 1) % 2);
    if constexpr (Shape::kCluster > 1)
      mbarrier_wait(memory_.arrived(buffer, tile), unsigned((k - 1) / 2 % 2));
    else
      static_assert(kRows == 1 && kShape.split == 1);  // what a lone block's thread left for itself
#pragma unroll
    for (int j = 0; j < kItems; ++j) {
      const int item = place_.part * kItems + j;
      dh[j] = {};
#pragma unroll
      for (int from = 0; from < Shape::kCluster; ++from) {
        const auto* four = reinterpret_cast<const float*>(
            memory_.received(buffer, tile, from, place_.group, item / 2, place_.lane));
        dh[j] = {dh[j].of[0] + four[item % 2], dh[j].of[1] + four[2 + item % 2]};
      }
    }
  }

  // Whether a sequence has begun, from its end. Until then its gates have no gradients.
  __device__ bool begin(int64_t k, int tile, int j, Two<float>& dh, Two<float> (&da)[4]) const {
    const Spot at = spot<true>(k, tile, j);
    if (!at.here) {
#pragma unroll
      for (int g = 0; g < 4; ++g) da[g] = {};
    } else if (!kGru && at.last) {
      dh = place_.access.load_or_zero(p_.dhn, at.b * p_.H + place_.unit);
    }
    return at.here;
  }

  // From dh(t), or what comes of it by products, the gates' gradients: r, z, n, q or i, f, g, o.
  __device__ void update(int64_t k, int tile, int slot, Two<float> (&dh)[kItems],
                         Two<float> (&da)[kItems][4]) const {
#pragma unroll
    for (int j = 0; j < kItems; ++j) {
      if (p_.lengths.of && !begin(k, tile, j, dh[j], da[j])) continue;
      if (!kGru && p_.dc.data)
        with_lengths([&]<bool kRagged>() {
          if (const Spot at = spot<kRagged>(k, tile, j); at.here)
            add_dc(p_.dc.at(at.t, at.b) + place_.unit, place_.access, *memory_.carried(tile, j));
        });
      backward_update<Shape::cell, typename Shape::Gate>(
          dh[j], [&](int which, int e) { return wide(memory_.saved(slot, j, which)->of[e]); },
          [&](int e) { return kGru ? 0 : memory_.cell(slot, j)->of[e]; }, *memory_.carried(tile, j),
          *memory_.state(tile, j), da[j]);
    }
  }

  // Of the gates' gradients those that W_hh multiplies: a GRU's n has q's.
  static __device__ constexpr int multiplied(int g) { return kGru && g == 2 ? 3 : g; }

  // The block's largest of a column, after its warps have met.
  __device__ float largest_of(int buffer, int tile, int column) const {
    float largest = 0;
#pragma unroll
    for (int group = 0; group < kShape.groups; ++group)
      largest = fmaxf(largest, *memory_.largest(buffer, tile, group, column));
    return largest;
  }

  // Leaves them for all of the block's warps.
  template <class Meanwhile>
  __device__ void leave_operand(int buffer, int tile, const Two<float> (&da)[kItems][4],
                                Meanwhile meanwhile) const {
    if constexpr (kScaled) {
#pragma unroll
      for (int j = 0; j < kItems; ++j) {
        float largest = 0;
#pragma unroll
        for (int g = 0; g < G; ++g)
#pragma unroll
          for (int e = 0; e < 2; ++e)
            if (e < place_.access.count)
              largest = fmaxf(largest, fabsf(da[j][multiplied(g)].of[e]));
#pragma unroll
        for (int distance = 4; distance < 32; distance *= 2)
          largest = fmaxf(largest, __shfl_xor_sync(~0u, largest, distance));
        if (place_.lane < 4)
          *memory_.largest(buffer, tile, place_.group, place_.column(j)) = largest;
      }
    }
    __syncthreads();  // nobody reads the operand of before any more, either
#pragma unroll
    for (int j = 0; j < kItems; ++j) {
      float scale = 1, inverse;
      if constexpr (kScaled) scale = scale_for(largest_of(buffer, tile, place_.column(j)), inverse);
      auto* to = reinterpret_cast<OperandPair<Operand>*>(memory_.operand(place_.column(j)));
#pragma unroll
      for (int g = 0; g < G; ++g) {
        const Two<float>& x = da[j][multiplied(g)];
        const Two<float> scaled = {x.of[0] * scale, x.of[1] * scale};
        OperandPair<Operand> parts[kParts];
        operand_parts(scaled, place_.access, parts);
#pragma unroll
        for (int part = 0; part < kParts; ++part)
          to[((part * G + g) * kShape.owned() + place_.own_unit()) / 2] = parts[part];
      }
    }
    meanwhile();
    __syncthreads();
  }

  __device__ void multiply_and_send(int buffer, int tile) const {
    float sums[kSums][kRows][N][kParts][4] = {};
    const unsigned char* from =
        memory_.operand(place_.lane % 8) + matrix_of<kParts>(place_.lane, kTilesOfK * 32);
#pragma unroll
    for (int k = 0; k < kTilesOfK; k += 2 / kParts)
#pragma unroll
      for (int n = 0; n < N; ++n) {
        uint32_t columns[4];
        load_matrix_x4(columns, from + n * 8 * kShape.gradient_pitch() + k * 32);
#pragma unroll
        for (int half = 0; half < 2 / kParts; ++half)
#pragma unroll
          for (int r = 0; r < kRows; ++r)
            multiply_parts<Operand>(sums[half % kSums][r][n], weights_[r][k + half],
                                    columns + 2 * half);
      }
    uint64_t* arrived = memory_.arrived(buffer, tile);
#pragma unroll
    for (int n = 0; n < N; ++n) {
      float inverse[2];
      for (int e = 0; e < 2 && kScaled; ++e)
        scale_for(largest_of(buffer, tile, n * 8 + place_.lane % 4 * 2 + e), inverse[e]);
#pragma unroll
      for (int r = 0; r < kRows; ++r) {
        float four[4];
#pragma unroll
        for (int i = 0; i < 4; ++i)
          four[i] = whole_sum(sums[0][r][n], i) + (kSums > 1 ? sums[kSums - 1][r][n][0][i] : 0);
        const int rows = place_.warp * kRows + r;
        if constexpr (kScaled) {
          const float* unscale = memory_.unscale(rows * 16 + place_.lane / 4 * 2);
#pragma unroll
          for (int i = 0; i < 4; ++i) four[i] = four[i] * unscale[i / 2] * inverse[i % 2];
        }
        const float4 value = make_float4(four[0], four[1], four[2], four[3]);
        float4* to =
            memory_.received(buffer, tile, int(place_.rank), rows % kShape.groups, n, place_.lane);
        if constexpr (Shape::kCluster > 1)
          store_async(to, value, arrived, unsigned(rows / kShape.groups));
        else
          *to = value;
      }
    }
    if (threadIdx.x == 0 && Shape::kCluster > 1) mbarrier_arrive_expect(arrived, kShape.received());
  }

  template <bool kRagged>
  __device__ void store(int64_t k, int tile, int slot, const Two<float> (&da)[kItems][4]) const {
#pragma unroll
    for (int j = 0; j < kItems; ++j) {
      const Spot at = spot<kRagged>(k, tile, j);
      if (!at.here) continue;
      const int64_t t = at.t;
      const int b = at.b, u = place_.unit;
      Grad* dgates = p_.dgates.at(t, b) + u;
#pragma unroll
      for (int g = 0; g < 4; ++g)
        place_.access.store(dgates + (kGru && g == 3 ? p_.dq : g * p_.H), da[j][g]);
      if (!p_.previous.data) continue;
      Grad* previous = p_.previous.at(t, b) + u;
      if constexpr (kGru) {  // it was fetched
        const Two<Real>& before = *memory_.saved(slot, j, 1 + G);
        place_.access.store(previous, Two<float>{wide(before.of[0]), wide(before.of[1])});
      } else {
        const Real* before =
            k + 1 == steps() ? p_.h0 + b * p_.H : p_.y.at(spot<kRagged>(k, tile, j, 1).t, b);
        place_.access.store(previous, place_.access.load(before + u));
      }
    }
  }

  const PersistentBackward<Real>& p_;
  const BackwardMemory<Real, Shape> memory_;
  const Place<Shape> place_;
  Fragment weights_[kRows][kTilesOfK][kParts];
};

template <class Real, class Shape>
__global__ void __launch_bounds__(Shape::kThreads, 1)
    persistent_backward_kernel(const __grid_constant__ Directions<PersistentBackward<Real>> all) {
  if constexpr (Shape::exists()) {
    GATEDRNN_DYNAMIC_SHARED(shared);
    BackwardWalk<Real, Shape>(all.direction[blockIdx.y], shared).run();
  } else {
    __trap();
  }
}

}  // namespace gatedrnn::cuda
