// Starts the element-wise kernels.
#include "cuda/elementwise/elementwise.h"

#include "core/integers.h"
#include "cuda/element_types.h"
#include "cuda/elementwise/elementwise.cuh"

namespace convbp::cuda {

template <typename T>
void activate(Context& context, const activation::Activation<Accumulator<T>>& g, const T* input,
              T* output, int64_t count) {
  launch(context, "activation", kernels::activate<T>, blocks_for(count, context), kThreads, 0, g,
         input, output, count);
}

template <typename T>
void error_signal(Context& context, const activation::Activation<Accumulator<T>>& g, const T* grad,
                  const T* saved, T* delta, int64_t count) {
  launch(context, "error_signal", kernels::error_signal<T>, blocks_for(count, context), kThreads, 0,
         g, grad, saved, delta, count);
}

template <typename T>
void error_signal_bias_grad(Context& context, const activation::Activation<Accumulator<T>>& g,
                            const T* grad, const T* saved, T* delta, const Channels& size,
                            T* bias_grad) {
  using A = Accumulator<T>;
  using kernels::Sums;
  const bool channels_innermost = size.inner == 1;
  const int64_t rows =
      channels_innermost ? size.outer : divide_up(size.outer * size.inner, Sums::kColumns);
  Sums s{size, 256, 0};  // 256 rows a split
  constexpr int64_t kMostSplits = 1024;
  while ((s.splits = divide_up(rows, s.rows)) > kMostSplits) s.rows *= 2;
  A* const partial = static_cast<A*>(context.scratch(s.splits * size.channels * sizeof(A)));
  const int64_t columns =
      channels_innermost ? divide_up(size.channels, Sums::kColumns) : size.channels;
  if (s.splits > 0)
    launch(context, "error_signal_bias_grad",
           channels_innermost ? kernels::error_signal_columns<T> : kernels::error_signal_nchw<T>,
           dim3(columns, s.splits), dim3(Sums::kColumns, Sums::kRows),
           Sums::kColumns * Sums::kRows * sizeof(A), g, grad, saved, delta, s, partial);
  launch(context, "bias_grad", kernels::sum_of_splits<T>, blocks_for(size.channels, context),
         kThreads, 0, partial, s.splits, size.channels, bias_grad);
}

#define INSTANTIATE(T)                                                                          \
  template void activate(Context&, const activation::Activation<Accumulator<T>>&, const T*, T*, \
                         int64_t);                                                              \
  template void error_signal(Context&, const activation::Activation<Accumulator<T>>&, const T*, \
                             const T*, T*, int64_t);                                            \
  template void error_signal_bias_grad(Context&, const activation::Activation<Accumulator<T>>&, \
                                       const T*, const T*, T*, const Channels&, T*);
CONVBP_FOR_EACH_ELEMENT(INSTANTIATE)

}  // namespace convbp::cuda
