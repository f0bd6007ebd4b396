// All steps of a sequence backward in one launch, with the blocks and lanes of latency_forward.h.
// Here a block holds the part of W_hh whose rows are the gates of its own units, transposed, and
// makes of their gradients a part of dh of all units, which it sends to their owners:
//
//   step k     parts of dh(t) [blocks][own units] -> dh(t), gates' gradients     buffer (k - 1) % 2
//              gradients of own units, by gate, in the block                     buffer k % 2
//              products: a part of dh(t - 1) of all units -> every block         buffer k % 2
//
// A block's mbarrier of a buffer counts the bytes of all blocks' parts, its own among them. Two
// buffers suffice: who sends parts of step k + 2 has had all those of step k + 1, and a block sends
// them after all its warps have met behind their reading of step k's. Nobody writes the gradients
// of step k + 2 before that meeting either, which is behind the reading of step k's. A lone block
// sends nothing: the lanes of a unit make its products.
#pragma once

#include "latency.h"

namespace gatedrnn::cuda {

struct LatencyBackward {
  int64_t T, H;
  bool reverse;
  const float* w_hh;           // [G*H, H]
  const float *h0, *c0;        // [B, H]
  Strided<const float> y;      // (T, B, H)
  Strided<const float> gates;  // (T, B, G*H)
  Strided<const float> c;      // (T, B, H), LSTM
  Strided<const float> dy;     // (T, B, H) or null: zero
  const float *dhn, *dcn;      // [B, H] or null
  Strided<const float> dc;     // (T, B, H) or null, LSTM
  Strided<float> dgates;       // (T, B, ...): r, z, n (i, f, g, o) from column 0
  int64_t dq;                  // GRU: the column of q's
  Strided<float> previous;     // (T, B, H) h(t - 1), or null
  float *dh0, *dc0;            // [B, H]
};

template <class Shape>
struct LatencyBackwardMemory {
  // Blocks' parts lie so far apart that a unit's lanes, which read one each, meet no bank twice.
  static constexpr int kPitch = Shape::U + 4;

  alignas(16) float received[2][Shape::kCluster][kPitch];
  alignas(16) float gradients[2][Shape::G * Shape::U];
  uint64_t arrived[2];
};

template <class Shape>
class LatencyBackwardWalk {
 public:
  static constexpr int kUnits = Shape::kShape.units, G = Shape::G, L = Shape::L, U = Shape::U;
  static constexpr bool kGru = Shape::kGru;
  // Units whose products a thread makes, or threads that share a unit's.
  static constexpr int kRows = kUnits > Shape::kThreads ? kUnits / Shape::kThreads : 1;
  static constexpr int kParts = kUnits < Shape::kThreads ? Shape::kThreads / kUnits : 1;

  __device__ LatencyBackwardWalk(const LatencyBackward& p, LatencyBackwardMemory<Shape>& memory)
      : p_(p), memory_(memory) {
#pragma unroll
    for (int r = 0; r < kRows; ++r)
#pragma unroll
      for (int j = 0; j < G * U / kParts; ++j) {
        const int k = (j / 4 * kParts + part_) * 4 + j % 4, gate = k / U;
        const int u = row(r), of = int(place_.rank) * U + k % U, H = int(p.H);  // kUnits at most
        weights_[r][j] = u < H && of < H ? p.w_hh[(gate * H + of) * H + u] : 0;
      }
    if (threadIdx.x == 0 && Shape::kCluster > 1)
      for (int buffer = 0; buffer < 2; ++buffer) mbarrier_init(memory.arrived + buffer, 1);
    if (here()) {
      const float* carried = kGru ? p.dhn : p.dcn;
      if (carried) carried_ = carried[at_state()];
      state_ = (kGru ? p.y : p.c).at(time(0), place_.b)[place_.unit];
    }
    sync_all<Shape>();
  }

  __device__ void run() {
    chaos_of_start();
    Saved next = fetch(0), later = fetch(1);
#pragma unroll 1
    for (int64_t k = 0; k < p_.T; ++k) {
      chaos(k, 0);
      const Saved saved = next;
      next = later;
      later = fetch(k + 2);
      float da[4];
      if (!kGru && p_.dc.data && here())  // few ask for it
        carried_ += p_.dc.at(time(k), place_.b)[place_.unit];
      update(receive(k), saved, da);
      leave(int(k % 2), da);
      multiply_and_send(int(k % 2));
      if (here()) store(k, da);
    }
    const float dh = receive(p_.T);
    if (!here() || place_.lane > 0) return;
    p_.dh0[at_state()] = kGru ? dh + carried_ : dh;
    if (!kGru) p_.dc0[at_state()] = carried_;
  }

 private:
  struct Saved {
    float dy, gates[G], before;  // GRU: h(t - 1), LSTM: c(t - 1)
  };

  __device__ bool here() const { return place_.unit < p_.H; }
  __device__ int64_t at_state() const { return place_.b * p_.H + place_.unit; }
  __device__ int64_t time(int64_t k) const { return p_.reverse ? k : p_.T - 1 - k; }
  // The unit whose r-th products this thread makes, or has a part in.
  __device__ int row(int r) const { return (int(threadIdx.x) + r * Shape::kThreads) / kParts; }

