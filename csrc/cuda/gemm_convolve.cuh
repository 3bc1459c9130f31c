// The convolution (L1, L2) and its input gradient (L6) as one matrix product that is never laid out
// in memory:
//
//     result[pixel, column] = sum over (t, u, channel) of
//         source[pixel's position + (t, u), channel] filter[column, (t, u), channel]
//
// For L1 pixels are output pixels, columns filters, the source the input. For L6 pixels are those
// input pixels that are alike modulo the stride (a phase, gemm_operand.h), columns input channels,
// the source delta. The plain form is plain.cuh.
//
// Tiles of 128x128, 128x64 and 64x64 pixels x columns by a depth of 32 (float64: 16): 64 sums a
// thread for reuse from shared memory, fewer where there are few columns or few tiles in all.
// Channels are read 16 bytes at a time from memory that has them innermost; the depth counts chunks
// of (t, u, channels) without gaps. Where there are four channels or fewer, as in a first layer,
// padding them to a chunk would multiply by zeros mostly: then the depth counts single elements,
// which are read one by one from the tensors as they are.
//
// A tap outside the source is a zero that is multiplied: where it meets an infinite or NaN filter,
// the result is NaN; plain.cuh leaves the product out.
//
// An element's sum runs over the depth in ascending order in every tile: it depends on neither the
// batch nor the tile. Sums pass through shared memory, to be stored in the order in which the
// result lies. How fast this is has not been measured yet.
#pragma once

#include "epilogue.h"
#include "gemm_operand.h"
#include "gemm_shape.cuh"
#include "gemm_taps.cuh"

namespace convbp::cuda::gemm {

template <typename T>
struct Convolution {
  Axis axis[2];
  int batch, groups, channels, columns;  // channels and columns of a group
  Operand<const T> source, filter;
  Operand<T> result;
  int64_t row_tiles = 0, column_tiles = 0;  // of the largest phase
};

// A phase of the convolution: what a block needs of it.
template <typename T>
struct Part {
  Phase row, column;
  int group;
  int64_t pixels;

  __device__ Part(const Convolution<T>& c, int phase, int group_)
      : row(c.axis[kHeight].phase(phase / c.axis[kWidth].phases)),
        column(c.axis[kWidth].phase(phase % c.axis[kWidth].phases)),
        group(group_),
        pixels(static_cast<int64_t>(c.batch) * row.results * column.results) {}
};

template <typename S>
class ConvolutionLoader {
  using T = typename S::Element;
  static constexpr int kChunks = S::A::kChunks;
  static constexpr int kStep = S::kThreads / kChunks;  // rows at a time
  static constexpr int kPixels = S::kRows / kStep, kFilters = S::kColumns / kStep;
  // What the depth counts.
  static constexpr int kUnit = S::kElements ? 1 : kPack<T>;
  static constexpr int kUnitsAChunk = kPack<T> / kUnit;

 public:
  __device__ ConvolutionLoader(const Convolution<T>& c, const Part<T>& part, int64_t first_pixel,
                               int64_t first_column)
      : c_(c), part_(part), row_(threadIdx.x / kChunks), chunk_(threadIdx.x % kChunks) {
    units_ = (c.channels + kUnit - 1) / kUnit;
    const int taps = max_of(part.column.taps, 1);
    depth_ = Digits::of(chunk_ * kUnitsAChunk, taps, units_);
    step_ = Digits::of(S::kDepth / kUnit - (S::kElements ? kPack<T> : 0), taps, units_);
#pragma unroll
    for (int i = 0; i < kPixels; ++i) {
      const int64_t pixel = first_pixel + row_ + i * kStep;
      source_[i] = 0;
      y_[i] = x_[i] = kOutside;
      if (pixel < part.pixels) {
        const Digits at = Digits::of(pixel, part.row.results, part.column.results);
        y_[i] = part.row.source + at.middle * part.row.source_step;
        x_[i] = part.column.source + at.inner * part.column.source_step;
        source_[i] = part.group * c.source.group + at.outer * c.source.item + y_[i] * c.source.row +
                     x_[i] * c.source.pixel;
      }
    }
#pragma unroll
    for (int j = 0; j < kFilters; ++j) {
      const int64_t column = first_column + row_ + j * kStep;
      filter_[j] = column < c.columns
                       ? c.filter.data + part.group * c.filter.group + column * c.filter.item
                       : nullptr;
    }
  }

  // How many tiles the depth has.
  __device__ int tiles() const {
    return (part_.row.taps * part_.column.taps * units_ * kUnit + S::kDepth - 1) / S::kDepth;
  }

  __device__ void load(const typename S::A& a, const typename S::B& b) {
    if constexpr (S::kElements) {
      Chunk<T> source[kPixels], filter[kFilters];
#pragma unroll
      for (int e = 0; e < kPack<T>; ++e) {
        const Taken at = taken();
#pragma unroll
        for (int i = 0; i < kPixels; ++i)
          source[i].element[e] =
              meets(at, i) ? c_.source.data[source_[i] + at.source_offset] : static_cast<T>(0.f);
#pragma unroll
        for (int j = 0; j < kFilters; ++j)
          filter[j].element[e] =
              at.valid && filter_[j] ? filter_[j][at.filter_offset] : static_cast<T>(0.f);
        depth_.add({0, 0, 1}, part_.column.taps, units_);
      }
#pragma unroll
      for (int i = 0; i < kPixels; ++i) *a.chunk(row_ + i * kStep, chunk_) = source[i];
#pragma unroll
      for (int j = 0; j < kFilters; ++j) *b.chunk(row_ + j * kStep, chunk_) = filter[j];
    } else {
      const Taken at = taken();
#pragma unroll
      for (int i = 0; i < kPixels; ++i) {
        const bool valid = meets(at, i);
        copy_16_async(a.chunk(row_ + i * kStep, chunk_),
                      c_.source.data + (valid ? source_[i] + at.source_offset : 0), valid);
      }
#pragma unroll
      for (int j = 0; j < kFilters; ++j) {
        const bool valid = at.valid && filter_[j];
        copy_16_async(b.chunk(row_ + j * kStep, chunk_),
                      valid ? filter_[j] + at.filter_offset : c_.filter.data, valid);
      }
    }
    depth_.add(step_, part_.column.taps, units_);
  }

