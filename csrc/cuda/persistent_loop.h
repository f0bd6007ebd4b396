// The persistent kernels' launches, for one type: weights are packed, then all steps run in one.
#pragma once

#include <utility>

#include "launch.h"
#include "persistent_backward.h"
#include "persistent_forward.h"
#include "persistent_pack.h"

namespace gatedrnn::cuda {

// persistent_once.h
template <class Real>
int pack_weights(const Packs<Real>& packs, int count, void* stream);
template <class Real>
int write_places(const Places& places, void* stream);
template <class Real>
int guard_forward(Cell cell, const Directions<PersistentForward<Real>>& walks, int count,
                  void* stream);

// grid_loop.h
template <class Real>
int grid_forward(const PersistentPlan& plan, const CudaForward<Real>* p, int count, void* stream);
template <class Real>
int grid_backward(const PersistentPlan& plan, const CudaBackward<Real>* p, int count, void* stream);

template <class Step>
int launch_blocks(void (*kernel)(Step), const Step& step, dim3 grid, int threads, int cluster,
                  int shared, void* stream) {
  cudaLaunchAttribute attribute = {};
  attribute.id = cudaLaunchAttributeClusterDimension;
  attribute.val.clusterDim = {unsigned(cluster), 1, 1};
  cudaLaunchConfig_t config = {};
  config.gridDim = grid;
  config.blockDim = dim3(unsigned(threads));
  config.dynamicSmemBytes = size_t(shared);
  config.stream = static_cast<cudaStream_t>(stream);
  config.attrs = &attribute;
  config.numAttrs = cluster > 1 ? 1 : 0;
  launches.fetch_add(1, std::memory_order_relaxed);
  return cudaLaunchKernelEx(&config, kernel, step);
}

// Calls visit.template operator()<Shape>() with the shape that is meant.
template <const auto& kShapes, class Visit>
int with_shape(Cell cell, const PersistentPlan& plan, Visit visit) {
  return [&]<size_t... I>(std::index_sequence<I...>) {
    int error = cudaErrorInvalidValue;
    const auto try_one = [&]<PersistentShape kShape>() {
      if (cell == kShape.cell && plan.units == kShape.units && plan.cluster == kShape.cluster())
        error = visit.template operator()<Persistent<kShape.cell, kShape.units, kShape.groups,
                                                     kShape.split, kShape.parts, kShape.stacked>>();
    };
    (try_one.template operator()<kShapes[I]>(), ...);
    return error;
  }(std::make_index_sequence<std::size(kShapes)>());
}

// Room for the shared memory, and leave for clusters of more than 8 blocks.
template <class Kernel>
int prepare_cluster(Kernel* kernel, int cluster, int shared) {
  if (const int error =
          cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared))
    return error;
  if (cluster <= 8) return 0;
  return cudaFuncSetAttribute(kernel, cudaFuncAttributeNonPortableClusterSizeAllowed, 1);
}

// Packs the weights, then walks, a cluster for plan.sequences.
template <class Shape, class Real, class Walk>
int launch_walk(void (*kernel)(Directions<Walk>), const Packs<Real>& packs,
                const Directions<Walk>& walks, const PersistentPlan& plan, int count, int shared,
                void* stream) {
  constexpr PersistentShape kShape = Shape::kShape;
  if (const int error = prepare_cluster(kernel, kShape.cluster(), shared)) return error;
  if (const int error = pack_weights(packs, count, stream)) return error;
  const int64_t B = walks.direction[0].B;
  const unsigned clusters = unsigned((B + plan.sequences - 1) / plan.sequences);
  return launch_blocks(kernel, walks, dim3(clusters * unsigned(kShape.cluster()), unsigned(count)),
                       kShape.threads(), kShape.cluster(), shared, stream);
}

template <class Rows>
auto strided(const Rows& rows) {
  return Strided<std::remove_pointer_t<decltype(rows.data)>>{
      rows.data, rows.offsets ? rows.row : rows.step, rows.row};
}

