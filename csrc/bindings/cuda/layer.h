// What the forward and the backward op of a layer share on CUDA tensors.
#pragma once

#include "../../persistent.h"
#include "../layer.h"
#include "../plans.h"
#include "device.h"
#include "gemm.h"

namespace gatedrnn {

template <class Real>
CudaPlan plan_of(const Layer& l, const OnDevice& on, bool tf32) {
  return cuda_plan_of({l.T, l.B, l.I, l.H, l.P, l.G, l.D, type_of<Real>(), tf32,
                       l.packed() != nullptr, on.device.architecture, on.device.multiprocessors,
                       on.device.clusters});
}

// The layer's input as the rows of one matrix.
struct InputRows {
  Tensor x;
  int64_t stride;   // from one row to the next
  bool time_major;  // or batch-first: the rows of a sequence follow each other
};

// Copies only where the rows are not evenly apart. A dimension of size 1 may have any stride.
inline InputRows input_rows(const Layer& l, const Tensor& x) {
  if (l.packed()) {
    if (x.stride(0) >= l.I) return {x, x.stride(0), true};
  } else {
    const int64_t step = x.stride(0), row = x.stride(1);
    const int64_t apart = l.B == 1 ? step : row;
    if (apart >= l.I && (l.B == 1 || l.T == 1 || step == l.B * row)) return {x, apart, true};
    if (step >= l.I && row == l.T * step) return {x, step, false};
  }
  return {contiguous_of(x), l.I, true};
}

}  // namespace gatedrnn
