// What the kernels are tried on: tensors whose memory ends where their last element does, and
// random problems off the sizes the kernels work in.
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <memory>
#include <random>
#include <type_traits>

#include "core/conv_problem.h"
#include "core/pool_problem.h"

namespace convbp::sanitize {

class Random {
 public:
  explicit Random(uint64_t seed) : engine_(seed) {}
  // One of [least, most].
  int64_t number(int64_t least, int64_t most) {
    return least + static_cast<int64_t>(engine_() % static_cast<uint64_t>(most - least + 1));
  }
  template <typename T>
  T one_of(std::initializer_list<T> choices) {
    return choices.begin()[number(0, static_cast<int64_t>(choices.size()) - 1)];
  }
  bool in(int64_t times) { return number(1, times) == 1; }  // once in so many times

 private:
  std::mt19937_64 engine_;
};

// A view is a part of something larger in every dimension. Strided: every stride is unusual, and
// there are gaps. In a wide view they are as long as a vector, so that it can be read in place.
enum class Layout {
  kContiguous,
  kChannelsLast,
  kContiguousView,
  kChannelsLastView,
  kChannelsLastWideView,
  kStrided
};
using Size = std::array<int64_t, 4>;

inline Layout any_layout(Random& random) {
  return random.one_of({Layout::kContiguous, Layout::kChannelsLast, Layout::kContiguousView,
                        Layout::kChannelsLastView, Layout::kChannelsLastWideView,
                        Layout::kStrided});
}

inline Layout dense_layout(Random& random) {
  return random.one_of({Layout::kContiguous, Layout::kChannelsLast});
}

template <typename T>
class Tensor {
 public:
  // `missing`: elements that are left out at the end of its memory, for a lie.
  explicit Tensor(const Size& size, Layout layout = Layout::kContiguous, int64_t missing = 0)
      : size_(size) {
    static constexpr int kOrder[6][4] = {{0, 1, 2, 3}, {0, 2, 3, 1}, {0, 1, 2, 3},
                                         {0, 2, 3, 1}, {0, 2, 3, 1}, {3, 0, 2, 1}};
    const bool dense = layout == Layout::kContiguous || layout == Layout::kChannelsLast;
    const int64_t gap = dense ? 1 : layout == Layout::kChannelsLastWideView ? 9 : 2;
    int64_t step = layout == Layout::kStrided ? gap : 1;
    for (int i = 3; i >= 0; --i) {
      const int d = kOrder[static_cast<int>(layout)][i];
      stride_[d] = step;
      step *= std::max<int64_t>(size[d], 1) + (gap - 1);
    }
    int64_t elements = count() ? 1 : 0;
    for (int d = 0; elements && d < 4; ++d) elements += (size[d] - 1) * stride_[d];
    elements -= missing;
    data_ = std::make_unique<T[]>(elements);
    // What nobody writes is found by a comparison: with a number, or with a number of no tap.
    if constexpr (std::is_integral_v<T>)
      std::fill_n(data_.get(), elements, static_cast<T>(254));
    else
      std::fill_n(data_.get(), elements, static_cast<T>(std::nanf("")));
  }

  int64_t count() const { return size_[0] * size_[1] * size_[2] * size_[3]; }
  View<T> view() const { return {data_.get(), {stride_[0], stride_[1], stride_[2], stride_[3]}}; }
  View<const T> read() const {
    return {data_.get(), {stride_[0], stride_[1], stride_[2], stride_[3]}};
  }

  // element = body(element), in the order of the dimensions
  template <typename Body>
  Tensor& each(const Body& body) {
    const View<T> v = view();
    for (int64_t a = 0; a < size_[0]; ++a)
      for (int64_t b = 0; b < size_[1]; ++b)
        for (int64_t c = 0; c < size_[2]; ++c)
          for (int64_t d = 0; d < size_[3]; ++d) v.at(a, b, c, d) = body(v.at(a, b, c, d));
    return *this;
  }
  // Whole numbers: sums of their products are exact.
  Tensor& fill(Random& random, int64_t bound = 2, int64_t factor = 1) {
    return each([&](T) { return static_cast<T>(factor * random.number(-bound, bound)); });
  }

  // How many elements differ; NaN is equal to NaN.
  int64_t differences(const Tensor& other) const {
    int64_t found = 0;
    const View<T> x = view(), y = other.view();
    for (int64_t a = 0; a < size_[0]; ++a)
      for (int64_t b = 0; b < size_[1]; ++b)
        for (int64_t c = 0; c < size_[2]; ++c)
          for (int64_t d = 0; d < size_[3]; ++d) {
            const T l = x.at(a, b, c, d), r = y.at(a, b, c, d);
            found += !(l == r || (l != l && r != r));
          }
    return found;
  }

