#include "grid_loop.h"

namespace gatedrnn::cuda {

template int persistent_forward(const PersistentPlan&, const CudaForward<Half>*, int, void*);
template int persistent_backward(const PersistentPlan&, const CudaBackward<Half>*, int, void*);

}  // namespace gatedrnn::cuda
