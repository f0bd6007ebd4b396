// Numbers as the kernels see them: storage types and the type to compute with, activations, pairs
// of neighbouring units, and the cells' equations.
#pragma once

#include <cmath>

#include "device.h"

namespace gatedrnn::cuda {

__host__ __device__ inline float sigmoid(float x) { return 1 / (1 + expf(-x)); }
__host__ __device__ inline double sigmoid(double x) { return 1 / (1 + ::exp(-x)); }
__host__ __device__ inline float tanh(float x) { return tanhf(x); }
__host__ __device__ inline double tanh(double x) { return ::tanh(x); }

#include "../gates.h"

__device__ inline float wide(float x) { return x; }
__device__ inline double wide(double x) { return x; }
__device__ inline float wide(Half x) { return to_float(x); }
__device__ inline float wide(Bfloat16 x) { return to_float(x); }

template <class Real, class Wide>
__device__ inline Real narrow(Wide x) {
  if constexpr (std::is_same_v<Real, Half>)
    return to_half(x);
  else if constexpr (std::is_same_v<Real, Bfloat16>)
    return to_bfloat16(x);
  else
    return x;
}

template <class Real>
using WideOf = typename Types<Real>::Wide;

// 16 aligned bytes of shared memory as numbers to compute with.
template <class Real>
__device__ inline void load_elements(WideOf<Real> (&to)[16 / sizeof(Real)],
                                     const unsigned char* from) {
  struct alignas(16) Part {
    Real element[16 / sizeof(Real)];
  };
  const Part part = *reinterpret_cast<const Part*>(from);
#pragma unroll
  for (int k = 0; k < int(16 / sizeof(Real)); ++k) to[k] = wide(part.element[k]);
}

template <class Real>
struct alignas(2 * sizeof(Real)) Two {
  Real of[2];
};

// How a thread reads and writes its two units, u and u + 1: as one, where all rows allow that, or
// one by one, where the second may lie beyond the last unit.
struct Access {
  bool aligned;
  int count;

  template <class Real>
  __device__ Two<WideOf<Real>> load(const Real* p) const {
    if (aligned) {
      const Two<Real> two = *reinterpret_cast<const Two<Real>*>(p);
      return {wide(two.of[0]), wide(two.of[1])};
    }
    return {wide(p[0]), count > 1 ? wide(p[1]) : 0};
  }

  template <class Real>
  __device__ Two<WideOf<Real>> load_or_zero(const Real* p, int64_t at) const {
    return p ? load(p + at) : Two<WideOf<Real>>{};
  }

  template <class Real, class Wide>
  __device__ void store(Real* p, Two<Wide> x) const {
    const Two<Real> two{narrow<Real>(x.of[0]), narrow<Real>(x.of[1])};
    if (aligned) {
      *reinterpret_cast<Two<Real>*>(p) = two;
    } else {
      p[0] = two.of[0];
      if (count > 1) p[1] = two.of[1];
    }
  }
};

}  // namespace gatedrnn::cuda
