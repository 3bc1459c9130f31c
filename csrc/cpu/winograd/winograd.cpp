// Planning of the Winograd algorithm: tiles, tasks, chunks. Kernels are in kernel.h.
#include "cpu/winograd/winograd.h"

#include <algorithm>
#include <array>
#include <type_traits>
#include <utility>

#include "core/types.h"
#include "cpu/capability.h"
#include "cpu/parallel.h"
#include "cpu/scratch.h"
#include "cpu/stream_rule.h"
#include "cpu/winograd/plan.h"
#include "cpu/winograd/table.h"

namespace convbp::winograd {
namespace {

// A task's transformed tiles and products should stay in the second-level cache beside a block of
// filters.
constexpr int64_t kTaskBytes = 640 * 1024;
constexpr int64_t kMostTiles = 64;
// The most bytes of transformed filters that stay in the cache: more come from memory, for each
// task anew.
constexpr int64_t kFiltersBytes = 16 * 1024 * 1024;
// Limits of the cut of the weight gradient. The cut fixes the order of the sums, so it depends on
// the problem alone, as for the direct algorithm. Each chunk has sums of its own, as many as all
// filters have points: with fewer tiles, writing and adding these takes longer than computing them.
constexpr int64_t kWeightGradTasks = 16, kWeightGradLeastTasks = 4;
constexpr int64_t kWeightGradChunkTiles = 256;
constexpr int64_t kWeightGradBytes = 32 * 1024 * 1024;
constexpr int64_t kWeightGradOutChannels = 64, kWeightGradInChannels = 128;

// Kernels for so many result channels a group.
template <typename T>
KernelTable<T> best_kernels(const Form& form, int64_t lanes) {
#if defined(__x86_64__)
  // Up to 16 channels fill two of the shorter vectors, but half of two longer ones.
  if (lanes <= 16 && capability() >= Capability::kAvx2) return avx2::kernels<T>(form, lanes);
#endif
  return CONVBP_IN_BEST_ISA(kernels<T>(form, lanes));
}

// Chooses F(m, n) for a filter's taps on an axis: of a phase, where there are two. Tiles have at
// most 6 points: larger tiles lose too many digits (F(6, 3): 8e-6 and more of the largest result).
// 3 taps have a choice: the larger of two tiles, unless it would be mostly outside the result.
void choose_form(Winograd& p, int64_t kernel, int64_t phases) {
  p.form.taps = divide_up(kernel, phases);
  if (kernel != 3) {
    p.form.out = 7 - p.form.taps;
    return;
  }
  const auto products = [&](int64_t out) {
    Form form = p.form;
    form.out = out;
    return divide_up(p.gather.h.count, out) * divide_up(p.gather.w.count, out) * form.products();
  };
  p.form.out = products(4) <= products(2) ? 4 : 2;
}

// The phases of a source axis are its even and its odd positions, counted from where the first
// result's taps begin.
TileAxis source_phases(const ConvAxis& axis) {
  TileAxis a;
  a.results = axis.count;
  a.source_step = axis.step;
  for (int64_t tap = 0; tap < axis.tap_count(); ++tap)
    a.phases[tap % axis.step].taps[tap / axis.step] = axis.taps[tap];
  a.phases[1].source = 1;
  return a;
}

Winograd forward(const ConvProblem& problem) {
  Winograd p;
  p.gather =
      make_gather_conv(problem, forward_axis(problem, kHeight), forward_axis(problem, kWidth),
                       problem.in_channels, problem.out_channels, 1);
  p.form.source_phases = problem.stride[kHeight];
  choose_form(p, problem.kernel[kHeight], problem.stride[kHeight]);
  p.h = source_phases(p.gather.h);
  p.w = source_phases(p.gather.w);
  return p;
}

// True where the input gradient's axis begins with the phase that tap 1 alone reaches.
bool tap_1_first(const ConvProblem& p, Spatial axis) {
  return input_grad_axis(p, axis, 0).tap_count() == 1;
}

// The axis of the phase that taps 0 and 2 reach: it reads all that the other phase reads.
ConvAxis both_phases_axis(const ConvProblem& p, Spatial axis) {
  ConvAxis a = input_grad_axis(p, axis, tap_1_first(p, axis) ? 1 : 0);
  a.count = divide_up(p.in_size[axis], 2);
  return a;
}

// Tap 1 meets the source positions of a tile that the other phase begins with or, where its results
// come second, those that the other phase ends with. In the second case the tile is taken from its
// end to its beginning, so that the two phases always have their points in common.
TileAxis result_phases(const ConvProblem& p, Spatial axis, int64_t out) {
  TileAxis a;
  a.results = p.in_size[axis];
  if (tap_1_first(p, axis)) {
    a.result_step = 2;
    a.phases = {TileAxis::Phase{{2, 0}, 0, 1}, TileAxis::Phase{{1}, 0, 0}};
  } else {
    a.source_step = -1;
    a.result_step = -2;
    a.phases = {TileAxis::Phase{{0, 2}, out, 2 * out - 2}, TileAxis::Phase{{1}, out, 2 * out - 1}};
  }
  return a;
}

Winograd input_grad(const ConvProblem& problem) {
  Winograd p;
  const bool whole = problem.stride[kHeight] == 1;
  const auto axis = [&](Spatial s) {
    return whole ? input_grad_axis(problem, s, 0) : both_phases_axis(problem, s);
  };
  p.gather = make_gather_conv(problem, axis(kHeight), axis(kWidth), problem.out_channels,
                              problem.in_channels, 1);
  p.form.result_phases = problem.stride[kHeight];
  choose_form(p, problem.kernel[kHeight], problem.stride[kHeight]);
  p.h = whole ? source_phases(p.gather.h) : result_phases(problem, kHeight, p.form.out);
  p.w = whole ? source_phases(p.gather.w) : result_phases(problem, kWidth, p.form.out);
  return p;
}

int64_t all_tiles(const Winograd& p) {
  return p.gather.batch * divide_up(p.gather.h.count, p.form.out) *
         divide_up(p.gather.w.count, p.form.out);
}

template <typename T>
void choose_tiles(Winograd& p, const KernelTable<T>& kernels, int64_t channels, int64_t lanes,
                  int64_t least_tiles) {
  p.lanes = kernels.vector_bytes / static_cast<int64_t>(sizeof(float));
  GatherConv& c = p.gather;
  const int64_t out = p.form.out;
  c.oc_block = kernels.vectors * p.lanes;
  p.ic_per_task = balanced_tile(c.in_channels, channels);
  p.oc_per_task = std::min(lanes, Winograd::round_up(c.out_channels, c.oc_block));
  const int64_t axis_points = p.form.points(p.form.source_phases);
  const int64_t tile_bytes =
      (axis_points * axis_points * p.ic_per_task + p.form.result_points() * p.oc_per_task) *
      static_cast<int64_t>(sizeof(float));
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
}

// Makes enough tasks for every thread. Tasks of one extent take different channel blocks, and what
// a thread transformed for one task serves the next. Only then are extents cut, since every filter
// is then read more often.
void spread(Winograd& p) {
  GatherConv& c = p.gather;
  const int64_t threads = thread_count();
  if (threads == 1 || c.pixel_tasks() >= 3 * threads) return;
  c.oc_split = c.blocks();
  if (c.tasks() >= 2 * threads) return;
  const int64_t split = c.oc_split;
  spread_over_threads(c, p.form.out, p.form.out * p.form.out);
  c.oc_split = split;
}

template <typename T>
void run_gather_conv(Winograd p, View<const T> source, const T* weight,
                     const WeightStrides& strides, const Epilogue<T>& epilogue, View<T> result) {
  const auto kernels = best_kernels<T>(p.form, p.gather.out_channels);
  // One task with all tiles, where that is possible, reads the filters once; many tiles a task read
  // filters that leave the cache less often. Both save more than tiles that leave the second-level
  // cache cost.
  GatherConv& c = p.gather;
  const int64_t filters_bytes = p.form.products() * c.groups * c.in_channels * c.out_channels *
                                static_cast<int64_t>(sizeof(float));
  const bool few_tasks = all_tiles(p) <= kMostTiles || filters_bytes > kFiltersBytes;
  choose_tiles(p, kernels, c.in_channels, kernels.vectors * kernels.vector_bytes / sizeof(float),
               few_tasks ? kMostTiles : kernels.rows);
  const int64_t results = c.batch * c.groups * c.out_channels * p.h.results * p.w.results;
  // Results are streamed where a vector is a line: with shorter vectors the block takes 1.1 times
  // as long.
  p.streamed =
      kernels.vector_bytes == 64 && should_stream(results * static_cast<int64_t>(sizeof(T)));
  spread(p);
  const int64_t blocks = c.groups * c.blocks();
  // Filters that only one task uses are transformed by that task: they need not leave the cache.
  const bool shared = c.pixel_tasks() > c.groups;
  const Scratch filter_block =
      Scratch::take<float>(ScratchName::kWeight, shared ? blocks * p.filter_block() : 0);
  float* const filters = shared ? filter_block.data<float>() : nullptr;
  if (shared)
    parallel_for(blocks, [&](int64_t begin, int64_t end) {
      kernels.filters(p, weight, strides, filters + begin * p.filter_block(), begin, end);
    });
  parallel_for(c.tasks(), [&](int64_t begin, int64_t end) {
    kernels.gather_conv(p, source, weight, strides, filters, epilogue, result, begin, end);
  });
}

}  // namespace

bool can_implement(const ConvProblem& p, Operator op) {
  const int64_t kernel = p.kernel[kHeight], stride = p.stride[kHeight];
  const int64_t dilation = p.dilation[kHeight];
  for (const Spatial axis : {kHeight, kWidth})
    // Each phase of a dilation is computed apart: no more phases than results.
    if (p.kernel[axis] != kernel || p.stride[axis] != stride || p.dilation[axis] != dilation ||
        (dilation > 1 && dilation > p.out_size[axis]))
      return false;
  const bool undilated = (kernel == 3 && stride <= 2) || (kernel == 5 && stride == 1) ||
                         (kernel == 7 && stride == 2 && op != Operator::kInputGrad);
  const bool dilated = kernel == 3 && stride == 1 && op != Operator::kWeightGrad;
  if (!(dilation == 1 ? undilated : dilated)) return false;
  // Transforms need channels. With one channel a group, make_gather_conv takes groups for lanes.
  return p.in_channels > 0 && (p.in_channels > 1 || p.out_channels > 1 || p.groups == 1);
}

// A tile takes 36 products for 16 results of 9 products each, so four times fewer where tiles are
// whole. Transforms cost about as much as 8 channels more, on either side of the product, and the
// transform of the filters as much as a tile's products. Measured: the direct kernels are faster
// below 8 channels on one side, on images of one or two pixels, and where less than a third of the
// tiles' pixels exist (python -m experiments.speed --sweep shows the choice beside the best).
//
// A tile takes 81 products for those 16 results with stride 2, 1.8 times fewer, and has 81 points
// to transform: it wants twice the channels. On small images, where a few tiles use the transformed
// filters a few times only, it also wants whole tiles.
//
// The phases of a dilated 3x3 filter count by their own size: 1.2 to 2.4 times as fast as directly.
// 5x5 filters take 36 products for 4 results of 25, 2.8 times fewer: twice the channels too. 7x7
// filters with stride 2 take 121 for 9 results of 49, and each channel is four, its phases: 3
// channels are enough, with 32 filters.
bool is_profitable(const ConvProblem& p, Operator op) {
  const int64_t stride = p.stride[kHeight], kernel = p.kernel[kHeight];
  const int64_t dilation = p.dilation[kHeight];
  const int64_t fewer = std::min(p.in_channels, p.out_channels);
  const int64_t more = std::max(p.in_channels, p.out_channels);
  if (kernel == 7) {
    if (p.in_channels < 3 || p.out_channels < 16 || p.in_channels * p.out_channels < 80)
      return false;
  } else if (fewer < (kernel == 5 ? 16 : 8) || more < 16 * stride) {
    return false;
  }
  int64_t results = 1, whole = 1;
  bool tiny = true;
  for (const Spatial axis : {kHeight, kWidth}) {
    // The size of a phase, where the results have phases.
    const int64_t apart = op == Operator::kInputGrad ? stride * dilation : dilation;
    const int64_t size =
        divide_up(op == Operator::kInputGrad ? p.in_size[axis] : p.out_size[axis], apart);
    results *= size;
    whole *= Winograd::round_up(size, 4);  // for every filter: one rule
    tiny = tiny && size <= 2;
  }
  if (tiny || 3 * results < whole) return false;
  return stride == 1 || results >= 64 || 5 * results >= 4 * whole;
}

namespace {

// A phase of a dilated convolution: every d-th output, and the inputs that these read, are a
// convolution without dilation.
struct DilationPhase {
  ConvProblem problem;
  int64_t dilation;
  std::array<int64_t, 2> input, output;  // the first position of each, row and column

