// How a block of the convolution reads its operands: tile after tile of the depth, from pointers that
// step along. In between, the depth counts (t, u, unit of channels).
#pragma once

#include <type_traits>

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
  Divisor units;                              // of the depth, in a tap's channels
  Divisor phases, row_tiles, column_tiles;    // tiles of the largest phase
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

// What both loaders know: where the depth stands, and the pixels whose tap it is at.
template <typename S>
class PixelLoader {
 public:
  using T = typename S::Element;

  // How many tiles the depth has.
  __device__ int tiles() const {
    return (part_.row.taps * part_.column.taps * units_ * kUnit + S::kDepth - 1) / S::kDepth;
  }

 protected:
  static constexpr int kChunks = S::A::kChunks;
  static constexpr int kStep = S::kThreads / kChunks;  // rows at a time
  static constexpr int kPixels = S::kRows / kStep, kFilters = S::kColumns / kStep;
  // What the depth counts.
  static constexpr int kUnit = S::kElements ? 1 : kPack<T>;
  static constexpr int kUnitsATile = S::kDepth / kUnit;
  static constexpr int kOutside = -(1 << 30);  // far outside, at any tap

  __device__ PixelLoader(const Convolution<T>& c, const Part<T>& part, int first_pixel)
      : c_(c),
        part_(part),
        row_(threadIdx.x / kChunks),
        chunk_(threadIdx.x % kChunks),
        units_(c.units.divisor) {
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
  }

  __device__ Digits depth(int number) const {
    const int taps = part_.column.taps;
    return Digits::of(number, taps > 1 ? taps : 1, c_.units);
  }
  __device__ bool meets(int i, int y, int x) const {
    return inside(y_[i] + y, c_.axis[kHeight].sources) &&
           inside(x_[i] + x, c_.axis[kWidth].sources);
  }

  const Convolution<T>& c_;
  const Part<T>& part_;
  int row_, chunk_, units_;
  const T* source_[kPixels];  // where each pixel's tap (0, 0) is, or would be
  int y_[kPixels], x_[kPixels];
};

// Reads chunks of channels, asynchronously. As long as the depth stays at a tap, all that changes is
// that the pointers step along the channels.
template <typename S>
class ChunkLoader : PixelLoader<S> {
  using Base = PixelLoader<S>;
  using typename Base::T, Base::kChunks, Base::kStep, Base::kPixels, Base::kFilters;
  using Base::c_, Base::part_, Base::row_, Base::chunk_, Base::units_, Base::source_;
  static_assert(kStep % 8 == 0, "a thread's chunks have to lie at one distance");

 public:
  using Base::tiles;

  __device__ ChunkLoader(const Convolution<T>& c, const Part<T>& part, int first_pixel,
                         int first_column)
      : Base(c, part, first_pixel), depth_(Base::depth(chunk_)),
        step_(Base::depth(Base::kUnitsATile)) {
    const int column = first_column + row_;
    filter_ = c.filter.data + part.group * c.filter.group + column * c.filter.item +
              part.row.first_tap * c.filter.row + part.column.first_tap * c.filter.pixel;
    filter_step_ = kStep * c.filter.item;
    filters_ = 0;
#pragma unroll
    for (int j = 0; j < kFilters; ++j)
      if (column + j * kStep < c.columns) filters_ |= 1u << j;
    take_step({0, 0, 0});
  }

  __device__ void load(const typename S::A& a, const typename S::B& b) {
    const int place = S::A::place(row_, chunk_);
#pragma unroll
    for (int i = 0; i < kPixels; ++i)
      copy_16_async(a.data + place + i * kStep * kChunks, source_[i], met_ & 1u << i);
#pragma unroll
    for (int j = 0; j < kFilters; ++j)
      copy_16_async(b.data + place + j * kStep * kChunks, filter_ + j * filter_step_,
                    met_ & 1u << (kPixels + j));
    if (depth_.inner + Base::kUnitsATile < units_) {  // the same tap's next channels
      depth_.inner += Base::kUnitsATile;
      move(S::kDepth, S::kDepth);
    } else {
      const Digits before = depth_;
      depth_.add(step_, part_.column.taps, units_);
      take_step(before);
    }
  }

 private:
  __device__ void move(int64_t in_source, int64_t in_filter) {
#pragma unroll
    for (auto& source : source_) source += in_source;
    filter_ += in_filter;
  }
  // From where the depth stood to where it stands.
  __device__ void take_step(const Digits& before) {
    const int t = depth_.outer - before.outer, u = depth_.middle - before.middle;
    const int channels = (depth_.inner - before.inner) * Base::kUnit;
    move(t * part_.row.source_tap * c_.source.row + u * part_.column.source_tap * c_.source.pixel +
             channels,
         t * part_.row.tap_step * c_.filter.row + u * part_.column.tap_step * c_.filter.pixel +
             channels);
    const int y = depth_.outer * part_.row.source_tap, x = depth_.middle * part_.column.source_tap;
    met_ = 0;
    if (depth_.outer >= part_.row.taps) return;
    met_ = filters_ << kPixels;
#pragma unroll
    for (int i = 0; i < kPixels; ++i) met_ |= static_cast<uint32_t>(Base::meets(i, y, x)) << i;
  }

