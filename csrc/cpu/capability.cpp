#include "cpu/capability.h"

#include <cstdlib>
#include <stdexcept>
#include <string>

namespace convbp {
namespace {

Capability processor() {
#if defined(__x86_64__)
  if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma"))
    return Capability::kDefault;
#if defined(CONVBP_EMULATE_AVX512)  // cpu/simd/avx512.h
  return Capability::kAvx512;
#endif
  for (const bool has : {__builtin_cpu_supports("avx512f"), __builtin_cpu_supports("avx512bw"),
                         __builtin_cpu_supports("avx512dq"), __builtin_cpu_supports("avx512vl")})
    if (!has) return Capability::kAvx2;
  return __builtin_cpu_supports("avx512bf16") ? Capability::kAvx512Bf16 : Capability::kAvx512;
#else
  return Capability::kDefault;
#endif
}

// Names in the order of Capability.
constexpr const char* kNames[] = {"DEFAULT", "AVX2", "AVX512", "AVX512_BF16"};

Capability probe() {
  const int most = static_cast<int>(processor());
  const char* wanted = std::getenv("TORCH_CONVBP_CPU_CAPABILITY");
  if (!wanted || !*wanted) return processor();
  std::string names;
  for (int i = 0; i <= most; ++i) {
    if (std::string(wanted) == kNames[i]) return static_cast<Capability>(i);
    names += i == 0 ? "" : i == most ? " or " : ", ";
    names += kNames[i];
  }
  throw std::runtime_error("TORCH_CONVBP_CPU_CAPABILITY: expected " + names +
                           " on this processor, but got " + wanted);
}

}  // namespace

Capability capability() {
  static const Capability found = probe();
  return found;
}

const char* capability_name() {
  return kNames[static_cast<int>(capability())];
}

}  // namespace convbp
