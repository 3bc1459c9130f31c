// Loaders: a block of the convolution reads its operands tile after tile of the depth, which counts
// (t, u, unit of channels).
#pragma once

#include <type_traits>

#include "cuda/implicit_gemm/operand.h"
#include "cuda/implicit_gemm/shape.cuh"
#include "cuda/implicit_gemm/taps.cuh"

namespace convbp::cuda::gemm {

template <typename T>
struct Convolution {
  GemmAxis axis[2];
  int batch, groups, columns;  // columns of a group
  Operand<const T> source, filter;
  Operand<T> result;
  bool channels_innermost, in_chunks;       // the way the result is stored
  Divisor units;                            // units of the depth in a tap's channels
  Divisor phases, row_tiles, column_tiles;  // tiles of the largest phase
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

// The common part of both loaders.
template <typename S>
class PixelLoader {
 public:
  using T = typename S::Element;

  // The number of tiles of the depth.
  __device__ int tiles() const {
    return (part_.row.taps * part_.column.taps * units_ * kUnit + S::kDepth - 1) / S::kDepth;
  }

 protected:
  static constexpr int kUnit = S::kElements ? 1 : kPack<T>;  // elements in a unit of the depth
  static constexpr int kUnitsATile = S::kDepth / kUnit;
  static constexpr int kOutside = -(1 << 30);  // far outside, at any tap

  __device__ PixelLoader(const Convolution<T>& c, const Part<T>& part, int unit)
      : c_(c),
        part_(part),
        units_(c.units.divisor),
        depth_(depth(unit)),
        step_(depth(kUnitsATile)) {}

  // A pixel's tap (0, 0): where it is, or would be.
  struct Pixel {
    const T* source;
    int y, x;
  };
  __device__ Pixel pixel(int number) const {
    const T* const source = c_.source.data + part_.group * c_.source.group;
    if (number >= part_.pixels) return {source, kOutside, kOutside};
    const Digits at = Digits::of(number, part_.row.by_results, part_.column.by_results);
    const int y = part_.row.source + at.middle * part_.row.source_step;
    const int x = part_.column.source + at.inner * part_.column.source_step;
    return {source + at.outer * c_.source.item + y * c_.source.row + x * c_.source.pixel, y, x};
  }
  // A filter's first tap: where it is, or would be.
  __device__ const T* filter(int column) const {
    return c_.filter.data + part_.group * c_.filter.group + column * c_.filter.item +
           part_.row.first_tap * c_.filter.row + part_.column.first_tap * c_.filter.pixel;
  }

  // The distance of the depth's tap and channel from the first.
  struct Offset {
    int y, x;
    int64_t source, filter;
  };
  __device__ Offset offset(const Digits& depth, int64_t source_channel,
                           int64_t filter_channel) const {
    const int y = depth.outer * part_.row.source_tap, x = depth.middle * part_.column.source_tap;
    return {y, x, y * c_.source.row + x * c_.source.pixel + depth.inner * source_channel,
            depth.outer * part_.row.tap_step * c_.filter.row +
                depth.middle * part_.column.tap_step * c_.filter.pixel +
                depth.inner * filter_channel};
  }
  __device__ bool at_tap() const { return depth_.outer < part_.row.taps; }
  __device__ bool meets(const Pixel& pixel, int y, int x) const {
    return inside(pixel.y + y, c_.axis[kHeight].sources) &  // no branch
           inside(pixel.x + x, c_.axis[kWidth].sources);
  }
  __device__ void step() { depth_.add(step_, part_.column.taps, units_); }

  const Convolution<T>& c_;
  const Part<T>& part_;
  const int units_;
  Digits depth_, step_;

 private:
  __device__ Digits depth(int number) const {
    const int taps = part_.column.taps;
    return Digits::of(number, taps > 1 ? taps : 1, c_.units);
  }
};

// Reads chunks of channels, asynchronously. While the depth stays at a tap, only the pointers
// change, by a constant.
template <typename S>
class ChunkLoader : public PixelLoader<S> {
  using Base = PixelLoader<S>;
  using typename Base::Pixel, typename Base::Offset;
  using T = typename S::Element;
  using Base::c_, Base::depth_, Base::kUnit, Base::kUnitsATile;
  static constexpr int kChunks = S::A::kChunks;
  static constexpr int kStep = S::kThreads / kChunks;  // rows at a time
  static constexpr int kPixels = S::kRows / kStep, kFilters = S::kColumns / kStep;
  static_assert(kStep % 8 == 0, "a thread's chunks have to lie at one distance");

 public:
  __device__ ChunkLoader(const Convolution<T>& c, const Part<T>& part, int first_pixel,
                         int first_column)
      : Base(c, part, threadIdx.x % kChunks) {
    const int row = threadIdx.x / kChunks, column = first_column + row;
#pragma unroll
    for (int i = 0; i < kPixels; ++i) pixel_[i] = this->pixel(first_pixel + row + i * kStep);
    filter_ = this->filter(column);
    filter_step_ = kStep * c.filter.item;
    filters_ = 0;
#pragma unroll
    for (int j = 0; j < kFilters; ++j)
      if (column + j * kStep < c.columns) filters_ |= 1u << j;
    move_to_tap({0, 0, 0});
  }

