#include "step.h"

#include <algorithm>
#include <memory>
#include <new>
#include <vector>

#include "driver.h"

namespace gatedrnn {
namespace {

// A part's share of [0, n), in whole multiples of `unit`.
struct Range {
  int64_t begin, end;
};

Range share(const Part& part, int64_t n, int64_t unit) {
  const int64_t units = ceil_div(n, unit);
  return {std::min(n, units * part.begin / part.of * unit),
          std::min(n, units * part.end / part.of * unit)};
}

// Cache lines: vectors that lie across two take twice as long.
constexpr std::align_val_t kLine{64};

struct Free {
  void operator()(void* memory) const { ::operator delete[](memory, kLine); }
};

template <class Real>
using Scratch = std::unique_ptr<Real[], Free>;

template <class Real>
Scratch<Real> scratch(int64_t n) {
  return Scratch<Real>(n ? new (kLine) Real[n] : nullptr);
}

template <class Real>
CellPlan plan_of(const Kernels<Real>& k, Cell cell, int64_t B, int64_t I, int64_t H, int threads) {
  return plan_cell({B, I, H, cell == Cell::gru ? 3 : 4, k.width, threads});
}

// The products of the gates' gradients with weights and inputs, shared by all threads.
template <class Real>
class Products {
 public:
  Products(const InstructionSet& set, bool few, int64_t threads)
      : k_(kernels_of<Real>(set)), whole_(whole_kernels_of<Real, Real, Real>(set)), few_(few) {
    if (!few) own_ = scratch<Real>(threads * kSumScratch);
  }

  // Where a's gradient is wanted but the weights' is not, and the other way round, `da` or `dw` is
  // null.
  void add(const ProductBackward<Real>& p) {
    if (!p.da && !p.dw && !p.db) return;
    if (p.B == 0 || p.N == 0) {  // nothing to sum
      for (int64_t e = 0; p.da && e < p.B * p.K; ++e) p.da[e] = p.direct ? p.direct[e] : 0;
      if (p.dw) std::fill_n(p.dw, p.N * p.K, Real(0));
      if (p.db) std::fill_n(p.db, p.N, Real(0));
      return;
    }
    products_[count_] = p;
    if (few_) {
      parts_[count_] = scratch<Real>(stretches(p.N) * p.B * p.K);
      products_[count_].parts = parts_[count_].get();
    } else if (p.dw) {
      // Few columns would leave most lanes empty: the other way round they are the tile's rows.
      const bool swap = p.K < kFewColumns;
      const Real* right = swap ? p.d : p.a;
      const int64_t width = swap ? p.N : p.K;
      for (int64_t b = 0; b < p.B; ++b) rows_[count_].push_back(right + b * width);
      const Real* const* rows = rows_[count_].data();
      sums_[count_] = swap ? OuterSum<Real>{p.B, p.K, p.N, p.a, p.K, rows, p.dw, 1, p.K, false}
                           : OuterSum<Real>{p.B, p.N, p.K, p.d, p.N, rows, p.dw, p.K, 1, false};
    }
    ++count_;
  }

  void run(const Part& part) {
    if (few_)
      few(part);
    else
      many(part);
  }

 private:
  void few(const Part& part) {
    for (int i = 0; i < count_; ++i) {
      const Range own = share(part, stretches(products_[i].N), 1);
      k_.product_backward(products_[i], own.begin, own.end);
    }
    part.wait();
    for (int i = 0; i < count_; ++i) {
      const ProductBackward<Real>& p = products_[i];
      if (!p.da) continue;
      const int64_t n = p.B * p.K, count = stretches(p.N);
      const Range own = share(part, n, k_.width);
      for (int64_t e = own.begin; e < own.end; ++e) p.da[e] = p.direct ? p.direct[e] : 0;
      for (int64_t s = 0; s < count; ++s)
        for (int64_t e = own.begin; e < own.end; ++e) p.da[e] += p.parts[s * n + e];
    }
  }

