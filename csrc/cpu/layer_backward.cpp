// A layer's backward: chunk after chunk of steps, the last first. A chunk is walked by all threads;
// then its gates' gradients, which caches still hold, make their part of the gradients of the
// weights and of the input. Sums run in the same order whatever the number of threads.
#include <utility>
#include <vector>

#include "driver.h"
#include "layer.h"

namespace gatedrnn {
namespace {

// The chunk's steps in order of time, and how many rows they have.
struct Extent {
  int64_t t0, t1, rows;
};

template <class Real>
Extent extent(const Backward<Real>& p, const Chunk<Real>& chunk) {
  const int64_t t0 = chunk.dgates.first, t1 = t0 + chunk.k1 - chunk.k0;
  return {t0, t1, p.offsets ? p.offsets[t1] - p.offsets[t0] : (t1 - t0) * p.B};
}

template <class Real>
class LayerBackward {
 public:
  LayerBackward(const InstructionSet& set, const Plan& plan, const Backward<Real>* directions,
                int D, Real* workspace)
      : k_(kernels_of<Real>(set)), plan_(plan), p_(directions), D_(D), arena_(workspace) {
    for (int d = 0; d < D; ++d) take_work(d);
    for (int64_t n = 0; n < plan.threads; ++n) scratch_.push_back(arena_.take(kSumScratch));
  }

  int64_t workspace() const { return arena_.used(); }

  void run(const Parallel& parallel) {
    parallel(plan_.threads, [&](int64_t begin, int64_t end) {
      for (int d = 0; d < D_; ++d) pack(d, begin, end);
    });
    const int64_t T = p_[0].T, count = ceil_div(T, plan_.chunk);
    for (int64_t n = 0; n < count; ++n) {
      const int64_t k1 = T - n * plan_.chunk, k0 = std::max<int64_t>(0, k1 - plan_.chunk);
      Chunk<Real> chunks[2];
      for (int d = 0; d < D_; ++d) chunks[d] = chunk_of(d, n, k0, k1);
      walk(plan_, D_, p_[0].B, parallel,
           [&](int64_t d, int64_t row0, int64_t row1, const Part& part) {
             k_.backward(p_[d], work_[d], chunks[d], row0, row1, part);
           });
      if (p_[0].dw_ih) add_weights(chunks, n > 0, parallel);
      if (p_[0].dx)
        for (int d = 0; d < D_; ++d) add_input(d, chunks[d], parallel);
    }
    for (int d = 0; d < D_; ++d)
      if (p_[d].db_hh) finish_bias(p_[d]);
  }

 private:
  void take_work(int d) {
    const Backward<Real>& p = p_[d];
    const int64_t span = 4 * k_.width, K = gates_of(p.cell) * p.H;
    const int64_t rows = std::min(plan_.chunk, p.T) * p.B;
    BackwardWork<Real>& work = work_[d];
    work.w_hh = arena_.take(ceil_div(p.P, span) * K * span);
    if (p.w_hr) work.w_hr = arena_.take(ceil_div(p.H, span) * p.P * span);
    if (p.dx) work.w_ih = arena_.take(ceil_div(p.I, span) * K * span);
    work.gate_row = aligned(4 * p.H) + kAlign;
    for (int n = 0; n < (plan_.chunk < p.T ? 2 : 1); ++n)
      work.dgates[n] = arena_.take(rows * work.gate_row);
    if (p.w_hr) work.dh = arena_.take(rows * p.P);
    if (p.dw_hr) work.hidden = arena_.take(rows * p.H);
  }

  void pack(int d, int64_t begin, int64_t end) {
    const Backward<Real>& p = p_[d];
    const BackwardWork<Real>& work = work_[d];
    const int64_t K = gates_of(p.cell) * p.H;
    const auto columns = [&](const Real* w, int64_t rows, int64_t N, Real* panels) {
      const int64_t spans = ceil_div(N, 4 * k_.width);
      k_.pack_columns(w, rows, N, panels, rows, spans * begin / plan_.threads,
                      spans * end / plan_.threads);
    };
    columns(p.w_hh, K, p.P, work.w_hh);
    if (work.w_hr) columns(p.w_hr, p.P, p.H, work.w_hr);
    if (work.w_ih) columns(p.w_ih, K, p.I, work.w_ih);
  }

