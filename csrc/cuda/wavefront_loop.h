// The wavefront's launches, for one type: weights are packed, then all steps of all layers run in
// one.
#pragma once

#include "persistent_guard.h"
#include "persistent_loop.h"
#include "wavefront_forward.h"

namespace gatedrnn::cuda {

template <class Real, class Shape>
int stack_forward_with(const PersistentPlan& plan, const CudaForward<Real>* p, int count,
                       float* exchange, void* stream) {
  constexpr PersistentShape kShape = Shape::kShape;
  constexpr bool kScaled = std::is_same_v<Real, float>;
  const auto kernel = wavefront_forward_kernel<Real, Shape>;
  const int64_t T = p[0].T, B = p[0].B;
  const int tiles = plan.sequences / kShape.columns();
  const int clusters = int(groups_of(B, plan.sequences));
  const int64_t size = stack_exchange_size(plan.units, plan.sequences, count, T, B);
  const int64_t step = int64_t(clusters) * plan.sequences * plan.units / 8;
  auto* between = reinterpret_cast<Fragment*>(exchange);
  Packs<Real> packs = {};
  PersistentForward<Real> walks[kMostStacked] = {};
  describe(kShape, tiles, {}, p, count, packs.matrix, walks);
  Stack<Real> stack = {};
  stack.begun = reinterpret_cast<unsigned*>(exchange + size) - 1;
  stack.clusters = clusters;
  for (int l = 0; l < count; ++l) {
    StackedForward<Real>& layer = stack.layer[l];
    static_cast<PersistentForward<Real>&>(layer) = walks[l];
    layer.I = 0;
    layer.step = step;
    layer.below = l > 0 ? between + (l - 1) * T * step : nullptr;
    layer.above = l + 1 < count ? between + l * T * step : nullptr;
    if (l == 0) continue;
    // The columns of W_ih come before those of W_hh.
    Pack<Real>& pack = packs.matrix[count + l - 1];
    pack = packs.matrix[l];
    pack.w = p[l].w_ih;
    pack.before = 0;
    if (kScaled) pack.unscale += kShape.gates() * kShape.units;
    layer.unscale_input = pack.unscale;
  }
  const int shared = kShape.forward_bytes(tiles);
  int error = cudaMemsetAsync(exchange, 0xff, size_t(size) * sizeof(float),
                              static_cast<cudaStream_t>(stream));
  if (!error) error = prepare_cluster(kernel, kShape.cluster(), shared);
  if (!error) error = pack_weights(packs, 2 * count - 1, stream);
  if (!error)
    error = launch_blocks(kernel, stack, dim3(unsigned(count * clusters * kShape.cluster())),
                          kShape.threads(), kShape.cluster(), shared, stream);
  if constexpr (kScaled)
    if (!error) {
      StackedWalks guarded = {};
      guarded.count = count;
      std::copy_n(walks, count, guarded.layer);
      error = launch_blocks(guarded_stack_kernel<Shape::cell>, guarded, dim3(unsigned(B)),
                            kGuardThreads, 1, 0, stream);
    }
  return error;
}

}  // namespace gatedrnn::cuda

namespace gatedrnn {

template <class Real>
int stack_forward_cuda(const PersistentPlan& plan, const CudaForward<Real>* p, int count,
                       float* exchange, void* stream) {
  return cuda::with_shape<kStackedShapes>(p[0].cell, plan, [&]<class Shape>() {
    return cuda::stack_forward_with<Real, Shape>(plan, p, count, exchange, stream);
  });
}

}  // namespace gatedrnn
