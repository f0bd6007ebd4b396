// Which instruction set runs.
#include <cstdlib>
#include <cstring>

#include "kernels.h"

namespace gatedrnn {

#ifdef __x86_64__
namespace avx512bf16 {
extern const PairTables tables;
}
namespace avx512 {
extern const Tables tables;
}
namespace avx2 {
extern const Tables tables;
}
#endif
namespace baseline {
extern const Tables tables;
}

namespace {

#ifdef __x86_64__
bool has_avx512() {
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
         __builtin_cpu_supports("fma");
}
#endif

const InstructionSet sets[] = {
#ifdef __x86_64__
    {"avx512bf16", [] { return has_avx512() && __builtin_cpu_supports("avx512bf16"); },
     &avx512::tables, &avx512bf16::tables},
    {"avx512", has_avx512, &avx512::tables, nullptr},
    {"avx2",
     [] {
       return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
              __builtin_cpu_supports("f16c");
     },
     &avx2::tables, nullptr},
#endif
    {"baseline", [] { return true; }, &baseline::tables, nullptr},
};

const char* forced() {
  const char* name = std::getenv("GATEDRNN_CPU_ISA");
  return name && *name ? name : nullptr;
}

}  // namespace

const InstructionSet* instruction_set(const char* name) {
  for (const InstructionSet& set : sets)
    if (std::strcmp(set.name, name) == 0) return set.supported() ? &set : nullptr;
  return nullptr;
}

const char* instruction_set_error() {
  if (!forced() || instruction_set(forced())) return nullptr;
  return "GATEDRNN_CPU_ISA must name an instruction set that this machine has, of avx512bf16, "
         "avx512, "
         "avx2 and baseline";
}

const InstructionSet& instruction_set() {
  static const InstructionSet& chosen = []() -> const InstructionSet& {
    if (const char* name = forced())
      if (const InstructionSet* set = instruction_set(name)) return *set;
    for (const InstructionSet& set : sets)
      if (set.supported()) return set;
    return sets[sizeof sets / sizeof *sets - 1];
  }();
  return chosen;
}

}  // namespace gatedrnn
