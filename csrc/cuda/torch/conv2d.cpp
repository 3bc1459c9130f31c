// The convolution operators on the GPU.
#include "cuda/algorithm.h"
#include "cuda/depthwise/depthwise.h"
#include "cuda/implicit_gemm/implicit_gemm.h"
#include "cuda/reference/conv2d.h"
#include "cuda/torch/boundary.h"
#include "cuda/torch/elementwise.h"
#include "cuda/torch/tf32.h"

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
    case Algorithm::kReference:
      return cuda::reference::conv2d<T>(context, p, input, weight, epilogue, output);
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
    case Algorithm::kReference:
      return cuda::reference::conv2d_input_grad<T>(context, p, weight, delta, input_grad);
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
    case Algorithm::kReference:
      return cuda::reference::conv2d_weight_grad<T>(context, p, input, delta, weight_grad,
                                                    bias_grad);
    case Algorithm::kDepthwise:
      return cuda::depthwise::conv2d_weight_grad<T>(context, p, input, delta, weight_grad,
                                                    bias_grad);
    case Algorithm::kImplicitGemm:
      return cuda::gemm::conv2d_weight_grad<T>(context, p, input, delta, weight_grad, bias_grad,
                                               options<T>());
  }
}

// L3 to L6 of a depthwise layer.
template <typename T>
void depthwise_backward(const ConvProblem& p, const cuda::depthwise::ErrorSignal<T>& signal,
                        View<const T> input, View<const T> weight, View<T> input_grad,
                        View<T> weight_grad, T* bias_grad) {
  TorchContext context;
  if (cuda::algorithm_for(p) == Algorithm::kDepthwise &&
      cuda::depthwise::backward<T>(context, p, signal, input, weight, input_grad, weight_grad,
                                   bias_grad))
    return;
  const View<const T> delta = cuda::depthwise::error_signal<T>(context, p, signal);
  if (p.batch) conv2d_input_grad<T>(p, weight, delta, input_grad);
  conv2d_weight_grad<T>(p, input, delta, weight_grad, bias_grad);
}

}  // namespace convbp::backend

#include "torch/conv2d.h"

namespace convbp {
namespace {

// One pass over memory where the layer is depthwise and the gradients of input and weight are asked
// for; L5 costs nothing there.
std::tuple<Tensor, Tensor, Tensor> backward_in_one_pass_or_several(
    const Tensor& grad, const std::optional<Tensor>& saved, const std::optional<Tensor>& input,
    const std::optional<Tensor>& weight, const Ints& input_size, const Ints& weight_size,
    const Ints& stride, const Ints& padding, const Ints& dilation, int64_t groups,
    const std::string& activation, const Doubles& parameters, bool needs_bias_grad,
    std::optional<MemoryFormat> memory_format) {
  const bool is_depthwise =
      groups > 1 && weight_size.size() == 4 && weight_size[0] == groups && weight_size[1] == 1;
  if (!is_depthwise || !input || !weight)
    return conv2d_backward(grad, saved, input, weight, input_size, weight_size, stride, padding,
                           dilation, groups, activation, parameters, needs_bias_grad,
                           memory_format);
  const ConvProblem p = check_conv2d_backward(grad, saved, input, weight, input_size, weight_size,
                                              stride, padding, dilation, groups);
  if (saved) check_activation(activation, parameters);
  const Tensor& like_delta = saved ? *saved : grad;
  const Tensor input_grad =
      new_tensor(input_size, grad, result_format(memory_format, *weight, like_delta));
  const Tensor weight_grad =
      new_tensor(weight_size, grad, result_format(memory_format, *input, like_delta));
  const Tensor bias_grad = new_tensor({weight_size[0]}, grad, MemoryFormat::Contiguous);
  dispatch(grad, [&](auto element) {
    using T = decltype(element);
    cuda::depthwise::ErrorSignal<T> signal{{}, view<const T>(grad), {}};
    if (saved) {
      signal.g = make_activation<Accumulator<T>>(activation, parameters);
      signal.saved = view<const T>(*saved);
    }
    backend::depthwise_backward<T>(p, signal, view<const T>(*input), view<const T>(*weight),
                                   view<T>(input_grad), view<T>(weight_grad),
                                   static_cast<T*>(bias_grad.mutable_data_ptr()));
  });
  return {input_grad, weight_grad, needs_bias_grad ? bias_grad : Tensor()};
}

}  // namespace
}  // namespace convbp

CONVBP_REGISTER_CONVOLUTIONS(CUDA)

STABLE_TORCH_LIBRARY_IMPL(torch_convbp, CUDA, m) {
  m.impl("conv2d_backward", TORCH_BOX(&convbp::backward_in_one_pass_or_several));
}
