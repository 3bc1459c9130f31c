// Starts the depthwise kernels of the forward pass and of the input gradient.
#include "cuda/depthwise/depthwise.h"

#include "cuda/depthwise/depthwise.cuh"
#include "cuda/element_types.h"

namespace convbp::cuda::depthwise {
namespace {

// The arguments of a start: the layer and the tensors.
template <typename T>
struct Call {
  Context& context;
  Layer layer;
  int64_t batch;
  View<const T> source, weight;
  Epilogue<T> epilogue;
  View<T> result;
};

template <typename T, Direction direction, int taps, int stride>
void start_channels(const Call<T>& call) {
  using S = Strip<direction, taps, stride>;
  // Seven columns share the loads of a long filter better, where registers suffice.
  constexpr int V = kVector<T>, kLength = taps == 7 && stride == 1 ? 7 : 4;
  const Layer& layer = call.layer;
  const int lanes = lanes_for(divide_up(layer.channels, V), 32), rows = kThreads / lanes;
  kernels::ChannelBlocks blocks;
  blocks.channels = static_cast<int>(divide_up(layer.channels, lanes * V));
  blocks.rows = static_cast<int>(divide_up(layer.height.results, rows));
  const int strips = S::count(layer.width, kLength);
  // A block walks along whole rows, unless there are too few blocks to fill the GPU.
  const int64_t others = call.batch * blocks.channels * blocks.rows;
  const int64_t wanted = divide_up(int64_t{4} * call.context.multiprocessors, others);
  blocks.strips = static_cast<int>(std::max<int64_t>(1, strips / wanted));
  blocks.chunks = static_cast<int>(divide_up(strips, blocks.strips));
  View<T> pre_activation = call.result;
  pre_activation.data = call.epilogue.pre_activation;
  blocks.packed = is_packed(call.source, layer.channels, V) &&
                  is_packed(call.result, layer.channels, V) &&
                  (!pre_activation.data || is_packed(pre_activation, layer.channels, V));
  launch(call.context, "depthwise", kernels::channels<T, direction, taps, stride, kLength>,
         dim3(static_cast<unsigned>(others * blocks.chunks)), dim3(lanes, rows),
         Filters<taps, V, Accumulator<T>>(nullptr, lanes * V).size() * sizeof(Accumulator<T>),
         layer, call.source, call.weight, call.epilogue, call.result, blocks);
}

template <typename T, Direction direction, int taps, int stride>
void start_nchw(const Call<T>& call) {
  using S = Strip<direction, taps, stride>;
  constexpr int kLength = 4;
  const Layer& layer = call.layer;
  const int columns = std::max(8, lanes_for(S::count(layer.width, 1), 32));
  const int rows = lanes_for(S::count(layer.height, kLength), kThreads / 32);
  const int planes = kThreads / (columns * rows);
  kernels::PlaneBlocks blocks;
  blocks.columns = S::count(layer.width, columns);
  blocks.rows = S::count(layer.height, rows * kLength);
  blocks.planes = static_cast<int>(call.batch * layer.channels);
  blocks.pitch = pitch_for(S::sources(columns), columns, S::sources_apart(kLength));
  const int tile = blocks.pitch * S::sources(rows * kLength) +
                   Filters<taps, 1, Accumulator<T>>(nullptr, 1).size();
  const int64_t groups = divide_up(blocks.planes, planes);
  launch(call.context, "depthwise", kernels::nchw<T, direction, taps, stride, kLength>,
         dim3(static_cast<unsigned>(groups * blocks.rows * blocks.columns)),
         dim3(columns, rows, planes), planes * tile * sizeof(Accumulator<T>), layer, call.source,
         call.weight, call.epilogue, call.result, blocks);
}

template <typename T, Direction direction>
void start_general(const Call<T>& call) {
  const int64_t size[4] = {call.batch, call.layer.channels, call.layer.height.results,
                           call.layer.width.results};
  const Positions positions(size, channels_innermost(call.result.stride));
  launch(call.context, "depthwise", kernels::general<T, direction>,
         blocks_for(positions.count, call.context), kThreads, 0, call.layer, call.source,
         call.weight, call.epilogue, call.result, positions);
}

template <typename T, Direction direction, int taps, int stride>
void start_known(const Call<T>& call) {
  if (channels_innermost(call.source.stride))
    start_channels<T, direction, taps, stride>(call);
  else
    start_nchw<T, direction, taps, stride>(call);
}

template <typename T, Direction direction>
void start(const Call<T>& call) {
  const auto& [height, width, channels, filters, flipped] = call.layer;
  // float64 is for checking
  if constexpr (sizeof(T) != 8)
    if (filters == 1 && call.batch * channels < (int64_t{1} << 31) - kThreads &&
        start_compiled(
            height, width,
            [&](auto taps, auto stride) {
              if constexpr (direction == Direction::kBackward && stride == 1) {
                Call<T> forward = call;
                forward.layer.flipped = true;
                for (StripAxis* axis : {&forward.layer.height, &forward.layer.width})
                  axis->pad = axis->taps - 1 - axis->pad;
                start_known<T, Direction::kForward, taps, stride>(forward);
              } else {
                start_known<T, direction, taps, stride>(call);
              }
              return true;
            }))
      return;
  start_general<T, direction>(call);
}

}  // namespace

bool can_implement(const ConvProblem& p) {
  constexpr int64_t kMost = int64_t{1} << 28;  // sums of a few such numbers fit into 32 bits
  bool fits = p.groups * p.out_channels < kMost && p.batch < kMost;
  for (const Spatial axis : {kHeight, kWidth})
    fits = fits && p.in_size[axis] < kMost && p.out_size[axis] < kMost && p.pad[axis] < kMost &&
           p.stride[axis] < kMost && p.dilation[axis] < kMost;
  return fits && p.in_channels == 1 && p.groups > 1 && p.kernel[kHeight] * p.kernel[kWidth] < kMost;
}

template <typename T>
void conv2d(Context& context, const ConvProblem& p, View<const T> input, View<const T> weight,
            const Epilogue<T>& epilogue, View<T> output) {
  const Layer layer{{p, kHeight, false},
                    {p, kWidth, false},
                    static_cast<int>(p.groups * p.out_channels),
                    static_cast<int>(p.out_channels),
                    false};
  start<T, Direction::kForward>({context, layer, p.batch, input, weight, epilogue, output});
}

template <typename T>
void conv2d_input_grad(Context& context, const ConvProblem& p, View<const T> weight,
                       View<const T> delta, View<T> input_grad) {
  const Layer layer{{p, kHeight, true},
                    {p, kWidth, true},
                    static_cast<int>(p.groups),
                    static_cast<int>(p.out_channels),
                    false};
  start<T, Direction::kBackward>({context, layer, p.batch, delta, weight, {}, input_grad});
}

#define INSTANTIATE(T)                                                                        \
  template void conv2d(Context&, const ConvProblem&, View<const T>, View<const T>,            \
                       const Epilogue<T>&, View<T>);                                          \
  template void conv2d_input_grad(Context&, const ConvProblem&, View<const T>, View<const T>, \
                                  View<T>);
CONVBP_FOR_EACH_ELEMENT(INSTANTIATE)

}  // namespace convbp::cuda::depthwise
