// The ops' schemas. Ops are functional: they allocate what they return. Users meet clear errors in
// Python; the checks in these files keep a wrong call from reading foreign memory.
#include "torch.h"

STABLE_TORCH_LIBRARY_FRAGMENT(GATEDRNN_OPS, m) {
  m.def(
      "gru_forward(Tensor x, Tensor h0, Tensor[] weights, bool bias, Tensor? batch_sizes, "
      "bool train, bool tf32, Tensor? lengths=None) -> (Tensor y, Tensor hn, Tensor gates)");
  m.def(
      "gru_backward(Tensor? dy, Tensor? dhn, Tensor x, Tensor h0, Tensor[] weights, bool bias, "
      "Tensor? batch_sizes, Tensor y, Tensor gates, bool need_input, bool need_weights, bool tf32, "
      "Tensor? lengths=None) -> (Tensor dx, Tensor dh0, Tensor[] dweights)");
  m.def(
      "lstm_forward(Tensor x, Tensor h0, Tensor c0, Tensor[] weights, bool bias, "
      "Tensor? batch_sizes, bool train, bool tf32, Tensor? lengths=None) -> (Tensor y, Tensor hn, "
      "Tensor cn, Tensor gates, Tensor c)");
  m.def(
      "lstm_backward(Tensor? dy, Tensor? dhn, Tensor? dcn, Tensor x, Tensor h0, Tensor c0, "
      "Tensor[] weights, bool bias, Tensor? batch_sizes, Tensor y, Tensor gates, Tensor c, "
      "bool need_input, bool need_weights, bool tf32, Tensor? lengths=None, Tensor? dc=None) -> "
      "(Tensor dx, Tensor dh0, Tensor dc0, Tensor[] dweights)");
  // On CUDA, where lengths of padded sequences, on the device, are taken by some kernels only:
  // whether both passes of such a layer have them.
  m.def("takes_lengths(Tensor x, Tensor h0, int gates, bool tf32) -> bool");
  // On CUDA: layers of one direction in one launch, h0 and c0 (L, B, H), the others' lists layer by
  // layer; and whether the plan wants that.
  m.def(
      "gru_stack_forward(Tensor x, Tensor h0, Tensor[] weights, bool bias, bool train, "
      "bool tf32) -> (Tensor[] y, Tensor[] hn, Tensor[] gates)");
  m.def(
      "lstm_stack_forward(Tensor x, Tensor h0, Tensor c0, Tensor[] weights, bool bias, bool train, "
      "bool tf32) -> (Tensor[] y, Tensor[] hn, Tensor[] cn, Tensor[] gates, Tensor[] c)");
  m.def("takes_stack(Tensor x, Tensor h0, int gates, bool tf32) -> bool");
  // On the CPU: with some of the gates, of which backward rebuilds the others; with the cell states
  // of all steps, and their gradients.
  m.def(
      "gru_recompute_forward(Tensor x, Tensor h0, Tensor[] weights, bool bias, "
      "Tensor? batch_sizes) -> (Tensor y, Tensor hn, Tensor gates)");
  m.def(
      "lstm_states_forward(Tensor x, Tensor h0, Tensor c0, Tensor[] weights, bool bias, "
      "Tensor? batch_sizes, bool train) -> "
      "(Tensor y, Tensor hn, Tensor cn, Tensor gates, Tensor c)");
  m.def(
      "lstm_states_backward(Tensor? dy, Tensor? dhn, Tensor? dcn, Tensor? dc, Tensor x, Tensor h0, "
      "Tensor c0, Tensor[] weights, bool bias, Tensor? batch_sizes, Tensor y, Tensor gates, "
      "Tensor c, bool need_input, bool need_weights) -> "
      "(Tensor dx, Tensor dh0, Tensor dc0, Tensor[] dweights)");
  m.def("stream_pack(Tensor[] weights, bool lstm, bool bias, int batch, int threads) -> Tensor");
  m.def(
      "stream_step(Tensor x, Tensor(a!) h, Tensor(b!)? c, Tensor(c!) packed, int now, "
      "int threads) -> Tensor");
  m.def(
      "gru_cell_forward(Tensor x, Tensor h, Tensor w_ih, Tensor w_hh, Tensor? b_ih, Tensor? b_hh, "
      "bool train) -> (Tensor h_next, Tensor saved)");
  m.def(
      "gru_cell_backward(Tensor? dh, Tensor x, Tensor h, Tensor w_ih, Tensor w_hh, bool bias, "
      "Tensor saved, bool need_input, bool need_weights) -> "
      "(Tensor dx, Tensor dh_prev, Tensor[] dweights)");
  m.def(
      "lstm_cell_forward(Tensor x, Tensor h, Tensor c, Tensor w_ih, Tensor w_hh, Tensor? b_ih, "
      "Tensor? b_hh, bool train) -> (Tensor h_next, Tensor c_next, Tensor saved)");
  m.def(
      "lstm_cell_backward(Tensor? dh, Tensor? dc, Tensor x, Tensor h, Tensor c, Tensor w_ih, "
      "Tensor w_hh, bool bias, Tensor saved, bool need_input, bool need_weights) -> "
      "(Tensor dx, Tensor dh_prev, Tensor dc_prev, Tensor[] dweights)");
}
