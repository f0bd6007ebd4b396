// A layer's backward op: the time loop leaves the gradients of all gates; those of the input and of
// the weights follow from them by one product each.
#include <algorithm>
#include <tuple>

#include "layer.h"

namespace gatedrnn {
namespace {

struct LayerGradients {
  Tensor dx, dh0, dc0;
  Tensors dweights;
};

// h(t-1) for every row of a packed sequence, [N, P]: where rows end, no shifted view of y has them.
template <class Real>
Tensor packed_previous(const Layer& l, const Tensor& y, const Tensor& h0, int d) {
  Tensor previous = empty(y, {l.N, l.P});
  const Rows<Real> to = l.at(writable<Real>(previous), l.P);
  const Rows<const Real> from = l.at<const Real>(pointer<Real>(y), l.D * l.P, d * l.P);
  const Sizes sizes = l.sizes(d);
  const Real* initial = pointer<Real>(h0) + d * l.B * l.P;
  for (int64_t k = 0; k < l.T; ++k) {
    const int64_t t = sizes.step(k), before = k ? sizes.step(k - 1) : -1;
    const int64_t begun = before < 0 ? 0 : std::min(sizes.active(t), sizes.active(before));
    for (int64_t b = 0; b < sizes.active(t); ++b)
      std::copy_n(b < begun ? from.at(before, b) : initial + b * l.P, l.P, to.at(t, b));
  }
  return previous;
}

// The sums over all steps and sequences that make up the weights' gradients.
template <class Real>
class Sums {
 public:
  Sums(const Layer& l, const Tensor& like)
      : l_(l),
        parallel_(torch_threads()),
        workspace_(empty(like, {parallel_.threads * kSumScratch})) {}

  // sum over rows of a^T b, [M, N], into the rows of `out` from `first` on. The rows of both are
  // those of the layer's input, or of `count` steps of it.
  void add(Rows<const Real> a, int64_t M, Rows<const Real> b, int64_t N, const Tensor& out,
           int64_t first, int64_t count, bool accumulate) const {
    const int64_t batch = l_.packed() ? l_.N : l_.B;
    outer_sum_cpu<Real>(instruction_set(),
                        {count * batch, M, N, batch, unpacked(a), unpacked(b),
                         writable<Real>(out) + first * N, N, 1, accumulate},
                        writable<Real>(workspace_), parallel_);
  }

  // The rows of W_hh's gradient from `first` on: sum over steps of da(t)^T h(t - 1). The rows of y
  // are the states of all steps but the first, one step late; h0 is that of the first. For a packed
  // sequence `previous` has them all.
  void add_recurrent(Rows<const Real> da, int64_t M, const Tensor& y, const Tensor& h0,
                     const Tensor& previous, int d, const Tensor& out, int64_t first) const {
    if (l_.packed())
      return add(da, M, l_.at(pointer<Real>(previous), l_.P), l_.P, out, first, 1, false);
    const bool reverse = d == 1;
    const Rows<const Real> states = l_.at(pointer<Real>(y), l_.D * l_.P, d * l_.P);
    const Rows<const Real> initial = l_.at(pointer<Real>(h0) + d * l_.B * l_.P, l_.P);
    add(from_step(da, reverse ? l_.T - 1 : 0), M, initial, l_.P, out, first, 1, false);
    if (l_.T > 1)
      add(from_step(da, reverse ? 0 : 1), M, from_step(states, reverse ? 1 : 0), l_.P, out, first,
          l_.T - 1, true);
  }

 private:
  static Rows<const Real> from_step(Rows<const Real> rows, int64_t t) {
    rows.data += t * rows.step;
    return rows;
  }
  // Packed rows follow each other whatever their step: they are summed as one step of N sequences.
  static Rows<const Real> unpacked(Rows<const Real> rows) {
    rows.offsets = nullptr;
    return rows;
  }

