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

#include <type_traits>

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
  bool channels_innermost, in_chunks;         // how the result is stored
  uint32_t row_tiles = 0, column_tiles = 0;  // of the largest phase
};

// A phase of the convolution: what a block needs of it.
template <typename T>
struct Part {
  Phase row, column;
  int group, pixels;

  __device__ Part(const Convolution<T>& c, int phase, int group_)
      : row(c.axis[kHeight].phase(phase / c.axis[kWidth].phases)),
        column(c.axis[kWidth].phase(phase % c.axis[kWidth].phases)),
        group(group_),
        pixels(c.batch * row.results * column.results) {}
};

template <typename S>
class ConvolutionLoader {
  using T = typename S::Element;
  static constexpr int kChunks = S::A::kChunks;
  static constexpr int kStep = S::kThreads / kChunks;  // rows at a time
  static constexpr int kPixels = S::kRows / kStep, kFilters = S::kColumns / kStep;
  // What the depth counts.
  static constexpr int kUnit = S::kElements ? 1 : kPack<T>;
  static constexpr int kUnitsAChunk = kPack<T> / kUnit, kUnitsATile = S::kDepth / kUnit;

 public:
  __device__ ConvolutionLoader(const Convolution<T>& c, const Part<T>& part, int first_pixel,
                               int first_column)
      : c_(c), part_(part), row_(threadIdx.x / kChunks), chunk_(threadIdx.x % kChunks) {
    units_ = (c.channels + kUnit - 1) / kUnit;
    const int taps = max_of(part.column.taps, 1);
    depth_ = Digits::of(chunk_ * kUnitsAChunk, taps, units_);
    step_ = Digits::of(kUnitsATile - (S::kElements ? kPack<T> : 0), taps, units_);
#pragma unroll
    for (int i = 0; i < kPixels; ++i) {
      const int pixel = first_pixel + row_ + i * kStep;
      source_[i] = c.source.data + part.group * c.source.group;
      y_[i] = x_[i] = kOutside;
      if (pixel < part.pixels) {
        const Digits at = Digits::of(pixel, part.row.by_results, part.column.by_results);
        y_[i] = part.row.source + at.middle * part.row.source_step;
        x_[i] = part.column.source + at.inner * part.column.source_step;
        source_[i] += at.outer * c.source.item + y_[i] * c.source.row + x_[i] * c.source.pixel;
      }
    }
    filters_ = 0;
#pragma unroll
    for (int j = 0; j < kFilters; ++j) {
      const int column = first_column + row_ + j * kStep;
      filter_[j] = c.filter.data + part.group * c.filter.group + part.row.first_tap * c.filter.row +
                   part.column.first_tap * c.filter.pixel;
      if (column < c.columns) {
        filter_[j] += column * c.filter.item;
        filters_ |= 1u << j;
      }
    }
    if constexpr (!S::kElements) {
      take_step({0, 0, 0});
      find_met();
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
              meets(at, i) ? source_[i][at.source_offset] : static_cast<T>(0.f);
#pragma unroll
        for (int j = 0; j < kFilters; ++j)
          filter[j].element[e] =
              at.valid && filters_ >> j & 1 ? filter_[j][at.filter_offset] : static_cast<T>(0.f);
        depth_.add({0, 0, 1}, part_.column.taps, units_);
      }
#pragma unroll
      for (int i = 0; i < kPixels; ++i) *a.chunk(row_ + i * kStep, chunk_) = source[i];
#pragma unroll
      for (int j = 0; j < kFilters; ++j) *b.chunk(row_ + j * kStep, chunk_) = filter[j];
      depth_.add(step_, part_.column.taps, units_);
    } else {
      static_assert(kStep % 8 == 0);
      const int place = S::A::place(row_, chunk_);
#pragma unroll
      for (int i = 0; i < kPixels; ++i)
        copy_16_async(a.data + place + i * kStep * kChunks, source_[i], met_ & 1u << i);
#pragma unroll
      for (int j = 0; j < kFilters; ++j)
        copy_16_async(b.data + place + j * kStep * kChunks, filter_[j],
                      met_ & 1u << (kPixels + j));
      if (depth_.inner + kUnitsATile < units_) {  // the same tap's next channels
        depth_.inner += kUnitsATile;
        move(S::kDepth, S::kDepth);
      } else {
        const Digits before = depth_;
        depth_.add(step_, part_.column.taps, units_);
        take_step(before);
        find_met();
      }
    }
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
    const int r = depth_.outer * part_.row.tap_step, s = depth_.middle * part_.column.tap_step;
    return {depth_.outer < part_.row.taps, y, x,
            y * c_.source.row + x * c_.source.pixel + channel_offset(c_.source),
            r * c_.filter.row + s * c_.filter.pixel + channel_offset(c_.filter)};
  }
  __device__ int64_t channel_offset(const Operand<const T>& operand) const {
    return S::kElements ? depth_.inner * operand.channel : 0;
  }
  __device__ bool meets(const Taken& at, int i) const {
    return at.valid && inside(y_[i] + at.y, c_.axis[kHeight].sources) &&
           inside(x_[i] + at.x, c_.axis[kWidth].sources);
  }
  __device__ void move(int64_t in_source, int64_t in_filter) {
#pragma unroll
    for (auto& source : source_) source += in_source;
#pragma unroll
    for (auto& filter : filter_) filter += in_filter;
  }
  // To where the depth stands, from where it stood.
  __device__ void take_step(const Digits& before) {
    const int t = depth_.outer - before.outer, u = depth_.middle - before.middle;
    const int channels = (depth_.inner - before.inner) * kUnit;
    move(t * part_.row.source_tap * c_.source.row + u * part_.column.source_tap * c_.source.pixel +
             channels,
         t * part_.row.tap_step * c_.filter.row + u * part_.column.tap_step * c_.filter.pixel +
             channels);
  }
  __device__ void find_met() {
    const Taken at = taken();
    met_ = at.valid ? filters_ << kPixels : 0;
#pragma unroll
    for (int i = 0; i < kPixels; ++i) met_ |= static_cast<uint32_t>(meets(at, i)) << i;
  }

  const Convolution<T>& c_;
  const Part<T>& part_;
  int row_, chunk_, units_;
  Digits depth_, step_;
  const T* source_[kPixels];  // where the next chunk is, or would be; or the elements' tap (0, 0)
  const T* filter_[kFilters];
  int y_[kPixels], x_[kPixels];
  uint32_t filters_;  // a bit for each that there is
  uint32_t met_;      // a bit for each pixel and filter of which there is a next chunk
};

