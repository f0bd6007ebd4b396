// The product in every step: sums[u, b] = sum_k w[row of u, k] * a[b, k], by tiles.
//
// A block of four warps owns some units of kBatch sequences. The weights are the MMA's A (rows),
// the sequences its B (columns), so that a thread holds all gates of its units, and the equations
// that follow need no exchange. Both operands stream through shared memory, 128 bytes of k a stage:
//
//        k ->  128 bytes a stage, a pitch of 144: eight rows begin in eight different banks of 16 B
//      +-------------------+
//      | gate 0, 16 units  |  R row tiles a warp: the gates of the same 16 units (forward),
//      | gate 1, 16 units  |  or 16 units each (backward, which has one sum a unit)
//      | ...               |
//      +-------------------+
//      | 8 sequences       |  N column tiles a warp
//      | ...               |
//      +-------------------+
//
// Row i of a row tile is unit 2i of its 16, row 8 + i unit 2i + 1. So a thread, which the MMA gives
// rows g, g + 8 and columns 2t, 2t + 1 (g = lane / 4, t = lane % 4), has two units side by side for
// each of two sequences: an "item" is such a pair of one sequence, loaded and stored as one.
#pragma once

#include "device.h"
#include "numbers.h"

namespace gatedrnn::cuda {

constexpr int kThreads = 128;
constexpr int kRowBytes = 128;
constexpr int kPitch = kRowBytes + 16;
constexpr int kStepBytes = 32;  // of k: what one MMA takes, whatever the type
constexpr int kCopyBytes = 16;
constexpr int kCopiesOfRow = kRowBytes / kCopyBytes;

// WU x WB warps share the tile, WK each stage's k.
template <int R_, int N_, int WU, int WB, int WK_, int Stages>
struct TileShape {
  static_assert(WU * WB * WK_ * 32 == kThreads);
  static constexpr int R = R_, N = N_, WK = WK_, kStages = Stages;
  static constexpr int kRowTiles = R * WU;
  static constexpr int kBatch = 8 * N * WB;
  static constexpr int kStageBytes = (16 * kRowTiles + kBatch) * kPitch;
  static constexpr int kSharedBytes = kStages * kStageBytes;
  static constexpr int kItems = 2 * N / WK;  // a warp's, after its sums are complete
  static __device__ int unit_warp(int warp) { return warp / WK % WU; }
  static __device__ int batch_warp(int warp) { return warp / WK / WU; }
};

// What is multiplied, in global memory.
template <class Real>
struct Operands {
  const Real* w;        // [rows, K] contiguous
  const Real* a;        // [begun, K]
  int64_t a_row;        // from one sequence to the next
  const Real* initial;  // [rows, K] contiguous, of the sequences from `begun` on; null: zeros
  int64_t begun, rows;  // sequences
  int64_t K;
  int64_t split, gap;  // from element `split` on, a's lie `gap` farther
  int part;            // 16, 8, 4 or 2 bytes: all rows begin at, and consist of, multiples of it
};

// Multiplies as the CUDA cores do, with the MMA's distribution of the results.
template <class Real_>
struct Fma {
  using Real = Real_;
  using Wide = typename Types<Real>::Wide;
  static constexpr int kUnroll = 2;  // each is hundreds of instructions already

  template <int R, int N>
  static __device__ void step(Wide (&sums)[R][N][4], const unsigned char* w, const unsigned char* a,
                              int lane) {
    constexpr int kElements = kCopyBytes / int(sizeof(Real));
    w += lane / 4 * kPitch;
    a += lane % 4 * 2 * kPitch;
#pragma unroll
    for (int part = 0; part < kStepBytes; part += kCopyBytes) {
      Wide column[N][2][kElements];
#pragma unroll
      for (int n = 0; n < N; ++n) {
        load_elements<Real>(column[n][0], a + n * 8 * kPitch + part);
        load_elements<Real>(column[n][1], a + (n * 8 + 1) * kPitch + part);
      }
#pragma unroll
      for (int r = 0; r < R; ++r) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          Wide row[kElements];
          load_elements<Real>(row, w + (r * 16 + half * 8) * kPitch + part);
#pragma unroll
          for (int k = 0; k < kElements; ++k)
#pragma unroll
            for (int n = 0; n < N; ++n) {
              sums[r][n][2 * half] += row[k] * column[n][0][k];
              sums[r][n][2 * half + 1] += row[k] * column[n][1][k];
            }
        }
      }
    }
  }
};

// Multiplies on tensor cores; Instruction says how, and where there is no such instruction.
template <class Instruction>
struct TensorCore {
  using Real = typename Instruction::Real;
  using Wide = float;
  static constexpr int kUnroll = kRowBytes / kStepBytes;

