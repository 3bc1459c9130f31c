// The convolution operators on the GPU.
#include "boundary.h"
#include "plain.h"

namespace convbp::backend {

template <typename T>
void conv2d(const ConvProblem& p, View<const T> input, View<const T> weight,
            const Epilogue<T>& epilogue, View<T> output) {
  TorchContext context;
  cuda::plain::conv2d<T>(context, p, input, weight, epilogue, output);
}

template <typename T>
void conv2d_input_grad(const ConvProblem& p, View<const T> weight, View<const T> delta,
                       View<T> input_grad) {
  TorchContext context;
  cuda::plain::conv2d_input_grad<T>(context, p, weight, delta, input_grad);
}

template <typename T>
void conv2d_weight_grad(const ConvProblem& p, View<const T> input, View<const T> delta,
                        View<T> weight_grad, T* bias_grad) {
  TorchContext context;
  cuda::plain::conv2d_weight_grad<T>(context, p, input, delta, weight_grad, bias_grad);
}

}  // namespace convbp::backend

#include "../conv2d_ops.h"

CONVBP_REGISTER_CONVOLUTIONS(CUDA)
