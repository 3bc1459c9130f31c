// Every CUDA kernel on random problems, without a GPU (shim.h): results must equal the loop
// nests of the CPU, in float64, rounded once. Values are whole numbers, so that sums are exact in
// any order. Built with AddressSanitizer and UndefinedBehaviorSanitizer by the Makefile here, or to
// run on a GPU (gpu.cpp).
//
//   kernels [problems] [seed] [family] [type]   so many random problems for each family and element
//                                               type, or the named ones alone
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <limits>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "cuda/depthwise/depthwise.h"
#include "cuda/elementwise/elementwise.h"
#include "cuda/implicit_gemm/implicit_gemm.h"
#include "cuda/pool/pool.h"
#include "cuda/reference/conv2d.h"
#include "../sanitize/tensor.h"
#include "reference.h"

namespace convbp::check {
namespace {

using sanitize::Layout;
using sanitize::Random;
using sanitize::Size;
using sanitize::Tensor;

int64_t comparisons = 0;

struct HostContext final : cuda::Context {
  explicit HostContext(Random& random) {
    stream = nullptr;
    multiprocessors = static_cast<int>(random.number(1, 200));
  }
  void* scratch(int64_t bytes) override {
    held.emplace_back(new char[bytes]);
    std::memset(held.back().get(), 0xff, bytes);  // NaN
    return held.back().get();
  }
  std::vector<std::unique_ptr<char[]>> held;
};

template <typename T>
double number(T value) {
  if constexpr (sizeof(T) == 2)
    return static_cast<double>(static_cast<float>(value));
  else
    return static_cast<double>(value);
}

// As a kernel rounds a finished sum.
template <typename T>
T rounded(double sum) {
  return static_cast<T>(static_cast<Accumulator<T>>(sum));
}

// Elements one by one, in the order of the dimensions.
template <typename T, typename Body>
void each(Tensor<T>& tensor, const Size& size, const Body& body) {
  for (int64_t a = 0; a < size[0]; ++a)
    for (int64_t b = 0; b < size[1]; ++b)
      for (int64_t c = 0; c < size[2]; ++c)
        for (int64_t d = 0; d < size[3]; ++d) body(tensor.view().at(a, b, c, d), a, b, c, d);
}

template <typename T>
Tensor<double> widened(Tensor<T>& tensor, const Size& size) {
  Tensor<double> wide(size);
  each(wide, size, [&](double& to, int64_t a, int64_t b, int64_t c, int64_t d) {
    to = number(tensor.view().at(a, b, c, d));
  });
  return wide;
}

// The same of a whole tensor.
template <typename T>
Tensor<T> rounded(Tensor<double>& sums, const Size& size) {
  Tensor<T> result(size);
  each(sums, size, [&](double& sum, int64_t a, int64_t b, int64_t c, int64_t d) {
    result.view().at(a, b, c, d) = rounded<T>(sum);
  });
  return result;
}

template <typename T, typename U>
void expect_equal(Tensor<T>& ours, Tensor<U>& expected, const Size& size, const std::string& what) {
  ++comparisons;
  int64_t differ = 0;
  each(ours, size, [&](T& mine, int64_t a, int64_t b, int64_t c, int64_t d) {
    const double x = number(mine), y = number(expected.view().at(a, b, c, d));
    differ += !(x == y || (x != x && y != y));
  });
  if (differ)
    throw std::runtime_error(what + ": " + std::to_string(differ) + " of " +
                             std::to_string(ours.count()) + " elements differ");
}

std::string text(double value) {
  char shown[32];
  std::snprintf(shown, sizeof shown, "%g", value);
  return shown;
}

// |ours - exact| <= bound * (the same sum of absolute values); where the exact result is infinite
// or NaN, ours is too. Below `smallest` rounding errors shrink no further.
template <typename T>
void expect_close(Tensor<T>& ours, Tensor<double>& exact, Tensor<double>& absolute,
                  const Size& size, double bound, double smallest, const std::string& what) {
  ++comparisons;
  each(ours, size, [&](T& mine, int64_t a, int64_t b, int64_t c, int64_t d) {
    const double x = number(mine), y = exact.view().at(a, b, c, d);
    const double allowed = bound * std::max(absolute.view().at(a, b, c, d), smallest);
    const bool same = x == y || (x != x && y != y);
    const bool right = std::isfinite(y) ? std::fabs(x - y) <= allowed : same;
    if (!right)
      throw std::runtime_error(what + ": " + text(x) + " instead of " + text(y) + ", off by " +
                               text(std::fabs(x - y)) + ", allowed " + text(allowed));
  });
}

// Of numbers that g or g' made: on a GPU exp, tanh and erf are another library's.
template <typename T>
void expect_of_g(Tensor<T>& ours, Tensor<T>& expected, const Size& size,
                 [[maybe_unused]] bool exact, const std::string& what) {
#if defined(CONVBP_ON_GPU)
  constexpr double kFew = 32;  // units; 1 - tanh(x)^2 makes 19 of one
  constexpr double unit = sizeof(T) == 8            ? 0x1p-53
                          : sizeof(T) == 4          ? 0x1p-24
                          : std::is_same_v<T, Half> ? 0x1p-11
                                                    : 0x1p-8;
  Tensor<double> wide = widened(expected, size), magnitude(size);
  each(magnitude, size, [&](double& to, int64_t a, int64_t b, int64_t c, int64_t d) {
    to = 1 + std::fabs(wide.view().at(a, b, c, d));
  });
  if (!exact) return expect_close(ours, wide, magnitude, size, kFew * unit, 0, what);
#endif
  expect_equal(ours, expected, size, what);
}

// One that leaves whole numbers whole, or with exact = false any.
template <typename A>
activation::Activation<A> any_activation(Random& random, bool exact = true) {
  constexpr int kIdentity = -1, kLeakyRelu = 1, kRelu6 = 2, kSoftplus = 9, kElu = 12;
  activation::Activation<A> g{static_cast<int>(random.number(kIdentity, exact ? kRelu6 : kElu))};
  if (g.row == kLeakyRelu) g.parameters[0] = A(0.25);
  if (g.row == kSoftplus) g.parameters[0] = A(1), g.parameters[1] = A(20);
  if (g.row == kElu) g.parameters[0] = A(0.5);
  return g;
}

// --- convolutions ---------------------------------------------------------------------------

// An algorithm's three operators, and which problems it takes.
template <typename T>
struct Operators {
  std::string name;
  bool (*can_implement)(const ConvProblem&);
  std::function<void(cuda::Context&, const ConvProblem&, View<const T>, View<const T>,
                     const Epilogue<T>&, View<T>)>
      conv2d;
  std::function<void(cuda::Context&, const ConvProblem&, View<const T>, View<const T>, View<T>)>
      input_grad;
  std::function<void(cuda::Context&, const ConvProblem&, View<const T>, View<const T>, View<T>, T*)>
      weight_grad;
};

template <typename T>
void try_operators(Random& random, const ConvProblem& p, const Operators<T>& ours) {
  if (!ours.can_implement(p)) return;
  const Size of_input{p.batch, p.groups * p.in_channels, p.in_size[0], p.in_size[1]};
  const Size of_weight{p.groups * p.out_channels, p.in_channels, p.kernel[0], p.kernel[1]};
  const Size of_output{p.batch, of_weight[0], p.out_size[0], p.out_size[1]};
  const Size of_bias{1, 1, 1, of_weight[0]};
  Tensor<T> input(of_input, any_layout(random)), weight(of_weight, any_layout(random));
  Tensor<T> delta(of_output, any_layout(random)), bias(of_bias);
  input.fill(random), weight.fill(random), delta.fill(random), bias.fill(random);
  Tensor<double> wide_input = widened(input, of_input), wide_weight = widened(weight, of_weight);
  Tensor<double> wide_delta = widened(delta, of_output), wide_bias = widened(bias, of_bias);
  const Layout layout = dense_layout(random);
  HostContext context(random);

  if (p.batch) {
    Tensor<T> output(of_output, layout), kept(of_output, layout);
    Tensor<double> sums(of_output);
    Epilogue<T> epilogue;
    if (random.in(2)) epilogue.bias = bias.read().data;
    epilogue.activation = any_activation<Accumulator<T>>(random);
    const bool keep = random.in(2);
    if (keep) epilogue.pre_activation = kept.view().data;
    ours.conv2d(context, p, input.read(), weight.read(), epilogue, output.view());
    expected::conv2d(p, wide_input.read(), wide_weight.read(),
                     epilogue.bias ? wide_bias.read().data : nullptr, sums.view());
    Tensor<T> expected(of_output), expected_kept(of_output);
    each(sums, of_output, [&](double& sum, int64_t a, int64_t b, int64_t c, int64_t d) {
      const auto narrow = static_cast<Accumulator<T>>(sum);
      expected_kept.view().at(a, b, c, d) = static_cast<T>(narrow);
      expected.view().at(a, b, c, d) = static_cast<T>(epilogue.activation.value(narrow));
    });
    expect_equal(output, expected, of_output, ours.name + " conv2d");
    if (keep) expect_equal(kept, expected_kept, of_output, ours.name + " conv2d, pre-activation");

    Tensor<T> grad(of_input, layout);
    Tensor<double> wide_grad(of_input);
    ours.input_grad(context, p, weight.read(), delta.read(), grad.view());
    expected::conv2d_input_grad(p, wide_weight.read(), wide_delta.read(), wide_grad.view());
    Tensor<T> expected_grad = rounded<T>(wide_grad, of_input);
    expect_equal(grad, expected_grad, of_input, ours.name + " conv2d_input_grad");
  }

  Tensor<T> weight_grad(of_weight, layout);
  Tensor<T> bias_grad(of_bias);
  Tensor<double> wide_weight_grad(of_weight), wide_bias_grad(of_bias);
  const bool with_bias = random.in(2);
  ours.weight_grad(context, p, input.read(), delta.read(), weight_grad.view(),
                   with_bias ? bias_grad.view().data : nullptr);
  expected::conv2d_weight_grad(p, wide_input.read(), wide_delta.read(), wide_weight_grad.view(),
                               wide_bias_grad.view().data);
  Tensor<T> expected_weight_grad = rounded<T>(wide_weight_grad, of_weight);
  Tensor<T> expected_bias_grad = rounded<T>(wide_bias_grad, of_bias);
  expect_equal(weight_grad, expected_weight_grad, of_weight, ours.name + " conv2d_weight_grad");
  if (with_bias)
    expect_equal(bias_grad, expected_bias_grad, of_bias, ours.name + " conv2d_weight_grad, bias");
}

template <typename T>
void try_reference(Random& random) {
  ConvProblem p = sanitize::random_conv(random);
  try_operators<T>(
      random, p,
      {"reference", [](const ConvProblem&) { return true; }, &cuda::reference::conv2d<T>,
       &cuda::reference::conv2d_input_grad<T>, &cuda::reference::conv2d_weight_grad<T>});
}

// --- implicit GEMM --------------------------------------------------------------------------

// Sizes off the tiles, few enough of them for the time a fiber takes.
ConvProblem random_gemm(Random& random) {
  for (;;) {
    ConvProblem p = sanitize::random_conv(random);
    const auto channels = [&] { return random.one_of<int64_t>({1, 3, 5, 8, 17, 33, 64, 70, 130}); };
    if (p.groups <= 3 && p.in_channels) p.in_channels = channels(), p.out_channels = channels();
    const auto tiles = [&](int64_t pixels, int64_t columns, int64_t depth) {
      return static_cast<double>(p.groups) * (p.batch * pixels / 64 + 1) * (columns / 64 + 1) *
             (p.kernel[0] * p.kernel[1] * depth / 32 + 1);
    };
    const double all = tiles(p.out_size[0] * p.out_size[1], p.out_channels, p.in_channels) +
                       tiles(p.in_size[0] * p.in_size[1], p.in_channels, p.out_channels) +
                       p.stride[0] * p.stride[1] * p.groups +
                       tiles(p.out_size[0] * p.out_size[1], p.out_channels, p.in_channels);
    if (all < 150) return p;
  }
}

template <typename T>
Operators<T> gemm_with(const cuda::gemm::Options& options) {
  return {options.tf32 ? "implicit GEMM, TF32," : "implicit GEMM", &cuda::gemm::can_implement,
          [=](cuda::Context& context, const ConvProblem& p, View<const T> input,
              View<const T> weight, const Epilogue<T>& epilogue, View<T> output) {
            cuda::gemm::conv2d<T>(context, p, input, weight, epilogue, output, options);
          },
          [=](cuda::Context& context, const ConvProblem& p, View<const T> weight,
              View<const T> delta, View<T> grad) {
            cuda::gemm::conv2d_input_grad<T>(context, p, weight, delta, grad, options);
          },
          [=](cuda::Context& context, const ConvProblem& p, View<const T> input,
              View<const T> delta, View<T> grad, T* bias_grad) {
            cuda::gemm::conv2d_weight_grad<T>(context, p, input, delta, grad, bias_grad, options);
          }};
}

cuda::gemm::Options any_options(Random& random, bool tf32) {
  return {tf32, static_cast<int>(random.number(-1, 2))};
}

template <typename T>
void try_gemm(Random& random) {
  try_operators<T>(random, random_gemm(random), gemm_with<T>(any_options(random, false)));
}

void try_gemm_tf32(Random& random) {
  try_operators<float>(random, random_gemm(random), gemm_with<float>(any_options(random, true)));
}

// Numbers that are not whole, and one among them that is huge, infinite or NaN.
template <typename T>
void try_rounding(Random& random, bool tf32) {
  const ConvProblem p = random_gemm(random);
  if (!p.batch || !p.in_channels) return;
  const Size of_input{p.batch, p.groups * p.in_channels, p.in_size[0], p.in_size[1]};
  const Size of_weight{p.groups * p.out_channels, p.in_channels, p.kernel[0], p.kernel[1]};
  const Size of_output{p.batch, of_weight[0], p.out_size[0], p.out_size[1]};
  const auto fraction = [&](auto) {
    return static_cast<T>(static_cast<float>(random.number(-1000000, 1000000)) / 1048576.f);
  };
  Tensor<T> input(of_input), weight(of_weight), delta(of_output), bias({1, 1, 1, of_weight[0]});
  input.each(fraction), weight.each(fraction), delta.each(fraction), bias.each(fraction);
  // In float16 what others call huge is infinite.
  const float odd = random.one_of({0x1p126f, -INFINITY, INFINITY, NAN, 1e-40f});
  input.view().data[random.number(0, input.count() - 1)] = static_cast<T>(odd);
  delta.view().data[random.number(0, delta.count() - 1)] = static_cast<T>(odd);
  const auto magnitude = [](Tensor<double>& tensor, const Size& size) {
    Tensor<double> result(size);
    each(result, size, [&](double& to, int64_t a, int64_t b, int64_t c, int64_t d) {
      to = std::fabs(tensor.view().at(a, b, c, d));
    });
    return result;
  };
  Tensor<double> a = widened(input, of_input), w = widened(weight, of_weight);
  Tensor<double> d = widened(delta, of_output), none(of_output);
  Tensor<double> abs_a = magnitude(a, of_input), abs_w = magnitude(w, of_weight);
  Tensor<double> abs_d = magnitude(d, of_output);
  // Roundings: of K sums and products (and two of each factor, in TF32), and of the result.
  const double unit = sizeof(T) == 8 ? 0x1p-53 : 0x1p-24;
  const double of_result = std::is_same_v<T, BFloat16> ? 0x1p-8 : sizeof(T) == 2 ? 0x1p-11 : unit;
  const auto bound = [&](int64_t depth) {
    return 2 * (depth + 2) * unit + of_result + (tf32 ? 0x1p-10 : 0);
  };
  // Of a subnormal number TF32 has nothing below 2^-136, not even in two parts.
  const double smallest = tf32 ? 0x1p-116 : std::numeric_limits<Accumulator<T>>::min();
  const std::string name = tf32 ? "TF32 " : "";
  const auto ours = gemm_with<T>(any_options(random, tf32));
  HostContext context(random);

  Tensor<T> output(of_output);
  Tensor<double> exact(of_output), absolute(of_output);
  ours.conv2d(context, p, input.read(), weight.read(), {}, output.view());
  expected::conv2d(p, a.read(), w.read(), nullptr, exact.view());
  expected::conv2d(p, abs_a.read(), abs_w.read(), nullptr, absolute.view());
  const bool narrow = sizeof(T) == 2;  // what is huge or tiny leaves the range of the result
  if (!narrow || std::isnan(odd))
    expect_close(output, exact, absolute, of_output,
                 bound(p.in_channels * p.kernel[0] * p.kernel[1]), smallest, name + "conv2d");

  Tensor<T> grad(of_input);
  Tensor<double> exact_grad(of_input), absolute_grad(of_input);
  ours.input_grad(context, p, weight.read(), delta.read(), grad.view());
  expected::conv2d_input_grad(p, w.read(), d.read(), exact_grad.view());
  expected::conv2d_input_grad(p, abs_w.read(), abs_d.read(), absolute_grad.view());
  if (!narrow || std::isnan(odd))
    expect_close(grad, exact_grad, absolute_grad, of_input,
                 bound(p.out_channels * p.kernel[0] * p.kernel[1]), smallest,
                 name + "conv2d_input_grad");

  // An infinite delta meets the zeros of the padding, which makes NaN: only the bias gradient has
  // one.
  Tensor<double> bias_exact({1, 1, 1, of_weight[0]}), bias_absolute({1, 1, 1, of_weight[0]});
  Tensor<double> weight_exact(of_weight), weight_absolute(of_weight);
  Tensor<T> weight_grad(of_weight);
  ours.weight_grad(context, p, input.read(), delta.read(), weight_grad.view(), bias.view().data);
  expected::conv2d_weight_grad(p, a.read(), d.read(), weight_exact.view(), bias_exact.view().data);
  expected::conv2d_weight_grad(p, abs_a.read(), abs_d.read(), weight_absolute.view(),
                               bias_absolute.view().data);
  const int64_t pixels = p.batch * p.out_size[0] * p.out_size[1];
  if (!narrow || std::isnan(odd))
    expect_close(bias, bias_exact, bias_absolute, {1, 1, 1, of_weight[0]},
                 2 * (pixels + 2) * unit + of_result + (tf32 ? 0x1p-20 : 0), smallest,
                 name + "conv2d_weight_grad, bias");
  delta.each(fraction);
  d = widened(delta, of_output), abs_d = magnitude(d, of_output);
  ours.weight_grad(context, p, input.read(), delta.read(), weight_grad.view(), nullptr);
  expected::conv2d_weight_grad(p, a.read(), d.read(), weight_exact.view(), bias_exact.view().data);
  expected::conv2d_weight_grad(p, abs_a.read(), abs_d.read(), weight_absolute.view(),
                               bias_absolute.view().data);
  if (!narrow || std::isnan(odd))
    expect_close(weight_grad, weight_exact, weight_absolute, of_weight, bound(pixels), smallest,
                 name + "conv2d_weight_grad");
}

template <typename T>
void try_gemm_rounding(Random& random) {
  try_rounding<T>(random, false);
}

void try_gemm_rounding_tf32(Random& random) {
  try_rounding<float>(random, true);
}

// Same bits: of a sample alone and in its batch, with any tile; of a weight gradient on any GPU.
template <typename T>
void try_invariance(Random& random, bool tf32) {
  const ConvProblem p = random_gemm(random);
  if (!p.batch || !cuda::gemm::can_implement(p)) return;
  const Size of_input{p.batch, p.groups * p.in_channels, p.in_size[0], p.in_size[1]};
  const Size of_weight{p.groups * p.out_channels, p.in_channels, p.kernel[0], p.kernel[1]};
  const Size of_output{p.batch, of_weight[0], p.out_size[0], p.out_size[1]};
  const auto fraction = [&](T) {
    return static_cast<T>(static_cast<float>(random.number(-1000000, 1000000)) / 1048576.f);
  };
  Tensor<T> input(of_input, any_layout(random)), weight(of_weight, any_layout(random));
  Tensor<T> delta(of_output, any_layout(random)), bias({1, 1, 1, of_weight[0]});
  input.each(fraction), weight.each(fraction), delta.each(fraction), bias.each(fraction);
  Epilogue<T> epilogue;
  epilogue.bias = bias.read().data;
  HostContext context(random), other(random);
  const auto ours = gemm_with<T>(any_options(random, tf32));
  const auto again = gemm_with<T>(any_options(random, tf32));

  ConvProblem single = p;
  single.batch = 1;
  const int64_t sample = random.number(0, p.batch - 1);
  const auto one = [&](auto view) {
    view.data += sample * view.stride[0];
    return view;
  };
  const Size of_one_input{1, of_input[1], of_input[2], of_input[3]};
  const Size of_one_output{1, of_output[1], of_output[2], of_output[3]};
  Tensor<T> outputs(of_output), output(of_one_output), part_of_outputs(of_one_output);
  ours.conv2d(context, p, input.read(), weight.read(), epilogue, outputs.view());
  again.conv2d(context, single, one(input.read()), weight.read(), epilogue, output.view());
  each(part_of_outputs, of_one_output, [&](T& to, int64_t, int64_t b, int64_t c, int64_t d) {
    to = outputs.view().at(sample, b, c, d);
  });
  expect_equal(output, part_of_outputs, of_one_output, ours.name + " conv2d of a sample");

  Tensor<T> grads(of_input), grad(of_one_input), part_of_grads(of_one_input);
  ours.input_grad(context, p, weight.read(), delta.read(), grads.view());
  again.input_grad(context, single, weight.read(), one(delta.read()), grad.view());
  each(part_of_grads, of_one_input, [&](T& to, int64_t, int64_t b, int64_t c, int64_t d) {
    to = grads.view().at(sample, b, c, d);
  });
  expect_equal(grad, part_of_grads, of_one_input, ours.name + " conv2d_input_grad of a sample");

  Tensor<T> weight_grad(of_weight), weight_grad_there(of_weight);
  Tensor<T> bias_grad({1, 1, 1, of_weight[0]}), bias_grad_there({1, 1, 1, of_weight[0]});
  ours.weight_grad(context, p, input.read(), delta.read(), weight_grad.view(),
                   bias_grad.view().data);
  ours.weight_grad(other, p, input.read(), delta.read(), weight_grad_there.view(),
                   bias_grad_there.view().data);
  expect_equal(weight_grad, weight_grad_there, of_weight, ours.name + " conv2d_weight_grad twice");
  expect_equal(bias_grad, bias_grad_there, {1, 1, 1, of_weight[0]},
               ours.name + " conv2d_weight_grad twice, bias");
}

template <typename T>
void try_gemm_invariance(Random& random) {
  try_invariance<T>(random, false);
}

void try_gemm_invariance_tf32(Random& random) {
  try_invariance<float>(random, true);
}

// --- depthwise ------------------------------------------------------------------------------

// Channels, pictures and filters on both sides of what vectors, strips, tiles and blocks divide,
// half of them of the sizes the kernels are compiled for.
ConvProblem random_depthwise(Random& random) {
  constexpr int64_t kMostProducts = 300000;  // sums of +-4 that float16 holds, and time
  for (;;) {
    ConvProblem p;
    p.batch = random.one_of<int64_t>({0, 1, 1, 2, 3, 5});
    p.groups = random.one_of<int64_t>({2, 3, 4, 5, 8, 9, 33, 70, 132, 140});
    p.in_channels = 1;
    p.out_channels = random.in(5) ? random.number(2, 3) : 1;
    const bool compiled = !random.in(4);
    const int64_t kernel = random.one_of<int64_t>({3, 5, 7}), stride = random.number(1, 2);
    const int64_t most = random.one_of<int64_t>({3, 9, 16, 40, 80});
    bool possible = true;
    for (const Spatial axis : {kHeight, kWidth}) {
      p.in_size[axis] = random.number(1, most);
      p.kernel[axis] = compiled ? kernel : random.number(1, 9);
      p.stride[axis] = compiled ? stride : random.number(1, 4);
      p.dilation[axis] = compiled ? 1 : random.one_of<int64_t>({1, 1, 2, 3, 4, 6});
      p.pad[axis] = random.in(2) ? p.kernel[axis] / 2 : random.number(0, p.kernel[axis] + 2);
      const int64_t padded = p.in_size[axis] + p.pad[axis] + random.number(0, p.pad[axis]);
      const int64_t extent = p.dilation[axis] * (p.kernel[axis] - 1) + 1;
      possible = possible && extent <= padded;
      p.out_size[axis] = (padded - extent) / p.stride[axis] + 1;
    }
    const int64_t products = p.batch * p.groups * p.out_channels * p.kernel[0] * p.kernel[1] *
                             std::max(p.out_size[0] * p.out_size[1], p.in_size[0] * p.in_size[1]);
    if (possible && products <= kMostProducts) return p;
  }
}

template <typename T>
void try_depthwise(Random& random) {
  ConvProblem p = random_depthwise(random);
  try_operators<T>(
      random, p,
      {"depthwise", &cuda::depthwise::can_implement, &cuda::depthwise::conv2d<T>,
       &cuda::depthwise::conv2d_input_grad<T>, &cuda::depthwise::conv2d_weight_grad<T>});
}

// L3 to L6 in one pass, or L3 by itself where there is no such kernel.
template <typename T>
void try_depthwise_backward(Random& random) {
  const Layout layout = dense_layout(random);
  ConvProblem p = random_depthwise(random);
  // Most are to be some that there is a kernel for.
  for (int more = 8; more > 0; --more)
    if (p.out_channels > 1 || !p.batch || p.kernel[0] != p.kernel[1] ||
        p.stride[0] != p.stride[1] || p.dilation[0] > 1 || p.dilation[1] > 1 ||
        (layout == Layout::kChannelsLast && p.groups % 2))
      p = random_depthwise(random);
  if (random.in(6))  // a block has several tiles, one after the other
    p = {3, 66, 1, 1, {9, 17}, {7, 7}, {9, 17}, {1, 1}, {3, 3}, {1, 1}};
  const Size of_input{p.batch, p.groups, p.in_size[0], p.in_size[1]};
  const Size of_weight{p.groups * p.out_channels, 1, p.kernel[0], p.kernel[1]};
  const Size of_output{p.batch, of_weight[0], p.out_size[0], p.out_size[1]};
  const Size of_bias{1, 1, 1, of_weight[0]};
  const auto like_it = [&] { return random.in(20) ? any_layout(random) : layout; };
  Tensor<T> input(of_input, like_it()), weight(of_weight, any_layout(random));
  Tensor<T> grad(of_output, like_it()), kept(of_output, like_it());
  input.fill(random), weight.fill(random), grad.fill(random), kept.fill(random);
  // With an activation that leaves no whole numbers, a filter of two taps: a sum of two is exact.
  const bool exact = !random.in(3);
  if (!exact)
    each(weight, of_weight, [&](T& w, int64_t, int64_t, int64_t r, int64_t s) {
      w = static_cast<T>(r == 0 && s < 2 ? 1.f : 0.f);
    });
  cuda::depthwise::ErrorSignal<T> signal{any_activation<Accumulator<T>>(random, exact), grad.read(),
                                         kept.read()};
  if (signal.g.row < 0) signal.saved.data = nullptr;
  Tensor<T> delta(of_output);
  each(delta, of_output, [&](T& to, int64_t a, int64_t b, int64_t c, int64_t d) {
    to = grad.view().at(a, b, c, d);
    if (signal.saved.data)
      to = static_cast<T>(
          signal.g.error_signal(static_cast<Accumulator<T>>(to),
                                static_cast<Accumulator<T>>(kept.view().at(a, b, c, d))));
  });
  HostContext context(random);

  Tensor<T> input_grad(of_input, layout);
  Tensor<T> weight_grad(of_weight, layout);
  Tensor<T> bias_grad(of_bias);
  Tensor<double> wide_input = widened(input, of_input), wide_weight = widened(weight, of_weight);
  Tensor<double> wide_delta = widened(delta, of_output), wide_input_grad(of_input);
  Tensor<double> wide_weight_grad(of_weight), wide_bias_grad(of_bias);
  const bool with_bias = random.in(2);
  if (!cuda::depthwise::backward<T>(context, p, signal, input.read(), weight.read(),
                                    input_grad.view(), weight_grad.view(),
                                    with_bias ? bias_grad.view().data : nullptr)) {
    const View<const T> ours = cuda::depthwise::error_signal<T>(context, p, signal);
    Tensor<T> copy(of_output);
    each(copy, of_output,
         [&](T& to, int64_t a, int64_t b, int64_t c, int64_t d) { to = ours.at(a, b, c, d); });
    return expect_of_g(copy, delta, of_output, exact, "depthwise error_signal");
  }
  expected::conv2d_input_grad(p, wide_weight.read(), wide_delta.read(), wide_input_grad.view());
  expected::conv2d_weight_grad(p, wide_input.read(), wide_delta.read(), wide_weight_grad.view(),
                               wide_bias_grad.view().data);
  Tensor<T> expected_input_grad = rounded<T>(wide_input_grad, of_input);
  Tensor<T> expected_weight_grad = rounded<T>(wide_weight_grad, of_weight);
  Tensor<T> expected_bias_grad = rounded<T>(wide_bias_grad, of_bias);
  expect_of_g(input_grad, expected_input_grad, of_input, exact, "depthwise backward, input");
  if (!exact) return;
  expect_equal(weight_grad, expected_weight_grad, of_weight, "depthwise backward, weight");
  if (with_bias) expect_equal(bias_grad, expected_bias_grad, of_bias, "depthwise backward, bias");
}

// --- pools ----------------------------------------------------------------------------------

template <typename T, typename Offset>
void try_max_pool(const PoolProblem& p, Random& random) {
  const Size of_input{p.batch, p.channels, p.in_size[0], p.in_size[1]};
  const Size of_output{p.batch, p.channels, p.out_size[0], p.out_size[1]};
  const Layout layout = dense_layout(random);
  HostContext context(random);
  Tensor<T> input(of_input, any_layout(random)), delta(of_output, any_layout(random));
  delta.fill(random), input.fill(random, 3);
  if (random.in(4))
    input.each([&](T x) { return random.in(9) ? static_cast<T>(std::nanf("")) : x; });
  Tensor<double> wide_input = widened(input, of_input), wide_delta = widened(delta, of_output);

  Tensor<T> output(of_output, layout);
  Tensor<Offset> offset(of_output, layout);
  Tensor<double> wide_output(of_output);
  Tensor<uint32_t> wide_offset(of_output);
  cuda::pool::max_pool2d<T, Offset>(context, p, input.read(), output.view(), offset.view());
  expected::max_pool2d(p, wide_input.read(), wide_output.view(), wide_offset.view());
  expect_equal(output, wide_output, of_output, "max_pool2d");
  // The largest number of either type says "nowhere".
  each(wide_offset, of_output, [&](uint32_t& tap, int64_t, int64_t, int64_t, int64_t) {
    if (tap == pool::kNowhere<uint32_t>) tap = pool::kNowhere<Offset>;
  });
  expect_equal(offset, wide_offset, of_output, "max_pool2d, offsets");

  Tensor<T> gathered(of_output, layout);
  cuda::pool::max_pool2d_gather<T, Offset>(context, p, input.read(), offset.read(),
                                           gathered.view());
  // Windows with no position inside: the largest of nothing is -infinity, gathered is 0.
  const T least = static_cast<T>(-std::numeric_limits<float>::infinity());
  output.each([&](T x) { return x == least ? static_cast<T>(0.f) : x; });
  expect_equal(gathered, output, of_output, "max_pool2d_gather");

  // Offsets of another pooling are no error, and reach no foreign memory.
  if (random.in(4))
    offset.each([&](Offset) { return static_cast<Offset>(random.number(0, p.taps() + 3)); });
  each(wide_offset, of_output, [&](uint32_t& tap, int64_t a, int64_t b, int64_t c, int64_t d) {
    tap = offset.view().at(a, b, c, d);
  });
  Tensor<T> grad(of_input, layout);
  Tensor<double> wide_grad(of_input);
  cuda::pool::max_pool2d_input_grad<T, Offset>(context, p, delta.read(), offset.read(),
                                               grad.view());
  expected::max_pool2d_input_grad(p, wide_delta.read(), wide_offset.read(), wide_grad.view());
  Tensor<T> expected = rounded<T>(wide_grad, of_input);
  expect_equal(grad, expected, of_input, "max_pool2d_input_grad");
}

template <typename T>
void try_average_pool(PoolProblem p, Random& random) {
  const bool divisible = sanitize::choose_divisor<T>(p, random);
  if (p.dilation[0] != 1 || p.dilation[1] != 1) return;  // there is none
  const Size of_input{p.batch, p.channels, p.in_size[0], p.in_size[1]};
  const Size of_output{p.batch, p.channels, p.out_size[0], p.out_size[1]};
  const Layout layout = dense_layout(random);
  HostContext context(random);
  Tensor<T> input(of_input, any_layout(random)), delta(of_output, any_layout(random));
  input.fill(random), delta.fill(random, 2, divisible ? 3600 : 1);
  Tensor<double> wide_input = widened(input, of_input), wide_delta = widened(delta, of_output);

  Tensor<T> output(of_output, layout);
  Tensor<double> wide_output(of_output);
  cuda::pool::avg_pool2d<T>(context, p, input.read(), output.view());
  expected::avg_pool2d(p, wide_input.read(), wide_output.view());
  Tensor<T> expected = rounded<T>(wide_output, of_output);
  expect_equal(output, expected, of_output, "avg_pool2d");

  Tensor<T> grad(of_input, layout);
  Tensor<double> wide_grad(of_input);
  cuda::pool::avg_pool2d_input_grad<T>(context, p, delta.read(), grad.view());
  expected::avg_pool2d_input_grad(p, wide_delta.read(), wide_grad.view());
  Tensor<T> expected_grad = rounded<T>(wide_grad, of_input);
  expect_equal(grad, expected_grad, of_input, "avg_pool2d_input_grad");
}

template <typename T>
void try_pools(Random& random) {
  const PoolProblem p = sanitize::random_pool(random);
  if (p.taps() < 256)
    try_max_pool<T, uint8_t>(p, random);
  else
    try_max_pool<T, uint32_t>(p, random);
  try_average_pool<T>(p, random);
}

// --- element by element ---------------------------------------------------------------------

template <typename T>
void try_elementwise(Random& random) {
  using Acc = Accumulator<T>;
  const Channels size{random.number(0, 40), random.one_of<int64_t>({1, 2, 3, 17, 33, 1500}),
                      random.in(2) ? 1 : random.number(0, 1100)};
  const int64_t count = size.outer * size.channels * size.inner;
  if (count > 100000) return;
  const bool exact = random.in(2);  // sums of anything else depend on their order
  const auto g = any_activation<Acc>(random, exact);
  const Size of_tensor{1, size.outer, size.channels, size.inner};
  const Size of_bias{1, 1, 1, size.channels};
  Tensor<T> grad(of_tensor), kept(of_tensor), ours(of_tensor), expected(of_tensor);
  Tensor<T> bias_grad(of_bias), expected_bias_grad(of_bias);
  grad.fill(random), kept.fill(random, 4);
  HostContext context(random);

  cuda::activate<T>(context, g, kept.read().data, ours.view().data, count);
  each(expected, of_tensor, [&](T& to, int64_t a, int64_t b, int64_t c, int64_t d) {
    to = static_cast<T>(g.value(static_cast<Acc>(kept.view().at(a, b, c, d))));
  });
  expect_of_g(ours, expected, of_tensor, exact, "activation");

  std::vector<double> sums(size.channels);
  each(expected, of_tensor, [&](T& to, int64_t a, int64_t b, int64_t c, int64_t d) {
    to = static_cast<T>(g.error_signal(static_cast<Acc>(grad.view().at(a, b, c, d)),
                                       static_cast<Acc>(kept.view().at(a, b, c, d))));
    sums[c] += number(to);
  });
  Tensor<T> again(of_tensor);
  cuda::error_signal<T>(context, g, grad.read().data, kept.read().data, ours.view().data, count);
  expect_of_g(ours, expected, of_tensor, exact, "error_signal");
  cuda::error_signal_bias_grad<T>(context, g, grad.read().data, kept.read().data, again.view().data,
                                  size, bias_grad.view().data);
  expect_of_g(again, expected, of_tensor, exact, "error_signal_bias_grad");
  each(expected_bias_grad, of_bias,
       [&](T& to, int64_t, int64_t, int64_t, int64_t c) { to = rounded<T>(sums[c]); });
  if (exact) expect_equal(bias_grad, expected_bias_grad, of_bias, "error_signal_bias_grad, bias");
}

// --------------------------------------------------------------------------------------------

struct Family {
  const char* name;
  const char* type;
  void (*body)(Random&);
};

// clang-format off
#define CONVBP_FAMILY(name, body)                                  \
  {name, "float32", body<float>}, {name, "float64", body<double>}, \
  {name, "bfloat16", body<BFloat16>}, {name, "float16", body<Half>}
// clang-format on

const Family kFamilies[] = {
    CONVBP_FAMILY("reference", try_reference),
    CONVBP_FAMILY("gemm", try_gemm),
    {"gemm", "TF32", try_gemm_tf32},
    CONVBP_FAMILY("gemm_rounding", try_gemm_rounding),
    {"gemm_rounding", "TF32", try_gemm_rounding_tf32},
    CONVBP_FAMILY("gemm_invariance", try_gemm_invariance),
    {"gemm_invariance", "TF32", try_gemm_invariance_tf32},
    CONVBP_FAMILY("depthwise", try_depthwise),
    CONVBP_FAMILY("depthwise_backward", try_depthwise_backward),
    CONVBP_FAMILY("pools", try_pools),
    CONVBP_FAMILY("elementwise", try_elementwise),
};

int run(int64_t problems, uint64_t seed, const std::string& family_only,
        const std::string& type_only) {
  for (const Family& family : kFamilies) {
    if (!family_only.empty() && family_only != family.name) continue;
    if (!type_only.empty() && type_only != family.type) continue;
    for (int64_t i = 0; i < problems; ++i) {
      Random random(seed + i);
      try {
        family.body(random);
      } catch (const std::exception& error) {
        std::fprintf(stderr, "FAILED: %s (%s, %s, seed %llu)\n", error.what(), family.name,
                     family.type, static_cast<unsigned long long>(seed + i));
        return 1;
      }
    }
  }
  std::printf("%lld comparisons on %lld random problems from seed %llu: all equal\n",
              static_cast<long long>(comparisons), static_cast<long long>(problems),
              static_cast<unsigned long long>(seed));
  return comparisons ? 0 : 1;
}

}  // namespace
}  // namespace convbp::check

int main(int count, char** values) {
  const auto value = [&](int i, const char* fallback) { return i < count ? values[i] : fallback; };
  return convbp::check::run(std::atoll(value(1, "100")), std::strtoull(value(2, "0"), nullptr, 10),
                            value(3, ""), value(4, ""));
}
