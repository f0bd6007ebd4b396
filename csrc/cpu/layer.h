// One layer on the CPU: packs the weights, shares the work among the threads, runs the time loops.
// Torch-free, so that the torch binding and the NumPy module run the very same code.
#pragma once

#include <cstddef>

#include "../plan.h"
#include "kernels.h"

namespace gatedrnn {

// Elements of Real that `workspace` must offer below.
template <class Real, class Stored>
int64_t forward_workspace(const InstructionSet& set, const Plan& plan,
                          const Forward<Real, Stored>* directions, int D);
template <class Real, class Stored>
int64_t backward_workspace(const InstructionSet& set, const Plan& plan,
                           const Backward<Real, Stored>* directions, int D);

// directions[D]: one struct a direction, equal in all sizes.
template <class Real, class Stored>
void layer_forward_cpu(const InstructionSet& set, const Plan& plan,
                       const Forward<Real, Stored>* directions, int D, Real* workspace,
                       const Parallel& parallel);
template <class Real, class Stored>
void layer_backward_cpu(const InstructionSet& set, const Plan& plan,
                        const Backward<Real, Stored>* directions, int D, Real* workspace,
                        const Parallel& parallel);
}  // namespace gatedrnn
