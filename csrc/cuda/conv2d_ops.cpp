// The convolution operators on the GPU.
#include "algorithm.h"
#include "boundary.h"
#include "depthwise.h"
#include "implicit_gemm.h"
#include "plain.h"
#include "tf32.h"

namespace convbp::backend {
namespace {

template <typename T>
cuda::gemm::Options options() {
  return {std::is_same_v<T, float> && cuda::tf32_allowed()};
}

}  // namespace

using cuda::Algorithm;

template <typename T>
void conv2d(const ConvProblem& p, View<const T> input, View<const T> weight,
            const Epilogue<T>& epilogue, View<T> output) {
  TorchContext context;
  switch (cuda::algorithm_for(p)) {
    case Algorithm::kPlain:
      return cuda::plain::conv2d<T>(context, p, input, weight, epilogue, output);
    case Algorithm::kDepthwise:
      return cuda::depthwise::conv2d<T>(context, p, input, weight, epilogue, output);
    case Algorithm::kImplicitGemm:
      return cuda::gemm::conv2d<T>(context, p, input, weight, epilogue, output, options<T>());
  }
}

template <typename T>
void conv2d_input_grad(const ConvProblem& p, View<const T> weight, View<const T> delta,
                       View<T> input_grad) {
  TorchContext context;
  switch (cuda::algorithm_for(p)) {
    case Algorithm::kPlain:
      return cuda::plain::conv2d_input_grad<T>(context, p, weight, delta, input_grad);
    case Algorithm::kDepthwise:
      return cuda::depthwise::conv2d_input_grad<T>(context, p, weight, delta, input_grad);
    case Algorithm::kImplicitGemm:
      return cuda::gemm::conv2d_input_grad<T>(context, p, weight, delta, input_grad, options<T>());
  }
}

template <typename T>
void conv2d_weight_grad(const ConvProblem& p, View<const T> input, View<const T> delta,
                        View<T> weight_grad, T* bias_grad) {
  TorchContext context;
  switch (cuda::algorithm_for(p)) {
    case Algorithm::kPlain:
      return cuda::plain::conv2d_weight_grad<T>(context, p, input, delta, weight_grad, bias_grad);
    case Algorithm::kDepthwise:
      return cuda::depthwise::conv2d_weight_grad<T>(context, p, input, delta, weight_grad,
                                                    bias_grad);
    case Algorithm::kImplicitGemm:
      return cuda::gemm::conv2d_weight_grad<T>(context, p, input, delta, weight_grad, bias_grad,
                                               options<T>());
  }
}

}  // namespace convbp::backend

#include "../conv2d_ops.h"

CONVBP_REGISTER_CONVOLUTIONS(CUDA)
