#pragma once

#include <cstdint>

namespace convbp::sanitize {
extern int64_t threads;  // that a kernel is given
}
