// Layers forward in one launch, as a wavefront: each is walked by clusters of its own, as in
// persistent_forward.h, and is a step behind the one below, of whose states it makes its input's
// products itself.
//
//   layer l, step k    h_l(k) [sequences, all units], in each block of the cluster, and
//                      x(k) = h_(l - 1)(k + 1), in L2
//                        |    of the warps that share a sum over k, half multiply W_ih x, and
//                        |    half W_hh h; the first layer's input is projected before
//                      gates -> own units of h_l(k + 1) -> every block, and L2 for layer l + 1
//
// Who reads x(k) waits for nothing else than x(k). Of each step it has a place of its own, which is
// written once; every word there, two units of 16 bits, is all ones before, and after it is not: no
// number is narrowed to a NaN of all ones (PTX ISA: results that are NaN are 0x7fff). A word is
// loaded and stored as one, relaxed, and a load never finds an older one than a load before. So
// there is no flag, no fence, and nobody waits for the layer above.
//
// Nor does anything depend on how many clusters run at the same time. They take their places in the
// order in which they begin, layer by layer, so that who waits for a cluster has begun after it.
#pragma once

#include "exchange.h"
#include "persistent_forward.h"

namespace gatedrnn::cuda {

template <class Real>
struct StackedForward : PersistentForward<Real> {
  const float* unscale_input;  // [G, units] as `unscale`, of W_ih
  const Fragment* below;  // [T, tiles, units / 32, columns / 8, 32]; null: `projected` is there
  Fragment* above;        // as `below`; null: there is no layer
  int64_t step;           // fragments of either's step
};

template <class Real>
struct Stack {
  StackedForward<Real> layer[kMostStacked];
  unsigned* begun;  // clusters that have, less one
  int clusters;     // of a layer
};

// The cluster's place among all: those before have begun. `begun` is all ones at first.
template <class Shape>
__device__ inline int take_place(unsigned* begun) {
  GATEDRNN_SHARED(unsigned, place, 1);
  if (threadIdx.x == 0 && (Shape::kCluster == 1 || cluster_rank() == 0))
    place[0] = atomicAdd(begun, 1u) + 1;
  sync_all<Shape>();
  return int(Shape::kCluster == 1 ? place[0] : *map_shared_rank(place, 0));
}

template <class Real, class Shape>
class StackedWalk : ForwardWalk<Real, Shape> {
  using Base = ForwardWalk<Real, Shape>;
  using Base::G, Base::N, Base::kShape, Base::kTilesOfK;
  using Base::memory_, Base::p_, Base::place_;
  using typename Base::Operand, typename Base::Sums;
  static constexpr int kInputWarps = kShape.split / 2;  // of a group

 public:
  __device__ StackedWalk(const StackedForward<Real>& p, unsigned char* shared, int cluster)
      : Base(p, shared, cluster), stacked_(p) {
    const int first = int(place_.rank) * kShape.owned();
    for (int i = int(threadIdx.x); i < kShape.owned() && p.unscale_input; i += Shape::kThreads)
      for (int g = 0; g < G; ++g)
        *memory_.constants(4 + G + g, i) = p.unscale_input[g * kShape.units + first + i];
    __syncthreads();
  }

  __device__ void run() const {
    constexpr int kSlots = PersistentShape::kForwardRing;
    walk<kSlots>([&] { return p_.T; }, place_.tiles,
                 [&](int64_t k, int tile, int slot) {
                   if (!stacked_.below) this->template fetch<false>(k, tile, slot);
                 },
                 [&](int64_t k, int tile, int slot) {
                   const bool of_input = place_.part < kInputWarps;
                   Sums all = {};
                   if (of_input && stacked_.below) multiply_input(k, tile, all);
                   if (k > 0) this->await_state(k, tile);
                   if (!of_input)
                     this->multiply_state(int(k % 2), tile, place_.part - kInputWarps, all);
                   this->share(slot % 2, all);
                   Two<float> sums[1][G];
#pragma unroll
                   for (int g = 0; g < G; ++g)
                     sums[0][g] = this->shared_sum(slot % 2, g, kInputWarps, kShape.split);
                   wait_copies<kSlots - 1>();
                   this->finish(
                       k, tile, sums, [&](int j, int g) { return input(slot, j, g); },
                       [&](const Two<float>(&h)[1]) {
                         if (stacked_.above) give(k, tile, h[0]);
                       });
                 });
  }

 private:
  static constexpr int kFragments = kShape.units / 32 * N;  // of a tile's step, for each lane
  static constexpr int kOfWarp = kFragments / kInputWarps;

  // Where they begin.
  template <class Given>
  __device__ Given* place_of(Given* exchange, int64_t k, int tile) const {
    const int64_t tiles = place_.batch0 / Shape::kColumns + tile;
    return exchange + k * stacked_.step + tiles * (kFragments * 32);
  }

  // Adds this warp's part of the input's products, as soon as the layer below has given it.
  __device__ void multiply_input(int64_t k, int tile, Sums& all) const {
    read_all<kOfWarp>(
        place_of(stacked_.below, k, tile) + place_.part * kOfWarp * 32 + place_.lane, kOfWarp,
        [](uint32_t (&word)[4], const Fragment* from) { load_relaxed_words(word, from); },
        [](const uint32_t (&word)[4]) {
          return word[0] == ~0u || word[1] == ~0u || word[2] == ~0u || word[3] == ~0u;
        },
        [&](int i, const Fragment& x) {
#pragma unroll
          for (int half = 0; half < 2; ++half)
#pragma unroll
            for (int g = 0; g < G; ++g)
              multiply_parts<Operand>(all[g][i % N], this->weights_[g][i / N * 2 + half],
                                      x.word + 2 * half);
        });
  }

  // The input's products of this thread's item.
  __device__ Two<float> input(int slot, int j, int g) const {
    if (!stacked_.below) return *memory_.projected(slot, j, g);
    Two<float> sum = this->shared_sum(slot % 2, g, 0, kInputWarps);
    if (std::is_same_v<Real, float>) {
      const Two<float> unscale = this->constant(4 + G + g);
      sum = {sum.of[0] * unscale.of[0], sum.of[1] * unscale.of[1]};
    }
    return sum;
  }

  // A lane's four words are its columns of two tiles of k, as load_matrix_x4 would bring them.
  __device__ void give(int64_t k, int tile, const Two<float>& h) const {
    const OperandPair<Operand> pair = operands<Operand>(h, place_.access);
    const int column = place_.column(0), unit = place_.unit;
    Fragment* to = place_of(stacked_.above, k, tile) + (unit / 32 * N + column / 8) * 32 +
                   column % 8 * 4 + unit / 2 % 4;
    store_relaxed_word(&to->word[unit / 8 % 4], pair.of[0].bits | uint32_t(pair.of[1].bits) << 16);
  }

  const StackedForward<Real>& stacked_;
};

template <class Real, class Shape>
__global__ void __launch_bounds__(Shape::kThreads, 1)
    wavefront_forward_kernel(const __grid_constant__ Stack<Real> all) {
  if constexpr (Shape::exists()) {
    GATEDRNN_DYNAMIC_SHARED(shared);
    const int place = take_place<Shape>(all.begun);
    StackedWalk<Real, Shape>(all.layer[place / all.clusters], shared, place % all.clusters).run();
  } else {
    __trap();
  }
}

}  // namespace gatedrnn::cuda