  void many(const Part& part) {
    const int64_t span = 4 * k_.width, tile = 12;  // whole tiles for every instruction set
    Real* own = own_.get() + part.begin * kSumScratch;
    int64_t panels = 0;
    for (int i = 0; i < count_; ++i) panels += products_[i].da ? ceil_div(products_[i].K, span) : 0;
    const bool by_rows = panels % part.of != 0;
    Range left = by_rows ? Range{0, panels} : share(part, panels, 1);
    for (int i = 0; i < count_; ++i) {
      const ProductBackward<Real>& p = products_[i];
      if (p.da) {
        const int64_t mine = ceil_div(p.K, span);
        const Range rows = by_rows ? share(part, p.B, 1) : Range{0, p.B};
        const int64_t from = std::max<int64_t>(left.begin, 0), to = std::min(left.end, mine);
        if (from < to) k_.input_gradient(p, rows.begin, rows.end, from, to, own);
        left = {left.begin - mine, left.end - mine};
      }
      if (p.db) {
        const Range n = share(part, p.N, k_.width);
        whole_.column_sums(p.d, p.N, p.B, n.begin, n.end, p.db, false);
      }
      if (!p.dw) continue;
      const OuterSum<Real>& sum = sums_[i];
      if (sum.a == p.a) {
        const Range n = share(part, p.N, span);
        whole_.outer_sum(sum, 0, sum.M, n.begin, n.end, own);
      } else {
        const Range n = share(part, p.N, tile);
        whole_.outer_sum(sum, n.begin, n.end, 0, sum.N, own);
      }
    }
  }

  const Kernels<Real>& k_;
  const WholeKernels<Real>& whole_;
  const bool few_;
  int count_ = 0;
  ProductBackward<Real> products_[2];
  OuterSum<Real> sums_[2];
  std::vector<const Real*> rows_[2];
  Scratch<Real> own_, parts_[2];
};

}  // namespace

template <class Real>
void cell_forward_cpu(const InstructionSet& set, const CellForward<Real>& p,
                      const Parallel& parallel) {
  const Kernels<Real>& k = kernels_of<Real>(set);
  const CellPlan plan = plan_of(k, p.cell, p.B, p.I, p.H, parallel.threads);
  const int64_t G = p.cell == Cell::gru ? 3 : 4;
  const int64_t each = plan.packed ? G * k.width * (p.I + p.H) : 0;
  const auto panels = scratch<Real>(plan.threads * each);
  parallel(plan.threads, [&](int64_t begin, int64_t end) {
    const Part part{begin, end, plan.threads};
    const Range rows = plan.by_rows ? share(part, p.B, 1) : Range{0, p.B};
    const Range units = plan.by_rows ? Range{0, p.H} : share(part, p.H, k.width);
    k.cell_forward(p, rows.begin, rows.end, units.begin, units.end,
                   plan.packed ? panels.get() + begin * each : nullptr);
  });
}

template <class Real>
void cell_backward_cpu(const InstructionSet& set, CellBackward<Real> p, const Parallel& parallel) {
  const Kernels<Real>& k = kernels_of<Real>(set);
  const CellPlan plan = plan_of(k, p.cell, p.B, p.I, p.H, parallel.threads);
  const bool gru = p.cell == Cell::gru;
  const int64_t N = (gru ? 3 : 4) * p.H;
  const auto dgates = scratch<Real>((gru ? 2 : 1) * p.B * N);
  p.dgates_x = dgates.get();
  p.dgates_h = p.dgates_x + (gru ? p.B * N : 0);
  Products<Real> products(set, plan.few, plan.backward_threads);
  products.add({p.B, N, p.I, p.dgates_x, p.w_ih, p.x, nullptr, p.dx, p.dw_ih, p.db_ih, nullptr});
  products.add({p.B, N, p.H, p.dgates_h, p.w_hh, p.h, gru ? p.dh_prev : nullptr, p.dh_prev, p.dw_hh,
                p.db_hh, nullptr});
  Barrier barrier(plan.backward_threads);
  parallel(plan.backward_threads, [&](int64_t begin, int64_t end) {
    const Part part{begin, end, plan.backward_threads, &barrier};
    const Range units = share(part, p.H, k.width);
    k.cell_gates_backward(p, units.begin, units.end);
    part.wait();
    products.run(part);
  });
}

template <class Real>
void product_backward_cpu(const InstructionSet& set, ProductBackward<Real> p, bool few,
                          const Parallel& parallel) {
  Products<Real> products(set, few, parallel.threads);
  products.add(p);
  Barrier barrier(parallel.threads);
  parallel(parallel.threads, [&](int64_t begin, int64_t end) {
    products.run(Part{begin, end, parallel.threads, &barrier});
  });
}

#define GATEDRNN_INSTANTIATE(Real)                                                             \
  template void cell_forward_cpu(const InstructionSet&, const CellForward<Real>&,              \
                                 const Parallel&);                                             \
  template void cell_backward_cpu(const InstructionSet&, CellBackward<Real>, const Parallel&); \
  template void product_backward_cpu(const InstructionSet&, ProductBackward<Real>, bool,       \
                                     const Parallel&);
GATEDRNN_INSTANTIATE(float)
GATEDRNN_INSTANTIATE(double)

}  // namespace gatedrnn
