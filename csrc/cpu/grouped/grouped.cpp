// Planning of the grouped algorithm: blocks of groups, tiles, tasks. Kernels are in kernel.h.
#include "cpu/grouped/grouped.h"

#include <algorithm>
#include <utility>

#include "cpu/capability.h"
#include "cpu/grouped/table.h"
#include "cpu/parallel.h"
#include "cpu/scratch.h"

namespace convbp::grouped {
namespace {

// A tile's patch and results should stay in the first-level cache.
constexpr int64_t kTileBytes = 32 * 1024;
// The rows that a tile should have before it is cut across: each tile also reads rows of its
// neighbours, as far as the filter reaches.
constexpr int64_t kTileRows = 4;
// The weight gradient is cut into about this many tasks, whatever the machine, and its partial sums
// have about this size: the cut fixes their order.
constexpr int64_t kWeightGradTasks = 32;
constexpr int64_t kWeightGradBytes = 1024 * 1024;

template <typename T>
KernelTable<T> best_kernels() {
  return CONVBP_IN_BEST_ISA(kernels<T>());
}

int64_t groups_per_block(const ConvProblem& p, int64_t vector) {
  const int64_t most = vector / std::max(p.in_channels, p.out_channels);
  return std::clamp<int64_t>(most, 1, p.groups);
}

// Kernels for this number of result channels a group. A group that is a group block of its own
// leaves lanes empty: where half a vector holds its channels, vectors of half the size are used.
template <typename T>
KernelTable<T> kernels_for(const ConvProblem& p, int64_t lanes) {
  const KernelTable<T> best = best_kernels<T>();
#if defined(__x86_64__)
  const int64_t vector = best.vector_bytes / static_cast<int64_t>(sizeof(T));
  if (best.vector_bytes == 64 && groups_per_block(p, vector) == 1 && lanes <= vector / 2)
    return avx2::kernels<T>();
#endif
  return best;
}

template <typename T>
Grouped plan(const ConvProblem& p, ConvAxis h, ConvAxis w, int64_t in_channels,
             int64_t out_channels, const KernelTable<T>& kernels) {
  Grouped g;
  GatherConv& c = g.gather;
  c.batch = p.batch;
  c.groups = p.groups;
  c.in_channels = in_channels;
  c.out_channels = out_channels;
  c.oc_block = kernels.vector_bytes / static_cast<int64_t>(sizeof(T));
  c.channels = p.groups * out_channels;
  c.h = std::move(h);
  c.w = std::move(w);
  g.groups_per_block = groups_per_block(p, c.oc_block);

  const auto fits = [&](int64_t rows, int64_t columns) {
    const int64_t patch = c.h.dense_rows(rows) * c.w.dense_rows(columns) * g.pitch();
    return (patch + rows * columns * c.oc_block) * static_cast<int64_t>(sizeof(T)) <= kTileBytes;
  };
  int64_t rows = std::min(kTileRows, c.h.count), columns = c.w.count;
  while (columns > 1 && !fits(rows, columns)) columns = divide_up(columns, 2);
  while (rows < c.h.count && fits(rows + 1, columns)) ++rows;
  c.w.tile = balanced_tile(c.w.count, columns);
  c.h.tile = balanced_tile(c.h.count, rows);
  return g;
}

// Packs the groups' filters into lanes; `out_channel` and `in_channel` are the dimensions of the
// weight that hold the channels of the result and of the sum. Lanes that do not exist are zero.
template <typename T>
void pack_filters(const Grouped& g, View<const T> weight, int64_t group, int out_channel,
                  int in_channel, T* to, int64_t begin, int64_t end) {
  const GatherConv& c = g.gather;
  for (int64_t vector = begin; vector < end; ++vector) {
    const int64_t group_block = vector / g.vectors(), lane0 = vector % g.vectors() * c.oc_block;
    T* const filters = to + vector * g.filters_size();
    for (int64_t l = 0; l < c.oc_block; ++l) {
      const bool exists = l < g.lanes_of(group_block, vector % g.vectors());
      const T* const from =
          weight.data + (group_block * g.groups_per_block + (lane0 + l) / c.out_channels) * group +
          (lane0 + l) % c.out_channels * weight.stride[out_channel];
      int64_t row = 0;
      for (const int64_t r : c.h.taps)
        for (const int64_t s : c.w.taps)
          for (int64_t k = 0; k < c.in_channels; ++k)
            filters[row++ * c.oc_block + l] =
                exists ? from[k * weight.stride[in_channel] + r * weight.stride[2] +
                              s * weight.stride[3]]
                       : T(0);
    }
  }
}

template <typename T>
void run(const ConvProblem& p, Grouped g, const KernelTable<T>& kernels, View<const T> source,
         View<const T> weight, int out_channel, int in_channel, const Epilogue<T>& epilogue,
         View<T> result) {
  GatherConv& c = g.gather;
  while (g.tiles() * g.group_blocks() < 3 * thread_count() && c.h.tile > kTileRows)
    c.h.tile = divide_up(c.h.tile, 2);
  const int64_t vectors = g.group_blocks() * g.vectors();
  const Scratch filter_block = Scratch::take<T>(ScratchName::kWeight, vectors * g.filters_size());
  T* const filters = filter_block.template data<T>();
  parallel_for(vectors, [&](int64_t begin, int64_t end) {
    pack_filters(g, weight, p.out_channels * weight.stride[0], out_channel, in_channel, filters,
                 begin, end);
  });
  parallel_for(g.tiles() * g.group_blocks(), [&](int64_t begin, int64_t end) {
    kernels.gather_conv(g, source, filters, epilogue, result, begin, end);
  });
}

}  // namespace

bool is_profitable(const ConvProblem& p, int64_t element_bytes) {
  const int64_t most = std::max(p.in_channels, p.out_channels);
  const int64_t least = std::min(p.in_channels, p.out_channels);
  if (p.groups == 1 || most == 1 || most > kMostChannels || least == 0) return false;
  for (const Spatial axis : {kHeight, kWidth})
    // Rows between the taps would be copied too.
    if (p.dilation[axis] > 2 || p.stride[axis] > p.kernel[axis]) return false;
  const auto kernels = best_kernels<float>();
  return groups_per_block(p, kernels.vector_bytes / element_bytes) == 1 || kernels.permutes;
}

template <typename T>
void conv2d(const ConvProblem& p, View<const T> input, View<const T> weight,
            const Epilogue<T>& epilogue, View<T> output) {
  const auto kernels = kernels_for<T>(p, p.out_channels);
  run(p,
      plan(p, forward_axis(p, kHeight), forward_axis(p, kWidth), p.in_channels, p.out_channels,
           kernels),
      kernels, input, weight, 0, 1, epilogue, output);
}

template <typename T>
void conv2d_input_grad(const ConvProblem& p, View<const T> weight, View<const T> delta,
                       View<T> input_grad) {
  const auto kernels = kernels_for<T>(p, p.in_channels);
  for (const ConvAxis& h : input_grad_axes(p, kHeight))
    for (const ConvAxis& w : input_grad_axes(p, kWidth))
      run(p, plan(p, h, w, p.out_channels, p.in_channels, kernels), kernels, delta, weight, 1, 0,
          {}, input_grad);
}

template <typename T>
void conv2d_weight_grad(const ConvProblem& p, View<const T> input, View<const T> delta,
                        View<T> weight_grad, T* bias_grad) {
  const auto kernels = kernels_for<T>(p, p.out_channels);
  Grouped g = plan(p, forward_axis(p, kHeight), forward_axis(p, kWidth), p.in_channels,
                   p.out_channels, kernels);
  const GatherConv& c = g.gather;
  g.chunks =
      std::clamp<int64_t>(kWeightGradBytes / (g.sums_per_chunk() * static_cast<int64_t>(sizeof(T))),
                          1, std::clamp<int64_t>(g.tiles(), 1, kWeightGradTasks));
  g.group_blocks_per_task = divide_up(
      g.group_blocks(), std::min(g.group_blocks(), divide_up(kWeightGradTasks, g.chunks)));
  const Scratch sums_block = Scratch::take<T>(ScratchName::kPartial, g.chunks * g.sums_per_chunk());
  T* const sums = sums_block.template data<T>();
  parallel_for(g.chunks * g.group_block_tasks(), [&](int64_t begin, int64_t end) {
    kernels.weight_grad(g, input, delta, sums, begin, end);
  });

  // Adds the chunks' sums in their order.
  const int64_t of_group_block = g.groups_per_block * c.out_channels;
  parallel_for(c.channels, [&](int64_t begin, int64_t end) {
    for (int64_t o = begin; o < end; ++o) {
      const int64_t lane = o % of_group_block;
      const T* const first =
          sums + (o / of_group_block * g.vectors() + lane / c.oc_block) * g.sums_per_vector() +
          lane % c.oc_block;
      int64_t row = 0;
      const auto next_total = [&] {
        const T* from = first + row++ * c.oc_block;
        T sum = *from;
        for (int64_t chunk = 1; chunk < g.chunks; ++chunk) sum += from[chunk * g.sums_per_chunk()];
        return sum;
      };
      for (int64_t r = 0; r < p.kernel[kHeight]; ++r)
        for (int64_t s = 0; s < p.kernel[kWidth]; ++s)
          for (int64_t k = 0; k < p.in_channels; ++k) weight_grad.at(o, k, r, s) = next_total();
      if (bias_grad) bias_grad[o] = next_total();
    }
  });
}

CONVBP_INSTANTIATE_OPERATORS(float)
CONVBP_INSTANTIATE_OPERATORS(double)

}  // namespace convbp::grouped
