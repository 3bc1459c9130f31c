// The activations g of L2, one row each. g acts on one number p. error_signal is L3, delta = g'(p)
// * grad, computed from the number that the row saves: the output a = g(p) where a determines g',
// otherwise the pre-activation p. torch_convbp/activations.py decides which; a test holds the two
// tables together. At kinks, NaN and infinities g and g' are torch's.
//
// This file needs neither torch nor the CPU, so that the GPU kernels have the same rows.
#pragma once

#include <cmath>
#include <cstdint>
#include <string>

#include "core/vector_math.h"

namespace convbp::activation {

// q holds the row's parameters, in the order of torch.nn.functional's arguments.
#define CONVBP_G(p, q)  \
  template <typename A> \
  CONVBP_BOTH static A value(A p, [[maybe_unused]] const A* q)
#define CONVBP_ERROR_SIGNAL(grad, saved, q) \
  template <typename A>                     \
  CONVBP_BOTH static A error_signal(A grad, A saved, [[maybe_unused]] const A* q)

struct Relu {
  static constexpr const char* kName = "relu";
  static constexpr int kParameters = 0;
  CONVBP_G(p, q) { return p < A(0) ? A(0) : p; }
  CONVBP_ERROR_SIGNAL(grad, a, q) { return a <= A(0) ? A(0) : grad; }
};

struct LeakyRelu {  // q: slope. With a slope >= 0 the output has the sign of p.
  static constexpr const char* kName = "leaky_relu";
  static constexpr int kParameters = 1;
  CONVBP_G(p, q) {
    const A below = p * q[0];
    return p > A(0) ? p : below;
  }
  CONVBP_ERROR_SIGNAL(grad, a, q) {
    const A below = grad * q[0];
    return a > A(0) ? grad : below;
  }
};

struct Relu6 {
  static constexpr const char* kName = "relu6";
  static constexpr int kParameters = 0;
  CONVBP_G(p, q) { return p < A(0) ? A(0) : p > A(6) ? A(6) : p; }
  CONVBP_ERROR_SIGNAL(grad, a, q) { return a <= A(0) || a >= A(6) ? A(0) : grad; }
};

struct Sigmoid {
  static constexpr const char* kName = "sigmoid";
  static constexpr int kParameters = 0;
  CONVBP_G(p, q) { return A(1) / (A(1) + elementary::exp(-p)); }
  CONVBP_ERROR_SIGNAL(grad, a, q) { return grad * (A(1) - a) * a; }
};

struct Tanh {
  static constexpr const char* kName = "tanh";
  static constexpr int kParameters = 0;
  CONVBP_G(p, q) { return elementary::tanh(p); }
  CONVBP_ERROR_SIGNAL(grad, a, q) { return grad * (A(1) - a * a); }
};

struct Silu {
  static constexpr const char* kName = "silu";
  static constexpr int kParameters = 0;
  CONVBP_G(p, q) { return p / (A(1) + elementary::exp(-p)); }
  CONVBP_ERROR_SIGNAL(grad, p, q) {
    const A sigmoid = A(1) / (A(1) + elementary::exp(-p));
    return grad * sigmoid * (A(1) + p * (A(1) - sigmoid));
  }
};

constexpr double kHalfRoot = 0.70710678118654752440;       // sqrt(1 / 2)
constexpr double kNormalPeak = 0.39894228040143267794;     // 1 / sqrt(2 pi)
constexpr double kGeluTanhScale = 0.79788456080286535588;  // sqrt(2 / pi)
constexpr double kGeluTanhCube = 0.044715;

struct Gelu {
  static constexpr const char* kName = "gelu";
  static constexpr int kParameters = 0;
  CONVBP_G(p, q) { return p * A(0.5) * (A(1) + elementary::erf(p * A(kHalfRoot))); }
  CONVBP_ERROR_SIGNAL(grad, p, q) {
    const A below = A(0.5) * (A(1) + elementary::erf(p * A(kHalfRoot)));
    const A density = A(kNormalPeak) * elementary::exp(A(-0.5) * p * p);
    return grad * (below + p * density);
  }
};

struct GeluTanh {
  static constexpr const char* kName = "gelu_tanh";
  static constexpr int kParameters = 0;
  CONVBP_G(p, q) {
    const A inner = A(kGeluTanhScale) * (p + A(kGeluTanhCube) * p * p * p);
    return A(0.5) * p * (A(1) + elementary::tanh(inner));
  }
  CONVBP_ERROR_SIGNAL(grad, p, q) {
    const A inner = A(kGeluTanhScale) * (p + A(kGeluTanhCube) * p * p * p);
    const A slope = A(kGeluTanhScale) * (A(1) + A(3 * kGeluTanhCube) * p * p);
    const A t = elementary::tanh(inner);
    return grad * (A(0.5) * (A(1) + t) + A(0.5) * p * (A(1) - t * t) * slope);
  }
};

struct Hardswish {
  static constexpr const char* kName = "hardswish";
  static constexpr int kParameters = 0;
  CONVBP_G(p, q) {
    const A shifted = p + A(3);
    return p * (shifted < A(0) ? A(0) : shifted > A(6) ? A(6) : shifted) / A(6);
  }
  CONVBP_ERROR_SIGNAL(grad, p, q) {
    const A between = grad * (p / A(3) + A(0.5));
    return p <= A(-3) ? A(0) : p >= A(3) ? grad : between;
  }
};

struct Softplus {  // q: beta, threshold
  static constexpr const char* kName = "softplus";
  static constexpr int kParameters = 2;
  CONVBP_G(p, q) {
    const A scaled = p * q[0];
    // log1p has no version in elementary: the loop calls the library for it, so it may for exp.
    return scaled > q[1] ? p : std::log1p(std::exp(scaled)) / q[0];
  }
  CONVBP_ERROR_SIGNAL(grad, p, q) {
    const A scaled = p * q[0];
    return scaled > q[1] ? grad : grad / (A(1) + elementary::exp(-scaled));
  }
};

struct Hardsigmoid {
  static constexpr const char* kName = "hardsigmoid";
  static constexpr int kParameters = 0;
  CONVBP_G(p, q) {
    const A shifted = p + A(3);
    return (shifted < A(0) ? A(0) : shifted > A(6) ? A(6) : shifted) / A(6);
  }
  CONVBP_ERROR_SIGNAL(grad, a, q) {
    const A between = grad / A(6);
    return a > A(0) && a < A(1) ? between : A(0);
  }
};

struct Mish {  // p tanh(log(1 + e^p))
  static constexpr const char* kName = "mish";
  static constexpr int kParameters = 0;
  // tanh(log(1 + e)) = ((1 + e)^2 - 1) / ((1 + e)^2 + 1), which is 1 where e^2 would overflow.
  template <typename A>
  CONVBP_BOTH static A factor(A p, A e) {
    const A n = e * (e + A(2));
    const A t = n / (n + A(2));
    return p > A(20) ? A(1) : t;
  }
  CONVBP_G(p, q) { return p * factor(p, elementary::exp(p)); }
  CONVBP_ERROR_SIGNAL(grad, p, q) {
    const A t = factor(p, elementary::exp(p));
    const A sigmoid = A(1) / (A(1) + elementary::exp(-p));
    return grad * (t + p * sigmoid * (A(1) - t * t));
  }
};

struct Elu {  // q: alpha. With an alpha >= 0 the output has the sign of p.
  static constexpr const char* kName = "elu";
  static constexpr int kParameters = 1;
  CONVBP_G(p, q) {
    // e^p - 1 = tanh(p / 2) (e^p + 1), which loses no digits near zero.
    const A below = q[0] * (elementary::tanh(p * A(0.5)) * (elementary::exp(p) + A(1)));
    return p > A(0) ? p : below;
  }
  CONVBP_ERROR_SIGNAL(grad, saved, q) {  // saved: a, or p where alpha < 0
    const A of_output = saved + q[0];
    const A of_input = q[0] * elementary::exp(saved);
    const A below = grad * (q[0] < A(0) ? of_input : of_output);
    return saved > A(0) ? grad : below;
  }
};

#undef CONVBP_G
#undef CONVBP_ERROR_SIGNAL

constexpr int kMostParameters = 2;

template <typename... Rows>
struct Table {};
using All = Table<Relu, LeakyRelu, Relu6, Sigmoid, Tanh, Silu, Gelu, GeluTanh, Hardswish, Softplus,
                  Hardsigmoid, Mish, Elu>;

// The row of this name, counted from 0, or -1.
int row_of(const std::string& name);
// The number of parameters of a row.
int parameters_of(int row);
// "relu 0, leaky_relu 1, ...": every name with its number of parameters.
std::string names();

}  // namespace convbp::activation
