// The operator schemas, once. Each backend registers its kernels at the end of its own files.
// torch_convbp/ops/ adds fake kernels and batching rules, autograd/ derivatives.
//
// Three operators are the convolution: conv2d (L1), conv2d_input_grad (L6) and conv2d_weight_grad
// (L4). Others do several things in one pass: conv2d_weight_bias_grad L4 and L5, conv2d_activation
// L1 and L2, conv2d_activation_pair the same with the pre-activation beside its output,
// error_signal_bias_grad L3 and L5, conv2d_backward L3 to L6: a layer's whole backward pass. Without
// an activation it has no `saved`, delta is grad, and `activation` is not looked at. It computes the
// gradient of the input where it gets the weight, that of the weight where it gets the input, that
// of the bias where it is asked to; the others are undefined tensors, None in Python.
//
// activation is L2's g alone. error_signal is L3; `saved` is the output or the pre-activation,
// whichever torch_convbp/activations.py says for that activation. linear is L7.
//
// The pools are L8. max_pool2d gives its output and, for each element of the output, the offset in
// its window of the input element that won. max_pool2d_input_grad is the linear map that these
// offsets define, max_pool2d_gather its transpose: each is the derivative of the other. So are
// avg_pool2d and avg_pool2d_input_grad.
//
// `padding` is (top, bottom, left, right), so that padding="same" needs no copy of the input.
// `memory_format` of the gradients is that of the forward result (contiguous or channels_last);
// left out, it follows the two tensors given. Operators with an underscore are for
// torch_convbp/backends.py and the tests.
#include <torch/csrc/stable/library.h>

STABLE_TORCH_LIBRARY(torch_convbp, m) {
  m.def(
      "conv2d(Tensor input, Tensor weight, Tensor? bias, int[2] stride, int[4] padding, "
      "int[2] dilation, int groups) -> Tensor");
  m.def(
      "conv2d_activation(Tensor input, Tensor weight, Tensor? bias, int[2] stride, "
      "int[4] padding, int[2] dilation, int groups, str activation, float[] parameters) "
      "-> Tensor");
  m.def(
      "conv2d_activation_pair(Tensor input, Tensor weight, Tensor? bias, int[2] stride, "
      "int[4] padding, int[2] dilation, int groups, str activation, float[] parameters) "
      "-> (Tensor, Tensor)");
  m.def(
      "conv2d_input_grad(SymInt[] input_size, Tensor weight, Tensor delta, int[2] stride, "
      "int[4] padding, int[2] dilation, int groups, *, MemoryFormat? memory_format=None) -> "
      "Tensor");
  m.def(
      "conv2d_weight_grad(Tensor input, SymInt[] weight_size, Tensor delta, int[2] stride, "
      "int[4] padding, int[2] dilation, int groups, *, MemoryFormat? memory_format=None) -> "
      "Tensor");
  m.def(
      "conv2d_weight_bias_grad(Tensor input, SymInt[] weight_size, Tensor delta, int[2] stride, "
      "int[4] padding, int[2] dilation, int groups, *, MemoryFormat? memory_format=None) "
      "-> (Tensor, Tensor)");
  m.def("activation(Tensor input, str activation, float[] parameters) -> Tensor");
  m.def("error_signal(Tensor grad, Tensor saved, str activation, float[] parameters) -> Tensor");
  m.def(
      "error_signal_bias_grad(Tensor grad, Tensor saved, str activation, float[] parameters) "
      "-> (Tensor, Tensor)");
  m.def(
      "conv2d_backward(Tensor grad, Tensor? saved, Tensor? input, Tensor? weight, "
      "SymInt[] input_size, SymInt[] weight_size, int[2] stride, int[4] padding, int[2] dilation, "
      "int groups, str activation, float[] parameters, bool needs_bias_grad, *, "
      "MemoryFormat? memory_format=None) -> (Tensor, Tensor, Tensor)");
  m.def("linear(Tensor input, Tensor weight, Tensor? bias) -> Tensor");
  m.def(
      "max_pool2d(Tensor input, int[2] kernel_size, int[2] stride, int[2] padding, "
      "int[2] dilation, bool ceil_mode) -> (Tensor output, Tensor offset)");
  m.def(
      "max_pool2d_input_grad(SymInt[] input_size, Tensor delta, Tensor offset, "
      "int[2] kernel_size, int[2] stride, int[2] padding, int[2] dilation, bool ceil_mode, *, "
      "MemoryFormat? memory_format=None) -> Tensor");
  m.def(
      "max_pool2d_gather(Tensor input, Tensor offset, int[2] kernel_size, int[2] stride, "
      "int[2] padding, int[2] dilation, bool ceil_mode) -> Tensor");
  m.def(
      "avg_pool2d(Tensor input, int[2] kernel_size, int[2] stride, int[2] padding, "
      "bool ceil_mode, bool count_include_pad, int? divisor_override) -> Tensor");
  m.def(
      "avg_pool2d_input_grad(SymInt[] input_size, Tensor delta, int[2] kernel_size, "
      "int[2] stride, int[2] padding, bool ceil_mode, bool count_include_pad, "
      "int? divisor_override, *, MemoryFormat? memory_format=None) -> Tensor");
  m.def("_activations() -> str");
  m.def("_cpu_capability() -> str");
  m.def("_cpu_conv_algorithm() -> str");
  m.def("_set_cpu_conv_algorithm(str name) -> ()");
  m.def(
      "_cpu_chosen_algorithm(str operator, Tensor input, Tensor weight, int[2] stride, "
      "int[4] padding, int[2] dilation, int groups) -> (str name, float multiply_adds)");
  m.def("_cuda_conv_algorithm() -> str");
  m.def("_set_cuda_conv_algorithm(str name) -> ()");
  m.def("_allow_tf32() -> bool");
  m.def("_cuda_tf32() -> bool");
}
