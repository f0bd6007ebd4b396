#include "plan.h"

#include <algorithm>

#include "grid.h"
#include "latency.h"

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
// A thread's products of the input, made ahead of some steps: they stay in L2 until used, and there
// are rows enough to hide the reading of the weights.
constexpr int64_t kAheadBytes = 256 << 10;
constexpr int64_t kAheadRows = 48;

// Multiply-adds of a cell's step that pay for a second thread: a parallel region takes 2 us.
constexpr int64_t kCellWork = 100000;
// Read as they lie, weights leave lanes to be added up, which costs a sequence the same however
// many features there are; transposed, they cost a time for each feature that all sequences share.
// The two meet at 3 sequences of few features, 4 of 256, 6 of 512 and 8 of 1024 (measured).
constexpr int64_t kRowsOfPanel = 3;
constexpr int64_t kFeaturesOfRow = 200;
// As many sequences of a thread hide that it packs what others pack too.
constexpr int64_t kOwnRows = 32;
// Up to here the weights and their gradients go by once for all four products.
constexpr int64_t kFewRows = 8;

// Gates' gradients that are made before they are used up: they must still be in L2 or L3 then. Each
// time a chunk is used up, the weights' gradients are read and written, which takes many rows to
// pay.
constexpr int64_t kChunkBytes = 1 << 20;
constexpr int64_t kChunkRows = 256;

// Multiply-adds of a whole call that pay for waking another thread: tens of microseconds.
constexpr int64_t kWorkOfThread = 1000000;
// Two threads share a step with profit from some 50000 multiply-adds on (measured); that the
// barrier costs in proportion to who meets there is an assumption. Hence parts^2 * this <= a step's
// work.
constexpr int64_t kWorkOfPart = 12000;
// Units that one tile holds at the least: what a part must have.
constexpr int64_t kTileUnits = 16;
// Sequences so few that their tiles wait for weights even from L2.
constexpr int64_t kWaiting = 2;
// Vector registers that hold a full tile and more.
constexpr int64_t kManyRegisters = 32;

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Steps at a time, at most `most`, as even as they can be; of no steps too.
int64_t even_share(int64_t T, int64_t most) {
  T = std::max<int64_t>(1, T);
  return ceil_div(T, ceil_div(T, most));
}

// Bytes of a number in the kernels: those of 16 bits are computed with as float32.
int64_t computed(const Problem& p) { return std::max(p.element, 4); }

int64_t weights_of(const Problem& p) { return p.gates * p.H * p.P * computed(p); }

// How many threads share the units of the same sequences. Alone with its sequences a thread reads
// all of the weights each step. That pays unless it has too few sequences to hide the reading, or
// the weights would fit L2 if threads shared them.
int64_t parts_of(const Problem& p, int64_t threads) {
  const int64_t B = std::max<int64_t>(1, p.B), weights = weights_of(p);
  const int64_t units = ceil_div(p.H, kTileUnits);
  const auto rows = [&](int64_t parts) { return ceil_div(B, threads / parts); };
  int64_t parts = 1;
  for (; parts < std::min(threads, units); ++parts) {
    const bool few = rows(parts) < kFullTile / 2;
    const bool overflow = weights > parts * kCache && rows(parts) < kBlock;
    if (!few && !overflow) break;
  }
  // Groups of whole tiles may leave threads over.
  if (parts > 1) parts = std::min(units, threads / ceil_div(B, rows(parts)));
  const auto pays = [&] {
    return parts * parts * kWorkOfPart <= rows(parts) * p.gates * p.H * (p.P + p.I);
  };
  while (parts > 1 && !pays()) --parts;
  return parts;
}

// Panels of 16 bits halve what a step reads, and cost instructions to widen. That pays where the
// reading takes the time; and where registers are few, not for full tiles, which have none left.
bool narrow_panels_pay(const Problem& p, const Plan& plan) {
  if (plan.block <= kWaiting) return true;
  const bool overflow = weights_of(p) > plan.parts * kCache;
  return overflow && (p.registers >= kManyRegisters || plan.block <= kFullTile / 2);
}

// In the step the input's weights are read again and again, ahead of several steps once.
int64_t ahead_of(const Problem& p, const Plan& plan) {
  if (p.I <= kFewFeatures || plan.block >= 2 * kFullTile) return 0;
  const int64_t row = std::max<int64_t>(1, p.gates * p.H * computed(p) / plan.parts);
  const int64_t steps = ceil_div(std::max(kAheadRows, kAheadBytes / row), plan.block);
  return even_share(p.T, steps);
}

}  // namespace

