// The plan of a GPU where kernels have been timed: what was measured goes before what is predicted.
#pragma once

#include <span>

#include "plan.h"

namespace gatedrnn {

// What a kernel took on a GPU, of one direction of a layer, or forward of two layers.
struct Measurement {
  int architecture, multiprocessors;
  int gates;  // 3 or 4
  Type type;
  bool tf32;
  bool backward;
  int layers;  // 1 or 2
  int64_t H, B, T;
  KernelChoice kernel;
  double microseconds;
};

using Measurements = std::span<const Measurement>;

// Of all that was measured; measured_table.h.
extern const Measurements kMeasurements;

// The kernel that took the least time for a pass, of as many layers, or `any`, where nothing was
// measured that speaks for it. What speaks for a problem, on the same kind of device, cell, type
// and precision:
// - the least measured H that is not below the problem's and not above twice that: kernels pad H;
// - in B (two directions are twice as many sequences) and in T the two measured neighbours, between
//   which the logarithm of the time is linear in that of the size; and beyond the longest T, where
//   a step takes as long as there.
// A kernel counts that was measured at all of these, and two at least must count.
KernelChoice fastest_measured(const CudaProblem& problem, bool backward, int layers,
                              Measurements measurements);

// plan_cuda's, but of the fastest kernels where they were measured, unless problem.kernels insists.
CudaPlan plan_cuda_measured(const CudaProblem& problem, Measurements measurements = kMeasurements);

struct StackPlan {
  PersistentPlan walk;  // no units: layer by layer
  Reason reason;
};

// plan_stack's likewise. What two layers took speaks for more of them.
StackPlan plan_stack_measured(const CudaProblem& problem, int layers,
                              Measurements measurements = kMeasurements);

}  // namespace gatedrnn
