#include "plan.h"

#include <algorithm>

namespace gatedrnn {
namespace {

// The share of a core's L2 that weights may fill and still stay there beside the states.
constexpr int64_t kCache = 768 << 10;
// A tile holds 6 or 8 sequences; fewer leave the multipliers waiting for weights.
constexpr int64_t kFullTile = 8;
// Sequences that walk together: their states stay in L2, and the weights are read once for all.
constexpr int64_t kBlock = 64;
// So few features are cheaper to multiply in the step than to write and read back as gates.
constexpr int64_t kFewFeatures = 32;

// Multiply-adds of a whole call that pay for waking another thread: tens of microseconds.
constexpr int64_t kWorkOfThread = 2500000;
// Two threads share a step with profit from some 50000 multiply-adds on (measured); that the
// barrier costs in proportion to who meets there is an assumption. Hence parts^2 * this <= a step's
// work.
constexpr int64_t kWorkOfPart = 12000;
// Units that one tile holds at the least: what a part must have.
constexpr int64_t kTileUnits = 16;

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

}  // namespace

Plan plan_cpu(const Problem& p) {
  const int64_t step = std::max<int64_t>(1, p.B) * p.gates * p.H * (p.P + p.I);
  const double paid = double(p.T) * double(step) * p.directions / kWorkOfThread;
  const int64_t threads = std::max<int64_t>(1, int64_t(std::min<double>(p.threads, paid)));
  const int64_t streams = ceil_div(threads, p.directions);  // threads that share one direction
  const int64_t B = p.B < 1 ? 1 : p.B, rows = ceil_div(B, streams);
  const int64_t weights = p.gates * p.H * p.P * p.element;
  Plan plan{};
  plan.threads = threads;
  // Alone with its sequences a thread reads all of the weights each step. That pays unless it has
  // too few sequences to hide the reading, or the weights would fit L2 if the threads shared them.
  const bool few = rows < kFullTile / 2;
  const bool overflow = weights > kCache && rows < kBlock;
  plan.by_rows = streams == 1 || !(few || overflow);
  const int64_t blocks = streams * ceil_div(B, streams * kBlock);
  plan.block = plan.by_rows ? ceil_div(B, blocks) : B;
  plan.parts = 1;
  const int64_t most = std::min(threads, ceil_div(p.H, kTileUnits));
  while (plan.parts < most && (plan.parts + 1) * (plan.parts + 1) * kWorkOfPart <= step)
    ++plan.parts;
  // In the step the input's weights are read again and again; ahead of it once.
  plan.project_first = p.I > kFewFeatures && (plan.by_rows ? plan.block : B) < 2 * kFullTile;
  return plan;
}

namespace {

// For the same work a narrow tile reads three to four times as much as a wide one. So wide ones win
// as soon as they occupy a quarter of the multiprocessors; but where one narrow tile holds the
// batch, it reads no more. Estimates: no GPU has been asked yet.
Tile tile_of(const CudaProblem& p, int64_t units) {
  const int64_t tiles = ceil_div(p.B, 64) * p.directions * ceil_div(p.H, units);
  return p.B > 16 && 4 * tiles >= p.multiprocessors ? Tile::wide : Tile::narrow;
}

}  // namespace

CudaPlan plan_cuda(const CudaProblem& p) {
  CudaPlan plan{};
  plan.forward_tile = tile_of(p, 32);
  plan.backward_tile = tile_of(p, 64);
  const bool tensor_cores = p.architecture >= 80;
  switch (p.type) {
    case Type::float64:
      plan.forward = plan.backward = Product::fma;
      break;
    case Type::float32:
      plan.forward = plan.backward = p.tf32 && tensor_cores ? Product::tf32 : Product::fma;
      break;
    case Type::float16:  // its gates' gradients are float32, and have TF32's range
      plan.forward = Product::half;
      plan.backward = tensor_cores ? Product::tf32 : Product::fma;
      break;
    case Type::bfloat16:
      plan.forward = plan.backward = tensor_cores ? Product::bfloat16 : Product::fma;
      break;
  }
  return plan;
}

}  // namespace gatedrnn
