// The instruction set that the kernels use: the best of this processor, unless the environment
// variable TORCH_CONVBP_CPU_CAPABILITY (DEFAULT, AVX2, AVX512 or AVX512_BF16) asks for less.
#pragma once

namespace convbp {

enum class Capability { kDefault, kAvx2, kAvx512, kAvx512Bf16 };

// The capability, probed once. Throws std::runtime_error where the variable names another than this
// processor's.
Capability capability();
const char* capability_name();

}  // namespace convbp

// CONVBP_IN_EACH_ISA repeats a declaration in a namespace for each instruction set that the kernels
// are compiled for; CONVBP_IN_BEST_ISA calls the function in the best one in use.
#if defined(__x86_64__)
#define CONVBP_IN_EACH_ISA(...) \
  namespace baseline {          \
  __VA_ARGS__                   \
  }                             \
  namespace avx2 {              \
  __VA_ARGS__                   \
  }                             \
  namespace avx512 {            \
  __VA_ARGS__                   \
  }
#define CONVBP_IN_BEST_ISA(...)                              \
  (capability() >= Capability::kAvx512 ? avx512::__VA_ARGS__ \
   : capability() >= Capability::kAvx2 ? avx2::__VA_ARGS__   \
                                       : baseline::__VA_ARGS__)
#else
#define CONVBP_IN_EACH_ISA(...) \
  namespace baseline {          \
  __VA_ARGS__                   \
  }
#define CONVBP_IN_BEST_ISA(...) baseline::__VA_ARGS__
#endif
