// Where a call on CUDA tensors runs, and how its failures are told.
#pragma once

#include <memory>

#include "../../cuda/layer.h"
#include "../torch.h"

#ifdef GATEDRNN_EMULATE
#define GATEDRNN_CUDA_KEY CPU
#else
#define GATEDRNN_CUDA_KEY CUDA
#endif

namespace gatedrnn {

// As long as it lives, x's device is the current one of torch and of the kernels. Refuses tensors
// that are not beside x.
class OnDevice {
 public:
  OnDevice(const Tensor& x, std::initializer_list<OptionalTensor> others,
           const Tensors& weights = {});
  ~OnDevice();

  bool has_tf32() const { return device.architecture >= 80; }

  CudaDevice device;
  void* stream = nullptr;  // torch's current one

 private:
  struct Guard;
  std::unique_ptr<Guard> guard_;
};

// `error` is what a launch returned.
void expect_launched(int error);

// A copy where the type differs, and nothing otherwise.
template <class Real>
Tensor as(const Tensor& t) {
  const ScalarType type = scalar_type_of(type_of<Real>());
  return t.scalar_type() == type ? t : torch::stable::to(t, type);
}

}  // namespace gatedrnn
