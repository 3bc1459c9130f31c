// The element-wise operators on the GPU.
#include "cuda/torch/elementwise.h"

#include "torch/elementwise.h"

CONVBP_REGISTER_ELEMENTWISE(CUDA)