  static int64_t offset(const int64_t* stride, const std::array<int64_t, 2>& first) {
    return first[kHeight] * stride[2] + first[kWidth] * stride[3];
  }
  template <typename T>
  View<T> of(const View<T>& whole, const std::array<int64_t, 2>& first) const {
    const int64_t* const s = whole.stride;
    return {whole.data + offset(s, first), {s[0], s[1], s[2] * dilation, s[3] * dilation}};
  }
};

// Output row d m + a reads the input rows d (m + r) + a - pad = d (m + r - pad') + first.
template <typename Body>
void for_dilation_phases(const ConvProblem& p, const Body& body) {
  const int64_t d = p.dilation[kHeight];
  for (int64_t phase = 0; phase < d * d; ++phase) {
    DilationPhase part{p, d, {}, {phase / d, phase % d}};
    for (const Spatial axis : {kHeight, kWidth}) {
      const int64_t from = part.output[axis] - p.pad[axis];
      part.problem.pad[axis] = from < 0 ? divide_up(-from, d) : -(from / d);
      part.input[axis] = from + d * part.problem.pad[axis];
      part.problem.dilation[axis] = 1;
      const auto count = [&](int64_t size, int64_t first) {
        return size > first ? divide_up(size - first, d) : 0;
      };
      part.problem.in_size[axis] = count(p.in_size[axis], part.input[axis]);
      part.problem.out_size[axis] = count(p.out_size[axis], part.output[axis]);
    }
    body(part);
  }
}

}  // namespace

template <typename T>
void conv2d(const ConvProblem& problem, View<const T> input, View<const T> weight,
            const Epilogue<T>& epilogue, View<T> output) {
  for_dilation_phases(problem, [&](const DilationPhase& part) {
    Winograd p = forward(part.problem);
    const WeightStrides strides = weight_strides(part.problem, p.gather, weight.stride, 0, 1);
    Epilogue<T> of_part = epilogue;
    if (epilogue.pre_activation)
      of_part.pre_activation = epilogue.pre_activation + part.offset(output.stride, part.output);
    run_gather_conv<T>(std::move(p), part.of(input, part.input), weight.data, strides, of_part,
                       part.of(output, part.output));
  });
}

template <typename T>
void conv2d_input_grad(const ConvProblem& problem, View<const T> weight, View<const T> delta,
                       View<T> input_grad) {
  for_dilation_phases(problem, [&](const DilationPhase& part) {
    // Some phases meet no input where the dilation is larger than the input.
    const auto& size = part.problem.in_size;
    if (size[kHeight] == 0 || size[kWidth] == 0) return;
    Winograd p = winograd::input_grad(part.problem);
    const WeightStrides strides = weight_strides(part.problem, p.gather, weight.stride, 1, 0);
    run_gather_conv<T>(std::move(p), part.of(delta, part.output), weight.data, strides, {},
                       part.of(input_grad, part.input));
  });
}

template <typename T>
void conv2d_weight_grad(const ConvProblem& problem, View<const T> input, View<const T> delta,
                        View<T> weight_grad, T* bias_grad) {
  Winograd p = forward(problem);
  const auto kernels = best_kernels<T>(p.form, p.gather.out_channels);
  // Fewer tiles would bring sums into registers and back too often.
  choose_tiles(p, kernels, kWeightGradInChannels, kWeightGradOutChannels, kMostTiles);
  const int64_t bytes =
      p.tasks_per_chunk() * p.sums_per_task() * static_cast<int64_t>(sizeof(float));
  const int64_t chunks = std::clamp<int64_t>(
      all_tiles(p) / kWeightGradChunkTiles, divide_up(kWeightGradLeastTasks, p.tasks_per_chunk()),
      std::max<int64_t>(1, kWeightGradTasks / p.tasks_per_chunk()));
  p.chunks = std::max<int64_t>(1, std::min({p.extents(), chunks, kWeightGradBytes / bytes}));

  // The sums of a single chunk are transformed by their own task: they need not leave the cache.
  const bool together = p.chunks > 1;
  const Scratch sums_block =
      Scratch::take<float>(ScratchName::kWeight, together ? p.tasks() * p.sums_per_task() : 0);
  float* const sums = together ? sums_block.data<float>() : nullptr;
  parallel_for(p.tasks(), [&](int64_t begin, int64_t end) {
    kernels.weight_grad(p, input, delta, sums, weight_grad, bias_grad, begin, end);
  });
  if (together)
    parallel_for(p.tasks_per_chunk() * p.parts_per_task(), [&](int64_t begin, int64_t end) {
      kernels.weight_grad_total(p, sums + begin / p.parts_per_task() * p.sums_per_task(),
                                weight_grad, bias_grad, begin, end);
    });
}

CONVBP_INSTANTIATE_OPERATORS(float)
CONVBP_INSTANTIATE_OPERATORS(BFloat16)
CONVBP_INSTANTIATE_OPERATORS(Half)

double products(const ConvProblem& problem, Operator op) {
  double count = 0;
  for_dilation_phases(problem, [&](const DilationPhase& part) {
    const Winograd p =
        op == Operator::kInputGrad ? input_grad(part.problem) : forward(part.problem);
    count += static_cast<double>(all_tiles(p)) * p.form.products() * p.gather.groups *
             p.gather.in_channels * p.gather.out_channels;
  });
  return count;
}

}  // namespace convbp::winograd
