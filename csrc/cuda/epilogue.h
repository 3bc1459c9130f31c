// The last steps before a finished sum is stored: bias and g (L2). On the GPU an activation is the
// number of its row: every thread takes the same branch.
#pragma once

#include "core/activation.h"
#include "core/host_device.h"
#include "core/types.h"
#include "cuda/pack.h"

namespace convbp {

namespace activation {

template <typename A>
struct Activation {
  int row = -1;  // none: g is the identity
  A parameters[kMostParameters] = {};

  CONVBP_BOTH A value(A p) const {
    A one[] = {p};
    apply(one);
    return one[0];
  }
  // Applies g to n numbers, for which the row is looked up only once.
  template <int n>
  CONVBP_BOTH void apply(A (&p)[n]) const {
    apply_in(p, All{});
  }
  // The error signal from the number that the row saves, g's output or its input.
  CONVBP_BOTH A error_signal(A grad, A saved) const { return error_signal_in(grad, saved, All{}); }

 private:
  template <int n, typename... Rows>
  CONVBP_BOTH void apply_in(A (&p)[n], Table<Rows...>) const {
    int i = 0;
    (void)((row == i++ && (apply_row<Rows>(p), true)) || ...);
  }
  template <typename Row, int n>
  CONVBP_BOTH void apply_row(A (&p)[n]) const {
    CONVBP_UNROLL
    for (A& number : p) number = Row::template value<A>(number, parameters);
  }
  template <typename... Rows>
  CONVBP_BOTH A error_signal_in(A grad, A saved, Table<Rows...>) const {
    int i = 0;
    A result = grad;
    (void)((row == i++ &&
            (result = Rows::template error_signal<A>(grad, saved, parameters), true)) ||
           ...);
    return result;
  }
};

}  // namespace activation

// L3, rounded to the element type: so it is stored, and so L4 to L6 take it.
template <typename T, typename A, typename U>
CONVBP_BOTH T delta_of(const activation::Activation<A>& g, U grad, U saved) {
  return static_cast<T>(g.error_signal(static_cast<A>(grad), static_cast<A>(saved)));
}

template <typename T>
struct Epilogue {
  const T* bias = nullptr;  // one per result channel, or null
  // The tensor for p = sum + bias, with the strides of the result, or null.
  T* pre_activation = nullptr;
  activation::Activation<Accumulator<T>> activation;

  // Finishes the sum of channel o, whose result lies `offset` elements into the output.
  CONVBP_BOTH T finish(Accumulator<T> sum, int64_t o, int64_t offset) const {
    Accumulator<T> one[] = {sum};
    finish_all(one, o, false, offset);
    return static_cast<T>(one[0]);
  }
  // Finishes, in their place, n sums whose results lie side by side: of channels o, o + 1, ..., or
  // all of channel o. Addresses at which n elements are read or written are multiples of their
  // bytes.
  template <int n>
  CONVBP_BOTH void finish_all(Accumulator<T> (&sum)[n], int64_t o, bool channels,
                              int64_t offset) const {
    if (bias && channels) {
      const auto biases = *reinterpret_cast<const cuda::Pack<T, n>*>(bias + o);
      CONVBP_UNROLL
      for (int i = 0; i < n; ++i) sum[i] += static_cast<Accumulator<T>>(biases.element[i]);
    } else if (bias) {
      const auto one = static_cast<Accumulator<T>>(bias[o]);
      CONVBP_UNROLL
      for (int i = 0; i < n; ++i) sum[i] += one;
    }
    if (pre_activation) store(sum, pre_activation + offset);
    activation.apply(sum);
  }
  template <int n>
  CONVBP_BOTH static void store(const Accumulator<T> (&values)[n], T* to) {
    cuda::Pack<T, n> all;
    CONVBP_UNROLL
    for (int i = 0; i < n; ++i) all.element[i] = static_cast<T>(values[i]);
    *reinterpret_cast<cuda::Pack<T, n>*>(to) = all;
  }
};

}  // namespace convbp
