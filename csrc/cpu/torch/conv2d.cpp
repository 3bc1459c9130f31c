// The convolution operators on the CPU.
#include "cpu/algorithm.h"
#include "cpu/elementwise/elementwise.h"
#include "cpu/torch/boundary.h"

#include "torch/conv2d.h"

CONVBP_REGISTER_CONVOLUTIONS(CPU)

STABLE_TORCH_LIBRARY_IMPL(torch_convbp, CPU, m) {
  m.impl("conv2d_backward", TORCH_BOX(&convbp::conv2d_backward));
}
