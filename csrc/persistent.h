// The shapes of the persistent kernels: who owns what, and how much shared memory that takes.
// Constants for the kernels, data for the plan.
#pragma once

#include <cstdint>

#include "params.h"

namespace gatedrnn {

// A cluster of blocks holds a whole recurrent matrix, padded to `units`, in its registers, and
// walks all steps of `columns() * tiles` sequences; `tiles` is the caller's. A block owns 16 units
// for each of its groups, all gates of them; `split` warps share a group: in forward its k, in
// backward the sequences.
struct PersistentShape {
  Cell cell;
  int units, groups, split;
  int parts = 1;  // of 16 bits that an operand consists of: two have float32's digits, or nearly
  // Beside the states as many outputs of the layer below are multiplied, by half of `split`.
  bool stacked = false;

  constexpr int gates() const { return cell == Cell::gru ? 3 : 4; }
  constexpr int depth() const { return stacked ? 2 * units : units; }
  constexpr int owned() const { return 16 * groups; }
  constexpr int cluster() const { return units / owned(); }
  constexpr int warps() const { return groups * split; }
  constexpr int threads() const { return 32 * warps(); }
  // A warp finishes one or two pairs of units of each 8-column product that it shares.
  constexpr int products() const { return split > 2 ? split / 2 : 1; }
  constexpr int columns() const { return 8 * products(); }
  constexpr int items() const { return 2 * products() / split; }

  static constexpr int kPair = 8;  // bytes of two floats
  static constexpr int kMostTiles = 8;
  static constexpr int kBarriers = 128;                      // bytes: two mbarriers a tile
  static constexpr int kForwardRing = 4, kBackwardRing = 3;  // slots
  constexpr int pairs() const { return items() * threads() * kPair; }

  // Forward.
  constexpr int state_pitch() const { return 2 * parts * units + 16; }
  constexpr int constants() const { return (4 + depth() / units * gates()) * owned() * 4; }
  constexpr int ring() const { return kForwardRing * gates() * pairs(); }
  constexpr int partials() const {
    return split > 1 ? 2 * warps() * 2 * products() * gates() * 32 * kPair : 0;
  }
  // Backward. `received`: of all blocks' parts of a tile.
  static constexpr int kSaved = 5;
  constexpr int gradient_pitch() const { return 2 * parts * gates() * owned() + 16; }
  constexpr int received() const { return cluster() * groups * products() * 32 * 16; }
  constexpr int backward_bytes(int tiles, int element) const {
    const int saved = kSaved * items() * threads() * 2 * element;
    return kBarriers + 4 * units + columns() * gradient_pitch() +
           kBackwardRing * (saved + (cell == Cell::lstm ? pairs() : 0)) +
           tiles * (2 * pairs() + 8 * groups * columns() + 2 * received());
  }

  // Beside forward's: the input's weights, where the kernel multiplies them.
  constexpr int input_bytes(int64_t I) const { return int(4 * I) * gates() * owned(); }
  // Beside either: whose lengths differ are 16 bytes each.
  constexpr int columns_bytes(int tiles) const { return 16 * columns() * tiles; }

  constexpr int forward_bytes(int tiles) const {
    return kBarriers + constants() + ring() + partials() +
           tiles * (pairs() + 2 * columns() * state_pitch());
  }
};

// So few features are multiplied in the kernel, each time exactly, in float32: the input is read in
// the place of pre-activations that a product of its own would write.
constexpr int64_t kFewFeaturesOfKernel = 8;

// Groups, or clusters, of a direction that B sequences take.
inline int64_t groups_of(int64_t B, int sequences) { return (B + sequences - 1) / sequences; }

// Floats of scratch: a direction's recurrent weights in parts of 16 bits, and a number for each
// row.
constexpr int64_t packed_size(int gates, int units, int parts) {
  return parts ? int64_t(gates) * units * (parts * units / 2 + 1) : 0;
}

// Floats through which layers that walk at the same time give their states to the next one: a place
// for every step; and four of which one counts clusters.
inline int64_t stack_exchange_size(int units, int sequences, int layers, int64_t T, int64_t B) {
  const int64_t rows = groups_of(B, sequences) * sequences;
  return (layers - 1) * T * rows * units / 2 + 4;
}

constexpr PersistentShape kPersistentShapes[] = {
    {Cell::gru, 64, 4, 1},   {Cell::gru, 128, 8, 1},  {Cell::gru, 256, 8, 1},
    {Cell::gru, 256, 2, 2},  {Cell::gru, 384, 4, 2},  {Cell::gru, 512, 4, 2},
    {Cell::lstm, 64, 4, 1},  {Cell::lstm, 128, 8, 1}, {Cell::lstm, 256, 4, 2},
    {Cell::lstm, 512, 2, 4},
};

// Of strict float32.
constexpr PersistentShape kSplitShapes[] = {
    {Cell::gru, 64, 4, 1, 2},  {Cell::gru, 128, 4, 2, 2},  {Cell::gru, 256, 4, 2, 2},
    {Cell::lstm, 64, 4, 1, 2}, {Cell::lstm, 128, 4, 2, 2}, {Cell::lstm, 256, 2, 4, 2},
};

constexpr int kMostStacked = 4;  // layers that walk at the same time
constexpr PersistentShape kStackedShapes[] = {
    {Cell::gru, 64, 4, 2, 1, true},   {Cell::gru, 128, 4, 2, 1, true},
    {Cell::gru, 256, 2, 4, 1, true},  {Cell::lstm, 64, 4, 2, 1, true},
    {Cell::lstm, 128, 4, 2, 1, true}, {Cell::lstm, 256, 2, 4, 1, true},
};

}  // namespace gatedrnn
