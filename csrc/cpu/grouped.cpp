// Planning of the grouped algorithm: bundles of groups, tiles, tasks. Kernels are in grouped_kernel.h.
#include "grouped.h"

#include <algorithm>
#include <utility>

#include "capability.h"
#include "element.h"
#include "grouped_table.h"
#include "parallel.h"
#include "scratch.h"

namespace convbp::grouped {
namespace {

constexpr int64_t kMostChannels = 16;
// A tile's patch and results should stay in the first-level cache.
constexpr int64_t kTileBytes = 32 * 1024;
// Rows a tile should have before it is cut across: each brings filter rows of its neighbours along.
constexpr int64_t kTileRows = 4;
// The weight gradient is cut into about this many tasks, whatever the machine, and its partial sums
// have about this size: the cut fixes their order.
constexpr int64_t kWeightGradTasks = 32;
constexpr int64_t kWeightGradBytes = 1024 * 1024;

template <typename T>
Table<T> table() {
  return CONVBP_IN_BEST_ISA(make_table<T>());
}

int64_t groups_together(const ConvProblem& p, int64_t vector) {
  const int64_t most = vector / std::max(p.in_channels, p.out_channels);
  return std::clamp<int64_t>(most, 1, p.groups);
}

Grouped plan(const ConvProblem& p, Axis h, Axis w, int64_t reduce, int64_t lanes, int64_t vector,
             int64_t element_bytes) {
  Grouped g;
  g.together = groups_together(p, vector);
  TapConv& c = g.tap;
  c.batch = p.batch;
  c.groups = p.groups;
  c.reduce = reduce;
  c.lanes = lanes;
  c.block = vector;
  c.channels = p.groups * lanes;
  c.h = std::move(h);
  c.w = std::move(w);

  const auto fits = [&](int64_t rows, int64_t columns) {
    const int64_t patch = c.h.cheapest_rows(rows) * c.w.cheapest_rows(columns) * g.pitch();
    return (patch + rows * columns * g.vectors() * vector) * element_bytes <= kTileBytes;
  };
  int64_t rows = std::min(kTileRows, c.h.count), columns = c.w.count;
  while (columns > 1 && !fits(rows, columns)) columns = divide_up(columns, 2);
  while (rows < c.h.count && fits(rows + 1, columns)) ++rows;
  c.w.set_tile(balanced_tile(c.w.count, columns));
  c.h.set_tile(balanced_tile(c.h.count, rows));
  return g;
}

// The groups' filters in lanes; `lane` and `reduce` are the dimensions of the weight that hold the
// channels of the result and of the sum. Lanes that do not exist are zero.
template <typename T, typename Acc>
void pack_filters(const ConvProblem& p, const Grouped& g, View<const T> weight, int lane, int reduce,
                  Acc* to) {
  const TapConv& c = g.tap;
  const int64_t group = p.out_channels * weight.stride[0];
  for (int64_t bundle = 0; bundle < g.bundles(); ++bundle)
    for (int64_t v = 0; v < g.vectors(); ++v)
      for (const int64_t r : c.h.taps)
        for (const int64_t s : c.w.taps)
          for (int64_t k = 0; k < c.reduce; ++k, to += c.block)
            for (int64_t l = 0; l < c.block; ++l) {
              const int64_t of_bundle = v * c.block + l;
              const T* from = weight.data + (bundle * g.together + of_bundle / c.lanes) * group +
                              of_bundle % c.lanes * weight.stride[lane] +
                              k * weight.stride[reduce] + r * weight.stride[2] +
                              s * weight.stride[3];
              to[l] = l < g.lanes_of(bundle, v) ? load<Acc>(*from) : Acc(0);
            }
}

template <typename T>
void run(const ConvProblem& p, Grouped g, const Table<T>& kernels, View<const T> source,
         View<const T> weight, int lane, int reduce, const Epilogue<T>& epilogue, View<T> result) {
  using Acc = Accumulator<T>;
  TapConv& c = g.tap;
  while (g.tiles() * g.bundles() < 3 * thread_count() && c.h.tile > 4)
    c.h.set_tile(divide_up(c.h.tile, 2));
  const Scratch filter_block = Scratch::take<Acc>(ScratchName::kWeight,
                                                  g.bundles() * g.vectors() * g.filters_size());
  Acc* const filters = filter_block.template data<Acc>();
  pack_filters<T, Acc>(p, g, weight, lane, reduce, filters);
  parallel_for(g.tiles() * g.bundles(), [&](int64_t begin, int64_t end) {
    kernels.tap_conv(g, source, filters, epilogue, result, begin, end);
  });
}

}  // namespace

bool takes(const ConvProblem& p, int64_t element_bytes) {
  const int64_t most = std::max(p.in_channels, p.out_channels);
  if (p.groups == 1 || most == 1 || most > kMostChannels) return false;
  const auto kernels = table<float>();
  const int64_t vector = kernels.vector_bytes / element_bytes;
  return groups_together(p, vector) == 1 || kernels.permutes;
}

template <typename T>
void conv2d(const ConvProblem& p, View<const T> input, View<const T> weight,
            const Epilogue<T>& epilogue, View<T> output) {
  const auto kernels = table<T>();
  constexpr int64_t kBytes = sizeof(Accumulator<T>);
  run<T>(p,
         plan(p, forward_axis(p, kHeight), forward_axis(p, kWidth), p.in_channels, p.out_channels,
              kernels.vector_bytes / kBytes, kBytes),
         kernels, input, weight, 0, 1, epilogue, output);
}

template <typename T>
void conv2d_input_grad(const ConvProblem& p, View<const T> weight, View<const T> delta,
                       View<T> input_grad) {
  const auto kernels = table<T>();
  constexpr int64_t kBytes = sizeof(Accumulator<T>);
  for (int64_t i = 0; i < std::min(p.stride[kHeight], p.in_size[kHeight]); ++i)
    for (int64_t j = 0; j < std::min(p.stride[kWidth], p.in_size[kWidth]); ++j)
      run<T>(p,
             plan(p, input_grad_axis(p, kHeight, i), input_grad_axis(p, kWidth, j),
                  p.out_channels, p.in_channels, kernels.vector_bytes / kBytes, kBytes),
             kernels, delta, weight, 1, 0, {}, input_grad);
}

template <typename T>
void conv2d_weight_grad(const ConvProblem& p, View<const T> input, View<const T> delta,
                        View<T> weight_grad, T* bias_grad) {
  using Acc = Accumulator<T>;
  const auto kernels = table<T>();
  WeightGrad plan;
  plan.grouped = grouped::plan(p, forward_axis(p, kHeight), forward_axis(p, kWidth),
                               p.in_channels, p.out_channels,
                               kernels.vector_bytes / static_cast<int64_t>(sizeof(Acc)),
                               sizeof(Acc));
  const Grouped& g = plan.grouped;
  const TapConv& c = g.tap;
  const int64_t chunk_bytes = plan.sums_a_chunk() * static_cast<int64_t>(sizeof(Acc));
  plan.chunks = std::max<int64_t>(
      1, std::min({g.tiles(), kWeightGradTasks, kWeightGradBytes / chunk_bytes}));
  plan.bundles_a_task = divide_up(
      g.bundles(), std::min(g.bundles(), divide_up(kWeightGradTasks, plan.chunks)));
  const Scratch sums_block =
      Scratch::take<Acc>(ScratchName::kPartial, plan.chunks * plan.sums_a_chunk());
  Acc* const sums = sums_block.template data<Acc>();
  parallel_for(plan.tasks(), [&](int64_t begin, int64_t end) {
    kernels.weight_grad(plan, input, delta, sums, begin, end);
  });

  // The chunks' sums, added in their order.
  const int64_t of_bundle = g.together * c.lanes;
  parallel_for(c.channels, [&](int64_t begin, int64_t end) {
    for (int64_t o = begin; o < end; ++o) {
      const int64_t lane = o % of_bundle;
      const Acc* const first = sums + (o / of_bundle * g.vectors() + lane / c.block) *
                                          plan.sums_a_vector() + lane % c.block;
      const auto total = [&](int64_t row) {
        const Acc* from = first + row * c.block;
        Acc sum = *from;
        for (int64_t chunk = 1; chunk < plan.chunks; ++chunk)
          sum += from[chunk * plan.sums_a_chunk()];
        return store<T>(sum);
      };
      int64_t row = 0;
      for (int64_t r = 0; r < p.kernel[kHeight]; ++r)
        for (int64_t s = 0; s < p.kernel[kWidth]; ++s)
          for (int64_t k = 0; k < p.in_channels; ++k) weight_grad.at(o, k, r, s) = total(row++);
      if (bias_grad) bias_grad[o] = total(row);
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
#undef CONVBP_INSTANTIATE

}  // namespace convbp::grouped
