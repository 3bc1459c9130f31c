// exp, tanh and erf for the activations. float64 and the GPU use the C++ library's functions.
// float32 on a CPU uses functions without branches, calls and tables, so that loops over them
// become vector instructions. Each is an identity that leads to a short interval, and there a
// polynomial fitted by least squares, reweighted towards the least greatest error. The errors are
// below 2 units in the last place (tests/autograd/test_activations.py).
#pragma once

#include <bit>
#include <cmath>
#include <cstdint>

#include "core/host_device.h"

namespace convbp::elementary {

template <typename A>
CONVBP_BOTH inline A exp(A x) {
  return std::exp(x);
}
template <typename A>
CONVBP_BOTH inline A tanh(A x) {
  return std::tanh(x);
}
template <typename A>
CONVBP_BOTH inline A erf(A x) {
  return std::erf(x);
}

#if !defined(__CUDACC__)

// c[0] + c[1] x + c[2] x^2 + ...
template <typename... C>
inline float polynomial(float x, float c0, C... rest) {
  if constexpr (sizeof...(rest) == 0)
    return c0;
  else
    return c0 + x * polynomial(x, rest...);
}

// exp(x) = 2^k exp(r) with x = k ln 2 + r, |r| <= ln 2 / 2.
inline float exp(float x) {
  // exp is infinite or zero beyond these limits; NaN fails both comparisons and goes through.
  x = x > 89.f ? 89.f : x;
  x = x < -104.f ? -104.f : x;
  // Adding 1.5 * 2^23 rounds to a whole number and leaves it in the low bits.
  constexpr float kRounder = 12582912.f;
  const float shifted = x * 1.44269504f + kRounder;
  const float k = shifted - kRounder;
  const float r = x - k * 0.693359375f - k * -2.12194440e-4f;  // ln 2 in two parts
  const float e = polynomial(r, 1.f, 1.00000004f, 0.499999921f, 0.166664201f, 0.0416682263f,
                             0.00837482403f, 0.00138368315f);
  // 2^k in two factors: one alone would leave the range of exponents.
  const int32_t power = std::bit_cast<int32_t>(shifted) - std::bit_cast<int32_t>(kRounder);
  const int32_t half = power >> 1;
  const float first = std::bit_cast<float>((half + 127) << 23);
  const float second = std::bit_cast<float>((power - half + 127) << 23);
  return e * first * second;
}

// Near zero x + x^3 P(x^2); elsewhere 1 - 2 / (exp(2 |x|) + 1) with the sign of x.
inline float tanh(float x) {
  const float a = std::fabs(x), z = x * x;
  const float near = x + x * z *
                             polynomial(z, -0.333332839f, 0.133314912f, -0.0537434953f,
                                        0.020650579f, -0.00571703656f);
  const float far = std::copysign(1.f - 2.f / (exp(2.f * a) + 1.f), x);
  return a < 0.625f ? near : far;
}

// Near zero x P(x^2); elsewhere 1 - exp(-P(|x|)) with the sign of x.
inline float erf(float x) {
  float a = std::fabs(x);
  const float z = x * x;
  const float near = x * polynomial(z, 1.12837917f, -0.376126258f, 0.112835851f, -0.0268538119f,
                                    0.00518832756f, -0.00080101925f, 7.85385769e-05f);
  const bool is_near = a < 1.f;
  a = a > 4.f ? 4.f : a;  // erf is 1 from here on
  const float exponent = polynomial(a, 0.000353708928f, 1.12704008f, 0.638225602f, 0.103037436f,
                                    -0.0218053512f, 0.00293961574f, -0.000185574893f);
  const float far = std::copysign(1.f - exp(-exponent), x);
  return is_near ? near : far;
}

#endif

}  // namespace convbp::elementary
