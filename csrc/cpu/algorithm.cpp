#include "algorithm.h"

#include <atomic>
#include <iterator>
#include <stdexcept>

#include "depthwise.h"
#include "pointwise.h"
#include "winograd.h"

namespace convbp {
namespace {

constexpr const char* kNames[] = {"auto", "direct", "winograd", "plain"};
enum Setting { kAuto, kDirectOnly, kWinogradWherePossible, kPlainOnly };
std::atomic<int> setting{kAuto};

}  // namespace

void set_algorithm(const std::string& name) {
  for (int i = 0; i < static_cast<int>(std::size(kNames)); ++i)
    if (name == kNames[i]) {
      setting = i;
      return;
    }
  throw std::runtime_error(
      "conv_algorithm: expected \"auto\", \"direct\", \"winograd\" or \"plain\", but got \"" + name +
      "\"");
}

std::string algorithm_setting() {
  return kNames[setting];
}

bool plain_only() {
  return setting == kPlainOnly;
}

Algorithm choose_algorithm(const ConvProblem& p, Operator op, Element element,
                           const int64_t* source_stride, const int64_t* result_stride) {
  const int now = setting;
  if (now == kPlainOnly) return Algorithm::kPlain;
  if (op != Operator::kWeightGrad && element != Element::kHalf &&
      depthwise::takes(p, source_stride, result_stride))
    return Algorithm::kDepthwise;
  if (element != Element::kHalf && pointwise::takes(p, source_stride, result_stride))
    return Algorithm::kPointwise;
  if (now == kDirectOnly || element == Element::kFloat64 || !winograd::takes(p))
    return Algorithm::kDirect;
  return now == kWinogradWherePossible || winograd::pays(p, op) ? Algorithm::kWinograd
                                                               : Algorithm::kDirect;
}

}  // namespace convbp
