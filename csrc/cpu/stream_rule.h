// The rule for results that are stored past the caches (simd/stream.h). Their elements have the
// same bits either way.
#pragma once

#include <cstdint>

namespace convbp {

constexpr int64_t kLineBytes = 64;

// True for a result of so many bytes that it has left the caches before the next layer, or the
// backward pass, begins to read it.
inline bool should_stream(int64_t bytes) {
  return bytes >= 8 * 1024 * 1024;
}

// True where each pixel, whose channels are neighbours, is a number of whole cache lines. A null
// pointer counts as aligned: nothing is written there.
template <typename T>
bool has_whole_lines(const T* data, const int64_t* stride, int64_t channels) {
  constexpr int64_t kCount = kLineBytes / sizeof(T);
  return reinterpret_cast<uintptr_t>(data) % kLineBytes == 0 && channels % kCount == 0 &&
         stride[0] % kCount == 0 && stride[2] % kCount == 0 && stride[3] % kCount == 0;
}

}  // namespace convbp
