// The convolution operators on the CPU.
#include "cpu/algorithm.h"
#include "cpu/torch/boundary.h"

#include "torch/conv2d.h"

CONVBP_REGISTER_CONVOLUTIONS(CPU)
