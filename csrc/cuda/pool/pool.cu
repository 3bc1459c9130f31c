// Starts the pooling kernels.
#include "cuda/pool/pool.h"

#include "cuda/element_types.h"
#include "cuda/pool/pool.cuh"

namespace convbp::cuda::pool {
namespace {

template <typename T>
Positions positions_of(const PoolProblem& p, const int64_t (&size)[2], const View<T>& result) {
  return {{p.batch, p.channels, size[0], size[1]}, channels_innermost(result.stride)};
}

}  // namespace

template <typename T, typename Offset>
void max_pool2d(Context& context, const PoolProblem& p, View<const T> input, View<T> output,
                View<Offset> offset) {
  const Positions positions = positions_of(p, p.out_size, output);
  launch(context, "max_pool2d", kernels::max_pool2d<T, Offset>,
         blocks_for(positions.count, context), kThreads, 0, p, input, output, offset, positions);
}

template <typename T, typename Offset>
void max_pool2d_input_grad(Context& context, const PoolProblem& p, View<const T> delta,
                           View<const Offset> offset, View<T> input_grad) {
  const Positions positions = positions_of(p, p.in_size, input_grad);
  launch(context, "max_pool2d_input_grad", kernels::max_pool2d_input_grad<T, Offset>,
         blocks_for(positions.count, context), kThreads, 0, p, delta, offset, input_grad,
         positions);
}

template <typename T, typename Offset>
void max_pool2d_gather(Context& context, const PoolProblem& p, View<const T> input,
                       View<const Offset> offset, View<T> output) {
  const Positions positions = positions_of(p, p.out_size, output);
  launch(context, "max_pool2d_gather", kernels::max_pool2d_gather<T, Offset>,
         blocks_for(positions.count, context), kThreads, 0, p, input, offset, output, positions);
}

template <typename T>
void avg_pool2d(Context& context, const PoolProblem& p, View<const T> input, View<T> output) {
  const Positions positions = positions_of(p, p.out_size, output);
  launch(context, "avg_pool2d", kernels::avg_pool2d<T>, blocks_for(positions.count, context),
         kThreads, 0, p, input, output, positions);
}

template <typename T>
void avg_pool2d_input_grad(Context& context, const PoolProblem& p, View<const T> delta,
                           View<T> input_grad) {
  const Positions positions = positions_of(p, p.in_size, input_grad);
  launch(context, "avg_pool2d_input_grad", kernels::avg_pool2d_input_grad<T>,
         blocks_for(positions.count, context), kThreads, 0, p, delta, input_grad, positions);
}

#define INSTANTIATE_MAX(T, Offset)                                                                 \
  template void max_pool2d(Context&, const PoolProblem&, View<const T>, View<T>, View<Offset>);    \
  template void max_pool2d_input_grad(Context&, const PoolProblem&, View<const T>,                 \
                                      View<const Offset>, View<T>);                                \
  template void max_pool2d_gather(Context&, const PoolProblem&, View<const T>, View<const Offset>, \
                                  View<T>);
#define INSTANTIATE(T)                                                            \
  INSTANTIATE_MAX(T, uint8_t)                                                     \
  INSTANTIATE_MAX(T, uint32_t)                                                    \
  template void avg_pool2d(Context&, const PoolProblem&, View<const T>, View<T>); \
  template void avg_pool2d_input_grad(Context&, const PoolProblem&, View<const T>, View<T>);
CONVBP_FOR_EACH_ELEMENT(INSTANTIATE)

}  // namespace convbp::cuda::pool