  Digits depth_, step_;
  const T* filter_;  // source_ and this: where the next chunks are, or would be
  int64_t filter_step_;
  uint32_t filters_;  // a bit for each that there is
  uint32_t met_;      // a bit for each pixel and filter of which there is a next chunk
};

// Reads element by element, each at a tap and a channel of its own.
template <typename S>
class ElementLoader : PixelLoader<S> {
  using Base = PixelLoader<S>;
  using typename Base::T, Base::kStep, Base::kPixels, Base::kFilters;
  using Base::c_, Base::part_, Base::row_, Base::chunk_, Base::units_, Base::source_;

 public:
  using Base::tiles;

  __device__ ElementLoader(const Convolution<T>& c, const Part<T>& part, int first_pixel,
                           int first_column)
      : Base(c, part, first_pixel), depth_(Base::depth(chunk_ * kPack<T>)),
        step_(Base::depth(S::kDepth - kPack<T>)) {
    const int column = first_column + row_;
    filter_ = c.filter.data + part.group * c.filter.group + column * c.filter.item +
              part.row.first_tap * c.filter.row + part.column.first_tap * c.filter.pixel;
    filter_step_ = kStep * c.filter.item;
    filters_left_ = c.columns - column;
  }

  __device__ void load(const typename S::A& a, const typename S::B& b) {
    Chunk<T> source[kPixels], filter[kFilters];
    Taken at = taken();
#pragma unroll
    for (int e = 0; e < kPack<T>; ++e) {
      const bool valid = depth_.outer < part_.row.taps;
#pragma unroll
      for (int i = 0; i < kPixels; ++i)
        source[i].element[e] = valid && Base::meets(i, at.y, at.x) ? source_[i][at.in_source]
                                                                   : static_cast<T>(0.f);
#pragma unroll
      for (int j = 0; j < kFilters; ++j)
        filter[j].element[e] = valid && j * kStep < filters_left_
                                   ? filter_[j * filter_step_ + at.in_filter]
                                   : static_cast<T>(0.f);
      next(at);
    }
#pragma unroll
    for (int i = 0; i < kPixels; ++i) *a.chunk(row_ + i * kStep, chunk_) = source[i];
#pragma unroll
    for (int j = 0; j < kFilters; ++j) *b.chunk(row_ + j * kStep, chunk_) = filter[j];
    depth_.add(step_, part_.column.taps, units_);
  }

 private:
  // What the depth is at.
  struct Taken {
    int y, x;
    int64_t in_source, in_filter;
  };
  __device__ Taken taken() const {
    const int y = depth_.outer * part_.row.source_tap, x = depth_.middle * part_.column.source_tap;
    return {y, x, y * c_.source.row + x * c_.source.pixel + depth_.inner * c_.source.channel,
            depth_.outer * part_.row.tap_step * c_.filter.row +
                depth_.middle * part_.column.tap_step * c_.filter.pixel +
                depth_.inner * c_.filter.channel};
  }
  __device__ void next(Taken& at) {
    ++depth_.inner;
    at.in_source += c_.source.channel;
    at.in_filter += c_.filter.channel;
    if (depth_.inner >= units_) {
      depth_.inner = 0;
      ++depth_.middle;
      at.x += part_.column.source_tap;
      at.in_source += part_.column.source_tap * c_.source.pixel - units_ * c_.source.channel;
      at.in_filter += part_.column.tap_step * c_.filter.pixel - units_ * c_.filter.channel;
    }
    if (depth_.middle >= part_.column.taps) {
      depth_.middle = 0;
      ++depth_.outer;
      at.y += part_.row.source_tap;
      at.x = 0;
      at.in_source += part_.row.source_tap * c_.source.row -
                      part_.column.taps * part_.column.source_tap * c_.source.pixel;
      at.in_filter += part_.row.tap_step * c_.filter.row -
                      part_.column.taps * part_.column.tap_step * c_.filter.pixel;
    }
  }

  Digits depth_, step_;
  const T* filter_;
  int64_t filter_step_;
  int filters_left_;
};

template <typename S>
using ConvolutionLoader = std::conditional_t<S::kElements, ElementLoader<S>, ChunkLoader<S>>;

}  // namespace convbp::cuda::gemm
