// How a warp reads from L2 what other blocks are about to write there.
#pragma once

#include "persistent.h"

namespace gatedrnn::cuda {

// Reads `count` arrays of 16 bytes a lane, in order, some ahead; use(i, fragment) once none of a
// warp's i-th is stale. `count`, at most kMost, is the whole warp's.
template <int kMost, class Load, class Stale, class Use>
__device__ inline void read_all(const Fragment* from, int count, Load load, Stale stale, Use use) {
  constexpr int kAhead = 6;
  Fragment window[kAhead];
#pragma unroll
  for (int a = 0; a < kAhead; ++a)
    if (a < count) load(window[a].word, from + a * 32);
#pragma unroll
  for (int i = 0; i < kMost; ++i) {
    if (i == count) break;
    while (__any_sync(~0u, stale(window[i % kAhead].word))) {
      look_again();
#pragma unroll
      for (int a = 0; a < kAhead; ++a)
        if (i + a < count) load(window[(i + a) % kAhead].word, from + (i + a) * 32);
    }
    const Fragment fragment = window[i % kAhead];
    if (i + kAhead < count) load(window[i % kAhead].word, from + (i + kAhead) * 32);
    use(i, fragment);
  }
}

}  // namespace gatedrnn::cuda
