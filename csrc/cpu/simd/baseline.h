// Macros that compile a kernel header for every processor the compiler targets.
#define CONVBP_ISA baseline
#define CONVBP_TARGET
#define CONVBP_VECTOR_BYTES 16
