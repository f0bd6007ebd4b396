// The plans as the ops and gatedrnn.explain ask for them: with this machine's instruction set, with
// torch's dtypes, and with what the environment insists on.
#pragma once

#include <algorithm>
#include <cstdlib>
#include <string_view>
#include <utility>

#include "../measured.h"
#include "torch.h"

namespace gatedrnn {

inline Type type_of(ScalarType type) {
  switch (type) {
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

inline Plan cpu_plan_of(const Sizes& s, int gates, int directions, ScalarType scalar, int threads) {
  const InstructionSet& set = instruction_set();
  const Type type = type_of(scalar);
  const int element = type == Type::float64 ? 8 : type == Type::float32 ? 4 : 2;
  return plan_cpu({s.T, s.B, s.I, s.H, s.P, gates, directions, element, threads,
                   kernels_of<float>(set).registers, type == Type::bfloat16 && set.pairs});
}

inline const char* name_of(Product product) {
  constexpr const char* names[] = {"fma", "tf32", "half", "bfloat16", "split"};
  return names[int(product)];
}

inline const char* name_of(Reason reason) {
  constexpr const char* names[] = {"predicted", "measured", "asked"};
  return names[int(reason)];
}

inline const char* name_of(Tile tile) { return tile == Tile::narrow ? "narrow" : "wide"; }

// For experiments: GATEDRNN_CUDA_KERNEL=step, or persistent, grid or wavefront wherever there is
// one; GATEDRNN_CUDA_TILE=narrow or wide, step kernels of that tile. GATEDRNN_CUDA_TF32=real: where
// torch lets float32 be rounded to TF32, that and not scaled float16, which is the default.
inline CudaProblem as_asked(CudaProblem problem) {
  if (const char* kernel = std::getenv("GATEDRNN_CUDA_KERNEL")) {
    constexpr std::pair<std::string_view, KernelChoice> choices[] = {
        {"step", KernelChoice::step},
        {"persistent", KernelChoice::persistent},
        {"grid", KernelChoice::grid},
        {"wavefront", KernelChoice::wavefront}};
    const auto* found = std::find_if(std::begin(choices), std::end(choices),
                                     [&](const auto& choice) { return choice.first == kernel; });
    expect(found != std::end(choices),
           "GATEDRNN_CUDA_KERNEL must be step, persistent, grid or wavefront, not ", kernel);
    problem.kernels = found->second;
  }
  if (std::getenv("GATEDRNN_CUDA_TILE")) problem.kernels = KernelChoice::step;
  if (const char* tf32 = std::getenv("GATEDRNN_CUDA_TF32")) {
    problem.real_tf32 = std::string_view(tf32) == "real";
    expect(problem.real_tf32 || std::string_view(tf32) == "scaled",
           "GATEDRNN_CUDA_TF32 must be real or scaled, not ", tf32);
  }
  return problem;
}

inline StackPlan cuda_stack_plan_of(const CudaProblem& problem, int layers) {
  return plan_stack_measured(as_asked(problem), layers);
}

inline CudaPlan cuda_plan_of(CudaProblem problem) {
  const KernelChoice own = problem.kernels;
  problem = as_asked(problem);
  if (problem.kernels == KernelChoice::wavefront) problem.kernels = own;
  CudaPlan plan = plan_cuda_measured(problem);
  if (const char* tile = std::getenv("GATEDRNN_CUDA_TILE")) {
    const bool narrow = std::string_view(tile) == "narrow";
    expect(narrow || std::string_view(tile) == "wide",
           "GATEDRNN_CUDA_TILE must be narrow or wide, not ", tile);
    plan.forward_tile = plan.backward_tile = narrow ? Tile::narrow : Tile::wide;
  }
  return plan;
}

}  // namespace gatedrnn
