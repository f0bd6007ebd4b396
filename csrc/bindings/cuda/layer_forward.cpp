// A layer's forward op on CUDA tensors: the input's projection by one matrix product a direction,
// unless the time loop does it, then the time loop.
#include <algorithm>
#include <tuple>

#include "device.h"
#include "layer.h"

namespace gatedrnn {
namespace {

struct LayerOutput {
  Tensor y, hn, cn, gates, c;  // cn, c: LSTM; gates and c of all steps: kept for backward
};

template <class Real>
LayerOutput forward(const Layer& l, const OnDevice& on, const Tensor& h0, const OptionalTensor& c0,
                    const OptionalTensor& lengths, bool train, bool tf32) {
  using Wide = typename Types<Real>::Wide;
  const Tensor& x = l.x;
  const bool lstm = l.cell == Cell::lstm;
  const std::vector<int64_t> none{0}, units{l.D, l.B, l.H};
  LayerOutput out;
  out.y = empty(x, l.rows_of(l.D * l.P));
  out.hn = empty(x, {l.D, l.B, l.P});
  out.gates = empty(x, train ? l.rows_of(l.D * l.G * l.H) : none);
  out.cn = empty(x, lstm ? units : none);
  // Inference needs the cell state of one step only.
  out.c = empty_of<Wide>(x, !lstm ? none : train ? l.rows_of(l.D * l.H) : units);
  if (l.B == 0) return out;

  const Tensor h = contiguous_of(h0);
  const OptionalTensor c = contiguous_of(c0);
  const bool narrow = sizeof(Real) < sizeof(Wide);
  const Tensor carry = empty_of<Wide>(x, narrow && !lstm ? units : none);
  const Tensor hidden = empty(x, l.projected ? units : none);
  const UnevenRows uneven(l, lengths, on);
  const CudaPlan plan = plan_of<Real>(l, on, tf32, uneven.padded());
  const InputRows input = plan.projects ? InputRows{} : input_rows(l, l.x);
  const int64_t packed_each = scratch_size(l.G, plan, l.B, true);
  const Tensor packed = empty_of<float>(x, {l.D * packed_each});
  Tensor projected[2];
  CudaForward<Real> p[2] = {};
  for (int d = 0; d < l.D; ++d) {
    static_cast<Sizes&>(p[d]) = l.sizes(d);
    p[d].cell = l.cell;
    if (plan.projects) {
      p[d].x = l.input<Real>();
      p[d].w_ih = pointer<Real>(l.w_ih(d));
    } else {
      p[d].projected = input_projection<Real>(l, input, d, tf32 && on.has_tf32(), projected[d]);
    }
    p[d].w_hh = pointer<Real>(l.w_hh(d));
    p[d].b_ih = pointer<Real>(l.b_ih(d));
    p[d].b_hh = pointer<Real>(l.b_hh(d));
    p[d].w_hr = pointer<Real>(l.w_hr(d));
    p[d].h0 = pointer<Real>(h) + d * l.B * l.P;
    p[d].y = l.at(writable<Real>(out.y), l.D * l.P, d * l.P);
    p[d].hn = writable<Real>(out.hn) + d * l.B * l.P;
    p[d].packed = writable<float>(packed) + d * packed_each;
    p[d].uneven = uneven.pointers();
    if (train) p[d].gates = l.at(writable<Real>(out.gates), l.D * l.G * l.H, d * l.G * l.H);
    if (narrow && !lstm) p[d].carry = writable<Wide>(carry) + d * l.B * l.H;
    if (l.projected) p[d].hidden = {writable<Real>(hidden) + d * l.B * l.H, 0, l.H, nullptr};
    if (lstm) {
      p[d].c0 = pointer<Real>(c) + d * l.B * l.H;
      p[d].cn = writable<Real>(out.cn) + d * l.B * l.H;
      if (train)
        p[d].c = l.at(writable<Wide>(out.c), l.D * l.H, d * l.H);
      else
        p[d].c = {writable<Wide>(out.c) + d * l.B * l.H, 0, l.H, nullptr};
    }
  }
  expect_launched(layer_forward_cuda(plan, p, l.D, on.stream));
  uneven.zero_padding<Real>(out.y);
  if (lstm && train) uneven.zero_padding<Wide>(out.c);
  if (!train) out.c = empty_of<Wide>(x, none);
  return out;
}

LayerOutput forward(const Layer& l, const Tensor& h0, const OptionalTensor& c0,
                    const Tensors& weights, const OptionalTensor& lengths, bool train, bool tf32) {
  const OnDevice on(l.x, {h0, c0, lengths}, weights);
  check_lengths(l, lengths);
  return with_storage_of(
      l.x, [&]<class Real>() { return forward<Real>(l, on, h0, c0, lengths, train, tf32); });
}

std::tuple<Tensor, Tensor, Tensor> gru_forward_cuda(const Tensor& x, const Tensor& h0,
                                                    const Tensors& weights, bool bias,
                                                    const OptionalTensor& batch_sizes, bool train,
                                                    bool tf32, const OptionalTensor& lengths) {
  const Layer l = layer_of(Cell::gru, x, h0, weights, bias, batch_sizes);
  LayerOutput out = forward(l, h0, std::nullopt, weights, lengths, train, tf32);
  return {out.y, out.hn, out.gates};
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> lstm_forward_cuda(
    const Tensor& x, const Tensor& h0, const Tensor& c0, const Tensors& weights, bool bias,
    const OptionalTensor& batch_sizes, bool train, bool tf32, const OptionalTensor& lengths) {
  const Layer l = layer_of(Cell::lstm, x, h0, weights, bias, batch_sizes);
  check(c0, "c0", x.scalar_type(), {l.D, l.B, l.H});
  LayerOutput out = forward(l, h0, c0, weights, lengths, train, tf32);
  return {out.y, out.hn, out.cn, out.gates, out.c};
}

bool takes_lengths_cuda(const Tensor& x, const Tensor& h0, int64_t gates, bool tf32) {
  const OnDevice on(x, {h0});
  const CudaPlan plan =
      cuda_plan_of({x.size(0), x.size(1), x.size(2), h0.size(2), h0.size(2), int(gates),
                    int(h0.size(0)), type_of(x.scalar_type()), tf32, true, on.device.architecture,
                    on.device.multiprocessors, on.device.clusters});
  return plan.persistent_forward.units && plan.persistent_backward.units;
}

}  // namespace
}  // namespace gatedrnn

STABLE_TORCH_LIBRARY_IMPL(GATEDRNN_OPS, GATEDRNN_CUDA_KEY, m) {
  m.impl("gru_forward", TORCH_BOX(&gatedrnn::gru_forward_cuda));
  m.impl("lstm_forward", TORCH_BOX(&gatedrnn::lstm_forward_cuda));
  m.impl("takes_lengths", TORCH_BOX(&gatedrnn::takes_lengths_cuda));
}
