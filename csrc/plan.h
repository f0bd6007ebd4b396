// (shape, element size, threads) -> how a layer runs on the CPU. A pure function: tests ask it
// about machines that are not there.
#pragma once

#include <cstdint>

namespace gatedrnn {

struct Problem {
  int64_t T, B, I, H, P;
  int gates;       // 3 or 4
  int directions;  // 1 or 2
  int element;     // bytes
  int threads;
};

struct Plan {
  int64_t threads;  // as many as the whole call's work can pay for
  // Threads own sequences and never meet; or they own units and meet each step.
  bool by_rows;
  int64_t block;       // by_rows: sequences that walk all T together
  int64_t parts;       // not by_rows: threads that share the units
  bool project_first;  // forward: W_ih x for all steps by one matrix product before the loop
};

Plan plan_cpu(const Problem& problem);

}  // namespace gatedrnn
