// Winograd's minimal filtering F(m x m, 3 x 3): m x m outputs from a tile of (m+2) x (m+2) inputs
// with one product a tile element instead of nine an output (S. Winograd, Arithmetic Complexity of
// Computations, 1980; A. Lavin and S. Gray, Fast Algorithms for Convolutional Neural Networks,
// 2016).
//
//     y = A^T [ (G g G^T) ⊙ (B^T d B) ] A
//
// and, by the transpose of the same trilinear form, for the weight gradient of a tile
//
//     dL/dg = G^T [ (A δ A^T) ⊙ (B^T d B) ] G.
//
// Here are the one-dimensional transforms; `both_axes` applies one to columns, then to rows.
// Included once per instruction set, as register_tile.h. Zero products are left out and common
// terms are shared.
#pragma once

#include "register_tile.h"

namespace convbp::CONVBP_ISA {

// F(2x2, 3x3): points 0, 1, -1. 2.25 times fewer products than the sum it replaces.
struct Winograd2 {
  static constexpr int kOut = 2, kTile = 4;
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

// F(4x4, 3x3): points 0, 1, -1, 2, -2. 4 times fewer products.
struct Winograd4 {
  static constexpr int kOut = 4, kTile = 6;
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

// One of the transforms above as a type, so that it can be handed on.
#define CONVBP_TRANSFORM(name, from, to)                               \
  template <typename F>                                                \
  struct name {                                                        \
    static constexpr int kFrom = from, kTo = to;                       \
    template <typename V>                                              \
    static CONVBP_INLINE void apply(const V (&x)[from], V (&y)[to]) {  \
      F::name(x, y);                                                   \
    }                                                                  \
  };
namespace transform {
CONVBP_TRANSFORM(input, F::kTile, F::kTile)
CONVBP_TRANSFORM(filter, 3, F::kTile)
CONVBP_TRANSFORM(output, F::kTile, F::kOut)
CONVBP_TRANSFORM(delta, F::kOut, F::kTile)
CONVBP_TRANSFORM(filter_grad, F::kTile, 3)
}  // namespace transform
#undef CONVBP_TRANSFORM

// store(i, j, (X x X^T)[i][j]) for x[i][j] = load(i, j)
template <typename X, typename V, typename Load, typename Store>
CONVBP_INLINE void both_axes(const Load& load, const Store& store) {
  V half[X::kTo][X::kFrom];
#pragma GCC unroll 6
  for (int j = 0; j < X::kFrom; ++j) {
    V column[X::kFrom], transformed[X::kTo];
#pragma GCC unroll 6
    for (int i = 0; i < X::kFrom; ++i) column[i] = load(i, j);
    X::apply(column, transformed);
#pragma GCC unroll 6
    for (int i = 0; i < X::kTo; ++i) half[i][j] = transformed[i];
  }
#pragma GCC unroll 6
  for (int i = 0; i < X::kTo; ++i) {
    V transformed[X::kTo];
    X::apply(half[i], transformed);
#pragma GCC unroll 6
    for (int j = 0; j < X::kTo; ++j) store(i, j, transformed[j]);
  }
}

}  // namespace convbp::CONVBP_ISA
