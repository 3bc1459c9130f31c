// The common parts of the depthwise kernels: the taps of one axis that meet, strips of neighbouring
// results, and neighbouring channels as one load.
//
// L1 and L6 are one sum, read in two directions: a *result* position (of the output, of the input
// gradient) collects from *source* positions (of the input, of delta).
#pragma once

#include <numeric>
#include <type_traits>

#include "core/conv_problem.h"
#include "cuda/epilogue.h"
#include "cuda/grid.h"
#include "cuda/pack.h"

// The kernels' __launch_bounds__ ask for one block a multiprocessor: told nothing, nvcc aims at
// more and spills a register or two for them.
namespace convbp::cuda::depthwise {

struct StripAxis {
  int sources, results, taps, stride, pad, dilation;
  int jump;  // from a tap that meets a result position backward to the next one that does

  StripAxis(const ConvProblem& p, Spatial axis, bool backward)
      : sources(static_cast<int>(backward ? p.out_size[axis] : p.in_size[axis])),
        results(static_cast<int>(backward ? p.in_size[axis] : p.out_size[axis])),
        taps(static_cast<int>(p.kernel[axis])),
        stride(static_cast<int>(p.stride[axis])),
        pad(static_cast<int>(p.pad[axis])),
        dilation(static_cast<int>(p.dilation[axis])),
        jump(static_cast<int>(p.stride[axis] / std::gcd(p.stride[axis], p.dilation[axis]))) {}

  // The same axis with what a kernel knows when it is compiled.
  template <int known_taps, int known_stride>
  CONVBP_BOTH StripAxis known() const {
    StripAxis a = *this;
    a.taps = known_taps, a.stride = known_stride, a.dilation = 1, a.jump = known_stride;
    return a;
  }
};

enum class Direction {
  kForward,   // source = result * stride - pad + tap * dilation
  kBackward,  // source * stride = result + pad - tap * dilation: where it divides, no other tap is
              // looked at
};

// Calls body(tap, source) for the taps at which a result position meets a source, ascending.
template <Direction direction, typename Body>
__device__ void each_tap(const StripAxis& a, int result, const Body& body) {
  int tap = 0, tap_step = 1, source = result * a.stride - a.pad, source_step = a.dilation;
  if constexpr (direction == Direction::kBackward) {
    const int at = result + a.pad;
    const int limit = a.jump < a.taps ? a.jump : a.taps;
    while (tap < limit && (at - tap * a.dilation) % a.stride) ++tap;
    if (tap == limit) return;
    source = (at - tap * a.dilation) / a.stride;
    tap_step = a.jump, source_step = -(a.dilation / (a.stride / a.jump));
  }
#pragma unroll 1
  for (; tap < a.taps; tap += tap_step, source += source_step)
    if (0 <= source && source < a.sources) body(tap, source);
}

// Calls start(taps, stride) with constants, where kernels are compiled for such filters, and
// returns its answer; else returns false.
template <typename Start>
bool start_compiled(const StripAxis& height, const StripAxis& width, const Start& start) {
  if (height.taps != width.taps || height.stride != width.stride || height.dilation != 1 ||
      width.dilation != 1)
    return false;
  const auto with_stride = [&](auto taps) {
    if (height.stride == 1) return start(taps, std::integral_constant<int, 1>());
    return height.stride == 2 && start(taps, std::integral_constant<int, 2>());
  };
  if (height.taps == 3) return with_stride(std::integral_constant<int, 3>());
  if (height.taps == 5) return with_stride(std::integral_constant<int, 5>());
  return height.taps == 7 && with_stride(std::integral_constant<int, 7>());
}

// Neighbouring results on one axis, computed together. The compiler knows which of the sources
// between them meet which result at which tap.
template <Direction direction, int taps, int stride>
struct Strip {
  static constexpr bool kForward = direction == Direction::kForward;
  // The sources that a strip's first result meets before the one at its first tap.
  static constexpr int kBehind = kForward ? 0 : (taps - 1) / stride;

