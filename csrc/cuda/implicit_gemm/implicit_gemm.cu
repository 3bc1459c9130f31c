// The problems that the implicit GEMM can compute.
#include "cuda/implicit_gemm/implicit_gemm.h"

#include <algorithm>

namespace convbp::cuda::gemm {

// The kernels count pixels, taps and blocks in 32 bits; only offsets into tensors have 64.
bool can_implement(const ConvProblem& p) {
  constexpr double kMost = 1 << 29;
  const auto number = [](int64_t n) { return static_cast<double>(n); };
  if (p.in_channels < 1 || p.out_channels < 1) return false;
  double positions = 1, phases = 1, taps = 1;
  for (const Spatial axis : {kHeight, kWidth}) {
    // The reach covers every position that is computed, inside the input or not.
    const double reach = number(p.out_size[axis]) * number(p.stride[axis]) +
                         number(p.kernel[axis]) * number(p.dilation[axis]) + number(p.pad[axis]) +
                         number(p.in_size[axis]);
    if (reach > kMost) return false;
    positions *= std::max(number(p.in_size[axis]), number(p.out_size[axis]));
    phases *= std::min(number(p.stride[axis]), number(p.in_size[axis]));
    taps *= number(p.kernel[axis]);
  }
  constexpr double kTile = 64, kPadding = 8;
  const double channels = number(std::max(p.in_channels, p.out_channels));
  const double blocks = number(p.groups) * (channels / kTile + 1) *
                        std::max(phases * (number(p.batch) * positions / phases / kTile + 2),
                                 (taps * (channels + kPadding) / kTile + 1) *
                                     (512 + number(p.batch) * positions / (1 << 15)));
  return number(p.batch) <= kMost && number(p.batch) * positions <= 3 * kMost &&
         number(p.groups) * channels <= kMost && taps * (channels + kPadding) <= kMost &&
         blocks <= kMost;
}

}  // namespace convbp::cuda::gemm
