// Every cell equation, once: forward and backward, GRU and LSTM.
//
// The functions are written for V, a vector of hidden units of one sequence (or a single unit).
// sigmoid(V) and tanh(V) must be declared where this header is included: cpu/simd.h gives them for
// the CPU's vectors, cuda/numbers.h for the GPU's threads, which may call what is constexpr.
// Forward functions take pre-activations, which the caller has summed as PyTorch defines them
// (torch.nn.GRU, torch.nn.LSTM):
//
//   GRU (Cho et al. 2014, arXiv:1406.1078, with PyTorch's b_hn inside the reset product)
//     r = sigmoid(W_ir x + b_ir + W_hr h + b_hr)     q = W_hn h + b_hn
//     z = sigmoid(W_iz x + b_iz + W_hz h + b_hz)     n = tanh(W_in x + b_in + r * q)
//     h' = (1 - z) * n + z * h
//   LSTM (Hochreiter & Schmidhuber 1997, with the forget gate of Gers et al. 2000)
//     i, f, o = sigmoid(...)    g = tanh(...)    c' = f * c + i * g    h' = o * tanh(c')
//
// In backward, d<name> is the gradient of the loss with respect to <name>; da_<gate> that with
// respect to the gate's pre-activation, which is what the weights' and the input's gradients need.
#pragma once

template <class V>
struct GruGates {
  V r, z, n, h;
};

// From the gates r and z on: whoever has many units takes all of their gates first.
template <class V>
constexpr GruGates<V> gru_update(V r, V z, V a_n, V q, V h_prev) {
  const V n = tanh(a_n + r * q);
  return {r, z, n, n + z * (h_prev - n)};
}

template <class V>
constexpr GruGates<V> gru_gates(V a_r, V a_z, V a_n, V q, V h_prev) {
  return gru_update<V>(sigmoid(a_r), sigmoid(a_z), a_n, q, h_prev);
}

// n from what forward keeps anyway. Where z is 1 to rounding, n has no influence on h' and its
// gradient is zero whatever n is, so the 0 returned there changes nothing. Rounding may carry the
// quotient beyond tanh's range when z is close to 1; there 1 - z weighs n by next to nothing.
template <class V>
constexpr V gru_candidate(V z, V h_prev, V h) {
  const V rest = 1 - z;
  V n = (h - z * h_prev) / rest;
  n = n > 1 ? V{} + 1 : n;
  n = n < -1 ? V{} - 1 : n;
  return rest == 0 ? V{} : n;
}

template <class V>
struct GruGradients {
  V da_r, da_z, da_n, dq, dh_prev;  // dh_prev: only what reaches h directly, through z * h
};

//   dn = dh (1 - z)      da_n = dn (1 - n^2)     dr = da_n q    da_r = dr r (1 - r)
//   dz = dh (h - n)      da_z = dz z (1 - z)     dq = da_n r    dh_prev = dh z
template <class V>
constexpr GruGradients<V> gru_gates_backward(V dh, V r, V z, V n, V q, V h_prev) {
  const V da_n = dh * (1 - z) * (1 - n * n);
  const V da_z = dh * (h_prev - n) * (z * (1 - z));
  const V da_r = da_n * q * (r * (1 - r));
  return {da_r, da_z, da_n, da_n * r, dh * z};
}

template <class V>
struct LstmGates {
  V i, f, g, o, c, h;
};

template <class V>
constexpr LstmGates<V> lstm_update(V i, V f, V g, V o, V c_prev) {
  const V c = f * c_prev + i * g;
  return {i, f, g, o, c, o * tanh(c)};
}

template <class V>
constexpr LstmGates<V> lstm_gates(V a_i, V a_f, V a_g, V a_o, V c_prev) {
  return lstm_update<V>(sigmoid(a_i), sigmoid(a_f), tanh(a_g), sigmoid(a_o), c_prev);
}

template <class V>
struct LstmGradients {
  V da_i, da_f, da_g, da_o, dc_prev;
};

//   dc += dh o (1 - tanh(c)^2)     da_i = dc g i (1 - i)     da_f = dc c_prev f (1 - f)
//   dc_prev = dc f                 da_g = dc i (1 - g^2)     da_o = dh tanh(c) o (1 - o)
template <class V>
constexpr LstmGradients<V> lstm_gates_backward(V dh, V dc, V i, V f, V g, V o, V c_prev, V tanh_c) {
  dc = dc + dh * o * (1 - tanh_c * tanh_c);
  return {dc * g * (i * (1 - i)), dc * c_prev * (f * (1 - f)), dc * i * (1 - g * g),
          dh * tanh_c * (o * (1 - o)), dc * f};
}
