#include "grid_loop.h"

namespace gatedrnn::cuda {

template int persistent_forward(const PersistentPlan&, const CudaForward<float>*, int, void*);
template int persistent_backward(const PersistentPlan&, const CudaBackward<float>*, int, void*);

}  // namespace gatedrnn::cuda
