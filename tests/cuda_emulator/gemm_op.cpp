// Ops for tests of the CUDA bindings: their matrix product alone, and the emulated device's size.
#include "../../csrc/bindings/cuda/device.h"
#include "../../csrc/bindings/cuda/gemm.h"

extern "C" {
int torch_get_current_cuda_blas_handle(void** handle);
int cublasGetMathMode(void* handle, int* mode);
}

namespace cuda_emulator {
void set_multiprocessors(int count);
}

namespace gatedrnn {
namespace {

Type type_of(const Tensor& t) {
  switch (t.scalar_type()) {
    case ScalarType::Double:
      return Type::float64;
    case ScalarType::Half:
      return Type::float16;
    case ScalarType::BFloat16:
      return Type::bfloat16;
    default:
      return Type::float32;
  }
}

// Sizes are C's and K; a matrix's rows are as far apart as its tensor says.
void gemm_op(const Tensor& a, bool a_transposed, const Tensor& b, bool b_transposed, Tensor c,
             int64_t K, bool accumulate, bool tf32) {
  gemm({c.size(0), c.size(1), K, a.const_data_ptr(), a.stride(0), a_transposed, b.const_data_ptr(),
        b.stride(0), b_transposed, c.mutable_data_ptr(), c.stride(0), type_of(a), type_of(c),
        accumulate, tf32});
}

int64_t math_mode() {
  void* handle = nullptr;
  int mode = -1;
  torch_get_current_cuda_blas_handle(&handle);
  cublasGetMathMode(handle, &mode);
  return mode;
}

void set_multiprocessors(int64_t count) { cuda_emulator::set_multiprocessors(int(count)); }

}  // namespace
}  // namespace gatedrnn

STABLE_TORCH_LIBRARY_FRAGMENT(GATEDRNN_OPS, m) {
  m.def(
      "gemm(Tensor a, bool a_transposed, Tensor b, bool b_transposed, Tensor(a!) c, int K, "
      "bool accumulate, bool tf32) -> ()");
  m.def("cublas_math_mode() -> int");
  m.def("set_multiprocessors(int count) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(GATEDRNN_OPS, CompositeExplicitAutograd, m) {
  m.impl("cublas_math_mode", TORCH_BOX(&gatedrnn::math_mode));
  m.impl("set_multiprocessors", TORCH_BOX(&gatedrnn::set_multiprocessors));
}

STABLE_TORCH_LIBRARY_IMPL(GATEDRNN_OPS, GATEDRNN_CUDA_KEY, m) {
  m.impl("gemm", TORCH_BOX(&gatedrnn::gemm_op));
}
