// A layer's time loop and a cell's step on the GPU, as the host calls them: no torch, no CUDA
// headers. Every launch goes to `stream`; nothing waits. The results are 0 or CUDA's error code.
#pragma once

#include <cstdint>

#include "../params.h"
#include "../plan.h"

namespace gatedrnn {

// What a layer of Real computes with (Wide: sums, pre-activations, carried states) and in what it
// keeps the gates' gradients, which have no natural range: float16 would lose the small ones.
template <class Real>
struct Types {
  using Wide = float;
  using Grad = Real;
};
template <>
struct Types<double> {
  using Wide = double;
  using Grad = double;
};
template <>
struct Types<Half> {
  using Wide = float;
  using Grad = float;
};

// Sequences of several lengths, on the device, for both directions. The persistent kernels know
// these; the step kernels take packed data by its offsets alone.
struct Uneven {
  const int64_t* lengths;  // [B] of padded sequences, or null
  const int64_t* order;    // [B] those sequences, longest first
  int64_t* places;         // [T + B] of scratch: packed data's
};

// One direction of one layer, forward. One launch a step serves both directions; with a projection
// a second one, whose product needs the first one's result.
template <class Real>
struct CudaForward : Sizes {
  using Wide = typename Types<Real>::Wide;
  Cell cell;
  Rows<const Wide> projected;  // (T, B, G*H) W_ih x for all steps, without bias; or, where the plan
                               // says that the kernel projects, null, and
  Rows<const Real> x;          // (T, B, I)
  const Real* w_ih;            // [G*H, I]
  const Real* w_hh;            // [G*H, P] contiguous, as all without strides
  const Real* b_ih;            // [G*H] or null
  const Real* b_hh;            // [G*H] or null
  const Real* w_hr;            // [P, H] or null: no projection, P == H
  const Real* h0;              // [B, P]
  const Real* c0;              // [B, H], LSTM
  Rows<Real> y;                // (T, B, P)
  Real* hn;                    // [B, P]
  Real* cn;                    // [B, H], LSTM
  Rows<Real> gates;            // (T, B, 3H) GRU: r, z, q; (T, B, 4H) LSTM: i, f, g, o; or null
  Rows<Wide> c;                // (T, B, H) LSTM; inference passes one step's buffer with step = 0
  Wide* carry;                 // [B, H] GRU of 16-bit storage: its state between steps
  Rows<Real> hidden;           // (T, B, H) o * tanh(c); with projection only; step = 0 will do
  float* packed;               // persistent: scratch_size, at a multiple of 16 bytes
  Uneven uneven;               // persistent
};

// One direction of one layer, backward through time.
template <class Real>
struct CudaBackward : Sizes {
  using Wide = typename Types<Real>::Wide;
  using Grad = typename Types<Real>::Grad;
  Cell cell;
  const Real* w_hh;        // [G*H, P] of the persistent kernels
  const Grad* w_hh_t;      // [P, G*H] W_hh transposed, of the step kernels
  const Grad* w_hr_t;      // [H, P] W_hr transposed, or null
  const Real* h0;          // [B, P]
  const Real* c0;          // [B, H], LSTM
  Rows<const Real> y;      // (T, B, P)
  Rows<const Real> gates;  // as CudaForward left them
  Rows<const Wide> c;      // (T, B, H), LSTM
  Rows<const Real> dy;     // (T, B, P) or null: zero
  const Real* dhn;         // [B, P] or null
  const Real* dcn;         // [B, H] or null
  Rows<const Real> dc;     // (T, B, H) of every step's cell state, or null: zero
  Rows<Grad> dgates;       // (T, B, ...): r, z, n (i, f, g, o) from column 0
  int64_t dq;              // GRU: the column of `dgates` where q's gradient begins
  Rows<Grad> dh;           // (T, B, P) the state's whole gradient; with projection only
  Rows<Grad> hidden;       // (T, B, H) o * tanh(c); with projection only, or null
  Rows<Grad> previous;     // (T, B, P) h(t - 1) of every row, or null: not wanted
  Wide* carry_h;           // [B, H] GRU: what reaches h(t - 1) directly; scratch
  Wide* carry_c;           // [B, H] LSTM: dc; scratch
  float* packed;           // persistent: as CudaForward's
  Uneven uneven;           // persistent
  Real* dh0;               // [B, P]
  Real* dc0;               // [B, H], LSTM
};

template <class Real>
int layer_forward_cuda(const CudaPlan& plan, const CudaForward<Real>* directions, int count,
                       void* stream);
template <class Real>
int layer_backward_cuda(const CudaPlan& plan, const CudaBackward<Real>* directions, int count,
                        void* stream);

// Layers of one direction in one launch, each a step behind the one below, whose y is its x; the
// first one's input is projected. `plan` is a wavefront's, `count` at most kMostStacked. Each
// layer's `packed` has twice packed_size floats, `exchange` stack_exchange_size, at multiples of 16
// bytes.
template <class Real>
int stack_forward_cuda(const PersistentPlan& plan, const CudaForward<Real>* layers, int count,
                       float* exchange, void* stream);

// Zeros for every row (T, B) of so many bytes, 2 or a multiple of it, that lies beyond its
// sequence's length.
int zero_padding_cuda(void* rows, int64_t bytes, int64_t T, int64_t B, const int64_t* lengths,
                      void* stream);

// A cell's gates, from both products, which have their biases already.
template <class Real>
struct CudaCellForward {
  Cell cell;
  int64_t B, H;
  const Real* gates_x;  // [B, G*H] W_ih x + b_ih
  const Real* gates_h;  // [B, G*H] W_hh h + b_hh
  const Real* h;        // [B, H]
  const Real* c;        // [B, H], LSTM
  Real* h_next;         // [B, H]
  Real* c_next;         // [B, H], LSTM
  Real* saved;          // GRU [B, 4H]: r, z, n, q; LSTM [B, 5H]: i, f, g, o, tanh(c')
};

template <class Real>
struct CudaCellBackward {
  Cell cell;
  int64_t B, H;
  const Real* saved;  // as CudaCellForward left it
  const Real* h;      // [B, H]
  const Real* c;      // [B, H], LSTM
  const Real* dh;     // [B, H] or null: zero
  const Real* dc;     // [B, H] or null: zero
  Real* dgates_x;     // [B, G*H]
  Real* dgates_h;     // [B, 3H], GRU
  Real* dh_prev;      // [B, H] GRU: only what reaches h directly
  Real* dc_prev;      // [B, H], LSTM
};

template <class Real>
int cell_forward_cuda(const CudaCellForward<Real>& step, void* stream);
template <class Real>
int cell_backward_cuda(const CudaCellBackward<Real>& step, void* stream);

struct CudaDevice {
  int architecture;  // 90 for compute capability 9.0
  int multiprocessors;
  Clusters clusters;
};

// Makes device `index` the calling thread's for this binary's CUDA runtime, and describes it.
int use_cuda_device(int index, CudaDevice* device);
const char* cuda_error_text(int error);
int64_t cuda_launches();  // kernels launched by this file's functions so far, for tests

}  // namespace gatedrnn
