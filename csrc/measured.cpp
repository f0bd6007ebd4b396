#include "measured.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <optional>
#include <vector>

#include "measured_table.h"

namespace gatedrnn {

constexpr Measurements kMeasurements{kMeasured};

namespace {

// The measured sizes on both sides of `size`, and how far it is from the lower to the upper one.
struct Neighbours {
  int64_t low, high;
  double way;
};

std::optional<Neighbours> neighbours(int64_t size, std::vector<int64_t> measured) {
  std::sort(measured.begin(), measured.end());
  const auto above = std::lower_bound(measured.begin(), measured.end(), size);
  if (above == measured.end()) return std::nullopt;
  if (*above == size) return Neighbours{size, size, 0};
  if (above == measured.begin()) return std::nullopt;
  const int64_t low = above[-1], high = *above;
  return Neighbours{low, high, std::log(double(size) / low) / std::log(double(high) / low)};
}

std::vector<Measurement> of_same_kind(const CudaProblem& p, bool backward, int layers,
                                      Measurements all) {
  std::vector<Measurement> found;
  int64_t H = 2 * p.H;
  for (const Measurement& m : all) {
    if (m.architecture != p.architecture || m.multiprocessors != p.multiprocessors) continue;
    if (m.gates != p.gates || m.type != p.type) continue;
    if (m.backward != backward || m.layers != layers) continue;
    if (m.type == Type::float32 && m.tf32 != p.tf32) continue;
    if (m.H < p.H || m.H > H) continue;
    if (m.H < H) found.clear();
    H = m.H;
    found.push_back(m);
  }
  return found;
}

template <class Get>
std::vector<int64_t> sizes(const std::vector<Measurement>& measured, Get get) {
  std::vector<int64_t> found;
  for (const Measurement& m : measured) found.push_back(get(m));
  return found;
}

// Infinite where one of the neighbours was not measured.
double time_of(KernelChoice kernel, const std::vector<Measurement>& measured, const Neighbours& B,
               const Neighbours& T) {
  const auto logarithm = [&](int64_t b, int64_t t) {
    for (const Measurement& m : measured)
      if (m.kernel == kernel && m.B == b && m.T == t) return std::log(m.microseconds);
    return std::numeric_limits<double>::infinity();
  };
  const auto between = [](const Neighbours& of, auto value) {
    const double low = value(of.low);
    return of.low == of.high ? low : low + of.way * (value(of.high) - low);
  };
  return between(T,
                 [&](int64_t t) { return between(B, [&](int64_t b) { return logarithm(b, t); }); });
}

}  // namespace

KernelChoice fastest_measured(const CudaProblem& p, bool backward, int layers,
                              Measurements measurements) {
  if (p.packed || p.real_tf32 || p.P != p.H || p.B < 1 || p.T < 1) return KernelChoice::any;
  const std::vector<Measurement> measured = of_same_kind(p, backward, layers, measurements);
  if (measured.empty()) return KernelChoice::any;
  const std::vector<int64_t> steps = sizes(measured, [](auto& m) { return m.T; });
  const int64_t longest = *std::max_element(steps.begin(), steps.end());
  const auto B = neighbours(p.B * p.directions, sizes(measured, [](auto& m) { return m.B; }));
  const auto T = neighbours(std::min(p.T, longest), steps);
  if (!B || !T) return KernelChoice::any;
  KernelChoice best = KernelChoice::any;
  double least = std::numeric_limits<double>::infinity();
  std::vector<KernelChoice> known;
  for (const Measurement& m : measured) {
    if (std::count(known.begin(), known.end(), m.kernel)) continue;
    const double time = time_of(m.kernel, measured, *B, *T);
    if (!std::isfinite(time)) continue;
    known.push_back(m.kernel);
    if (time < least) {
      least = time;
      best = m.kernel;
    }
  }
  return known.size() < 2 ? KernelChoice::any : best;
}

CudaPlan plan_cuda_measured(const CudaProblem& problem, Measurements measurements) {
  const bool asked = problem.kernels != KernelChoice::any;
  CudaPlan plan = plan_cuda(problem);
  plan.forward_reason = plan.backward_reason = asked ? Reason::asked : Reason::predicted;
  if (asked) return plan;
  CudaProblem insisting = problem;
  insisting.kernels = fastest_measured(problem, false, 1, measurements);
  if (insisting.kernels != KernelChoice::any) {
    const CudaPlan measured = plan_cuda(insisting);
    plan.forward = measured.forward;
    plan.persistent_forward = measured.persistent_forward;
    plan.projects = measured.projects;
    plan.forward_reason = Reason::measured;
  }
  insisting.kernels = fastest_measured(problem, true, 1, measurements);
  if (insisting.kernels != KernelChoice::any) {
    const CudaPlan measured = plan_cuda(insisting);
    plan.backward = measured.backward;
    plan.persistent_backward = measured.persistent_backward;
    plan.backward_reason = Reason::measured;
  }
  return plan;
}

StackPlan plan_stack_measured(const CudaProblem& problem, int layers, Measurements measurements) {
  if (problem.kernels != KernelChoice::any) return {plan_stack(problem, layers), Reason::asked};
  CudaProblem insisting = problem;
  insisting.kernels = fastest_measured(problem, false, 2, measurements);
  const bool measured = insisting.kernels != KernelChoice::any;
  return {plan_stack(insisting, layers), measured ? Reason::measured : Reason::predicted};
}

}  // namespace gatedrnn
