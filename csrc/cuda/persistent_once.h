// Kernels that run once a call beside the walk. Each type has them in one file, for all files that
// launch walks.
#pragma once

#include "persistent_guard.h"
#include "persistent_loop.h"

namespace gatedrnn::cuda {

template <class Real>
int pack_weights(const Packs<Real>& packs, int count, void* stream) {
  const Pack<Real>& pack = packs.matrix[0];
  const unsigned rows = unsigned(pack.row_gates * pack.units / 16);
  return launch_blocks(pack_weights_kernel<Real>, packs, dim3(rows, unsigned(count)), kPackThreads,
                       1, 0, stream);
}

template <class Real>
int write_places(const Places& places, void* stream) {
  return launch_blocks(write_places_kernel<Real>, places, dim3(1), kPlacesThreads, 1, 0, stream);
}

template <class Real>
int guard_forward(Cell cell, const Directions<PersistentForward<Real>>& walks, int count,
                  void* stream) {
  const auto kernel =
      cell == Cell::gru ? guarded_forward_kernel<Cell::gru> : guarded_forward_kernel<Cell::lstm>;
  return launch_blocks(kernel, walks, dim3(unsigned(walks.direction[0].B), unsigned(count)),
                       kGuardThreads, 1, 0, stream);
}

}  // namespace gatedrnn::cuda
