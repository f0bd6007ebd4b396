// What crosses from the bindings to the kernels: plain pointers, sizes and strides.
//
// Letters, here and everywhere: T steps, B sequences, I input features, H hidden units, P width of
// the recurrent state (H, or proj_size for an LSTM with projection), G gates (GRU 3: r, z, n;
// LSTM 4: i, f, g, o), D directions. All sizes and strides count elements.
#pragma once

#include <atomic>
#include <cstdint>

namespace gatedrnn {

// Of a function that objects for several instruction sets define, the linker keeps one copy, which
// may be one that the machine does not understand. Hence no copy: it is part of each caller.
#define GATEDRNN_INLINE inline __attribute__((always_inline))

enum class Cell { gru, lstm };

// Storage of 16 bits; the kernels compute with floats.
struct Half {
  uint16_t bits;
};
struct Bfloat16 {
  uint16_t bits;
};

// One row per step and sequence, in a padded (T, B, ...) or a packed (N, ...) array.
template <class Real>
struct Rows {
  Real* data = nullptr;
  int64_t step = 0;                  // from one step to the next; not used when packed
  int64_t row = 0;                   // from one sequence to the next
  const int64_t* offsets = nullptr;  // [T + 1] packed: the first row of each step
  int64_t first = 0;                 // the step with which `data` begins

  GATEDRNN_INLINE Real* at(int64_t t, int64_t b) const {
    if (offsets) return data + (offsets[t] - offsets[first] + b) * row;
    return data + (t - first) * step + b * row;
  }
  GATEDRNN_INLINE explicit operator bool() const { return data != nullptr; }
};

struct Sizes {
  int64_t T, B, I, H, P;
  // [T + 1] packed: offsets[t + 1] - offsets[t] sequences are active at step t; null if not packed.
  const int64_t* offsets;
  bool reverse;  // walk from the last step to the first

  GATEDRNN_INLINE int64_t active(int64_t t) const {
    return offsets ? offsets[t + 1] - offsets[t] : B;
  }
  GATEDRNN_INLINE int64_t step(int64_t s) const {
    return reverse ? T - 1 - s : s;
  }  // the s-th step walked
};

// One direction of one layer, forward. Training keeps `gates` (and for the LSTM `c`) of all steps,
// or the gates of the last steps walked alone: backward rebuilds the others.
// Tensors lie in memory as Stored, and everything is computed, summed and carried as Real. Where
// those differ a GRU keeps a fourth gate, n: a rounded y does not give it back.
template <class Real, class Stored = Real>
struct Forward : Sizes {
  Cell cell;
  Rows<const Stored> x;  // (T, B, I)
  const Stored* w_ih;    // [G*H, I] contiguous
  const Stored* w_hh;    // [G*H, P]
  const Stored* b_ih;    // [G*H] or null
  const Stored* b_hh;    // [G*H] or null
  const Stored* w_hr;    // [P, H] or null: no projection, P == H
  const Stored* h0;      // [B, P]
  const Stored* c0;      // [B, H], LSTM
  Rows<Stored> y;        // (T, B, P)
  Stored* hn;            // [B, P]
  Stored* cn;            // [B, H], LSTM
  Rows<Stored> gates;    // (T, B, 3H) GRU: r, z, q; (T, B, 4H) LSTM: i, f, g, o; or null
  int64_t gates_from;    // the first step walked whose gates are kept
  Rows<Real> c;          // (T, B, H) LSTM; inference passes one step's buffer with step = 0
};

// One direction of one layer, backward through time.
template <class Real, class Stored = Real>
struct Backward : Sizes {
  Cell cell;
  Rows<const Stored> x;      // (T, B, I)
  const Stored* w_ih;        // [G*H, I] contiguous
  const Stored* w_hh;        // [G*H, P]
  const Stored* b_ih;        // [G*H] or null; biases are read where gates are rebuilt
  const Stored* b_hh;        // [G*H] or null
  const Stored* w_hr;        // [P, H] or null
  const Stored* h0;          // [B, P]
  const Stored* c0;          // [B, H], LSTM
  Rows<const Stored> y;      // (T, B, P)
  Rows<const Stored> gates;  // as Forward left them
  int64_t gates_from;        // those of steps walked before this one are rebuilt
  Rows<const Real> c;        // (T, B, H), LSTM
  Rows<const Stored> dy;     // (T, B, P) or null: zero
  const Stored* dhn;         // [B, P] or null
  const Stored* dcn;         // [B, H] or null
  Rows<const Stored> dc;     // (T, B, H) or null: zero; LSTM
  Stored* dh0;               // [B, P]
  Stored* dc0;               // [B, H], LSTM
  // Null what is not wanted.
  Rows<Stored> dx;  // (T, B, I) contiguous; two directions share it
  Stored* dw_ih;    // [G*H, I]; those of the weights are wanted together, or not
  Stored* dw_hh;    // [G*H, P]
  Stored* db_ih;    // [G*H]
  Stored* db_hh;    // [G*H]
  Stored* dw_hr;    // [P, H]
};

// How the layer driver runs loops: the binding passes torch's thread pool, the NumPy module its
// own.
struct Parallel {
  int threads;
  // Calls body(context, begin, end) on ranges that cover [0, n), all ranges at the same time.
  void (*run)(int64_t n, void (*body)(void* context, int64_t begin, int64_t end), void* context);

  template <class Body>
  void operator()(int64_t n, Body&& body) const {
    run(
        n,
        [](void* context, int64_t begin, int64_t end) {
          (*static_cast<Body*>(context))(begin, end);
        },
        &body);
  }
};

// Keeps the threads that share one sequence in step. Nobody sleeps while all of them run; who waits
// for one that has lost its core soon does, and leaves it his.
class alignas(64) Barrier {
 public:
  explicit Barrier(int64_t parts) : parts_(parts) {}
  void wait(int64_t arriving);  // `arriving`: how many of the parts the caller stands for

 private:
  const int64_t parts_;
  std::atomic<int64_t> arrived_{0};
  std::atomic<int32_t> round_{0};
};

}  // namespace gatedrnn
