// Forward ops of several layers of one direction on CUDA tensors, for stacks that the plan wants in
// one launch.
#include <tuple>

#include "device.h"
#include "layer.h"

namespace gatedrnn {
namespace {

struct StackOutput {
  Tensors y, hn, cn, gates, c;  // of each layer, as its own op has them
};

PersistentPlan plan_of(const Tensor& x, const Tensor& h0, int gates, bool tf32,
                       const OnDevice& on) {
  return cuda_stack_plan_of({x.size(0), x.size(1), x.size(2), h0.size(2), h0.size(2), gates, 1,
                             type_of(x.scalar_type()), tf32, false, on.device.architecture,
                             on.device.multiprocessors, on.device.clusters},
                            int(h0.size(0)))
      .walk;
}

template <class Real>
StackOutput forward(Cell cell, const Tensor& x, const Tensor& h0, const OptionalTensor& c0,
                    const Tensors& weights, bool bias, bool train, bool tf32,
                    const PersistentPlan& plan, const OnDevice& on) {
  const bool lstm = cell == Cell::lstm;
  const int count = int(h0.size(0));
  const size_t each = weights.size() / size_t(count);
  expect(weights.size() == each * size_t(count), "wrong number of weights: ", weights.size());
  std::vector<Layer> layers;
  StackOutput out;
  for (int l = 0; l < count; ++l) {
    const auto from = weights.begin() + int64_t(size_t(l) * each);
    layers.push_back(layer_of(cell, l ? out.y.back() : x, rows(h0, l, 1),
                              Tensors(from, from + int64_t(each)), bias, std::nullopt));
    out.y.push_back(empty(x, layers[0].rows_of(h0.size(2))));
  }
  const Layer& first = layers[0];
  expect(!first.projected, "layers with a projection do not run at the same time");
  const int64_t T = first.T, B = first.B, H = first.H;
  if (c0) check(*c0, "c0", x.scalar_type(), {count, B, H});
  const Tensor h = contiguous_of(h0);
  const OptionalTensor c = contiguous_of(c0);
  const int64_t packed_each = 2 * packed_size(first.G, plan.units, 1);
  const Tensor packed = empty_of<float>(x, {count * packed_each});
  const Tensor exchange =
      empty_of<float>(x, {stack_exchange_size(plan.units, plan.sequences, count, T, B)});
  Tensor projected;
  std::vector<CudaForward<Real>> p(layers.size());
  for (int l = 0; l < count; ++l) {
    const Layer& layer = layers[size_t(l)];
    CudaForward<Real>& at = p[size_t(l)];
    const std::vector<int64_t> none{0}, units{1, B, H};
    out.hn.push_back(empty(x, units));
    out.cn.push_back(empty(x, lstm ? units : none));
    out.gates.push_back(empty(x, train ? layer.rows_of(layer.G * H) : none));
    out.c.push_back(empty_of<float>(x, lstm && train ? layer.rows_of(H) : none));
    static_cast<Sizes&>(at) = layer.sizes(0);
    at.cell = cell;
    if (l == 0)
      at.projected = input_projection<Real>(layer, input_rows(layer, layer.x), 0,
                                            tf32 && on.has_tf32(), projected);
    else
      at.x = layer.input<Real>();
    at.w_ih = pointer<Real>(layer.w_ih(0));
    at.w_hh = pointer<Real>(layer.w_hh(0));
    at.b_ih = pointer<Real>(layer.b_ih(0));
    at.b_hh = pointer<Real>(layer.b_hh(0));
    at.h0 = pointer<Real>(h) + l * B * H;
    at.y = layer.at(writable<Real>(out.y[size_t(l)]), H);
    at.hn = writable<Real>(out.hn.back());
    at.packed = writable<float>(packed) + l * packed_each;
    if (train) at.gates = layer.at(writable<Real>(out.gates.back()), layer.G * H);
    if (!lstm) continue;
    at.c0 = pointer<Real>(c) + l * B * H;
    at.cn = writable<Real>(out.cn.back());
    if (train) at.c = layer.at(writable<float>(out.c.back()), H);
  }
  expect_launched(stack_forward_cuda(plan, p.data(), count, writable<float>(exchange), on.stream));
  return out;
}

StackOutput forward(Cell cell, const Tensor& x, const Tensor& h0, const OptionalTensor& c0,
                    const Tensors& weights, bool bias, bool train, bool tf32) {
  expect(x.dim() == 3 && h0.dim() == 3, "expected x and h0 of three dimensions");
  const OnDevice on(x, {h0, c0}, weights);
  const PersistentPlan plan = plan_of(x, h0, cell == Cell::gru ? 3 : 4, tf32, on);
  expect(plan.units, "no kernel takes these layers at the same time");
  return with_storage_of(x, [&]<class Real>() -> StackOutput {
    if constexpr (!std::is_same_v<Real, double>)  // never planned
      return forward<Real>(cell, x, h0, c0, weights, bias, train, tf32, plan, on);
    return {};
  });
}

std::tuple<Tensors, Tensors, Tensors> gru_stack_forward_cuda(const Tensor& x, const Tensor& h0,
                                                             const Tensors& weights, bool bias,
                                                             bool train, bool tf32) {
  StackOutput out = forward(Cell::gru, x, h0, std::nullopt, weights, bias, train, tf32);
  return {out.y, out.hn, out.gates};
}

std::tuple<Tensors, Tensors, Tensors, Tensors, Tensors> lstm_stack_forward_cuda(
    const Tensor& x, const Tensor& h0, const Tensor& c0, const Tensors& weights, bool bias,
    bool train, bool tf32) {
  StackOutput out = forward(Cell::lstm, x, h0, c0, weights, bias, train, tf32);
  return {out.y, out.hn, out.cn, out.gates, out.c};
}

bool takes_stack_cuda(const Tensor& x, const Tensor& h0, int64_t gates, bool tf32) {
  const OnDevice on(x, {h0});
  return plan_of(x, h0, int(gates), tf32, on).units;
}

}  // namespace
}  // namespace gatedrnn

STABLE_TORCH_LIBRARY_IMPL(GATEDRNN_OPS, GATEDRNN_CUDA_KEY, m) {
  m.impl("gru_stack_forward", TORCH_BOX(&gatedrnn::gru_stack_forward_cuda));
  m.impl("lstm_stack_forward", TORCH_BOX(&gatedrnn::lstm_stack_forward_cuda));
  m.impl("takes_stack", TORCH_BOX(&gatedrnn::takes_stack_cuda));
}
