// Delays that should change nothing: with -DGATEDRNN_CHAOS every warp of a persistent kernel stops
// for a random time before some of its steps, and neighbouring blocks start one after the other.
// Results that differ from run to run then show a wait that is missing.
#pragma once

#include "device.h"

namespace gatedrnn::cuda {

#ifdef GATEDRNN_CHAOS

#ifdef GATEDRNN_EMULATE
inline unsigned time_of_day() { return 0; }
#else
__device__ inline unsigned time_of_day() { return unsigned(clock64()); }
#endif

// Up to 2 us, in a quarter of the steps.
__device__ inline void chaos(int64_t step, int tile) {
  unsigned x = unsigned(step * 64 + tile) * 2654435761u ^ (threadIdx.x / 32 + 1) * 40503u ^
               (blockIdx.x + 1) * 2246822519u ^ time_of_day();
  x = (x ^ x >> 15) * 739982445u;
  if (x >> 30 == 0) __nanosleep(x >> 8 & 2047);
  __syncwarp();
}

__device__ inline void chaos_of_start() {
  for (unsigned i = 0; i < blockIdx.x % 16 * 4; ++i) __nanosleep(1000);
}

#else

__device__ inline void chaos(int64_t, int) {}
__device__ inline void chaos_of_start() {}

#endif

}  // namespace gatedrnn::cuda
