// Starts the depthwise kernels of the weight gradient.
#include "cuda/depthwise/weight_grad.cuh"

#include "core/integers.h"
#include "cuda/depthwise/depthwise.h"
#include "cuda/element_types.h"

namespace convbp::cuda::depthwise {
namespace {

template <typename T>
struct Call {
  Context& context;
  const ConvProblem& problem;
  StripAxis height, width;
  View<const T> input, delta;
  FilterGradients<T> gradients;
};

template <typename T, int taps, int stride, bool along_height>
void start_strips(const Call<T>& call) {
  constexpr int V = along_height ? 1 : kVector<T>, kLength = along_height ? 8 : 4;
  const int channels = call.gradients.filters;
  const int lanes = lanes_for(along_height ? call.width.results : divide_up(channels, V), 32);
  const int slots = 32 / lanes * std::max(1, 256 / (32 * taps));
  const int at_once = along_height ? 1 : lanes * V;
  const int64_t blocks = divide_up(channels, at_once);
  const int64_t rows = along_height ? divide_up(call.height.results, kLength) : call.height.results;
  const int64_t pixels = int64_t{call.width.results} * (along_height ? kLength : 1);
  const Splits splits = cut(call.problem.batch * rows, pixels, taps * taps, blocks);
  const bool packed = is_packed(call.input, channels, V) && is_packed(call.delta, channels, V);
  Accumulator<T>* const partial = partial_sums(call.context, splits, call.gradients);
  if (splits.count)
    launch(call.context, "depthwise_weight_grad",
           kernels::strips<T, taps, stride, kLength, V, along_height>,
           dim3(static_cast<unsigned>(blocks), static_cast<unsigned>(splits.count)),
           dim3(lanes, taps, slots),
           int64_t{slots} * taps * (taps + 1) * at_once * sizeof(Accumulator<T>), call.height,
           call.width, channels, call.input, call.delta, splits, packed, partial);
  reduce_splits(call.context, partial, splits, call.gradients);
}

template <typename T>
void start_general(const Call<T>& call) {
  const bool innermost = channels_innermost(call.input.stride);
  const int64_t blocks = innermost ? (call.gradients.filters + 31) / 32 : call.gradients.filters;
  const Splits splits = cut(call.problem.batch * call.height.results, call.width.results,
                            int64_t{call.height.taps} * call.width.taps, blocks);
  Accumulator<T>* const partial = partial_sums(call.context, splits, call.gradients);
  if (splits.count)
    launch(call.context, "depthwise_weight_grad", kernels::general<T>,
           dim3(static_cast<unsigned>(blocks), static_cast<unsigned>(splits.count)), dim3(32, 8), 0,
           call.height, call.width, call.gradients.filters,
           static_cast<int>(call.problem.out_channels), call.input, call.delta, splits, innermost,
           partial);
  reduce_splits(call.context, partial, splits, call.gradients);
}

}  // namespace

template <typename T>
void conv2d_weight_grad(Context& context, const ConvProblem& p, View<const T> input,
                        View<const T> delta, View<T> weight_grad, T* bias_grad) {
  const Call<T> call{context,
                     p,
                     {p, kHeight, false},
                     {p, kWidth, false},
                     input,
                     delta,
                     filter_gradients(p, weight_grad, bias_grad)};
  // float64 is for checking
  if constexpr (sizeof(T) != 8)
    if (p.out_channels == 1 && start_compiled(call.height, call.width, [&](auto taps, auto stride) {
          channels_innermost(input.stride) ? start_strips<T, taps, stride, false>(call)
                                           : start_strips<T, taps, stride, true>(call);
          return true;
        }))
      return;
  start_general(call);
}

#define INSTANTIATE(T)                                                                         \
  template void conv2d_weight_grad(Context&, const ConvProblem&, View<const T>, View<const T>, \
                                   View<T>, T*);
CONVBP_FOR_EACH_ELEMENT(INSTANTIATE)

}  // namespace convbp::cuda::depthwise
