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

// p.c = p.a w^T, with w [N, K]. The workspace takes its panels.
template <class Real>
int64_t multiply_workspace(const InstructionSet& set, int64_t K, int64_t N);
template <class Real, class Stored>
void multiply_cpu(const InstructionSet& set, Multiply<Real> p, const Stored* w, Real* workspace,
                  int64_t threads, const Parallel& parallel);

// The rows of x one after another, as Real.
template <class Real, class Stored>
void widen_input_cpu(const InstructionSet& set, const Sizes& p, const Rows<const Stored>& x,
                     Real* to, const Parallel& parallel);
}  // namespace gatedrnn
