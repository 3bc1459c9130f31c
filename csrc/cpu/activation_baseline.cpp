// The activations for any processor the compiler targets.
#define CONVBP_ISA baseline
#define CONVBP_TARGET
#include "activation_kernel.h"
