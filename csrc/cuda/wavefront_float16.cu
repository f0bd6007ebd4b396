#include "wavefront_loop.h"

namespace gatedrnn {

template int stack_forward_cuda(const PersistentPlan&, const CudaForward<Half>*, int, float*,
                                void*);

}  // namespace gatedrnn
