#include "device.h"

#include <torch/csrc/stable/accelerator.h>

#include <string>

// Torch has it in builds for CUDA only; weak, so that this binary loads into others too.
extern "C" [[gnu::weak]] AOTITorchError aoti_torch_get_current_cuda_stream(int32_t device,
                                                                           void** stream);

namespace gatedrnn {
namespace {

std::string name_of_device(const Tensor& t) {
  if (t.is_cpu()) return "cpu";
  return (t.is_cuda() ? "cuda:" : "another device:") + std::to_string(t.get_device_index());
}

void expect_beside(const Tensor& x, const Tensor& t) {
  if (t.is_cuda() == x.is_cuda() && t.is_cpu() == x.is_cpu() &&
      t.get_device_index() == x.get_device_index())
    return;
  expect(false, "expected all tensors on the device of the input, ", name_of_device(x),
         ", but found one on ", name_of_device(t));
}

}  // namespace

#ifdef GATEDRNN_EMULATE

struct OnDevice::Guard {};

#else

struct OnDevice::Guard : torch::stable::accelerator::DeviceGuard {
  using DeviceGuard::DeviceGuard;
};

#endif

OnDevice::OnDevice(const Tensor& x, std::initializer_list<OptionalTensor> others,
                   const Tensors& weights) {
  for (const OptionalTensor& t : others)
    if (t) expect_beside(x, *t);
  for (const Tensor& w : weights) expect_beside(x, w);
  int index = 0;
#ifndef GATEDRNN_EMULATE
  expect(aoti_torch_get_current_cuda_stream, "this torch is not built for CUDA");
  index = x.get_device_index();
  guard_ = std::make_unique<Guard>(index);
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(index, &stream));
#endif
  expect_launched(use_cuda_device(index, &device));
}

OnDevice::~OnDevice() = default;

void expect_launched(int error) {
  // cudaErrorInvalidDeviceFunction and cudaErrorNoKernelImageForDevice
  if (error == 98 || error == 209)
    expect(false, "CUDA error: ", cuda_error_text(error), "; these kernels were built for ",
           GATEDRNN_CUDA, ": build with GATEDRNN_CUDA_ARCHS naming this GPU's architecture too");
  expect(error == 0, "CUDA error: ", error ? cuda_error_text(error) : "");
}

}  // namespace gatedrnn

STABLE_TORCH_LIBRARY_FRAGMENT(GATEDRNN_OPS, m) { m.def("cuda_launches() -> int"); }

STABLE_TORCH_LIBRARY_IMPL(GATEDRNN_OPS, CompositeExplicitAutograd, m) {
  m.impl("cuda_launches", TORCH_BOX(&gatedrnn::cuda_launches));
}
