// The time loops: what layer.h declares, for one type. Each step's pointers are found here, on the
// host; the kernels know one step only.
#pragma once

#include "cell.h"
#include "launch.h"
#include "step_backward.h"
#include "step_forward.h"

namespace gatedrnn {
namespace cuda {

// persistent_*.cu
template <class Real>
int persistent_forward(const PersistentPlan& plan, const CudaForward<Real>* p, int count,
                       void* stream);
template <class Real>
int persistent_backward(const PersistentPlan& plan, const CudaBackward<Real>* p, int count,
                        void* stream);
// persistent_split.cu
int split_forward(const PersistentPlan& plan, const CudaForward<float>* p, int count, void* stream);
int split_backward(const PersistentPlan& plan, const CudaBackward<float>* p, int count,
                   void* stream);
// latency.cu
int latency_forward(const PersistentPlan& plan, const CudaForward<float>* p, int count,
                    void* stream);
int latency_backward(const PersistentPlan& plan, const CudaBackward<float>* p, int count,
                     void* stream);

// A double takes two registers: its wide tiles have half as many sequences.
template <class Wide, int G>
using WideForward = TileShape<G, std::is_same_v<Wide, double> ? 2 : 4, 2, 2, 1, 2>;
template <class, int G>
using NarrowForward = TileShape<G, 2, 1, 1, 4, 4>;
template <class Wide>
using WideBackward = TileShape<2, std::is_same_v<Wide, double> ? 2 : 4, 2, 2, 1, 3>;
template <class>
using NarrowBackward = TileShape<1, 2, 1, 1, 4, 4>;

// Room for the shared memory of Shape, for all launches of a loop.
template <class Shape, class Kernel>
int prepare(Kernel* kernel) {
  return cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                              Shape::kSharedBytes);
}

// `units` of each sequence, UnitsOfBlock a block.
template <class Shape, int kUnitsOfBlock, class Step>
int launch(void (*kernel)(Directions<Step>), const Directions<Step>& steps, int count,
           void* stream) {
  const Step& first = steps.direction[0];
  const int64_t batch = count == 2 ? std::max(first.batch, steps.direction[1].batch) : first.batch;
  cudaLaunchConfig_t config = {};
  config.gridDim =
      dim3(unsigned((batch + Shape::kBatch - 1) / Shape::kBatch),
           unsigned((first.units + kUnitsOfBlock - 1) / kUnitsOfBlock), unsigned(count));
  config.blockDim = dim3(kThreads);
  config.dynamicSmemBytes = Shape::kSharedBytes;
  config.stream = static_cast<cudaStream_t>(stream);
  launches.fetch_add(1, std::memory_order_relaxed);
  return cudaLaunchKernelEx(&config, kernel, steps);
}

// ------------------------------------------------------------------------------------------------
// Forward.

template <class Real>
StepForward<Real> forward_step(const CudaForward<Real>& p, int64_t k, bool aligned, int part) {
  const int64_t t = p.step(k), before = k > 0 ? p.step(k - 1) : t;
  StepForward<Real> s = {};
  s.units = p.H;
  s.batch = p.active(t);
  s.begun = k > 0 ? std::min(s.batch, p.active(before)) : 0;
  s.staying = k + 1 < p.T ? std::min(s.batch, p.active(p.step(k + 1))) : 0;
  s.aligned = aligned;
  s.product = {p.w_hh, p.y.at(before, 0), p.y.row, p.h0, s.begun, s.batch, p.P, p.P, 0, part};
  s.projected = p.projected.at(t, 0);
  s.projected_row = p.projected.row;
  s.b_ih = p.b_ih;
  s.b_hh = p.b_hh;
  s.carry = p.carry;
  s.hn = p.w_hr ? nullptr : p.hn;
  const Rows<Real>& y = p.w_hr ? p.hidden : p.y;
  s.y = y.at(t, 0);
  s.y_row = y.row;
  if (p.gates) {
    s.gates = p.gates.at(t, 0);
    s.gates_row = p.gates.row;
  }
  if (p.cell == Cell::lstm) {
    s.c0 = p.c0;
    s.c_before = p.c.at(before, 0);
    s.c = p.c.at(t, 0);
    s.c_row = p.c.row;
    s.cn = p.cn;
  }
  return s;
}

template <class Real>
StepForward<Real> projection_step(const CudaForward<Real>& p, const StepForward<Real>& gates,
                                  int64_t k, bool aligned, int part) {
  StepForward<Real> s = {};
  s.units = p.P;
  s.batch = gates.batch;
  s.staying = gates.staying;
  s.aligned = aligned;
  s.product = {p.w_hr, gates.y, gates.y_row, nullptr, s.batch, s.batch, p.H, p.H, 0, part};
  s.y = p.y.at(p.step(k), 0);
  s.y_row = p.y.row;
  s.hn = p.hn;
  return s;
}

template <class Policy, template <class, int> class Shape, Cell kCell, class Real>
int forward_loop(const CudaForward<Real>* p, int count, void* stream) {
  constexpr int G = kGates<kCell>;
  using Wide = typename Policy::Wide;
  using Gates = Shape<Wide, G>;
  // The projection's tile has the size of the narrow or wide tiles of backward.
  using Project = std::conditional_t<Gates::WK == 1, WideBackward<Wide>, NarrowBackward<Wide>>;
  const auto gates_kernel = step_forward_kernel<Policy, Gates, kCell>;
  const auto project = project_kernel<Policy, Project>;
  const bool projected = p[0].w_hr;
  if (const int error = prepare<Gates>(gates_kernel)) return error;
  if (projected)
    if (const int error = prepare<Project>(project)) return error;
  Alignment all, operands;
  for (int d = 0; d < count; ++d) {
    all.add(p[d].projected).add(p[d].b_ih, p[d].H).add(p[d].b_hh, p[d].H).add(p[d].y);
    all.add(p[d].h0, p[d].P).add(p[d].c0, p[d].H).add(p[d].hn, p[d].P).add(p[d].cn, p[d].H);
    all.add(p[d].gates).add(p[d].c).add(p[d].carry, p[d].H).add(p[d].hidden);
    operands.add(p[d].w_hh, p[d].P).add(p[d].y).add(p[d].h0, p[d].P);
    operands.add(p[d].w_hr, p[d].H).add(p[d].hidden);
  }
  for (int64_t k = 0; k < p[0].T; ++k) {
    Directions<StepForward<Real>> steps = {}, projections = {};
    for (int d = 0; d < count; ++d) {
      steps.direction[d] =
          forward_step(p[d], k, all.pairs() && p[d].H % 2 == 0, operands.bytes<Real>());
      if (projected)
        projections.direction[d] = projection_step(
            p[d], steps.direction[d], k, all.pairs() && p[d].P % 2 == 0, operands.bytes<Real>());
    }
    int error = launch<Gates, 16 * Gates::kRowTiles / G>(gates_kernel, steps, count, stream);
    if (!error && projected)
      error = launch<Project, 16 * Project::kRowTiles>(project, projections, count, stream);
    if (error) return error;
  }
  return 0;
}

template <class Policy, class Real>
int forward_with(Tile tile, const CudaForward<Real>* p, int count, void* stream) {
  if (p[0].cell == Cell::gru)
    return tile == Tile::wide ? forward_loop<Policy, WideForward, Cell::gru>(p, count, stream)
                              : forward_loop<Policy, NarrowForward, Cell::gru>(p, count, stream);
  return tile == Tile::wide ? forward_loop<Policy, WideForward, Cell::lstm>(p, count, stream)
                            : forward_loop<Policy, NarrowForward, Cell::lstm>(p, count, stream);
}

// ------------------------------------------------------------------------------------------------
// Backward.

// The k-th step back, and after the last step one more: its sequences have all ended.
template <class Real>
StepBackward<Real> backward_step(const CudaBackward<Real>& p, int64_t k, bool aligned, int part) {
  const int64_t after = p.step(p.T - k);  // where k > 0
  StepBackward<Real> s = {};
  s.units = p.P;
  s.begun = k > 0 ? p.active(after) : 0;
  s.dhn = p.dhn;
  s.h0 = p.h0;
  s.c0 = p.c0;
  s.dcn = p.dcn;
  s.carry_h = p.carry_h;
  s.carry_c = p.carry_c;
  s.dh0 = p.dh0;
  s.dc0 = p.dc0;
  s.aligned = aligned;
  if (k < p.T) {
    const int64_t t = p.step(p.T - 1 - k);
    s.active = p.active(t);
    s.y = p.y.at(t, 0);
    s.y_row = p.y.row;
    s.gates = p.gates.at(t, 0);
    s.gates_row = p.gates.row;
    if (p.dy) s.dy = p.dy.at(t, 0);
    s.dy_row = p.dy.row;
    if (p.dc) s.dc = p.dc.at(t, 0);
    s.dc_row = p.dc.row;
    s.dgates = p.dgates.at(t, 0);
    s.dgates_row = p.dgates.row;
    s.dq = p.dq;
    if (p.dh) s.dh = p.dh.at(t, 0);
    s.dh_row = p.dh.row;
    if (p.hidden) s.hidden = p.hidden.at(t, 0);
    s.hidden_row = p.hidden.row;
    if (p.previous) s.previous = p.previous.at(t, 0);
    s.previous_row = p.previous.row;
    if (p.c) s.c = p.c.at(t, 0);
    s.c_row = p.c.row;
    if (k + 1 < p.T) {
      const int64_t before = p.step(p.T - 2 - k);
      s.kept = std::min(s.active, p.active(before));
      s.y_before = p.y.at(before, 0);
      if (p.c) s.c_before = p.c.at(before, 0);
    }
  }
  s.batch = std::max(s.begun, s.active);
  const int64_t G = p.cell == Cell::gru ? 3 : 4, K = G * p.H;
  const int64_t split = p.cell == Cell::gru ? 2 * p.H : K;
  s.product = {p.w_hh_t,
               k > 0 ? p.dgates.at(after, 0) : nullptr,
               p.dgates.row,
               nullptr,
               s.begun,
               s.batch,
               K,
               split,
               p.dq - split,
               part};
  return s;
}

// The gates of a step whose dh(t) the first launch has left in memory.
template <class Real>
StepBackward<Real> after_projection(const CudaBackward<Real>& p, StepBackward<Real> s,
                                    bool aligned) {
  s.product = {p.w_hr_t, s.dh, s.dh_row, nullptr, s.active, s.batch, p.P, p.P, 0, s.product.part};
  s.units = p.H;
  s.aligned = aligned;
  s.dy = s.dhn = nullptr;
  s.dh0 = nullptr;
  s.previous = nullptr;
  return s;
}

template <class Policy, class Shape, class Real>
int backward_loop(const CudaBackward<Real>* p, int count, void* stream) {
  using Kernel = void(Directions<StepBackward<Real>>);
  const bool projected = p[0].w_hr_t;
  Kernel* const lstm = step_backward_kernel<Real, Policy, Shape, Backward::lstm>;
  Kernel* const first = projected ? step_backward_kernel<Real, Policy, Shape, Backward::state>
                        : p[0].cell == Cell::gru
                            ? step_backward_kernel<Real, Policy, Shape, Backward::gru>
                            : lstm;
  if (const int error = prepare<Shape>(first)) return error;
  if (const int error = prepare<Shape>(lstm)) return error;
  Alignment all, operands;
  for (int d = 0; d < count; ++d) {
    const CudaBackward<Real>& q = p[d];
    all.add(q.h0, q.P).add(q.c0, q.H).add(q.y).add(q.gates).add(q.c).add(q.dy).add(q.dhn, q.P);
    all.add(q.dc).add(q.dcn, q.H).add(q.dgates).add(q.dgates.data, q.dq).add(q.dh).add(q.hidden);
    all.add(q.previous).add(q.carry_h, q.H).add(q.carry_c, q.H).add(q.dh0, q.P).add(q.dc0, q.H);
    operands.add(q.w_hh_t, q.H).add(q.dgates).add(q.dgates.data, q.dq).add(q.w_hr_t, q.P).add(q.dh);
  }
  for (int64_t k = 0; k <= p[0].T; ++k) {
    Directions<StepBackward<Real>> steps = {}, gates = {};
    for (int d = 0; d < count; ++d) {
      steps.direction[d] = backward_step(p[d], k, all.pairs() && p[d].P % 2 == 0,
                                         operands.bytes<typename Policy::Real>());
      if (projected)
        gates.direction[d] =
            after_projection(p[d], steps.direction[d], all.pairs() && p[d].H % 2 == 0);
    }
    constexpr int kUnits = 16 * Shape::kRowTiles;
    int error = launch<Shape, kUnits>(first, steps, count, stream);
    if (!error && projected) error = launch<Shape, kUnits>(lstm, gates, count, stream);
    if (error) return error;
  }
  return 0;
}

template <class Policy, class Real>
int backward_with(Tile tile, const CudaBackward<Real>* p, int count, void* stream) {
  return tile == Tile::wide
             ? backward_loop<Policy, WideBackward<typename Policy::Wide>>(p, count, stream)
             : backward_loop<Policy, NarrowBackward<typename Policy::Wide>>(p, count, stream);
}

template <class Step>
int launch_cell(void (*kernel)(Step), const Step& step, void* stream) {
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(unsigned((step.B * step.H + kCellThreads - 1) / kCellThreads));
  config.blockDim = dim3(kCellThreads);
  config.stream = static_cast<cudaStream_t>(stream);
  launches.fetch_add(1, std::memory_order_relaxed);
  return cudaLaunchKernelEx(&config, kernel, step);
}

}  // namespace cuda

template <class Real>
int cell_forward_cuda(const CudaCellForward<Real>& step, void* stream) {
  return cuda::launch_cell(cuda::cell_forward_kernel<Real>, step, stream);
}

template <class Real>
int cell_backward_cuda(const CudaCellBackward<Real>& step, void* stream) {
  return cuda::launch_cell(cuda::cell_backward_kernel<Real>, step, stream);
}

#define GATEDRNN_INSTANTIATE(Real)                                                          \
  template int layer_forward_cuda(const CudaPlan&, const CudaForward<Real>*, int, void*);   \
  template int layer_backward_cuda(const CudaPlan&, const CudaBackward<Real>*, int, void*); \
  template int cell_forward_cuda(const CudaCellForward<Real>&, void*);                      \
  template int cell_backward_cuda(const CudaCellBackward<Real>&, void*)

}  // namespace gatedrnn