Plan plan_cpu(const Problem& p) {
  const int64_t B = std::max<int64_t>(1, p.B), step = B * p.gates * p.H * (p.P + p.I);
  const double paid = double(p.T) * double(step) * p.directions / kWorkOfThread;
  Plan plan{};
  plan.threads = std::max<int64_t>(1, int64_t(std::min<double>(p.threads, paid)));
  const int64_t streams = ceil_div(plan.threads, p.directions);  // threads of one direction
  plan.parts = parts_of(p, streams);
  const int64_t groups = std::min(B, std::max<int64_t>(1, streams / plan.parts));
  // A group alone in memory walks in blocks; threads that meet walk all of their rows at once.
  const int64_t blocks = plan.parts > 1 ? groups : groups * ceil_div(B, groups * kBlock);
  plan.block = ceil_div(B, blocks);
  plan.ahead = ahead_of(p, plan);
  const int64_t row = std::max<int64_t>(1, 4 * p.H * computed(p));
  const int64_t steps = std::max<int64_t>(1, std::max(kChunkRows, kChunkBytes / row) / B);
  plan.chunk = even_share(p.T, steps);
  plan.pairs = p.pairs;
  plan.narrow_panels = !p.pairs && p.element == 2 && narrow_panels_pay(p, plan);
  return plan;
}