  double largest() const {
    return largest_difference(Tensor(size_).each([](T) { return static_cast<T>(0.f); }));
  }
  double largest_difference(const Tensor& other) const {
    double largest = 0;
    const View<T> x = view(), y = other.view();
    for (int64_t a = 0; a < size_[0]; ++a)
      for (int64_t b = 0; b < size_[1]; ++b)
        for (int64_t c = 0; c < size_[2]; ++c)
          for (int64_t d = 0; d < size_[3]; ++d) {
            const double difference =
                std::abs(static_cast<double>(static_cast<float>(x.at(a, b, c, d))) -
                         static_cast<double>(static_cast<float>(y.at(a, b, c, d))));
            largest = difference > largest || difference != difference ? difference : largest;
          }
    return largest;
  }

 private:
  Size size_;
  int64_t stride_[4];
  std::unique_ptr<T[]> data_;
};

// The same channels and kernels that the lanes, rows and tiles of the kernels do not divide.
inline ConvProblem random_conv(Random& random) {
  constexpr double kMostProducts = 2e6;  // the loop nests are slow
  for (;;) {
    ConvProblem p;
    const bool depthwise = random.in(4);
    p.batch = random.one_of<int64_t>({0, 1, 1, 2, 3, 5, 17});
    p.groups = depthwise ? random.number(2, 40) : random.one_of<int64_t>({1, 1, 1, 2, 3});
    const auto channels = [&] {
      return depthwise ? 1 : random.one_of<int64_t>({1, 2, 3, 4, 5, 7, 8, 9, 16, 17, 33, 70});
    };
    p.in_channels = !depthwise && random.in(20) ? 0 : channels();
    p.out_channels = channels();
    bool possible = true;
    for (const Spatial axis : {kHeight, kWidth}) {
      p.in_size[axis] = random.in(8) ? random.number(40, 300) : random.number(1, 16);
      p.kernel[axis] = random.number(1, 5);
      p.stride[axis] = random.in(8) ? random.number(4, 11) : random.number(1, 3);
      p.dilation[axis] = random.in(8) ? random.number(4, 19) : random.number(1, 3);
      p.pad[axis] = random.in(2) ? random.number(0, p.kernel[axis] + 2) : 0;
      const int64_t padded = p.in_size[axis] + p.pad[axis] + random.number(0, 2);
      const int64_t extent = p.dilation[axis] * (p.kernel[axis] - 1) + 1;
      possible = possible && extent <= padded;
      p.out_size[axis] = (padded - extent) / p.stride[axis] + 1;
    }
    const double products = static_cast<double>(p.batch) * p.groups * p.in_channels *
                            p.out_channels * p.kernel[0] * p.kernel[1] *
                            std::max(p.out_size[0] * p.out_size[1], p.in_size[0] * p.in_size[1]);
    if (possible && products <= kMostProducts) return p;
  }
}

inline PoolProblem random_pool(Random& random) {
  for (;;) {
    PoolProblem p;
    p.batch = random.number(0, 3);
    p.channels = random.one_of<int64_t>({1, 2, 3, 4, 5, 8, 9, 16, 31, 33, 70});
    bool possible = true;
    for (const Spatial axis : {kHeight, kWidth}) {
      p.in_size[axis] = random.in(6) ? random.number(40, 160) : random.number(1, 16);
      p.kernel[axis] = random.in(6) ? random.number(13, 19) : random.number(1, 5);
      p.stride[axis] = random.in(8) ? random.number(4, 9) : random.number(1, 3);
      p.dilation[axis] = random.in(3) ? random.number(1, 4) : 1;
      p.pad[axis] = random.number(0, p.kernel[axis] / 2);
      const int64_t room =
          p.in_size[axis] + 2 * p.pad[axis] - p.dilation[axis] * (p.kernel[axis] - 1) - 1;
      int64_t out = room < 0 ? 0 : room / p.stride[axis] + 1;
      // What ceil_mode adds: the last window has to start inside the input or in front of it.
      if (random.in(2) && out * p.stride[axis] < p.in_size[axis] + p.pad[axis] &&
          room % p.stride[axis])
        ++out;
      p.out_size[axis] = out;
      possible = possible && out > 0;
    }
    p.count_include_pad = random.in(2);
    if (possible && p.batch * p.channels * p.out_size[0] * p.out_size[1] * p.taps() < 1000000)
      return p;
  }
}

// Draws what averages of p are divided by. True: they need a gradient that is a multiple of every
// number of positions up to 5 x 5, for which T has room; else a power of two divides.
template <typename T>
bool choose_divisor(PoolProblem& p, Random& random) {
  const bool divisible = sizeof(T) > 2 && p.kernel[0] <= 5 && p.kernel[1] <= 5;
  if (!divisible || random.in(3)) p.divisor_override = random.one_of<int64_t>({-4, 1, 8});
  return divisible;
}

}  // namespace convbp::sanitize
