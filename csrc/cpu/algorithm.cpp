#include "algorithm.h"

#include <atomic>
#include <iterator>
#include <stdexcept>

namespace convbp {
namespace {

constexpr const char* kNames[] = {"auto", "direct", "plain"};
enum Setting { kAuto, kDirectOnly, kPlainOnly };
std::atomic<int> setting{kAuto};

}  // namespace

void set_algorithm(const std::string& name) {
  for (int i = 0; i < static_cast<int>(std::size(kNames)); ++i)
    if (name == kNames[i]) {
      setting = i;
      return;
    }
  throw std::runtime_error("conv_algorithm: expected \"auto\", \"direct\" or \"plain\", but got \"" +
                           name + "\"");
}

std::string algorithm_setting() {
  return kNames[setting];
}

bool plain_only() {
  return setting == kPlainOnly;
}

Algorithm choose_algorithm(const ConvProblem&, Operator) {
  // The direct algorithm takes every problem and is the faster one on every problem.
  return plain_only() ? Algorithm::kPlain : Algorithm::kDirect;
}

}  // namespace convbp
