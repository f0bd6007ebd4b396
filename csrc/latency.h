// The shapes of the latency kernels: constants for the kernels, data for the plan.
#pragma once

#include "params.h"

namespace gatedrnn {

// A cluster of blocks holds a whole recurrent matrix, padded to `units`, in its registers as
// float32, and walks all steps of one sequence. A block owns the units that its threads are for,
// `lanes` of a warp each.
struct LatencyShape {
  Cell cell;
  int units;

  static constexpr int kThreads = 256;
  constexpr int gates() const { return cell == Cell::gru ? 3 : 4; }
  constexpr int cluster() const { return units <= 64 ? 1 : units / 32; }
  constexpr int owned() const { return units / cluster(); }
  constexpr int lanes() const { return kThreads / owned(); }
  // 90 for compute capability 9.0. Compiled for 120, the largest shape lacks registers.
  constexpr bool runs_on(int architecture) const {
    return cluster() == 1 || (architecture >= 90 && (units < 512 || architecture < 120));
  }
};

constexpr LatencyShape kLatencyShapes[] = {
    {Cell::gru, 64},  {Cell::gru, 128},  {Cell::gru, 256},  {Cell::gru, 512},
    {Cell::lstm, 64}, {Cell::lstm, 128}, {Cell::lstm, 256},
};

}  // namespace gatedrnn