// How the sums lie in shared memory on their way out: in the order of the result, in chunks that
// nothing tears apart. Lanes that write fragments find different banks.
template <typename S>
__device__ int staged(bool by_rows, int row, int column) {
  return by_rows ? row * S::kColumns + (column ^ (row % 4 * 8))
                 : column * S::kRows + (row ^ (column % 8 * 4));
}

template <typename S>
constexpr int64_t kConvolveSharedBytes =
    (S::kRingBytes > S::kRows * S::kColumns * int(sizeof(typename S::Sum))
         ? S::kRingBytes
         : S::kRows * S::kColumns * int(sizeof(typename S::Sum))) +
    S::kRows * int(sizeof(int64_t));

// Finishes and stores the tile, n results side by side at a time.
template <typename S, int n, typename T = typename S::Element, typename Sum = typename S::Sum>
__device__ void store_sums(const Convolution<T>& c, const Epilogue<T>& epilogue, int group,
                           int first_column, const Sum* stage, const int64_t* offset) {
  constexpr int kRead = n < kPack<Sum> ? n : kPack<Sum>;
  const bool by_rows = c.channels_innermost;
#pragma unroll 1
  for (int e = threadIdx.x * n; e < S::kRows * S::kColumns; e += S::kThreads * n) {
    const int row = by_rows ? e / S::kColumns : e % S::kRows;
    const int column = by_rows ? e % S::kColumns : e / S::kRows;
    const int channel = first_column + column;
    if (offset[row] < 0 || channel >= c.columns) continue;
    Sum sum[n];
#pragma unroll
    for (int i = 0; i < n; i += kRead) {
      const auto read = *reinterpret_cast<const Vector<Sum, kRead>*>(
          stage + staged<S>(by_rows, by_rows ? row : row + i, by_rows ? column + i : column));
#pragma unroll
      for (int k = 0; k < kRead; ++k) sum[i + k] = read.element[k];
    }
    const int64_t at = offset[row] + channel * c.result.channel;
    epilogue.finish(sum, int64_t{group} * c.columns + channel, by_rows, at);
    epilogue.store(sum, c.result.data + at);
  }
}

