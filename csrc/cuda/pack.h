// Numbers that lie side by side and are one load or store.
#pragma once

namespace convbp::cuda {

// Its address is a multiple of its bytes: n is a power of two, and they are 16 at most.
template <typename T, int n>
struct alignas(n * sizeof(T)) Pack {
  T element[n];
};

}  // namespace convbp::cuda
