#include "gemm.h"

#include "../torch.h"

// cuBLAS comes with torch: these resolve through libtorch where it is a build for CUDA, and are
// null where it is not. The values are those of cublas_api.h and library_types.h.
extern "C" {
[[gnu::weak]] AOTITorchError torch_get_current_cuda_blas_handle(void** handle);
[[gnu::weak]] int cublasGetMathMode(void* handle, int* mode);
[[gnu::weak]] int cublasSetMathMode(void* handle, int mode);
[[gnu::weak]] const char* cublasGetStatusString(int status);
[[gnu::weak]] int cublasGemmEx_64(void* handle, int a_operation, int b_operation, int64_t m,
                                  int64_t n, int64_t k, const void* alpha, const void* a,
                                  int a_type, int64_t lda, const void* b, int b_type, int64_t ldb,
                                  const void* beta, void* c, int c_type, int64_t ldc,
                                  int compute_type, int algorithm);
}

namespace gatedrnn {
namespace {

constexpr int kDefaultMath = 0, kNoReducedSums = 16;           // cublasMath_t
constexpr int kCompute32F = 68, kCompute64F = 70, kTf32 = 77;  // cublasComputeType_t
constexpr int kNotTransposed = 0, kTransposed = 1;             // cublasOperation_t
constexpr int kDefaultAlgorithm = -1;                          // cublasGemmAlgo_t

int cuda_type(Type type) {  // cudaDataType_t
  switch (type) {
    case Type::float32:
      return 0;
    case Type::float64:
      return 1;
    case Type::float16:
      return 2;
    case Type::bfloat16:
      return 14;
  }
  return -1;
}

void check_status(int status) {
  expect(status == 0, "cuBLAS error: ", status ? cublasGetStatusString(status) : "");
}

// The handle is torch's: it gets the mode back that it had.
class MathMode {
 public:
  MathMode(void* handle, int mode) : handle_(handle) {
    check_status(cublasGetMathMode(handle, &before_));
    check_status(cublasSetMathMode(handle, mode));
  }
  ~MathMode() { cublasSetMathMode(handle_, before_); }
  MathMode(const MathMode&) = delete;

 private:
  void* handle_;
  int before_;
};

}  // namespace

void gemm(const Gemm& p) {
  if (p.M == 0 || p.N == 0 || (p.K == 0 && p.accumulate)) return;
  expect(p.K > 0, "a product over nothing");
  expect(torch_get_current_cuda_blas_handle && cublasGemmEx_64 && cublasGetMathMode &&
             cublasSetMathMode && cublasGetStatusString,
         "this torch brings no cuBLAS of CUDA 12 or newer, which CUDA tensors need");
  void* handle = nullptr;
  TORCH_ERROR_CODE_CHECK(torch_get_current_cuda_blas_handle(&handle));
  const bool wide = p.operands == Type::float64;
  const bool narrow = p.operands == Type::float16 || p.operands == Type::bfloat16;
  const int compute = wide ? kCompute64F : p.tf32 && !narrow ? kTf32 : kCompute32F;
  const float one = 1, beta = p.accumulate ? 1 : 0;
  const double wide_one = 1, wide_beta = beta;
  // cuBLAS counts by columns: what we store as C it reads as C^T = B^T A^T.
  const MathMode mode(handle, narrow ? kNoReducedSums : kDefaultMath);
  check_status(cublasGemmEx_64(handle, p.b_transposed ? kTransposed : kNotTransposed,
                               p.a_transposed ? kTransposed : kNotTransposed, p.N, p.M, p.K,
                               wide ? static_cast<const void*>(&wide_one) : &one, p.b,
                               cuda_type(p.operands), p.ldb, p.a, cuda_type(p.operands), p.lda,
                               wide ? static_cast<const void*>(&wide_beta) : &beta, p.c,
                               cuda_type(p.result), p.ldc, compute, kDefaultAlgorithm));
}

}  // namespace gatedrnn
