// A layer's forward op: allocation, and the call of the time loop.
#include <tuple>

#include "layer.h"

namespace gatedrnn {
namespace {

struct LayerOutput {
  Tensor y, hn, cn, gates, c;  // cn, c: LSTM; gates and c of all steps: kept for backward
};

// What comes out for backward beside y: an LSTM's c of all steps, and then gates, of some or of
// all.
enum class Keep { nothing, states, some_gates, gates };

template <class Stored>
LayerOutput forward(const Layer& l, const Tensor& h0, const OptionalTensor& c0, Keep keep) {
  using Real = RealOf<Stored>;
  const bool some = keep == Keep::some_gates, train = keep != Keep::nothing;
  const Tensor& x = l.x;
  const bool lstm = l.cell == Cell::lstm;
  const Parallel parallel = torch_threads();
  const Plan plan = plan_of(l, parallel.threads);
  const int64_t kept = gates_kept<Stored>(l.cell) * l.H;
  LayerOutput out;
  if (!train && l.N * l.D * l.P * int64_t(sizeof(Stored)) >= kLargeBlock) release_blocks();
  // Of a GRU in training the module returns a copy, so that who changes it does not change what
  // backward reads.
  out.y = (train && !lstm ? reused<Stored> : empty_of<Stored>)(x, l.rows_of(l.D * l.P));
  out.hn = empty(x, {l.D, l.B, l.P});
  out.gates = reused<Stored>(x, keep == Keep::gates ? l.rows_of(l.D * kept)
                                : some ? std::vector<int64_t>{l.D * l.kept_rows() * kept}
                                       : std::vector<int64_t>{0});
  out.cn = empty(x, lstm ? std::vector<int64_t>{l.D, l.B, l.H} : std::vector<int64_t>{0});
  // Inference needs the cell state of one step only.
  out.c = reused<Real>(x, !lstm   ? std::vector<int64_t>{0}
                          : train ? l.rows_of(l.D * l.H)
                                  : std::vector<int64_t>{l.D, l.B, l.H});
  if (l.B == 0) return out;

  const Tensor h = contiguous_of(h0);
  const OptionalTensor c = contiguous_of(c0);
  Forward<Real, Stored> p[2] = {};
  for (int d = 0; d < l.D; ++d) {
    static_cast<Sizes&>(p[d]) = l.sizes(d);
    p[d].cell = l.cell;
    p[d].x = l.input<Stored>();
    p[d].w_ih = pointer<Stored>(l.w_ih(d));
    p[d].w_hh = pointer<Stored>(l.w_hh(d));
    p[d].b_ih = pointer<Stored>(l.b_ih(d));
    p[d].b_hh = pointer<Stored>(l.b_hh(d));
    p[d].w_hr = pointer<Stored>(l.w_hr(d));
    p[d].h0 = pointer<Stored>(h) + d * l.B * l.P;
    p[d].y = l.at(writable<Stored>(out.y), l.D * l.P, d * l.P);
    p[d].hn = writable<Stored>(out.hn) + d * l.B * l.P;
    if (keep == Keep::gates) p[d].gates = l.at(writable<Stored>(out.gates), l.D * kept, d * kept);
    if (some) {
      p[d].gates = l.kept_gates(writable<Stored>(out.gates), kept, d);
      p[d].gates_from = l.kept_from(d);
    }
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
  const Tensor workspace = reused<Real>(x, {forward_workspace(set, plan, p, l.D)});
  layer_forward_cpu(set, plan, p, l.D, writable<Real>(workspace), parallel);
  if (!train) out.c = empty_of<Real>(x, {0});
  return out;
}

LayerOutput forward(const Layer& l, const Tensor& h0, const OptionalTensor& c0, Keep keep) {
  return with_storage_of(l.x, [&]<class Stored>() { return forward<Stored>(l, h0, c0, keep); });
}

std::tuple<Tensor, Tensor, Tensor> gru_forward_cpu(const Tensor& x, const Tensor& h0,
                                                   const Tensors& weights, bool bias,
                                                   const OptionalTensor& batch_sizes, bool train,
                                                   bool /* tf32 */, const OptionalTensor& lengths) {
  expect_no_lengths(lengths);
  const Layer l = layer_of(Cell::gru, x, h0, weights, bias, batch_sizes);
  LayerOutput out = forward(l, h0, std::nullopt, train ? Keep::gates : Keep::nothing);
  return {out.y, out.hn, out.gates};
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> lstm_forward_cpu(
    const Tensor& x, const Tensor& h0, const Tensor& c0, const Tensors& weights, bool bias,
    const OptionalTensor& batch_sizes, bool train, bool /* tf32 */, const OptionalTensor& lengths) {
  expect_no_lengths(lengths);
  const Layer l = layer_of(Cell::lstm, x, h0, weights, bias, batch_sizes);
  check(c0, "c0", x.scalar_type(), {l.D, l.B, l.H});
  LayerOutput out = forward(l, h0, c0, train ? Keep::gates : Keep::nothing);
  return {out.y, out.hn, out.cn, out.gates, out.c};
}

std::tuple<Tensor, Tensor, Tensor> gru_recompute_forward_cpu(const Tensor& x, const Tensor& h0,
                                                             const Tensors& weights, bool bias,
                                                             const OptionalTensor& batch_sizes) {
  const Layer l = layer_of(Cell::gru, x, h0, weights, bias, batch_sizes);
  LayerOutput out = forward(l, h0, std::nullopt, Keep::some_gates);
  return {out.y, out.hn, out.gates};
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> lstm_states_forward_cpu(
    const Tensor& x, const Tensor& h0, const Tensor& c0, const Tensors& weights, bool bias,
    const OptionalTensor& batch_sizes, bool train) {
  const Layer l = layer_of(Cell::lstm, x, h0, weights, bias, batch_sizes);
  check(c0, "c0", x.scalar_type(), {l.D, l.B, l.H});
  LayerOutput out = forward(l, h0, c0, train ? Keep::some_gates : Keep::states);
  return {out.y, out.hn, out.cn, out.gates, out.c};
}

}  // namespace
}  // namespace gatedrnn

STABLE_TORCH_LIBRARY_IMPL(gatedrnn, CPU, m) {
  m.impl("gru_forward", TORCH_BOX(&gatedrnn::gru_forward_cpu));
  m.impl("lstm_forward", TORCH_BOX(&gatedrnn::lstm_forward_cpu));
  m.impl("gru_recompute_forward", TORCH_BOX(&gatedrnn::gru_recompute_forward_cpu));
  m.impl("lstm_states_forward", TORCH_BOX(&gatedrnn::lstm_states_forward_cpu));
}