// Of packed data they are written first.
template <class Real, class Direction>
int lengths_of(const Direction& p, Lengths* lengths, void* stream) {
  *lengths = {p.uneven.lengths, p.uneven.order, nullptr};
  if (!p.offsets) return 0;
  Places places = {};
  places.to = p.uneven.places;
  places.lengths = places.to + p.T;
  places.T = p.T;
  *lengths = {places.lengths, nullptr, places.to};
  for (; places.first < p.T; places.first += kPlaces) {
    places.count = int(std::min<int64_t>(kPlaces, p.T - places.first));
    const int64_t* from = p.offsets + places.first;
    std::copy(from, std::min(from + kPlaces + 2, p.offsets + p.T + 1), places.offsets);
    if (const int error = write_places<Real>(places, stream)) return error;
  }
  return 0;
}

// Shared memory for the columns of a ragged batch, bytes.
template <class Direction>
int columns_of(const PersistentShape& shape, int tiles, const Direction& p) {
  return p.offsets || p.uneven.lengths ? shape.columns_bytes(tiles) : 0;
}

// Weights in the threads' order, in scratch that the caller gives.
struct PackedWeights {
  PackedWeights(const PersistentShape& shape, float* packed, bool scaled)
      : fragments(reinterpret_cast<Fragment*>(packed)),
        size(int64_t(shape.gates()) * shape.units * shape.depth() / 8),
        unscale(scaled ? packed + 4 * shape.parts * size : nullptr) {}

  Fragment* fragments;
  int64_t size;  // fragments of a part
  float* unscale;
};

// What the kernels are told.
template <class Real>
void describe(const PersistentShape& shape, int tiles, const Lengths& lengths,
              const CudaForward<Real>* p, int count, Pack<Real>* packs,
              PersistentForward<Real>* walks) {
  constexpr bool kScaled = std::is_same_v<Real, float>;
  Alignment all;
  for (int d = 0; d < count; ++d) {
    all.add(p[d].projected).add(p[d].y).add(p[d].gates).add(p[d].c);
    all.add(p[d].h0, p[d].H).add(p[d].c0, p[d].H).add(p[d].hn, p[d].H).add(p[d].cn, p[d].H);
  }
  for (int d = 0; d < count; ++d) {
    const PackedWeights packed(shape, p[d].packed, kScaled);
    packs[d] = {p[d].w_hh,
                packed.fragments,
                packed.unscale,
                p[d].H,
                p[d].H,
                1,
                shape.units,
                shape.gates(),
                1,
                shape.split,
                0,
                shape.parts,
                packed.size,
                shape.depth(),
                shape.depth() - shape.units};
    PersistentForward<Real>& w = walks[d];
    w.T = p[d].T;
    w.B = p[d].B;
    w.H = p[d].H;
    w.tiles = tiles;
    w.reverse = p[d].reverse;
    w.aligned = all.pairs() && p[d].H % 2 == 0;
    w.lengths = lengths;
    w.weights = packed.fragments;
    w.fragments = packed.size;
    w.unscale = packed.unscale;
    w.I = p[d].projected ? 0 : p[d].I;
    w.x = strided(p[d].x);
    w.w_ih = p[d].w_ih;
    w.projected = strided(p[d].projected);
    w.w_hh = p[d].w_hh;
    w.b_ih = p[d].b_ih;
    w.b_hh = p[d].b_hh;
    w.h0 = p[d].h0;
    w.c0 = p[d].c0;
    w.y = strided(p[d].y);
    w.gates = strided(p[d].gates);
    w.c = strided(p[d].c);
    w.hn = p[d].hn;
    w.cn = p[d].cn;
  }
}

template <class Real, class Shape>
int persistent_forward_with(const PersistentPlan& plan, const CudaForward<Real>* p, int count,
                            void* stream) {
  constexpr PersistentShape kShape = Shape::kShape;
  const int tiles = plan.sequences / kShape.columns();
  int shared = kShape.forward_bytes(tiles) + columns_of(kShape, tiles, p[0]), input = 0;
  for (int d = 0; d < count; ++d)
    if (!p[d].projected) input = std::max(input, kShape.input_bytes(p[d].I));
  Lengths lengths;
  if (const int error = lengths_of<Real>(p[0], &lengths, stream)) return error;
  Packs<Real> packs = {};
  Directions<PersistentForward<Real>> walks = {};
  describe(kShape, tiles, lengths, p, count, packs.matrix, walks.direction);
  int error = launch_walk<Shape, Real>(persistent_forward_kernel<Real, Shape>, packs, walks, plan,
                                       count, shared + input, stream);
  if constexpr (std::is_same_v<Real, float>)
    if (!error) error = guard_forward(Shape::cell, walks, count, stream);
  return error;
}

