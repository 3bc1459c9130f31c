#include "cpu/algorithm.h"

#include <atomic>
#include <iterator>
#include <stdexcept>

#include "cpu/depthwise/depthwise.h"
#include "cpu/grouped/grouped.h"
#include "cpu/pointwise/pointwise.h"
#include "cpu/winograd/winograd.h"

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
      "conv_algorithm: expected \"auto\", \"direct\", \"winograd\" or \"plain\", but got \"" +
      name + "\"");
}

std::string algorithm_setting() {
  return kNames[setting];
}

bool plain_only() {
  return setting == kPlainOnly;
}

Algorithm choose_algorithm(const ConvProblem& p, Operator op, Element element,
                           const int64_t* source_stride, const int64_t* other_stride) {
  const int now = setting;
  if (now == kPlainOnly) return Algorithm::kPlain;
  if (element != Element::kHalf && depthwise::takes(p, source_stride, other_stride))
    return Algorithm::kDepthwise;
  const bool winograd_can = element != Element::kFloat64 && winograd::takes(p, op);
  if (now == kWinogradWherePossible && winograd_can) return Algorithm::kWinograd;
  if (element != Element::kHalf && grouped::takes(p, element == Element::kFloat64 ? 8 : 4))
    return Algorithm::kGrouped;
  if (element != Element::kHalf && pointwise::takes(p, source_stride, other_stride))
    return Algorithm::kPointwise;
  return now != kDirectOnly && winograd_can && winograd::pays(p, op) ? Algorithm::kWinograd
                                                                     : Algorithm::kDirect;
}

}  // namespace convbp
