// Starts the implicit GEMM: prepares the operands, chooses the tile, cuts the pixels into splits.
// The .cu files instantiate it, one for each element type.
#pragma once

#include <algorithm>
#include <type_traits>
#include <utility>

#include "cuda/implicit_gemm/convolve.cuh"
#include "cuda/implicit_gemm/implicit_gemm.h"
#include "cuda/implicit_gemm/pack.cuh"
#include "cuda/implicit_gemm/split_k_reduce.cuh"
#include "cuda/implicit_gemm/weight_grad.cuh"

namespace convbp::cuda::gemm {

// --- shapes ---------------------------------------------------------------------------------

// Calls body(Shape) with the first tile whose rows and columns `choose` accepts; the last tile
// serves for all. The registers that each may take are in tests/native/test_cuda_build.py.
template <typename Arithmetic, Innermost innermost, typename Choose, typename Body>
void with_shape(bool elements, int tile, const Choose& choose, const Body& body) {
  using T = typename Arithmetic::Element;
  // A warp has 64x64 of the largest tile's sums on tensor cores, which are so fast that shared
  // memory is the bottleneck, and 32x64 otherwise.
  constexpr bool kTensorCores = Arithmetic::kTensorCores;
  constexpr int kDown = kTensorCores ? 2 : 4;
  const auto wanted = [&](int number, int rows, int columns) {
    return tile < 0 ? choose(rows, columns) : tile == number;
  };
  if (elements) return body(Shape<Arithmetic, 64, 64, 2, 2, true, innermost>());
  if constexpr (!std::is_same_v<T, double>) {
    if (wanted(0, 128, 128)) return body(Shape<Arithmetic, 128, 128, kDown, 2, false, innermost>());
    if (wanted(1, 128, 64))
      return body(Shape<Arithmetic, 128, 64, kDown, kTensorCores ? 2 : 1, false, innermost>());
  }
  body(Shape<Arithmetic, 64, 64, 2, 2, false, innermost>());
}

template <typename T, typename Body>
void with_arithmetic([[maybe_unused]] const Options& options, const Body& body) {
  if constexpr (std::is_same_v<T, BFloat16>) return body(BFloat16Arithmetic());
  if constexpr (std::is_same_v<T, Half>) return body(Float16Arithmetic());
  if constexpr (std::is_same_v<T, double>) return body(Float64Arithmetic());
  if constexpr (std::is_same_v<T, float>)
    options.tf32 ? body(Tf32Arithmetic()) : body(Float32Arithmetic());
}

// --- operands -------------------------------------------------------------------------------

// True where a group's channels are so few that chunks of them would be mostly padding.
template <typename T>
bool by_elements(int64_t channels) {
  return channels <= 4 && channels % kPack<T>;
}

// True where whole chunks can be read where the tensor is. The stride of a dimension of size 1 does
// not count: nobody reads by it.
template <typename T>
bool in_chunks(const Operand<const T>& o, const PackSize& size) {
  const auto whole = [](int64_t stride, int64_t count) {
    return count == 1 || stride % kPack<T> == 0;
  };
  return reinterpret_cast<uintptr_t>(o.data) % 16 == 0 && size.channels == size.padded &&
         o.channel == 1 && whole(o.group, size.groups) && whole(o.item, size.items) &&
         whole(o.row, size.rows) && whole(o.pixel, size.pixels);
}

// True where the result can be stored chunk by chunk: a pixel's channels, or a channel's pixels.
template <typename T>
bool stored_in_chunks(const Convolution<T>& c) {
  const Operand<T>& o = c.result;
  const int64_t rows = c.axis[kHeight].results, row = c.axis[kWidth].results, plane = rows * row;
  const auto whole = [](int64_t count) { return divide_up(count, kPack<T>) * kPack<T>; };
  if (c.channels_innermost)
    return in_chunks<T>({o.data, o.group, o.item, o.channel, o.row, o.pixel},
                        {c.groups, c.batch, c.columns, whole(c.columns), rows, row});
  // A plane's pixels stand for channels, if they lie side by side in the order in which they are
  // counted.
  return c.axis[kHeight].phases == 1 && c.axis[kWidth].phases == 1 && o.row == row * o.pixel &&
         in_chunks<T>({o.data, o.group, o.item, o.pixel, 0, o.channel},
                      {c.groups, c.batch, plane, whole(plane), 1, c.columns});
}

// The operand itself where it can be read in chunks (and, `side_by_side`, all its pixels at one
// distance), or its copy in scratch memory.
template <typename T>
Operand<const T> packed(Context& context, const Operand<const T>& source, int64_t groups,
                        int64_t items, int64_t channels, int64_t rows, int64_t pixels,
                        bool side_by_side = false) {
  const PackSize size{groups, items, channels, divide_up(channels, kPack<T>) * kPack<T>,
                      rows,   pixels};
  // Strides are 0 where there is only one item, row or pixel: nothing outside of it is read, but
  // the address there has to be a multiple of 16 as well.
  const bool readable = in_chunks(source, size);
  if (side_by_side && readable && source.pixel % kPack<T> == 0 &&
      source.row == pixels * source.pixel && source.item == rows * source.row)
    return source;
  if (!side_by_side && readable)
    return {source.data, groups == 1 ? 0 : source.group, items == 1 ? 0 : source.item,
            1,           rows == 1 ? 0 : source.row,     pixels == 1 ? 0 : source.pixel};
  const int64_t pixel = size.padded, row = pixels * pixel, item = rows * row, group = items * item;
  T* const data = static_cast<T*>(context.scratch(groups * group * sizeof(T)));
  pack(context, size, source, data);
  return {data, group, item, 1, row, pixel};
}

// --- the operators --------------------------------------------------------------------------

// The tiles that keep a large GPU busy: fewer leave multiprocessors idle. A constant, so that the
// choice depends on the problem alone.
constexpr int64_t kManyTiles = 256;

inline Divisor divisor(int64_t number) {
  return Divisor(static_cast<uint32_t>(std::max<int64_t>(number, 1)));
}

// A convolution, or transposed its input gradient: the roles of input and output, and of filters
// and their channels, are exchanged.
template <typename T>
void convolve(Context& context, const ConvProblem& p, bool transposed, View<const T> source,
              View<const T> weight, const Epilogue<T>& epilogue, View<T> result,
              const Options& options) {
  const int64_t channels = transposed ? p.out_channels : p.in_channels;
  const int64_t columns = transposed ? p.in_channels : p.out_channels;
  const int64_t (&size)[2] = transposed ? p.out_size : p.in_size;
  Convolution<T> c{
      {GemmAxis::of(p, kHeight, transposed), GemmAxis::of(p, kWidth, transposed)},
      static_cast<int>(p.batch),
      static_cast<int>(p.groups),
      static_cast<int>(columns),
      activations(source, channels),
      transposed ? filters_transposed(weight, p.out_channels) : filters(weight, p.out_channels),
      activations(result, columns),
      channels_innermost(result.stride)};
  const auto aligned = [](const T* data) { return reinterpret_cast<uintptr_t>(data) % 16 == 0; };
  c.in_chunks = stored_in_chunks(c) && aligned(epilogue.pre_activation) && aligned(epilogue.bias);
  const bool elements = by_elements<T>(channels);
  c.units = divisor(elements ? channels : divide_up(channels, kPack<T>));
  c.phases = divisor(c.axis[kHeight].phases * c.axis[kWidth].phases);
  if (!elements) {
    c.source = packed(context, c.source, p.groups, p.batch, channels, size[0], size[1]);
    c.filter = packed(context, c.filter, p.groups, columns, channels, p.kernel[0], p.kernel[1]);
  }
  const auto results = [&](Spatial axis) {  // results of the largest phase
    return divide_up(c.axis[axis].results, c.axis[axis].phases);
  };
  const int64_t pixels = c.batch * results(kHeight) * results(kWidth);
  const int64_t parts = int64_t{c.groups} * c.axis[kHeight].phases * c.axis[kWidth].phases;
  const auto blocks = [&](int64_t rows, int64_t columns_) {
    return parts * divide_up(pixels, rows) * divide_up(c.columns, columns_);
  };
  with_arithmetic<T>(options, [&](auto arithmetic) {
    with_shape<decltype(arithmetic), Innermost::kDepth>(
        elements, options.tile,
        [&](int rows, int columns_) {
          return blocks(rows, columns_) >= kManyTiles && (columns_ == 64 || c.columns > 64);
        },
        [&](auto shape) {
          using S = decltype(shape);
          c.row_tiles = divisor(divide_up(pixels, S::kRows));
          c.column_tiles = divisor(divide_up(c.columns, S::kColumns));
          launch(context, "implicit GEMM", kernels::convolve<S>,
                 dim3(static_cast<unsigned>(blocks(S::kRows, S::kColumns))), S::kThreads,
                 kConvolveSharedBytes<S>, c, epilogue);
        });
  });
}

template <typename T>
void conv2d(Context& context, const ConvProblem& p, View<const T> input, View<const T> weight,
            const Epilogue<T>& epilogue, View<T> output, const Options& options) {
  convolve(context, p, false, input, weight, epilogue, output, options);
}

template <typename T>
void conv2d_input_grad(Context& context, const ConvProblem& p, View<const T> weight,
                       View<const T> delta, View<T> input_grad, const Options& options) {
  convolve(context, p, true, delta, weight, Epilogue<T>(), input_grad, options);
}

template <typename T>
void conv2d_weight_grad(Context& context, const ConvProblem& p, View<const T> input,
                        View<const T> delta, View<T> weight_grad, T* bias_grad,
                        const Options& options) {
  const bool elements = by_elements<T>(p.in_channels);
  const int unit = elements ? 1 : kPack<T>;
  GemmWeightGrad<T> w{
      {GemmAxis::of(p, kHeight, false), GemmAxis::of(p, kWidth, false)},
      static_cast<int>(p.batch),
      static_cast<int>(p.groups),
      static_cast<int>(p.in_channels),
      static_cast<int>(p.out_channels),
      activations(input, p.in_channels),
      activations(delta, p.out_channels),
      static_cast<int>(p.kernel[0] * p.kernel[1] * divide_up(p.in_channels, unit) * unit)};
  const int64_t pixels = p.batch * p.out_size[0] * p.out_size[1];
  const int64_t all_filters = p.groups * p.out_channels;
  w.units = divisor(divide_up(p.in_channels, unit));
  if (pixels) {
    if (!elements)
      w.input =
          packed(context, w.input, p.groups, p.batch, p.in_channels, p.in_size[0], p.in_size[1]);
    w.delta = packed(context, w.delta, p.groups, p.batch, p.out_channels, p.out_size[0],
                     p.out_size[1], true);
    with_arithmetic<T>(options, [&](auto arithmetic) {
      with_shape<decltype(arithmetic), Innermost::kLength>(
          elements, options.tile,
          [&](int, int columns) { return w.filters > 64 && (columns == 64 || w.columns > 64); },
          [&](auto shape) {
            using S = decltype(shape);
            using A = Accumulator<T>;
            w.row_tiles = divisor(divide_up(w.filters, S::kRows));
            w.column_tiles = divisor(divide_up(w.columns, S::kColumns));
            // Splits make enough blocks for a large GPU, each with a few tiles of pixels at least.
            // No sum in a register has more than 2^15 pixels, whose roundings would add up.
            constexpr int64_t kFewTiles = 4, kMostTiles = (1 << 15) / S::kDepth;
            const int64_t tiles = divide_up(pixels, S::kDepth);
            const int64_t blocks =
                w.groups * divide_up(w.filters, S::kRows) * divide_up(w.columns, S::kColumns);
            w.tiles_per_split = static_cast<uint32_t>(std::clamp(
                divide_up(tiles, divide_up(2 * kManyTiles, blocks)), kFewTiles, kMostTiles));
            w.splits = static_cast<int>(divide_up(tiles, w.tiles_per_split));
            w.by_splits = divisor(w.splits);
            w.walk =
                Walk::of(WeightGradLoader<S>::kInputStep, w.axis[kHeight], w.axis[kWidth], w.input);
            w.partial =
                static_cast<A*>(context.scratch(w.splits * all_filters * w.columns * sizeof(A)));
            if (bias_grad)
              w.bias_partial = static_cast<A*>(context.scratch(w.splits * all_filters * sizeof(A)));
            launch(context, "implicit GEMM, weight gradient", kernels::weight_grad<S>,
                   dim3(static_cast<unsigned>(blocks * w.splits)), S::kThreads, S::kRingBytes, w);
          });
    });
  }
  const SplitTiles sums(all_filters, p.in_channels, divide_up(p.in_channels, unit) * unit,
                        p.kernel[0] * p.kernel[1], p.kernel[1]);
  launch(context, "reduce_splits", kernels::reduce_splits<T>,
         blocks_for(int64_t{sums.tiles()} * kThreads + all_filters, context), kThreads,
         sums.kPlaces * sizeof(Accumulator<T>), w, sums, weight_grad, bias_grad);
}

#define CONVBP_INSTANTIATE_IMPLICIT_GEMM(T)                                                    \
  template void conv2d(Context&, const ConvProblem&, View<const T>, View<const T>,             \
                       const Epilogue<T>&, View<T>, const Options&);                           \
  template void conv2d_input_grad(Context&, const ConvProblem&, View<const T>, View<const T>,  \
                                  View<T>, const Options&);                                    \
  template void conv2d_weight_grad(Context&, const ConvProblem&, View<const T>, View<const T>, \
                                   View<T>, T*, const Options&);

}  // namespace convbp::cuda::gemm
