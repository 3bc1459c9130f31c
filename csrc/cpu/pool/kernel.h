// The pooling kernels (L8): what forward and backward share, and their table. Included once per
// instruction set, with the macros of register_tile.h set. The equations are in
// cpu/reference/pool2d.h.

#include <algorithm>
#include <limits>
#include <type_traits>
#include <vector>

#include "core/types.h"
#include "cpu/pool/pool.h"
#include "cpu/scratch.h"

#define CONVBP_INLINE __attribute__((always_inline)) CONVBP_TARGET inline
#define CONVBP_BODY(...) [&](__VA_ARGS__) __attribute__((always_inline)) CONVBP_TARGET

namespace convbp::pool::CONVBP_ISA {

// An integer as wide as the accumulator, for the positions beside the values.
template <typename Acc>
using Index = std::conditional_t<sizeof(Acc) == 8, int64_t, int32_t>;

// The unit that is taken through the taps: one number, or a vector of neighbouring numbers.
template <typename Acc>
struct One {
  using Element = Acc;
  using Value = Acc;
  using Where = Index<Acc>;
  static constexpr int kLanes = 1;

  template <typename T>
  CONVBP_INLINE static void load_from(const T* from, Value& to) {
    to = load<Acc>(*from);
  }
};

template <typename Acc>
struct Vector {
  using Element = Acc;
  // Vectors, aligned as their elements, so that they may be loaded from any address.
  typedef Acc Value
      __attribute__((vector_size(CONVBP_VECTOR_BYTES), aligned(sizeof(Acc)), may_alias));
  typedef Index<Acc> Where
      __attribute__((vector_size(CONVBP_VECTOR_BYTES), aligned(sizeof(Acc)), may_alias));
  static constexpr int kLanes = CONVBP_VECTOR_BYTES / sizeof(Acc);

  template <typename T>
  CONVBP_INLINE static void load_from(const T* from, Value& to) {
    if constexpr (std::is_same_v<T, Acc>) {
      to = *reinterpret_cast<const Value*>(from);
    } else {
      Acc converted[kLanes];
      for (int l = 0; l < kLanes; ++l) converted[l] = load<Acc>(from[l]);
      to = *reinterpret_cast<const Value*>(converted);
    }
  }
};

// True where a row of windows fills a vector.
template <typename Acc>
bool is_line(const PoolProblem& p) {
  return p.out_size[kWidth] >= Vector<Acc>::kLanes;
}

// Ranges that every row of windows needs again: divisions are slow.
struct Columns {
  std::vector<Range> taps;     // the taps inside the input, of each column of windows
  int64_t first_tap;           // taps before it are inside for no window
  std::vector<Range> windows;  // the windows a tap is inside for, from first_tap on

  explicit Columns(const PoolProblem& p) : taps(p.out_size[kWidth]) {
    for (int64_t n = 0; n < p.out_size[kWidth]; ++n) taps[n] = p.taps_inside(kWidth, n);
    first_tap = taps.back().begin;
    for (int64_t s = first_tap; s < taps.front().end; ++s)
      windows.push_back(p.outputs_inside(kWidth, s));
  }
};

// Calls body(step), with a constant where the step is a usual one: the compiler then makes vectors
// of every number, or of every second one.
template <typename Body>
CONVBP_INLINE void by_step(int64_t step, const Body& body) {
  if (step == 1)
    body(std::integral_constant<int64_t, 1>());
  else if (step == 2)
    body(std::integral_constant<int64_t, 2>());
  else
    body(step);
}

template <typename T, typename Acc>
CONVBP_INLINE void store_line(const Acc* from, int64_t count, T* to, int64_t step) {
  if (step == 1)
    for (int64_t l = 0; l < count; ++l) to[l] = store<T>(from[l]);
  else
    for (int64_t l = 0; l < count; ++l) to[l * step] = store<T>(from[l]);
}

}  // namespace convbp::pool::CONVBP_ISA

#include "cpu/pool/backward.h"
#include "cpu/pool/forward.h"

namespace convbp::pool::CONVBP_ISA {

template <typename T, typename Offset>
MaxKernelTable<T, Offset> max_kernels() {
  return {&max_pool2d<T, Offset>, &max_pool2d_input_grad<T, Offset>};
}

template <typename T>
AverageKernelTable<T> average_kernels() {
  return {&avg_pool2d<T>, &avg_pool2d_input_grad<T>};
}

// The element types every instruction set is compiled for.
#define CONVBP_INSTANTIATE(T)                         \
  template MaxKernelTable<T, uint8_t> max_kernels();  \
  template MaxKernelTable<T, uint32_t> max_kernels(); \
  template AverageKernelTable<T> average_kernels();
CONVBP_INSTANTIATE(float)
CONVBP_INSTANTIATE(double)
CONVBP_INSTANTIATE(BFloat16)
CONVBP_INSTANTIATE(Half)
#undef CONVBP_INSTANTIATE

}  // namespace convbp::pool::CONVBP_ISA

#undef CONVBP_BODY
#undef CONVBP_INLINE
