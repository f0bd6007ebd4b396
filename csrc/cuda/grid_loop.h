// The grid-persistent kernels' launches, for one type: weights are packed, the exchange is seeded,
// then all steps run in one cooperative launch; or in one for each direction, where the device does
// not hold both at the same time.
#pragma once

#include "grid_backward.h"
#include "grid_forward.h"
#include "persistent_loop.h"

namespace gatedrnn::cuda {

template <class Step>
int launch_cooperative(void (*kernel)(Step), const Step& step, dim3 grid, int shared,
                       void* stream) {
  cudaLaunchAttribute attribute = {};
  attribute.id = cudaLaunchAttributeCooperative;
  attribute.val.cooperative = 1;
  cudaLaunchConfig_t config = {};
  config.gridDim = grid;
  config.blockDim = dim3(GridShape::kThreads);
  config.dynamicSmemBytes = size_t(shared);
  config.stream = static_cast<cudaStream_t>(stream);
  config.attrs = &attribute;
  config.numAttrs = 1;
  launches.fetch_add(1, std::memory_order_relaxed);
  return cudaLaunchKernelEx(&config, kernel, step);
}

// How many blocks the device runs at the same time.
template <class Kernel>
int blocks_at_once(Kernel* kernel, int shared, int* blocks) {
  int device = 0, multiprocessors = 0, each = 0;
  int error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared);
  if (!error) error = cudaGetDevice(&device);
  if (!error)
    error = cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, device);
  if (!error)
    error = cudaOccupancyMaxActiveBlocksPerMultiprocessor(&each, kernel, GridShape::kThreads,
                                                          size_t(shared));
  *blocks = multiprocessors * each;
  return error;
}

// Packs the weights and seeds the exchange, then walks.
template <class Real, class Walk>
int launch_grid(void (*kernel)(Directions<Walk>), const Packs<Real>& packs,
                const Seeds<Real>& seeds, const Directions<Walk>& walks, const PersistentPlan& plan,
                int count, int shared, void* stream) {
  const unsigned directions = unsigned(count);
  const unsigned seeding = unsigned((seeds.direction[0].count + kSeedThreads - 1) / kSeedThreads);
  const unsigned blocks = unsigned(GridShape::blocks(plan.units)),
                 groups = unsigned(groups_of(walks.direction[0].B, plan.sequences));
  int at_once = 0;
  int error = blocks_at_once(kernel, shared, &at_once);
  if (!error) error = pack_weights(packs, count, stream);
  if (!error)
    error = launch_blocks(seed_exchange_kernel<Real>, seeds, dim3(seeding, directions),
                          kSeedThreads, 1, 0, stream);
  if (error || int64_t(blocks) * groups * count <= at_once)
    return error ? error
                 : launch_cooperative(kernel, walks, dim3(blocks, groups, directions), shared,
                                      stream);
  for (int d = 0; d < count && !error; ++d)
    error = launch_cooperative(kernel, Directions<Walk>{{walks.direction[d]}}, dim3(blocks, groups),
                               shared, stream);
  return error;
}

// What follows a direction's packed weights.
inline Fragment* exchange_of(float* packed, int gates, const PersistentPlan& plan) {
  return reinterpret_cast<Fragment*>(packed + packed_size(gates, plan.units, 1));
}

template <Cell kCell, class Real>
int grid_forward_with(const PersistentPlan& plan, const CudaForward<Real>* p, int count,
                      void* stream) {
  constexpr int G = kGates<kCell>;
  const int tiles = plan.sequences / GridShape::kColumns;
  Packs<Real> packs = {};
  Seeds<Real> seeds = {};
  Directions<PersistentForward<Real>> each = {};
  Directions<GridForward<Real>> walks = {};
  describe(GridShape::packing(kCell, plan.units), tiles, {}, p, count, packs.matrix,
           each.direction);
  for (int d = 0; d < count; ++d) {
    Fragment* exchange = exchange_of(p[d].packed, G, plan);
    walks.direction[d] = {each.direction[d], plan.units, exchange};
    seeds.direction[d] = {exchange, p[d].h0, exchange_size(plan, p[d].B, true) / 4,
                          p[d].B,   p[d].H,  GridShape::blocks(plan.units)};
  }
  int error = launch_grid(grid_forward_kernel<Real, kCell>, packs, seeds, walks, plan, count,
                          GridShape::forward_bytes(G, plan.units, tiles), stream);
  if constexpr (std::is_same_v<Real, float>)
    if (!error) error = guard_forward(kCell, each, count, stream);
  return error;
}

template <Cell kCell, class Real>
int grid_backward_with(const PersistentPlan& plan, const CudaBackward<Real>* p, int count,
                       void* stream) {
  constexpr int G = kGates<kCell>;
  const int tiles = plan.sequences / GridShape::kColumns;
  Packs<Real> packs = {};
  Seeds<Real> seeds = {};
  Directions<PersistentBackward<Real>> each = {};
  Directions<GridBackward<Real>> walks = {};
  describe(GridShape::packing(kCell, plan.units), tiles, {}, p, count, packs.matrix,
           each.direction);
  for (int d = 0; d < count; ++d) {
    Fragment* exchange = exchange_of(p[d].packed, G, plan);
    walks.direction[d] = {each.direction[d], plan.units, exchange};
    seeds.direction[d] = {exchange, nullptr, exchange_size(plan, p[d].B, false) / 4, 0, 0, 0};
  }
  return launch_grid(grid_backward_kernel<Real, kCell>, packs, seeds, walks, plan, count,
                     GridShape::backward_bytes(G, plan.units, tiles, sizeof(Real)), stream);
}

// Whether there is such a kernel.
inline bool fits_grid(const PersistentPlan& plan) {
  const int tiles = plan.sequences / GridShape::kColumns;
  return plan.units % GridShape::kGrain == 0 && plan.units <= GridShape::kMostUnits &&
         plan.sequences % GridShape::kColumns == 0 && tiles >= 1 && tiles <= GridShape::kMostTiles;
}

template <class Real>
int grid_forward(const PersistentPlan& plan, const CudaForward<Real>* p, int count, void* stream) {
  if (!fits_grid(plan)) return cudaErrorInvalidValue;
  return p[0].cell == Cell::gru ? grid_forward_with<Cell::gru>(plan, p, count, stream)
                                : grid_forward_with<Cell::lstm>(plan, p, count, stream);
}

template <class Real>
int grid_backward(const PersistentPlan& plan, const CudaBackward<Real>* p, int count,
                  void* stream) {
  if (!fits_grid(plan)) return cudaErrorInvalidValue;
  return p[0].cell == Cell::gru ? grid_backward_with<Cell::gru>(plan, p, count, stream)
                                : grid_backward_with<Cell::lstm>(plan, p, count, stream);
}

}  // namespace gatedrnn::cuda
