// Starts the reference kernels.
#include "cuda/reference/conv2d.h"

#include "cuda/element_types.h"
#include "cuda/reference/conv2d.cuh"

namespace convbp::cuda::reference {

template <typename T>
void conv2d(Context& context, const ConvProblem& p, View<const T> input, View<const T> weight,
            const Epilogue<T>& epilogue, View<T> output) {
  const Positions positions({p.batch, p.groups * p.out_channels, p.out_size[0], p.out_size[1]},
                            channels_innermost(output.stride));
  launch(context, "conv2d", kernels::conv2d<T>, blocks_for(positions.count, context), kThreads, 0,
         p, input, weight, epilogue, output, positions);
}

template <typename T>
void conv2d_input_grad(Context& context, const ConvProblem& p, View<const T> weight,
                       View<const T> delta, View<T> input_grad) {
  const Positions positions({p.batch, p.groups * p.in_channels, p.in_size[0], p.in_size[1]},
                            channels_innermost(input_grad.stride));
  launch(context, "conv2d_input_grad", kernels::conv2d_input_grad<T>,
         blocks_for(positions.count, context), kThreads, 0, p, weight, delta, input_grad,
         positions);
}

template <typename T>
void conv2d_weight_grad(Context& context, const ConvProblem& p, View<const T> input,
                        View<const T> delta, View<T> weight_grad, T* bias_grad) {
  const int64_t filters = p.groups * p.out_channels;
  const Positions positions({filters, p.in_channels, p.kernel[0], p.kernel[1]}, false);
  launch(context, "conv2d_weight_grad", kernels::conv2d_weight_grad<T>,
         blocks_for(positions.count, context), kThreads, 0, p, input, delta, weight_grad,
         positions);
  if (bias_grad)
    launch(context, "bias_grad", kernels::bias_grad<T>, blocks_for(filters, context), kThreads, 0,
           p, delta, bias_grad);
}

#define INSTANTIATE(T)                                                                         \
  template void conv2d(Context&, const ConvProblem&, View<const T>, View<const T>,             \
                       const Epilogue<T>&, View<T>);                                           \
  template void conv2d_input_grad(Context&, const ConvProblem&, View<const T>, View<const T>,  \
                                  View<T>);                                                    \
  template void conv2d_weight_grad(Context&, const ConvProblem&, View<const T>, View<const T>, \
                                   View<T>, T*);
CONVBP_FOR_EACH_ELEMENT(INSTANTIATE)

}  // namespace convbp::cuda::reference
