// The last steps before a finished sum is stored: bias and g (L2).
#pragma once

#include "core/types.h"
#include "cpu/activation.h"

namespace convbp {

template <typename T>
struct Epilogue {
  const T* bias = nullptr;  // one per result channel, or null
  // The tensor for p = sum + bias, with the strides of the result, or null.
  T* pre_activation = nullptr;
  activation::Activation<Accumulator<T>> activation;
};

}  // namespace convbp
