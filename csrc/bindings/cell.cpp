// Cells: a single step, forward and backward.
#include "cell.h"

#include <tuple>

#include "../cpu/step.h"

namespace gatedrnn {
namespace {

template <class Real>
void forward(const Step& s, const Tensor& x_in, const Tensor& h_in, const OptionalTensor& c_in,
             const Tensor& w_ih_in, const Tensor& w_hh_in, const OptionalTensor& b_ih_in,
             const OptionalTensor& b_hh_in, const Tensor& h_next, const OptionalTensor& c_next,
             const Tensor& saved, bool train) {
  const Tensor x = contiguous_of(x_in), h = contiguous_of(h_in);
  const Tensor w_ih = contiguous_of(w_ih_in), w_hh = contiguous_of(w_hh_in);
  const OptionalTensor c = contiguous_of(c_in), b_ih = contiguous_of(b_ih_in),
                       b_hh = contiguous_of(b_hh_in);
  CellForward<Real> p{};
  p.cell = s.cell;
  p.B = s.B;
  p.I = s.I;
  p.H = s.H;
  p.x = pointer<Real>(x);
  p.h = pointer<Real>(h);
  p.c = pointer<Real>(c);
  p.w_ih = pointer<Real>(w_ih);
  p.w_hh = pointer<Real>(w_hh);
  p.b_ih = pointer<Real>(b_ih);
  p.b_hh = pointer<Real>(b_hh);
  p.h_next = writable<Real>(h_next);
  if (c_next) p.c_next = writable<Real>(*c_next);
  if (train) p.saved = writable<Real>(saved);
  cell_forward_cpu(instruction_set(), p, torch_threads());
}

std::tuple<Tensor, Tensor> gru_cell_forward_cpu(const Tensor& x, const Tensor& h,
                                                const Tensor& w_ih, const Tensor& w_hh,
                                                const OptionalTensor& b_ih,
                                                const OptionalTensor& b_hh, bool train) {
  const Step s = step_of(Cell::gru, x, h, w_ih, w_hh, b_ih, b_hh, Device::cpu);
  const Tensor h_next = empty(x, {s.B, s.H});
  const Tensor saved =
      empty(x, train ? std::vector<int64_t>{s.B, 4 * s.H} : std::vector<int64_t>{0});
  const auto run = x.scalar_type() == ScalarType::Float ? forward<float> : forward<double>;
  run(s, x, h, std::nullopt, w_ih, w_hh, b_ih, b_hh, h_next, std::nullopt, saved, train);
  return {h_next, saved};
}

std::tuple<Tensor, Tensor, Tensor> lstm_cell_forward_cpu(const Tensor& x, const Tensor& h,
                                                         const Tensor& c, const Tensor& w_ih,
                                                         const Tensor& w_hh,
                                                         const OptionalTensor& b_ih,
                                                         const OptionalTensor& b_hh, bool train) {
  const Step s = step_of(Cell::lstm, x, h, w_ih, w_hh, b_ih, b_hh, Device::cpu);
  check(c, "c", x.scalar_type(), {s.B, s.H});
  const Tensor h_next = empty(x, {s.B, s.H}), c_next = empty(x, {s.B, s.H});
  const Tensor saved =
      empty(x, train ? std::vector<int64_t>{s.B, 5 * s.H} : std::vector<int64_t>{0});
  const auto run = x.scalar_type() == ScalarType::Float ? forward<float> : forward<double>;
  run(s, x, h, c, w_ih, w_hh, b_ih, b_hh, h_next, c_next, saved, train);
  return {h_next, c_next, saved};
}

template <class Real>
StepGradients backward(const Step& s, const OptionalTensor& dh_in, const OptionalTensor& dc_in,
                       const Tensor& x_in, const Tensor& h_in, const OptionalTensor& c_in,
                       const Tensor& w_ih_in, const Tensor& w_hh_in, bool bias,
                       const Tensor& saved_in, bool need_input, bool need_weights) {
  const OptionalTensor dh = contiguous_of(dh_in), dc = contiguous_of(dc_in),
                       c = contiguous_of(c_in);
  const Tensor x = contiguous_of(x_in), h = contiguous_of(h_in), saved = contiguous_of(saved_in);
  const Tensor w_ih = contiguous_of(w_ih_in), w_hh = contiguous_of(w_hh_in);
  StepGradients out;
  out.dx = empty(x, need_input ? std::vector<int64_t>{s.B, s.I} : std::vector<int64_t>{0});
  out.dh = empty(x, {s.B, s.H});
  if (s.cell == Cell::lstm) out.dc = empty(x, {s.B, s.H});
  const int64_t N = s.G * s.H;
  if (need_weights) out.dweights = {empty(x, {N, s.I}), empty(x, {N, s.H})};
  if (need_weights && bias) out.dweights.insert(out.dweights.end(), {empty(x, {N}), empty(x, {N})});
  CellBackward<Real> p{};
  p.cell = s.cell;
  p.B = s.B;
  p.I = s.I;
  p.H = s.H;
  p.x = pointer<Real>(x);
  p.h = pointer<Real>(h);
  p.c = pointer<Real>(c);
  p.w_ih = pointer<Real>(w_ih);
  p.w_hh = pointer<Real>(w_hh);
  p.saved = pointer<Real>(saved);
  p.dh = pointer<Real>(dh);
  p.dc = pointer<Real>(dc);
  if (need_input) p.dx = writable<Real>(out.dx);
  p.dh_prev = writable<Real>(out.dh);
  if (s.cell == Cell::lstm) p.dc_prev = writable<Real>(out.dc);
  Real** const weights[] = {&p.dw_ih, &p.dw_hh, &p.db_ih, &p.db_hh};
  for (size_t k = 0; k < out.dweights.size(); ++k) *weights[k] = writable<Real>(out.dweights[k]);
  cell_backward_cpu(instruction_set(), p, torch_threads());
  return out;
}

std::tuple<Tensor, Tensor, Tensors> gru_cell_backward_cpu(const OptionalTensor& dh, const Tensor& x,
                                                          const Tensor& h, const Tensor& w_ih,
                                                          const Tensor& w_hh, bool bias,
                                                          const Tensor& saved, bool need_input,
                                                          bool need_weights) {
  const Step s = step_of(Cell::gru, x, h, w_ih, w_hh, std::nullopt, std::nullopt, Device::cpu);
  check_step(s, x.scalar_type(), saved, dh, std::nullopt, std::nullopt);
  const auto run = x.scalar_type() == ScalarType::Float ? backward<float> : backward<double>;
  StepGradients g = run(s, dh, std::nullopt, x, h, std::nullopt, w_ih, w_hh, bias, saved,
                        need_input, need_weights);
  return {g.dx, g.dh, g.dweights};
}

std::tuple<Tensor, Tensor, Tensor, Tensors> lstm_cell_backward_cpu(
    const OptionalTensor& dh, const OptionalTensor& dc, const Tensor& x, const Tensor& h,
    const Tensor& c, const Tensor& w_ih, const Tensor& w_hh, bool bias, const Tensor& saved,
    bool need_input, bool need_weights) {
  const Step s = step_of(Cell::lstm, x, h, w_ih, w_hh, std::nullopt, std::nullopt, Device::cpu);
  const ScalarType type = x.scalar_type();
  check_step(s, type, saved, dh, dc, c);
  const auto run = type == ScalarType::Float ? backward<float> : backward<double>;
  StepGradients g = run(s, dh, dc, x, h, c, w_ih, w_hh, bias, saved, need_input, need_weights);
  return {g.dx, g.dh, g.dc, g.dweights};
}

}  // namespace
}  // namespace gatedrnn

STABLE_TORCH_LIBRARY_IMPL(gatedrnn, CPU, m) {
  m.impl("gru_cell_forward", TORCH_BOX(&gatedrnn::gru_cell_forward_cpu));
  m.impl("gru_cell_backward", TORCH_BOX(&gatedrnn::gru_cell_backward_cpu));
  m.impl("lstm_cell_forward", TORCH_BOX(&gatedrnn::lstm_cell_forward_cpu));
  m.impl("lstm_cell_backward", TORCH_BOX(&gatedrnn::lstm_cell_backward_cpu));
}
