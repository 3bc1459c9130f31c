// The weight gradient (L4), and the bias gradient (L5) from the same pass, as one matrix product
// that is never laid out in memory:
//
//     weight_grad[filter, (r, s, channel)] = sum over pixels of
//         delta[pixel, filter] input[pixel's position + (r, s), channel]
//     bias_grad[filter] = sum over pixels of delta[pixel, filter]
//
// The plain form is plain.cuh. Tiles of 128x128, 128x64 and 64x64 filters x columns (r, s, channel)
// by a depth of 32 pixels (float64: 16). Filters and channels are read 16 bytes at a time from
// memory that has them innermost, and lie so in shared memory; where a group of the input has four
// channels or fewer, its elements are read one by one from the tensor as it is.
//
// There are few tiles and many pixels, so these are cut into pieces, as many as the problem's size
// says, whatever the GPU; each block sums one piece, and another kernel (gemm_add_pieces.cuh) adds
// the pieces in their order: the same bits in every run. How fast this is has not been measured yet.
#pragma once

#include "gemm_operand.h"
#include "gemm_shape.cuh"
#include "gemm_taps.cuh"
#include "grid.h"

namespace convbp::cuda::gemm {

template <typename T>
struct WeightGrad {
  Axis axis[2];                          // of the convolution
  int batch, groups, channels, filters;  // channels and filters of a group
  Operand<const T> input, delta;
  int columns;                              // taps x channels, with the padding of chunks
  int64_t row_tiles = 0, column_tiles = 0;  // of a group's sums
  int pieces = 0, tiles_a_piece = 0;        // of the pixels

  Accumulator<T>* partial = nullptr;       // [pieces, groups * filters, columns]
  Accumulator<T>* bias_partial = nullptr;  // [pieces, groups * filters], or null
};

template <typename S>
class WeightGradLoader {
  using T = typename S::Element;
  static constexpr int kDeltaStep = S::kThreads / S::A::kChunks;  // pixels at a time
  static constexpr int kInputStep = S::kThreads / S::B::kChunks;
  static constexpr int kUnit = S::kElements ? 1 : kPack<T>;

 public:
  // Pixels are counted from the piece's first one.
  __device__ WeightGradLoader(const WeightGrad<T>& w, int group, int64_t first_pixel,
                              int64_t pixels, int64_t first_filter, int64_t first_column)
      : w_(w), pixels_(pixels) {
    const int rows = w.axis[kHeight].results, columns = w.axis[kWidth].results;
    delta_chunk_ = threadIdx.x % S::A::kChunks;
    delta_pixel_ = threadIdx.x / S::A::kChunks;
    delta_at_ = Digits::of(first_pixel + delta_pixel_, rows, columns);
    delta_step_ = Digits::of(kDeltaStep, rows, columns);
    const int64_t filter = first_filter + delta_chunk_ * kPack<T>;
    delta_ = w.delta.data + group * w.delta.group + filter;
    has_filter_ = filter < w.filters;

    input_chunk_ = threadIdx.x % S::B::kChunks;
    input_pixel_ = threadIdx.x / S::B::kChunks;
    input_at_ = Digits::of(first_pixel + input_pixel_, rows, columns);
    input_step_ = Digits::of(kInputStep, rows, columns);
    units_ = (w.channels + kUnit - 1) / kUnit;
    tap_ =
        Digits::of((first_column + input_chunk_ * kPack<T>) / kUnit, w.axis[kWidth].taps, units_);
    input_ = w.input.data + group * w.input.group;
  }

