#include "cpu/algorithm.h"

#include <atomic>
#include <iterator>
#include <stdexcept>

#include "core/types.h"
#include "cpu/depthwise/depthwise.h"
#include "cpu/direct/direct.h"
#include "cpu/grouped/grouped.h"
#include "cpu/pointwise/pointwise.h"
#include "cpu/reference/conv2d.h"
#include "cpu/winograd/winograd.h"

namespace convbp {
namespace {

// "plain" is the old name of "reference".
constexpr const char* kNames[] = {"auto", "direct", "winograd", "reference", "plain"};
enum Setting { kAuto, kDirectOnly, kWinogradWherePossible, kReferenceOnly };
std::atomic<int> setting{kAuto};

}  // namespace

void set_algorithm(const std::string& name) {
  for (int i = 0; i < static_cast<int>(std::size(kNames)); ++i)
    if (name == kNames[i]) {
      setting = i;
      return;
    }
  throw std::runtime_error(
      "conv_algorithm: expected \"auto\", \"direct\", \"winograd\" or \"reference\", but got \"" +
      name + "\"");
}

std::string algorithm_setting() {
  return kNames[setting];
}

bool reference_only() {
  return setting >= kReferenceOnly;
}

Algorithm choose_algorithm(const ConvProblem& p, Operator op, Element element,
                           const int64_t* source_stride, const int64_t* other_stride) {
  const int now = setting;
  if (now >= kReferenceOnly) return Algorithm::kReference;
  if (element != Element::kHalf && depthwise::can_implement(p, source_stride, other_stride))
    return Algorithm::kDepthwise;
  const bool winograd_can = element != Element::kFloat64 && winograd::can_implement(p, op);
  if (now == kWinogradWherePossible && winograd_can) return Algorithm::kWinograd;
  if (element != Element::kHalf && grouped::is_profitable(p, element == Element::kFloat64 ? 8 : 4))
    return Algorithm::kGrouped;
  if (element != Element::kHalf && pointwise::is_profitable(p, source_stride, other_stride))
    return Algorithm::kPointwise;
  return now != kDirectOnly && winograd_can && winograd::is_profitable(p, op) ? Algorithm::kWinograd
                                                                              : Algorithm::kDirect;
}

double multiply_adds(const ConvProblem& p, Operator op, Algorithm algorithm) {
  if (algorithm == Algorithm::kWinograd) return winograd::products(p, op);
  double count = 1;  // an integer could overflow
  for (const int64_t size : {p.batch, p.groups, p.out_channels, p.in_channels, p.out_size[kHeight],
                             p.out_size[kWidth], p.kernel[kHeight], p.kernel[kWidth]})
    count *= static_cast<double>(size);
  return count;
}

// Runs an operator of the chosen algorithm, if that is compiled for the element type.
#define CONVBP_IN_ALGORITHM(T, chosen, ...)                        \
  switch (chosen) {                                                \
    case Algorithm::kReference:                                    \
      return reference::__VA_ARGS__;                               \
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

CONVBP_INSTANTIATE_OPERATORS(float)
CONVBP_INSTANTIATE_OPERATORS(double)
CONVBP_INSTANTIATE_OPERATORS(BFloat16)
CONVBP_INSTANTIATE_OPERATORS(Half)

}  // namespace backend
}  // namespace convbp
