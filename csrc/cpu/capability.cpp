#include "capability.h"

#include <cstdlib>
#include <stdexcept>
#include <string>

namespace convbp {
namespace {

Capability processor() {
#if defined(__x86_64__)
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return Capability::kAvx2;
#endif
  return Capability::kDefault;
}

Capability probe() {
  const char* wanted = std::getenv("TORCH_CONVBP_CPU_CAPABILITY");
  if (!wanted || !*wanted) return processor();
  const std::string name(wanted);
  if (name == "DEFAULT") return Capability::kDefault;
  if (name == "AVX2" && processor() >= Capability::kAvx2) return Capability::kAvx2;
  throw std::runtime_error("TORCH_CONVBP_CPU_CAPABILITY: expected DEFAULT" +
                           std::string(processor() >= Capability::kAvx2 ? " or AVX2" : "") +
                           " on this processor, but got " + name);
}

}  // namespace

Capability capability() {
  static const Capability found = probe();
  return found;
}

const char* capability_name() {
  switch (capability()) {
    case Capability::kAvx2:
      return "AVX2";
    default:
      return "DEFAULT";
  }
}

}  // namespace convbp
