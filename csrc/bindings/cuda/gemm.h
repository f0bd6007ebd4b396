// Large matrix products by cuBLAS, under the precision that our caller asks for: aten::mm would
// follow the switch of matrix products, and a recurrent layer has one of its own.
#pragma once

#include <cstdint>

#include "../../plan.h"

namespace gatedrnn {

// C = A B, or C + A B, on torch's current device and stream; every matrix is row-major. All sums
// are of float32, or float64 for operands of float64.
struct Gemm {
  int64_t M, N, K;
  const void* a;  // [M, K], or [K, M] if transposed
  int64_t lda;    // elements from one row in memory to the next, at least a row's length
  bool a_transposed;
  const void* b;  // [K, N], or [N, K] if transposed
  int64_t ldb;
  bool b_transposed;
  void* c;  // [M, N]
  int64_t ldc;
  Type operands;
  Type result;      // as `operands`, or float32 for those of 16 bits
  bool accumulate;  // to what C holds; otherwise K must not be zero
  bool tf32;        // float32 operands may be rounded to TF32
};

void gemm(const Gemm& p);

}  // namespace gatedrnn
