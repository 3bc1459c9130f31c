// Planning of the Winograd algorithm: tiles, tasks, chunks. Kernels are in winograd_kernel.h.
#include "winograd.h"

#include <algorithm>
#include <type_traits>

#include "capability.h"
#include "../element.h"
#include "parallel.h"
#include "scratch.h"
#include "winograd_plan.h"
#include "winograd_table.h"

namespace convbp::winograd {
namespace {

// A task's transformed tiles and products should stay in the second-level cache beside a block of
// filters.
constexpr int64_t kTaskBytes = 640 * 1024;
constexpr int64_t kMostTiles = 64;
// Of the weight gradient: with fewer, its sums would be brought into registers and back too often.
constexpr int64_t kWeightGradLeastTiles = 32;
// As for the direct algorithm: the cut fixes the order of the sums, so it depends on the problem
// alone.
constexpr int64_t kWeightGradTasks = 16;
constexpr int64_t kWeightGradBytes = 32 * 1024 * 1024;
constexpr int64_t kWeightGradLanes = 64, kWeightGradChannels = 128;

// Kernels for so many result channels a group.
template <typename T>
Table<T> table(int64_t out, int64_t lanes) {
#if defined(__x86_64__)
  // They fill two of the shorter vectors, and would leave half of the longer ones' lanes empty.
  if (lanes <= 16 && capability() >= Capability::kAvx2) return avx2::make_table<T>(out);
#endif
  return CONVBP_IN_BEST_ISA(make_table<T>(out));
}

template <typename T>
Winograd plan(TapConv tap, int64_t out, const Table<T>& kernels, int64_t channels,
              int64_t lanes, int64_t least_tiles) {
  Winograd p;
  p.out = out;
  p.lanes = kernels.vector_bytes / static_cast<int64_t>(sizeof(float));
  p.tap = std::move(tap);
  TapConv& c = p.tap;
  c.block = 2 * p.lanes;
  p.channels_a_task = balanced_tile(c.reduce, channels);
  p.lanes_a_task = std::min(lanes, Winograd::round_up(c.lanes, c.block));
  const int64_t tile_bytes =
      p.positions() * (p.pitch() + p.lanes_a_task) * static_cast<int64_t>(sizeof(float));
  const int64_t most = std::clamp<int64_t>(kTaskBytes / tile_bytes, least_tiles, kMostTiles);
  const int64_t down = divide_up(c.h.count, out), across = divide_up(c.w.count, out);
  const int64_t columns = balanced_tile(across, std::min(across, most));
  const int64_t rows = columns < across ? 1 : balanced_tile(down, std::min(down, most / across));
  const int64_t images =
      columns < across || rows < down ? 1 : balanced_tile(c.batch, most / (down * across));
  c.w.set_tile(columns * out);
  c.h.set_tile(rows * out);
  c.batch_tile = images;
  p.most_tiles = images * rows * columns;
  return p;
}

// Enough tasks for every thread: tasks of one extent take different lane blocks, and what a thread
// transformed for one serves the next; only then are extents cut, which makes every filter be read
// more often.
void spread(Winograd& p) {
  TapConv& c = p.tap;
  const int64_t threads = thread_count();
  if (threads == 1 || c.pixel_tasks() >= 3 * threads) return;
  c.lane_split = c.blocks();
  if (c.tasks() >= 2 * threads) return;
  const int64_t split = c.lane_split;
  spread_over_threads(c, p.out, p.out * p.out);
  c.lane_split = split;
}

// Of the tile sizes the larger one, unless its tiles would be mostly outside the result.
int64_t choose_out(const TapConv& c) {
  const auto products = [&](int64_t out) {
    return divide_up(c.h.count, out) * divide_up(c.w.count, out) * (out + 2) * (out + 2);
  };
  return products(4) <= products(2) ? 4 : 2;
}

template <typename T>
void run_tap_conv(TapConv tap, View<const T> source, const T* weight, const WeightStrides& strides,
                  const Epilogue<T>& epilogue, View<T> result) {
  const int64_t out = choose_out(tap);
  const auto kernels = table<T>(out, tap.lanes);
  const int64_t channels = tap.reduce;
  // All tiles in one task, where that is possible, read the filters once: that saves more than
  // tiles that leave the second-level cache cost.
  const int64_t tiles = tap.batch * divide_up(tap.h.count, out) * divide_up(tap.w.count, out);
  Winograd p = plan<T>(std::move(tap), out, kernels, channels,
                       2 * kernels.vector_bytes / sizeof(float),
                       tiles <= kMostTiles ? kMostTiles : kernels.rows);
  TapConv& c = p.tap;
  spread(p);
  const int64_t blocks = c.groups * c.blocks();
  // Filters that one task alone uses are transformed by it: they need not leave the cache.
  const bool shared = c.pixel_tasks() > c.groups;
  const Scratch filter_block =
      Scratch::take<float>(ScratchName::kWeight, shared ? blocks * p.filter_block() : 0);
  float* const filters = shared ? filter_block.data<float>() : nullptr;
  if (shared)
    parallel_for(blocks, [&](int64_t begin, int64_t end) {
      kernels.filters(p, weight, strides, filters + begin * p.filter_block(), begin, end);
    });
  parallel_for(c.tasks(), [&](int64_t begin, int64_t end) {
    kernels.tap_conv(p, source, weight, strides, filters, epilogue, result, begin, end);
  });
}

template <typename T>
TapConv forward(const ConvProblem& p) {
  return make_tap_conv(p, forward_axis(p, kHeight), forward_axis(p, kWidth), p.in_channels,
                       p.out_channels, 1);
}

}  // namespace

bool takes(const ConvProblem& p) {
  for (const Spatial axis : {kHeight, kWidth})
    if (p.kernel[axis] != 3 || p.stride[axis] != 1 || p.dilation[axis] != 1) return false;
  // Without channels there is nothing to transform; with one a group, make_tap_conv takes groups
  // for lanes.
  return p.in_channels > 0 && (p.in_channels > 1 || p.out_channels > 1 || p.groups == 1);
}

// A tile takes 36 products for 16 results of 9 products each, so four times fewer where tiles are
// whole; transforms cost about as much as 8 channels more, on either side of the product, and the
// transform of the filters as much as a tile's products. Measured: below 8 channels on one side, on
// pictures of one or two pixels, and where less than a third of the tiles' pixels exist, the direct
// kernels are faster (python -m experiments.speed --sweep shows the choice beside the best).
bool pays(const ConvProblem& p, Operator op) {
  const int64_t fewer = std::min(p.in_channels, p.out_channels);
  if (fewer < 8 || std::max(p.in_channels, p.out_channels) < 16) return false;
  const int64_t* size = op == Operator::kInputGrad ? p.in_size : p.out_size;
  if (std::max(size[kHeight], size[kWidth]) <= 2) return false;
  const int64_t whole = Winograd::round_up(size[kHeight], 4) * Winograd::round_up(size[kWidth], 4);
  return 3 * size[kHeight] * size[kWidth] >= whole;
}

template <typename T>
void conv2d(const ConvProblem& p, View<const T> input, View<const T> weight,
            const Epilogue<T>& epilogue, View<T> output) {
  TapConv c = forward<T>(p);
  const WeightStrides strides = weight_strides(p, c, weight.stride, 0, 1);
  run_tap_conv<T>(std::move(c), input, weight.data, strides, epilogue, output);
}

template <typename T>
void conv2d_input_grad(const ConvProblem& p, View<const T> weight, View<const T> delta,
                       View<T> input_grad) {
  TapConv c = make_tap_conv(p, input_grad_axis(p, kHeight, 0), input_grad_axis(p, kWidth, 0),
                            p.out_channels, p.in_channels, 1);
  const WeightStrides strides = weight_strides(p, c, weight.stride, 1, 0);
  run_tap_conv<T>(std::move(c), delta, weight.data, strides, {}, input_grad);
}

template <typename T>
void conv2d_weight_grad(const ConvProblem& problem, View<const T> input, View<const T> delta,
                        View<T> weight_grad, T* bias_grad) {
  TapConv tap = forward<T>(problem);
  const int64_t out = choose_out(tap);
  const auto kernels = table<T>(out, tap.lanes);
  Winograd p =
      plan<T>(std::move(tap), out, kernels, kWeightGradChannels, kWeightGradLanes,
              kWeightGradLeastTiles);
  const int64_t bytes = p.tasks_a_chunk() * p.sums_a_task() * static_cast<int64_t>(sizeof(float));
  p.chunks = std::max<int64_t>(
      1, std::min({p.extents(), kWeightGradTasks / p.tasks_a_chunk(), kWeightGradBytes / bytes}));

  // Sums of a single chunk are made filters by their task: they need not leave the cache.
  const bool together = p.chunks > 1;
  const Scratch sums_block =
      Scratch::take<float>(ScratchName::kWeight, together ? p.tasks() * p.sums_a_task() : 0);
  float* const sums = together ? sums_block.data<float>() : nullptr;
  parallel_for(p.tasks(), [&](int64_t begin, int64_t end) {
    kernels.weight_grad(p, input, delta, sums, weight_grad, bias_grad, begin, end);
  });
  if (together)
    parallel_for(p.tasks_a_chunk() * p.parts_a_task(), [&](int64_t begin, int64_t end) {
      kernels.weight_grad_total(p, sums + begin / p.parts_a_task() * p.sums_a_task(), weight_grad,
                                bias_grad, begin, end);
    });
}

CONVBP_INSTANTIATE_OPERATORS(float)
CONVBP_INSTANTIATE_OPERATORS(BFloat16)
CONVBP_INSTANTIATE_OPERATORS(Half)

}  // namespace convbp::winograd