 private:
  static constexpr int kOutside = -(1 << 30);  // far outside, at any tap

  __device__ static int max_of(int a, int b) { return a > b ? a : b; }

  // Where the depth stands.
  struct Taken {
    bool valid;
    int y, x;
    int64_t source_offset, filter_offset;
  };

  __device__ Taken taken() const {
    const int y = depth_.outer * part_.row.source_tap;
    const int x = depth_.middle * part_.column.source_tap;
    const int64_t r = part_.row.first_tap + depth_.outer * part_.row.tap_step;
    const int64_t s = part_.column.first_tap + depth_.middle * part_.column.tap_step;
    return {depth_.outer < part_.row.taps, y, x,
            y * c_.source.row + x * c_.source.pixel + channel_offset(c_.source),
            r * c_.filter.row + s * c_.filter.pixel + channel_offset(c_.filter)};
  }
  __device__ int64_t channel_offset(const Operand<const T>& operand) const {
    return S::kElements ? depth_.inner * operand.channel : depth_.inner * kUnit;
  }
  __device__ bool meets(const Taken& at, int i) const {
    return at.valid && inside(y_[i] + at.y, c_.axis[kHeight].sources) &&
           inside(x_[i] + at.x, c_.axis[kWidth].sources);
  }

  const Convolution<T>& c_;
  const Part<T>& part_;
  int row_, chunk_, units_;
  Digits depth_, step_;
  int64_t source_[kPixels];  // where each pixel's tap (0, 0) is in the source, or would be
  const T* filter_[kFilters];
  int y_[kPixels], x_[kPixels];
};

// How the sums lie in shared memory on their way out: lanes that write fragments and lanes that
// read a column or a row find 32 different banks.
template <int columns>
__device__ int staged(int row, int column) {
  return row * columns + (column ^ (row % 4 * 8 + row / 4 % 8));
}

template <typename S>
constexpr int64_t kConvolveSharedBytes =
    (S::kRingBytes > S::kRows * S::kColumns * int(sizeof(typename S::Sum))
         ? S::kRingBytes
         : S::kRows * S::kColumns * int(sizeof(typename S::Sum))) +
    S::kRows * int(sizeof(int64_t));

namespace kernels {

// Three blocks of four warps fit into a multiprocessor where elements have 16 bits. Elsewhere one
// at least: without that word the compiler spills registers to make room for a third.
template <typename S>
constexpr int kBlocks =
    S::kThreads == 128 && sizeof(typename S::Element) == 2 && !S::kElements ? 3 : 1;

template <typename S>
__global__ void __launch_bounds__(S::kThreads, kBlocks<S>)
    convolve(Convolution<typename S::Element> c, Epilogue<typename S::Element> epilogue,
             bool channels_innermost) {
  using T = typename S::Element;
  using Sum = typename S::Sum;
  // Blocks of the same pixels run side by side, for the cache.
  int64_t block = blockIdx.x;
  const int64_t first_column = block % c.column_tiles * S::kColumns;
  block /= c.column_tiles;
  const int64_t first_pixel = block % c.row_tiles * S::kRows;
  block /= c.row_tiles;
  const int phases = c.axis[kHeight].phases * c.axis[kWidth].phases;
  const Part<T> part(c, static_cast<int>(block % phases), static_cast<int>(block / phases));
  if (first_pixel >= part.pixels) return;

  typename S::Sums sums;
  {
    ConvolutionLoader<S> loader(c, part, first_pixel, first_column);
    multiply_tiles<S>(sums, loader, loader.tiles());
  }

  Sum* const stage = shared_memory<Sum>();
  sums.each([&](int row, int column, Sum sum) {
    stage[staged<S::kColumns>(S::warp_row() + row, S::warp_column() + column)] = sum;
  });
  // Where each row's pixel lies in the result, or -1.
  int64_t* const offset = reinterpret_cast<int64_t*>(
      shared_memory<char>() + kConvolveSharedBytes<S> - S::kRows * sizeof(int64_t));
  for (int row = threadIdx.x; row < S::kRows; row += S::kThreads) {
    const int64_t pixel = first_pixel + row;
    offset[row] = -1;
    if (pixel < part.pixels) {
      const Digits at = Digits::of(pixel, part.row.results, part.column.results);
      offset[row] =
          part.group * c.result.group + at.outer * c.result.item +
          (part.row.first_result + int64_t{at.middle} * part.row.result_step) * c.result.row +
          (part.column.first_result + int64_t{at.inner} * part.column.result_step) * c.result.pixel;
    }
  }
  barrier();
#pragma unroll 1
  for (int e = threadIdx.x; e < S::kRows * S::kColumns; e += S::kThreads) {
    const int row = channels_innermost ? e / S::kColumns : e % S::kRows;
    const int column = channels_innermost ? e % S::kColumns : e / S::kRows;
    const int64_t channel = first_column + column;
    if (offset[row] < 0 || channel >= c.columns) continue;
    const int64_t at = offset[row] + channel * c.result.channel;
    c.result.data[at] = epilogue.finish(stage[staged<S::kColumns>(row, column)],
                                        int64_t{part.group} * c.columns + channel, at);
  }
}

}  // namespace kernels

}  // namespace convbp::cuda::gemm
