// Planning of the direct algorithm: tiles, tasks, phases. Kernels are in direct_kernel.h.
#include "direct.h"

#include "capability.h"
#include "direct_plan.h"
#include "direct_table.h"
#include "element.h"
#include "parallel.h"
#include "scratch.h"

#include <utility>

namespace convbp::direct {
namespace {

// A patch should stay in the second-level cache beside a block of weights.
constexpr int64_t kPatchBytes = 128 * 1024;
// Beyond this many pixels a larger tile saves nothing more.
constexpr int64_t kMostPixels = 1024;
// The weight gradient is cut into about this many tasks, whatever the machine: the cut
// fixes the order of its sums.
constexpr int64_t kWeightGradTasks = 32;
constexpr int64_t kWeightGradBytes = 16 * 1024 * 1024;

template <typename T>
Table<T, Accumulator<T>> table() {
  using Acc = Accumulator<T>;
#if defined(__x86_64__)
  if (capability() >= Capability::kAvx2) return avx2::make_table<T, Acc>();
#endif
  return baseline::make_table<T, Acc>();
}

template <typename T, typename Acc>
bool is_wide(const Table<T, Acc>& kernels, const TapConv& c) {
  return c.block * static_cast<int64_t>(sizeof(Acc)) > kernels.vector_bytes;
}

Axis forward_axis(const ConvProblem& p, Spatial axis) {
  Axis a;
  a.count = p.out_size[axis];
  a.source_size = p.in_size[axis];
  a.step = p.stride[axis];
  for (int64_t tap = 0; tap < p.kernel[axis]; ++tap) {
    a.taps.push_back(tap);
    a.offset.push_back(p.input_position(axis, 0, tap));
  }
  return a;
}

// The input positions i = phase, phase + stride, ...: tap r reaches them from output
// position m = (i + pad - r * dilation) / stride, where that is a whole number.
Axis input_grad_axis(const ConvProblem& p, Spatial axis, int64_t phase) {
  Axis a;
  a.count = divide_up(p.in_size[axis] - phase, p.stride[axis]);
  a.first = phase;
  a.spacing = p.stride[axis];
  a.source_size = p.out_size[axis];
  for (int64_t tap = p.kernel[axis] - 1; tap >= 0; --tap) {  // ascending offsets
    const int64_t reach = phase - p.input_position(axis, 0, tap);
    if (reach % p.stride[axis]) continue;
    a.taps.push_back(tap);
    a.offset.push_back(reach / p.stride[axis]);
  }
  return a;
}

// The tile size that makes as many tiles as `tile` does, but nearly equal ones.
int64_t balanced_tile(int64_t count, int64_t tile) {
  if (count == 0) return 1;
  return divide_up(count, divide_up(count, tile));
}

// Chooses tiles so that a patch, plus `extra` numbers a pixel, fits into kPatchBytes.
void choose_tiles(TapConv& c, int64_t element_bytes, int64_t extra) {
  const int64_t budget = kPatchBytes / element_bytes;
  int64_t images = 1, rows = 1, columns = c.w.count;
  const auto fits = [&](int64_t b, int64_t h, int64_t w) {
    const double patch =
        static_cast<double>(b) * c.h.cheapest_rows(h) * c.w.cheapest_rows(w) * c.reduce;
    const double pixels = static_cast<double>(b) * h * w;
    return patch + pixels * extra <= budget && pixels <= kMostPixels;
  };
  while (columns > 1 && !fits(1, 1, columns)) columns = divide_up(columns, 2);
  if (columns == c.w.count)
    while (rows < c.h.count && fits(1, rows + 1, columns)) ++rows;
  if (rows == c.h.count)
    while (images < c.batch && fits(images + 1, rows, columns)) ++images;
  c.w.set_tile(balanced_tile(c.w.count, columns));
  c.h.set_tile(balanced_tile(c.h.count, rows));
  c.batch_tile = balanced_tile(c.batch, images);
}

// Enough tasks for every thread. Tiles do not change what an output element is made of,
// so this may look at the number of threads.
void spread_over_threads(TapConv& c) {
  const int64_t threads = thread_count();
  const int64_t wanted = threads > 1 ? 3 * threads : 1;
  while (c.pixel_tasks() < wanted && c.batch_tile > 1) c.batch_tile = divide_up(c.batch_tile, 2);
  while (c.pixel_tasks() < wanted && c.h.tile * c.w.tile > 32 && c.h.tile > 1)
    c.h.set_tile(divide_up(c.h.tile, 2));
  c.lane_split = std::min(c.blocks(), divide_up(wanted, c.pixel_tasks()));
}

// The tap convolution of p with these axes and channels a group; its tiles are yet to be chosen.
template <typename Acc>
TapConv make_tap_conv(const ConvProblem& p, Axis h, Axis w, int64_t reduce, int64_t lanes,
                      int vector_bytes) {
  TapConv c;
  c.batch = p.batch;
  c.h = std::move(h);
  c.w = std::move(w);
  c.channels = p.groups * lanes;
  c.depthwise = p.groups > 1 && reduce == 1 && lanes == 1;
  if (c.depthwise) {
    c.block = c.reduce = c.lanes = lane_block<Acc>(c.channels, vector_bytes);
    c.groups = divide_up(c.channels, c.block);
  } else {
    c.block = lane_block<Acc>(lanes, vector_bytes);
    c.groups = p.groups;
    c.reduce = reduce;
    c.lanes = lanes;
  }
  return c;
}

template <typename T>
void run_tap_conv(TapConv c, const Table<T, Accumulator<T>>& kernels, View<const T> source,
                  const T* weight, const WeightStrides& strides, const Epilogue<T>& epilogue,
                  View<T> result) {
  using Acc = Accumulator<T>;
  choose_tiles(c, sizeof(Acc), 0);
  spread_over_threads(c);
  const int64_t blocks = c.groups * c.blocks();
  const Scratch weight_block =
      Scratch::take<Acc>(ScratchName::kWeight, blocks * c.packed_block_size());
  Acc* const packed = weight_block.data<Acc>();
  parallel_for(blocks, [&](int64_t begin, int64_t end) {
    kernels.pack_weight(c, weight, strides, packed, begin, end);
  });
  const auto tap_conv = kernels.tap_conv[c.depthwise][is_wide(kernels, c)];
  parallel_for(c.tasks(), [&](int64_t begin, int64_t end) {
    tap_conv(c, source, packed, epilogue, result, begin, end);
  });
}

// What the groups and lanes of the tap convolution are in the weight: where a lane is a group
// of its own, the next one is a whole filter bank away.
WeightStrides weight_strides(const ConvProblem& p, const TapConv& c, const int64_t* stride,
                             int lane, int reduce) {
  const int64_t group = p.out_channels * stride[0];
  if (c.depthwise) return {c.block * group, group, stride[reduce], stride[2], stride[3]};
  return {group, stride[lane], stride[reduce], stride[2], stride[3]};
}

WeightGrad plan_weight_grad(TapConv tap, int64_t element_bytes) {
  WeightGrad plan;
  plan.tap = std::move(tap);
  TapConv& c = plan.tap;
  choose_tiles(c, element_bytes, std::min(c.lanes, plan.lanes_a_task));
  plan.chunks = std::max<int64_t>(
      1, std::min({plan.tiles(), kWeightGradTasks / (c.groups * plan.lane_tasks()),
                   kWeightGradBytes / (c.groups * c.lanes * plan.rows() * element_bytes + 1)}));
  if (plan.tasks() < kWeightGradTasks / 2) plan.lanes_a_task = 32;
  return plan;
}

}  // namespace

template <typename T>
void conv2d(const ConvProblem& p, View<const T> input, View<const T> weight,
            const Epilogue<T>& epilogue, View<T> output) {
  const auto kernels = table<T>();
  const TapConv c = make_tap_conv<Accumulator<T>>(p, forward_axis(p, kHeight),
                                                  forward_axis(p, kWidth), p.in_channels,
                                                  p.out_channels, kernels.vector_bytes);
  run_tap_conv<T>(c, kernels, input, weight.data, weight_strides(p, c, weight.stride, 0, 1),
                  epilogue, output);
}

template <typename T>
void conv2d_input_grad(const ConvProblem& p, View<const T> weight, View<const T> delta,
                       View<T> input_grad) {
  const auto kernels = table<T>();
  for (int64_t i = 0; i < std::min(p.stride[kHeight], p.in_size[kHeight]); ++i)
    for (int64_t j = 0; j < std::min(p.stride[kWidth], p.in_size[kWidth]); ++j) {
      const TapConv c = make_tap_conv<Accumulator<T>>(p, input_grad_axis(p, kHeight, i),
                                                      input_grad_axis(p, kWidth, j),
                                                      p.out_channels, p.in_channels,
                                                      kernels.vector_bytes);
      run_tap_conv<T>(c, kernels, delta, weight.data, weight_strides(p, c, weight.stride, 1, 0),
                      {}, input_grad);
    }
}

template <typename T>
void conv2d_weight_grad(const ConvProblem& p, View<const T> input, View<const T> delta,
                        View<T> weight_grad, T* bias_grad) {
  using Acc = Accumulator<T>;
  const auto kernels = table<T>();
  const WeightGrad plan = plan_weight_grad(
      make_tap_conv<Acc>(p, forward_axis(p, kHeight), forward_axis(p, kWidth), p.in_channels,
                         p.out_channels, kernels.vector_bytes),
      sizeof(Acc));
  const Scratch sums_block =
      Scratch::take<Acc>(ScratchName::kPartial, plan.chunks * plan.sums_a_chunk());
  Acc* const sums = sums_block.data<Acc>();
  const auto kernel = kernels.weight_grad[plan.tap.depthwise][is_wide(kernels, plan.tap)];
  parallel_for(plan.tasks(), [&](int64_t begin, int64_t end) {
    kernel(plan, input, delta, bias_grad != nullptr, sums, begin, end);
  });

  // The chunks' sums, added in their order.
  const TapConv& c = plan.tap;
  const auto total = [&](int64_t o, int64_t row) {
    const Acc* from = sums + o / c.lanes * plan.sums_a_group() + row * plan.lanes_padded() + o % c.lanes;
    Acc sum = *from;
    for (int64_t chunk = 1; chunk < plan.chunks; ++chunk) sum += from[chunk * plan.sums_a_chunk()];
    return sum;
  };
  parallel_for(p.groups * p.out_channels, [&](int64_t begin, int64_t end) {
    for (int64_t o = begin; o < end; ++o) {
      for (int64_t r = 0, row = 0; r < p.kernel[kHeight]; ++r)
        for (int64_t s = 0; s < p.kernel[kWidth]; ++s)
          for (int64_t k = 0; k < p.in_channels; ++k, ++row)
            weight_grad.at(o, k, r, s) = store<T>(total(o, row));
      if (bias_grad) bias_grad[o] = store<T>(total(o, plan.rows()));
    }
  });
}

#define CONVBP_INSTANTIATE(T)                                                                    \
  template void conv2d(const ConvProblem&, View<const T>, View<const T>, const Epilogue<T>&,     \
                       View<T>);                                                                 \
  template void conv2d_input_grad(const ConvProblem&, View<const T>, View<const T>, View<T>);    \
  template void conv2d_weight_grad(const ConvProblem&, View<const T>, View<const T>, View<T>, T*);
CONVBP_INSTANTIATE(float)
CONVBP_INSTANTIATE(double)
CONVBP_INSTANTIATE(BFloat16)
CONVBP_INSTANTIATE(Half)
#undef CONVBP_INSTANTIATE

}  // namespace convbp::direct
