// A layer's backward op on CUDA tensors: the time loop leaves the gradients of all gates; those of
// the input and of the weights follow from them by matrix products over the whole sequence.
#include <tuple>

#include "layer.h"

namespace gatedrnn {
namespace {

Tensor zeros_like(const Tensor& w) {
  std::vector<int64_t> sizes;
  for (int64_t k = 0; k < w.dim(); ++k) sizes.push_back(w.size(k));
  return torch::stable::new_zeros(w, sizes);
}

struct LayerGradients {
  Tensor dx, dh0, dc0;
  Tensors dweights;
};

// What the time loop leaves; each has a row for every row of x.
struct Loop {
  Tensor dgates;    // all directions' input-side gates, so that dx is one product; then a GRU's q
  int64_t width;    // the columns of dgates
  Tensor dh;        // [N, D*P], with projection
  Tensor hidden;    // [N, D*H], with projection, for the weights' gradients
  Tensor previous;  // [N, D*P] h(t - 1), or undefined: y one step late has it
};

// Matrix products of what has the type of gates' gradients.
template <class Real>
class Products {
 public:
  using Wide = typename Types<Real>::Wide;
  using Grad = typename Types<Real>::Grad;

  // Where float32 stands in for float16, TF32 has digits enough.
  Products(const Layer& l, const OnDevice& on, bool tf32)
      : l_(l), tf32_(on.has_tf32() && (tf32 || type_of<Real>() == Type::float16)) {}

  // a^T b over `count` rows, [M, N], into the rows of `out` from `first` on.
  void sum(const Grad* a, int64_t lda, int64_t M, const Grad* b, int64_t ldb, int64_t N,
           int64_t count, const Tensor& out, int64_t first, bool accumulate) const {
    gemm({M, N, count, a, lda, true, b, ldb, false, writable<Wide>(out) + first * N, N,
          type_of<Grad>(), type_of<Wide>(), accumulate, tf32_});
  }

  // The rows of W_hh's gradient from `first` on: sum over steps of da(t)^T h(t - 1), `column` being
  // that where da begins. The rows of y are the states of all steps but the first, one step late;
  // h0 is that of the first.
  void recurrent(const Loop& loop, int64_t column, int64_t M, const Tensor& y, const Tensor& h0,
                 int d, const Tensor& out, int64_t first) const {
    const int64_t B = l_.B, P = l_.P, states = l_.D * P;
    const Grad* da = pointer<Grad>(loop.dgates) + column;
    if (loop.previous.defined())
      return sum(da, loop.width, M, pointer<Grad>(loop.previous) + d * P, states, P, l_.N, out,
                 first, false);
    const int64_t later = (l_.T - 1) * B, from = d == 1 ? later : 0;  // rows
    sum(da + from * loop.width, loop.width, M, pointer<Grad>(h0) + d * B * P, P, P, B, out, first,
        false);
    da += d == 1 ? 0 : B * loop.width;
    sum(da, loop.width, M, pointer<Grad>(y) + d * P + (d == 1 ? B * states : 0), states, P, later,
        out, first, true);
  }

  // The gradient of x, from all directions' input-side gates at once.
  Tensor input(const Loop& loop) const {
    const int64_t K = l_.D * l_.G * l_.H;
    const Tensor w = as<Grad>(l_.D == 1 ? l_.w_ih(0) : cat({l_.w_ih(0), l_.w_ih(1)}, 0));
    const Tensor dx = empty_of<Grad>(l_.x, l_.rows_of(l_.I));
    gemm({l_.N, l_.I, K, loop.dgates.const_data_ptr(), loop.width, false, w.const_data_ptr(), l_.I,
          false, dx.mutable_data_ptr(), l_.I, type_of<Grad>(), type_of<Grad>(), false, tf32_});
    return as<Real>(dx);
  }

