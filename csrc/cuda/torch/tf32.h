// The permission to multiply float32 as TF32, which has a mantissa of 10 bits.
#pragma once

namespace convbp::cuda {

// The setting that torch.backends.cudnn has for its own convolutions.
bool tf32_allowed();

}  // namespace convbp::cuda