namespace kernels {

// Three blocks of four warps fit into a multiprocessor where elements have 16 bits. Elsewhere one
// at least: without that word the compiler spills registers to make room for a third.
template <typename S>
constexpr int kBlocks =
    sizeof(typename S::Element) != 2 || S::kElements ? 1 : S::kThreads == 128 ? 3 : 2;

template <typename S>
__global__ void __launch_bounds__(S::kThreads, kBlocks<S>)
    convolve(Convolution<typename S::Element> c, Epilogue<typename S::Element> epilogue) {
  using T = typename S::Element;
  using Sum = typename S::Sum;
  // Blocks of the same pixels run side by side, for the cache.
  uint32_t block = blockIdx.x;
  const int first_column = block % c.column_tiles * S::kColumns;
  block /= c.column_tiles;
  const int first_pixel = block % c.row_tiles * S::kRows;
  block /= c.row_tiles;
  const uint32_t phases = c.axis[kHeight].phases * c.axis[kWidth].phases;
  const Part<T> part(c, block % phases, block / phases);
  if (first_pixel >= part.pixels) return;

  typename S::Sums sums;
  {
    ConvolutionLoader<S> loader(c, part, first_pixel, first_column);
    multiply_tiles<S>(sums, loader, loader.tiles(), [](const auto&) {});
  }

  Sum* const stage = shared_memory<Sum>();
  if (c.channels_innermost)
    sums.each([&](int row, int column, const auto& sum) {
      *reinterpret_cast<std::decay_t<decltype(sum)>*>(
          stage + staged<S>(true, S::warp_row() + row, S::warp_column() + column)) = sum;
    });
  else
    sums.each([&](int row, int column, const auto& sum) {
#pragma unroll
      for (const Sum& one : sum.element)
        stage[staged<S>(false, S::warp_row() + row,
                        S::warp_column() + column + static_cast<int>(&one - sum.element))] = one;
    });
  // Where each row's pixel lies in the result, or -1.
  int64_t* const offset = reinterpret_cast<int64_t*>(
      shared_memory<char>() + kConvolveSharedBytes<S> - S::kRows * sizeof(int64_t));
  for (int row = threadIdx.x; row < S::kRows; row += S::kThreads) {
    const int pixel = first_pixel + row;
    offset[row] = -1;
    if (pixel < part.pixels) {
      const Digits at = Digits::of(pixel, part.row.by_results, part.column.by_results);
      const int y = part.row.first_result + at.middle * part.row.result_step;
      const int x = part.column.first_result + at.inner * part.column.result_step;
      offset[row] = part.group * c.result.group + at.outer * c.result.item + y * c.result.row +
                    x * c.result.pixel;
    }
  }
  barrier();
  if (c.in_chunks)
    store_sums<S, kPack<T>>(c, epilogue, part.group, first_column, stage, offset);
  else
    store_sums<S, 1>(c, epilogue, part.group, first_column, stage, offset);
}

}  // namespace kernels

}  // namespace convbp::cuda::gemm
