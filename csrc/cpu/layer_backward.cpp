// A layer's backward: chunk after chunk of steps, the last first. A chunk is walked by all threads;
// then its gates' gradients, which caches still hold, make their part of the gradients of the
// weights and of the input. Sums run in the same order whatever the number of threads. Where
// storage is narrow, what is summed from chunk to chunk is summed as Real, and rounded at the end.
#include <utility>
#include <vector>

#include "driver.h"
#include "layer.h"
#include "layer_rebuild.h"

namespace gatedrnn {
namespace {

// The chunk's steps in order of time, and how many rows they have.
struct Extent {
  int64_t t0, t1, rows;
};

template <class Real, class Stored, class Factor>
Extent extent(const Backward<Real, Stored>& p, const Chunk<Factor>& chunk) {
  const int64_t t0 = chunk.dgates.first, t1 = t0 + chunk.k1 - chunk.k0;
  return {t0, t1, p.offsets ? p.offsets[t1] - p.offsets[t0] : (t1 - t0) * p.B};
}

template <class Real, class Stored, class Panel>
class LayerBackward {
  using Factor = FactorOf<Real, Panel>;
  using Whole = WholePanel<Real, Panel>;
  // Whether products take copies that were widened for them.
  static constexpr bool kWidened = !std::is_same_v<Factor, Stored>;

 public:
  LayerBackward(const InstructionSet& set, const Plan& plan,
                const Backward<Real, Stored>* directions, int D, Real* workspace)
      : k_(kernels_of<Real>(set)),
        loop_(layer_kernels_of<Real, Stored, Panel>(set)),
        storage_(storage_kernels_of<Real, Stored>(set)),
        whole_(whole_kernels_of<Real, Stored, Whole>(set)),
        pack_input_(layer_kernels_of<Real, Stored, Whole>(set).pack_columns),
        plan_(plan),
        p_(directions),
        D_(D),
        arena_(workspace) {
    for (int d = 0; d < D; ++d) take_work(d);
    for (int64_t n = 0; n < plan.threads; ++n)
      scratch_.push_back(arena_.template take<Whole>(kSumScratch));
  }

  int64_t workspace() const { return arena_.used(); }

  void run(const Parallel& parallel) {
    parallel(plan_.threads, [&](int64_t begin, int64_t end) {
      for (int d = 0; d < D_; ++d) pack(d, begin, end);
    });
    const int64_t T = p_[0].T, count = ceil_div(T, plan_.chunk);
    for (int64_t n = 0; n < count; ++n) {
      const int64_t k1 = T - n * plan_.chunk, k0 = std::max<int64_t>(0, k1 - plan_.chunk);
      Chunk<Factor> chunks[2];
      Backward<Real, Stored> with_gates[2];
      for (int d = 0; d < D_; ++d) {
        chunks[d] = chunk_of(d, n, k0, k1);
        with_gates[d] = p_[d];
        if (k0 < p_[d].gates_from) with_gates[d].gates = rebuilt(d, chunks[d], parallel);
      }
      walk(
          plan_, D_, p_[0].B, parallel,
          [&](int64_t d, int64_t block) {
            const Extent e = extent(p_[d], chunks[d]);
            return first_row(p_[d], plan_, e.t0, e.t1, block);
          },
          [&](int64_t d, int64_t row0, int64_t row1, const Part& part) {
            loop_.backward(with_gates[d], work_[d], chunks[d], row0, row1, part);
          });
      if (p_[0].dw_ih) add_weights(chunks, n > 0, n == count - 1, parallel);
      if (p_[0].dx)
        for (int d = 0; d < D_; ++d) add_input(d, chunks[d], parallel);
    }
    for (int d = 0; d < D_; ++d)
      if (sums_[d].db_hh) finish_bias(p_[d].cell, p_[d].H, sums_[d]);
    round_results(parallel);
  }

 private:
  // The gradients of the weights, as they are summed.
  struct WeightSums {
    Real *dw_ih, *dw_hh, *db_ih, *db_hh, *dw_hr;
  };

  // A result of n numbers that is to be rounded at the end, and what it is summed in until then.
  struct Rounded {
    Real* sum;
    Stored* result;
    int64_t n;
  };

  // What a result of n numbers is summed in: where outer_sum adds the last part it is rounded, else
  // at the end.
  Real* sum_of(Stored* result, int64_t n) {
    if constexpr (kNarrow<Real, Stored>)
      return result ? arena_.take(n) : nullptr;
    else
      return result;
  }

  Real* rounded_sum_of(Stored* result, int64_t n) {
    Real* sum = sum_of(result, n);
    if constexpr (kNarrow<Real, Stored>)
      if (sum) rounded_.push_back({sum, result, n});
    return sum;
  }

