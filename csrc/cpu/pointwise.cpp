// Planning of the pointwise algorithm: blocks and tasks. Kernels are in pointwise_kernel.h.
#include "pointwise.h"

#include <algorithm>

#include "capability.h"
#include "parallel.h"
#include "pointwise_table.h"
#include "scratch.h"

namespace convbp::pointwise {
namespace {

// What a task reads again for each block of channels should stay in the second-level cache.
constexpr int64_t kSourceBytes = 256 * 1024;
constexpr int64_t kMostPixels = 96;
constexpr int64_t kLeastChannels = 16;
// The weight gradient is cut into about this many tasks, whatever the machine: the cut fixes the
// order of its sums.
constexpr int64_t kWeightGradTasks = 32;
constexpr int64_t kWeightGradBytes = 16 * 1024 * 1024;

template <typename T>
Table<T> table() {
  return CONVBP_IN_BEST_ISA(make_table<T>());
}

bool is_channels_last(const int64_t* stride) {
  return stride[1] == 1;
}

// The view of every stride-th pixel.
template <typename T>
View<T> every(View<T> v, const int64_t* stride) {
  v.stride[2] *= stride[kHeight];
  v.stride[3] *= stride[kWidth];
  return v;
}

template <typename T>
void run(const ConvProblem& c, int64_t reduce, int64_t channels, bool last, View<const T> source,
         const T* weight, const WeightStrides& strides, const Epilogue<T>& epilogue,
         View<T> result) {
  const Table<T> kernels = table<T>();
  const int64_t lane_block = fitting_lane_block(channels, kernels.lanes(), kernels.vector_bytes);
  const LaneKernels<T> lane_kernels = kernels.kernels_for(lane_block);
  const int64_t unit = last ? lane_kernels.rows : 2 * kernels.lanes();  // pixels of a register tile
  Product p{c.batch,
            c.out_size[kHeight],
            c.out_size[kWidth],
            c.groups,
            reduce,
            channels,
            last ? lane_block : kernels.rows};
  if (p.pixels() == 0) return;
  const int64_t row_bytes = reduce * static_cast<int64_t>(sizeof(T));
  int64_t units = std::clamp<int64_t>(kSourceBytes / row_bytes, unit, kMostPixels) / unit;
  // Blocks do not change what a result is made of, so this may look at the number of threads.
  const int64_t wanted = thread_count() > 1 ? 8 * thread_count() : 1;
  const int64_t all = divide_up(p.pixels(), unit);
  while (units > 1 && c.groups * divide_up(all, units) < wanted) units = divide_up(units, 2);
  p.pixel_block = balanced_tile(all, units) * unit;
  p.channel_split = std::min(divide_up(p.channels, 128), divide_up(wanted, p.pixel_tasks()));

  const int64_t blocks = p.groups * p.blocks();
  const Scratch weight_block =
      Scratch::take<T>(ScratchName::kWeight, blocks * p.packed_block_size());
  T* const packed = weight_block.template data<T>();
  parallel_for(blocks, [&](int64_t begin, int64_t end) {
    kernels.pack_weight(p, weight, strides, packed, begin, end);
  });
  const auto kernel = last ? lane_kernels.channels_last : kernels.planes;
  parallel_for(p.tasks(), [&](int64_t begin, int64_t end) {
    kernel(p, source, packed, epilogue, result, begin, end);
  });
}

}  // namespace

bool takes(const ConvProblem& p, const int64_t* source_stride, const int64_t* result_stride) {
  for (const Spatial axis : {kHeight, kWidth})
    if (p.kernel[axis] != 1 || p.pad[axis] != 0 ||
        p.out_size[axis] != (p.in_size[axis] - 1) / p.stride[axis] + 1)
      return false;
  if (std::min(p.in_channels, p.out_channels) < kLeastChannels) return false;
  if (is_channels_last(source_stride) || is_channels_last(result_stride))
    return is_channels_last(source_stride) && is_channels_last(result_stride);
  return source_stride[3] == 1 && result_stride[3] == 1;
}

template <typename T>
void conv2d(const ConvProblem& p, View<const T> input, View<const T> weight,
            const Epilogue<T>& epilogue, View<T> output) {
  run<T>(p, p.in_channels, p.out_channels, is_channels_last(input.stride), every(input, p.stride),
         weight.data, {p.out_channels * weight.stride[0], weight.stride[0], weight.stride[1], 0, 0},
         epilogue, output);
}

template <typename T>
void conv2d_input_grad(const ConvProblem& p, View<const T> weight, View<const T> delta,
                       View<T> input_grad) {
  // Pixels that the stride leaves out.
  if (p.stride[kHeight] > 1 || p.stride[kWidth] > 1)
    parallel_for(p.batch * p.in_size[kHeight], [&](int64_t begin, int64_t end) {
      const bool last = is_channels_last(input_grad.stride);
      const int64_t channels = p.groups * p.in_channels, width = p.in_size[kWidth];
      for (int64_t line = begin; line < end; ++line)
        for (int64_t i = 0; i < (last ? width : channels); ++i) {
          T* const to = &input_grad.at(line / p.in_size[kHeight], last ? 0 : i,
                                       line % p.in_size[kHeight], last ? i : 0);
          std::fill_n(to, last ? channels : width, T(0));
        }
    });
  run<T>(p, p.out_channels, p.in_channels, is_channels_last(delta.stride), delta, weight.data,
         {p.out_channels * weight.stride[0], weight.stride[1], weight.stride[0], 0, 0}, {},
         every(input_grad, p.stride));
}

template <typename T>
void conv2d_weight_grad(const ConvProblem& c, View<const T> input, View<const T> delta,
                        View<T> weight_grad, T* bias_grad) {
  const Table<T> kernels = table<T>();
  const bool planes = !is_channels_last(input.stride);
  const View<const T> source = every(input, c.stride);
  // Of planes, lanes are transposed: the fewer, the better.
  const bool rows_are_o = planes && c.out_channels > c.in_channels;
  const int64_t lanes = rows_are_o ? c.in_channels : c.out_channels;
  Outer p{c.batch,
          c.out_size[kHeight],
          c.out_size[kWidth],
          c.groups,
          rows_are_o ? c.out_channels : c.in_channels,
          lanes,
          fitting_lane_block(lanes, kernels.lanes(), kernels.vector_bytes),
          rows_are_o};
  p.chunks = std::clamp<int64_t>(
      std::min(kWeightGradTasks / p.parts(),
               kWeightGradBytes / (p.parts() * p.sums_a_part() * static_cast<int64_t>(sizeof(T)))),
      1, std::max<int64_t>(1, divide_up(p.pixels(), 2 * Outer::kPanel)));
  const Scratch sums_block = Scratch::take<T>(ScratchName::kPartial, p.tasks() * p.sums_a_part());
  T* const sums = sums_block.template data<T>();
  const auto outer = kernels.kernels_for(p.block).outer[planes];
  parallel_for(p.tasks(), [&](int64_t begin, int64_t end) {
    outer(p, rows_are_o ? delta : source, rows_are_o ? source : delta, bias_grad != nullptr, sums,
          begin, end);
  });
  parallel_for(p.parts(), [&](int64_t begin, int64_t end) {
    kernels.finish(p, sums, weight_grad, bias_grad, begin, end);
  });
}

CONVBP_INSTANTIATE_OPERATORS(float)
CONVBP_INSTANTIATE_OPERATORS(double)

}  // namespace convbp::pointwise
