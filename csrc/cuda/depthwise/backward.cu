// Starts the depthwise kernel of the whole backward pass.
#include "cuda/depthwise/backward.cuh"

#include "cuda/element_types.h"

namespace convbp::cuda::depthwise {
namespace {

template <typename T>
struct Call {
  Context& context;
  int64_t batch;
  StripAxis height, width;
  const ErrorSignal<T>& signal;
  View<const T> input, weight;
  View<T> input_grad;
  FilterGradients<T> gradients;
};

template <typename T, int taps, int stride, bool channels_innermost>
bool start_tiles(const Call<T>& call) {
  using TileOf = Tile<taps, stride, channels_innermost>;
  using S = typename TileOf::S;
  constexpr int V = TileOf::V, kLength = TileOf::kLength;
  const StripAxis &height = call.height, &width = call.width;
  const int channels = call.gradients.filters;
  dim3 threads;
  if (channels_innermost) {
    constexpr int kStrips = TileOf::kRows / kLength * TileOf::kColumns;
    threads.x = lanes_for(divide_up(channels, V), 32);
    threads.y = std::min<unsigned>(kThreads / threads.x, kStrips);
  } else {
    threads.x = std::max(8, lanes_for(S::count(width, 1), 32));
    threads.y = lanes_for(S::count(height, kLength), kThreads / 32);
  }
  threads.z = kThreads / (threads.x * threads.y);  // tiles that a block has at once
  Tiles tiles;
  tiles.pitch = pitch_for(S::sources(threads.x), threads.x, S::sources_apart(kLength));
  const TileOf tile(threads, tiles.pitch);
  tiles.rows = S::count(height, tile.rows);
  tiles.columns = S::count(width, tile.columns);
  const int64_t count = call.batch * tiles.rows * tiles.columns;
  if (count >= int64_t{1} << 30) return false;  // 32 bits number the tiles
  tiles.count = static_cast<int>(count);
  const int64_t blocks = divide_up(channels, tile.at_once);
  const Splits splits = cut(divide_up(count, threads.z),
                            int64_t{tile.rows} * tile.columns * threads.z, taps * taps, blocks);
  Accumulator<T>* const partial = partial_sums(call.context, splits, call.gradients);
  // Shared memory holds filters and deltas, and later the sums of half the threads.
  const Filters<taps, V, Accumulator<T>> filters(nullptr, tile.at_once);
  const int64_t while_computing = filters.size() + int64_t{threads.z} * tile.deltas();
  const int64_t while_adding = int64_t{taps * taps + 1} * kThreads / 2 * V;
  if (splits.count)
    launch(call.context, "depthwise_backward",
           kernels::backward<T, taps, stride, channels_innermost>,
           dim3(static_cast<unsigned>(blocks), static_cast<unsigned>(splits.count)), threads,
           std::max(while_computing, while_adding) * sizeof(Accumulator<T>), height, width,
           channels, call.signal, call.input, call.weight, call.input_grad, tiles, splits, partial);
  reduce_splits(call.context, partial, splits, call.gradients);
  return true;
}

template <typename T, int taps, int stride>
bool start_known(const Call<T>& call) {
  const bool innermost = channels_innermost(call.input_grad.stride);
  constexpr int V = Tile<taps, stride, true>::V;
  const auto fits = [&](const auto& t, int rows, int columns) {
    constexpr int64_t kMost = int64_t{1} << 31;
    return channels_innermost(t.stride) == innermost &&
           (!innermost || is_packed(t, call.gradients.filters, V)) &&
           (rows - 1) * t.stride[2] + (columns - 1) * t.stride[3] < kMost;
  };
  const StripAxis &height = call.height, &width = call.width;
  if (!fits(call.signal.grad, height.sources, width.sources) ||
      (call.signal.saved.data && !fits(call.signal.saved, height.sources, width.sources)) ||
      !fits(call.input, height.results, width.results) ||
      !fits(call.input_grad, height.results, width.results))
    return false;
  return innermost ? start_tiles<T, taps, stride, true>(call)
                   : start_tiles<T, taps, stride, false>(call);
}

}  // namespace

template <typename T>
bool backward(Context& context, const ConvProblem& p, const ErrorSignal<T>& signal,
              View<const T> input, View<const T> weight, View<T> input_grad, View<T> weight_grad,
              T* bias_grad) {
  if constexpr (sizeof(T) != 8) {  // float64 is for checking
    const Call<T> call{context,
                       p.batch,
                       {p, kHeight, true},
                       {p, kWidth, true},
                       signal,
                       input,
                       weight,
                       input_grad,
                       filter_gradients(p, weight_grad, bias_grad)};
    const StripAxis &height = call.height, &width = call.width;
    // Every delta has to be in a tile: it meets an input position, or lies between two that do.
    bool met = true;
    for (const StripAxis& axis : {height, width})
      met = met && axis.pad < axis.taps &&
            int64_t{axis.sources - 1} * axis.stride - axis.pad < axis.results;
    return met && p.out_channels == 1 && start_compiled(height, width, [&](auto taps, auto stride) {
             return start_known<T, taps, stride>(call);
           });
  }
  return false;
}

template <typename T>
View<const T> error_signal(Context& context, const ConvProblem& p, const ErrorSignal<T>& signal) {
  if (!signal.saved.data) return signal.grad;
  const int64_t size[4] = {p.batch, p.groups * p.out_channels, p.out_size[kHeight],
                           p.out_size[kWidth]};
  const Positions positions(size, channels_innermost(signal.saved.stride));
  View<T> delta{static_cast<T*>(context.scratch(positions.count * sizeof(T))), {}};
  int64_t step = 1;
  const auto lies_behind = [&](int d) { delta.stride[d] = step, step *= size[d]; };
  if (positions.channels_innermost)
    for (const int d : {1, 3, 2, 0}) lies_behind(d);
  else
    for (const int d : {3, 2, 1, 0}) lies_behind(d);
  if (positions.count)
    launch(context, "error_signal", kernels::error_signal<T>, blocks_for(positions.count, context),
           kThreads, 0, signal, delta, positions);
  return {delta.data, {delta.stride[0], delta.stride[1], delta.stride[2], delta.stride[3]}};
}

#define INSTANTIATE(T)                                                                       \
  template bool backward(Context&, const ConvProblem&, const ErrorSignal<T>&, View<const T>, \
                         View<const T>, View<T>, View<T>, T*);                               \
  template View<const T> error_signal(Context&, const ConvProblem&, const ErrorSignal<T>&);
CONVBP_FOR_EACH_ELEMENT(INSTANTIATE)

}  // namespace convbp::cuda::depthwise
