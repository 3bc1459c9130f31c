// Arithmetic of sizes.
#pragma once

#include <cstdint>

#include "core/host_device.h"

namespace convbp {

// The number of pieces of size b that cover a.
CONVBP_BOTH constexpr int64_t divide_up(int64_t a, int64_t b) {
  return (a + b - 1) / b;
}

}  // namespace convbp