template <class Real>
void describe(const PersistentShape& shape, int tiles, const Lengths& lengths,
              const CudaBackward<Real>* p, int count, Pack<Real>* packs,
              PersistentBackward<Real>* walks) {
  constexpr bool kScaled = std::is_same_v<OperandOf<Real>, Half>;
  Alignment all;
  for (int d = 0; d < count; ++d) {
    const CudaBackward<Real>& q = p[d];
    all.add(q.h0, q.H).add(q.c0, q.H).add(q.y).add(q.gates).add(q.c).add(q.dy).add(q.dhn, q.H);
    all.add(q.dcn, q.H).add(q.dc).add(q.dgates).add(q.dgates.data, q.dq).add(q.previous);
    all.add(q.dh0, q.H).add(q.dc0, q.H);
  }
  for (int d = 0; d < count; ++d) {
    const PackedWeights packed(shape, p[d].packed, kScaled);
    packs[d] = {p[d].w_hh,
                packed.fragments,
                packed.unscale,
                p[d].H,
                1,
                p[d].H,
                shape.units,
                1,
                shape.gates(),
                0,
                shape.groups,
                shape.parts,
                packed.size,
                0,
                0};
    PersistentBackward<Real>& w = walks[d];
    w.T = p[d].T;
    w.B = p[d].B;
    w.H = p[d].H;
    w.tiles = tiles;
    w.reverse = p[d].reverse;
    w.aligned = all.pairs() && p[d].H % 2 == 0;
    w.lengths = lengths;
    w.weights = packed.fragments;
    w.fragments = packed.size;
    w.unscale = packed.unscale;
    w.h0 = p[d].h0;
    w.c0 = p[d].c0;
    w.y = strided(p[d].y);
    w.gates = strided(p[d].gates);
    w.c = strided(p[d].c);
    w.dy = strided(p[d].dy);
    w.dhn = p[d].dhn;
    w.dcn = p[d].dcn;
    w.dc = strided(p[d].dc);
    w.dgates = strided(p[d].dgates);
    w.dq = p[d].dq;
    w.previous = strided(p[d].previous);
    w.dh0 = p[d].dh0;
    w.dc0 = p[d].dc0;
  }
}

template <class Real, class Shape>
int persistent_backward_with(const PersistentPlan& plan, const CudaBackward<Real>* p, int count,
                             void* stream) {
  constexpr PersistentShape kShape = Shape::kShape;
  const int tiles = plan.sequences / kShape.columns();
  const int shared = kShape.backward_bytes(tiles, sizeof(Real)) + columns_of(kShape, tiles, p[0]);
  Lengths lengths;
  if (const int error = lengths_of<Real>(p[0], &lengths, stream)) return error;
  Packs<Real> packs = {};
  Directions<PersistentBackward<Real>> walks = {};
  describe(kShape, tiles, lengths, p, count, packs.matrix, walks.direction);
  return launch_walk<Shape, Real>(persistent_backward_kernel<Real, Shape>, packs, walks, plan,
                                  count, shared, stream);
}

template <class Real>
int persistent_forward(const PersistentPlan& plan, const CudaForward<Real>* p, int count,
                       void* stream) {
  if (plan.grid()) return grid_forward(plan, p, count, stream);
  return with_shape<kPersistentShapes>(p[0].cell, plan, [&]<class Shape>() {
    return persistent_forward_with<Real, Shape>(plan, p, count, stream);
  });
}

template <class Real>
int persistent_backward(const PersistentPlan& plan, const CudaBackward<Real>* p, int count,
                        void* stream) {
  if (plan.grid()) return grid_backward(plan, p, count, stream);
  return with_shape<kPersistentShapes>(p[0].cell, plan, [&]<class Shape>() {
    return persistent_backward_with<Real, Shape>(plan, p, count, stream);
  });
}

}  // namespace gatedrnn::cuda
