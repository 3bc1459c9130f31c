// Planning of the depthwise algorithm: axes, bands, tasks. Kernels are in depthwise_kernel.h.
#include "depthwise.h"

#include <algorithm>
#include <utility>

#include "capability.h"
#include "depthwise_table.h"
#include "parallel.h"
#include "scratch.h"

namespace convbp::depthwise {
namespace {

constexpr int64_t kWidestVector = 64;
// The rows a task reads should stay in the second-level cache.
constexpr int64_t kBandBytes = 256 * 1024;

bool is_channels_last(const int64_t* stride) {
  return stride[1] == 1 && stride[3] != 1;
}

template <typename T>
void run(const ConvProblem& p, Axis h, Axis w, View<const T> source, View<const T> weight,
         const Epilogue<T>& epilogue, View<T> result) {
  Depthwise d;
  d.batch = p.batch;
  d.channels = p.groups;
  d.h = std::move(h);
  d.w = std::move(w);
  const bool last = is_channels_last(result.stride);
  const int64_t row_bytes = d.w.source_size * (last ? d.channels : 1) * sizeof(T);
  d.band = std::clamp<int64_t>(kBandBytes / row_bytes - d.h.dense_rows(1), 1, d.h.count);
  const int64_t images = d.batch * (last ? 1 : d.channels);
  while (images * d.bands() < 3 * thread_count() && d.band > 4) d.band = divide_up(d.band, 2);
  d.band = balanced_tile(d.h.count, d.band);

  const int64_t taps = d.h.tap_count() * d.w.tap_count();
  const Scratch filter_block = Scratch::take<T>(ScratchName::kWeight, taps * d.channels);
  T* const filters = filter_block.template data<T>();
  for (int64_t c = 0; c < d.channels; ++c)
    for (int64_t tap = 0; tap < taps; ++tap)
      filters[last ? tap * d.channels + c : c * taps + tap] =
          weight.at(c, 0, d.h.taps[tap / d.w.tap_count()], d.w.taps[tap % d.w.tap_count()]);

  const Table<T> kernels = CONVBP_IN_BEST_ISA(make_table<T>());
  const auto kernel = last ? kernels.channels_last : kernels.planes;
  parallel_for(images * d.bands(), [&](int64_t begin, int64_t end) {
    kernel(d, source, filters, epilogue, result, begin, end);
  });
}

}  // namespace

bool takes(const ConvProblem& p, const int64_t* source_stride, const int64_t* result_stride) {
  if (p.groups == 1 || p.in_channels != 1 || p.out_channels != 1) return false;
  for (const Spatial axis : {kHeight, kWidth})
    // Rows between the taps would be copied too.
    if (p.dilation[axis] > 2 || p.stride[axis] > p.kernel[axis]) return false;
  if (is_channels_last(source_stride) != is_channels_last(result_stride)) return false;
  if (is_channels_last(source_stride)) return p.groups * 4 >= kWidestVector;
  return source_stride[3] == 1 && result_stride[3] == 1;
}

template <typename T>
void conv2d(const ConvProblem& p, View<const T> input, View<const T> weight,
            const Epilogue<T>& epilogue, View<T> output) {
  run<T>(p, forward_axis(p, kHeight), forward_axis(p, kWidth), input, weight, epilogue, output);
}

template <typename T>
void conv2d_input_grad(const ConvProblem& p, View<const T> weight, View<const T> delta,
                       View<T> input_grad) {
  for (int64_t i = 0; i < std::min(p.stride[kHeight], p.in_size[kHeight]); ++i)
    for (int64_t j = 0; j < std::min(p.stride[kWidth], p.in_size[kWidth]); ++j)
      run<T>(p, input_grad_axis(p, kHeight, i), input_grad_axis(p, kWidth, j), delta, weight, {},
             input_grad);
}

#define CONVBP_INSTANTIATE(T)                                                                    \
  template void conv2d(const ConvProblem&, View<const T>, View<const T>, const Epilogue<T>&,     \
                       View<T>);                                                                 \
  template void conv2d_input_grad(const ConvProblem&, View<const T>, View<const T>, View<T>);
CONVBP_INSTANTIATE(float)
CONVBP_INSTANTIATE(double)
#undef CONVBP_INSTANTIATE

}  // namespace convbp::depthwise
