#include "loop.h"
#include "persistent_loop.h"

namespace gatedrnn::cuda {

int split_forward(const PersistentPlan& plan, const CudaForward<float>* p, int count,
                  void* stream) {
  return with_shape<kSplitShapes>(p[0].cell, plan, [&]<class Shape>() {
    return persistent_forward_with<float, Shape>(plan, p, count, stream);
  });
}

int split_backward(const PersistentPlan& plan, const CudaBackward<float>* p, int count,
                   void* stream) {
  return with_shape<kSplitShapes>(p[0].cell, plan, [&]<class Shape>() {
    return persistent_backward_with<float, Shape>(plan, p, count, stream);
  });
}

}  // namespace gatedrnn::cuda
