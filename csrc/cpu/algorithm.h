// The one place that knows all algorithms and chooses among them.
#pragma once

#include <string>
#include <type_traits>

#include "core/conv_problem.h"
#include "cpu/operators.h"

namespace convbp {

enum class Algorithm { kReference, kDirect, kDepthwise, kGrouped, kPointwise, kWinograd };
// The element type, as far as the choice of an algorithm depends on it.
enum class Element { kFloat32, kFloat64, kHalf };

template <typename T>
constexpr Element element_of() {
  if (std::is_same_v<T, float>) return Element::kFloat32;
  return std::is_same_v<T, double> ? Element::kFloat64 : Element::kHalf;
}

// The setting torch_convbp.backends.cpu.conv_algorithm: "auto", "direct", "winograd" or
// "reference".
void set_algorithm(const std::string& name);
std::string algorithm_setting();
// True where the setting asks for the reference. Pooling has no other choice.
bool reference_only();

// The algorithm that computes this operator of this problem under the present setting, between
// tensors with these strides (of the source and the result; of the input and delta for the weight
// gradient). The choice depends on neither the batch nor the number of threads: a sample's results
// must not depend on them.
Algorithm choose_algorithm(const ConvProblem& problem, Operator op, Element element,
                           const int64_t* source_stride, const int64_t* other_stride);

// The multiplications of an operator with this algorithm; Winograd's transforms do not count.
double multiply_adds(const ConvProblem& problem, Operator op, Algorithm algorithm);

// The three operators, each by the algorithm that is chosen for it.
namespace backend {

CONVBP_DECLARE_OPERATORS

}  // namespace backend

}  // namespace convbp
