// What the forward and the backward op of a layer share on CUDA tensors.
#pragma once

#include "../../grid.h"
#include "../layer.h"
#include "../plans.h"
#include "device.h"
#include "gemm.h"

namespace gatedrnn {

// Sequences of several lengths, as the kernels want them.
class UnevenRows {
 public:
  UnevenRows(const Layer& l, const OptionalTensor& lengths, const OnDevice& on)
      : l_(l), stream_(on.stream) {
    if (l.packed())
      places_ = torch::stable::new_empty(l.x, {l.T + l.B}, ScalarType::Long);
    else if (lengths)
      lengths_ = contiguous_of(*lengths), order_ = descending(lengths_);
  }

  bool padded() const { return lengths_.defined(); }
  Uneven pointers() const {
    if (padded()) return {pointer<int64_t>(lengths_), pointer<int64_t>(order_), nullptr};
    return {nullptr, nullptr, places_.defined() ? writable<int64_t>(places_) : nullptr};
  }
  // `rows`: contiguous, one for each step and sequence.
  template <class Real>
  void zero_padding(const Tensor& rows) const {
    const int64_t bytes = rows.numel() / l_.N * int64_t(sizeof(Real));
    if (padded() && bytes)
      expect_launched(zero_padding_cuda(rows.mutable_data_ptr(), bytes, l_.T, l_.B,
                                        pointer<int64_t>(lengths_), stream_));
  }

 private:
  const Layer& l_;
  void* const stream_;
  Tensor lengths_, order_, places_;
};

// Padded lengths are taken by persistent kernels alone, faster or not.
template <class Real>
CudaPlan plan_of(const Layer& l, const OnDevice& on, bool tf32, bool padded) {
  CudaProblem problem{l.T,
                      l.B,
                      l.I,
                      l.H,
                      l.P,
                      l.G,
                      l.D,
                      type_of<Real>(),
                      tf32,
                      padded || l.packed(),
                      on.device.architecture,
                      on.device.multiprocessors,
                      on.device.clusters};
  if (padded) problem.kernels = KernelChoice::persistent;
  const CudaPlan plan = cuda_plan_of(problem);
  expect(!padded || (plan.persistent_forward.units && plan.persistent_backward.units),
         "no kernel takes lengths for this layer");
  return plan;
}

inline void check_lengths(const Layer& l, const OptionalTensor& lengths) {
  expect(!lengths || !l.packed(), "packed data has no further lengths");
  if (lengths) check(*lengths, "lengths", ScalarType::Long, {l.B});
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

// W_ih x of all steps, (T, B, G*H) in the order of x's rows in memory, without bias.
template <class Real>
Rows<const typename Types<Real>::Wide> input_projection(const Layer& l, const InputRows& x, int d,
                                                        bool tf32, Tensor& out) {
  using Wide = typename Types<Real>::Wide;
  const int64_t N = l.G * l.H;
  out = empty_of<Wide>(l.x, {l.N, N});
  Wide* data = writable<Wide>(out);
  gemm({l.N, N, l.I, x.x.const_data_ptr(), x.stride, false, l.w_ih(d).const_data_ptr(), l.I, true,
        data, N, type_of<Real>(), type_of<Wide>(), false, tf32});
  if (x.time_major) return l.at<const Wide>(data, N);
  return {data, N, l.T * N, nullptr};
}

}  // namespace gatedrnn
