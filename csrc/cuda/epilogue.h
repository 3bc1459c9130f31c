// What happens to a finished sum before it is stored: bias and g (L2). On the GPU an activation is
// the number of its row: every thread takes the same branch.
#pragma once

#include "../activation.h"
#include "../element.h"

namespace convbp {

namespace activation {

template <typename A>
struct Activation {
  int row = -1;  // none: g is the identity
  A parameters[kMostParameters] = {};

  CONVBP_BOTH A value(A p) const { return value_in(p, All{}); }
  // From what the row says is kept, g's output or its input.
  CONVBP_BOTH A error_signal(A grad, A kept) const { return error_signal_in(grad, kept, All{}); }

 private:
  template <typename... Rows>
  CONVBP_BOTH A value_in(A p, Table<Rows...>) const {
    int i = 0;
    A result = p;
    (void)((row == i++ && (result = Rows::template value<A>(p, parameters), true)) || ...);
    return result;
  }
  template <typename... Rows>
  CONVBP_BOTH A error_signal_in(A grad, A kept, Table<Rows...>) const {
    int i = 0;
    A result = grad;
    (void)((row == i++ &&
            (result = Rows::template error_signal<A>(grad, kept, parameters), true)) ||
           ...);
    return result;
  }
};

}  // namespace activation

template <typename T>
struct Epilogue {
  const T* bias = nullptr;  // one a result channel, or null
  // p = sum + bias, where it is to be kept: a tensor with the strides of the result, or null.
  T* pre_activation = nullptr;
  activation::Activation<Accumulator<T>> activation;

  // Finishes the sum of channel o, whose result lies `offset` elements into the output.
  CONVBP_BOTH T finish(Accumulator<T> sum, int64_t o, int64_t offset) const {
    if (bias) sum += static_cast<Accumulator<T>>(bias[o]);
    if (pre_activation) pre_activation[offset] = static_cast<T>(sum);
    return static_cast<T>(activation.value(sum));
  }
};

}  // namespace convbp
