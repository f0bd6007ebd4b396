// What this build has, what of it this machine runs, and how a call would be run.
#include "../cuda/layer.h"
#include "plans.h"
#include "torch.h"

namespace gatedrnn {
namespace {

std::string instruction_set_name() {
  const char* error = instruction_set_error();
  expect(!error, error ? error : "");
  return instruction_set().name;
}

std::string cuda_architectures() {
#ifdef GATEDRNN_CUDA
  return GATEDRNN_CUDA;
#else
  return "";
#endif
}

// A plan as text, "name=value name=value", for gatedrnn.explain.

std::string cpu_plan(int64_t T, int64_t B, int64_t I, int64_t H, int64_t P, int64_t gates,
                     int64_t directions, ScalarType dtype) {
  const Plan p = cpu_plan_of({T, B, I, H, P, nullptr, false}, int(gates), int(directions), dtype,
                             torch_threads().threads);
  std::ostringstream text;
  text << "threads=" << p.threads << " block=" << p.block << " parts=" << p.parts
       << " ahead=" << p.ahead << " narrow_panels=" << p.narrow_panels << " pairs=" << p.pairs;
  return text.str();
}

std::string cpu_cell_plan(int64_t B, int64_t I, int64_t H, int64_t gates, int64_t element) {
  const InstructionSet& set = instruction_set();
  const int width = element == 8 ? kernels_of<double>(set).width : kernels_of<float>(set).width;
  const CellPlan p = plan_cell({B, I, H, int(gates), width, torch_threads().threads});
  std::ostringstream text;
  text << "threads=" << p.threads << " backward_threads=" << p.backward_threads
       << " packed=" << p.packed << " by_rows=" << p.by_rows << " few=" << p.few;
  return text.str();
}

// What `device` answers; -1: a GPU that need not be there.
CudaDevice device_of(int64_t architecture, int64_t multiprocessors, int64_t device) {
  CudaDevice asked{int(architecture), int(multiprocessors), {}};
#ifdef GATEDRNN_CUDA
  if (device >= 0) expect(!use_cuda_device(int(device), &asked), "no such device: ", device);
#else
  expect(device < 0, "built without CUDA");
#endif
  return asked;
}

std::string cuda_plan(int64_t T, int64_t B, int64_t I, int64_t H, int64_t P, int64_t gates,
                      int64_t directions, ScalarType type, bool tf32, bool packed,
                      int64_t architecture, int64_t multiprocessors, int64_t device) {
  const CudaDevice asked = device_of(architecture, multiprocessors, device);
  const CudaPlan p =
      cuda_plan_of({T, B, I, H, P, int(gates), int(directions), type_of(type), tf32, packed,
                    asked.architecture, asked.multiprocessors, asked.clusters});
  std::ostringstream text;
  const auto pass = [&](const char* name, Product product, Tile tile, const PersistentPlan& plan) {
    text << name << "=" << name_of(product) << " " << name << "_tile=" << name_of(tile) << " "
         << name << "_units=" << plan.units << " " << name << "_cluster=" << plan.cluster << " "
         << name << "_sequences=" << plan.sequences << " ";
  };
  pass("forward", p.forward, p.forward_tile, p.persistent_forward);
  pass("backward", p.backward, p.backward_tile, p.persistent_backward);
  text << "projects=" << p.projects << " forward_reason=" << name_of(p.forward_reason)
       << " backward_reason=" << name_of(p.backward_reason);
  return text.str();
}

std::string cuda_stack_plan(int64_t T, int64_t B, int64_t I, int64_t H, int64_t gates,
                            int64_t layers, ScalarType type, bool tf32, int64_t architecture,
                            int64_t multiprocessors, int64_t device) {
  const CudaDevice asked = device_of(architecture, multiprocessors, device);
  const auto [p, reason] =
      cuda_stack_plan_of({T, B, I, H, H, int(gates), 1, type_of(type), tf32, false,
                          asked.architecture, asked.multiprocessors, asked.clusters},
                         int(layers));
  std::ostringstream text;
  text << "units=" << p.units << " cluster=" << p.cluster << " sequences=" << p.sequences
       << " reason=" << name_of(reason);
  return text.str();
}

}  // namespace
}  // namespace gatedrnn

STABLE_TORCH_LIBRARY_FRAGMENT(gatedrnn, m) {
  m.def("instruction_set() -> str");
  m.def("cuda_architectures() -> str");
  m.def(
      "cpu_plan(int T, int B, int I, int H, int P, int gates, int directions, "
      "ScalarType dtype) -> str");
  m.def("cpu_cell_plan(int B, int I, int H, int gates, int element) -> str");
  m.def(
      "cuda_plan(int T, int B, int I, int H, int P, int gates, int directions, ScalarType dtype, "
      "bool tf32, bool packed, int architecture, int multiprocessors, int device) -> str");
  m.def(
      "cuda_stack_plan(int T, int B, int I, int H, int gates, int layers, ScalarType dtype, "
      "bool tf32, int architecture, int multiprocessors, int device) -> str");
}

STABLE_TORCH_LIBRARY_IMPL(gatedrnn, CompositeExplicitAutograd, m) {
  m.impl("instruction_set", TORCH_BOX(&gatedrnn::instruction_set_name));
  m.impl("cuda_architectures", TORCH_BOX(&gatedrnn::cuda_architectures));
  m.impl("cpu_plan", TORCH_BOX(&gatedrnn::cpu_plan));
  m.impl("cpu_cell_plan", TORCH_BOX(&gatedrnn::cpu_cell_plan));
  m.impl("cuda_plan", TORCH_BOX(&gatedrnn::cuda_plan));
  m.impl("cuda_stack_plan", TORCH_BOX(&gatedrnn::cuda_stack_plan));
}
