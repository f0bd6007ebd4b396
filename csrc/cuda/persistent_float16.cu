#include "grid_loop.h"
#include "persistent_once.h"

namespace gatedrnn::cuda {

template int pack_weights(const Packs<Half>&, int, void*);
template int write_places<Half>(const Places&, void*);
template int persistent_forward(const PersistentPlan&, const CudaForward<Half>*, int, void*);
template int persistent_backward(const PersistentPlan&, const CudaBackward<Half>*, int, void*);

}  // namespace gatedrnn::cuda