  template <int R, int N>
  static __device__ void step(float (&sums)[R][N][4], const unsigned char* w,
                              const unsigned char* a, int lane) {
    if constexpr (!Instruction::exists()) {
      Fma<Real>::step(sums, w, a, lane);
    } else {
      static_assert(N % 2 == 0);
      uint32_t column[N][2];
      const unsigned char* from = a + (lane % 8 + lane / 16 * 8) * kPitch + lane / 8 % 2 * 16;
#pragma unroll
      for (int n = 0; n < N; n += 2) {
        uint32_t two[4];
        load_matrix_x4(two, from + n * 8 * kPitch);
#pragma unroll
        for (int k = 0; k < 4; ++k) column[n + k / 2][k % 2] = Instruction::rounded(two[k]);
      }
#pragma unroll
      for (int r = 0; r < R; ++r) {
        uint32_t row[4];
        load_matrix_x4(row, w + (r * 16 + lane % 16) * kPitch + lane / 16 * 16);
#pragma unroll
        for (int k = 0; k < 4; ++k) row[k] = Instruction::rounded(row[k]);
#pragma unroll
        for (int n = 0; n < N; ++n) Instruction::multiply(sums[r][n], row, column[n]);
      }
    }
  }
};

struct Tf32 {
  using Real = float;
  static constexpr bool exists() { return kHasTf32; }
  static __device__ uint32_t rounded(uint32_t bits) { return to_tf32(__uint_as_float(bits)); }
  static __device__ void multiply(float (&sums)[4], const uint32_t (&row)[4],
                                  const uint32_t (&column)[2]) {
    mma_tf32(sums, row, column);
  }
};

struct Float16 {
  using Real = Half;
  static constexpr bool exists() { return true; }
  static __device__ uint32_t rounded(uint32_t bits) { return bits; }
  static __device__ void multiply(float (&sums)[4], const uint32_t (&row)[4],
                                  const uint32_t (&column)[2]) {
    mma_half(sums, row, column);
  }
};

struct BrainFloat16 {
  using Real = Bfloat16;
  static constexpr bool exists() { return kHasBfloat16; }
  static __device__ uint32_t rounded(uint32_t bits) { return bits; }
  static __device__ void multiply(float (&sums)[4], const uint32_t (&row)[4],
                                  const uint32_t (&column)[2]) {
    mma_bfloat16(sums, row, column);
  }
};

// What a thread copies of every stage: 16 bytes each of some rows, which are found once. What lies
// beyond K is zero in shared memory, and so are rows that are not there.
template <class Shape, class Real>
class Copies {
 public:
  // `weight_row(tile, unit)` is the row of w that unit 0...15 of a row tile multiplies, or -1.
  template <class WeightRow>
  __device__ Copies(const Operands<Real>& p, int64_t batch0, WeightRow weight_row)
      : any_(p.w), K_(p.K), split_(p.split), gap_(p.gap), part_(p.part) {
    const int unit = row_ < 8 ? 2 * row_ : 2 * row_ - 15;
#pragma unroll
    for (int tile = 0; tile < Shape::kRowTiles; ++tile) {
      const int64_t at = weight_row(tile, unit);
      from_[tile] = at < 0 ? nullptr : p.w + at * p.K;
    }
#pragma unroll
    for (int i = 0; i < Shape::kBatch / kRowsAtOnce; ++i) {
      const int64_t b = batch0 + i * kRowsAtOnce + row_;
      const Real* initial = b < p.rows && p.initial ? p.initial + b * p.K : nullptr;
      from_[Shape::kRowTiles + i] = b < p.begun ? p.a + b * p.a_row : initial;
    }
  }

  __device__ void start(unsigned char* stage, int64_t k0) const {
    unsigned char* to = stage + row_ * kPitch + column_;
    const int64_t k = k0 + column_ / int(sizeof(Real));
    if (part_ == kCopyBytes) {
      start_part<kCopyBytes>(to, k);
    } else if (sizeof(Real) > 2 || part_ >= kSmallest) {
#pragma unroll 1
      for (int byte = 0; byte < kCopyBytes; byte += kSmallest)
        start_part<kSmallest>(to + byte, k + byte / int(sizeof(Real)));
    } else {
      copy_elements(to, k);
    }
  }

 private:
  static constexpr int kRowsAtOnce = kThreads / kCopiesOfRow;
  static_assert(kRowsAtOnce == 16 && Shape::kBatch % kRowsAtOnce == 0);
  static constexpr int kRows = Shape::kRowTiles + Shape::kBatch / kRowsAtOnce;
  static constexpr int kSmallest = sizeof(Real) == 8 ? 8 : 4;  // that can be copied asynchronously

