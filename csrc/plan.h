// What is to be computed, and on what -> how. Pure functions: tests ask them about machines that
// are not there.
#pragma once

#include <cstdint>

namespace gatedrnn {

struct Problem {
  int64_t T, B, I, H, P;
  int gates;       // 3 or 4
  int directions;  // 1 or 2
  int element;     // bytes, in tensors
  int threads;
  int registers;  // of vectors
  bool pairs;     // bfloat16 on a processor that multiplies pairs of it
};

// Threads own sequences and never meet; or several share the units of the same ones, and meet each
// step.
struct Plan {
  int64_t threads;  // as many as the whole call's work can pay for
  int64_t block;    // sequences that walk together
  int64_t parts;    // threads that share the units of a block
  int64_t ahead;    // forward: steps whose W_ih x is made before they are walked; 0: each its own
  int64_t chunk;    // backward: steps whose gates' gradients are made, then used up
  bool narrow_panels;  // packed weights of bfloat16 stay what they are, and are widened when read
  bool pairs;          // they are multiplied as they are, by states and inputs rounded to bfloat16
};

Plan plan_cpu(const Problem& problem);

struct CellProblem {
  int64_t B, I, H;
  int gates;  // 3 or 4
  int width;  // W: units of a vector
  int threads;
};

struct CellPlan {
  int64_t threads, backward_threads;
  bool packed;   // forward: the weights are transposed into panels, or read as they lie
  bool by_rows;  // packed: threads own sequences and pack for themselves; or they own units
  bool few;      // backward: all of a few sequences' gradients in one pass over the weights
};

CellPlan plan_cell(const CellProblem& problem);

enum class Type { float32, float64, float16, bfloat16 };

// How a tile's sums of products are made. On an architecture that lacks the instruction the kernel
// of that name multiplies in float32, or as the instruction would.
enum class Product {
  fma,
  tf32,
  half,
  bfloat16,
  split,  // persistent kernels: float32 in two parts of float16
};

// The part of a step that one block computes.
enum class Tile {
  narrow,  // few sequences: 16 units of 16 sequences, the sum over k shared by four warps
  wide,    // many: 32 units (forward) or 64 (backward) of 64 sequences, in float64 of 32
};

// Clusters of blocks that run at the same time, each block alone on its multiprocessor: of 2, 4, 8
// and 16 blocks. All zero: the device was not asked, or has none.
struct Clusters {
  int fit[4];
};

// Which kernels may be chosen; `persistent`: in clusters, or of the grid. `wavefront` is
// plan_stack's.
enum class KernelChoice { any, step, persistent, grid, wavefront };

struct CudaProblem {
  int64_t T, B, I, H, P;
  int gates;       // 3 or 4
  int directions;  // 1 or 2
  Type type;
  bool tf32;         // whether float32 operands may be rounded to TF32
  bool packed;       // sequences of different lengths
  int architecture;  // 90 for compute capability 9.0
  int multiprocessors;
  Clusters clusters;
  KernelChoice kernels = KernelChoice::any;
  bool real_tf32 = false;  // `tf32`: by that instruction alone, not by scaled operands of 16 bits
};

// A kernel that walks all steps in one launch: of latency.h where products are fma, or else of
// persistent.h, by its kSplitShapes where they are split. No units: the step kernels do it. No
// cluster: blocks of the grid hold the units together (grid.h).
struct PersistentPlan {
  int units, cluster;
  int sequences;  // of a cluster, or of a group of the grid's blocks

  bool grid() const { return units > 0 && cluster == 0; }
};

// Why a pass is run as it is.
enum class Reason { predicted, measured, asked };

struct CudaPlan {
  Product forward, backward;
  Tile forward_tile, backward_tile;
  PersistentPlan persistent_forward, persistent_backward;
  bool projects;  // persistent_forward multiplies the input too
  Reason forward_reason = Reason::predicted, backward_reason = Reason::predicted;
};

CudaPlan plan_cuda(const CudaProblem& problem);

// Forward of `layers` such layers, of which the first one has I features, in one launch, each a
// step behind the one below (wavefront_forward.h). No units: one layer after the other.
PersistentPlan plan_stack(const CudaProblem& problem, int layers);

// Parts of 16 bits in which a persistent kernel's weights are packed.
constexpr int packed_parts(Product product) {
  return product == Product::fma ? 0 : product == Product::split ? 2 : 1;
}

}  // namespace gatedrnn
