// One step of a cell as an op receives it.
#pragma once

#include "torch.h"

namespace gatedrnn {

struct Step {
  Cell cell;
  int64_t B, I, H, G;
};

inline Step step_of(Cell cell, const Tensor& x, const Tensor& h, const Tensor& w_ih,
                    const Tensor& w_hh, const OptionalTensor& b_ih, const OptionalTensor& b_hh,
                    Device device) {
  const ScalarType type = x.scalar_type();
  expect_type(type, device == Device::cuda);
  expect(x.dim() == 2 && h.dim() == 2, "expected 2-D input and state");
  const Step s{cell, x.size(0), x.size(1), h.size(1), cell == Cell::gru ? 3 : 4};
  check(h, "h", type, {s.B, s.H});
  check(w_ih, "w_ih", type, {s.G * s.H, s.I});
  check(w_hh, "w_hh", type, {s.G * s.H, s.H});
  if (b_ih) check(*b_ih, "b_ih", type, {s.G * s.H});
  if (b_hh) check(*b_hh, "b_hh", type, {s.G * s.H});
  return s;
}

// Checks what backward has besides.
inline void check_step(const Step& s, ScalarType type, const Tensor& saved,
                       const OptionalTensor& dh, const OptionalTensor& dc,
                       const OptionalTensor& c) {
  check(saved, "saved", type, {s.B, (s.cell == Cell::gru ? 4 : 5) * s.H});
  if (dh) check(*dh, "dh", type, {s.B, s.H});
  if (dc) check(*dc, "dc", type, {s.B, s.H});
  if (c) check(*c, "c", type, {s.B, s.H});
}

struct StepGradients {
  Tensor dx, dh, dc;
  Tensors dweights;
};

// The gradients that follow from those of the gates by one general matrix product each. `direct` is
// GRU: what reaches h beside the product; LSTM: dc.
inline StepGradients products_of(const Step& s, const Tensor& dgates_x, const Tensor& dgates_h,
                                 const Tensor& direct, const Tensor& x, const Tensor& h,
                                 const Tensor& w_ih, const Tensor& w_hh, bool bias, bool need_input,
                                 bool need_weights) {
  StepGradients out;
  out.dc = direct;
  out.dx = need_input ? mm(dgates_x, w_ih) : empty(x, {0});
  out.dh = mm(dgates_h, w_hh);
  if (s.cell == Cell::gru) out.dh = add(out.dh, direct);
  if (!need_weights) return out;
  out.dweights.push_back(mm(transposed(dgates_x), x));
  out.dweights.push_back(mm(transposed(dgates_h), h));
  if (bias) {
    out.dweights.push_back(torch::stable::sum(dgates_x, std::vector<int64_t>{0}));
    out.dweights.push_back(torch::stable::sum(dgates_h, std::vector<int64_t>{0}));
  }
  return out;
}

}  // namespace gatedrnn