  CONVBP_BOTH static constexpr int sources(int length) {
    return kForward ? (length - 1) * stride + taps : kBehind + (length - 1) / stride + 1;
  }
  // The sources from a strip's first one to the next strip's.
  CONVBP_BOTH static constexpr int sources_apart(int length) {
    return kForward ? length * stride : length / stride;
  }
  // Result p meets source k at this tap; where it is not in [0, taps) they do not meet.
  CONVBP_BOTH static constexpr int tap(int p, int k) {
    return kForward ? k - p * stride : p + (kBehind - k) * stride;
  }
  // The first result of a strip. Backward, strips begin where tap 0 meets a source, the first strip
  // before the results.
  CONVBP_BOTH static int first_result(const StripAxis& a, int number, int length) {
    return number * length - (kForward ? 0 : a.pad % stride);
  }
  CONVBP_BOTH static int first_source(const StripAxis& a, int result) {
    return kForward ? result * stride - a.pad : (result + a.pad) / stride - kBehind;
  }
  CONVBP_BOTH static int count(const StripAxis& a, int length) {
    return (a.results + (kForward ? 0 : a.pad % stride) + length - 1) / length;
  }
};

// Channels that one thread computes together. Packed, they are one load of 8 or 16 bytes.
template <typename T>
constexpr int kVector = sizeof(T) == 8 ? 2 : 4;

// A thread's channels, of which `count` exist; the others count as zero.
struct Vector {
  int64_t step;
  int count;
  bool packed;

  template <int size, typename A, typename T>
  __device__ void load(A (&to)[size], const T* from) const {
    if (packed) {
      const auto pack = *reinterpret_cast<const Pack<T, size>*>(from);
#pragma unroll
      for (int v = 0; v < size; ++v) to[v] = static_cast<A>(pack.element[v]);
    } else {
#pragma unroll
      for (int v = 0; v < size; ++v) to[v] = v < count ? static_cast<A>(from[v * step]) : A(0);
    }
  }

  template <int size, typename A, typename T>
  __device__ void store(T* to, const A (&from)[size]) const {
    if (packed) {
      Pack<T, size> pack;
#pragma unroll
      for (int v = 0; v < size; ++v) pack.element[v] = static_cast<T>(from[v]);
      *reinterpret_cast<Pack<T, size>*>(to) = pack;
    } else {
#pragma unroll
      for (int v = 0; v < size; ++v)
        if (v < count) to[v * step] = static_cast<T>(from[v]);
    }
  }
};

// The filters of a block's channels, [taps * taps][a row of channels] in shared memory. They are
// read in their own order. Rows are V channels longer than the block has, so that few taps of a
// channel, which neighbouring threads store, meet in a bank.
template <int taps, int V, typename A>
struct Filters {
  A* data;
  int channels, row;

  CONVBP_BOTH Filters(A* data_, int channels_)
      : data(data_), channels(channels_), row(channels_ + V) {}
  CONVBP_BOTH int size() const { return taps * taps * row; }

  template <typename T>
  __device__ void take(const View<const T>& weight, int first, int all, bool flipped, int thread,
                       int threads) const {
    for (int e = thread; e < taps * taps * channels; e += threads) {
      const int c = e / (taps * taps), tap = e % (taps * taps);
      const int at = flipped ? taps * taps - 1 - tap : tap;
      data[tap * row + c] =
          first + c < all ? static_cast<A>(weight.at(first + c, 0, at / taps, at % taps)) : A(0);
    }
  }
  // Loads the V channels that begin with c.
  __device__ void load(A (&to)[V], int tap, int c) const {
    Vector{1, V, true}.load(to, data + tap * row + c);
  }
};

// True where `size` neighbouring channels of `channels`, anywhere in the tensor, are one aligned
// load.
template <typename T>
bool is_packed(const View<T>& t, int64_t channels, int size) {
  return t.stride[1] == 1 && channels % size == 0 && t.stride[0] % size == 0 &&
         t.stride[2] % size == 0 && t.stride[3] % size == 0 &&
         reinterpret_cast<uintptr_t>(t.data) % (size * sizeof(T)) == 0;
}

// The distance of a tile's rows in shared memory. A warp has `lanes` columns, and its next lanes
// those of the strip `rows` further down: together they should find different banks.
inline int pitch_for(int columns, int lanes, int rows) {
  constexpr int kBanks = 32;
  for (int pitch = columns; lanes < kBanks && pitch < columns + kBanks; ++pitch)
    if (pitch * rows % kBanks == lanes) return pitch;
  return columns;
}

// The least power of two that is not below n, at most `most`.
inline int lanes_for(int64_t n, int most) {
  int lanes = 1;
  while (lanes < n && lanes < most) lanes *= 2;
  return lanes;
}

}  // namespace convbp::cuda::depthwise