  const Layer& l_;
  const Parallel parallel_;
  const Tensor workspace_;
};

// The gradient of x, from all directions' input-side gates at once.
template <class Real>
Tensor input_gradient(const Layer& l, const Tensor& dgates) {
  const int64_t K = l.D * l.G * l.H, width = dgates.size(1);
  const Tensor dx = empty(dgates, l.rows_of(l.I));
  const Tensor workspace = empty(dgates, {multiply_workspace<Real>(instruction_set(), K, l.I)});
  const Real* w[2] = {pointer<Real>(l.w_ih(0)), l.D == 2 ? pointer<Real>(l.w_ih(1)) : nullptr};
  multiply_cpu<Real>(
      instruction_set(),
      {1, l.N, K, l.I, pointer<Real>(dgates), 0, width, nullptr, writable<Real>(dx), 0, l.I}, w,
      l.D, false, writable<Real>(workspace), torch_threads());
  return dx;
}

template <class Real>
LayerGradients backward(const Layer& l, const OptionalTensor& dy_in, const OptionalTensor& dhn_in,
                        const OptionalTensor& dcn_in, const Tensor& h0_in,
                        const OptionalTensor& c0_in, const Tensor& y, const Tensor& gates,
                        const OptionalTensor& c, bool need_input, bool need_weights) {
  const bool lstm = l.cell == Cell::lstm;
  const int64_t G = l.G, H = l.H, P = l.P, D = l.D;
  const Tensor h0 = contiguous_of(h0_in);
  const OptionalTensor c0 = contiguous_of(c0_in), dhn = contiguous_of(dhn_in),
                       dcn = contiguous_of(dcn_in);
  // A batch-first output's gradient comes with the strides of its own.
  const bool rows_apart = dy_in && !l.packed() && dy_in->stride(2) == 1;
  const OptionalTensor dy = rows_apart ? dy_in : contiguous_of(dy_in);
  // Columns: every direction's input-side gates, so that dx is one product; then a GRU's q.
  const int64_t width = D * 4 * H;
  const Tensor dgates = empty(y, {l.N, width});
  const Tensor dh = l.projected ? empty(y, {l.N, D * P}) : Tensor();
  const bool need_hidden = l.projected && need_weights;
  const Tensor hidden = need_hidden ? empty(y, {l.N, D * H}) : Tensor();
  LayerGradients out;
  out.dh0 = empty(y, {D, l.B, P});
  out.dc0 = empty(y, lstm ? std::vector<int64_t>{D, l.B, H} : std::vector<int64_t>{0});

  const Parallel parallel = torch_threads();
  Backward<Real> p[2] = {};
  for (int d = 0; d < D; ++d) {
    static_cast<Sizes&>(p[d]) = l.sizes(d);
    p[d].cell = l.cell;
    p[d].w_hh = pointer<Real>(l.w_hh(d));
    p[d].w_hr = pointer<Real>(l.w_hr(d));
    p[d].h0 = pointer<Real>(h0) + d * l.B * P;
    p[d].y = l.at<const Real>(pointer<Real>(y), D * P, d * P);
    p[d].gates = l.at<const Real>(pointer<Real>(gates), D * G * H, d * G * H);
    p[d].dy = l.at<const Real>(pointer<Real>(dy), D * P, d * P);
    if (rows_apart) {
      p[d].dy.step = dy->stride(0);
      p[d].dy.row = dy->stride(1);
    }
    if (dhn) p[d].dhn = pointer<Real>(dhn) + d * l.B * P;
    p[d].dgates = l.at(writable<Real>(dgates), width, d * G * H);
    p[d].dq = D * G * H + d * H - d * G * H;
    p[d].dh0 = writable<Real>(out.dh0) + d * l.B * P;
    if (l.projected) p[d].dh = l.at(writable<Real>(dh), D * P, d * P);
    if (need_hidden) p[d].hidden = l.at(writable<Real>(hidden), D * H, d * H);
    if (lstm) {
      p[d].c0 = pointer<Real>(c0) + d * l.B * H;
      p[d].c = l.at<const Real>(pointer<Real>(c), D * H, d * H);
      if (dcn) p[d].dcn = pointer<Real>(dcn) + d * l.B * H;
      p[d].dc0 = writable<Real>(out.dc0) + d * l.B * H;
    }
  }
  if (l.B > 0) {
    const InstructionSet& set = instruction_set();
    const Tensor workspace = empty(y, {backward_workspace(set, p, l.D)});
    layer_backward_cpu(set, plan_cpu(l.problem(parallel.threads, sizeof(Real))), p, l.D,
                       writable<Real>(workspace), parallel);
  }

  out.dx = need_input && l.B > 0 ? input_gradient<Real>(l, dgates)
                                 : empty(y, need_input ? l.rows_of(l.I) : std::vector<int64_t>{0});
  if (!need_weights) return out;
  const Sums<Real> sums(l, y);
  const Tensor bias_sums = l.bias ? torch::stable::sum(dgates, std::vector<int64_t>{0}) : Tensor();
  const auto gates_at = [&](int64_t column) { return l.at(pointer<Real>(dgates), width, column); };
  // An empty batch leaves nothing to add: its gradients are zero.
  const auto gradient = [&](const std::vector<int64_t>& sizes) {
    return l.B > 0 ? empty(y, sizes) : torch::stable::new_zeros(y, sizes);
  };
  const int64_t steps = l.packed() ? 1 : l.T;
  for (int d = 0; d < D; ++d) {
    const int64_t da = d * G * H, dq = D * G * H + d * H;  // columns of dgates
    const Tensor dw_ih = gradient({G * H, l.I}), dw_hh = gradient({G * H, P});
    sums.add(gates_at(da), G * H, l.input<Real>(), l.I, dw_ih, 0, steps, false);
    const Tensor previous = l.packed() ? packed_previous<Real>(l, y, h0, d) : Tensor();
    sums.add_recurrent(gates_at(da), lstm ? 4 * H : 2 * H, y, h0, previous, d, dw_hh, 0);
    if (!lstm) sums.add_recurrent(gates_at(dq), H, y, h0, previous, d, dw_hh, 2 * H);
    out.dweights.insert(out.dweights.end(), {dw_ih, dw_hh});
    if (l.bias) {
      const Tensor input_side = rows(bias_sums, da, G * H);
      out.dweights.push_back(torch::stable::clone(input_side));
      out.dweights.push_back(lstm ? torch::stable::clone(input_side)
                                  : cat({rows(input_side, 0, 2 * H), rows(bias_sums, dq, H)}, 0));
    }
    if (l.projected) {
      const Tensor dw_hr = gradient({P, H});
      sums.add(l.at(pointer<Real>(dh), D * P, d * P), P, l.at(pointer<Real>(hidden), D * H, d * H),
               H, dw_hr, 0, steps, false);
      out.dweights.push_back(dw_hr);
    }
  }
  return out;
}

LayerGradients backward(const Layer& l, const OptionalTensor& dy, const OptionalTensor& dhn,
                        const OptionalTensor& dcn, const Tensor& h0, const OptionalTensor& c0,
                        const Tensor& y, const Tensor& gates, const OptionalTensor& c,
                        bool need_input, bool need_weights) {
  const ScalarType type = l.x.scalar_type();
  check_backward(l, dy, dhn, dcn, c0, y, gates, c, type);
  const auto run = type == ScalarType::Float ? backward<float> : backward<double>;
  return run(l, dy, dhn, dcn, h0, c0, y, gates, c, need_input, need_weights);
}

std::tuple<Tensor, Tensor, Tensors> gru_backward_cpu(
    const OptionalTensor& dy, const OptionalTensor& dhn, const Tensor& x, const Tensor& h0,
    const Tensors& weights, bool bias, const OptionalTensor& batch_sizes, const Tensor& y,
    const Tensor& gates, bool need_input, bool need_weights, bool /* tf32 */) {
  const Layer l = layer_of(Cell::gru, x, h0, weights, bias, batch_sizes, Device::cpu);
  LayerGradients g = backward(l, dy, dhn, std::nullopt, h0, std::nullopt, y, gates, std::nullopt,
                              need_input, need_weights);
  return {g.dx, g.dh0, g.dweights};
}

std::tuple<Tensor, Tensor, Tensor, Tensors> lstm_backward_cpu(
    const OptionalTensor& dy, const OptionalTensor& dhn, const OptionalTensor& dcn, const Tensor& x,
    const Tensor& h0, const Tensor& c0, const Tensors& weights, bool bias,
    const OptionalTensor& batch_sizes, const Tensor& y, const Tensor& gates, const Tensor& c,
    bool need_input, bool need_weights, bool /* tf32 */) {
  const Layer l = layer_of(Cell::lstm, x, h0, weights, bias, batch_sizes, Device::cpu);
  LayerGradients g = backward(l, dy, dhn, dcn, h0, c0, y, gates, c, need_input, need_weights);
  return {g.dx, g.dh0, g.dc0, g.dweights};
}

}  // namespace
}  // namespace gatedrnn

STABLE_TORCH_LIBRARY_IMPL(gatedrnn, CPU, m) {
  m.impl("gru_backward", TORCH_BOX(&gatedrnn::gru_backward_cpu));
  m.impl("lstm_backward", TORCH_BOX(&gatedrnn::lstm_backward_cpu));
}
