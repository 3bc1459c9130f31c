// Winograd's minimal filtering F(m x m, n x n): m x m outputs from a tile of (m+n-1) x (m+n-1)
// inputs with one product a tile element instead of n^2 an output (S. Winograd, Arithmetic
// Complexity of Computations, 1980; A. Lavin and S. Gray, Fast Algorithms for Convolutional Neural
// Networks, 2016).
//
//     y = A^T [ (G g G^T) ⊙ (B^T d B) ] A
//
// and, by the transpose of the same trilinear form, for the weight gradient of a tile
//
//     dL/dg = G^T [ (A δ A^T) ⊙ (B^T d B) ] G.
//
// On one axis, filter and outputs are the coefficients of two polynomials, G and A their values at
// m+n-1 points, and B what recovers the coefficients of the product from its values (A. L. Toom,
// 1963; S. A. Cook, 1966). So the points alone make all the transforms.
//
// An axis has two phases with stride 2, its even and its odd positions. Each is such a convolution,
// of the even or of the odd taps. There is one odd tap less: F(m, n) without its last tap, and so
// without the product at its last point. The phases share A and with it their sums. In the forward
// pass the phases are those of the source, and their products are added before A^T; in the input
// gradient they are those of the result, and share the transformed source.
//
// This file has the one-dimensional transforms; `transform_2d` applies one to columns, then one to
// rows. Included once per instruction set, as register_tile.h. Zero products are left out and
// common terms are shared.
#pragma once

#include <type_traits>
#include <utility>

#include "cpu/simd/register_tile.h"

namespace convbp::CONVBP_ISA {

// The points of a tile: 0 where their number is even, pairs p and -p, infinity. The common part of
// a pair is computed once. The squares are exact in float32, and so are their products.
//
// The points decide how much is rounded away: their powers should differ little. Tiles of 5 and 6
// have, with these, a fifth to a third of the error that ±1, ±2 give: of 512 channels 3.5e-6 instead
// of 9.8e-6 of the largest result, and 0.9e-6 with sums that are cut (kernel.h). Tiles of 3
// and 4 halve at most, and are exact on whole numbers.
constexpr double winograd_point(int tile, int pair) {
  if (tile <= 4) return 1;
  if (tile == 5) return pair == 0 ? 1. / 2 : 5. / 4;
  return pair == 0 ? 5. / 8 : 3. / 2;
}

// Calls body(0), body(1), ..., with numbers that are known when compiled.
template <typename Body, int... kIndex>
CONVBP_INLINE void for_constants(const Body& body, std::integer_sequence<int, kIndex...>) {
  (body(std::integral_constant<int, kIndex>()), ...);
}

// F(m, n), or with kShort what is left of it without the last tap and the point infinity.
template <int kOut_, int kAllTaps, bool kShort = false>
struct F {
  static constexpr int kOut = kOut_, kAllPoints = kOut + kAllTaps - 1;
  static constexpr int kTaps = kAllTaps - kShort, kTile = kAllPoints - kShort;
  static_assert(3 <= kAllPoints && kAllPoints <= 6);
  // Points in their order: 0, if kZero; each pair; infinity, unless kShort.
  static constexpr int kZero = kAllPoints % 2 == 0, kPairs = (kAllPoints - 1) / 2;
  static constexpr int plus(int pair) { return kZero + 2 * pair; }

  static constexpr double point(int pair) { return winograd_point(kAllPoints, pair); }
  static constexpr double square(int pair) { return point(pair) * point(pair); }
  static constexpr double other_square(int pair) { return square(1 - pair); }
  // The divisor of a filter's value: at a point p, the product of p - q over all other finite
  // points q. With an odd number of points, -p needs the other sign: `input` has it.
  static constexpr double at_zero() { return kPairs == 1 ? -square(0) : square(0) * square(1); }
  static constexpr double at_pair(int pair) {
    return 2 * (kZero ? square(pair) : point(pair)) *
           (kPairs == 1 ? 1 : square(pair) - other_square(pair));
  }
  static constexpr double power(int pair, int exponent) {
    return exponent == 0 ? 1 : point(pair) * power(pair, exponent - 1);
  }

  // B^T d
  template <typename V>
  static CONVBP_INLINE void input(const V (&d)[kTile], V (&v)[kTile]) {
    // The values at 0 and at infinity: the coefficients of the product of all x^2 - p^2.
    const auto all = [&](int at) CONVBP_INLINE_LAMBDA {
      constexpr float kSum = square(0) + other_square(0), kProduct = at_zero();
      if constexpr (kPairs == 1) return d[at + 2] + kProduct * d[at];
      return kProduct * d[at] + (d[at + 4] - kSum * d[at + 2]);
    };
    if constexpr (kZero) v[0] = all(0);
    if constexpr (!kShort) v[kTile - 1] = all(kZero);
    for_pairs([&](auto pair) CONVBP_INLINE_LAMBDA {
      constexpr float kPoint = point(pair), kOther = other_square(pair);
      const auto others = [&](int at) CONVBP_INLINE_LAMBDA {
        if constexpr (kPairs == 1) return d[at];
        return d[at + 2] - kOther * d[at];
      };
      const V even = others(kZero + 1), odd = others(kZero);
      v[plus(pair)] = even + kPoint * odd;
      v[plus(pair) + 1] = kZero ? even - kPoint * odd : kPoint * odd - even;
    });
  }
  // G g
  template <typename V>
  static CONVBP_INLINE void filter(const V (&g)[kTaps], V (&u)[kTile]) {
    values<true>(g, u);
  }
  // A y
  template <typename V>
  static CONVBP_INLINE void delta(const V (&y)[kOut], V (&w)[kTile]) {
    values<false>(y, w);
  }
  // A^T m
  template <typename V>
  static CONVBP_INLINE void output(const V (&m)[kTile], V (&y)[kOut]) {
    sums<false>(m, y);
  }
  // G^T m
  template <typename V>
  static CONVBP_INLINE void filter_grad(const V (&m)[kTile], V (&g)[kTaps]) {
    sums<true>(m, g);
  }

