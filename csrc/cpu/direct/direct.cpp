// Planning of the direct algorithm: tiles, tasks, phases. Kernels are in kernel.h.
#include "cpu/direct/direct.h"

#include "core/types.h"
#include "cpu/capability.h"
#include "cpu/direct/plan.h"
#include "cpu/direct/table.h"
#include "cpu/parallel.h"
#include "cpu/scratch.h"
#include "cpu/stream_rule.h"

#include <algorithm>
#include <type_traits>
#include <utility>

namespace convbp::direct {
namespace {

// The bytes of a patch, which should stay in the second-level cache beside a block of weights.
constexpr int64_t kPatchBytes = 128 * 1024;
// The bytes of an NCHW patch: nothing else needs the cache, and planes are best read as a whole.
constexpr int64_t kNchwBytes = 384 * 1024;
// The most pixels of a tile: a larger tile saves nothing more.
constexpr int64_t kMostPixels = 1024;
// Limits of few channels, of few products in a sum, and of few pixels in an image.
constexpr int64_t kFewChannels = 4;
constexpr int64_t kShortSum = 160;
constexpr int64_t kFewPixels = 100;
// The weight gradient is cut into about this many tasks, whatever the machine: the cut
// fixes the order of its sums.
constexpr int64_t kWeightGradTasks = 32;
// A task's rows and lanes of sums, which stay in the second-level cache: few rows and many lanes,
// since delta is the smaller side to read again.
constexpr int64_t kWeightGradRows = 320;
constexpr int64_t kWeightGradOutChannels = 128;
constexpr int64_t kWeightGradBytes = 16 * 1024 * 1024;

template <typename T>
KernelTable<T, Accumulator<T>> best_kernels() {
#if defined(__x86_64__)
  if constexpr (std::is_same_v<T, BFloat16>)
    if (capability() >= Capability::kAvx512Bf16) return avx512_bf16::kernels<T, float>();
#endif
  return CONVBP_IN_BEST_ISA(kernels<T, Accumulator<T>>());
}

// The kernels for channel blocks of the width that c has.
template <typename T, typename Acc>
LaneKernels<T, Acc> kernels_for(const KernelTable<T, Acc>& kernels, const GatherConv& c) {
  const int64_t halves = 2 * c.oc_block / kernels.lanes();
  return c.depthwise ? kernels.depthwise[halves > 2] : kernels.kernels(halves);
}

// Chooses tiles so that a patch of `channels` channels, plus `extra` numbers a pixel, fits into
// `bytes`.
void choose_tiles(GatherConv& c, int64_t bytes, int64_t element_bytes, int64_t channels,
                  int64_t extra) {
  const int64_t budget = bytes / element_bytes;
  int64_t images = 1, rows = 1, columns = c.w.count;
  const auto fits = [&](int64_t b, int64_t h, int64_t w) {
    const double patch =
        static_cast<double>(b) * c.h.cheapest_rows(h) * c.w.cheapest_rows(w) * channels;
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

// The axis of one patch for all phases of an axis.
ConvAxis axis_of_patch(const Phases& phases) {
  ConvAxis a;
  a.count = phases.axes.front().count;
  a.source_size = phases.axes.front().source_size;
  a.step = phases.axes.front().step;
  for (const ConvAxis& phase : phases.axes)
    a.offset.insert(a.offset.end(), phase.offset.begin(), phase.offset.end());
  std::sort(a.offset.begin(), a.offset.end());
  a.offset.erase(std::unique(a.offset.begin(), a.offset.end()), a.offset.end());
  a.taps.resize(a.offset.size());
  return a;
}

// True where an NCHW patch is faster, with pixels in the lanes. Few result channels leave lanes
// empty, whatever the layout; few source channels make sums so short that it counts how results are
// stored. It is not for small images, whose rows fill no vector, nor where most rows of a patch
// would lie between taps.
bool should_use_nchw(const GatherConv& c, const int64_t* result_stride) {
  if (c.depthwise || c.h.count * c.w.count < kFewPixels) return false;
  for (const ConvAxis* a : {&c.h, &c.w})
    if (a->dense_rows(a->count) > a->count * a->tap_count() ||
        a->dense_rows(1) > 2 * a->tap_count())
      return false;
  return c.out_channels <= kFewChannels || (c.in_channels <= kFewChannels && result_stride[3] == 1);
}

// True where results that an activation follows go past the caches. With pixels in the lanes that
// costs more than it gains: channels write in turn, each a part of a line.
template <typename T>
bool should_stream_results(const DirectConv& conv, View<T> result) {
  const GatherConv& c = conv.gather;
  const auto bytes = [](int64_t count) { return count * static_cast<int64_t>(sizeof(T)); };
  return std::is_same_v<T, float> && !conv.nchw && result.stride[1] == 1 &&
         bytes(c.oc_block) % kLineBytes == 0 && should_stream(bytes(c.batch * result.stride[0])) &&
         has_whole_lines(result.data, result.stride, c.out_channels);
}

template <typename T>
void run_gather_conv(const ConvProblem& p, Phases h, Phases w, View<const T> source,
                     View<const T> weight, const Epilogue<T>& epilogue, View<T> result,
                     bool forward) {
  using Acc = Accumulator<T>;
  const auto kernels = best_kernels<T>();
  DirectConv conv;
  conv.channels = forward ? p.in_channels : p.out_channels;
  GatherConv& c = conv.gather;
  c = make_gather_conv(p, axis_of_patch(h), axis_of_patch(w), conv.channels,
                       forward ? p.out_channels : p.in_channels, kernels.lanes());
  conv.h = std::move(h);
  conv.w = std::move(w);
  if (should_use_nchw(c, result.stride)) {
    conv.nchw = true;
    c.oc_block = c.out_channels <= kFewChannels ? c.out_channels : kernels.most_nchw_channels;
  } else if (kernels.pack_pairs && !c.depthwise) {
    conv.pairs = true;
    c.in_channels = divide_up(c.in_channels, 2);
  } else if (!c.depthwise) {
    c.oc_block = fitting_channel_block(c.out_channels, kernels.lanes(), kernels.vector_bytes);
  }
  const bool short_sums = kernels.short_sums && !conv.nchw && !conv.pairs && !c.depthwise &&
                          result.stride[1] == 1 && c.in_channels * c.taps() <= kShortSum &&
                          c.out_channels % (4 * kernels.lanes()) == 0;
  if (short_sums) c.oc_block = 4 * kernels.lanes();
  choose_tiles(c, conv.nchw ? kNchwBytes : kPatchBytes, sizeof(Acc), c.in_channels, 0);
  spread_over_threads(c, 1, 32);
  conv.streamed = should_stream_results(conv, result);
  const WeightStrides strides = weight_strides(p, c, weight.stride, !forward, forward);
  const int64_t blocks = c.groups * c.blocks();
  const Scratch weight_block =
      Scratch::take<Acc>(ScratchName::kWeight, blocks * conv.packed_block_size());
  void* const packed = weight_block.data<void>();
  const auto pack_weight = conv.pairs ? kernels.pack_pairs : kernels.pack_weight;
  parallel_for(blocks, [&](int64_t begin, int64_t end) {
    pack_weight(conv, weight.data, strides, packed, begin, end);
  });
  const auto gather_conv = conv.pairs   ? kernels.pairs[c.oc_block > kernels.lanes()]
                           : conv.nchw  ? kernels.nchw(c.oc_block)
                           : short_sums ? kernels.short_sums
                                        : kernels_for(kernels, c).gather_conv;
  parallel_for(c.tasks(), [&](int64_t begin, int64_t end) {
    gather_conv(conv, source, packed, epilogue, result, begin, end);
  });
}

DirectWeightGrad plan_weight_grad(GatherConv gather, int64_t element_bytes) {
  DirectWeightGrad plan;
  plan.gather = std::move(gather);
  GatherConv& c = plan.gather;
  constexpr int64_t kPanel = DirectWeightGrad::kPanel;
  const int64_t panels = std::max<int64_t>(1, kWeightGradRows / c.taps() / kPanel);
  plan.ic_per_task =
      c.depthwise ? c.in_channels
                  : std::min(std::max<int64_t>(1, c.in_channels),
                             kPanel * balanced_tile(divide_up(c.in_channels, kPanel), panels));
  const auto set_oc_per_task = [&](int64_t most) {
    plan.oc_per_task = std::max<int64_t>(1, most / c.oc_block) * c.oc_block;
  };
  set_oc_per_task(kWeightGradOutChannels);
  choose_tiles(c, kPatchBytes, element_bytes, plan.ic_per_task,
               std::min(c.out_channels, plan.oc_per_task));
  const auto cut = [&] {
    plan.chunks = std::max<int64_t>(
        1, std::min({plan.tiles(), kWeightGradTasks / plan.parts(),
                     kWeightGradBytes / (plan.parts() * plan.sums_per_task() * element_bytes)}));
  };
  cut();
  while (plan.tasks() < kWeightGradTasks / 2 && plan.oc_per_task > c.oc_block) {
    set_oc_per_task(plan.oc_per_task / 2);
    cut();
  }
  return plan;
}

}  // namespace

template <typename T>
void conv2d(const ConvProblem& p, View<const T> input, View<const T> weight,
            const Epilogue<T>& epilogue, View<T> output) {
  run_gather_conv<T>(p, {{forward_axis(p, kHeight)}}, {{forward_axis(p, kWidth)}}, input, weight,
                     epilogue, output, true);
}

template <typename T>
void conv2d_input_grad(const ConvProblem& p, View<const T> weight, View<const T> delta,
                       View<T> input_grad) {
  run_gather_conv<T>(p, {input_grad_axes(p, kHeight)}, {input_grad_axes(p, kWidth)}, delta, weight,
                     {}, input_grad, false);
}

template <typename T>
void conv2d_weight_grad(const ConvProblem& p, View<const T> input, View<const T> delta,
                        View<T> weight_grad, T* bias_grad) {
  using Acc = Accumulator<T>;
  const auto kernels = best_kernels<T>();
  GatherConv gather = make_gather_conv(p, forward_axis(p, kHeight), forward_axis(p, kWidth),
                                       p.in_channels, p.out_channels, kernels.lanes());
  if (!gather.depthwise)
    gather.oc_block =
        fitting_channel_block(gather.out_channels, kernels.lanes(), kernels.vector_bytes);
  const DirectWeightGrad plan = plan_weight_grad(std::move(gather), sizeof(Acc));
  const Scratch sums_block =
      Scratch::take<Acc>(ScratchName::kPartial, plan.tasks() * plan.sums_per_task());
  Acc* const sums = sums_block.data<Acc>();
  const GatherConv& c = plan.gather;
  const auto kernel = kernels_for(kernels, c).weight_grad;
  parallel_for(plan.tasks(), [&](int64_t begin, int64_t end) {
    kernel(plan, input, delta, bias_grad != nullptr, sums, begin, end);
  });

  // Adds the chunks' sums in their order, a few lanes at a time, which are neighbours there.
  constexpr int64_t kNear = 16;
  const int64_t sums_per_chunk = plan.parts() * plan.sums_per_task();
  const auto totals = [&](const Acc* from, int64_t lanes, T* to, int64_t to_lane) {
    Acc sum[kNear];
    for (int64_t lane = 0; lane < lanes; ++lane) sum[lane] = from[lane];
    for (int64_t chunk = 1; chunk < plan.chunks; ++chunk)
      for (int64_t lane = 0; lane < lanes; ++lane) sum[lane] += from[chunk * sums_per_chunk + lane];
    for (int64_t lane = 0; lane < lanes; ++lane) to[lane * to_lane] = store<T>(sum[lane]);
  };
  const int64_t near_per_task = divide_up(plan.sums_per_row(), kNear);
  parallel_for(plan.parts() * near_per_task, [&](int64_t begin, int64_t end) {
    for (int64_t task = begin; task < end; ++task) {
      const int64_t part = task / near_per_task, o0 = task % near_per_task * kNear;
      const int64_t first_channel = part % plan.oc_tasks() * plan.oc_per_task;
      const int64_t k0 = part / plan.oc_tasks() % plan.ic_tasks() * plan.ic_per_task;
      const int64_t g = part / plan.oc_tasks() / plan.ic_tasks();
      const int64_t o = g * c.out_channels + first_channel + o0;
      const int64_t lanes =
          std::min(kNear, std::min(plan.oc_per_task, c.result_channels(g) - first_channel) - o0);
      const int64_t channels = c.depthwise ? 1 : std::min(plan.ic_per_task, c.in_channels - k0);
      const Acc* const first = sums + part * plan.sums_per_task() + o0;
      // The taps of a channel lie side by side in memory: lines are written once.
      for (int64_t k = 0; k < channels; ++k)
        for (int64_t r = 0; r < p.kernel[kHeight]; ++r)
          for (int64_t s = 0; s < p.kernel[kWidth]; ++s) {
            const int64_t row = (r * p.kernel[kWidth] + s) * channels + k;
            totals(first + row * plan.sums_per_row(), lanes, &weight_grad.at(o, k0 + k, r, s),
                   weight_grad.stride[0]);
          }
      const Acc* const bias_row = first + c.taps() * channels * plan.sums_per_row();
      if (bias_grad && k0 == 0) totals(bias_row, lanes, bias_grad + o, 1);
    }
  });
}

CONVBP_INSTANTIATE_OPERATORS(float)
CONVBP_INSTANTIATE_OPERATORS(double)
CONVBP_INSTANTIATE_OPERATORS(BFloat16)
CONVBP_INSTANTIATE_OPERATORS(Half)

}  // namespace convbp::direct
