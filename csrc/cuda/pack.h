// Numbers that lie side by side and are one load or store.
#pragma once

namespace convbp::cuda {

// n numbers at an address that is a multiple of their bytes; n is a power of two, the bytes are 16
// at most.
template <typename T, int n>
struct alignas(n * sizeof(T)) Pack {
  T element[n];
};

}  // namespace convbp::cuda
