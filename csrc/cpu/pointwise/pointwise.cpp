// Planning of the pointwise algorithm: blocks and tasks. Kernels are in kernel.h.
#include "cpu/pointwise/pointwise.h"

#include <algorithm>
#include <type_traits>
#include <vector>

#include "cpu/capability.h"
#include "cpu/parallel.h"
#include "cpu/pointwise/table.h"
#include "cpu/scratch.h"

namespace convbp::pointwise {
namespace {

// The bytes that a task reads again for each block of channels, which should stay in the
// second-level cache.
constexpr int64_t kSourceBytes = 256 * 1024;
constexpr int64_t kMostPixels = 96;
constexpr int64_t kLeastChannels = 16;
// The weight gradient is cut into about this many tasks, whatever the machine: the cut fixes the
// order of its sums.
constexpr int64_t kWeightGradTasks = 32;
constexpr int64_t kWeightGradBytes = 16 * 1024 * 1024;

template <typename T>
KernelTable<T> best_kernels() {
  return CONVBP_IN_BEST_ISA(kernels<T>());
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

// The channels of a patch, per group.
int64_t patch_channels(const ConvProblem& p) {
  return p.in_channels * p.kernel[kHeight] * p.kernel[kWidth];
}

// The channels of a channels_last input's patches: (r, s, k), in that order.
Channels channels_of_patches(const ConvProblem& p, const int64_t* stride) {
  const int64_t width = p.kernel[kWidth], channels = p.groups * p.in_channels;
  const bool whole_rows = stride[3] == channels;
  Channels c{whole_rows ? width * channels : channels, {}};
  for (int64_t r = 0; r < p.kernel[kHeight]; ++r)
    for (int64_t s = 0; s < (whole_rows ? 1 : width); ++s)
      c.at.push_back(r * stride[2] + s * stride[3]);
  return c;
}

// The offsets of filter 0's weights, in the order of a patch's channels.
std::vector<int64_t> weights_of_patch(const ConvProblem& p, const int64_t* stride) {
  std::vector<int64_t> at;
  for (int64_t r = 0; r < p.kernel[kHeight]; ++r)
    for (int64_t s = 0; s < p.kernel[kWidth]; ++s)
      for (int64_t k = 0; k < p.in_channels; ++k)
        at.push_back(r * stride[2] + s * stride[3] + k * stride[1]);
  return at;
}

// Filters as a matrix [output][channel of a patch]: in place where their channels are evenly
// spaced, else in scratch memory.
template <typename T>
class FilterMatrix {
 public:
  FilterMatrix(const ConvProblem& p, View<T> filters)
      : filters_(filters),
        outputs_(p.groups * p.out_channels),
        at_(weights_of_patch(p, filters.stride)),
        in_place_(is_even()),
        block_(Scratch::take<Number>(ScratchName::kFilters, in_place_ ? 0 : outputs_ * size())) {
    if constexpr (std::is_const_v<T>)
      if (!in_place_) copy([](T& filter, Number& copied) { copied = filter; });
  }
  // The matrix; its strides are those of outputs and of channels.
  View<T> view() const {
    if (in_place_) return {filters_.data, {filters_.stride[0], at_.size() > 1 ? at_[1] : 1, 0, 0}};
    return {block_.template data<Number>(), {size(), 1, 0, 0}};
  }
  // Copies what was written into the matrix to the filters.
  void store() const {
    if (!in_place_) copy([](T& filter, const Number& computed) { filter = computed; });
  }

 private:
  using Number = std::remove_const_t<T>;
  int64_t size() const { return static_cast<int64_t>(at_.size()); }
  bool is_even() const {
    for (int64_t q = 2; q < size(); ++q)
      if (at_[q] != q * at_[1]) return false;
    return true;
  }
  template <typename Copy>
  void copy(const Copy& copy_one) const {
    Number* const matrix = block_.template data<Number>();
    parallel_for(outputs_, [&](int64_t begin, int64_t end) {
      for (int64_t o = begin; o < end; ++o)
        for (int64_t q = 0; q < size(); ++q)
          copy_one(filters_.data[o * filters_.stride[0] + at_[q]], matrix[o * size() + q]);
    });
  }

  View<T> filters_;
  int64_t outputs_;
  std::vector<int64_t> at_;
  bool in_place_;
  Scratch block_;
};

template <typename T>
void run(const ConvProblem& c, int64_t in_channels, int64_t channels, View<const T> source,
         const Channels& source_channels, const T* weight, const WeightStrides& strides,
         const Epilogue<T>& epilogue, View<T> result) {
  const bool last = is_channels_last(source.stride);
  const KernelTable<T> kernels = best_kernels<T>();
  const int64_t lane_block = fitting_channel_block(channels, kernels.lanes(), kernels.vector_bytes);
  const LaneKernels<T> lane_kernels = kernels.kernels_for(lane_block);
  const int64_t unit = last ? lane_kernels.rows : 2 * kernels.lanes();  // pixels of a register tile
  Product p{c.batch,
            c.out_size[kHeight],
            c.out_size[kWidth],
            c.groups,
            in_channels,
            channels,
            source_channels,
            last ? lane_block : kernels.rows};
  if (p.pixels() == 0) return;
  const int64_t row_bytes = in_channels * static_cast<int64_t>(sizeof(T));
  int64_t units = std::clamp<int64_t>(kSourceBytes / row_bytes, unit, kMostPixels) / unit;
  // Blocks do not change what a result is made of, so their size may depend on the number of
  // threads.
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
  const auto kernel = last ? lane_kernels.channels_last : kernels.nchw;
  parallel_for(p.tasks(), [&](int64_t begin, int64_t end) {
    kernel(p, source, packed, epilogue, result, begin, end);
  });
}

}  // namespace

bool is_profitable(const ConvProblem& p, const int64_t* source_stride,
                   const int64_t* result_stride) {
  for (const Spatial axis : {kHeight, kWidth}) {
    const int64_t kernel = p.kernel[axis];
    if (p.pad[axis] != 0 || p.in_size[axis] < kernel ||
        p.out_size[axis] != (p.in_size[axis] - kernel) / p.stride[axis] + 1)
      return false;
    if (kernel > 1 && (kernel != p.stride[axis] || p.dilation[axis] != 1 || p.groups > 1))
      return false;
  }
  if (std::min(patch_channels(p), p.out_channels) < kLeastChannels) return false;
  if (is_channels_last(source_stride) || is_channels_last(result_stride))
    return is_channels_last(source_stride) && is_channels_last(result_stride);
  return p.kernel[kHeight] * p.kernel[kWidth] == 1 && source_stride[3] == 1 &&
         result_stride[3] == 1;
}

template <typename T>
void conv2d(const ConvProblem& p, View<const T> input, View<const T> weight,
            const Epilogue<T>& epilogue, View<T> output) {
  const FilterMatrix<const T> matrix(p, weight);
  const View<const T> filters = matrix.view();
  run<T>(p, patch_channels(p), p.out_channels, every(input, p.stride),
         channels_of_patches(p, input.stride), filters.data,
         {p.out_channels * filters.stride[0], filters.stride[0], filters.stride[1], 0, 0}, epilogue,
         output);
}

template <typename T>
void conv2d_input_grad(const ConvProblem& p, View<const T> weight, View<const T> delta,
                       View<T> input_grad) {
  const bool last = is_channels_last(input_grad.stride);
  // Zeros the pixels that the filters leave out.
  if (p.in_size[kHeight] > p.out_size[kHeight] * p.kernel[kHeight] ||
      p.in_size[kWidth] > p.out_size[kWidth] * p.kernel[kWidth])
    parallel_for(p.batch * p.in_size[kHeight], [&](int64_t begin, int64_t end) {
      const int64_t channels = p.groups * p.in_channels, width = p.in_size[kWidth];
      for (int64_t line = begin; line < end; ++line)
        for (int64_t i = 0; i < (last ? width : channels); ++i) {
          T* const to = &input_grad.at(line / p.in_size[kHeight], last ? 0 : i,
                                       line % p.in_size[kHeight], last ? i : 0);
          std::fill_n(to, last ? channels : width, T(0));
        }
    });
  const FilterMatrix<const T> matrix(p, weight);
  const View<const T> filters = matrix.view();
  const WeightStrides strides{p.out_channels * filters.stride[0], filters.stride[1],
                              filters.stride[0], 0, 0};
  // A product for each piece of a patch.
  const Channels patch = channels_of_patches(p, input_grad.stride);
  const int64_t channels = patch_channels(p) / static_cast<int64_t>(patch.at.size());
  View<T> result = every(input_grad, p.stride);
  for (size_t i = 0; i < patch.at.size(); ++i) {
    result.data = input_grad.data + patch.at[i];
    run<T>(p, p.out_channels, channels, delta, {p.groups * p.out_channels, {0}},
           filters.data + i * channels * filters.stride[1], strides, {}, result);
  }
}

template <typename T>
void conv2d_weight_grad(const ConvProblem& c, View<const T> input, View<const T> delta,
                        View<T> weight_grad, T* bias_grad) {
  const KernelTable<T> kernels = best_kernels<T>();
  const bool nchw = !is_channels_last(input.stride);
  const View<const T> source = every(input, c.stride);
  // Lanes are transposed in NCHW: the fewer, the better.
  const bool rows_are_o = nchw && c.out_channels > c.in_channels;
  const int64_t lanes = rows_are_o ? c.in_channels : c.out_channels;
  const FilterMatrix<T> matrix(c, weight_grad);
  Outer p{c.batch,
          c.out_size[kHeight],
          c.out_size[kWidth],
          c.groups,
          rows_are_o ? c.out_channels : patch_channels(c),
          lanes,
          channels_of_patches(c, input.stride),
          fitting_channel_block(lanes, kernels.lanes(), kernels.vector_bytes),
          rows_are_o};
  p.chunks = std::clamp<int64_t>(
      std::min(kWeightGradTasks / p.parts(), kWeightGradBytes / (p.parts() * p.sums_per_part() *
                                                                 static_cast<int64_t>(sizeof(T)))),
      1, std::max<int64_t>(1, divide_up(p.pixels(), 2 * Outer::kPanel)));
  const Scratch sums_block = Scratch::take<T>(ScratchName::kPartial, p.tasks() * p.sums_per_part());
  T* const sums = sums_block.template data<T>();
  const auto outer = kernels.kernels_for(p.block).outer[nchw];
  parallel_for(p.tasks(), [&](int64_t begin, int64_t end) {
    outer(p, rows_are_o ? delta : source, rows_are_o ? source : delta, bias_grad != nullptr, sums,
          begin, end);
  });
  parallel_for(p.parts(), [&](int64_t begin, int64_t end) {
    kernels.finish(p, sums, matrix.view(), bias_grad, begin, end);
  });
  matrix.store();
}

CONVBP_INSTANTIATE_OPERATORS(float)
CONVBP_INSTANTIATE_OPERATORS(double)

}  // namespace convbp::pointwise
