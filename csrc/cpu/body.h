// The kernels' one body, compiled once per instruction set. The including file defines
// GATEDRNN_NAMESPACE, GATEDRNN_VECTOR_BYTES and GATEDRNN_VECTOR_REGISTERS, and is compiled with
// that instruction set's flags (setup.py). Everything here has internal linkage: a function that
// the linker shared between instruction sets would run on machines that lack them.
#include <cstdint>
#include <utility>

#include "kernels.h"

namespace gatedrnn {
namespace GATEDRNN_NAMESPACE {
namespace {

#include "simd.h"
#include "../gates.h"
#include "product.h"
#include "pack.h"
#include "forward.h"
#include "backward.h"
#include "gemm.h"
#include "cell.h"
#include "limits.h"

template <class Real>
void sigmoid_array(const Real* x, Real* y, int64_t n) {
  for (int64_t k = 0; k < n; k += Simd<Real>::width)
    store(y + k, sigmoid(load(x + k, n - k)), n - k);
}

template <class Real>
void tanh_array(const Real* x, Real* y, int64_t n) {
  for (int64_t k = 0; k < n; k += Simd<Real>::width) store(y + k, tanh(load(x + k, n - k)), n - k);
}

template <class Real>
constexpr Kernels<Real> table{Simd<Real>::width,      pack_rows<Real>,
                              pack_columns<Real>,     forward<Real>,
                              backward<Real>,         multiply<Real>,
                              outer_sum<Real>,        column_sums<Real>,
                              cell_forward<Real>,     cell_gates_backward<Real>,
                              product_backward<Real>, input_gradient<Real>,
                              sigmoid_array<Real>,    tanh_array<Real>,
                              multiply_adds<Real>,    read_all<Real>};

}  // namespace

extern const Kernels<float> f32;
extern const Kernels<double> f64;
const Kernels<float> f32 = table<float>;
const Kernels<double> f64 = table<double>;

}  // namespace GATEDRNN_NAMESPACE
}  // namespace gatedrnn
