// Cells on CUDA tensors: the products are torch's, as they are for torch.nn's cells, and so is
// their precision; the gates are ours.
#include <tuple>

#include "../cell.h"
#include "device.h"

namespace gatedrnn {
namespace {

template <class Real>
void forward(const Step& s, const OnDevice& on, const Tensor& x, const Tensor& h_in,
             const OptionalTensor& c_in, const Tensor& w_ih, const Tensor& w_hh,
             const OptionalTensor& b_ih, const OptionalTensor& b_hh, const Tensor& h_next,
             const OptionalTensor& c_next, const Tensor& saved, bool train) {
  const Tensor gates_x = linear(x, w_ih, b_ih), gates_h = linear(h_in, w_hh, b_hh);
  const Tensor h = contiguous_of(h_in);
  const OptionalTensor c = contiguous_of(c_in);
  CudaCellForward<Real> p{};
  p.cell = s.cell;
  p.B = s.B;
  p.H = s.H;
  p.gates_x = pointer<Real>(gates_x);
  p.gates_h = pointer<Real>(gates_h);
  p.h = pointer<Real>(h);
  p.c = pointer<Real>(c);
  p.h_next = writable<Real>(h_next);
  if (c_next) p.c_next = writable<Real>(*c_next);
  if (train) p.saved = writable<Real>(saved);
  if (s.B * s.H > 0) expect_launched(cell_forward_cuda(p, on.stream));
}

std::tuple<Tensor, Tensor> gru_cell_forward_cuda(const Tensor& x, const Tensor& h,
                                                 const Tensor& w_ih, const Tensor& w_hh,
                                                 const OptionalTensor& b_ih,
                                                 const OptionalTensor& b_hh, bool train) {
  const OnDevice on(x, {h, w_ih, w_hh, b_ih, b_hh});
  const Step s = step_of(Cell::gru, x, h, w_ih, w_hh, b_ih, b_hh, Device::cuda);
  const Tensor h_next = empty(x, {s.B, s.H});
  const Tensor saved =
      empty(x, train ? std::vector<int64_t>{s.B, 4 * s.H} : std::vector<int64_t>{0});
  with_storage_of(x, [&]<class Real>() {
    forward<Real>(s, on, x, h, std::nullopt, w_ih, w_hh, b_ih, b_hh, h_next, std::nullopt, saved,
                  train);
  });
  return {h_next, saved};
}

std::tuple<Tensor, Tensor, Tensor> lstm_cell_forward_cuda(const Tensor& x, const Tensor& h,
                                                          const Tensor& c, const Tensor& w_ih,
                                                          const Tensor& w_hh,
                                                          const OptionalTensor& b_ih,
                                                          const OptionalTensor& b_hh, bool train) {
  const OnDevice on(x, {h, c, w_ih, w_hh, b_ih, b_hh});
  const Step s = step_of(Cell::lstm, x, h, w_ih, w_hh, b_ih, b_hh, Device::cuda);
  check(c, "c", x.scalar_type(), {s.B, s.H});
  const Tensor h_next = empty(x, {s.B, s.H}), c_next = empty(x, {s.B, s.H});
  const Tensor saved =
      empty(x, train ? std::vector<int64_t>{s.B, 5 * s.H} : std::vector<int64_t>{0});
  with_storage_of(x, [&]<class Real>() {
    forward<Real>(s, on, x, h, c, w_ih, w_hh, b_ih, b_hh, h_next, c_next, saved, train);
  });
  return {h_next, c_next, saved};
}

template <class Real>
StepGradients backward(const Step& s, const OnDevice& on, const OptionalTensor& dh_in,
                       const OptionalTensor& dc_in, const Tensor& x, const Tensor& h_in,
                       const OptionalTensor& c_in, const Tensor& w_ih, const Tensor& w_hh,
                       bool bias, const Tensor& saved_in, bool need_input, bool need_weights) {
  const bool gru = s.cell == Cell::gru;
  const OptionalTensor dh = contiguous_of(dh_in), dc = contiguous_of(dc_in),
                       c = contiguous_of(c_in);
  const Tensor h = contiguous_of(h_in), saved = contiguous_of(saved_in);
  const Tensor dgates_x = empty(x, {s.B, s.G * s.H});
  const Tensor dgates_h = gru ? empty(x, {s.B, s.G * s.H}) : dgates_x;
  const Tensor direct = empty(x, {s.B, s.H});  // GRU: part of dh; LSTM: dc
  CudaCellBackward<Real> p{};
  p.cell = s.cell;
  p.B = s.B;
  p.H = s.H;
  p.saved = pointer<Real>(saved);
  p.h = pointer<Real>(h);
  p.c = pointer<Real>(c);
  p.dh = pointer<Real>(dh);
  p.dc = pointer<Real>(dc);
  p.dgates_x = writable<Real>(dgates_x);
  p.dgates_h = writable<Real>(dgates_h);
  p.dh_prev = p.dc_prev = writable<Real>(direct);
  if (s.B * s.H > 0) expect_launched(cell_backward_cuda(p, on.stream));
  return products_of(s, dgates_x, dgates_h, direct, x, h, w_ih, w_hh, bias, need_input,
                     need_weights);
}

std::tuple<Tensor, Tensor, Tensors> gru_cell_backward_cuda(const OptionalTensor& dh,
                                                           const Tensor& x, const Tensor& h,
                                                           const Tensor& w_ih, const Tensor& w_hh,
                                                           bool bias, const Tensor& saved,
                                                           bool need_input, bool need_weights) {
  const OnDevice on(x, {dh, h, w_ih, w_hh, saved});
  const Step s = step_of(Cell::gru, x, h, w_ih, w_hh, std::nullopt, std::nullopt, Device::cuda);
  check_step(s, x.scalar_type(), saved, dh, std::nullopt, std::nullopt);
  StepGradients g = with_storage_of(x, [&]<class Real>() {
    return backward<Real>(s, on, dh, std::nullopt, x, h, std::nullopt, w_ih, w_hh, bias, saved,
                          need_input, need_weights);
  });
  return {g.dx, g.dh, g.dweights};
}

std::tuple<Tensor, Tensor, Tensor, Tensors> lstm_cell_backward_cuda(
    const OptionalTensor& dh, const OptionalTensor& dc, const Tensor& x, const Tensor& h,
    const Tensor& c, const Tensor& w_ih, const Tensor& w_hh, bool bias, const Tensor& saved,
    bool need_input, bool need_weights) {
  const OnDevice on(x, {dh, dc, h, c, w_ih, w_hh, saved});
  const Step s = step_of(Cell::lstm, x, h, w_ih, w_hh, std::nullopt, std::nullopt, Device::cuda);
  check_step(s, x.scalar_type(), saved, dh, dc, c);
  StepGradients g = with_storage_of(x, [&]<class Real>() {
    return backward<Real>(s, on, dh, dc, x, h, c, w_ih, w_hh, bias, saved, need_input,
                          need_weights);
  });
  return {g.dx, g.dh, g.dc, g.dweights};
}

}  // namespace
}  // namespace gatedrnn

STABLE_TORCH_LIBRARY_IMPL(GATEDRNN_OPS, GATEDRNN_CUDA_KEY, m) {
  m.impl("gru_cell_forward", TORCH_BOX(&gatedrnn::gru_cell_forward_cuda));
  m.impl("gru_cell_backward", TORCH_BOX(&gatedrnn::gru_cell_backward_cuda));
  m.impl("lstm_cell_forward", TORCH_BOX(&gatedrnn::lstm_cell_forward_cuda));
  m.impl("lstm_cell_backward", TORCH_BOX(&gatedrnn::lstm_cell_backward_cuda));
}
