// Planning of the depthwise algorithm: axes, bands, tasks. Kernels are in kernel.h.
#include "cpu/depthwise/depthwise.h"

#include <algorithm>
#include <vector>

#include "cpu/capability.h"
#include "cpu/depthwise/table.h"
#include "cpu/parallel.h"
#include "cpu/scratch.h"
#include "cpu/stream_rule.h"

namespace convbp::depthwise {
namespace {

constexpr int64_t kWidestVector = 64;
// The rows a task reads should stay in the second-level cache.
constexpr int64_t kBandBytes = 256 * 1024;

bool is_channels_last(const int64_t* stride) {
  return stride[1] == 1 && stride[3] != 1;
}

// The bytes that are copied of a band of NCHW, which should stay in the first-level cache.
constexpr int64_t kCopyBytes = 24 * 1024;
// The weight gradient is cut into at most this many chunks, whatever the machine.
constexpr int64_t kChunks = 16;
constexpr int64_t kSumsTogether = 4096;
constexpr int64_t kTasksPerThread = 6;

// The rows of a band, so that the source rows that they read stay in `bytes`.
int64_t rows_of_band(const Depthwise& d, int64_t pixel_bytes, int64_t bytes) {
  const int64_t row_bytes = std::max<int64_t>(1, d.w.source_size * pixel_bytes);
  return std::clamp<int64_t>(bytes / row_bytes - d.h.dense_rows(1), 1,
                             std::max<int64_t>(1, d.h.count));
}

// NCHW is transposed to channels last where filters have this many taps, or images this few pixels.
constexpr int64_t kManyTaps = 25, kFewPixels = 256;

bool should_transpose(const ConvProblem& p, const int64_t* size, int64_t lanes) {
  return p.groups >= lanes && (p.kernel[kHeight] * p.kernel[kWidth] >= kManyTaps ||
                               size[kHeight] * size[kWidth] <= kFewPixels);
}

// Packs the filters of a phase from channel c0 on, [tap][channel] or [channel][tap]. Some channels
// are taken at a time, whose filters stay in the first-level cache.
template <typename T>
void pack_filters(const Depthwise& d, View<const T> weight, int64_t c0, bool taps_first, T* to) {
  constexpr int64_t kTogether = 64;
  const int64_t to_tap = taps_first ? d.channels : 1, to_channel = taps_first ? 1 : d.taps();
  for (int64_t c = 0; c < d.channels; c += kTogether) {
    T* at = to + c * to_channel;
    for (const int64_t y : d.h.taps)
      for (const int64_t x : d.w.taps) {
        const T* const from = &weight.at(c0 + c, 0, y, x);
        for (int64_t i = 0; i < std::min(kTogether, d.channels - c); ++i)
          at[i * to_channel] = from[i * weight.stride[0]];
        at += to_tap;
      }
  }
}

// Runs the phases of a gather convolution (the forward convolution has one), band by band.
template <typename T>
void run(const ConvProblem& p, const std::vector<ConvAxis>& h, const std::vector<ConvAxis>& w,
         const int64_t* result_size, View<const T> source, View<const T> weight,
         const Epilogue<T>& epilogue, View<T> result) {
  const KernelTable<T> kernels = CONVBP_IN_BEST_ISA(kernels<T>());
  const bool last = is_channels_last(result.stride);
  const bool transposed = !last && should_transpose(p, result_size, kernels.lanes());
  // Channels that a task has side by side, and the number of such blocks; the last block ends with
  // the last channel.
  const int64_t together = last ? p.groups : transposed ? kernels.lanes() : 1;
  const int64_t blocks = divide_up(p.groups, together);
  std::vector<Depthwise> phases;
  for (const ConvAxis& height : h)
    for (const ConvAxis& width : w)
      phases.push_back({p.batch, last || transposed ? together : p.groups, height, width, 1});
  const Depthwise& first = phases.front();  // no other has more rows
  // Bands are for the threads alone in channels_last: a tile's rows follow each other through the
  // cache.
  int64_t band =
      last ? first.h.count
           : rows_of_band(first, together * sizeof(T), transposed ? kBandBytes : kCopyBytes);
  const int64_t images = p.batch * blocks;
  while (images * divide_up(first.h.count, band) < kTasksPerThread * thread_count() && band > 4)
    band = divide_up(band, 2);
  band = balanced_tile(first.h.count, band);
  if (last) band = divide_up(band, 2) * 2;
  const int64_t pixels = p.batch * result_size[kHeight] * result_size[kWidth];
  const bool streamed = last &&
                        should_stream(pixels * p.groups * static_cast<int64_t>(sizeof(T))) &&
                        has_whole_lines(result.data, result.stride, p.groups) &&
                        has_whole_lines(epilogue.pre_activation, result.stride, p.groups);
  int64_t taps = 0;
  for (Depthwise& d : phases) {
    d.band = band;
    d.streamed = streamed;
    taps += d.taps();
  }

  // The filters are [block][phase][tap][channel] for vectors of channels, [phase][channel][tap] for
  // NCHW.
  const Scratch filter_block = Scratch::take<T>(ScratchName::kWeight, taps * blocks * together);
  T* const filters = filter_block.template data<T>();
  T* to = filters;
  for (int64_t block = 0; block < (together > 1 ? blocks : 1); ++block) {
    const int64_t c0 = std::min(block * together, p.groups - together);
    for (const Depthwise& d : phases) {
      pack_filters(d, weight, c0, together > 1, to);
      to += d.taps() * d.channels;
    }
  }

  parallel_for(images * first.bands(), [&](int64_t begin, int64_t end) {
    if (transposed)
      kernels.transposed(phases, p.groups, source, filters, epilogue, result, begin, end);
    else if (last)
      kernels.channels_last(phases, source, filters, epilogue, result, begin, end);
    else
      kernels.nchw(phases, source, filters, epilogue, result, begin, end);
  });
}

}  // namespace

bool can_implement(const ConvProblem& p, const int64_t* source_stride,
                   const int64_t* other_stride) {
  if (p.groups == 1 || p.in_channels != 1 || p.out_channels != 1) return false;
  for (const Spatial axis : {kHeight, kWidth})
    // Rows between the taps would be copied too.
    if (p.dilation[axis] > 2 || p.stride[axis] > p.kernel[axis]) return false;
  if (is_channels_last(source_stride) != is_channels_last(other_stride)) return false;
  if (is_channels_last(source_stride)) return p.groups * 4 >= kWidestVector;
  return source_stride[3] == 1 && other_stride[3] == 1;
}

template <typename T>
void conv2d(const ConvProblem& p, View<const T> input, View<const T> weight,
            const Epilogue<T>& epilogue, View<T> output) {
  run<T>(p, {forward_axis(p, kHeight)}, {forward_axis(p, kWidth)}, p.out_size, input, weight,
         epilogue, output);
}

template <typename T>
void conv2d_input_grad(const ConvProblem& p, View<const T> weight, View<const T> delta,
                       View<T> input_grad) {
  run<T>(p, input_grad_axes(p, kHeight), input_grad_axes(p, kWidth), p.in_size, delta, weight, {},
         input_grad);
}

template <typename T>
void conv2d_weight_grad(const ConvProblem& p, View<const T> input, View<const T> delta,
                        View<T> weight_grad, T* bias_grad) {
  const KernelTable<T> kernels = CONVBP_IN_BEST_ISA(kernels<T>());
  DepthwiseWeightGrad plan;
  Depthwise& d = plan.conv;
  d = {p.batch, p.groups, forward_axis(p, kHeight), forward_axis(p, kWidth), 1};
  const bool last = is_channels_last(input.stride);
  const bool transposed = !last && should_transpose(p, p.out_size, kernels.lanes());
  plan.channels_last = last || transposed;
  if (plan.channels_last) plan.lanes = kernels.lanes();
  // A chunk's sums cost as much as some pixels.
  const int64_t worth = p.batch * d.h.count * d.w.count / (8 * (d.taps() + 1));
  const int64_t lines = last ? p.batch * d.h.count : p.batch;
  plan.chunks = std::clamp<int64_t>(last || transposed ? worth : lines, 1,
                                    std::clamp<int64_t>(lines, 1, kChunks));
  if (last)
    plan.channels_per_part =
        plan.lanes * divide_up(divide_up(d.channels, plan.lanes), divide_up(kChunks, plan.chunks));
  else
    plan.channels_per_part = transposed ? plan.lanes : 1;
  d.band = balanced_tile(d.h.count, rows_of_band(d, plan.channels_per_part * sizeof(T),
                                                 transposed ? kBandBytes : kCopyBytes));
  const Scratch sums_block =
      Scratch::take<T>(ScratchName::kPartial, plan.chunks * plan.sums_per_chunk());
  T* const sums = sums_block.template data<T>();
  const auto kernel = transposed ? kernels.transposed_weight_grad : kernels.weight_grad[last];
  parallel_for(plan.chunks * plan.parts(),
               [&](int64_t begin, int64_t end) { kernel(plan, input, delta, sums, begin, end); });

  // Adds the chunks' sums to those of the first chunk, in order; then each sum goes to its place.
  const int64_t sums_per_chunk = plan.sums_per_chunk();
  if (plan.chunks > 1)
    parallel_for(divide_up(sums_per_chunk, kSumsTogether), [&](int64_t begin, int64_t end) {
      const int64_t last_sum = std::min(end * kSumsTogether, sums_per_chunk);
      for (int64_t chunk = 1; chunk < plan.chunks; ++chunk)
        for (int64_t i = begin * kSumsTogether; i < last_sum; ++i)
          sums[i] += sums[chunk * sums_per_chunk + i];
    });
  for (int64_t tap = 0; tap < d.taps(); ++tap) {
    T* const to = &weight_grad.at(0, 0, tap / p.kernel[kWidth], tap % p.kernel[kWidth]);
    for (int64_t c = 0; c < d.channels; ++c)
      to[c * weight_grad.stride[0]] = sums[plan.place(c, tap)];
  }
  if (bias_grad)
    for (int64_t c = 0; c < d.channels; ++c) bias_grad[c] = sums[plan.place(c, d.taps())];
}

CONVBP_INSTANTIATE_OPERATORS(float)
CONVBP_INSTANTIATE_OPERATORS(double)

}  // namespace convbp::depthwise
