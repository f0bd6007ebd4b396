// All steps of a sequence forward in one launch (latency.h):
//
//   blockIdx.x   Shape::kCluster blocks for each sequence
//   blockIdx.y   direction
//
//   step k     h(k)  [units] of float32, whole in each block                    buffer k % 2
//                |    a unit's lanes: all of its gates' rows, each a part of k
//              gates -> four units of h(k + 1) a warp -> every block            buffer (k + 1) % 2
//
// A block's mbarrier of a buffer counts the bytes of all blocks' units, its own among them. Two
// buffers suffice: who sends h(k + 2) has all of h(k + 1), each part of which was sent by a warp
// that had read h(k) before. A lone block meets in __syncthreads, on any architecture.
#pragma once

#include "latency.h"

namespace gatedrnn::cuda {

struct LatencyForward {
  int64_t T, H;
  bool reverse;
  Strided<const float> projected;  // (T, B, G*H) W_ih x
  const float* w_hh;               // [G*H, H]
  const float *b_ih, *b_hh;        // [G*H] or null
  const float *h0, *c0;            // [B, H]
  Strided<float> y;                // (T, B, H)
  Strided<float> gates;            // (T, B, G*H) or null
  Strided<float> c;                // (T, B, H) LSTM; kept in training
  float *hn, *cn;                  // [B, H]
};

template <class Shape>
class LatencyForwardWalk {
 public:
  static constexpr int kUnits = Shape::kShape.units, G = Shape::G, L = Shape::L;
  // What a step leaves of a unit, an array each: gates, y; LSTM: c. Its lanes share the storing.
  static constexpr int kOutputs = Shape::kGru ? 4 : 6, kOfLane = (kOutputs + L - 1) / L;

  __device__ LatencyForwardWalk(const LatencyForward& p, float* states, uint64_t* arrived)
      : p_(p), states_(states), arrived_(arrived) {
#pragma unroll
    for (int g = 0; g < G; ++g)
#pragma unroll
      for (int j = 0; j < kUnits / L; ++j) {
        const int64_t k = (j / 4 * L + place_.lane) * 4 + j % 4;
        weights_[g][j] = here() && k < p.H ? p.w_hh[(g * p.H + place_.unit) * p.H + k] : 0;
      }
    if (here()) {
      carried_ = (Shape::kGru ? p.h0 : p.c0)[place_.b * p.H + place_.unit];
      find_lane();
    }
    if (threadIdx.x == 0 && Shape::kCluster > 1)
      for (int buffer = 0; buffer < 2; ++buffer) mbarrier_init(arrived + buffer, 1);
    for (int u = int(threadIdx.x); u < kUnits; u += Shape::kThreads)
      states[u] = u < p.H ? p.h0[place_.b * p.H + u] : 0;
    sync_all<Shape>();
  }

  __device__ void run() {
    chaos_of_start();
    float next = fetch(0), later = fetch(1), h = 0;
#pragma unroll 1
    for (int64_t k = 0; k < p_.T; ++k) {
      chaos(k, 0);
      const float x = next + bias_;
      next = later;
      later = fetch(k + 2);
      float sums[G];
#pragma unroll
      for (int g = 0; g < G; ++g) sums[g] = place_.lane == lane_of(g) ? x : 0;
      if (k > 0) await_state(k);
      multiply_fours<L, G, kUnits>(
          weights_, reinterpret_cast<const float4*>(states_ + k % 2 * kUnits), place_.lane, sums);
#pragma unroll
      for (int g = 0; g < G; ++g) sums[g] = sum_of_lanes<L>(sums[g]);
      float left[kOutputs];
      h = update(sums, x, left);
      if (k + 1 < p_.T) send(int((k + 1) % 2), h);
      store(k, left);
    }
    if (!here() || place_.lane > 0) return;
    const int64_t at = place_.b * p_.H + place_.unit;
    p_.hn[at] = h;
    if (!Shape::kGru) p_.cn[at] = carried_;
  }

 private:
  struct Lane {
    float* data;
    int64_t step;
  };

  __device__ bool here() const { return place_.unit < p_.H; }
  __device__ int64_t time(int64_t k) const { return p_.reverse ? p_.T - 1 - k : k; }

  // Each lane adds a bias and a pre-activation, of its gate, to the sum that the lanes make; a
  // GRU's lane 2 keeps those of n, to which r * q is added later, and lane 3 has q's bias.
  static __device__ constexpr int lane_of(int g) { return Shape::kGru && g == 2 ? 3 : g; }

