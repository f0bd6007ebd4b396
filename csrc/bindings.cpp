// Layers: schemas, checks, allocation, and the matrix products that have no time dependence.
//
// Ops are functional. A layer's weights come as a list, direction by direction, each
// w_ih [G*H, I], w_hh [G*H, P], then b_ih, b_hh [G*H] if `bias`, then w_hr [P, H] if projected.
// Users meet clear errors in Python; the checks here keep a wrong call from reading foreign memory.
#include "bindings.h"

#include <algorithm>
#include <tuple>

namespace gatedrnn {
namespace {

// What forward and backward know of a layer after the checks. All tensors are contiguous but x,
// whose last dimension alone is.
struct Layer {
  Cell cell;
  int D, G;
  int64_t T, B, I, H, P, N;  // N rows: T * B, or the packed total
  std::vector<int64_t> offsets;
  Tensor x;
  Tensors weights[2];
  bool bias, projected;

  const int64_t* packed() const { return offsets.empty() ? nullptr : offsets.data(); }
  const Tensor& w_ih(int d) const { return weights[d][0]; }
  const Tensor& w_hh(int d) const { return weights[d][1]; }
  OptionalTensor b_ih(int d) const { return bias ? OptionalTensor(weights[d][2]) : std::nullopt; }
  OptionalTensor b_hh(int d) const { return bias ? OptionalTensor(weights[d][3]) : std::nullopt; }
  OptionalTensor w_hr(int d) const {
    return projected ? OptionalTensor(weights[d].back()) : std::nullopt;
  }
  // The shape of a tensor with `width` columns for every row of x.
  std::vector<int64_t> rows_of(int64_t width) const {
    if (packed()) return {N, width};
    return {T, B, width};
  }
  Sizes sizes(int d) const { return {T, B, I, H, P, packed(), d == 1}; }
  Problem problem(int threads, int element) const {
    return {T, B, I, H, P, G, D, element, threads};
  }
  // Contiguous rows of `width`, beginning at `column`.
  template <class Real>
  Rows<Real> at(Real* data, int64_t width, int64_t column = 0) const {
    return {data ? data + column : nullptr, B * width, width, packed()};
  }
  template <class Real>
  Rows<const Real> input() const {
    const Real* data = pointer<Real>(x);
    if (packed()) return {data, 0, x.stride(0), packed()};
    return {data, x.stride(0), x.stride(1), nullptr};
  }
};

Layer layer_of(Cell cell, const Tensor& x, const Tensor& h0, const Tensors& weights, bool bias,
               const OptionalTensor& batch_sizes) {
  Layer l{};
  l.cell = cell;
  l.G = cell == Cell::gru ? 3 : 4;
  const ScalarType type = x.scalar_type();
  expect(type == ScalarType::Float || type == ScalarType::Double,
         "the kernels take float32 and float64");
  expect(h0.dim() == 3 && (h0.size(0) == 1 || h0.size(0) == 2),
         "expected h0 of shape (directions, batch, hidden), got ", h0);
  expect(x.dim() == (batch_sizes ? 2 : 3), "the input has ", x.dim(), " dimensions");
  l.D = int(h0.size(0));
  l.B = h0.size(1);
  l.P = h0.size(2);
  l.I = x.size(x.dim() - 1);
  l.bias = bias;
  const size_t each = weights.size() / size_t(l.D);
  l.projected = cell == Cell::lstm && each == (bias ? 5u : 3u);
  expect(weights.size() == each * size_t(l.D) && (l.projected || each == (bias ? 4u : 2u)),
         "wrong number of weights: ", weights.size());
  l.H = weights[0].dim() == 2 ? weights[0].size(0) / l.G : 0;
  expect(l.H > 0 && l.P > 0 && l.I > 0, "sizes must be greater than zero");
  expect(l.projected || l.P == l.H, "expected h0 of ", l.H, " units, got ", l.P);
  for (int d = 0; d < l.D; ++d) {
    const Tensor* w = weights.data() + size_t(d) * each;
    check(w[0], "w_ih", type, {l.G * l.H, l.I});
    check(w[1], "w_hh", type, {l.G * l.H, l.P});
    if (bias) check(w[2], "b_ih", type, {l.G * l.H});
    if (bias) check(w[3], "b_hh", type, {l.G * l.H});
    if (l.projected) check(w[each - 1], "w_hr", type, {l.P, l.H});
    for (size_t k = 0; k < each; ++k) l.weights[d].push_back(contiguous_of(w[k]));
  }
  if (batch_sizes) {
    expect(batch_sizes->dim() == 1 && batch_sizes->scalar_type() == ScalarType::Long &&
               batch_sizes->is_cpu(),
           "batch_sizes must be a 1-D int64 tensor on the CPU");
    const Tensor packed = contiguous_of(*batch_sizes);
    const int64_t* sizes = pointer<int64_t>(packed);
    l.T = packed.size(0);
    l.offsets.assign(1, 0);
    for (int64_t t = 0; t < l.T; ++t) {
      expect(sizes[t] > 0 && sizes[t] <= (t ? sizes[t - 1] : l.B),
             "batch_sizes must be positive and must not grow");
      l.offsets.push_back(l.offsets.back() + sizes[t]);
    }
    l.N = l.offsets.back();
    expect(l.T > 0 && sizes[0] == l.B && x.size(0) == l.N, "packed input has ", x.size(0),
           " rows, but batch_sizes make ", l.N);
  } else {
    l.T = x.size(0);
    l.N = l.T * l.B;
    expect(l.T > 0, "expected sequence length to be larger than 0");
    expect(x.size(1) == l.B, "expected a batch of ", l.B, ", got ", x.size(1));
  }
  l.x = x.stride(x.dim() - 1) == 1 ? x : contiguous_of(x);
  return l;
}

// ---- a layer, forward ---------------------------------------------------------------------------

// W_ih x of all steps, (T, B, G*H), without bias. Steps or sequences are the outer rows, whichever
// are fewer.
template <class Real>
Tensor input_projection(const Layer& l, int d) {
  const int64_t N = l.G * l.H;
  const Tensor out = empty(l.x, l.rows_of(N));
  const Tensor workspace = empty(l.x, {multiply_workspace<Real>(instruction_set(), l.I, N)});
  const Rows<const Real> x = l.input<Real>();
  const Rows<Real> y = l.at(writable<Real>(out), N);
  Multiply<Real> p{1, l.N, l.I, N, x.data, 0, x.row, nullptr, y.data, 0, y.row};
  if (!l.packed() && x.step != l.B * x.row) {
    if (l.B < l.T)
      p = {l.B, l.T, l.I, N, x.data, x.row, x.step, nullptr, y.data, y.row, y.step};
    else
      p = {l.T, l.B, l.I, N, x.data, x.step, x.row, nullptr, y.data, y.step, y.row};
  }
  const Real* w = pointer<Real>(l.w_ih(d));
  multiply_cpu<Real>(instruction_set(), p, &w, 1, true, writable<Real>(workspace), torch_threads());
  return out;
}

struct LayerOutput {
  Tensor y, hn, cn, gates, c;  // cn, c: LSTM; gates and c of all steps: kept for backward
};

template <class Real>
LayerOutput forward(const Layer& l, const Tensor& h0, const OptionalTensor& c0, bool train) {
  const Tensor& x = l.x;
  const bool lstm = l.cell == Cell::lstm;
  const Parallel parallel = torch_threads();
  const Plan plan = plan_cpu(l.problem(parallel.threads, sizeof(Real)));
  LayerOutput out;
  out.y = empty(x, l.rows_of(l.D * l.P));
  out.hn = empty(x, {l.D, l.B, l.P});
  out.gates = empty(x, train ? l.rows_of(l.D * l.G * l.H) : std::vector<int64_t>{0});
  out.cn = empty(x, lstm ? std::vector<int64_t>{l.D, l.B, l.H} : std::vector<int64_t>{0});
  // Inference needs the cell state of one step only.
  out.c = empty(x, !lstm   ? std::vector<int64_t>{0}
                   : train ? l.rows_of(l.D * l.H)
                           : std::vector<int64_t>{l.D, l.B, l.H});
  if (l.B == 0) return out;

  const Tensor h = contiguous_of(h0);
  const OptionalTensor c = contiguous_of(c0);
  Tensor projected[2];
  Forward<Real> p[2] = {};
  for (int d = 0; d < l.D; ++d) {
    static_cast<Sizes&>(p[d]) = l.sizes(d);
    p[d].cell = l.cell;
    if (plan.project_first) {
      projected[d] = input_projection<Real>(l, d);
      p[d].projected = l.at<const Real>(pointer<Real>(projected[d]), l.G * l.H);
    } else {
      p[d].x = l.input<Real>();
    }
    p[d].w_ih = pointer<Real>(l.w_ih(d));
    p[d].w_hh = pointer<Real>(l.w_hh(d));
    p[d].b_ih = pointer<Real>(l.b_ih(d));
    p[d].b_hh = pointer<Real>(l.b_hh(d));
    p[d].w_hr = pointer<Real>(l.w_hr(d));
    p[d].h0 = pointer<Real>(h) + d * l.B * l.P;
    p[d].y = l.at(writable<Real>(out.y), l.D * l.P, d * l.P);
    p[d].hn = writable<Real>(out.hn) + d * l.B * l.P;
    if (train) p[d].gates = l.at(writable<Real>(out.gates), l.D * l.G * l.H, d * l.G * l.H);
    if (lstm) {
      p[d].c0 = pointer<Real>(c) + d * l.B * l.H;
      p[d].cn = writable<Real>(out.cn) + d * l.B * l.H;
      if (train)
        p[d].c = l.at(writable<Real>(out.c), l.D * l.H, d * l.H);
      else
        p[d].c = {writable<Real>(out.c) + d * l.B * l.H, 0, l.H, nullptr};
    }
  }
  const InstructionSet& set = instruction_set();
  const Tensor workspace = empty(x, {forward_workspace(set, p, l.D)});
  layer_forward_cpu(set, plan, p, l.D, writable<Real>(workspace), parallel);
  if (!train) out.c = empty(x, {0});
  return out;
}

LayerOutput forward(const Layer& l, const Tensor& h0, const OptionalTensor& c0, bool train) {
  return l.x.scalar_type() == ScalarType::Float ? forward<float>(l, h0, c0, train)
                                                : forward<double>(l, h0, c0, train);
}

std::tuple<Tensor, Tensor, Tensor> gru_forward_cpu(const Tensor& x, const Tensor& h0,
                                                   const Tensors& weights, bool bias,
                                                   const OptionalTensor& batch_sizes, bool train) {
  LayerOutput out =
      forward(layer_of(Cell::gru, x, h0, weights, bias, batch_sizes), h0, std::nullopt, train);
  return {out.y, out.hn, out.gates};
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> lstm_forward_cpu(
    const Tensor& x, const Tensor& h0, const Tensor& c0, const Tensors& weights, bool bias,
    const OptionalTensor& batch_sizes, bool train) {
  const Layer l = layer_of(Cell::lstm, x, h0, weights, bias, batch_sizes);
  check(c0, "c0", x.scalar_type(), {l.D, l.B, l.H});
  LayerOutput out = forward(l, h0, c0, train);
  return {out.y, out.hn, out.cn, out.gates, out.c};
}

// ---- a layer, backward --------------------------------------------------------------------------

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
  // are the states of all steps but the first, one step late; h0 is that of the first.
  void add_recurrent(Rows<const Real> da, int64_t M, const Tensor& y, const Tensor& h0, int d,
                     const Tensor& out, int64_t first) const {
    if (l_.packed()) {
      const Tensor previous = packed_previous<Real>(l_, y, h0, d);
      return add(da, M, l_.at(pointer<Real>(previous), l_.P), l_.P, out, first, 1, false);
    }
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
                        const Tensor& c, bool need_input, bool need_weights) {
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
    sums.add_recurrent(gates_at(da), lstm ? 4 * H : 2 * H, y, h0, d, dw_hh, 0);
    if (!lstm) sums.add_recurrent(gates_at(dq), H, y, h0, d, dw_hh, 2 * H);
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
                        const Tensor& y, const Tensor& gates, const Tensor& c, bool need_input,
                        bool need_weights) {
  const ScalarType type = l.x.scalar_type();
  check(y, "y", type, l.rows_of(l.D * l.P));
  check(gates, "gates", type, l.rows_of(l.D * l.G * l.H));
  expect(y.is_contiguous() && gates.is_contiguous() && c.is_contiguous(),
         "saved tensors must be contiguous");
  if (dy) check(*dy, "dy", type, l.rows_of(l.D * l.P));
  if (dhn) check(*dhn, "dhn", type, {l.D, l.B, l.P});
  if (dcn) check(*dcn, "dcn", type, {l.D, l.B, l.H});
  const auto run = type == ScalarType::Float ? backward<float> : backward<double>;
  return run(l, dy, dhn, dcn, h0, c0, y, gates, c, need_input, need_weights);
}

std::tuple<Tensor, Tensor, Tensors> gru_backward_cpu(const OptionalTensor& dy,
                                                     const OptionalTensor& dhn, const Tensor& x,
                                                     const Tensor& h0, const Tensors& weights,
                                                     bool bias, const OptionalTensor& batch_sizes,
                                                     const Tensor& y, const Tensor& gates,
                                                     bool need_input, bool need_weights) {
  const Layer l = layer_of(Cell::gru, x, h0, weights, bias, batch_sizes);
  LayerGradients g = backward(l, dy, dhn, std::nullopt, h0, std::nullopt, y, gates, gates,
                              need_input, need_weights);
  return {g.dx, g.dh0, g.dweights};
}

std::tuple<Tensor, Tensor, Tensor, Tensors> lstm_backward_cpu(
    const OptionalTensor& dy, const OptionalTensor& dhn, const OptionalTensor& dcn, const Tensor& x,
    const Tensor& h0, const Tensor& c0, const Tensors& weights, bool bias,
    const OptionalTensor& batch_sizes, const Tensor& y, const Tensor& gates, const Tensor& c,
    bool need_input, bool need_weights) {
  const Layer l = layer_of(Cell::lstm, x, h0, weights, bias, batch_sizes);
  check(c0, "c0", x.scalar_type(), {l.D, l.B, l.H});
  check(c, "c", x.scalar_type(), l.rows_of(l.D * l.H));
  LayerGradients g = backward(l, dy, dhn, dcn, h0, c0, y, gates, c, need_input, need_weights);
  return {g.dx, g.dh0, g.dc0, g.dweights};
}

std::string instruction_set_name() {
  const char* error = instruction_set_error();
  expect(!error, error ? error : "");
  return instruction_set().name;
}

}  // namespace
}  // namespace gatedrnn

STABLE_TORCH_LIBRARY(gatedrnn, m) {
  m.def("instruction_set() -> str");
  m.def(
      "gru_forward(Tensor x, Tensor h0, Tensor[] weights, bool bias, Tensor? batch_sizes, "
      "bool train) -> (Tensor y, Tensor hn, Tensor gates)");
  m.def(
      "gru_backward(Tensor? dy, Tensor? dhn, Tensor x, Tensor h0, Tensor[] weights, bool bias, "
      "Tensor? batch_sizes, Tensor y, Tensor gates, bool need_input, bool need_weights) -> "
      "(Tensor dx, Tensor dh0, Tensor[] dweights)");
  m.def(
      "lstm_forward(Tensor x, Tensor h0, Tensor c0, Tensor[] weights, bool bias, "
      "Tensor? batch_sizes, bool train) -> (Tensor y, Tensor hn, Tensor cn, Tensor gates, Tensor "
      "c)");
  m.def(
      "lstm_backward(Tensor? dy, Tensor? dhn, Tensor? dcn, Tensor x, Tensor h0, Tensor c0, "
      "Tensor[] weights, bool bias, Tensor? batch_sizes, Tensor y, Tensor gates, Tensor c, "
      "bool need_input, bool need_weights) -> "
      "(Tensor dx, Tensor dh0, Tensor dc0, Tensor[] dweights)");
}

STABLE_TORCH_LIBRARY_IMPL(gatedrnn, CompositeExplicitAutograd, m) {
  m.impl("instruction_set", TORCH_BOX(&gatedrnn::instruction_set_name));
}

STABLE_TORCH_LIBRARY_IMPL(gatedrnn, CPU, m) {
  m.impl("gru_forward", TORCH_BOX(&gatedrnn::gru_forward_cpu));
  m.impl("gru_backward", TORCH_BOX(&gatedrnn::gru_backward_cpu));
  m.impl("lstm_forward", TORCH_BOX(&gatedrnn::lstm_forward_cpu));
  m.impl("lstm_backward", TORCH_BOX(&gatedrnn::lstm_backward_cpu));
}