  Chunk<Real> chunk_of(int d, int64_t n, int64_t k0, int64_t k1) const {
    const Backward<Real>& p = p_[d];
    const BackwardWork<Real>& work = work_[d];
    const auto rows = [&](Real* data, int64_t width, int64_t first) {
      return Rows<Real>{data, p.B * width, width, p.offsets, first};
    };
    const int64_t first = p.reverse ? p.T - k1 : k0;
    const int64_t later = p.reverse ? std::max<int64_t>(0, first - plan_.chunk) : k1;
    return {k0,
            k1,
            rows(work.dgates[n % 2], work.gate_row, first),
            rows(work.dgates[(n + 1) % 2], work.gate_row, later),
            rows(work.dh, p.P, first),
            rows(work.hidden, p.H, first)};
  }

  // Pointers row(t, b) for all rows of the chunk.
  template <class Row>
  static std::vector<const Real*> rows_of(const Backward<Real>& p, const Extent& e, Row row) {
    std::vector<const Real*> rows;
    rows.reserve(size_t(e.rows));
    for (int64_t t = e.t0; t < e.t1; ++t)
      for (int64_t b = 0; b < p.active(t); ++b) rows.push_back(row(t, b));
    return rows;
  }

  void add_weights(const Chunk<Real>* chunks, bool accumulate, const Parallel& parallel) {
    Sums sums;
    for (int d = 0; d < D_; ++d) {
      const Backward<Real>& p = p_[d];
      const Extent e = extent(p, chunks[d]);
      const int64_t H = p.H, P = p.P, G = gates_of(p.cell), gate_row = work_[d].gate_row;
      const Real* da = chunks[d].dgates.data;
      sums.factor(rows_of(p, e, [&](int64_t t, int64_t b) { return p.x.at(t, b); }), p.I);
      sums.add(da, gate_row, G * H, p.dw_ih);
      sums.factor(rows_of(p, e,
                          [&](int64_t t, int64_t b) {
                            const int64_t k = p.step(t), previous = k > 0 ? p.step(k - 1) : 0;
                            const bool begun = k > 0 && b < p.active(previous);
                            return begun ? p.y.at(previous, b) : p.h0 + b * P;
                          }),
                  P);
      if (p.cell == Cell::gru) {
        sums.add(da, gate_row, 2 * H, p.dw_hh);
        sums.add(da + 3 * H, gate_row, H, p.dw_hh + 2 * H * P);
      } else {
        sums.add(da, gate_row, 4 * H, p.dw_hh);
      }
      if (p.dw_hr) {
        sums.factor(rows_of(p, e, [&](int64_t t, int64_t b) { return chunks[d].hidden.at(t, b); }),
                    H);
        sums.add(chunks[d].dh.data, P, P, p.dw_hr);
      }
    }
    parallel(plan_.threads, [&](int64_t begin, int64_t end) {
      for (const OuterSum<Real>& sum : sums.list) share(sum, accumulate, begin, end);
      for (int d = 0; d < D_; ++d)
        if (p_[d].db_ih) add_bias(d, chunks[d], accumulate, begin, end);
    });
  }

  // The sums of a chunk, and what they are made of.
  struct Sums {
    std::vector<OuterSum<Real>> list;
    std::deque<std::vector<const Real*>> pointers;
    std::deque<std::vector<Real>> copies;

    // The rows of the right factor of the sums that follow.
    void factor(std::vector<const Real*> rows, int64_t columns) {
      pointers.push_back(std::move(rows));
      width = columns;
      compact = nullptr;
    }

    void add(const Real* a, int64_t a_row, int64_t M, Real* c) {
      const std::vector<const Real*>& b = pointers.back();
      const int64_t K = int64_t(b.size());
      if (width >= kFewColumns || M <= width) {
        list.push_back({K, M, width, a, a_row, b.data(), c, width, 1, false});
        return;
      }
      // So few columns would leave most lanes empty: the other way round they are the tile's rows.
      if (!compact) {
        copies.emplace_back(size_t(K * width));
        compact = copies.back().data();
        for (int64_t k = 0; k < K; ++k) std::copy_n(b[k], width, compact + k * width);
      }
      std::vector<const Real*> rows;
      for (int64_t k = 0; k < K; ++k) rows.push_back(a + k * a_row);
      pointers.push_front(std::move(rows));
      list.push_back({K, width, M, compact, width, pointers.front().data(), c, 1, width, false});
    }

    int64_t width;
    Real* compact;
  };

