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
// The two halves of layer_forward_cpu, for who walks more than once with the same weights, each
// time with the same workspace: what depends on the weights alone, and the rest.
template <class Real, class Stored>
void pack_forward_cpu(const InstructionSet& set, const Plan& plan,
                      const Forward<Real, Stored>* directions, int D, Real* workspace,
                      const Parallel& parallel);
template <class Real, class Stored>
void walk_forward_cpu(const InstructionSet& set, const Plan& plan,
                      const Forward<Real, Stored>* directions, int D, Real* workspace,
                      const Parallel& parallel);
template <class Real, class Stored>
void layer_backward_cpu(const InstructionSet& set, const Plan& plan,
                        const Backward<Real, Stored>* directions, int D, Real* workspace,
                        const Parallel& parallel);
}  // namespace gatedrnn
