// What the drivers of a layer share: scratch memory, and who does what.
#pragma once

#include <algorithm>
#include <deque>
#include <vector>

#include "../plan.h"
#include "kernels.h"

namespace gatedrnn {

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

constexpr int64_t kManyBlocks = 16;  // of a thread: one more or less does not matter
constexpr int64_t kAlign = 16;       // elements: keeps every buffer on its own cache line
inline int64_t aligned(int64_t n) { return ceil_div(n, kAlign) * kAlign; }
inline int64_t apart(int64_t n) { return aligned(n) + kAlign; }  // rows that lie apart in L1

inline int gates_of(Cell cell) { return cell == Cell::gru ? 3 : 4; }

// Hands out pieces of the workspace; with a null base it only counts.
template <class Real>
class Arena {
 public:
  explicit Arena(Real* base) : base_(base) {}
  template <class Element = Real>
  Element* take(int64_t n) {
    Real* piece = base_ ? base_ + used_ : nullptr;
    used_ += aligned(ceil_div(n * int64_t(sizeof(Element)), sizeof(Real)));
    return reinterpret_cast<Element*>(piece);
  }
  int64_t used() const { return used_; }

 private:
  Real* base_;
  int64_t used_ = 0;
};

// Calls body.operator()<Panel>() with the elements that the plan gives the packed weights.
template <class Real, class Stored, class Body>
auto with_panel(const Plan& plan, Body body) {
  if constexpr (std::is_same_v<Stored, Bfloat16>) {
    if (plan.pairs) return body.template operator()<Bfloat16Pair>();
    if (plan.narrow_panels) return body.template operator()<Stored>();
  }
  return body.template operator()<Real>();
}

// The two biases of a gate add up, but for q's, which is inside the reset gate's product.
// `p` is a Forward or a Backward.
template <class Real, class Stored, class Layer>
void fill_bias(const StorageKernels<Real, Stored>& k, const Layer& p, int64_t W, Real* bias) {
  const int64_t padded = ceil_div(p.H, W) * W, H = p.H;
  const bool gru = p.cell == Cell::gru;
  std::fill_n(bias, 4 * padded, Real(0));
  std::vector<Real> b(size_t(gates_of(p.cell) * H));
  for (const bool recurrent : {false, true}) {
    const Stored* from = recurrent ? p.b_hh : p.b_ih;
    if (!from) continue;
    k.widen(from, b.data(), int64_t(b.size()));
    for (int64_t g = 0; g < gates_of(p.cell); ++g) {
      Real* to = bias + (gru && g == 2 && recurrent ? 3 : g) * padded;
      for (int64_t u = 0; u < H; ++u) to[u] += b[size_t(g * H + u)];
    }
  }
}

// p.c (+)= p.a w by all threads, p.rows > 0: each has panels for itself, if whole ones can be
// shared evenly, else rows, in blocks as even as they can be.
template <class Real, class Stored, class Panel>
void multiply_by_all(const WholeKernels<Real, Stored, Panel>& k, Multiply<Real, Stored, Panel> p,
                     int64_t W, int64_t threads, const Parallel& parallel) {
  if (p.N % (4 * W * threads) == 0)
    return parallel(threads, [&](int64_t begin, int64_t end) {
      k.multiply(p, 0, p.blocks(), {begin, end, threads, nullptr});
    });
  int64_t count = p.blocks();
  while (count % threads != 0 && count < std::min(kManyBlocks * threads, p.rows)) ++count;
  p.block = ceil_div(p.rows, count);
  parallel(p.blocks(), [&](int64_t begin, int64_t end) { k.multiply(p, begin, end, {}); });
}

// Where block n begins when the steps [t0, t1) are walked. The first rows of a packed batch are the
// longest: its blocks have equal shares of the steps that there are, not of the rows.
inline int64_t first_row(const Sizes& p, const Plan& plan, int64_t t0, int64_t t1, int64_t n) {
  const int64_t blocks = ceil_div(p.B, plan.block);
  if (!p.offsets || n == 0 || n >= blocks) return std::min(p.B, n * plan.block);
  const int64_t wanted = (p.offsets[t1] - p.offsets[t0]) * n / blocks;
  int64_t below = 0, row = p.B;  // the first `below` rows have fewer steps than that, `row` enough
  while (row - below > 1) {
    const int64_t middle = (below + row) / 2;
    int64_t steps = 0;
    for (int64_t t = t0; t < t1; ++t) steps += std::min(p.active(t), middle);
    (steps < wanted ? below : row) = middle;
  }
  return row;
}

// Calls loop(direction, row0, row1, part) so that all rows and units of all directions are walked,
// rows in blocks, of which the n-th of a direction begins with row first(direction, n). Tasks are
// counted group by group: plan.parts threads that meet each step walk one block of rows of one
// direction. A thread that was given tasks of several groups does them in order, so that two
// threads never wait for each other.
template <class First, class Loop>
void walk(const Plan& plan, int D, int64_t B, const Parallel& parallel, First first, Loop loop) {
  const int64_t groups = ceil_div(B, plan.block) * D, parts = plan.parts;
  std::deque<Barrier> barriers;
  for (int64_t k = 0; parts > 1 && k < groups; ++k) barriers.emplace_back(parts);
  parallel(groups * parts, [&](int64_t begin, int64_t end) {
    for (int64_t n = begin; n < end;) {
      const int64_t group = n / parts, last = std::min(end, (group + 1) * parts);
      const int64_t row0 = first(group % D, group / D), row1 = first(group % D, group / D + 1);
      Part part{n - group * parts, last - group * parts, parts, nullptr};
      if (parts > 1) part.barrier = &barriers[size_t(group)];
      loop(group % D, row0, row1, part);
      n = last;
    }
  });
}

}  // namespace gatedrnn
