// Gates that forward did not keep: backward makes those of a chunk of steps again, all at once, and
// forgets them with the chunk.
#pragma once

#include <vector>

#include "driver.h"

namespace gatedrnn {

template <class Real, class Stored, class Panel>
class GateRebuild {
  using Factor = FactorOf<Real, Panel>;

 public:
  // Takes what it needs for chunks of so many rows; packs nothing yet.
  void take(const Backward<Real, Stored>& p, int64_t W, int64_t rows, int64_t threads,
            Arena<Real>& arena) {
    const int64_t panels = ceil_div(p.H, W), G = gates_of(p.cell);
    kept_ = gates_kept<Stored>(p.cell) * p.H;
    work_.cell = p.cell;
    work_.I = p.I;
    work_.H = p.H;
    work_.P = p.P;
    work_.w_hh = arena.template take<Panel>(panels * rows_of_panel<Panel>(p.P) * G * W);
    work_.w_ih = arena.template take<Panel>(panels * rows_of_panel<Panel>(p.I) * G * W);
    work_.bias = arena.take(4 * panels * W);
    work_.gates = arena.template take<Stored>(rows * kept_);
    work_.x_row = apart(p.I);
    work_.state_row = apart(p.P);
    for (int64_t n = 0; n < threads; ++n)
      scratch_.push_back(arena.template take<Factor>(kRowBlock * (work_.x_row + work_.state_row)));
  }

  // Parts [begin, end) of `of`.
  void pack(const LayerKernels<Real, Stored, Panel>& k, const StorageKernels<Real, Stored>& storage,
            const Backward<Real, Stored>& p, int64_t W, int64_t begin, int64_t end, int64_t of) {
    const int64_t panels = ceil_div(p.H, W), from = panels * begin / of, to = panels * end / of;
    const int G = gates_of(p.cell);
    k.pack_rows(p.w_hh, p.P, G, p.H, p.H, W, work_.w_hh, from, to);
    k.pack_rows(p.w_ih, p.I, G, p.H, p.H, W, work_.w_ih, from, to);
    if (begin == 0) fill_bias(storage, p, W, work_.bias);
  }

  // The gates of the chunk that begins with step `first`, from pointers to its rows.
  Rows<const Stored> run(const LayerKernels<Real, Stored, Panel>& k,
                         const Backward<Real, Stored>& p, int64_t first,
                         const std::vector<const Stored*>& x,
                         const std::vector<const Stored*>& previous, const Parallel& parallel) {
    work_.x = x.data();
    work_.previous = previous.data();
    const int64_t rows = int64_t(x.size()), threads = int64_t(scratch_.size());
    parallel(threads, [&](int64_t begin, int64_t end) {
      k.rebuild(work_, rows * begin / threads, rows * end / threads, scratch_[size_t(begin)]);
    });
    return {work_.gates, p.B * kept_, kept_, p.offsets, first};
  }

 private:
  Rebuild<Real, Stored, Panel> work_{};
  int64_t kept_ = 0;
  std::vector<Factor*> scratch_;
};

}  // namespace gatedrnn
