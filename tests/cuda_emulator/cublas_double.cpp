// Stands in for torch's cuBLAS in the emulated build. Written from cuBLAS's documentation, not from
// our calls: matrices by columns, C = alpha op(A) op(B) + beta C, the combinations of types that
// cublasGemmEx supports, and what a math mode does to sums. It refuses what cuBLAS refuses.
#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <vector>

namespace {

enum Status { success = 0, invalid_value = 7, not_supported = 15 };
enum DataType { r_32f = 0, r_64f = 1, r_16f = 2, r_16bf = 14 };
enum Compute { compute_32f = 68, compute_64f = 70, compute_32f_fast_tf32 = 77 };
constexpr int kTf32Mode = 3, kNoReducedSums = 16;

// Torch leaves the handle in this mode where matrix products may be of TF32.
int math_mode = kTf32Mode;

float from_half(uint16_t bits) { return float(std::bit_cast<_Float16>(bits)); }
float from_bfloat16(uint16_t bits) { return std::bit_cast<float>(uint32_t(bits) << 16); }

uint16_t to_bfloat16(float value) {
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  if (std::isnan(value)) return uint16_t(bits >> 16 | 0x40);
  return uint16_t((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

// To ten digits after the leading one, ties away from zero.
float to_tf32(float value) {
  if (!std::isfinite(value)) return value;
  return std::bit_cast<float>((std::bit_cast<uint32_t>(value) + 0x1000) & ~uint32_t(0x1fff));
}

double load(const void* data, int type, int64_t index) {
  switch (type) {
    case r_32f:
      return static_cast<const float*>(data)[index];
    case r_64f:
      return static_cast<const double*>(data)[index];
    case r_16f:
      return from_half(static_cast<const uint16_t*>(data)[index]);
    default:
      return from_bfloat16(static_cast<const uint16_t*>(data)[index]);
  }
}

void store(void* data, int type, int64_t index, double value) {
  switch (type) {
    case r_32f:
      static_cast<float*>(data)[index] = float(value);
      return;
    case r_64f:
      static_cast<double*>(data)[index] = value;
      return;
    case r_16f:
      static_cast<uint16_t*>(data)[index] = std::bit_cast<uint16_t>(_Float16(float(value)));
      return;
    default:
      static_cast<uint16_t*>(data)[index] = to_bfloat16(float(value));
  }
}

bool supported(int compute, int a, int b, int c) {
  if (a != b) return false;
  if (compute == compute_64f) return a == r_64f && c == r_64f;
  if (compute == compute_32f_fast_tf32) return a == r_32f && c == r_32f;
  if (compute != compute_32f) return false;
  if (a == r_16f || a == r_16bf) return c == a || c == r_32f;
  return a == r_32f && c == r_32f;
}

}  // namespace

extern "C" {

int torch_get_current_cuda_blas_handle(void** handle) {
  *handle = &math_mode;
  return 0;
}

int cublasGetMathMode(void* handle, int* mode) {
  *mode = *static_cast<int*>(handle);
  return success;
}

int cublasSetMathMode(void* handle, int mode) {
  *static_cast<int*>(handle) = mode;
  return success;
}

const char* cublasGetStatusString(int status) {
  return status == invalid_value ? "CUBLAS_STATUS_INVALID_VALUE" : "CUBLAS_STATUS_NOT_SUPPORTED";
}

// op(A) is m x k, op(B) k x n, C m x n.
int cublasGemmEx_64(void* handle, int a_operation, int b_operation, int64_t m, int64_t n, int64_t k,
                    const void* alpha, const void* a, int a_type, int64_t lda, const void* b,
                    int b_type, int64_t ldb, const void* beta, void* c, int c_type, int64_t ldc,
                    int compute, int algorithm) {
  if (m < 0 || n < 0 || k < 0 || a_operation < 0 || a_operation > 1 || b_operation < 0 ||
      b_operation > 1 || lda < std::max<int64_t>(1, a_operation ? k : m) ||
      ldb < std::max<int64_t>(1, b_operation ? n : k) || ldc < std::max<int64_t>(1, m))
    return invalid_value;
  if (algorithm != -1 || !supported(compute, a_type, b_type, c_type)) return not_supported;
  const bool wide = compute == compute_64f;
  const double scale =
                   wide ? *static_cast<const double*>(alpha) : *static_cast<const float*>(alpha),
               keep = wide ? *static_cast<const double*>(beta) : *static_cast<const float*>(beta);
  const int mode = *static_cast<int*>(handle);
  const bool tf32 =
      a_type == r_32f && (compute == compute_32f_fast_tf32 || (mode & 0xf) == kTf32Mode);
  // Without the flag, parts of a sum over k may meet in the type of the result.
  const bool reduced = c_type != r_32f && c_type != r_64f && !(mode & kNoReducedSums);
  const auto operand = [&](const void* data, int type, int64_t index) {
    const double value = load(data, type, index);
    return tf32 ? double(to_tf32(float(value))) : value;
  };
  std::vector<double> column(k);
  for (int64_t j = 0; j < n; ++j) {
    for (int64_t i = 0; i < k; ++i)
      column[i] = operand(b, b_type, b_operation ? j + i * ldb : i + j * ldb);
    for (int64_t i = 0; i < m; ++i) {
      double sum = 0, part = 0;  // as on a GPU no long sum is added up term by term
      for (int64_t l = 0; l < k; ++l) {
        part += operand(a, a_type, a_operation ? l + i * lda : i + l * lda) * column[l];
        if (!wide) part = float(part);
        if ((l + 1) % 32 != 0 && l + 1 != k) continue;
        sum += part;
        part = 0;
        if (!wide) sum = float(sum);
        if (reduced)
          sum = float(c_type == r_16bf ? from_bfloat16(to_bfloat16(float(sum)))
                                       : float(_Float16(float(sum))));
      }
      const int64_t at = i + j * ldc;
      // What C holds is not read where beta is 0: it may be anything, NaN included.
      store(c, c_type, at, scale * sum + (keep == 0 ? 0 : keep * load(c, c_type, at)));
    }
  }
  return success;
}

}  // extern "C"
