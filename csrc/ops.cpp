// The operator schemas, once. Each backend's boundary file ends with its own
// registration. torch_convbp/ops.py adds fake kernels and batching rules, autograd.py derivatives.
//
// There are three operators; conv2d_weight_bias_grad is L4 and L5 in one pass over delta, and
// conv2d_activation is L1 and L2 in one pass, conv2d_activation_pair with the pre-activation
// beside its output. error_signal is L3; `kept` is the output or the pre-activation, whichever
// torch_convbp/activations.py says for that activation. linear is L7.
//
// `padding` is (top, bottom, left, right), so that padding="same" needs no copy of the
// input. `memory_format` of the gradients is that of the forward result (contiguous or
// channels_last); left out, it follows the two tensors given.
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
      "int[4] padding, int[2] dilation, int groups, *, MemoryFormat? memory_format=None) -> Tensor");
  m.def(
      "conv2d_weight_grad(Tensor input, SymInt[] weight_size, Tensor delta, int[2] stride, "
      "int[4] padding, int[2] dilation, int groups, *, MemoryFormat? memory_format=None) -> Tensor");
  m.def(
      "conv2d_weight_bias_grad(Tensor input, SymInt[] weight_size, Tensor delta, int[2] stride, "
      "int[4] padding, int[2] dilation, int groups, *, MemoryFormat? memory_format=None) "
      "-> (Tensor, Tensor)");
  m.def("activation(Tensor input, str activation, float[] parameters) -> Tensor");
  m.def("error_signal(Tensor grad, Tensor kept, str activation, float[] parameters) -> Tensor");
  m.def(
      "error_signal_bias_grad(Tensor grad, Tensor kept, str activation, float[] parameters) "
      "-> (Tensor, Tensor)");
  m.def("linear(Tensor input, Tensor weight, Tensor? bias) -> Tensor");
  m.def("_activations() -> str");
  m.def("_cpu_capability() -> str");
  m.def("_cpu_conv_algorithm() -> str");
  m.def("_set_cpu_conv_algorithm(str name) -> ()");
}
