// The latency kernels' launches: nothing is packed, threads find their weights once.
#include "latency_backward.h"
#include "latency_forward.h"
#include "loop.h"
#include "persistent_loop.h"

namespace gatedrnn::cuda {
namespace {

// Calls visit.template operator()<Shape>() with the shape that is meant.
template <class Visit>
int with_latency_shape(Cell cell, const PersistentPlan& plan, Visit visit) {
  return [&]<size_t... I>(std::index_sequence<I...>) {
    int error = cudaErrorInvalidValue;
    const auto try_one = [&]<LatencyShape kShape>() {
      if (cell == kShape.cell && plan.units == kShape.units && plan.cluster == kShape.cluster() &&
          plan.sequences == 1)
        error = visit.template operator()<Latency<kShape.cell, kShape.units>>();
    };
    (try_one.template operator()<kLatencyShapes[I]>(), ...);
    return error;
  }(std::make_index_sequence<std::size(kLatencyShapes)>());
}

// A cluster for each sequence and direction.
template <class Shape, class Walk>
int launch_latency(void (*kernel)(Directions<Walk>), const Directions<Walk>& walks, int64_t B,
                   int count, void* stream) {
  constexpr int kCluster = Shape::kCluster;
  if (const int error = prepare_cluster(kernel, kCluster, 0)) return error;
  return launch_blocks(kernel, walks, dim3(unsigned(B) * kCluster, unsigned(count)),
                       Shape::kThreads, kCluster, 0, stream);
}

}  // namespace

int latency_forward(const PersistentPlan& plan, const CudaForward<float>* p, int count,
                    void* stream) {
  Directions<LatencyForward> walks = {};
  for (int d = 0; d < count; ++d)
    walks.direction[d] = {p[d].T,    p[d].H,          p[d].reverse,        strided(p[d].projected),
                          p[d].w_hh, p[d].b_ih,       p[d].b_hh,           p[d].h0,
                          p[d].c0,   strided(p[d].y), strided(p[d].gates), strided(p[d].c),
                          p[d].hn,   p[d].cn};
  return with_latency_shape(p[0].cell, plan, [&]<class Shape>() {
    return launch_latency<Shape>(latency_forward_kernel<Shape>, walks, p[0].B, count, stream);
  });
}

int latency_backward(const PersistentPlan& plan, const CudaBackward<float>* p, int count,
                     void* stream) {
  Directions<LatencyBackward> walks = {};
  for (int d = 0; d < count; ++d)
    walks.direction[d] = {p[d].T,           p[d].H,
                          p[d].reverse,     p[d].w_hh,
                          p[d].h0,          p[d].c0,
                          strided(p[d].y),  strided(p[d].gates),
                          strided(p[d].c),  strided(p[d].dy),
                          p[d].dhn,         p[d].dcn,
                          strided(p[d].dc), strided(p[d].dgates),
                          p[d].dq,          strided(p[d].previous),
                          p[d].dh0,         p[d].dc0};
  return with_latency_shape(p[0].cell, plan, [&]<class Shape>() {
    return launch_latency<Shape>(latency_backward_kernel<Shape>, walks, p[0].B, count, stream);
  });
}

}  // namespace gatedrnn::cuda