 private:
  const Layer& l_;
  const bool tf32_;
};

template <class Real>
Tensors weight_gradients(const Layer& l, const Products<Real>& products, const Loop& loop,
                         const Tensor& y, const Tensor& h0) {
  using Wide = typename Types<Real>::Wide;
  using Grad = typename Types<Real>::Grad;
  const bool lstm = l.cell == Cell::lstm;
  const int64_t H = l.H, P = l.P, rows_of_gates = l.G * H;
  const InputRows given = input_rows(l, as<Grad>(l.x));
  const Tensor x = given.time_major ? given.x : torch::stable::contiguous(given.x);
  const int64_t ldx = given.time_major ? given.stride : l.I;
  const Tensor bias_sums =
      l.bias ? as<Real>(torch::stable::sum(loop.dgates, std::vector<int64_t>{0})) : Tensor();
  Tensors out;
  for (int d = 0; d < l.D; ++d) {
    const int64_t da = d * rows_of_gates, dq = l.D * rows_of_gates + d * H;  // columns of dgates
    const Tensor dw_ih = empty_of<Wide>(y, {rows_of_gates, l.I}),
                 dw_hh = empty_of<Wide>(y, {rows_of_gates, P});
    products.sum(pointer<Grad>(loop.dgates) + da, loop.width, rows_of_gates, pointer<Grad>(x), ldx,
                 l.I, l.N, dw_ih, 0, false);
    products.recurrent(loop, da, lstm ? 4 * H : 2 * H, y, h0, d, dw_hh, 0);
    if (!lstm) products.recurrent(loop, dq, H, y, h0, d, dw_hh, 2 * H);
    out.insert(out.end(), {as<Real>(dw_ih), as<Real>(dw_hh)});
    if (l.bias) {
      const Tensor input_side = rows(bias_sums, da, rows_of_gates);
      out.push_back(torch::stable::clone(input_side));
      out.push_back(lstm ? torch::stable::clone(input_side)
                         : cat({rows(input_side, 0, 2 * H), rows(bias_sums, dq, H)}, 0));
    }
    if (l.projected) {
      const Tensor dw_hr = empty_of<Wide>(y, {P, H});
      products.sum(pointer<Grad>(loop.dh) + d * P, l.D * P, P, pointer<Grad>(loop.hidden) + d * H,
                   l.D * H, H, l.N, dw_hr, 0, false);
      out.push_back(as<Real>(dw_hr));
    }
  }
  return out;
}

struct Saved {
  const Tensor &y, &gates;
  const OptionalTensor& c;
};

struct Cotangents {
  const OptionalTensor &dy, &dhn, &dcn, &dc;
};

template <class Real>
LayerGradients backward(const Layer& l, const OnDevice& on, const Cotangents& given,
                        const Tensor& h0_in, const OptionalTensor& c0_in, const Saved& saved,
                        const OptionalTensor& lengths, bool need_input, bool need_weights,
                        bool tf32) {
  using Wide = typename Types<Real>::Wide;
  using Grad = typename Types<Real>::Grad;
  const bool lstm = l.cell == Cell::lstm;
  const int64_t B = l.B, G = l.G, H = l.H, P = l.P, D = l.D;
  const std::vector<int64_t> none{0};
  const Tensor& y = saved.y;
  LayerGradients out;
  out.dh0 = empty(y, {D, B, P});
  out.dc0 = empty(y, lstm ? std::vector<int64_t>{D, B, H} : none);
  if (B == 0) {  // nothing to add up: the gradients are zero
    out.dx = empty(y, need_input ? l.rows_of(l.I) : none);
    for (int d = 0; need_weights && d < D; ++d)
      for (const Tensor& w : l.weights[d]) out.dweights.push_back(zeros_like(w));
    return out;
  }

  const Tensor h0 = contiguous_of(h0_in);
  const OptionalTensor c0 = contiguous_of(c0_in), dhn = contiguous_of(given.dhn),
                       dcn = contiguous_of(given.dcn), dc = contiguous_of(given.dc);
  // A batch-first output's gradient comes with the strides of its own.
  const bool rows_apart = given.dy && !l.packed() && given.dy->stride(2) == 1;
  const OptionalTensor dy = rows_apart ? given.dy : contiguous_of(given.dy);
  const bool need_hidden = l.projected && need_weights;
  const UnevenRows uneven(l, lengths, on);
  // float16's states are wanted as float32, which the loop writes as it goes.
  const bool need_previous =
      need_weights && (l.packed() || uneven.padded() || type_of<Real>() != type_of<Grad>());
  Loop loop;
  loop.width = D * 4 * H;
  loop.dgates = empty_of<Grad>(y, {l.N, loop.width});
  if (l.projected) loop.dh = empty_of<Grad>(y, {l.N, D * P});
  if (need_hidden) loop.hidden = empty_of<Grad>(y, {l.N, D * H});
  if (need_previous) loop.previous = empty_of<Grad>(y, {l.N, D * P});
  const CudaPlan plan = plan_of<Real>(l, on, tf32, uneven.padded());
  const int64_t packed_each = scratch_size(l.G, plan, l.B, false);
  const Tensor packed = empty_of<float>(y, {D * packed_each});
  const Tensor carry = empty_of<Wide>(y, {D, B, H});

  Tensor w_hh_t[2], w_hr_t[2];
  CudaBackward<Real> p[2] = {};
  for (int d = 0; d < D; ++d) {
    if (!plan.persistent_backward.units) w_hh_t[d] = contiguous_of(transposed(as<Grad>(l.w_hh(d))));
    if (l.projected) w_hr_t[d] = contiguous_of(transposed(as<Grad>(*l.w_hr(d))));
    static_cast<Sizes&>(p[d]) = l.sizes(d);
    p[d].cell = l.cell;
    p[d].w_hh = pointer<Real>(l.w_hh(d));
    if (w_hh_t[d].defined()) p[d].w_hh_t = pointer<Grad>(w_hh_t[d]);
    if (l.projected) p[d].w_hr_t = pointer<Grad>(w_hr_t[d]);
    p[d].h0 = pointer<Real>(h0) + d * B * P;
    p[d].y = l.at<const Real>(pointer<Real>(y), D * P, d * P);
    p[d].gates = l.at<const Real>(pointer<Real>(saved.gates), D * G * H, d * G * H);
    p[d].dy = l.at<const Real>(pointer<Real>(dy), D * P, d * P);
    if (rows_apart) {
      p[d].dy.step = dy->stride(0);
      p[d].dy.row = dy->stride(1);
    }
    if (dhn) p[d].dhn = pointer<Real>(dhn) + d * B * P;
    p[d].dgates = l.at(writable<Grad>(loop.dgates), loop.width, d * G * H);
    p[d].dq = D * G * H + d * H - d * G * H;
    p[d].dh0 = writable<Real>(out.dh0) + d * B * P;
    p[d].packed = writable<float>(packed) + d * packed_each;
    p[d].uneven = uneven.pointers();
    if (l.projected) p[d].dh = l.at(writable<Grad>(loop.dh), D * P, d * P);
    if (need_hidden) p[d].hidden = l.at(writable<Grad>(loop.hidden), D * H, d * H);
    if (need_previous) p[d].previous = l.at(writable<Grad>(loop.previous), D * P, d * P);
    (lstm ? p[d].carry_c : p[d].carry_h) = writable<Wide>(carry) + d * B * H;
    if (lstm) {
      p[d].c0 = pointer<Real>(c0) + d * B * H;
      p[d].c = l.at<const Wide>(pointer<Wide>(saved.c), D * H, d * H);
      if (dcn) p[d].dcn = pointer<Real>(dcn) + d * B * H;
      p[d].dc = l.at<const Real>(pointer<Real>(dc), D * H, d * H);
      p[d].dc0 = writable<Real>(out.dc0) + d * B * H;
    }
  }
  expect_launched(layer_backward_cuda(plan, p, D, on.stream));
  uneven.zero_padding<Grad>(loop.dgates);
  if (need_previous) uneven.zero_padding<Grad>(loop.previous);

  const Products<Real> products(l, on, tf32);
  out.dx = need_input ? products.input(loop) : empty(y, none);
  if (need_weights) out.dweights = weight_gradients<Real>(l, products, loop, y, h0);
  return out;
}

LayerGradients backward(const Layer& l, const Cotangents& given, const Tensor& h0,
                        const OptionalTensor& c0, const Tensors& weights, const Saved& saved,
                        const OptionalTensor& lengths, bool need_input, bool need_weights,
                        bool tf32) {
  const OnDevice on(
      l.x,
      {given.dy, given.dhn, given.dcn, given.dc, h0, c0, saved.y, saved.gates, saved.c, lengths},
      weights);
  check_lengths(l, lengths);
  if (given.dc) check(*given.dc, "dc", l.x.scalar_type(), l.rows_of(l.D * l.H));
  return with_storage_of(l.x, [&]<class Real>() {
    check_backward(l, given.dy, given.dhn, given.dcn, c0, saved.y, saved.gates, l.G, saved.c,
                   scalar_type_of(type_of<typename Types<Real>::Wide>()));
    return backward<Real>(l, on, given, h0, c0, saved, lengths, need_input, need_weights, tf32);
  });
}

std::tuple<Tensor, Tensor, Tensors> gru_backward_cuda(const OptionalTensor& dy,
                                                      const OptionalTensor& dhn, const Tensor& x,
                                                      const Tensor& h0, const Tensors& weights,
                                                      bool bias, const OptionalTensor& batch_sizes,
                                                      const Tensor& y, const Tensor& gates,
                                                      bool need_input, bool need_weights, bool tf32,
                                                      const OptionalTensor& lengths) {
  const Layer l = layer_of(Cell::gru, x, h0, weights, bias, batch_sizes);
  LayerGradients g = backward(l, {dy, dhn, std::nullopt, std::nullopt}, h0, std::nullopt, weights,
                              {y, gates, std::nullopt}, lengths, need_input, need_weights, tf32);
  return {g.dx, g.dh0, g.dweights};
}

std::tuple<Tensor, Tensor, Tensor, Tensors> lstm_backward_cuda(
    const OptionalTensor& dy, const OptionalTensor& dhn, const OptionalTensor& dcn, const Tensor& x,
    const Tensor& h0, const Tensor& c0, const Tensors& weights, bool bias,
    const OptionalTensor& batch_sizes, const Tensor& y, const Tensor& gates, const Tensor& c,
    bool need_input, bool need_weights, bool tf32, const OptionalTensor& lengths,
    const OptionalTensor& dc) {
  const Layer l = layer_of(Cell::lstm, x, h0, weights, bias, batch_sizes);
  LayerGradients g = backward(l, {dy, dhn, dcn, dc}, h0, c0, weights, {y, gates, c}, lengths,
                              need_input, need_weights, tf32);
  return {g.dx, g.dh0, g.dc0, g.dweights};
}

}  // namespace
}  // namespace gatedrnn

STABLE_TORCH_LIBRARY_IMPL(GATEDRNN_OPS, GATEDRNN_CUDA_KEY, m) {
  m.impl("gru_backward", TORCH_BOX(&gatedrnn::gru_backward_cuda));
  m.impl("lstm_backward", TORCH_BOX(&gatedrnn::lstm_backward_cuda));
}
