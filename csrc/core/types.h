// Element types, and the type of their sums.
#pragma once

#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <type_traits>

namespace convbp {

using BFloat16 = c10::BFloat16;
using Half = c10::Half;

template <typename T>
using Accumulator = std::conditional_t<std::is_same_v<T, double>, double, float>;

template <typename Acc, typename T>
inline Acc load(T value) {
  return static_cast<Acc>(value);
}

template <typename T, typename Acc>
inline T store(Acc value) {
  return static_cast<T>(value);
}

}  // namespace convbp
