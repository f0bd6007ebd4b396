// The table of kernels that each instruction set fills, and the choice among them.
#pragma once

#include <type_traits>

#include "../params.h"

namespace gatedrnn {

// What numbers stored so are computed with.
template <class Stored>
using RealOf = std::conditional_t<(sizeof(Stored) < sizeof(float)), float, Stored>;

// Whether results must be rounded to be stored.
template <class Real, class Stored>
constexpr bool kNarrow = !std::is_same_v<Real, Stored>;

// The width of Forward::gates in units.
template <class Stored>
constexpr int64_t gates_kept(Cell cell) {
  return cell == Cell::gru && !kNarrow<RealOf<Stored>, Stored> ? 3 : 4;
}

// An element of a panel that holds a unit's weights of two neighbouring k, for processors that
// multiply and add up pairs of bfloat16 (cpu/dots.h). The other factor is then bfloat16 too.
struct Bfloat16Pair {
  Bfloat16 even, odd;
};

template <class Panel>
constexpr bool kPairs = std::is_same_v<Panel, Bfloat16Pair>;

// What products with a panel multiply it by.
template <class Real, class Panel>
using FactorOf = std::conditional_t<kPairs<Panel>, Bfloat16, Real>;

// The panels of products over whole sequences: of pairs, or wide.
template <class Real, class Panel>
using WholePanel = std::conditional_t<kPairs<Panel>, Bfloat16Pair, Real>;

// The rows of a panel, for a sum over K.
template <class Panel>
constexpr int64_t rows_of_panel(int64_t K) {
  return kPairs<Panel> ? (K + 1) / 2 : K;
}

// Packed weights and scratch of one direction (cpu/pack.h says what a panel is). K rows of a panel
// are half as many of pairs.
template <class Real, class Panel = Real>
struct ForwardWork {
  using Factor = FactorOf<Real, Panel>;
  Panel* w_hh;     // panels [ceil(H / W)][P][G][W]
  Panel* w_ih;     // panels [ceil(H / W)][I][G][W]
  Panel* w_hr;     // panels [ceil(P / 4W)][H][4][W], or null
  Real* bias;      // [4][ceil(H / W) * W]  GRU: r, z, n, q; LSTM: i, f, g, o
  Factor* hidden;  // [B, H]  o * tanh(c) before the projection, or null
  // Where storage is narrow, of the k-th step walked at k % 2:
  Real* state[2];            // [B, state_row] the state before it
  Real* x[2];                // [B, x_row] its input
  int64_t state_row, x_row;  // padded, so that rows lie apart in L1
  // With Plan::ahead: of so many steps at a time, one block of `rows` sequences after another,
  int64_t ahead;
  Factor* inputs;  // [parts][ahead * rows][x_row] the input, a copy for each part
  Real* products;  // panels [ceil(H / W)][ahead * rows][G][W] W_ih times it
};

// Backward makes some steps' gradients of the gates, and uses them up: `Chunk`.
template <class Real, class Panel = Real>
struct BackwardWork {
  using Factor = FactorOf<Real, Panel>;
  Panel* w_hh;                    // panels [ceil(P / 4W)][G*H][4][W]
  Panel* w_hr;                    // panels [ceil(H / 4W)][P][4][W], or null
  WholePanel<Real, Panel>* w_ih;  // panels [ceil(I / 4W)][G*H][4][W], or null: dx is not wanted
  Real *dh0, *dc0;                // [B, P], [B, H] what reaches the states before a step directly
  Factor* dgates[2];  // [chunk's rows, gate_row] of this chunk and of the one before, in turn
  int64_t gate_row;  // r, z, n, q or i, f, g, o from column 0; padded, so that rows lie apart in L1
  Factor* dh;        // [chunk's rows, P] the state's whole gradient; with projection only
  Factor* hidden;    // [chunk's rows, H] o * tanh(c); with projection only, or null
};

// The steps at which forward walked as its k0-th to its (k1 - 1)-th.
template <class Factor>
struct Chunk {
  int64_t k0, k1;
  Rows<Factor> dgates;  // of these steps
  Rows<Factor> later;   // of the chunk that forward walked next
  Rows<Factor> dh, hidden;
};

// A thread's share of the units: the parts [begin, end) of `of`; with a barrier if others hold the
// rest. A thread that was given several parts (a nested parallel region runs on one) does them all.
struct Part {
  int64_t begin = 0, end = 1, of = 1;
  Barrier* barrier = nullptr;

