#include "cuda/algorithm.h"

#include <atomic>
#include <iterator>
#include <stdexcept>

#include "cuda/depthwise/depthwise.h"
#include "cuda/implicit_gemm/implicit_gemm.h"

namespace convbp::cuda {
namespace {

// "plain" is the old name of "reference".
constexpr const char* kNames[] = {"auto", "reference", "plain"};
std::atomic<int> setting{0};

}  // namespace

std::string algorithm_setting() {
  return kNames[setting];
}

void set_algorithm(const std::string& name) {
  for (int i = 0; i < static_cast<int>(std::size(kNames)); ++i)
    if (name == kNames[i]) {
      setting = i;
      return;
    }
  throw std::runtime_error("Expected conv_algorithm to be one of auto, reference, but got \"" +
                           name + '"');
}

bool reference_only() {
  return setting > 0;
}

Algorithm algorithm_for(const ConvProblem& p) {
  if (reference_only()) return Algorithm::kReference;
  // A tile of the implicit GEMM would be empty but for one column, with one channel a group.
  if (depthwise::can_implement(p)) return Algorithm::kDepthwise;
  return gemm::can_implement(p) ? Algorithm::kImplicitGemm : Algorithm::kReference;
}

}  // namespace convbp::cuda
