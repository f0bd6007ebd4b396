#include "grid_loop.h"
#include "persistent_once.h"

namespace gatedrnn::cuda {

template int pack_weights(const Packs<float>&, int, void*);
template int write_places<float>(const Places&, void*);
template int guard_forward(Cell, const Directions<PersistentForward<float>>&, int, void*);
template int persistent_forward(const PersistentPlan&, const CudaForward<float>*, int, void*);
template int persistent_backward(const PersistentPlan&, const CudaBackward<float>*, int, void*);

}  // namespace gatedrnn::cuda
