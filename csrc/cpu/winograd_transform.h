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
// With stride 2 the two phases of an axis, its even and its odd positions, are such convolutions
// for themselves, of the taps 0 and 2 and of tap 1. F(m, 1) is F(m, 2) with a second tap of zero,
// so without its last product: the phases share A and with it their sums. Of the forward pass the
// phases are those of the source, and their products are added before A^T; of the input gradient
// they are those of the result, and share the transformed source.
//
// Here are the one-dimensional transforms; `both_axes` applies one to columns, then one to rows.
// Included once per instruction set, as register_tile.h. Zero products are left out and common
// terms are shared.
#pragma once

#include "register_tile.h"

namespace convbp::CONVBP_ISA {

template <int kOut, int kTaps>
struct Minimal;

// F(2, 3): points 0, 1, -1. On both axes 2.25 times fewer products than the sum it replaces.
template <>
struct Minimal<2, 3> {
  static constexpr int kOut = 2, kTaps = 3, kTile = 4;
  template <typename V>
  static CONVBP_INLINE void input(const V (&d)[4], V (&v)[4]) {  // B^T d
    v[0] = d[0] - d[2];
    v[1] = d[1] + d[2];
    v[2] = d[2] - d[1];
    v[3] = d[1] - d[3];
  }
  template <typename V>
  static CONVBP_INLINE void filter(const V (&g)[3], V (&u)[4]) {  // G g
    const V even = (g[0] + g[2]) * 0.5f, odd = g[1] * 0.5f;
    u[0] = g[0];
    u[1] = even + odd;
    u[2] = even - odd;
    u[3] = g[2];
  }
  template <typename V>
  static CONVBP_INLINE void output(const V (&m)[4], V (&y)[2]) {  // A^T m
    y[0] = m[0] + m[1] + m[2];
    y[1] = m[1] - m[2] - m[3];
  }
  template <typename V>
  static CONVBP_INLINE void delta(const V (&y)[2], V (&w)[4]) {  // A y
    w[0] = y[0];
    w[1] = y[0] + y[1];
    w[2] = y[0] - y[1];
    w[3] = -y[1];
  }
  template <typename V>
  static CONVBP_INLINE void filter_grad(const V (&m)[4], V (&g)[3]) {  // G^T m
    const V even = (m[1] + m[2]) * 0.5f;
    g[0] = m[0] + even;
    g[1] = (m[1] - m[2]) * 0.5f;
    g[2] = even + m[3];
  }
};

// F(4, 3): points 0, 1, -1, 2, -2. 4 times fewer products.
template <>
struct Minimal<4, 3> {
  static constexpr int kOut = 4, kTaps = 3, kTile = 6;
  template <typename V>
  static CONVBP_INLINE void input(const V (&d)[6], V (&v)[6]) {
    const V a = d[4] - 4.f * d[2], b = d[3] - 4.f * d[1];
    const V c = d[4] - d[2], e = 2.f * (d[3] - d[1]);
    v[0] = 4.f * d[0] - 5.f * d[2] + d[4];
    v[1] = a + b;
    v[2] = a - b;
    v[3] = c + e;
    v[4] = c - e;
    v[5] = 4.f * d[1] - 5.f * d[3] + d[5];
  }
  template <typename V>
  static CONVBP_INLINE void filter(const V (&g)[3], V (&u)[6]) {
    const V a = (g[0] + g[2]) * (-1.f / 6), b = g[1] * (1.f / 6);
    const V c = g[0] * (1.f / 24) + g[2] * (1.f / 6), e = g[1] * (1.f / 12);
    u[0] = g[0] * 0.25f;
    u[1] = a - b;
    u[2] = a + b;
    u[3] = c + e;
    u[4] = c - e;
    u[5] = g[2];
  }
  template <typename V>
  static CONVBP_INLINE void output(const V (&m)[6], V (&y)[4]) {
    const V a = m[1] + m[2], b = m[1] - m[2], c = m[3] + m[4], e = m[3] - m[4];
    y[0] = m[0] + a + c;
    y[1] = b + 2.f * e;
    y[2] = a + 4.f * c;
    y[3] = b + 8.f * e + m[5];
  }
  template <typename V>
  static CONVBP_INLINE void delta(const V (&y)[4], V (&w)[6]) {
    const V a = y[0] + y[2], b = y[1] + y[3];
    const V c = y[0] + 4.f * y[2], e = 2.f * y[1] + 8.f * y[3];
    w[0] = y[0];
    w[1] = a + b;
    w[2] = a - b;
    w[3] = c + e;
    w[4] = c - e;
    w[5] = y[3];
  }
  template <typename V>
  static CONVBP_INLINE void filter_grad(const V (&m)[6], V (&g)[3]) {
    const V a = m[1] + m[2], c = m[3] + m[4];
    g[0] = m[0] * 0.25f - a * (1.f / 6) + c * (1.f / 24);
    g[1] = (m[2] - m[1]) * (1.f / 6) + (m[3] - m[4]) * (1.f / 12);
    g[2] = (c - a) * (1.f / 6) + m[5];
  }
};

// F(2, 2): points 0, 1. All phases together, 1.44 times fewer products.
template <>
struct Minimal<2, 2> {
  static constexpr int kOut = 2, kTaps = 2, kTile = 3;
  template <typename V>
  static CONVBP_INLINE void input(const V (&d)[3], V (&v)[3]) {
    v[0] = d[0] - d[1];
    v[1] = d[1];
    v[2] = d[2] - d[1];
  }
  template <typename V>
  static CONVBP_INLINE void filter(const V (&g)[2], V (&u)[3]) {
    u[0] = g[0];
    u[1] = g[0] + g[1];
    u[2] = g[1];
  }
  template <typename V>
  static CONVBP_INLINE void output(const V (&m)[3], V (&y)[2]) {
    y[0] = m[0] + m[1];
    y[1] = m[1] + m[2];
  }
  template <typename V>
  static CONVBP_INLINE void delta(const V (&y)[2], V (&w)[3]) {
    w[0] = y[0];
    w[1] = y[0] + y[1];
    w[2] = y[1];
  }
  template <typename V>
  static CONVBP_INLINE void filter_grad(const V (&m)[3], V (&g)[2]) {
    g[0] = m[0] + m[1];
    g[1] = m[1] + m[2];
  }
};

// F(4, 2): points 0, 1, -1, 2. 1.78 times fewer products.
template <>
struct Minimal<4, 2> {
  static constexpr int kOut = 4, kTaps = 2, kTile = 5;
  template <typename V>
  static CONVBP_INLINE void input(const V (&d)[5], V (&v)[5]) {
    const V a = d[3] - d[1], b = d[3] - d[2], c = b - 2.f * d[2], e = 2.f * d[1];
    v[0] = a + 2.f * (d[0] - d[2]);
    v[1] = b - e;
    v[2] = c + e;
    v[3] = a;
    v[4] = d[4] - d[2] - 2.f * a;
  }
  template <typename V>
  static CONVBP_INLINE void filter(const V (&g)[2], V (&u)[5]) {
    const V a = g[0] * (1.f / 6);
    u[0] = g[0] * 0.5f;
    u[1] = (g[0] + g[1]) * -0.5f;
    u[2] = g[1] * (1.f / 6) - a;
    u[3] = g[1] * (1.f / 3) + a;
    u[4] = g[1];
  }
  template <typename V>
  static CONVBP_INLINE void output(const V (&m)[5], V (&y)[4]) {
    const V a = m[1] + m[2], b = m[1] - m[2], c = 2.f * m[3];
    y[0] = m[0] + a + m[3];
    y[1] = b + c;
    y[2] = a + 2.f * c;
    y[3] = b + 4.f * c + m[4];
  }
  template <typename V>
  static CONVBP_INLINE void delta(const V (&y)[4], V (&w)[5]) {
    const V a = y[0] + y[2], b = y[1] + y[3];
    w[0] = y[0];
    w[1] = a + b;
    w[2] = a - b;
    w[3] = y[0] + 2.f * y[1] + 4.f * y[2] + 8.f * y[3];
    w[4] = y[3];
  }
  template <typename V>
  static CONVBP_INLINE void filter_grad(const V (&m)[5], V (&g)[2]) {
    const V a = m[1] * -0.5f, b = (m[3] - m[2]) * (1.f / 6);
    g[0] = m[0] * 0.5f + a + b;
    g[1] = a + m[2] * (1.f / 6) + m[3] * (1.f / 3) + m[4];
  }
};

// F(m, 1): F(m, 2) whose second tap is zero, and so the product of its last point.
template <int kOut_>
struct Minimal<kOut_, 1> {
  static constexpr int kOut = kOut_, kTaps = 1, kTile = kOut;
  using Full = Minimal<kOut, 2>;
};

// One of the transforms above as a type, so that it can be handed on. What F(m, 1) lacks of F(m, 2)
// is zero, and what comes of it is left.
#define CONVBP_TRANSFORM(name, from, to)                                \
  template <typename F>                                                 \
  struct name {                                                         \
    static constexpr int kFrom = F::from, kTo = F::to;                  \
    template <typename V>                                               \
    static CONVBP_INLINE void apply(const V (&x)[kFrom], V (&y)[kTo]) { \
      if constexpr (F::kTaps > 1) {                                     \
        F::name(x, y);                                                  \
      } else {                                                          \
        V all_x[F::Full::from] = {}, all_y[F::Full::to];                \
        for (int i = 0; i < kFrom; ++i) all_x[i] = x[i];                \
        F::Full::name(all_x, all_y);                                    \
        for (int i = 0; i < kTo; ++i) y[i] = all_y[i];                  \
      }                                                                 \
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
CONVBP_INLINE void both_axes(const Load& load, const Store& store) {
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
