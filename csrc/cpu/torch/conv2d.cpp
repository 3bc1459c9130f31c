// The convolution operators on the CPU: each problem's algorithm, behind the boundary that all
// backends share.
#include "cpu/algorithm.h"
#include "cpu/depthwise/depthwise.h"
#include "cpu/direct/direct.h"
#include "cpu/epilogue.h"
#include "cpu/grouped/grouped.h"
#include "cpu/pointwise/pointwise.h"
#include "cpu/reference/conv2d.h"
#include "cpu/torch/boundary.h"
#include "cpu/winograd/winograd.h"

namespace convbp {

namespace {

// Runs an operator of the algorithm that was chosen, each for the element types that it is compiled
// for.
#define CONVBP_IN_ALGORITHM(T, chosen, ...)                        \
  switch (chosen) {                                                \
    case Algorithm::kPlain:                                        \
      return plain::__VA_ARGS__;                                   \
    case Algorithm::kDirect:                                       \
      return direct::__VA_ARGS__;                                  \
    case Algorithm::kDepthwise:                                    \
      if constexpr (sizeof(T) >= 4) return depthwise::__VA_ARGS__; \
      break;                                                       \
    case Algorithm::kGrouped:                                      \
      if constexpr (sizeof(T) >= 4) return grouped::__VA_ARGS__;   \
      break;                                                       \
    case Algorithm::kPointwise:                                    \
      if constexpr (sizeof(T) >= 4) return pointwise::__VA_ARGS__; \
      break;                                                       \
    case Algorithm::kWinograd:                                     \
      if constexpr (sizeof(T) <= 4) return winograd::__VA_ARGS__;  \
      break;                                                       \
  }

}  // namespace

namespace backend {

template <typename T>
void conv2d(const ConvProblem& p, View<const T> input, View<const T> weight,
            const Epilogue<T>& epilogue, View<T> output) {
  CONVBP_IN_ALGORITHM(
      T, choose_algorithm(p, Operator::kForward, element_of<T>(), input.stride, output.stride),
      conv2d<T>(p, input, weight, epilogue, output));
}

template <typename T>
void conv2d_input_grad(const ConvProblem& p, View<const T> weight, View<const T> delta,
                       View<T> input_grad) {
  CONVBP_IN_ALGORITHM(
      T,
      choose_algorithm(p, Operator::kInputGrad, element_of<T>(), delta.stride, input_grad.stride),
      conv2d_input_grad<T>(p, weight, delta, input_grad));
}

template <typename T>
void conv2d_weight_grad(const ConvProblem& p, View<const T> input, View<const T> delta,
                        View<T> weight_grad, T* bias_grad) {
  CONVBP_IN_ALGORITHM(
      T, choose_algorithm(p, Operator::kWeightGrad, element_of<T>(), input.stride, delta.stride),
      conv2d_weight_grad<T>(p, input, delta, weight_grad, bias_grad));
}

}  // namespace backend
}  // namespace convbp

#include "torch/conv2d.h"

CONVBP_REGISTER_CONVOLUTIONS(CPU)
