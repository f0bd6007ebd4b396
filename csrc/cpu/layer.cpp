#include "layer.h"

#include "driver.h"

namespace gatedrnn {
namespace {

constexpr int kSpins = 2000;  // some microseconds; a partner that takes longer has lost its core

inline void pause() {
#ifdef __x86_64__
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

template <class Panel, class Real, class Stored>
ForwardWork<Real, Panel> take_work(const Plan& plan, const Forward<Real, Stored>& p, int64_t W,
                                   Arena<Real>& arena) {
  const int64_t panels = ceil_div(p.H, W), G = gates_of(p.cell);
  using Factor = FactorOf<Real, Panel>;
  const auto take_panels = [&](int64_t count, int64_t K, int64_t vectors) {
    return arena.template take<Panel>(count * rows_of_panel<Panel>(K) * vectors * W);
  };
  ForwardWork<Real, Panel> work{};
  work.w_hh = take_panels(panels, p.P, G);
  work.w_ih = take_panels(panels, p.I, G);
  work.bias = arena.take(4 * panels * W);
  if (p.w_hr) {
    work.w_hr = take_panels(ceil_div(p.P, 4 * W), p.H, 4);
    work.hidden = arena.template take<Factor>(p.B * p.H);
  }
  work.state_row = apart(p.P);
  work.x_row = apart(p.I);
  work.ahead = plan.ahead;
  if (work.ahead) {
    work.inputs = arena.template take<Factor>(work.ahead * p.B * plan.parts * work.x_row);
    work.products = arena.take(work.ahead * p.B * panels * G * W);
  }
  // An LSTM's state is a factor of products and no more.
  constexpr bool widened = !std::is_same_v<Factor, Stored>;
  if (widened || (kNarrow<Real, Stored> && p.cell == Cell::gru))
    for (Real*& state : work.state) state = arena.take(p.B * work.state_row);
  if (widened && !work.ahead)
    for (Real*& x : work.x) x = arena.take(p.B * work.x_row);
  return work;
}

template <class Real, class Stored, class Panel>
void pack(const LayerKernels<Real, Stored, Panel>& k, const Forward<Real, Stored>& p, int64_t W,
          const ForwardWork<Real, Panel>& work, const Part& part) {
  const int64_t panels = ceil_div(p.H, W);
  const int G = gates_of(p.cell);
  const auto from = [&](int64_t n) { return n * part.begin / part.of; };
  const auto to = [&](int64_t n) { return n * part.end / part.of; };
  k.pack_rows(p.w_hh, p.P, G, p.H, p.H, W, work.w_hh, from(panels), to(panels));
  k.pack_rows(p.w_ih, p.I, G, p.H, p.H, W, work.w_ih, from(panels), to(panels));
  if (work.w_hr) {
    const int64_t spans = ceil_div(p.P, 4 * W);
    k.pack_rows(p.w_hr, p.H, 4, p.P, W, 4 * W, work.w_hr, from(spans), to(spans));
  }
}

// Calls body(kernels, W, work [D]) with the workspace handed out.
template <class Real, class Stored, class Body>
void with_work(const InstructionSet& set, const Plan& plan, const Forward<Real, Stored>* directions,
               int D, Real* workspace, Body body) {
  with_panel<Real, Stored>(plan, [&]<class Panel>() {
    const int64_t W = kernels_of<Real>(set).width;
    Arena<Real> arena(workspace);
    ForwardWork<Real, Panel> work[2] = {};
    for (int d = 0; d < D; ++d) work[d] = take_work<Panel>(plan, directions[d], W, arena);
    body(layer_kernels_of<Real, Stored, Panel>(set), W, work);
  });
}

}  // namespace

void Barrier::wait(int64_t arriving) {
  const int32_t round = round_.load(std::memory_order_acquire);
  if (arrived_.fetch_add(arriving, std::memory_order_acq_rel) + arriving == parts_) {
    arrived_.store(0, std::memory_order_relaxed);
    round_.store(round + 1, std::memory_order_release);
    round_.notify_all();
    return;
  }
  for (int spins = 0; spins < kSpins; ++spins) {
    if (round_.load(std::memory_order_acquire) != round) return;
    pause();
  }
  round_.wait(round, std::memory_order_acquire);
}

template <class Real, class Stored>
int64_t forward_workspace(const InstructionSet& set, const Plan& plan,
                          const Forward<Real, Stored>* directions, int D) {
  Arena<Real> arena(nullptr);
  with_panel<Real, Stored>(plan, [&]<class Panel>() {
    for (int d = 0; d < D; ++d)
      take_work<Panel>(plan, directions[d], kernels_of<Real>(set).width, arena);
  });
  return arena.used();
}

template <class Real, class Stored>
void pack_forward_cpu(const InstructionSet& set, const Plan& plan,
                      const Forward<Real, Stored>* directions, int D, Real* workspace,
                      const Parallel& parallel) {
  with_work(set, plan, directions, D, workspace, [&](const auto& k, int64_t W, const auto* work) {
    parallel(plan.threads, [&](int64_t begin, int64_t end) {
      for (int d = 0; d < D; ++d) {
        pack(k, directions[d], W, work[d], {begin, end, plan.threads, nullptr});
        if (begin == 0)
          fill_bias(storage_kernels_of<Real, Stored>(set), directions[d], W, work[d].bias);
      }
    });
  });
}

template <class Real, class Stored>
void walk_forward_cpu(const InstructionSet& set, const Plan& plan,
                      const Forward<Real, Stored>* directions, int D, Real* workspace,
                      const Parallel& parallel) {
  with_work(set, plan, directions, D, workspace, [&](const auto& k, int64_t, const auto* work) {
    walk(
        plan, D, directions[0].B, parallel,
        [&](int64_t d, int64_t n) { return first_row(directions[d], plan, 0, directions[d].T, n); },
        [&](int64_t d, int64_t row0, int64_t row1, const Part& part) {
          k.forward(directions[d], work[d], row0, row1, part);
        });
  });
}

template <class Real, class Stored>
void layer_forward_cpu(const InstructionSet& set, const Plan& plan,
                       const Forward<Real, Stored>* directions, int D, Real* workspace,
                       const Parallel& parallel) {
  pack_forward_cpu(set, plan, directions, D, workspace, parallel);
  walk_forward_cpu(set, plan, directions, D, workspace, parallel);
}

#define GATEDRNN_INSTANTIATE(Real, Stored)                                                         \
  template int64_t forward_workspace(const InstructionSet&, const Plan&,                           \
                                     const Forward<Real, Stored>*, int);                           \
  template void pack_forward_cpu(const InstructionSet&, const Plan&, const Forward<Real, Stored>*, \
                                 int, Real*, const Parallel&);                                     \
  template void walk_forward_cpu(const InstructionSet&, const Plan&, const Forward<Real, Stored>*, \
                                 int, Real*, const Parallel&);                                     \
  template void layer_forward_cpu(const InstructionSet&, const Plan&,                              \
                                  const Forward<Real, Stored>*, int, Real*, const Parallel&);
GATEDRNN_INSTANTIATE(float, float)
GATEDRNN_INSTANTIATE(double, double)
GATEDRNN_INSTANTIATE(float, Half)
GATEDRNN_INSTANTIATE(float, Bfloat16)

}  // namespace gatedrnn