  __device__ void find_lane() {
    const int64_t H = p_.H, b = place_.b, u = place_.unit;
    const int lane = place_.lane;
    const auto bias = [&](const float* from, int g) { return from ? from[g * H + u] : 0; };
    if (lane < G) {
      projected_ = p_.projected.at(0, b) + lane * H + u;
      bias_ = bias(p_.b_ih, lane) + (lane == lane_of(lane) ? bias(p_.b_hh, lane) : 0);
    } else if (Shape::kGru && lane == 3) {
      bias_ = bias(p_.b_hh, 2);
    }
#pragma unroll
    for (int i = 0; i < kOfLane; ++i) {
      const int which = lane + i * L;
      if (which == G)
        out_[i] = {p_.y.at(0, b) + u, p_.y.step};
      else if (p_.gates.data && which < G)
        out_[i] = {p_.gates.at(0, b) + which * H + u, p_.gates.step};
      else if (p_.gates.data && which < kOutputs)
        out_[i] = {p_.c.at(0, b) + u, p_.c.step};
    }
  }

  // Two steps before it is needed.
  __device__ float fetch(int64_t k) const {
    return projected_ && k < p_.T ? projected_[time(k) * p_.projected.step] : 0;
  }

  __device__ void await_state(int64_t k) const {
    if constexpr (Shape::kCluster > 1)
      mbarrier_wait(arrived_ + k % 2, unsigned((k - 1) / 2 % 2));
    else
      __syncthreads();
  }

  // From the gates' sums to the state.
  __device__ float update(const float (&sums)[G], float x, float (&left)[kOutputs]) {
    if constexpr (Shape::kGru) {
      const float x_n = __shfl_sync(~0u, x, 2, L);
      const auto cell = gru_gates<float>(sums[0], sums[1], x_n, sums[2], carried_);
      left[0] = cell.r;
      left[1] = cell.z;
      left[2] = sums[2];
      return left[3] = carried_ = cell.h;
    } else {
      const auto cell = lstm_gates<float>(sums[0], sums[1], sums[2], sums[3], carried_);
      left[0] = cell.i;
      left[1] = cell.f;
      left[2] = cell.g;
      left[3] = cell.o;
      left[5] = carried_ = cell.c;
      return left[4] = cell.h;
    }
  }

  // What lies beyond the last unit is zero even where infinity is about: it meets weights of zero.
  __device__ void send(int buffer, float h) const {
    float* to = states_ + buffer * kUnits;
    h = here() ? h : 0;
    if constexpr (Shape::kCluster > 1) {
      const float4 four = four_of_lanes<L>(h);
      const unsigned peer = threadIdx.x % 32;
      if (peer < unsigned(Shape::kCluster))
        store_async(reinterpret_cast<float4*>(to + place_.unit / 4 * 4), four, arrived_ + buffer,
                    peer);
      if (threadIdx.x == 0) mbarrier_arrive_expect(arrived_ + buffer, kUnits * sizeof(float));
    } else if (place_.lane == 0) {
      to[place_.unit] = h;
    }
  }

  __device__ void store(int64_t k, const float (&left)[kOutputs]) const {
#pragma unroll
    for (int i = 0; i < kOfLane; ++i) {
      const float mine = of_lane(left, place_.lane + i * L);
      if (out_[i].data) out_[i].data[time(k) * out_[i].step] = mine;
    }
  }

  const LatencyForward& p_;
  float* const states_;      // [2][kUnits]
  uint64_t* const arrived_;  // [2]
  const LatencyPlace<Shape> place_;
  float weights_[G][kUnits / L];
  const float* projected_ = nullptr;
  float bias_ = 0;
  Lane out_[kOfLane] = {};
  float carried_ = 0;  // GRU: h, LSTM: c
};

template <class Shape>
__global__ void __launch_bounds__(Shape::kThreads, 1)
    latency_forward_kernel(const __grid_constant__ Directions<LatencyForward> all) {
  if constexpr (Shape::exists()) {
    GATEDRNN_SHARED(float4, states, 2 * Shape::kShape.units / 4);
    GATEDRNN_SHARED(uint64_t, arrived, 2);
    LatencyForwardWalk<Shape>(all.direction[blockIdx.y], &states[0].x, arrived).run();
  } else {
    __trap();
  }
}

}  // namespace gatedrnn::cuda
