// Planning of pooling: tasks, and the choice of kernels. Kernels are in kernel.h.
#include "cpu/pool/pool.h"

#include "core/types.h"
#include "cpu/algorithm.h"
#include "cpu/capability.h"
#include "cpu/parallel.h"
#include "cpu/reference/pool2d.h"

namespace convbp::pool {

#define CONVBP_DECLARE(isa)                \
  namespace isa {                          \
  template <typename T, typename Offset>   \
  MaxKernelTable<T, Offset> max_kernels(); \
  template <typename T>                    \
  AverageKernelTable<T> average_kernels(); \
  }
CONVBP_DECLARE(baseline)
#if defined(__x86_64__)
CONVBP_DECLARE(avx2)
#endif
#undef CONVBP_DECLARE

namespace {

template <typename T, typename Offset>
MaxKernelTable<T, Offset> max_kernels() {
#if defined(__x86_64__)
  if (capability() >= Capability::kAvx2) return avx2::max_kernels<T, Offset>();
#endif
  return baseline::max_kernels<T, Offset>();
}

template <typename T>
AverageKernelTable<T> average_kernels() {
#if defined(__x86_64__)
  if (capability() >= Capability::kAvx2) return avx2::average_kernels<T>();
#endif
  return baseline::average_kernels<T>();
}

// The channels of a task: all, where they lie side by side in the tensor that is read (forward) or
// written (backward); else one.
template <typename T>
int64_t neighbours(const PoolProblem& p, const View<T>& v) {
  return v.stride[1] == 1 ? p.channels : 1;
}

template <typename T>
Tasks output_rows(const PoolProblem& p, const View<T>& input) {
  return {p.batch, p.channels, p.out_size[kHeight], neighbours(p, input)};
}

// Bands of rows of the input gradient. A window (`reach` rows high) that crosses two bands is
// scanned by both, so bands should be high: as high as the cache allows. Where that is less than 4
// windows, fewer channels are taken at once. So that every thread gets some, bands may shrink to
// the height of one window.
template <typename T>
Tasks input_bands(const PoolProblem& p, const View<T>& input_grad, int64_t reach) {
  constexpr int64_t kBand = 64 * 1024;     // numbers
  constexpr int64_t kFewestChannels = 16;  // fill a cache line
  Tasks tasks{p.batch, p.channels, p.in_size[kHeight], neighbours(p, input_grad)};
  const auto rows = [&] { return kBand / (p.in_size[kWidth] * tasks.channels_per_task); };
  while (tasks.channels_per_task > kFewestChannels && rows() < std::min(tasks.size, 4 * reach))
    tasks.channels_per_task = (tasks.channels_per_task + 1) / 2;
  tasks.rows = std::clamp<int64_t>(rows(), 1, tasks.size);
  const int64_t wanted = thread_count() > 1 ? 3 * thread_count() : 1;
  while (tasks.rows > reach && tasks.count() < wanted) tasks.rows = (tasks.rows + 1) / 2;
  return tasks;
}

}  // namespace

template <typename T, typename Offset>
void max_pool2d(const PoolProblem& p, View<const T> input, View<T> output, View<Offset> offset) {
  if (reference_only()) return reference::max_pool2d(p, input, output, offset);
  const auto kernel = max_kernels<T, Offset>().forward;
  const Tasks tasks = output_rows(p, input);
  parallel_for(tasks.count(), [&](int64_t begin, int64_t end) {
    kernel(p, tasks, input, output, offset, begin, end);
  });
}

template <typename T, typename Offset>
void max_pool2d_input_grad(const PoolProblem& p, View<const T> delta, View<const Offset> offset,
                           View<T> input_grad) {
  if (reference_only()) return reference::max_pool2d_input_grad(p, delta, offset, input_grad);
  const auto kernel = max_kernels<T, Offset>().input_grad;
  const Tasks tasks = input_bands(p, input_grad, p.dilation[kHeight] * (p.kernel[kHeight] - 1) + 1);
  parallel_for(tasks.count(), [&](int64_t begin, int64_t end) {
    kernel(p, tasks, delta, offset, input_grad, begin, end);
  });
}

// A loop nest will do: only second derivatives and forward mode come here.
template <typename T, typename Offset>
void max_pool2d_gather(const PoolProblem& p, View<const T> input, View<const Offset> offset,
                       View<T> output) {
  const Tasks tasks = output_rows(p, View<T>{nullptr, {}});
  parallel_for(tasks.count(), [&](int64_t begin, int64_t end) {
    for (int64_t task = begin; task < end; ++task) {
      const Piece piece(tasks, task);
      const int64_t b = piece.b, c = piece.c, m = piece.begin;
      for (int64_t n = 0; n < p.out_size[kWidth]; ++n) {
        const int64_t tap = offset.at(b, c, m, n);
        const int64_t i = p.input_position(kHeight, m, tap / p.kernel[kWidth]);
        const int64_t j = p.input_position(kWidth, n, tap % p.kernel[kWidth]);
        output.at(b, c, m, n) = tap < p.taps() && p.inside(kHeight, i) && p.inside(kWidth, j)
                                    ? input.at(b, c, i, j)
                                    : T(0);
      }
    }
  });
}

template <typename T>
void avg_pool2d(const PoolProblem& p, View<const T> input, View<T> output) {
  if (reference_only()) return reference::avg_pool2d(p, input, output);
  const auto kernel = average_kernels<T>().forward;
  const Tasks tasks = output_rows(p, input);
  parallel_for(tasks.count(),
               [&](int64_t begin, int64_t end) { kernel(p, tasks, input, output, begin, end); });
}

template <typename T>
void avg_pool2d_input_grad(const PoolProblem& p, View<const T> delta, View<T> input_grad) {
  if (reference_only()) return reference::avg_pool2d_input_grad(p, delta, input_grad);
  const auto kernel = average_kernels<T>().input_grad;
  const Tasks tasks = input_bands(p, input_grad, 1);
  parallel_for(tasks.count(), [&](int64_t begin, int64_t end) {
    kernel(p, tasks, delta, input_grad, begin, end);
  });
}

#define CONVBP_INSTANTIATE_MAX(T, Offset)                                                    \
  template void max_pool2d(const PoolProblem&, View<const T>, View<T>, View<Offset>);        \
  template void max_pool2d_input_grad(const PoolProblem&, View<const T>, View<const Offset>, \
                                      View<T>);                                              \
  template void max_pool2d_gather(const PoolProblem&, View<const T>, View<const Offset>, View<T>);
#define CONVBP_INSTANTIATE(T)                                           \
  CONVBP_INSTANTIATE_MAX(T, uint8_t)                                    \
  CONVBP_INSTANTIATE_MAX(T, uint32_t)                                   \
  template void avg_pool2d(const PoolProblem&, View<const T>, View<T>); \
  template void avg_pool2d_input_grad(const PoolProblem&, View<const T>, View<T>);
CONVBP_INSTANTIATE(float)
CONVBP_INSTANTIATE(double)
CONVBP_INSTANTIATE(BFloat16)
CONVBP_INSTANTIATE(Half)
#undef CONVBP_INSTANTIATE
#undef CONVBP_INSTANTIATE_MAX

}  // namespace convbp::pool