  template <int kBytes>
  __device__ void start_part(unsigned char* to, int64_t k) const {
    const bool inside = k < K_;
    // A sequence's element; no gap comes with `initial`.
    const int64_t shifted = k < split_ ? k : k + gap_;
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
      const bool there = inside && from_[i];
      copy_async<kBytes>(to + i * kRowsAtOnce * kPitch,
                         there ? from_[i] + (i < Shape::kRowTiles ? k : shifted) : any_,
                         there ? kBytes : 0);
    }
  }

  // Rows of 16-bit elements that begin at odd ones: no asynchronous copy is so small.
  __device__ void copy_elements(unsigned char* to, int64_t k0) const {
    struct alignas(kCopyBytes) Part {
      Real element[kCopyBytes / sizeof(Real)];
    };
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
      Part part;
#pragma unroll
      for (int e = 0; e < int(kCopyBytes / sizeof(Real)); ++e) {
        const int64_t k = k0 + e, shifted = k < split_ ? k : k + gap_;
        const bool there = from_[i] && k < K_;
        part.element[e] = there ? from_[i][i < Shape::kRowTiles ? k : shifted] : Real{};
      }
      *reinterpret_cast<Part*>(to + i * kRowsAtOnce * kPitch) = part;
    }
  }

  const int row_ = int(threadIdx.x) / kCopiesOfRow;
  const int column_ = int(threadIdx.x) % kCopiesOfRow * kCopyBytes;
  const Real* const any_;  // where a copy of nothing may point
  const int64_t K_, split_, gap_;
  const int part_;
  const Real* from_[kRows];  // null: zeros
};

// The block's sums. Once it is made, each warp finishes Shape::kItems items, j = 0, 1, ...
template <class Policy, class Shape>
class TileProduct {
 public:
  using Real = typename Policy::Real;
  using Wide = typename Policy::Wide;
  static constexpr int R = Shape::R, N = Shape::N, WK = Shape::WK;

  template <class WeightRow>
  __device__ TileProduct(const Operands<Real>& p, int64_t batch0, WeightRow weight_row,
                         unsigned char* shared)
      : shared_(reinterpret_cast<Wide*>(shared)) {
    constexpr int kStages = Shape::kStages;
    constexpr int kElements = kRowBytes / int(sizeof(Real));
    const int w_row = Shape::unit_warp(warp_) * R * 16;
    const int a_row = Shape::kRowTiles * 16 + Shape::batch_warp(warp_) * N * 8;
    const bool nothing = batch0 >= p.begun && !p.initial;
    const int64_t stages = nothing ? 0 : (p.K + kElements - 1) / kElements;
    const Copies<Shape, Real> copies(p, batch0, weight_row);
    Wide sums[R][N][4] = {};
#pragma unroll 1
    for (int64_t stage = 1 - kStages; stage < stages; ++stage) {
      if (stage >= 0) {
        wait_copies<kStages - 2>();
        __syncthreads();  // this stage is there, and nobody reads the one before it any more
      }
      const int64_t next = stage + kStages - 1;
      if (next < stages)
        copies.start(shared + next % kStages * Shape::kStageBytes, next * kElements);
      commit_copies();
      if (stage < 0) continue;
      const unsigned char* at = shared + stage % kStages * Shape::kStageBytes;
#pragma unroll Policy::kUnroll
      for (int i = 0; i < kRowBytes / (WK * kStepBytes); ++i) {
        const int k = (i * WK + warp_ % WK) * kStepBytes;
        Policy::step(sums, at + w_row * kPitch + k, at + a_row * kPitch + k, lane_);
      }
    }
    __syncthreads();  // nobody reads operands any more: the sums take their room
#pragma unroll
    for (int item = 0; item < 2 * N; ++item)
#pragma unroll
      for (int r = 0; r < R; ++r)
#pragma unroll
        for (int unit = 0; unit < 2; ++unit)
          sum_at(warp_, item, r, unit) = sums[r][item / 2][item % 2 + 2 * unit];
    if constexpr (WK > 1) __syncthreads();
  }

  // Where an item lies in the tile: its sequence, and the first of its units within a row tile.
  __device__ int batch(int j) const {
    const int item = item_of(j);
    return (Shape::batch_warp(warp_) * N + item / 2) * 8 + lane_ % 4 * 2 + item % 2;
  }
  __device__ int unit() const { return lane_ / 4 * 2; }
  // The first of the warp's row tiles.
  __device__ int row_tile() const { return Shape::unit_warp(warp_) * R; }

  __device__ Two<Wide> sums(int j, int r) const {
    Two<Wide> total = {};
#pragma unroll
    for (int k = 0; k < WK; ++k)
#pragma unroll
      for (int unit = 0; unit < 2; ++unit)
        total.of[unit] += sum_at(warp_ / WK * WK + k, item_of(j), r, unit);
    return total;
  }

 private:
  static_assert(2 * N * R * 2 * kThreads * sizeof(Wide) <= Shape::kSharedBytes);

  // Warps that shared k have the same items: each finishes some of them.
  __device__ int item_of(int j) const { return warp_ % WK * Shape::kItems + j; }
  __device__ Wide& sum_at(int warp, int item, int r, int unit) const {
    return shared_[((item * R + r) * 2 + unit) * kThreads + warp * 32 + lane_];
  }

  const int warp_ = int(threadIdx.x) / 32, lane_ = int(threadIdx.x) % 32;
  Wide* const shared_;
};

}  // namespace gatedrnn::cuda
