// The kernels' one body, compiled once per instruction set. The including file defines
// GATEDRNN_NAMESPACE, GATEDRNN_VECTOR_BYTES and GATEDRNN_VECTOR_REGISTERS, and is compiled with
// that instruction set's flags (setup.py). With instructions for bfloat16 it makes what needs them
// and no more. Everything here has internal linkage: a function that the linker shared between
// instruction sets would run on machines that lack them.
#include <cstdint>
#include <utility>

#ifdef __x86_64__
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

#include "kernels.h"

namespace gatedrnn {
namespace GATEDRNN_NAMESPACE {
namespace {

#include "simd.h"
#include "storage.h"
#include "../gates.h"
#include "product.h"
#include "pack.h"
#include "forward.h"
#include "backward.h"
#include "rebuild.h"
#ifdef __AVX512BF16__
#include "dots.h"
#endif
#include "gemm.h"
#include "cell.h"
#include "limits.h"

#ifdef __AVX512BF16__

}  // namespace

extern const PairTables tables;
const PairTables tables{
    {multiply<float, Bfloat16, Bfloat16Pair>, outer_sum<float, Bfloat16, Bfloat16Pair>,
     column_sums<float, Bfloat16>},
    {pack_row_pairs, pack_column_pairs, forward<float, Bfloat16, Bfloat16Pair>,
     backward<float, Bfloat16, Bfloat16Pair>, rebuild<float, Bfloat16, Bfloat16Pair>}};

#else

template <class Real>
void sigmoid_array(const Real* x, Real* y, int64_t n) {
  for (int64_t k = 0; k < n; k += Simd<Real>::width)
    store(y + k, sigmoid(load(x + k, n - k)), n - k);
}

template <class Real>
void tanh_array(const Real* x, Real* y, int64_t n) {
  for (int64_t k = 0; k < n; k += Simd<Real>::width) store(y + k, tanh(load(x + k, n - k)), n - k);
}

template <class Real, class Stored>
void widen(const Stored* from, Real* to, int64_t n) {
  for (int64_t k = 0; k < n; k += Simd<Real>::width) store(to + k, load(from + k, n - k), n - k);
}

template <class Real, class Stored>
void narrow(const Real* from, Stored* to, int64_t n) {
  for (int64_t k = 0; k < n; k += Simd<Real>::width) store(to + k, load(from + k, n - k), n - k);
}

template <class Real>
constexpr Kernels<Real> table{Simd<Real>::width,      GATEDRNN_VECTOR_REGISTERS,
                              cell_forward<Real>,     cell_gates_backward<Real>,
                              product_backward<Real>, input_gradient<Real>,
                              sigmoid_array<Real>,    tanh_array<Real>,
                              multiply_adds<Real>,    read_all<Real>};

template <class Real, class Stored = Real>
constexpr WholeKernels<Real, Stored> whole_table{
    multiply<Real, Stored, Real>, outer_sum<Real, Stored, Real>, column_sums<Real, Real>};

template <class Real, class Stored = Real>
constexpr StorageKernels<Real, Stored> storage_table{widen<Real, Stored>, narrow<Real, Stored>};

template <class Real, class Stored = Real, class Panel = Real>
constexpr LayerKernels<Real, Stored, Panel> layer_table{
    pack_rows<Stored, Panel>, pack_columns<Stored, Panel>, forward<Real, Stored, Panel>,
    backward<Real, Stored, Panel>, rebuild<Real, Stored, Panel>};

}  // namespace

extern const Tables tables;
const Tables tables{table<float>,
                    table<double>,
                    whole_table<float>,
                    whole_table<double>,
                    whole_table<float, Half>,
                    whole_table<float, Bfloat16>,
                    storage_table<float>,
                    storage_table<double>,
                    storage_table<float, Half>,
                    storage_table<float, Bfloat16>,
                    layer_table<float>,
                    layer_table<double>,
                    layer_table<float, Half>,
                    layer_table<float, Bfloat16>,
                    layer_table<float, Bfloat16, Bfloat16>};

#endif

}  // namespace GATEDRNN_NAMESPACE
}  // namespace gatedrnn