  __device__ void load(const typename S::A& a, const typename S::B& b) {
    const Axis &rows = w_.axis[kHeight], &columns = w_.axis[kWidth];
#pragma unroll
    for (int i = 0; i < S::kDepth / kDeltaStep; ++i) {
      const bool valid = has_filter_ && delta_pixel_ < pixels_;
      const T* const from = delta_ + delta_at_.outer * w_.delta.item +
                            delta_at_.middle * w_.delta.row + delta_at_.inner * w_.delta.pixel;
      copy_16_async(a.chunk(threadIdx.x / S::A::kChunks + i * kDeltaStep, delta_chunk_),
                    valid ? from : w_.delta.data, valid);
      delta_at_.add(delta_step_, rows.results, columns.results);
      delta_pixel_ += kDeltaStep;
    }
#pragma unroll
    for (int i = 0; i < S::kDepth / kInputStep; ++i) {
      const bool has_pixel = input_pixel_ < pixels_;
      const int y = input_at_.middle * rows.stride - rows.pad;
      const int x = input_at_.inner * columns.stride - columns.pad;
      const T* const sample = input_ + input_at_.outer * w_.input.item;
      const auto meets = [&](const Digits& tap) {
        return has_pixel && tap.outer < rows.taps &&
               inside(y + tap.outer * rows.dilation, rows.sources) &&
               inside(x + tap.middle * columns.dilation, columns.sources);
      };
      const auto offset = [&](const Digits& tap) {
        return (y + tap.outer * rows.dilation) * w_.input.row +
               (x + tap.middle * columns.dilation) * w_.input.pixel +
               tap.inner * kUnit * w_.input.channel;
      };
      Chunk<T>* const to = b.chunk(threadIdx.x / S::B::kChunks + i * kInputStep, input_chunk_);
      if constexpr (S::kElements) {
        Digits tap = tap_;
        Chunk<T> chunk;
#pragma unroll
        for (T& element : chunk.element) {
          element = meets(tap) ? sample[offset(tap)] : static_cast<T>(0.f);
          tap.add({0, 0, 1}, columns.taps, units_);
        }
        *to = chunk;
      } else {
        const bool valid = meets(tap_);
        copy_16_async(to, valid ? sample + offset(tap_) : w_.input.data, valid);
      }
      input_at_.add(input_step_, rows.results, columns.results);
      input_pixel_ += kInputStep;
    }
  }

 private:
  const WeightGrad<T>& w_;
  int64_t pixels_;
  const T *delta_, *input_;
  Digits delta_at_, delta_step_, input_at_, input_step_, tap_;
  int delta_chunk_, delta_pixel_, input_chunk_, input_pixel_, units_;
  bool has_filter_;
};

namespace kernels {

template <typename S>
__global__ void __launch_bounds__(S::kThreads) weight_grad(WeightGrad<typename S::Element> w) {
  using Sum = typename S::Sum;
  // Blocks of the same pixels run side by side, for the cache.
  int64_t block = blockIdx.x;
  const int64_t first_column = block % w.column_tiles * S::kColumns;
  block /= w.column_tiles;
  const int64_t first_filter = block % w.row_tiles * S::kRows;
  block /= w.row_tiles;
  const int64_t piece = block % w.pieces, group = block / w.pieces;

  const int64_t all_pixels =
      static_cast<int64_t>(w.batch) * w.axis[kHeight].results * w.axis[kWidth].results;
  const int64_t first_pixel = piece * w.tiles_a_piece * S::kDepth;
  const int64_t pixels = std::min(all_pixels - first_pixel, int64_t{w.tiles_a_piece} * S::kDepth);
  const bool with_bias = w.bias_partial && first_column == 0;

  typename S::Sums sums;
  WeightGradLoader<S> loader(w, static_cast<int>(group), first_pixel, pixels, first_filter,
                             first_column);
  multiply_tiles<S>(sums, loader, static_cast<int>(divide_up(pixels, S::kDepth)), with_bias);

  const int64_t first = (piece * w.groups + group) * w.filters;
  sums.each([&](int row, int column, Sum sum) {
    const int64_t filter = first_filter + S::warp_row() + row;
    const int64_t at = first_column + S::warp_column() + column;
    if (filter < w.filters && at < w.columns) w.partial[(first + filter) * w.columns + at] = sum;
  });
  if (with_bias && S::warp_column() == 0)
    sums.each_row_sum([&](int row, Sum sum) {
      const int64_t filter = first_filter + S::warp_row() + row;
      if (filter < w.filters) w.bias_partial[first + filter] = sum;
    });
}

}  // namespace kernels

}  // namespace convbp::cuda::gemm
