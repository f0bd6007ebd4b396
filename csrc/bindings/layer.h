// One layer as an op receives it: x, h0, and the weights as a list, direction by direction, each
// w_ih [G*H, I], w_hh [G*H, P], then b_ih, b_hh [G*H] if `bias`, then w_hr [P, H] if projected.
#pragma once

#include "plans.h"

namespace gatedrnn {

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
  // Contiguous rows of `width`, beginning at `column`.
  // recompute keeps the gates of the steps that backward walks first, of a quarter of the rows at
  // the most: rebuilding all of them takes more than a quarter of the time. A direction's lie
  // together.
  int64_t kept_rows() const { return N / 4; }
  int64_t kept_from(int d) const {
    const Sizes s = sizes(d);
    int64_t k = T, left = kept_rows();
    while (k > 0 && s.active(s.step(k - 1)) <= left) left -= s.active(s.step(--k));
    return k;
  }
  template <class Real>
  Rows<Real> kept_gates(Real* data, int64_t width, int d) const {
    const int64_t first = d == 1 ? 0 : kept_from(d);
    return {data ? data + d * kept_rows() * width : nullptr, B * width, width, packed(), first};
  }
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

// Checks the arguments that forward and backward have in common.
inline Layer layer_of(Cell cell, const Tensor& x, const Tensor& h0, const Tensors& weights,
                      bool bias, const OptionalTensor& batch_sizes) {
  Layer l{};
  l.cell = cell;
  l.G = cell == Cell::gru ? 3 : 4;
  const ScalarType type = x.scalar_type();
  expect_type(type);
  expect(h0.dim() == 3 && (h0.size(0) == 1 || h0.size(0) == 2),
         "expected h0 of shape (directions, batch, hidden), got ", h0);
  expect(h0.scalar_type() == type, "h0 has the wrong dtype");
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

// Of padded sequences, which on the CPU are packed, or masked, by who calls.
inline void expect_no_lengths(const OptionalTensor& lengths) {
  expect(!lengths, "lengths are for CUDA tensors");
}

inline Plan plan_of(const Layer& l, int threads) {
  return cpu_plan_of(l.sizes(0), l.G, l.D, l.x.scalar_type(), threads);
}

// Whether these are gates as recompute keeps them.
inline bool are_some(const Tensor& gates) { return gates.dim() == 1; }

// Checks what backward has besides: the cotangents, and what forward has saved: `kept` gates, and
// cell states, c, of `c_type`.
inline void check_backward(const Layer& l, const OptionalTensor& dy, const OptionalTensor& dhn,
                           const OptionalTensor& dcn, const OptionalTensor& c0, const Tensor& y,
                           const Tensor& gates, int64_t kept, const OptionalTensor& c,
                           ScalarType c_type) {
  const ScalarType type = l.x.scalar_type();
  check(y, "y", type, l.rows_of(l.D * l.P));
  check(gates, "gates", type,
        are_some(gates) ? std::vector<int64_t>{l.D * l.kept_rows() * kept * l.H}
                        : l.rows_of(l.D * kept * l.H));
  if (c0) check(*c0, "c0", type, {l.D, l.B, l.H});
  if (c) check(*c, "c", c_type, l.rows_of(l.D * l.H));
  expect(y.is_contiguous() && gates.is_contiguous() && (!c || c->is_contiguous()),
         "saved tensors must be contiguous");
  if (dy) check(*dy, "dy", type, l.rows_of(l.D * l.P));
  if (dhn) check(*dhn, "dhn", type, {l.D, l.B, l.P});
  if (dcn) check(*dcn, "dcn", type, {l.D, l.B, l.H});
}

}  // namespace gatedrnn
