// Written by python -m benchmarks.plan_table; nothing has been measured yet.
#pragma once

#include <array>

#include "measured.h"

namespace gatedrnn {

// clang-format off
constexpr std::array<Measurement, 0> kMeasured = {{
}};
// clang-format on

}  // namespace gatedrnn
