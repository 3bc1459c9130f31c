#include "algorithm.h"

#include <atomic>
#include <stdexcept>

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

}  // namespace convbp::cuda
