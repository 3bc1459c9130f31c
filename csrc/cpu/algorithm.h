// The one place where an algorithm is chosen, and which knows them all.
#pragma once

#include <string>
#include <type_traits>

#include "core/conv_problem.h"
#include "cpu/operators.h"

namespace convbp {

enum class Algorithm { kReference, kDirect, kDepthwise, kGrouped, kPointwise, kWinograd };
// The type of the elements, where an algorithm's choice looks at it.
enum class Element { kFloat32, kFloat64, kHalf };

template <typename T>
constexpr Element element_of() {
  if (std::is_same_v<T, float>) return Element::kFloat32;
  return std::is_same_v<T, double> ? Element::kFloat64 : Element::kHalf;
}

// What torch_convbp.backends.cpu.conv_algorithm says: "auto", "direct", "winograd" or "reference".
void set_algorithm(const std::string& name);
std::string algorithm_setting();
// Does it ask for the reference? Pooling knows no other choice.
bool reference_only();

// The algorithm that computes this operator of this problem under the present setting, between
// tensors with these strides (of the source and the result; of the input and delta for the weight
// gradient). Neither the batch nor the number of threads has a say: a sample's results must not
// depend on them.
Algorithm choose_algorithm(const ConvProblem& problem, Operator op, Element element,
                           const int64_t* source_stride, const int64_t* other_stride);

// The multiplications of an operator, computed so; those of Winograd's transforms are not counted.
double multiply_adds(const ConvProblem& problem, Operator op, Algorithm algorithm);

// The three operators, by the algorithm that is chosen.
namespace backend {

CONVBP_DECLARE_OPERATORS

}  // namespace backend

}  // namespace convbp
