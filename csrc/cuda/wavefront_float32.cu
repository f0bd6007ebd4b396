#include "wavefront_loop.h"

namespace gatedrnn {

template int stack_forward_cuda(const PersistentPlan&, const CudaForward<float>*, int, float*,
                                void*);

}  // namespace gatedrnn
