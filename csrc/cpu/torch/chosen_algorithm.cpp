// Tells which algorithm computes an operator of a convolution, without computing it.
#include <torch/csrc/stable/library.h>

#include <iterator>
#include <tuple>

#include "cpu/algorithm.h"
#include "cpu/torch/boundary.h"

namespace convbp {
namespace {

// Names in the order of Algorithm and of Operator.
constexpr const char* kAlgorithms[] = {"reference", "direct",    "depthwise",
                                       "grouped",   "pointwise", "winograd"};
constexpr const char* kOperators[] = {"forward", "input_grad", "weight_grad"};

Operator operator_of(const std::string& name) {
  for (size_t i = 0; i < std::size(kOperators); ++i)
    if (name == kOperators[i]) return static_cast<Operator>(i);
  fail("operator: expected \"forward\", \"input_grad\" or \"weight_grad\", but got \"", name, '"');
}

std::tuple<std::string, double> chosen_algorithm(const std::string& operator_name,
                                                 const Tensor& input, const Tensor& weight,
                                                 const Ints& stride, const Ints& padding,
                                                 const Ints& dilation, int64_t groups) {
  const Operator op = operator_of(operator_name);
  check_tensors("chosen_algorithm", {{"input", input}, {"weight", weight}});
  const Ints input_size = sizes_of(input), weight_size = sizes_of(weight);
  const ConvProblem p = check_conv2d(input_size, weight_size, stride, padding, dilation, groups,
                                     input.element_size());
  // Delta has the output's format, and the input's gradient has delta's.
  const MemoryFormat format = result_format(std::nullopt, input, weight);
  const Ints output = strides_of({p.batch, weight_size[0], p.out_size[0], p.out_size[1]}, format);
  const Ints input_grad = strides_of(input_size, format);
  Algorithm algorithm{};
  dispatch_type(input, [&](auto element) {
    using T = decltype(element);
    const bool backward = op == Operator::kInputGrad;
    const auto source = view<const T>(input);
    algorithm = choose_algorithm(p, op, element_of<T>(), backward ? output.data() : source.stride,
                                 backward ? input_grad.data() : output.data());
  });
  // The reference goes by the name under which it was asked for.
  const std::string name = algorithm == Algorithm::kReference
                               ? algorithm_setting()
                               : kAlgorithms[static_cast<int>(algorithm)];
  return {name, multiply_adds(p, op, algorithm)};
}

}  // namespace
}  // namespace convbp

STABLE_TORCH_LIBRARY_IMPL(torch_convbp, CompositeExplicitAutograd, m) {
  m.impl("_cpu_chosen_algorithm", TORCH_BOX(&convbp::chosen_algorithm));
}
