// The pooling operators on the GPU.
#include "cuda/pool/pool.h"
#include "cuda/torch/boundary.h"

namespace convbp::pool {

template <typename T, typename Offset>
void max_pool2d(const PoolProblem& p, View<const T> input, View<T> output, View<Offset> offset) {
  TorchContext context;
  cuda::pool::max_pool2d<T, Offset>(context, p, input, output, offset);
}

template <typename T, typename Offset>
void max_pool2d_input_grad(const PoolProblem& p, View<const T> delta, View<const Offset> offset,
                           View<T> input_grad) {
  TorchContext context;
  cuda::pool::max_pool2d_input_grad<T, Offset>(context, p, delta, offset, input_grad);
}

template <typename T, typename Offset>
void max_pool2d_gather(const PoolProblem& p, View<const T> input, View<const Offset> offset,
                       View<T> output) {
  TorchContext context;
  cuda::pool::max_pool2d_gather<T, Offset>(context, p, input, offset, output);
}

template <typename T>
void avg_pool2d(const PoolProblem& p, View<const T> input, View<T> output) {
  TorchContext context;
  cuda::pool::avg_pool2d<T>(context, p, input, output);
}

template <typename T>
void avg_pool2d_input_grad(const PoolProblem& p, View<const T> delta, View<T> input_grad) {
  TorchContext context;
  cuda::pool::avg_pool2d_input_grad<T>(context, p, delta, input_grad);
}

}  // namespace convbp::pool

#include "torch/pool2d.h"

CONVBP_REGISTER_POOLS(CUDA)
