// A layer's backward op: allocation, and the call of the driver.
#include <tuple>

#include "layer.h"

namespace gatedrnn {
namespace {

struct LayerGradients {
  Tensor dx, dh0, dc0;
  Tensors dweights;
};

template <class Stored>
LayerGradients backward(const Layer& l, const OptionalTensor& dy_in, const OptionalTensor& dhn_in,
                        const OptionalTensor& dcn_in, const OptionalTensor& dc_in,
                        const Tensor& h0_in, const OptionalTensor& c0_in, const Tensor& y,
                        const Tensor& gates, const OptionalTensor& c, bool need_input,
                        bool need_weights) {
  using Real = RealOf<Stored>;
  const bool lstm = l.cell == Cell::lstm;
  const int64_t G = l.G, H = l.H, P = l.P, D = l.D, kept = gates_kept<Stored>(l.cell) * H;
  const Tensor h0 = contiguous_of(h0_in);
  const OptionalTensor c0 = contiguous_of(c0_in), dhn = contiguous_of(dhn_in),
                       dcn = contiguous_of(dcn_in), dc = contiguous_of(dc_in);
  // A batch-first output's gradient comes with the strides of its own.
  const bool rows_apart = dy_in && !l.packed() && dy_in->stride(2) == 1;
  const OptionalTensor dy = rows_apart ? dy_in : contiguous_of(dy_in);
  LayerGradients out;
  out.dx = reused<Stored>(y, need_input ? l.rows_of(l.I) : std::vector<int64_t>{0});
  out.dh0 = empty(y, {D, l.B, P});
  out.dc0 = empty(y, lstm ? std::vector<int64_t>{D, l.B, H} : std::vector<int64_t>{0});

  Backward<Real, Stored> p[2] = {};
  for (int d = 0; d < D; ++d) {
    static_cast<Sizes&>(p[d]) = l.sizes(d);
    p[d].cell = l.cell;
    p[d].x = l.input<Stored>();
    p[d].w_ih = pointer<Stored>(l.w_ih(d));
    p[d].w_hh = pointer<Stored>(l.w_hh(d));
    p[d].w_hr = pointer<Stored>(l.w_hr(d));
    p[d].h0 = pointer<Stored>(h0) + d * l.B * P;
    p[d].y = l.at<const Stored>(pointer<Stored>(y), D * P, d * P);
    if (are_some(gates)) {
      p[d].gates = l.kept_gates<const Stored>(pointer<Stored>(gates), kept, d);
      p[d].gates_from = l.kept_from(d);
    } else {
      p[d].gates = l.at<const Stored>(pointer<Stored>(gates), D * kept, d * kept);
    }
    p[d].b_ih = pointer<Stored>(l.b_ih(d));
    p[d].b_hh = pointer<Stored>(l.b_hh(d));
    p[d].dy = l.at<const Stored>(pointer<Stored>(dy), D * P, d * P);
    if (rows_apart) {
      p[d].dy.step = dy->stride(0);
      p[d].dy.row = dy->stride(1);
    }
    if (dhn) p[d].dhn = pointer<Stored>(dhn) + d * l.B * P;
    p[d].dh0 = writable<Stored>(out.dh0) + d * l.B * P;
    if (lstm) {
      p[d].c0 = pointer<Stored>(c0) + d * l.B * H;
      p[d].c = l.at<const Real>(pointer<Real>(c), D * H, d * H);
      if (dcn) p[d].dcn = pointer<Stored>(dcn) + d * l.B * H;
      p[d].dc = l.at<const Stored>(pointer<Stored>(dc), D * H, d * H);
      p[d].dc0 = writable<Stored>(out.dc0) + d * l.B * H;
    }
    if (need_input) p[d].dx = l.at(writable<Stored>(out.dx), l.I);
    // An empty batch leaves nothing to add: its gradients are zero.
    const auto gradient = [&](const std::vector<int64_t>& sizes) {
      out.dweights.push_back(l.B > 0 ? empty(y, sizes) : torch::stable::new_zeros(y, sizes));
      return writable<Stored>(out.dweights.back());
    };
    if (!need_weights) continue;
    p[d].dw_ih = gradient({G * H, l.I});
    p[d].dw_hh = gradient({G * H, P});
    if (l.bias) p[d].db_ih = gradient({G * H});
    if (l.bias) p[d].db_hh = gradient({G * H});
    if (l.projected) p[d].dw_hr = gradient({P, H});
  }
  if (l.B == 0) return out;
  const InstructionSet& set = instruction_set();
  const Parallel parallel = torch_threads();
  const Plan plan = plan_of(l, parallel.threads);
  const Tensor workspace = reused<Real>(y, {backward_workspace(set, plan, p, l.D)});
  layer_backward_cpu(set, plan, p, l.D, writable<Real>(workspace), parallel);
  return out;
}

LayerGradients backward(const Layer& l, const OptionalTensor& dy, const OptionalTensor& dhn,
                        const OptionalTensor& dcn, const OptionalTensor& dc, const Tensor& h0,
                        const OptionalTensor& c0, const Tensor& y, const Tensor& gates,
                        const OptionalTensor& c, bool need_input, bool need_weights) {
  if (dc) check(*dc, "dc", l.x.scalar_type(), l.rows_of(l.D * l.H));
  return with_storage_of(l.x, [&]<class Stored>() {
    const ScalarType c_type = scalar_type_of(type_of<RealOf<Stored>>());
    check_backward(l, dy, dhn, dcn, c0, y, gates, gates_kept<Stored>(l.cell), c, c_type);
    return backward<Stored>(l, dy, dhn, dcn, dc, h0, c0, y, gates, c, need_input, need_weights);
  });
}

std::tuple<Tensor, Tensor, Tensors> gru_backward_cpu(
    const OptionalTensor& dy, const OptionalTensor& dhn, const Tensor& x, const Tensor& h0,
    const Tensors& weights, bool bias, const OptionalTensor& batch_sizes, const Tensor& y,
    const Tensor& gates, bool need_input, bool need_weights, bool /* tf32 */,
    const OptionalTensor& lengths) {
  expect_no_lengths(lengths);
  const Layer l = layer_of(Cell::gru, x, h0, weights, bias, batch_sizes);
  LayerGradients g = backward(l, dy, dhn, std::nullopt, std::nullopt, h0, std::nullopt, y, gates,
                              std::nullopt, need_input, need_weights);
  return {g.dx, g.dh0, g.dweights};
}

std::tuple<Tensor, Tensor, Tensor, Tensors> lstm_states_backward_cpu(
    const OptionalTensor& dy, const OptionalTensor& dhn, const OptionalTensor& dcn,
    const OptionalTensor& dc, const Tensor& x, const Tensor& h0, const Tensor& c0,
    const Tensors& weights, bool bias, const OptionalTensor& batch_sizes, const Tensor& y,
    const Tensor& gates, const Tensor& c, bool need_input, bool need_weights) {
  const Layer l = layer_of(Cell::lstm, x, h0, weights, bias, batch_sizes);
  LayerGradients g = backward(l, dy, dhn, dcn, dc, h0, c0, y, gates, c, need_input, need_weights);
  return {g.dx, g.dh0, g.dc0, g.dweights};
}

std::tuple<Tensor, Tensor, Tensor, Tensors> lstm_backward_cpu(
    const OptionalTensor& dy, const OptionalTensor& dhn, const OptionalTensor& dcn, const Tensor& x,
    const Tensor& h0, const Tensor& c0, const Tensors& weights, bool bias,
    const OptionalTensor& batch_sizes, const Tensor& y, const Tensor& gates, const Tensor& c,
    bool need_input, bool need_weights, bool /* tf32 */, const OptionalTensor& lengths,
    const OptionalTensor& dc) {
  expect_no_lengths(lengths);
  return lstm_states_backward_cpu(dy, dhn, dcn, dc, x, h0, c0, weights, bias, batch_sizes, y, gates,
                                  c, need_input, need_weights);
}

}  // namespace
}  // namespace gatedrnn

STABLE_TORCH_LIBRARY_IMPL(gatedrnn, CPU, m) {
  m.impl("gru_backward", TORCH_BOX(&gatedrnn::gru_backward_cpu));
  m.impl("lstm_backward", TORCH_BOX(&gatedrnn::lstm_backward_cpu));
  m.impl("lstm_states_backward", TORCH_BOX(&gatedrnn::lstm_states_backward_cpu));
}
