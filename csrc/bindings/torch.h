// What the bindings share: torch's operations by name, and checks. On the LibTorch stable ABI, so
// that one binary serves torch 2.10 and newer.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <algorithm>
#include <array>
#include <initializer_list>
#include <optional>
#include <sstream>
#include <stdexcept>
#include <thread>
#include <vector>

#include "../cpu/layer.h"
#include "blocks.h"

// Torch's from 2.11 on; null in 2.10.
extern "C" __attribute__((weak)) AOTITorchError
torch_from_blob(void* data, int64_t dim, const int64_t* sizes, const int64_t* strides,
                int64_t offset, int32_t dtype, int32_t device_type, int32_t device_index,
                AtenTensorHandle* result, int32_t layout, const uint8_t* metadata,
                int64_t metadata_size, void (*deleter)(void* data, void* context), void* context);

// Emulated, the CUDA ops serve CPU tensors, in a namespace of their own.
#ifdef GATEDRNN_EMULATE
#define GATEDRNN_OPS gatedrnn_emulated
#else
#define GATEDRNN_OPS gatedrnn
#endif

namespace gatedrnn {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using OptionalTensor = std::optional<Tensor>;
using Tensors = std::vector<Tensor>;

inline Tensor mm(const Tensor& a, const Tensor& b) {
  std::array<StableIValue, 2> stack{torch::stable::detail::from(a), torch::stable::detail::from(b)};
  TORCH_ERROR_CODE_CHECK(torch_call_dispatcher("aten::mm", "", stack.data(), TORCH_ABI_VERSION));
  return torch::stable::detail::to<Tensor>(stack[0]);
}

inline Tensor linear(const Tensor& x, const Tensor& w, const OptionalTensor& bias) {
  std::array<StableIValue, 3> stack{torch::stable::detail::from(x), torch::stable::detail::from(w),
                                    torch::stable::detail::from(bias)};
  TORCH_ERROR_CODE_CHECK(
      torch_call_dispatcher("aten::linear", "", stack.data(), TORCH_ABI_VERSION));
  return torch::stable::detail::to<Tensor>(stack[0]);
}

inline Tensor cat(const Tensors& tensors, int64_t dim) {
  std::array<StableIValue, 2> stack{torch::stable::detail::from(tensors),
                                    torch::stable::detail::from(dim)};
  TORCH_ERROR_CODE_CHECK(torch_call_dispatcher("aten::cat", "", stack.data(), TORCH_ABI_VERSION));
  return torch::stable::detail::to<Tensor>(stack[0]);
}

// The places of the largest numbers first.
inline Tensor descending(const Tensor& a) {
  std::array<StableIValue, 3> stack{torch::stable::detail::from(a),
                                    torch::stable::detail::from(int64_t(0)),
                                    torch::stable::detail::from(true)};
  TORCH_ERROR_CODE_CHECK(
      torch_call_dispatcher("aten::argsort", "", stack.data(), TORCH_ABI_VERSION));
  return torch::stable::detail::to<Tensor>(stack[0]);
}

inline Tensor add(const Tensor& a, const Tensor& b) { return torch::stable::subtract(a, b, -1.0); }
inline Tensor transposed(const Tensor& a) { return torch::stable::transpose(a, 0, 1); }

inline Tensor rows(const Tensor& a, int64_t from, int64_t count) {
  Tensor self = a;
  return torch::stable::narrow(self, 0, from, count);
}

inline Tensor empty(const Tensor& like, const std::vector<int64_t>& sizes) {
  return torch::stable::new_empty(like, sizes);
}

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

// On the CPU, of what does not outlive a call or a step of training: large ones lie in memory of
// the last one.
template <class Real>
Tensor reused(const Tensor& like, const std::vector<int64_t>& sizes) {
  std::vector<int64_t> strides(sizes.size());
  int64_t count = 1;
  for (size_t k = sizes.size(); k-- > 0; count *= sizes[k]) strides[k] = count;
  const int64_t bytes = count * int64_t(sizeof(Real));
  void* block = torch_from_blob && bytes >= kLargeBlock ? take_block(bytes) : nullptr;
  if (!block) return empty_of<Real>(like, sizes);
  using torch::stable::detail::from;
  using torch::stable::detail::to;
  AtenTensorHandle tensor = nullptr;
  TORCH_ERROR_CODE_CHECK(torch_from_blob(
      block, int64_t(sizes.size()), sizes.data(), strides.data(), 0,
      to<int32_t>(from(scalar_type_of(type_of<Real>()))), aoti_torch_device_type_cpu(), -1, &tensor,
      aoti_torch_layout_strided(), nullptr, 0, [](void* data, void*) { give_back_block(data); },
      nullptr));
  return Tensor(tensor);
}

template <class Real>
const Real* pointer(const Tensor& t) {
  return static_cast<const Real*>(t.const_data_ptr());
}

template <class Real>
const Real* pointer(const OptionalTensor& t) {
  return t ? pointer<Real>(*t) : nullptr;
}

template <class Real>
Real* writable(const Tensor& t) {
  return static_cast<Real*>(t.mutable_data_ptr());
}

// Torch's threads, but no more than there are cores: threads that meet at every step would take
// turns on one.
inline Parallel torch_threads() {
  static const unsigned cores = std::max(1u, std::thread::hardware_concurrency());
  return {int(std::min<uint32_t>(torch::stable::get_num_threads(), cores)),
          [](int64_t n, void (*body)(void*, int64_t, int64_t), void* context) {
            if (n == 1) return body(context, 0, 1);
            torch::stable::parallel_for(
                0, n, 1, [&](int64_t begin, int64_t end) { body(context, begin, end); });
          }};
}

// A shape as text, put together only where an error is printed.
inline std::ostream& operator<<(std::ostream& out, const std::vector<int64_t>& sizes) {
  out << "(";
  for (size_t k = 0; k < sizes.size(); ++k) out << (k ? ", " : "") << sizes[k];
  return out << ")";
}

inline std::ostream& operator<<(std::ostream& out, const Tensor& t) {
  std::vector<int64_t> sizes(t.dim());
  for (size_t k = 0; k < sizes.size(); ++k) sizes[k] = t.size(int64_t(k));
  return out << sizes;
}

// Torch's own check macro would put the file and line of this binary's build into the text.
template <class... Parts>
void expect(bool condition, const Parts&... parts) {
  if (condition) return;
  std::ostringstream text;
  text << "gatedrnn: ";
  (text << ... << parts);
  throw std::runtime_error(text.str());
}

enum class Device { cpu, cuda };

inline void expect_type(ScalarType type, bool narrow = true) {
  const bool full = type == ScalarType::Float || type == ScalarType::Double;
  const bool half = type == ScalarType::Half || type == ScalarType::BFloat16;
  expect(full || (half && narrow), "there are no kernels for this dtype");
}

inline void check(const Tensor& t, const char* name, ScalarType type, const int64_t* sizes,
                  size_t dim) {
  bool same = size_t(t.dim()) == dim;
  for (size_t k = 0; same && k < dim; ++k) same = t.size(int64_t(k)) == sizes[k];
  if (!same)
    expect(false, "expected ", name, " of shape ", std::vector(sizes, sizes + dim), ", got ", t);
  expect(t.scalar_type() == type, name, " has the wrong dtype");
}

inline void check(const Tensor& t, const char* name, ScalarType type,
                  std::initializer_list<int64_t> sizes) {
  check(t, name, type, sizes.begin(), sizes.size());
}

inline void check(const Tensor& t, const char* name, ScalarType type,
                  const std::vector<int64_t>& sizes) {
  check(t, name, type, sizes.data(), sizes.size());
}

// Torch's own call costs a dispatch also where there is nothing to do.
inline Tensor contiguous_of(const Tensor& t) {
  return t.is_contiguous() ? t : torch::stable::contiguous(t);
}

inline OptionalTensor contiguous_of(const OptionalTensor& t) {
  return t ? OptionalTensor(contiguous_of(*t)) : std::nullopt;
}

}  // namespace gatedrnn
