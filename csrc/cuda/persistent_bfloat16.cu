#include "grid_loop.h"

namespace gatedrnn::cuda {

template int persistent_forward(const PersistentPlan&, const CudaForward<Bfloat16>*, int, void*);
template int persistent_backward(const PersistentPlan&, const CudaBackward<Bfloat16>*, int, void*);

}  // namespace gatedrnn::cuda
