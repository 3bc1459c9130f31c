// Which results go past the caches (stream.h): those that would not stay there until they are read.
#pragma once

#include <cstdint>

#include "../conv_problem.h"

namespace convbp {

constexpr int64_t kStreamedBytes = 8 * 1024 * 1024;
constexpr int64_t kLineBytes = 64;

// A result of so many bytes, whose rows begin at `data` and are `row_bytes` apart: a large one of
// whole lines. Its elements have the same bits either way.
inline bool goes_past_caches(int64_t bytes, const void* data, int64_t row_bytes) {
  return bytes >= kStreamedBytes && row_bytes % kLineBytes == 0 &&
         reinterpret_cast<uintptr_t>(data) % kLineBytes == 0;
}

}  // namespace convbp
