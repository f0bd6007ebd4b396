// A layer's forward op: allocation, the input's projection, and the call of the time loop.
#include <tuple>

#include "layer.h"

namespace gatedrnn {
namespace {

// W_ih x of all steps, (T, B, G*H), without bias. Steps or sequences are the outer rows, whichever
// are fewer.
template <class Real, class Stored>
Tensor input_projection(const Layer& l, const Plan& plan, const Rows<const Real>& x, int d) {
  const int64_t N = l.G * l.H;
  const Tensor out = reused<Real>(l.x, l.rows_of(N));
  const Tensor workspace =
      empty_of<Real>(l.x, {multiply_workspace<Real>(instruction_set(), l.I, N)});
  const Rows<Real> y = l.at(writable<Real>(out), N);
  Multiply<Real> p{1, l.N, l.I, N, x.data, 0, x.row, nullptr, y.data, 0, y.row, false};
  if (!l.packed() && x.step != l.B * x.row) {
    if (l.B < l.T)
      p = {l.B, l.T, l.I, N, x.data, x.row, x.step, nullptr, y.data, y.row, y.step, false};
    else
      p = {l.T, l.B, l.I, N, x.data, x.step, x.row, nullptr, y.data, y.step, y.row, false};
  }
  const Stored* w = pointer<Stored>(l.w_ih(d));
  multiply_cpu<Real>(instruction_set(), p, w, writable<Real>(workspace), plan.threads,
                     torch_threads());
  return out;
}

// x as Real: where it is stored otherwise, a copy in `copy`.
template <class Real, class Stored>
Rows<const Real> widened_input(const Layer& l, Tensor& copy) {
  if constexpr (kNarrow<Real, Stored>) {
    copy = empty_of<Real>(l.x, l.rows_of(l.I));
    Real* to = writable<Real>(copy);
    widen_input_cpu(instruction_set(), l.sizes(0), l.input<Stored>(), to, torch_threads());
    return l.at<const Real>(to, l.I);
  } else {
    return l.input<Real>();
  }
}

struct LayerOutput {
  Tensor y, hn, cn, gates, c;  // cn, c: LSTM; gates and c of all steps: kept for backward
};

template <class Stored>
LayerOutput forward(const Layer& l, const Tensor& h0, const OptionalTensor& c0, bool train) {
  using Real = RealOf<Stored>;
  const Tensor& x = l.x;
  const bool lstm = l.cell == Cell::lstm;
  const Parallel parallel = torch_threads();
  const Plan plan = plan_of<Stored>(l, parallel.threads);
  const int64_t kept = gates_kept<Stored>(l.cell) * l.H;
  LayerOutput out;
  if (!train && l.N * l.D * l.P * int64_t(sizeof(Stored)) >= kLargeBlock) release_blocks();
  // Of a GRU in training the module returns a copy, so that who changes it does not change what
  // backward reads.
  out.y = (train && !lstm ? reused<Stored> : empty_of<Stored>)(x, l.rows_of(l.D * l.P));
  out.hn = empty(x, {l.D, l.B, l.P});
  out.gates = reused<Stored>(x, train ? l.rows_of(l.D * kept) : std::vector<int64_t>{0});
  out.cn = empty(x, lstm ? std::vector<int64_t>{l.D, l.B, l.H} : std::vector<int64_t>{0});
  // Inference needs the cell state of one step only.
  out.c = reused<Real>(x, !lstm   ? std::vector<int64_t>{0}
                          : train ? l.rows_of(l.D * l.H)
                                  : std::vector<int64_t>{l.D, l.B, l.H});
  if (l.B == 0) return out;

  const Tensor h = contiguous_of(h0);
  const OptionalTensor c = contiguous_of(c0);
  Tensor wide_x, projected[2];
  Rows<const Real> ahead;
  if (plan.project_first) ahead = widened_input<Real, Stored>(l, wide_x);
  Forward<Real, Stored> p[2] = {};
  for (int d = 0; d < l.D; ++d) {
    static_cast<Sizes&>(p[d]) = l.sizes(d);
    p[d].cell = l.cell;
    if (plan.project_first) {
      projected[d] = input_projection<Real, Stored>(l, plan, ahead, d);
      p[d].projected = l.at<const Real>(pointer<Real>(projected[d]), l.G * l.H);
    } else {
      p[d].x = l.input<Stored>();
    }
    p[d].w_ih = pointer<Stored>(l.w_ih(d));
    p[d].w_hh = pointer<Stored>(l.w_hh(d));
    p[d].b_ih = pointer<Stored>(l.b_ih(d));
    p[d].b_hh = pointer<Stored>(l.b_hh(d));
    p[d].w_hr = pointer<Stored>(l.w_hr(d));
    p[d].h0 = pointer<Stored>(h) + d * l.B * l.P;
    p[d].y = l.at(writable<Stored>(out.y), l.D * l.P, d * l.P);
    p[d].hn = writable<Stored>(out.hn) + d * l.B * l.P;
    if (train) p[d].gates = l.at(writable<Stored>(out.gates), l.D * kept, d * kept);
    if (lstm) {
      p[d].c0 = pointer<Stored>(c) + d * l.B * l.H;
      p[d].cn = writable<Stored>(out.cn) + d * l.B * l.H;
      if (train)
        p[d].c = l.at(writable<Real>(out.c), l.D * l.H, d * l.H);
      else
        p[d].c = {writable<Real>(out.c) + d * l.B * l.H, 0, l.H, nullptr};
    }
  }
  const InstructionSet& set = instruction_set();
  const Tensor workspace = empty_of<Real>(x, {forward_workspace(set, plan, p, l.D)});
  layer_forward_cpu(set, plan, p, l.D, writable<Real>(workspace), parallel);
  if (!train) out.c = empty_of<Real>(x, {0});
  return out;
}

LayerOutput forward(const Layer& l, const Tensor& h0, const OptionalTensor& c0, bool train) {
  return with_storage_of(l.x, [&]<class Stored>() { return forward<Stored>(l, h0, c0, train); });
}

std::tuple<Tensor, Tensor, Tensor> gru_forward_cpu(const Tensor& x, const Tensor& h0,
                                                   const Tensors& weights, bool bias,
                                                   const OptionalTensor& batch_sizes, bool train,
                                                   bool /* tf32 */) {
  const Layer l = layer_of(Cell::gru, x, h0, weights, bias, batch_sizes);
  LayerOutput out = forward(l, h0, std::nullopt, train);
  return {out.y, out.hn, out.gates};
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> lstm_forward_cpu(
    const Tensor& x, const Tensor& h0, const Tensor& c0, const Tensors& weights, bool bias,
    const OptionalTensor& batch_sizes, bool train, bool /* tf32 */) {
  const Layer l = layer_of(Cell::lstm, x, h0, weights, bias, batch_sizes);
  check(c0, "c0", x.scalar_type(), {l.D, l.B, l.H});
  LayerOutput out = forward(l, h0, c0, train);
  return {out.y, out.hn, out.cn, out.gates, out.c};
}

}  // namespace
}  // namespace gatedrnn

STABLE_TORCH_LIBRARY_IMPL(gatedrnn, CPU, m) {
  m.impl("gru_forward", TORCH_BOX(&gatedrnn::gru_forward_cpu));
  m.impl("lstm_forward", TORCH_BOX(&gatedrnn::lstm_forward_cpu));
}
