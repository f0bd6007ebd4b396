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

template <class Real>
ForwardWork<Real> take_work(const Forward<Real>& p, int64_t W, Arena<Real>& arena) {
  const int64_t panels = ceil_div(p.H, W), G = gates_of(p.cell);
  ForwardWork<Real> work{};
  work.w_hh = arena.take(panels * p.P * G * W);
  if (!p.projected) work.w_ih = arena.take(panels * p.I * G * W);
  work.bias = arena.take(4 * panels * W);
  if (p.w_hr) {
    work.w_hr = arena.take(ceil_div(p.P, 4 * W) * p.H * 4 * W);
    work.hidden = arena.take(p.B * p.H);
  }
  return work;
}

// The two biases of a gate add up, but for q's, which is inside the reset gate's product.
template <class Real>
void fill_bias(const Forward<Real>& p, int64_t W, Real* bias) {
  const int64_t padded = ceil_div(p.H, W) * W, H = p.H;
  const bool gru = p.cell == Cell::gru;
  for (int64_t g = 0; g < 4; ++g)
    for (int64_t u = 0; u < padded; ++u) {
      Real sum = 0;
      if (u < H && p.b_ih && !(gru && g == 3)) sum += p.b_ih[g * H + u];
      if (u < H && p.b_hh && !(gru && g == 2)) sum += p.b_hh[(gru && g == 3 ? 2 : g) * H + u];
      bias[g * padded + u] = sum;
    }
}

template <class Real>
void pack(const Kernels<Real>& k, const Forward<Real>& p, const ForwardWork<Real>& work,
          const Part& part) {
  const int64_t W = k.width, panels = ceil_div(p.H, W);
  const int G = gates_of(p.cell);
  const auto from = [&](int64_t n) { return n * part.begin / part.of; };
  const auto to = [&](int64_t n) { return n * part.end / part.of; };
  k.pack_rows(p.w_hh, p.P, G, p.H, p.H, W, work.w_hh, from(panels), to(panels));
  if (work.w_ih) k.pack_rows(p.w_ih, p.I, G, p.H, p.H, W, work.w_ih, from(panels), to(panels));
  if (work.w_hr) {
    const int64_t spans = ceil_div(p.P, 4 * W);
    k.pack_rows(p.w_hr, p.H, 4, p.P, W, 4 * W, work.w_hr, from(spans), to(spans));
  }
  if (part.begin == 0) fill_bias(p, W, work.bias);
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

template <class Real>
int64_t forward_workspace(const InstructionSet& set, const Forward<Real>* directions, int D) {
  Arena<Real> arena(nullptr);
  for (int d = 0; d < D; ++d) take_work(directions[d], kernels_of<Real>(set).width, arena);
  return arena.used();
}

template <class Real>
void layer_forward_cpu(const InstructionSet& set, const Plan& plan, const Forward<Real>* directions,
                       int D, Real* workspace, const Parallel& parallel) {
  const Kernels<Real>& k = kernels_of<Real>(set);
  Arena<Real> arena(workspace);
  ForwardWork<Real> work[2] = {};
  for (int d = 0; d < D; ++d) work[d] = take_work(directions[d], k.width, arena);
  parallel(plan.threads, [&](int64_t begin, int64_t end) {
    for (int d = 0; d < D; ++d)
      pack(k, directions[d], work[d], {begin, end, plan.threads, nullptr});
  });
  walk(plan, D, directions[0].B, parallel,
       [&](int64_t d, int64_t row0, int64_t row1, const Part& part) {
         k.forward(directions[d], work[d], row0, row1, part);
       });
}

template <class Real>
int64_t multiply_workspace(const InstructionSet& set, int64_t K, int64_t N) {
  const int64_t span = 4 * kernels_of<Real>(set).width;
  return ceil_div(N, span) * K * span;
}

template <class Real>
void multiply_cpu(const InstructionSet& set, Multiply<Real> p, const Real* w, Real* workspace,
                  const Parallel& parallel) {
  const Kernels<Real>& k = kernels_of<Real>(set);
  const int64_t span = 4 * k.width;
  parallel(ceil_div(p.N, span), [&](int64_t begin, int64_t end) {
    k.pack_rows(w, p.K, 4, p.N, k.width, span, workspace, begin, end);
  });
  p.panels = workspace;
  parallel(p.outer * row_blocks(p.inner),
           [&](int64_t begin, int64_t end) { k.multiply(p, begin, end); });
}

#define GATEDRNN_INSTANTIATE(Real)                                                               \
  template int64_t forward_workspace(const InstructionSet&, const Forward<Real>*, int);          \
  template int64_t multiply_workspace<Real>(const InstructionSet&, int64_t, int64_t);            \
  template void layer_forward_cpu(const InstructionSet&, const Plan&, const Forward<Real>*, int, \
                                  Real*, const Parallel&);                                       \
  template void multiply_cpu(const InstructionSet&, Multiply<Real>, const Real*, Real*,          \
                             const Parallel&);
GATEDRNN_INSTANTIATE(float)
GATEDRNN_INSTANTIATE(double)

}  // namespace gatedrnn
