#include "cuda/algorithm.h"

#include <atomic>
#include <stdexcept>

#include "cuda/depthwise/depthwise.h"
#include "cuda/implicit_gemm/implicit_gemm.h"

namespace convbp::cuda {
namespace {

std::atomic<bool> plain{false};

}  // namespace

std::string algorithm_setting() {
  return plain ? "plain" : "auto";
}

void set_algorithm(const std::string& name) {
  if (name != "auto" && name != "plain")
    throw std::runtime_error("Expected conv_algorithm to be one of auto, plain, but got \"" + name +
                             '"');
  plain = name == "plain";
}

bool plain_only() {
  return plain;
}

Algorithm algorithm_for(const ConvProblem& p) {
  if (plain_only()) return Algorithm::kPlain;
  // With a channel a group, a tile of the implicit GEMM would be empty but for a column.
  if (depthwise::takes(p)) return Algorithm::kDepthwise;
  return gemm::takes(p) ? Algorithm::kImplicitGemm : Algorithm::kPlain;
}

}  // namespace convbp::cuda
