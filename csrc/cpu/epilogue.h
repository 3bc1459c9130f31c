// What happens to a finished sum before it is stored: bias and g (L2).
#pragma once

#include "core/types.h"
#include "cpu/activation.h"

namespace convbp {

template <typename T>
struct Epilogue {
  const T* bias = nullptr;  // one a result channel, or null
  // p = sum + bias, where it is to be kept: a tensor with the strides of the result, or null.
  T* pre_activation = nullptr;
  activation::Activation<Accumulator<T>> activation;
};

}  // namespace convbp
