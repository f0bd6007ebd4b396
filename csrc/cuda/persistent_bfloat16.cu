#include "grid_loop.h"
#include "persistent_once.h"

namespace gatedrnn::cuda {

template int pack_weights(const Packs<Bfloat16>&, int, void*);
template int write_places<Bfloat16>(const Places&, void*);
template int persistent_forward(const PersistentPlan&, const CudaForward<Bfloat16>*, int, void*);
template int persistent_backward(const PersistentPlan&, const CudaBackward<Bfloat16>*, int, void*);

}  // namespace gatedrnn::cuda