  void round_results(const Parallel& parallel) {
    if (rounded_.empty()) return;
    parallel(plan_.threads, [&](int64_t begin, int64_t end) {
      for (const Rounded& r : rounded_) {
        const int64_t from = r.n * begin / plan_.threads, to = r.n * end / plan_.threads;
        storage_.narrow(r.sum + from, r.result + from, to - from);
      }
    });
  }

  void take_work(int d) {
    const Backward<Real, Stored>& p = p_[d];
    const int64_t span = 4 * k_.width, K = gates_of(p.cell) * p.H;
    const int64_t rows = std::min(plan_.chunk, p.T) * p.B;
    BackwardWork<Real, Panel>& work = work_[d];
    const auto panels = [&]<class Element>(Element*& to, int64_t N, int64_t K) {
      to = arena_.template take<Element>(ceil_div(N, span) * rows_of_panel<Element>(K) * span);
    };
    panels(work.w_hh, p.P, K);
    if (p.w_hr) panels(work.w_hr, p.H, p.P);
    if (p.dx) panels(work.w_ih, p.I, K);
    work.dh0 = rounded_sum_of(p.dh0, p.B * p.P);
    work.dc0 = rounded_sum_of(p.dc0, p.B * p.H);
    sums_[d] = {sum_of(p.dw_ih, K * p.I), sum_of(p.dw_hh, K * p.P), rounded_sum_of(p.db_ih, K),
                rounded_sum_of(p.db_hh, K), sum_of(p.dw_hr, p.P * p.H)};
    if (kWidened && p.dw_ih) {
      x_[d] = take(rows * p.I);
      previous_[d] = take(rows * p.P);
    }
    work.gate_row = apart(4 * p.H);
    for (int n = 0; n < (plan_.chunk < p.T ? 2 : 1); ++n)
      work.dgates[n] = take(rows * work.gate_row);
    if (p.w_hr) work.dh = take(rows * p.P);
    if (p.dw_hr) work.hidden = take(rows * p.H);
    if (p.gates_from > 0) rebuild_[d].take(p, k_.width, rows, plan_.threads, arena_);
  }

  Factor* take(int64_t n) { return arena_.template take<Factor>(n); }

  void pack(int d, int64_t begin, int64_t end) {
    const Backward<Real, Stored>& p = p_[d];
    const BackwardWork<Real, Panel>& work = work_[d];
    const int64_t K = gates_of(p.cell) * p.H;
    const auto columns = [&](auto pack, const Stored* w, int64_t rows, int64_t N, auto* panels) {
      const int64_t spans = ceil_div(N, 4 * k_.width);
      pack(w, rows, N, panels, rows, spans * begin / plan_.threads, spans * end / plan_.threads);
    };
    columns(loop_.pack_columns, p.w_hh, K, p.P, work.w_hh);
    if (work.w_hr) columns(loop_.pack_columns, p.w_hr, p.P, p.H, work.w_hr);
    if (work.w_ih) columns(pack_input_, p.w_ih, K, p.I, work.w_ih);
    if (p.gates_from > 0) rebuild_[d].pack(loop_, storage_, p, k_.width, begin, end, plan_.threads);
  }

