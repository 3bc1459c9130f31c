#include "cuda/algorithm.h"

#include <atomic>
#include <stdexcept>

#include "cuda/depthwise/depthwise.h"
#include "cuda/implicit_gemm/implicit_gemm.h"

namespace convbp::cuda {
namespace {

std::atomic<bool> only_reference{false};

}  // namespace

std::string algorithm_setting() {
  return only_reference ? "plain" : "auto";
}

void set_algorithm(const std::string& name) {
  if (name != "auto" && name != "plain")
    throw std::runtime_error("Expected conv_algorithm to be one of auto, plain, but got \"" + name +
                             '"');
  only_reference = name == "plain";
}

bool reference_only() {
  return only_reference;
}

Algorithm algorithm_for(const ConvProblem& p) {
  if (reference_only()) return Algorithm::kReference;
  // With a channel a group, a tile of the implicit GEMM would be empty but for a column.
  if (depthwise::takes(p)) return Algorithm::kDepthwise;
  return gemm::takes(p) ? Algorithm::kImplicitGemm : Algorithm::kReference;
}

}  // namespace convbp::cuda
