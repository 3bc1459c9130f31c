// May float32 be multiplied as TF32, with 10 bits behind the point?
#pragma once

namespace convbp::cuda {

// What torch.backends.cudnn says of its own convolutions.
bool tf32_allowed();

}  // namespace convbp::cuda
