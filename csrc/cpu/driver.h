// What the drivers of a layer share: scratch memory, and who does what.
#pragma once

#include <algorithm>
#include <deque>

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

// Calls loop(direction, row0, row1, part) so that all rows and units of all directions are walked.
// Tasks are counted group by group: plan.parts threads that meet each step walk one block of rows
// of one direction. A thread that was given tasks of several groups does them in order, so that two
// threads never wait for each other.
template <class Loop>
void walk(const Plan& plan, int D, int64_t B, const Parallel& parallel, Loop loop) {
  const int64_t groups = ceil_div(B, plan.block) * D, parts = plan.parts;
  std::deque<Barrier> barriers;
  for (int64_t k = 0; parts > 1 && k < groups; ++k) barriers.emplace_back(parts);
  parallel(groups * parts, [&](int64_t begin, int64_t end) {
    for (int64_t n = begin; n < end;) {
      const int64_t group = n / parts, last = std::min(end, (group + 1) * parts);
      const int64_t row0 = group / D * plan.block, row1 = std::min(B, row0 + plan.block);
      Part part{n - group * parts, last - group * parts, parts, nullptr};
      if (parts > 1) part.barrier = &barriers[size_t(group)];
      loop(group % D, row0, row1, part);
      n = last;
    }
  });
}

}  // namespace gatedrnn
