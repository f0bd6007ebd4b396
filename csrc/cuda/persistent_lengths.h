// Sequences of several lengths in the persistent kernels. Each walks from its own first step, the
// reverse direction from its own last one, so that all of them begin together; backward they end
// together. A cluster stops with the longest of its own, which are neighbours in length. Who has
// ended before goes on with zeros that nobody reads: sequences never meet in a product.
//
// Packed data says its lengths by how many sequences each step has, on the host:
// write_places_kernel brings that to the device in its parameters, which no copy waits for and a
// captured graph keeps.
#pragma once

#include "device.h"

namespace gatedrnn::cuda {

struct Lengths {
  const int64_t* of;       // [B], or null: all have T steps
  const int64_t* order;    // [B] the sequences, longest first; null: they are in that order
  const int64_t* offsets;  // [T] packed: the first row of each step; or null

  __device__ int64_t steps(int64_t b, int64_t T) const {
    return of ? max(int64_t(1), min(T, of[b])) : T;
  }
  // The step of Strided rows in which step t lies.
  __device__ int64_t row(int64_t t) const { return offsets ? offsets[t] : t; }
};

// A sequence of a cluster: B, of no steps, where there is none.
struct Column {
  int64_t steps;
  int sequence;
};

// A step of a sequence; its rows are at(t, b) of Strided.
struct Spot {
  int64_t t;
  int b;
  bool here, last;
};

// All of a cluster's columns, for each of its blocks.
template <class Place, class Params>
__device__ inline void find_columns(Column* columns, const Place& place, const Params& p) {
  const int count = p.tiles * Place::kColumns;
  for (int i = int(threadIdx.x); i < count; i += int(blockDim.x)) {
    const int at = place.batch0 + i, batch = place.batch;
    const int b = at < batch && p.lengths.order ? int(p.lengths.order[at]) : min(at, batch);
    columns[i] = {b < batch ? p.lengths.steps(b, p.T) : 0, b};
  }
  __syncthreads();
}

// The s-th step, in forward's order, of a sequence, which is here for those who want it.
template <bool kRagged, class Place, class Params>
__device__ inline Spot find_spot(const Column* columns, const Place& place, const Params& p,
                                 int64_t s, int tile, int column, bool wanted) {
  if constexpr (kRagged) {
    const Column c = columns[tile * Place::kColumns + column];
    const bool here = wanted && s >= 0 && s < c.steps;
    const int64_t t = here ? (p.reverse ? c.steps - 1 - s : s) : 0;
    return {p.lengths.row(t), c.sequence, here, s + 1 == c.steps};
  } else {
    const int b = place.sequence(tile, column);
    return {p.reverse ? p.T - 1 - s : s, b, wanted && b < place.batch, s + 1 == p.T};
  }
}

constexpr int kPlaces = 480;  // a launch's: 4 KB of parameters are what there is
constexpr int kPlacesThreads = 256;

// offsets[first] and those behind it, of which `count` are steps of this launch.
struct Places {
  int64_t offsets[kPlaces + 2];
  int64_t *to, *lengths;  // [T], [B]
  int64_t first, T;
  int count;
};

// Who is among a step's sequences and not among the next one's ends there. Each type's file has a
// kernel of its own.
template <class Real>
__global__ void __launch_bounds__(kPlacesThreads)
    write_places_kernel(const __grid_constant__ Places p) {
  const int lane = int(threadIdx.x) % 32;
  for (int i = int(threadIdx.x) / 32; i < p.count; i += kPlacesThreads / 32) {
    const int64_t t = p.first + i, active = p.offsets[i + 1] - p.offsets[i];
    const int64_t after = t + 1 < p.T ? p.offsets[i + 2] - p.offsets[i + 1] : 0;
    if (lane == 0) p.to[t] = p.offsets[i];
    for (int64_t b = after + lane; b < active; b += 32) p.lengths[b] = t + 1;
  }
}

}  // namespace gatedrnn::cuda