  // Parts [begin, end) of a sum; each thread has rows or columns of the result for itself.
  void share(OuterSum<Real> sum, bool accumulate, int64_t begin, int64_t end) {
    sum.accumulate = accumulate;
    const int64_t span = 4 * k_.width, tile = 12;  // columns of b, of a: whole tiles for every set
    const auto cut = [&](int64_t n, int64_t all, int64_t step) {
      return std::min(all, ceil_div(all, step) * n / plan_.threads * step);
    };
    Real* scratch = scratch_[size_t(begin)];
    if (ceil_div(sum.M, tile) >= ceil_div(sum.N, span))
      k_.outer_sum(sum, cut(begin, sum.M, tile), cut(end, sum.M, tile), 0, sum.N, scratch);
    else
      k_.outer_sum(sum, 0, sum.M, cut(begin, sum.N, span), cut(end, sum.N, span), scratch);
  }

  void add_bias(int d, const Chunk<Real>& chunk, bool accumulate, int64_t begin, int64_t end) {
    const Backward<Real>& p = p_[d];
    const int64_t H = p.H, row = work_[d].gate_row, rows = extent(p, chunk).rows;
    const Real* da = chunk.dgates.data;
    const auto columns = [&](int64_t first, int64_t count, Real* sums) {
      const int64_t vectors = ceil_div(count, k_.width);
      const auto cut = [&](int64_t n) {
        return std::min(count, vectors * n / plan_.threads * k_.width);
      };
      k_.column_sums(da + first, row, rows, cut(begin), cut(end), sums, accumulate);
    };
    columns(0, gates_of(p.cell) * H, p.db_ih);
    if (p.cell == Cell::gru) columns(3 * H, H, p.db_hh + 2 * H);
  }

  // Both biases of a gate have the same gradient, but for a GRU's n, whose second one is q's.
  static void finish_bias(const Backward<Real>& p) {
    std::copy_n(p.db_ih, (p.cell == Cell::gru ? 2 : 4) * p.H, p.db_hh);
  }

  // Of two directions, the one that comes to a step first writes there, and the other adds.
  void add_input(int d, const Chunk<Real>& chunk, const Parallel& parallel) {
    const Backward<Real>& p = p_[d];
    const Extent e = extent(p, chunk);
    if (D_ == 1) return multiply(p, d, chunk, e.t0, e.t1, false, parallel);
    const auto inside = [&](int64_t t) { return std::clamp(t, e.t0, e.t1); };
    if (d == 0) {
      const int64_t met = inside(p.T - chunk.k1);  // before it the other one has been
      multiply(p, d, chunk, e.t0, met, true, parallel);
      multiply(p, d, chunk, met, e.t1, false, parallel);
    } else {
      const int64_t met = inside(chunk.k0);  // from it on the other one has been
      multiply(p, d, chunk, e.t0, met, false, parallel);
      multiply(p, d, chunk, met, e.t1, true, parallel);
    }
  }

  void multiply(const Backward<Real>& p, int d, const Chunk<Real>& chunk, int64_t t0, int64_t t1,
                bool accumulate, const Parallel& parallel) {
    if (t0 == t1) return;
    const int64_t rows = p.offsets ? p.offsets[t1] - p.offsets[t0] : (t1 - t0) * p.B;
    const int64_t blocks = row_blocks(rows);
    const Multiply<Real> product{1,
                                 rows,
                                 gates_of(p.cell) * p.H,
                                 p.I,
                                 chunk.dgates.at(t0, 0),
                                 0,
                                 work_[d].gate_row,
                                 work_[d].w_ih,
                                 p.dx.at(t0, 0),
                                 0,
                                 p.I,
                                 accumulate};
    parallel(blocks, [&](int64_t begin, int64_t end) { k_.multiply(product, begin, end); });
  }

  const Kernels<Real>& k_;
  const Plan plan_;
  const Backward<Real>* const p_;
  const int D_;
  Arena<Real> arena_;
  BackwardWork<Real> work_[2] = {};
  std::vector<Real*> scratch_;
};

}  // namespace

template <class Real>
int64_t backward_workspace(const InstructionSet& set, const Plan& plan,
                           const Backward<Real>* directions, int D) {
  return LayerBackward<Real>(set, plan, directions, D, nullptr).workspace();
}

template <class Real>
void layer_backward_cpu(const InstructionSet& set, const Plan& plan,
                        const Backward<Real>* directions, int D, Real* workspace,
                        const Parallel& parallel) {
  LayerBackward<Real>(set, plan, directions, D, workspace).run(parallel);
}

#define GATEDRNN_INSTANTIATE(Real)                                                                 \
  template int64_t backward_workspace(const InstructionSet&, const Plan&, const Backward<Real>*,   \
                                      int);                                                        \
  template void layer_backward_cpu(const InstructionSet&, const Plan&, const Backward<Real>*, int, \
                                   Real*, const Parallel&);
GATEDRNN_INSTANTIATE(float)
GATEDRNN_INSTANTIATE(double)

}  // namespace gatedrnn