  Chunk<Factor> chunk_of(int d, int64_t n, int64_t k0, int64_t k1) const {
    const Backward<Real, Stored>& p = p_[d];
    const BackwardWork<Real, Panel>& work = work_[d];
    const auto rows = [&](Factor* data, int64_t width, int64_t first) {
      return Rows<Factor>{data, p.B * width, width, p.offsets, first};
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
  static auto rows_of(const Backward<Real, Stored>& p, const Extent& e, Row row) {
    std::vector<decltype(row(0, 0))> rows;
    rows.reserve(size_t(e.rows));
    for (int64_t t = e.t0; t < e.t1; ++t)
      for (int64_t b = 0; b < p.active(t); ++b) rows.push_back(row(t, b));
    return rows;
  }

  static auto inputs_of(const Backward<Real, Stored>& p, const Extent& e) {
    return rows_of(p, e, [&](int64_t t, int64_t b) { return p.x.at(t, b); });
  }

  static auto previous_of(const Backward<Real, Stored>& p, const Extent& e) {
    return rows_of(p, e, [&](int64_t t, int64_t b) {
      const int64_t k = p.step(t), before = k > 0 ? p.step(k - 1) : 0;
      const bool begun = k > 0 && b < p.active(before);
      return begun ? p.y.at(before, b) : p.h0 + b * p.P;
    });
  }

  Rows<const Stored> rebuilt(int d, const Chunk<Factor>& chunk, const Parallel& parallel) {
    const Extent e = extent(p_[d], chunk);
    return rebuild_[d].run(loop_, p_[d], e.t0, inputs_of(p_[d], e), previous_of(p_[d], e),
                           parallel);
  }

  // The same rows as products take them: in `wide` where they are not so, each of n.
  std::vector<const Factor*> widened(std::vector<const Stored*> rows, int64_t n, Factor* wide,
                                     const Parallel& parallel) const {
    if constexpr (kWidened) {
      const int64_t count = int64_t(rows.size());
      std::vector<const Factor*> to(rows.size());
      parallel(plan_.threads, [&](int64_t begin, int64_t end) {
        for (int64_t k = count * begin / plan_.threads; k < count * end / plan_.threads; ++k) {
          storage_.widen(rows[size_t(k)], wide + k * n, n);
          to[size_t(k)] = wide + k * n;
        }
      });
      return to;
    } else {
      return rows;
    }
  }

  void add_weights(const Chunk<Factor>* chunks, bool accumulate, bool last,
                   const Parallel& parallel) {
    Sums sums{.round = last && kNarrow<Real, Stored>};
    for (int d = 0; d < D_; ++d) {
      const Backward<Real, Stored>& p = p_[d];
      const WeightSums& to = sums_[d];
      const Extent e = extent(p, chunks[d]);
      const int64_t H = p.H, P = p.P, G = gates_of(p.cell), gate_row = work_[d].gate_row;
      const Factor* da = chunks[d].dgates.data;
      sums.factor(widened(inputs_of(p, e), p.I, x_[d], parallel), p.I);
      sums.add(da, gate_row, G * H, to.dw_ih, p.dw_ih);
      sums.factor(widened(previous_of(p, e), P, previous_[d], parallel), P);
      if (p.cell == Cell::gru) {
        sums.add(da, gate_row, 2 * H, to.dw_hh, p.dw_hh);
        sums.add(da + 3 * H, gate_row, H, to.dw_hh + 2 * H * P, p.dw_hh + 2 * H * P);
      } else {
        sums.add(da, gate_row, 4 * H, to.dw_hh, p.dw_hh);
      }
      if (p.dw_hr) {
        const auto hidden = [&](int64_t t, int64_t b) -> const Factor* {
          return chunks[d].hidden.at(t, b);
        };
        sums.factor(rows_of(p, e, hidden), H);
        sums.add(chunks[d].dh.data, P, P, to.dw_hr, p.dw_hr);
      }
    }
    parallel(plan_.threads, [&](int64_t begin, int64_t end) {
      for (const OuterSum<Real, Stored, Whole>& sum : sums.list) share(sum, accumulate, begin, end);
      for (int d = 0; d < D_; ++d)
        if (p_[d].db_ih) add_bias(d, chunks[d], accumulate, begin, end);
    });
    rounded_.insert(rounded_.end(), sums.later.begin(), sums.later.end());
  }

  // The sums of a chunk, and what they are made of.
  struct Sums {
    const bool round;  // this chunk makes the sums whole
    std::vector<OuterSum<Real, Stored, Whole>> list{};
    std::vector<Rounded> later{};  // what the sums do not round themselves
    std::deque<std::vector<const Factor*>> pointers{};
    std::deque<std::vector<Factor>> copies{};

    // The rows of the right factor of the sums that follow.
    void factor(std::vector<const Factor*> rows, int64_t columns) {
      pointers.push_back(std::move(rows));
      width = columns;
      compact = nullptr;
    }

    void add(const Factor* a, int64_t a_row, int64_t M, Real* c, Stored* result) {
      const std::vector<const Factor*>& b = pointers.back();
      const int64_t K = int64_t(b.size());
      if (width >= kFewColumns || M <= width) {
        Stored* rounded = round ? result : nullptr;
        list.push_back({K, M, width, a, a_row, b.data(), c, width, 1, false, rounded});
        return;
      }
      // So few columns would leave most lanes empty: the other way round they are the tile's rows.
      if (!compact) {
        copies.emplace_back(size_t(K * width));
        compact = copies.back().data();
        for (int64_t k = 0; k < K; ++k) std::copy_n(b[k], width, compact + k * width);
      }
      std::vector<const Factor*> rows;
      for (int64_t k = 0; k < K; ++k) rows.push_back(a + k * a_row);
      pointers.push_front(std::move(rows));
      list.push_back({K, width, M, compact, width, pointers.front().data(), c, 1, width, false});
      if (round) later.push_back({c, result, M * width});
    }

    int64_t width = 0;
    Factor* compact = nullptr;
  };

  // Parts [begin, end) of a sum; each thread has rows or columns of the result for itself.
  void share(OuterSum<Real, Stored, Whole> sum, bool accumulate, int64_t begin, int64_t end) {
    sum.accumulate = accumulate;
    const int64_t span = 4 * k_.width, tile = 12;  // columns of b, of a: whole tiles for every set
    const auto cut = [&](int64_t n, int64_t all, int64_t step) {
      return std::min(all, ceil_div(all, step) * n / plan_.threads * step);
    };
    Whole* scratch = scratch_[size_t(begin)];
    if (ceil_div(sum.M, tile) >= ceil_div(sum.N, span))
      whole_.outer_sum(sum, cut(begin, sum.M, tile), cut(end, sum.M, tile), 0, sum.N, scratch);
    else
      whole_.outer_sum(sum, 0, sum.M, cut(begin, sum.N, span), cut(end, sum.N, span), scratch);
  }

  void add_bias(int d, const Chunk<Factor>& chunk, bool accumulate, int64_t begin, int64_t end) {
    const Backward<Real, Stored>& p = p_[d];
    const int64_t H = p.H, row = work_[d].gate_row, rows = extent(p, chunk).rows;
    const Factor* da = chunk.dgates.data;
    const auto columns = [&](int64_t first, int64_t count, Real* sums) {
      const int64_t vectors = ceil_div(count, k_.width);
      const auto cut = [&](int64_t n) {
        return std::min(count, vectors * n / plan_.threads * k_.width);
      };
      whole_.column_sums(da + first, row, rows, cut(begin), cut(end), sums, accumulate);
    };
    columns(0, gates_of(p.cell) * H, sums_[d].db_ih);
    if (p.cell == Cell::gru) columns(3 * H, H, sums_[d].db_hh + 2 * H);
  }

  // Both biases of a gate have the same gradient, but for a GRU's n, whose second one is q's.
  static void finish_bias(Cell cell, int64_t H, const WeightSums& sums) {
    std::copy_n(sums.db_ih, (cell == Cell::gru ? 2 : 4) * H, sums.db_hh);
  }

  // Of two directions, the one that comes to a step first writes there, and the other adds.
  void add_input(int d, const Chunk<Factor>& chunk, const Parallel& parallel) {
    const Backward<Real, Stored>& p = p_[d];
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

  void multiply(const Backward<Real, Stored>& p, int d, const Chunk<Factor>& chunk, int64_t t0,
                int64_t t1, bool accumulate, const Parallel& parallel) {
    if (t0 == t1) return;
    const int64_t rows = p.offsets ? p.offsets[t1] - p.offsets[t0] : (t1 - t0) * p.B;
    const Multiply<Real, Stored, Whole> product{rows,
                                                gates_of(p.cell) * p.H,
                                                p.I,
                                                chunk.dgates.at(t0, 0),
                                                work_[d].gate_row,
                                                work_[d].w_ih,
                                                p.dx.at(t0, 0),
                                                p.I,
                                                accumulate};
    multiply_by_all(whole_, product, k_.width, plan_.threads, parallel);
  }

  const Kernels<Real>& k_;
  const LayerKernels<Real, Stored, Panel>& loop_;
  const StorageKernels<Real, Stored>& storage_;
  const WholeKernels<Real, Stored, Whole>& whole_;
  const decltype(LayerKernels<Real, Stored, Whole>::pack_columns) pack_input_;
  const Plan plan_;
  const Backward<Real, Stored>* const p_;
  const int D_;
  Arena<Real> arena_;
  BackwardWork<Real, Panel> work_[2] = {};
  WeightSums sums_[2] = {};
  GateRebuild<Real, Stored, Panel> rebuild_[2];
  Factor *x_[2] = {}, *previous_[2] = {};  // if widened: the chunk's x and h(t-1)
  std::vector<Rounded> rounded_;
  std::vector<Whole*> scratch_;
};

}  // namespace

template <class Real, class Stored>
int64_t backward_workspace(const InstructionSet& set, const Plan& plan,
                           const Backward<Real, Stored>* directions, int D) {
  return with_panel<Real, Stored>(plan, [&]<class Panel>() {
    return LayerBackward<Real, Stored, Panel>(set, plan, directions, D, nullptr).workspace();
  });
}

template <class Real, class Stored>
void layer_backward_cpu(const InstructionSet& set, const Plan& plan,
                        const Backward<Real, Stored>* directions, int D, Real* workspace,
                        const Parallel& parallel) {
  with_panel<Real, Stored>(plan, [&]<class Panel>() {
    LayerBackward<Real, Stored, Panel>(set, plan, directions, D, workspace).run(parallel);
  });
}

#define GATEDRNN_INSTANTIATE(Real, Stored)                                 \
  template int64_t backward_workspace(const InstructionSet&, const Plan&,  \
                                      const Backward<Real, Stored>*, int); \
  template void layer_backward_cpu(const InstructionSet&, const Plan&,     \
                                   const Backward<Real, Stored>*, int, Real*, const Parallel&);
GATEDRNN_INSTANTIATE(float, float)
GATEDRNN_INSTANTIATE(double, double)
GATEDRNN_INSTANTIATE(float, Half)
GATEDRNN_INSTANTIATE(float, Bfloat16)

}  // namespace gatedrnn
