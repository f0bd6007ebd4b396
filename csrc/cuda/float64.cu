#include "loop.h"

namespace gatedrnn {

template <class Real>
int layer_forward_cuda(const CudaPlan& plan, const CudaForward<Real>* p, int count, void* stream) {
  return cuda::forward_with<cuda::Fma<double>>(plan.forward_tile, p, count, stream);
}

template <class Real>
int layer_backward_cuda(const CudaPlan& plan, const CudaBackward<Real>* p, int count,
                        void* stream) {
  return cuda::backward_with<cuda::Fma<double>>(plan.backward_tile, p, count, stream);
}

GATEDRNN_INSTANTIATE(double);

}  // namespace gatedrnn
