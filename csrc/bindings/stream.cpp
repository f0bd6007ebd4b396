// Steps of a stack of layers whose weights were packed once: gatedrnn.Stream. A step is each
// layer's time loop over one step, from states that lie in place.
#include "plans.h"

namespace gatedrnn {
namespace {

constexpr int64_t kLine = 16;  // elements: workspaces begin on a cache line, and end on one

struct Stack {
  Cell cell;
  int64_t layers, B, I, H, P;
  int threads;  // those that the weights were packed for

  int G() const { return cell == Cell::gru ? 3 : 4; }
  int64_t inputs(int64_t layer) const { return layer == 0 ? I : P; }
};

// One layer's step, without pointers to anything but its projection, whose presence is what counts.
template <class Stored>
Forward<RealOf<Stored>, Stored> step_of(const Stack& s, int64_t layer, const Stored* any) {
  Forward<RealOf<Stored>, Stored> p{};
  static_cast<Sizes&>(p) = {1, s.B, s.inputs(layer), s.H, s.P, nullptr, false};
  p.cell = s.cell;
  if (s.P != s.H) p.w_hr = any;
  return p;
}

// Calls body(layer, p, plan, offset of its workspace); returns what all of them take.
template <class Stored, class Body>
int64_t for_each_layer(const Stack& s, const Stored* any, Body body) {
  const ScalarType type = scalar_type_of(type_of<Stored>());
  int64_t used = (s.B * s.H + kLine - 1) / kLine * kLine;  // an LSTM's c, as it is computed
  for (int64_t layer = 0; layer < s.layers; ++layer) {
    auto p = step_of<Stored>(s, layer, any);
    const Plan plan = cpu_plan_of(p, s.G(), 1, type, s.threads);
    body(layer, p, plan, used);
    used += forward_workspace(instruction_set(), plan, &p, 1);
  }
  return used;
}

Parallel threads_of(const Stack& s) {
  Parallel parallel = torch_threads();
  parallel.threads = s.threads;
  return parallel;
}

template <class Stored>
Tensor pack(const Stack& s, const Tensors& weights, bool bias) {
  using Real = RealOf<Stored>;
  const Stored* any = pointer<Stored>(weights[0]);
  const int64_t size = for_each_layer<Stored>(s, any, [](auto...) {});
  const Tensor packed = empty_of<Real>(weights[0], {size});
  const size_t each = weights.size() / size_t(s.layers);
  for_each_layer<Stored>(s, any, [&](int64_t layer, auto& p, const Plan& plan, int64_t offset) {
    const Tensor* w = weights.data() + size_t(layer) * each;
    p.w_ih = pointer<Stored>(w[0]);
    p.w_hh = pointer<Stored>(w[1]);
    if (bias) p.b_ih = pointer<Stored>(w[2]);
    if (bias) p.b_hh = pointer<Stored>(w[3]);
    if (p.w_hr) p.w_hr = pointer<Stored>(w[each - 1]);
    pack_forward_cpu(instruction_set(), plan, &p, 1, writable<Real>(packed) + offset,
                     threads_of(s));
  });
  return packed;
}

Tensor stream_pack(const Tensors& weights, bool lstm, bool bias, int64_t batch, int64_t threads) {
  const size_t each = bias ? 4 : 2;
  expect(weights.size() >= each && weights[0].dim() == 2 && weights[1].dim() == 2,
         "wrong number of weights: ", weights.size());
  Stack s{lstm ? Cell::lstm : Cell::gru,
          0,
          batch,
          weights[0].size(1),
          0,
          weights[1].size(1),
          int(threads)};
  s.H = weights[0].size(0) / s.G();
  const bool projected = s.P != s.H;
  s.layers = int64_t(weights.size() / (each + projected));
  const ScalarType type = weights[0].scalar_type();
  expect_type(type);
  Tensors all;
  for (int64_t layer = 0; layer < s.layers; ++layer) {
    const Tensor* w = weights.data() + size_t(layer) * (each + projected);
    check(w[0], "w_ih", type, {s.G() * s.H, s.inputs(layer)});
    check(w[1], "w_hh", type, {s.G() * s.H, s.P});
    if (bias) check(w[2], "b_ih", type, {s.G() * s.H});
    if (bias) check(w[3], "b_hh", type, {s.G() * s.H});
    if (projected) check(w[each], "w_hr", type, {s.P, s.H});
    for (size_t k = 0; k < each + projected; ++k) all.push_back(contiguous_of(w[k]));
  }
  return with_storage_of(weights[0], [&]<class Stored>() { return pack<Stored>(s, all, bias); });
}

// h [2][L, B, P]: before the step at `now`, after it at 1 - now; c [L, B, H] in place, of an LSTM.
template <class Stored>
Tensor step(const Stack& s, const Tensor& x, const Tensor& h, const OptionalTensor& c,
            const Tensor& packed, int64_t now) {
  using Real = RealOf<Stored>;
  Stored* state = writable<Stored>(h);
  const int64_t before = now * s.layers * s.B * s.P, after = (1 - now) * s.layers * s.B * s.P;
  expect(packed.numel() == for_each_layer<Stored>(s, state, [](auto...) {}) &&
             packed.scalar_type() == scalar_type_of(type_of<Real>()),
         "these weights were packed for another stack");
  const Tensor y = empty_of<Stored>(x, {s.B, s.P});
  Rows<const Stored> input{pointer<Stored>(x), 0, x.stride(0)};
  for_each_layer<Stored>(s, state, [&](int64_t layer, auto& p, const Plan& plan, int64_t offset) {
    p.x = input;
    p.h0 = state + before + layer * s.B * s.P;
    p.hn = state + after + layer * s.B * s.P;
    p.y = {layer + 1 < s.layers ? p.hn : writable<Stored>(y), 0, s.P};
    if (c) {
      p.cn = writable<Stored>(*c) + layer * s.B * s.H;
      p.c0 = p.cn;
      p.c = {writable<Real>(packed), 0, s.H};
    }
    walk_forward_cpu(instruction_set(), plan, &p, 1, writable<Real>(packed) + offset,
                     threads_of(s));
    input = {p.hn, 0, s.P};
  });
  return y;
}

Tensor stream_step(const Tensor& x, const Tensor& h, const OptionalTensor& c, const Tensor& packed,
                   int64_t now, int64_t threads) {
  const ScalarType type = x.scalar_type();
  expect_type(type);
  expect(x.dim() == 2 && h.dim() == 4 && h.size(0) == 2 && (!c || c->dim() == 3),
         "expected an input of (batch, features), got ", x);
  const Stack s{c ? Cell::lstm : Cell::gru, h.size(1), x.size(0),   x.size(1),
                c ? c->size(2) : h.size(3), h.size(3), int(threads)};
  check(h, "h", type, {2, s.layers, s.B, s.P});
  if (c) check(*c, "c", type, {s.layers, s.B, s.H});
  expect(h.is_contiguous() && (!c || c->is_contiguous()), "states must be contiguous");
  const Tensor rows = x.stride(1) == 1 ? x : contiguous_of(x);
  return with_storage_of(x,
                         [&]<class Stored>() { return step<Stored>(s, rows, h, c, packed, now); });
}

}  // namespace
}  // namespace gatedrnn

STABLE_TORCH_LIBRARY_IMPL(gatedrnn, CPU, m) {
  m.impl("stream_pack", TORCH_BOX(&gatedrnn::stream_pack));
  m.impl("stream_step", TORCH_BOX(&gatedrnn::stream_step));
}
