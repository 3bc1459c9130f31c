// Python reads torch's settings here, since the stable ABI cannot: torch_convbp/ops/conv2d.py gives
// the operator _allow_tf32 a kernel that reads them, and the dispatcher calls it. A program without
// Python has no such kernel: float32 stays float32.
#include "cuda/torch/tf32.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/stableivalue_conversions.h>

#include <atomic>

namespace convbp::cuda {

bool tf32_allowed() {
  // A failed call leaves a line on standard error: one is enough.
  static std::atomic<bool> can_ask{true};
  if (!can_ask) return false;
  StableIValue answer{};
  if (torch_call_dispatcher("torch_convbp::_allow_tf32", "", &answer, TORCH_ABI_VERSION)) {
    can_ask = false;
    return false;
  }
  return torch::stable::detail::to<bool>(answer);
}

}  // namespace convbp::cuda

STABLE_TORCH_LIBRARY_IMPL(torch_convbp, CompositeExplicitAutograd, m) {
  m.impl("_cuda_tf32", TORCH_BOX(&convbp::cuda::tf32_allowed));
}