CellPlan plan_cell(const CellProblem& p) {
  const int64_t panels = ceil_div(p.H, p.width), rows = p.gates * p.H;
  const int64_t work = p.B * rows * (p.I + p.H);
  const auto threads = [&](int64_t work, int64_t most) {
    return std::max<int64_t>(1, std::min({int64_t(p.threads), work / kCellWork, most}));
  };
  CellPlan plan{};
  plan.packed = p.B >= kRowsOfPanel + (p.I + p.H) / kFeaturesOfRow;
  plan.by_rows = plan.packed && panels % p.threads != 0 && p.B >= kOwnRows * p.threads;
  plan.threads = threads(work, plan.by_rows ? p.B : panels);
  plan.few = p.B <= kFewRows;
  plan.backward_threads = threads(2 * work, p.B * rows);
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

// The persistent kernels, in microseconds. All of it is predicted: no GPU has been asked yet.
constexpr double kStepLaunch = 3.0;       // of step kernels, the least a step takes
constexpr double kStepProducts = 150e6;   // their flops
constexpr double kPersistentLaunch = 12;  // packing, launches
constexpr double kMultiplyAdds = 2.36e6;  // of a multiprocessor: 1290 a cycle, at 1.83 GHz
constexpr double kOverhead = 1.15;        // of what is not multiplied, for each tile
constexpr double kMeetings = 0.2;         // of a block's warps, in a step backward

// From a state to the next, without products: the exchange above all.
double latency(int cluster) { return cluster == 1 ? 0.38 : 0.53 + 0.01 * cluster; }

// How many clusters run at once, or at the least, if as many larger ones do; where no device has
// answered, what is known of one of 132 multiprocessors: some lie where no cluster of more than two
// fits.
int64_t fit(const CudaProblem& p, int cluster) {
  if (cluster == 1) return p.multiprocessors;
  const bool known = p.clusters.fit[0] > 0;
  for (int k = 0; k < 4; ++k)
    if (cluster <= 2 << k && known) return p.clusters.fit[k];
  return cluster == 2 ? p.multiprocessors / 2 : p.multiprocessors * 15 / 16 / cluster;
}

// Shared memory, bytes: what a kernel's few variables take beside it, and what a block may have.
constexpr int kStaticShared = 128;
int shared_memory(int architecture) {
  switch (architecture) {
    case 80:
    case 87:
      return 163 << 10;
    case 90:
    case 100:
    case 103:
      return 227 << 10;
    default:
      return 99 << 10;
  }
}

bool projects(const CudaProblem& p, int parts) {
  return parts == 1 && p.type == Type::float32 && p.I <= kFewFeaturesOfKernel;
}

// The products: what a tile takes of a step.
double tile_time(const PersistentShape& shape) {
  const int products = shape.parts > 1 ? 3 : 1;
  return double(shape.gates()) * shape.owned() * shape.depth() * shape.columns() * products /
         kMultiplyAdds * kOverhead;
}

bool can_persist(const CudaProblem& p) {
  constexpr int64_t kMostSequences = 1 << 24;
  return p.architecture >= 80 && p.P == p.H && p.B >= 1 && p.T >= 2 && p.B <= kMostSequences;
}

// Of these persistent kernels that of the least predicted time, if that is less than `limit`, which
// it then lowers.
template <size_t kCount>
PersistentPlan persistent_of(const PersistentShape (&shapes)[kCount], const CudaProblem& p,
                             bool forward, double& limit) {
  const int element = p.type == Type::float32 ? 4 : 2;
  PersistentPlan best{};
  if (!can_persist(p)) return best;
  for (const PersistentShape& shape : shapes) {
    const int cluster = shape.cluster();
    if (shape.gates() != p.gates || shape.units < p.H) continue;
    if (cluster > 1 && p.architecture < 90) continue;
    const double still = latency(cluster) + (forward ? 0 : kMeetings);
    const double tile = tile_time(shape);
    for (int tiles = 1; tiles <= PersistentShape::kMostTiles; ++tiles) {
      const int bytes =
          (forward ? shape.forward_bytes(tiles) : shape.backward_bytes(tiles, element)) +
          (p.packed ? shape.columns_bytes(tiles) : 0) +
          (forward && projects(p, shape.parts) ? shape.input_bytes(p.I) : 0);
      if (bytes > shared_memory(p.architecture)) break;
      const int64_t clusters = p.directions * ceil_div(p.B, shape.columns() * tiles);
      const int64_t at_once = fit(p, cluster);
      if (at_once < 1) break;
      const double waves = double(ceil_div(clusters, at_once));
      const double time = kPersistentLaunch + double(p.T) * waves * (still + tiles * tile);
      if (time < limit) {
        limit = time;
        best = {shape.units, cluster, shape.columns() * tiles};
      }
    }
  }
  return best;
}

// The grid's kernels, in microseconds, predicted as well.
constexpr double kGridLatency = 0.62;  // a state's way through L2, and the gates
constexpr double kGridBytes = 58.6e3;  // of L2 that a multiprocessor reads: 32 a cycle, or writes

// The grid's kernel, if its predicted time is less than `limit`: it has the fewest tiles with which
// all groups, of both directions or of one after the other, run at once. Lowers `limit`.
PersistentPlan grid_of(const CudaProblem& p, bool forward, double& limit) {
  const int64_t units = ceil_div(p.H, GridShape::kGrain) * GridShape::kGrain;
  if (p.architecture < 80 || p.packed || p.P != p.H || p.B < 1 || p.H < 1 || p.T < 2 ||
      p.B > p.multiprocessors * GridShape::kMostTiles * GridShape::kColumns ||
      units > GridShape::kMostUnits)
    return {};
  const int element = p.type == Type::float32 ? 4 : 2;
  const int64_t blocks = GridShape::blocks(int(units));
  const double multiply = double(p.gates * GridShape::kOwned * units * GridShape::kColumns);
  const double exchange = double(blocks * GridShape::kLanes) * (forward ? 1 : 2);
  PersistentPlan best{};
  for (int tiles = 1; tiles <= GridShape::kMostTiles; ++tiles) {
    const int sequences = tiles * GridShape::kColumns;
    const int64_t groups = groups_of(p.B, sequences);
    const int bytes = forward ? GridShape::forward_bytes(p.gates, int(units), tiles)
                              : GridShape::backward_bytes(p.gates, int(units), tiles, element);
    if (groups * blocks > p.multiprocessors || bytes > shared_memory(p.architecture)) continue;
    const int launches = p.directions * groups * blocks > p.multiprocessors ? 2 : 1;
    const double tile = multiply / kMultiplyAdds * kOverhead + exchange / kGridBytes;
    const double step = kGridLatency + (forward ? 0 : kMeetings) + tiles * tile;
    const double time = kPersistentLaunch + double(p.T) * launches * step;
    if (time < limit) {
      limit = time;
      best = {int(units), 0, sequences};
    }
  }
  return best;
}

// A cluster's kernel where there is one: its exchange is the surer one.
PersistentPlan persistent_or_grid(const CudaProblem& p, bool forward, double& limit) {
  PersistentPlan plan{};
  if (p.kernels != KernelChoice::grid) plan = persistent_of(kPersistentShapes, p, forward, limit);
  return plan.units ? plan : grid_of(p, forward, limit);
}

// What step kernels take.
double time_of_steps(const CudaProblem& p, double flops_of_microsecond) {
  const double flops = 2.0 * p.gates * double(p.B) * double(p.H) * double(p.P) * p.directions;
  return double(p.T) * std::max(kStepLaunch, flops / flops_of_microsecond);
}

// The time that a persistent kernel has to stay below.
double limit_of(const CudaProblem& p, double flops_of_microsecond) {
  return p.kernels == KernelChoice::any ? time_of_steps(p, flops_of_microsecond) : 1e300;
}

// Strict float32, likewise predicted.
constexpr double kStrictStepProducts = 30e6;  // flops of step kernels
constexpr double kLatencyLaunch = 6;          // and the reading of weights
constexpr double kLatencyProducts = 192e3;    // multiply-adds of a block: 105 a cycle

// From a state to the next, without products.
double strict_latency(int cluster) { return cluster == 1 ? 0.35 : 0.45; }

// The latency kernel that holds the units, a cluster for each sequence, if it is predicted to take
// less than `limit`, which it then lowers.
PersistentPlan latency_kernel_of(const CudaProblem& p, bool forward, double& limit) {
  constexpr int64_t kMostSequences = 1 << 24;
  if (p.packed || p.P != p.H || p.B < 1 || p.T < 2 || p.B > kMostSequences) return {};
  for (const LatencyShape& shape : kLatencyShapes) {
    const int cluster = shape.cluster();
    if (shape.gates() != p.gates || shape.units < p.H) continue;
    const int64_t at_once = shape.runs_on(p.architecture) ? fit(p, cluster) : 0;
    if (at_once < 1) break;
    const double waves = double(ceil_div(p.directions * p.B, at_once));
    const double products = double(shape.gates()) * shape.owned() * shape.units / kLatencyProducts;
    const double step = strict_latency(cluster) + (forward ? 0 : kMeetings) + products;
    const double time = kLatencyLaunch + double(p.T) * waves * step;
    if (time >= limit) break;
    limit = time;
    return {shape.units, cluster, 1};
  }
  return {};
}

// Exact sums by a latency kernel, or nearly exact ones by split operands, which hold more
// sequences.
void plan_strict_pass(const CudaProblem& p, bool forward, Product& product, PersistentPlan& plan) {
  double limit = limit_of(p, kStrictStepProducts);
  plan = latency_kernel_of(p, forward, limit);
  const PersistentPlan split = persistent_of(kSplitShapes, p, forward, limit);
  if (split.units == 0) return;
  product = Product::split;
  plan = split;
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
  const bool scaled = !(plan.forward == Product::tf32 && p.real_tf32);
  if (plan.forward != Product::fma && scaled && p.kernels != KernelChoice::step) {
    double forward = limit_of(p, kStepProducts), backward = forward;
    plan.persistent_forward = persistent_or_grid(p, true, forward);
    plan.persistent_backward = persistent_or_grid(p, false, backward);
    if (plan.persistent_forward.units && plan.forward == Product::tf32)
      plan.forward = Product::half;
    if (plan.persistent_backward.units && plan.backward == Product::tf32)
      plan.backward = Product::half;
  }
  const bool asked = p.kernels == KernelChoice::step || p.kernels == KernelChoice::grid;
  if (plan.forward == Product::fma && p.type == Type::float32 && !asked) {
    plan_strict_pass(p, true, plan.forward, plan.persistent_forward);
    plan_strict_pass(p, false, plan.backward, plan.persistent_backward);
  }
  plan.projects = plan.persistent_forward.cluster && projects(p, packed_parts(plan.forward));
  return plan;
}

PersistentPlan plan_stack(const CudaProblem& p, int layers) {
  const bool asked = p.kernels == KernelChoice::wavefront;
  const bool scaled = p.type == Type::float32 && p.tf32 && !p.real_tf32;
  const bool narrow = p.type == Type::float16 || p.type == Type::bfloat16;
  if (!can_persist(p) || !(scaled || narrow) || p.packed || p.directions > 1 || layers < 2 ||
      layers > kMostStacked || !(asked || p.kernels == KernelChoice::any))
    return {};
  double limit = time_of_steps(p, kStepProducts);
  persistent_or_grid(p, true, limit);
  limit = asked ? 1e300 : layers * limit;
  PersistentPlan best{};
  for (const PersistentShape& shape : kStackedShapes) {
    const int cluster = shape.cluster();
    if (shape.gates() != p.gates || shape.units < p.H) continue;
    if (cluster > 1 && p.architecture < 90) continue;
    const double still = latency(cluster), tile = tile_time(shape);
    for (int tiles = 1; tiles <= PersistentShape::kMostTiles; ++tiles) {
      const int sequences = shape.columns() * tiles;
      if (shape.forward_bytes(tiles) + kStaticShared > shared_memory(p.architecture)) break;
      if (layers * ceil_div(p.B, sequences) > fit(p, cluster)) continue;
      const double steps = double(p.T + layers - 1);
      const double time =
          kPersistentLaunch + steps * (still + tiles * tile) + (layers - 1) * kGridLatency;
      if (time < limit) {
        limit = time;
        best = {shape.units, cluster, sequences};
      }
    }
  }
  return best;
}

}  // namespace gatedrnn
