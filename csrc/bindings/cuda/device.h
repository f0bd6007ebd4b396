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

template <class Real>
constexpr Type type_of();
template <>
constexpr Type type_of<float>() {
  return Type::float32;
}
template <>
constexpr Type type_of<double>() {
  return Type::float64;
}
template <>
constexpr Type type_of<Half>() {
  return Type::float16;
}
template <>
constexpr Type type_of<Bfloat16>() {
  return Type::bfloat16;
}

inline ScalarType scalar_type_of(Type type) {
  switch (type) {
    case Type::float32:
      return ScalarType::Float;
    case Type::float64:
      return ScalarType::Double;
    case Type::float16:
      return ScalarType::Half;
    case Type::bfloat16:
      return ScalarType::BFloat16;
  }
  return ScalarType::Undefined;
}

// run.operator()<Real>() for the storage type of x.
template <class Run>
auto with_storage_of(const Tensor& x, Run&& run) {
  switch (x.scalar_type()) {
    case ScalarType::Double:
      return run.template operator()<double>();
    case ScalarType::Half:
      return run.template operator()<Half>();
    case ScalarType::BFloat16:
      return run.template operator()<Bfloat16>();
    default:
      return run.template operator()<float>();
  }
}

template <class Real>
Tensor empty_of(const Tensor& like, const std::vector<int64_t>& sizes) {
  return torch::stable::new_empty(like, sizes, scalar_type_of(type_of<Real>()));
}

// A copy where the type differs, and nothing otherwise.
template <class Real>
Tensor as(const Tensor& t) {
  const ScalarType type = scalar_type_of(type_of<Real>());
  return t.scalar_type() == type ? t : torch::stable::to(t, type);
}

}  // namespace gatedrnn
