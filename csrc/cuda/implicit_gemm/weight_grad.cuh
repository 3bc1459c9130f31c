// The weight gradient (L4), and the bias gradient (L5) from the same pass, as one matrix product
// that is never laid out in memory:
//
//     weight_grad[filter, (r, s, channel)] = sum over pixels of
//         delta[pixel, filter] input[pixel's position + (r, s), channel]
//     bias_grad[filter] = sum over pixels of delta[pixel, filter]
//
// The reference is cuda/reference/conv2d.cuh. Tiles of 128x128, 128x64 and 64x64 filters x columns
// (r, s, channel) by a depth of 32 pixels (TF32 and float64: 16). Filters and channels are read 16
// bytes at a time from memory that has them innermost, and lie so in shared memory; where a group
// of the input has few channels and no whole chunk of them, its elements are read one by one from
// the tensor as it is. A thread stays at its tap: from pixel to pixel only a pointer and a position
// step.
//
// There are few tiles and many pixels, so the pixels are cut into splits, as many as the problem's
// size says, whatever the GPU. Each block sums one split, and another kernel (split_k_reduce.cuh)
// adds the splits in their order: the same bits in every run. The speed has not been measured yet.
#pragma once

#include <type_traits>

#include "cuda/grid.h"
#include "cuda/implicit_gemm/operand.h"
#include "cuda/implicit_gemm/shape.cuh"
#include "cuda/implicit_gemm/taps.cuh"

namespace convbp::cuda::gemm {

// The way from a pixel to the one `step` pixels further, in the input: first the step, then, past
// the end of a row or of a sample, to the beginning of the next.
struct Walk {
  int y, x, y_stride, y_span, x_span;
  int64_t step, next_row, next_sample;

  template <typename T>
  static Walk of(int64_t step, const GemmAxis& rows, const GemmAxis& columns,
                 const Operand<T>& input) {
    const int x_span = columns.results * columns.stride, y_span = rows.results * rows.stride;
    const int x = static_cast<int>(step % columns.results) * columns.stride;
    const int y = static_cast<int>(step / columns.results % rows.results) * rows.stride;
    const int64_t samples = step / columns.results / rows.results;
    return {y,
            x,
            rows.stride,
            y_span,
            x_span,
            samples * input.item + y * input.row + x * input.pixel,
            rows.stride * input.row - x_span * input.pixel,
            input.item - y_span * input.row};
  }
};

template <typename T>
struct GemmWeightGrad {
  GemmAxis axis[2];                      // axes of the convolution
  int batch, groups, channels, filters;  // channels and filters of a group
  Operand<const T> input, delta;    // delta's pixels lie side by side in the order of their numbers
  int columns;                      // taps x channels, with the padding of chunks
  Divisor units;                    // a tap's columns: channels, or chunks of them
  Divisor row_tiles, column_tiles;  // tiles of a group's sums
  int splits = 0;                   // splits of the pixels: none where there are none
  Divisor by_splits;
  uint32_t tiles_per_split = 0;
  Walk walk;

  Accumulator<T>* partial = nullptr;       // [splits, groups * filters, columns]
  Accumulator<T>* bias_partial = nullptr;  // [splits, groups * filters], or null
};

template <typename S>
class WeightGradLoader {
  using T = typename S::Element;
  static constexpr int kDeltaStep = S::kThreads / S::A::kChunks;  // pixels at a time
  static constexpr int kUnit = S::kElements ? 1 : kPack<T>;

 public:
  static constexpr int kInputStep = S::kThreads / S::B::kChunks;

  __device__ WeightGradLoader(const GemmWeightGrad<T>& w, int group, int first_pixel, int pixels,
                              int first_filter, int first_column)
      : w_(w) {
    const int delta_pixel = threadIdx.x / S::A::kChunks;
    const int filter = first_filter + threadIdx.x % S::A::kChunks * kPack<T>;
    delta_ =
        w.delta.data + group * w.delta.group + (first_pixel + delta_pixel) * w.delta.pixel + filter;
    delta_left_ = filter < w.filters ? pixels - delta_pixel : 0;

    const GemmAxis &rows = w.axis[kHeight], &columns = w.axis[kWidth];
    const int input_pixel = threadIdx.x / S::B::kChunks;
    Digits tap = Digits::of((first_column + threadIdx.x % S::B::kChunks * kPack<T>) / kUnit,
                            columns.taps, w.units);
    const Digits at =
        Digits::of(first_pixel + input_pixel, rows.by_results[0], columns.by_results[0]);
    const int tap_y = tap.outer * rows.dilation - rows.pad;
    const int tap_x = tap.middle * columns.dilation - columns.pad;
    y_ = at.middle * rows.stride + tap_y;
    x_ = at.inner * columns.stride + tap_x;
    input_ = w.input.data + group * w.input.group + at.outer * w.input.item + y_ * w.input.row +
             x_ * w.input.pixel + tap.inner * kUnit * w.input.channel;
    input_left_ = tap.outer < rows.taps ? pixels - input_pixel : 0;
    y_end_ = w.walk.y_span + tap_y;
    x_end_ = w.walk.x_span + tap_x;

    if constexpr (S::kElements) {
      const Digits first = tap;
#pragma unroll
      for (Tap& other : other_) {
        tap.add({0, 0, 1}, columns.taps, w.units.divisor);
        other.y = (tap.outer - first.outer) * rows.dilation;
        other.x = (tap.middle - first.middle) * columns.dilation;
        other.offset = other.y * w.input.row + other.x * w.input.pixel +
                       (tap.inner - first.inner) * w.input.channel;
        if (tap.outer >= rows.taps) other.y = kOutside;
      }
    }
  }

