#include "pool.h"

#include "capability.h"
#include "element.h"

namespace convbp::pool {

#define CONVBP_DECLARE(isa)                                  \
  namespace isa {                                            \
  template <typename T, typename Offset>                     \
  const MaxTable<T, Offset>& max_table();                    \
  template <typename T>                                      \
  const AverageTable<T>& average_table();                    \
  }
CONVBP_DECLARE(baseline)
#if defined(__x86_64__)
CONVBP_DECLARE(avx2)
#endif
#undef CONVBP_DECLARE

template <typename T, typename Offset>
const MaxTable<T, Offset>& max_table() {
#if defined(__x86_64__)
  if (capability() >= Capability::kAvx2) return avx2::max_table<T, Offset>();
#endif
  return baseline::max_table<T, Offset>();
}

template <typename T>
const AverageTable<T>& average_table() {
#if defined(__x86_64__)
  if (capability() >= Capability::kAvx2) return avx2::average_table<T>();
#endif
  return baseline::average_table<T>();
}

#define CONVBP_INSTANTIATE(T)                              \
  template const MaxTable<T, uint8_t>& max_table();        \
  template const MaxTable<T, uint32_t>& max_table();       \
  template const AverageTable<T>& average_table();
CONVBP_INSTANTIATE(float)
CONVBP_INSTANTIATE(double)
CONVBP_INSTANTIATE(BFloat16)
CONVBP_INSTANTIATE(Half)
#undef CONVBP_INSTANTIATE

}  // namespace convbp::pool
