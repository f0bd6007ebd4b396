#include "loop.h"

namespace gatedrnn {

template <class Real>
int layer_forward_cuda(const CudaPlan& plan, const CudaForward<Real>* p, int count, void* stream) {
  if (plan.persistent_forward.units)
    return cuda::persistent_forward(plan.persistent_forward, p, count, stream);
  return cuda::forward_with<cuda::TensorCore<cuda::Float16>>(plan.forward_tile, p, count, stream);
}

template <class Real>
int layer_backward_cuda(const CudaPlan& plan, const CudaBackward<Real>* p, int count,
                        void* stream) {
  if (plan.persistent_backward.units)
    return cuda::persistent_backward(plan.persistent_backward, p, count, stream);
  return cuda::backward_with<cuda::TensorCore<cuda::Tf32>>(plan.backward_tile, p, count, stream);
}

GATEDRNN_INSTANTIATE(Half);

}  // namespace gatedrnn
