#include "loop.h"

namespace gatedrnn {

using Strict = cuda::Fma<float>;
using Rounded = cuda::TensorCore<cuda::Tf32>;

template <class Real>
int layer_forward_cuda(const CudaPlan& plan, const CudaForward<Real>* p, int count, void* stream) {
  const PersistentPlan& persistent = plan.persistent_forward;
  if (persistent.units) {
    const auto run = plan.forward == Product::fma     ? cuda::latency_forward
                     : plan.forward == Product::split ? cuda::split_forward
                                                      : cuda::persistent_forward<Real>;
    return run(persistent, p, count, stream);
  }
  return plan.forward == Product::tf32
             ? cuda::forward_with<Rounded>(plan.forward_tile, p, count, stream)
             : cuda::forward_with<Strict>(plan.forward_tile, p, count, stream);
}

template <class Real>
int layer_backward_cuda(const CudaPlan& plan, const CudaBackward<Real>* p, int count,
                        void* stream) {
  const PersistentPlan& persistent = plan.persistent_backward;
  if (persistent.units) {
    const auto run = plan.backward == Product::fma     ? cuda::latency_backward
                     : plan.backward == Product::split ? cuda::split_backward
                                                       : cuda::persistent_backward<Real>;
    return run(persistent, p, count, stream);
  }
  return plan.backward == Product::tf32
             ? cuda::backward_with<Rounded>(plan.backward_tile, p, count, stream)
             : cuda::backward_with<Strict>(plan.backward_tile, p, count, stream);
}

GATEDRNN_INSTANTIATE(float);

}  // namespace gatedrnn
