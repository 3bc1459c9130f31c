// Which instruction set the kernels use: the best this processor has, unless the
// environment variable TORCH_CONVBP_CPU_CAPABILITY (DEFAULT, AVX2 or AVX512) asks for less.
#pragma once

namespace convbp {

enum class Capability { kDefault, kAvx2, kAvx512 };

// Probed once. Throws std::runtime_error where the variable names what is not there.
Capability capability();
const char* capability_name();

}  // namespace convbp