  // What forward has left of a step, two steps before it is needed.
  __device__ Saved fetch(int64_t k) const {
    Saved saved = {};
    if (k >= p_.T || !here()) return saved;
    const int64_t t = time(k), b = place_.b, u = place_.unit;
    if (p_.dy.data) saved.dy = p_.dy.at(t, b)[u];
#pragma unroll
    for (int g = 0; g < G; ++g) saved.gates[g] = p_.gates.at(t, b)[g * p_.H + u];
    const float* initial = kGru ? p_.h0 : p_.c0;
    saved.before = k + 1 == p_.T ? initial[at_state()] : (kGru ? p_.y : p_.c).at(time(k + 1), b)[u];
    return saved;
  }

  // What of dh(t) comes through the products of the step after it; LSTM: from the end, dhn.
  __device__ float receive(int64_t k) const {
    if (k == 0) return !kGru && p_.dhn && here() ? p_.dhn[at_state()] : 0;
    if constexpr (Shape::kCluster == 1) {
      return product_;
    } else {
      const int buffer = int((k - 1) % 2);
      mbarrier_wait(memory_.arrived + buffer, unsigned((k - 1) / 2 % 2));
      float dh = 0;
#pragma unroll
      for (int i = 0; i < (Shape::kCluster + L - 1) / L; ++i) {
        const int from = i * L + place_.lane;
        if (from < Shape::kCluster) dh += memory_.received[buffer][from][place_.own];
      }
      return sum_of_lanes<L>(dh);
    }
  }

  // From dh(t), or what comes of it by products, the gates' gradients: r, z, n, q or i, f, g, o.
  __device__ void update(float dh, const Saved& saved, float (&da)[4]) {
    const auto& gates = saved.gates;
    dh += saved.dy;
    if constexpr (kGru) {
      const float n = gru_candidate<float>(gates[1], saved.before, state_);
      const auto g =
          gru_gates_backward<float>(dh + carried_, gates[0], gates[1], n, gates[2], saved.before);
      da[0] = g.da_r;
      da[1] = g.da_z;
      da[2] = g.da_n;
      da[3] = g.dq;
      carried_ = g.dh_prev;
    } else {
      const auto g = lstm_gates_backward<float>(dh, carried_, gates[0], gates[1], gates[2],
                                                gates[3], saved.before, tanh(state_));
      da[0] = g.da_i;
      da[1] = g.da_f;
      da[2] = g.da_g;
      da[3] = g.da_o;
      carried_ = g.dc_prev;
    }
    state_ = saved.before;
  }

  // Those that W_hh multiplies, a GRU's n being q's, for all of the block's warps. What lies beyond
  // the last unit is zero even where infinity is about: it meets weights of zero.
  __device__ void leave(int buffer, const float (&da)[4]) const {
    const float of[] = {da[0], da[1], da[kGru ? 3 : 2], da[3]};
    const float mine = of_lane(of, place_.lane);
    if (place_.lane < G)
      memory_.gradients[buffer][place_.lane * U + place_.own] = here() ? mine : 0;
    __syncthreads();
  }

  __device__ void multiply_and_send(int buffer) {
    float sums[kRows] = {};
    multiply_fours<kParts, kRows, G * U>(
        weights_, reinterpret_cast<const float4*>(memory_.gradients[buffer]), part_, sums);
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      const float sum = sum_of_lanes<kParts>(sums[r]);
      if constexpr (Shape::kCluster > 1) {
        float* to = memory_.received[buffer][place_.rank];
        const float4 four = four_of_lanes<kParts>(sum);
        const int lane = int(threadIdx.x) % 32, first = row(r) - lane / kParts + 4 * lane;
        if (lane < 8 / kParts)
          store_async(reinterpret_cast<float4*>(to + first % U), four, memory_.arrived + buffer,
                      unsigned(first / U));
      } else {  // a unit's products are made by its own lanes
        static_assert(kParts == L && kRows == 1);
        product_ = sum;
      }
    }
    if (threadIdx.x == 0 && Shape::kCluster > 1)
      mbarrier_arrive_expect(memory_.arrived + buffer, Shape::kCluster * U * sizeof(float));
  }

  __device__ void store(int64_t k, const float (&da)[4]) const {
    const int64_t t = time(k), b = place_.b, u = place_.unit;
    float* dgates = p_.dgates.at(t, b) + u;
    const float mine = of_lane(da, place_.lane);
    if (place_.lane < 4) dgates[kGru && place_.lane == 3 ? p_.dq : place_.lane * p_.H] = mine;
    if (p_.previous.data && place_.lane == 0)
      p_.previous.at(t, b)[u] = k + 1 == p_.T ? p_.h0[at_state()] : p_.y.at(time(k + 1), b)[u];
  }

  const LatencyBackward& p_;
  LatencyBackwardMemory<Shape>& memory_;
  const LatencyPlace<Shape> place_;
  const int part_ = int(threadIdx.x) % kParts;
  float weights_[kRows][G * U / kParts];
  float carried_ = 0;  // GRU: what of dh(t) reaches h(t - 1) directly, LSTM: dc(t)
  float state_ = 0;    // GRU: h(t), LSTM: c(t)
  float product_ = 0;  // a lone block's
};

template <class Shape>
__global__ void __launch_bounds__(Shape::kThreads, 1)
    latency_backward_kernel(const __grid_constant__ Directions<LatencyBackward> all) {
  if constexpr (Shape::exists()) {
    GATEDRNN_SHARED(LatencyBackwardMemory<Shape>, memory, 1);
    LatencyBackwardWalk<Shape>(all.direction[blockIdx.y], memory[0]).run();
  } else {
    __trap();
  }
}

}  // namespace gatedrnn::cuda