  __device__ void load(const typename S::A& a, const typename S::B& b) {
#pragma unroll
    for (int i = 0; i < S::kDepth / kDeltaStep; ++i) {
      copy_16_async(
          a.chunk(threadIdx.x / S::A::kChunks + i * kDeltaStep, threadIdx.x % S::A::kChunks),
          delta_, i * kDeltaStep < delta_left_);
      delta_ += kDeltaStep * w_.delta.pixel;
    }
    delta_left_ -= S::kDepth;
#pragma unroll
    for (int i = 0; i < S::kDepth / kInputStep; ++i) {
      const bool has_pixel = i * kInputStep < input_left_;
      const auto meets = [&](int y, int x) {
        return has_pixel && inside(y, w_.axis[kHeight].sources) &&
               inside(x, w_.axis[kWidth].sources);
      };
      Chunk<T>* const to =
          b.chunk(threadIdx.x / S::B::kChunks + i * kInputStep, threadIdx.x % S::B::kChunks);
      if constexpr (S::kElements) {
        Chunk<T> chunk;
        chunk.element[0] = meets(y_, x_) ? *input_ : static_cast<T>(0.f);
#pragma unroll
        for (int e = 1; e < kPack<T>; ++e) {
          const Tap& other = other_[e - 1];
          chunk.element[e] =
              meets(y_ + other.y, x_ + other.x) ? input_[other.offset] : static_cast<T>(0.f);
        }
        *to = chunk;
      } else {
        copy_16_async(to, input_, meets(y_, x_));
      }
      next_pixel();
    }
    input_left_ -= S::kDepth;
  }

 private:
  static constexpr int kOutside = -(1 << 30);  // far outside, at any pixel

  // The distance of a chunk's other elements from the first, where elements are read one by one.
  struct Tap {
    int y, x;
    int64_t offset;
  };

  // Moves to the pixel kInputStep further.
  __device__ void next_pixel() {
    const Walk& walk = w_.walk;
    y_ += walk.y;
    x_ += walk.x;
    input_ += walk.step;
    if (x_ >= x_end_) x_ -= walk.x_span, y_ += walk.y_stride, input_ += walk.next_row;
    if (y_ >= y_end_) y_ -= walk.y_span, input_ += walk.next_sample;
  }

  const GemmWeightGrad<T>& w_;
  const T *delta_, *input_;      // where the next chunks are, or would be
  int delta_left_, input_left_;  // how many pixels of the split are left from there
  int y_, x_, y_end_, x_end_;    // the position in the input, and where a sample's or row's end
  Tap other_[S::kElements ? kPack<T> - 1 : 1];
};

namespace kernels {

template <typename S>
__global__ void __launch_bounds__(S::kThreads) weight_grad(GemmWeightGrad<typename S::Element> w) {
  using Sum = typename S::Sum;
  // Blocks of the same pixels run side by side, for the cache.
  uint32_t block = blockIdx.x;
  const int first_column = w.column_tiles.take(block) * S::kColumns;
  const int first_filter = w.row_tiles.take(block) * S::kRows;
  const int split = w.by_splits.take(block), group = block;

  const int all_pixels = w.batch * w.axis[kHeight].results * w.axis[kWidth].results;
  const int first_pixel = split * w.tiles_per_split * S::kDepth;
  const int pixels = std::min<int>(all_pixels - first_pixel, w.tiles_per_split * S::kDepth);
  const bool with_bias = w.bias_partial && first_column == 0 && S::warp_column() == 0;

  typename S::Sums sums;
  WeightGradLoader<S> loader(w, group, first_pixel, pixels, first_filter, first_column);
  // The bias gradient is a pass of its own, which costs the other warps nothing.
  multiply_tiles<S>(sums, loader, (pixels + S::kDepth - 1) / S::kDepth, [&](const auto& delta) {
    if (with_bias) sums.add_rows(delta, S::warp_row());
  });

  const int64_t first = (int64_t{split} * w.groups + group) * w.filters;
  sums.each([&](int row, int column, const auto& sum) {
    const int filter = first_filter + S::warp_row() + row;
    const int at = first_column + S::warp_column() + column;
    if (filter >= w.filters) return;
    Sum* const to = w.partial + (first + filter) * w.columns + at;
    if constexpr (S::kElements) {
#pragma unroll
      for (const Sum& one : sum.element)
        if (at + (&one - sum.element) < w.columns) to[&one - sum.element] = one;
    } else if (at < w.columns) {  // columns are whole chunks
      *reinterpret_cast<std::decay_t<decltype(sum)>*>(to) = sum;
    }
  });
  if (with_bias)
    sums.each_row_sum([&](int row, Sum sum) {
      const int filter = first_filter + S::warp_row() + row;
      if (filter < w.filters) w.bias_partial[first + filter] = sum;
    });
}

}  // namespace kernels

}  // namespace convbp::cuda::gemm