  __device__ void load(const typename S::A& a, const typename S::B& b) {
    const int row = threadIdx.x / kChunks, chunk = threadIdx.x % kChunks;
#pragma unroll
    for (int i = 0; i < kPixels; ++i)
      copy_16_async(a.chunk(row, chunk, i * kStep), pixel_[i].source, met_ & 1u << i);
#pragma unroll
    for (int j = 0; j < kFilters; ++j)
      copy_16_async(b.chunk(row, chunk, j * kStep), filter_ + j * filter_step_,
                    met_ & 1u << (kPixels + j));
    if (depth_.inner + kUnitsATile < this->units_) {  // the same tap's next channels
      depth_.inner += kUnitsATile;
      move(S::kDepth, S::kDepth);
    } else {
      const Digits before = depth_;
      this->step();
      move_to_tap(before);
    }
  }

 private:
  __device__ void move(int64_t in_source, int64_t in_filter) {
#pragma unroll
    for (Pixel& pixel : pixel_) pixel.source += in_source;
    filter_ += in_filter;
  }
  // Moves from where the depth stood to where it stands.
  __device__ void move_to_tap(const Digits& before) {
    const Offset way = this->offset(
        {depth_.outer - before.outer, depth_.middle - before.middle, depth_.inner - before.inner},
        kUnit, kUnit);
    move(way.source, way.filter);
    met_ = 0;
    if (!this->at_tap()) return;
    met_ = filters_ << kPixels;
    const Offset at = this->offset(depth_, kUnit, kUnit);
#pragma unroll
    for (int i = 0; i < kPixels; ++i)
      met_ |= static_cast<uint32_t>(this->meets(pixel_[i], at.y, at.x)) << i;
  }

  Pixel pixel_[kPixels];  // its source, and filter_: where the next chunk is, or would be
  const T* filter_;
  int64_t filter_step_;
  uint32_t filters_;  // a bit for each filter that exists
  uint32_t met_;      // a bit for each pixel and filter of which there is a next chunk
};

// Reads element by element, each at a tap and a channel of its own; a thread reads those of one
// depth. The pixels are in shared memory, after the ring.
template <typename S>
class ElementLoader : public PixelLoader<S> {
  using Base = PixelLoader<S>;
  using typename Base::Pixel, typename Base::Offset;
  using T = typename S::Element;
  using Base::c_;
  static constexpr int kGroups = S::kThreads / S::kDepth;
  static constexpr int kPixels = S::kRows / kGroups, kFilters = S::kColumns / kGroups;

 public:
  static constexpr int kSharedBytes = S::kRows * sizeof(Pixel);

  __device__ ElementLoader(const Convolution<T>& c, const Part<T>& part, int first_pixel,
                           int first_column)
      : Base(c, part, threadIdx.x % S::kDepth),
        filter_(this->filter(first_column + first_filter())),
        filters_left_(c.columns - first_column - first_filter()) {
    for (int row = threadIdx.x; row < S::kRows; row += S::kThreads)
      pixels()[row] = this->pixel(first_pixel + row);
    barrier();
  }

  __device__ void load(const typename S::A& a, const typename S::B& b) {
    const Offset at = this->offset(this->depth_, c_.source.channel, c_.filter.channel);
    const bool at_tap = this->at_tap();
    const int first = threadIdx.x / S::kDepth * kPixels, depth = threadIdx.x % S::kDepth;
    T source[kPixels], filter[kFilters];
#pragma unroll
    for (int i = 0; i < kPixels; ++i) {
      const Pixel pixel = pixels()[first + i];
      const bool met = at_tap & this->meets(pixel, at.y, at.x);
      source[i] = met ? pixel.source[at.source] : static_cast<T>(0.f);
    }
    const T* from = filter_ + at.filter;
#pragma unroll
    for (int j = 0; j < kFilters; ++j) {
      filter[j] = at_tap & (j < filters_left_) ? *from : static_cast<T>(0.f);
      from += c_.filter.item;
    }
#pragma unroll
    for (int i = 0; i < kPixels; ++i) a.at(first + i, depth) = source[i];
#pragma unroll
    for (int j = 0; j < kFilters; ++j) b.at(first_filter() + j, depth) = filter[j];
    this->step();
  }

 private:
  __device__ static int first_filter() { return threadIdx.x / S::kDepth * kFilters; }
  __device__ static Pixel* pixels() {
    return reinterpret_cast<Pixel*>(shared_memory<char>() + S::kRingBytes);
  }

  const T* filter_;
  int filters_left_;
};

template <typename S>
using ConvolutionLoader = std::conditional_t<S::kElements, ElementLoader<S>, ChunkLoader<S>>;

}  // namespace convbp::cuda::gemm
