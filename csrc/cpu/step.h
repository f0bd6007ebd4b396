// One step of a cell on the CPU: shares the work among the threads. Torch-free, as layer.h.
#pragma once

#include "../plan.h"
#include "kernels.h"

namespace gatedrnn {

template <class Real>
void cell_forward_cpu(const InstructionSet& set, const CellForward<Real>& p,
                      const Parallel& parallel);

// p.dgates_x and p.dgates_h are set here.
template <class Real>
void cell_backward_cpu(const InstructionSet& set, CellBackward<Real> p, const Parallel& parallel);

// One of the two products of such a step alone.
template <class Real>
void product_backward_cpu(const InstructionSet& set, ProductBackward<Real> p, bool few,
                          const Parallel& parallel);

}  // namespace gatedrnn