  GATEDRNN_INLINE void wait() const {
    if (barrier) barrier->wait(end - begin);
  }
};

// One step from raw weights.
template <class Real>
struct CellForward {
  Cell cell;
  int64_t B, I, H;
  const Real *x, *h, *c;    // [B, I], [B, H], [B, H] (LSTM)
  const Real *w_ih, *w_hh;  // [G*H, I], [G*H, H]
  const Real *b_ih, *b_hh;  // [G*H] or null
  Real *h_next, *c_next;    // [B, H]
  Real* saved;              // [B, 4H] GRU: r, z, n, q; [B, 5H] LSTM: i, f, g, o, tanh(c'); or null
};

template <class Real>
struct CellBackward {
  Cell cell;
  int64_t B, I, H;
  const Real *x, *h, *c;    // as they were given to forward
  const Real *w_ih, *w_hh;  // [G*H, I], [G*H, H]
  const Real* saved;
  const Real *dh, *dc;        // [B, H] or null: zero
  Real* dx;                   // [B, I] or null: not wanted
  Real *dh_prev, *dc_prev;    // [B, H], [B, H] (LSTM) or null: not wanted
  Real *dw_ih, *dw_hh;        // [G*H, I], [G*H, H] or null: not wanted
  Real *db_ih, *db_hh;        // [G*H] or null
  Real *dgates_x, *dgates_h;  // [B, G*H] scratch; GRU: r, z, n and r, z, q; LSTM: the same
};

// The gates of some rows, as forward left them, from the state before each.
template <class Real, class Stored = Real, class Panel = Real>
struct Rebuild {
  Cell cell;
  int64_t I, H, P;
  Panel *w_ih, *w_hh;             // panels, and
  Real* bias;                     // as in ForwardWork
  const Stored* const* x;         // [rows] of I
  const Stored* const* previous;  // [rows] of P: h(t - 1)
  Stored* gates;                  // [rows, gates_kept * H]
  int64_t x_row, state_row;       // of the copies in scratch [kRowBlock, x_row + state_row]
};

constexpr int64_t kRowBlock = 96;  // rows of a that stay in L2 while all of w passes (multiply)

// c (+)= a w.
template <class Real, class Stored = Real, class Panel = Real>
struct Multiply {
  int64_t rows, K, N;
  const FactorOf<Real, Panel>* a;  // [rows, K]
  int64_t a_row;
  const Panel* panels;  // of w [K, N]: [ceil(N / 4W)][K][4][W]
  Stored* c;            // [rows, N]
  int64_t c_row;
  bool accumulate;
  int64_t block = kRowBlock;  // rows that go through all panels together
  GATEDRNN_INLINE int64_t blocks() const { return (rows + block - 1) / block; }
};

// c (+)= a^T b, a sum over K rows (steps and sequences): the weights' gradients.
template <class Real, class Stored = Real, class Panel = Real>
struct OuterSum {
  using Factor = FactorOf<Real, Panel>;
  int64_t K, M, N;
  const Factor* a;  // [K, M], rows a_row apart
  int64_t a_row;
  const Factor* const* b;  // [K] rows of N
  Real* c;                 // [M, N]
  int64_t c_row, c_column;
  bool accumulate;
  Stored* rounded = nullptr;  // [M, N] where the whole sum goes instead, if c_column is 1
};

constexpr int64_t kSumChunk = 256;    // rows of a long sum that are packed at a time (outer_sum)
constexpr int64_t kSumColumns = 256;  // columns of b packed with them
constexpr int64_t kFewColumns = 64;   // fewer are better the rows of a product than its columns
constexpr int64_t kSumScratch = kSumChunk * kSumColumns;  // elements of panels it takes

// What a product a w^T of a cell leaves to its backward: from d, the gradient of the product, that
// of the weights, of the bias and of a.
template <class Real>
struct ProductBackward {
  int64_t B, N, K;
  const Real* d;       // [B, N]
  const Real* w;       // [N, K]
  const Real* a;       // [B, K]
  const Real* direct;  // [B, K] what else reaches a, perhaps in da itself; or null
  Real* da;            // [B, K] or null: not wanted
  Real* dw;            // [N, K] or null: not wanted, nor is db
  Real* db;            // [N] or null
  Real* parts;         // few sequences: [stretches(N)][B][K] a's gradient from kStretch rows of w
};

constexpr int64_t kStretch = 64;
GATEDRNN_INLINE int64_t stretches(int64_t N) { return (N + kStretch - 1) / kStretch; }

// What depends on how tensors are stored, and on the weights' panels: those are of Real where they
// stay in a core's L2, else may be as narrow as the weights themselves.
template <class Real, class Stored = Real, class Panel = Real>
struct LayerKernels {
  void (*pack_rows)(const Stored* w, int64_t K, int G, int64_t units, int64_t gate_stride,
                    int64_t panel_stride, Panel* panels, int64_t panel0, int64_t panel1);
  void (*pack_columns)(const Stored* w, int64_t K, int64_t N, Panel* panels, int64_t panel_rows,
                       int64_t panel0, int64_t panel1);
  void (*forward)(const Forward<Real, Stored>&, const ForwardWork<Real, Panel>&, int64_t row0,
                  int64_t row1, const Part&);
  void (*backward)(const Backward<Real, Stored>&, const BackwardWork<Real, Panel>&,
                   const Chunk<FactorOf<Real, Panel>>&, int64_t row0, int64_t row1, const Part&);
  void (*rebuild)(const Rebuild<Real, Stored, Panel>&, int64_t row0, int64_t row1,
                  FactorOf<Real, Panel>* scratch);
};

// Products and sums over whole sequences.
template <class Real, class Stored = Real, class Panel = Real>
struct WholeKernels {
  using Factor = FactorOf<Real, Panel>;
  void (*multiply)(const Multiply<Real, Stored, Panel>&, int64_t block0, int64_t block1,
                   const Part&);
  void (*outer_sum)(const OuterSum<Real, Stored, Panel>&, int64_t m0, int64_t m1, int64_t n0,
                    int64_t n1, Panel* scratch);
  // sums[m] (+)= the sum over the K rows of a, m0 <= m < m1.
  void (*column_sums)(const Factor* a, int64_t a_row, int64_t K, int64_t m0, int64_t m1, Real* sums,
                      bool accumulate);
};

template <class Real, class Stored = Real>
struct StorageKernels {
  void (*widen)(const Stored* from, Real* to, int64_t n);
  void (*narrow)(const Real* from, Stored* to, int64_t n);
};

template <class Real>
struct Kernels {
  int width;      // W
  int registers;  // of vectors
  // `panel` has room for the weights of W units, or is null: then they are read as they lie.
  void (*cell_forward)(const CellForward<Real>&, int64_t row0, int64_t row1, int64_t unit0,
                       int64_t unit1, Real* panel);
  void (*cell_gates_backward)(const CellBackward<Real>&, int64_t unit0, int64_t unit1);
  void (*product_backward)(const ProductBackward<Real>&, int64_t stretch0, int64_t stretch1);
  void (*input_gradient)(const ProductBackward<Real>&, int64_t row0, int64_t row1, int64_t panel0,
                         int64_t panel1, Real* scratch);
  void (*sigmoid)(const Real* x, Real* y, int64_t n);
  void (*tanh)(const Real* x, Real* y, int64_t n);
  double (*multiply_adds)(int64_t repeats);  // the machine's limits: cpu/limits.h
  void (*read_all)(const Real* data, int64_t n, int64_t passes);
};

// All kernels of an instruction set, each table found by its type.
struct Tables : Kernels<float>,
                Kernels<double>,
                WholeKernels<float>,
                WholeKernels<double>,
                WholeKernels<float, Half>,
                WholeKernels<float, Bfloat16>,
                StorageKernels<float>,
                StorageKernels<double>,
                StorageKernels<float, Half>,
                StorageKernels<float, Bfloat16>,
                LayerKernels<float>,
                LayerKernels<double>,
                LayerKernels<float, Half>,
                LayerKernels<float, Bfloat16>,
                LayerKernels<float, Bfloat16, Bfloat16> {};

// Those of pairs.
struct PairTables : WholeKernels<float, Bfloat16, Bfloat16Pair>,
                    LayerKernels<float, Bfloat16, Bfloat16Pair> {};

struct InstructionSet {
  const char* name;
  bool (*supported)();
  const Tables* tables;
  const PairTables* pairs;  // or null
};

// The best that this machine has, or what GATEDRNN_CPU_ISA names; chosen once, when first asked.
const InstructionSet& instruction_set();
// By name, or null if there is no such set in this build or on this machine.
const InstructionSet* instruction_set(const char* name);
// Null, or why GATEDRNN_CPU_ISA cannot be obeyed.
const char* instruction_set_error();

template <class Real>
const Kernels<Real>& kernels_of(const InstructionSet& set) {
  return *set.tables;
}

template <class Real, class Stored>
const StorageKernels<Real, Stored>& storage_kernels_of(const InstructionSet& set) {
  return *set.tables;
}

// The tables that have a kernel of this panel, which the caller knows to be there.
template <class Panel>
const auto& tables_of(const InstructionSet& set) {
  if constexpr (kPairs<Panel>)
    return *set.pairs;
  else
    return *set.tables;
}

template <class Real, class Stored, class Panel>
const WholeKernels<Real, Stored, Panel>& whole_kernels_of(const InstructionSet& set) {
  return tables_of<Panel>(set);
}

template <class Real, class Stored, class Panel>
const LayerKernels<Real, Stored, Panel>& layer_kernels_of(const InstructionSet& set) {
  return tables_of<Panel>(set);
}

}  // namespace gatedrnn