 private:
  template <typename Body>
  static CONVBP_INLINE void for_pairs(const Body& body) {
    for_constants(body, std::make_integer_sequence<int, kPairs>());
  }

  // The values at the points of the polynomial with the coefficients x; kDivided divides them.
  template <bool kDivided, int kCount, typename V>
  static CONVBP_INLINE void values(const V (&x)[kCount], V (&y)[kTile]) {
    if constexpr (kZero) y[0] = kDivided ? x[0] * float(1 / at_zero()) : x[0];
    if constexpr (!kShort) y[kTile - 1] = x[kCount - 1];
    for_pairs([&](auto pair) CONVBP_INLINE_LAMBDA {
      // The sum over every second coefficient from `first` on; odd powers are divided by the point.
      const auto half = [&](auto first) CONVBP_INLINE_LAMBDA {
        constexpr double kScale = kDivided ? 1 / at_pair(pair) : 1;
        V sum = kDivided ? x[first] * float(kScale) : x[first];
        if constexpr (first + 2 < kCount) sum = sum + float(kScale * power(pair, 2)) * x[first + 2];
        if constexpr (first + 4 < kCount) sum = sum + float(kScale * power(pair, 4)) * x[first + 4];
        return sum;
      };
      const V even = half(std::integral_constant<int, 0>());
      y[plus(pair)] = y[plus(pair) + 1] = even;
      if constexpr (kCount > 1) {
        const V odd = half(std::integral_constant<int, 1>()) * float(point(pair));
        y[plus(pair)] = even + odd;
        y[plus(pair) + 1] = even - odd;
      }
    });
  }

  // The transpose of `values`.
  template <bool kDivided, int kCount, typename V>
  static CONVBP_INLINE void sums(const V (&x)[kTile], V (&y)[kCount]) {
    for_constants(
        [&](auto i) CONVBP_INLINE_LAMBDA {
          const auto term = [&](auto pair) CONVBP_INLINE_LAMBDA {
            constexpr float kFactor = power(pair, i) / (kDivided ? at_pair(pair) : 1);
            const V &a = x[plus(pair)], &b = x[plus(pair) + 1];
            return (i % 2 ? a - b : a + b) * kFactor;
          };
          y[i] = term(std::integral_constant<int, 0>());
          if constexpr (kPairs == 2) y[i] = y[i] + term(std::integral_constant<int, 1>());
          if constexpr (kZero && i == 0)
            y[i] = y[i] + (kDivided ? x[0] * float(1 / at_zero()) : x[0]);
          if constexpr (!kShort && i == kCount - 1) y[i] = y[i] + x[kTile - 1];
        },
        std::make_integer_sequence<int, kCount>());
  }
};

// One of the transforms above as a type, so that it can be handed on.
#define CONVBP_TRANSFORM(name, from, to)                                \
  template <typename Filtering>                                         \
  struct name {                                                         \
    static constexpr int kFrom = Filtering::from, kTo = Filtering::to;  \
    template <typename V>                                               \
    static CONVBP_INLINE void apply(const V (&x)[kFrom], V (&y)[kTo]) { \
      Filtering::name(x, y);                                            \
    }                                                                   \
  };
namespace transform {
CONVBP_TRANSFORM(input, kTile, kTile)
CONVBP_TRANSFORM(filter, kTaps, kTile)
CONVBP_TRANSFORM(output, kTile, kOut)
CONVBP_TRANSFORM(delta, kOut, kTile)
CONVBP_TRANSFORM(filter_grad, kTile, kTaps)
}  // namespace transform
#undef CONVBP_TRANSFORM

// store(i, j, (Y x X^T)[i][j]) for x[i][j] = load(i, j)
template <typename Y, typename X, typename V, typename Load, typename Store>
CONVBP_INLINE void transform_2d(const Load& load, const Store& store) {
  V half[Y::kTo][X::kFrom];
#pragma GCC unroll 6
  for (int j = 0; j < X::kFrom; ++j) {
    V column[Y::kFrom], transformed[Y::kTo];
#pragma GCC unroll 6
    for (int i = 0; i < Y::kFrom; ++i) column[i] = load(i, j);
    Y::apply(column, transformed);
#pragma GCC unroll 6
    for (int i = 0; i < Y::kTo; ++i) half[i][j] = transformed[i];
  }
#pragma GCC unroll 6
  for (int i = 0; i < Y::kTo; ++i) {
    V transformed[X::kTo];
    X::apply(half[i], transformed);
#pragma GCC unroll 6
    for (int j = 0; j < X::kTo; ++j) store(i, j, transformed[j]);
  }
}

}  // namespace convbp::CONVBP_ISA
