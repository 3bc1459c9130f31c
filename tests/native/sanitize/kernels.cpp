// Every CPU kernel on random problems, for a build with sanitizers (make sanitize): memory ends
// where the last element does, values are whole numbers, and results must equal the loop nests of
// cpu/reference in every bit. No torch in here but its 16-bit numbers.
//
//   kernels [problems] [seed]   so many random problems for each operator and element type
//   kernels --lie NAME          tells a kernel what is not true; the sanitizer has to notice
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <limits>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "cpu/capability.h"
#include "cpu/depthwise/depthwise.h"
#include "cpu/direct/direct.h"
#include "cpu/elementwise/elementwise.h"
#include "cpu/grouped/grouped.h"
#include "cpu/pointwise/pointwise.h"
#include "cpu/pool/pool.h"
#include "cpu/reference/conv2d.h"
#include "cpu/reference/pool2d.h"
#include "cpu/scratch.h"
#include "cpu/winograd/winograd.h"
#include "tensor.h"
#include "threads.h"

namespace convbp::sanitize {
namespace {

int64_t comparisons = 0;

void expect(bool condition, const std::string& what) {
  ++comparisons;
  if (!condition) throw std::runtime_error(what);
}

template <typename T>
void expect_equal(const Tensor<T>& ours, const Tensor<T>& expected, const char* what) {
  const int64_t found = ours.differences(expected);
  expect(found == 0, std::string(what) + ": " + std::to_string(found) + " of " +
                         std::to_string(ours.count()) + " elements differ");
}

// For algorithms that round even whole numbers.
template <typename T>
void expect_near(const Tensor<T>& ours, const Tensor<T>& expected, const char* what) {
  const double error = ours.largest_difference(expected);
  const double unit = sizeof(T) < 4 ? 1. / 64 : 1e-4;
  expect(error <= unit * (1 + expected.largest()),
         std::string(what) + ": off by " + std::to_string(error));
}

template <typename A>
activation::Activation<A> any_activation(Random& random, bool exact = false) {
  using Row = std::pair<const char*, std::vector<A>>;
  static const std::vector<Row> rows = {{"", {}},
                                        {"relu", {}},
                                        {"leaky_relu", {A(0.25)}},
                                        {"relu6", {}},
                                        {"sigmoid", {}},
                                        {"tanh", {}},
                                        {"silu", {}},
                                        {"gelu", {}},
                                        {"gelu_tanh", {}},
                                        {"hardswish", {}},
                                        {"softplus", {A(1), A(20)}},
                                        {"hardsigmoid", {}},
                                        {"mish", {}},
                                        {"elu", {A(0.5)}}};
  const Row& row = rows[random.number(0, exact ? 3 : static_cast<int64_t>(rows.size()) - 1)];
  activation::Activation<A> g;
  if (*row.first) g.functions = activation::functions_of<A>(activation::row_of(row.first));
  std::copy(row.second.begin(), row.second.end(), g.parameters);
  return g;
}

template <typename T>
void try_convolution(Random& random) {
  const ConvProblem p = random_conv(random);
  const Size of_input{p.batch, p.groups * p.in_channels, p.in_size[0], p.in_size[1]};
  const Size of_weight{p.groups * p.out_channels, p.in_channels, p.kernel[0], p.kernel[1]};
  const Size of_output{p.batch, of_weight[0], p.out_size[0], p.out_size[1]};
  const Size of_bias{1, 1, 1, of_weight[0]};
  Tensor<T> input(of_input, any_layout(random)), weight(of_weight, any_layout(random));
  Tensor<T> delta(of_output, any_layout(random)), bias(of_bias);
  input.fill(random), weight.fill(random), delta.fill(random), bias.fill(random);
  const Layout layout = dense_layout(random);

  if (p.batch) {  // the boundary sends no empty results here
    Tensor<T> output(of_output, layout), expected_output(of_output, layout);
    Tensor<T> kept(of_output, layout), expected_kept(of_output, layout);
    Epilogue<T> epilogue;
    if (random.in(2)) epilogue.bias = bias.read().data;
    epilogue.activation = any_activation<Accumulator<T>>(random);
    const bool keep = random.in(2);
    if (keep) epilogue.pre_activation = kept.view().data;
    direct::conv2d<T>(p, input.read(), weight.read(), epilogue, output.view());
    if (keep) epilogue.pre_activation = expected_kept.view().data;
    reference::conv2d<T>(p, input.read(), weight.read(), epilogue, expected_output.view());
    expect_equal(output, expected_output, "conv2d");
    if (keep) expect_equal(kept, expected_kept, "conv2d, pre-activation");

    if (p.in_channels) {
      Tensor<T> grad(of_input, layout), expected_grad(of_input, layout);
      direct::conv2d_input_grad<T>(p, weight.read(), delta.read(), grad.view());
      reference::conv2d_input_grad<T>(p, weight.read(), delta.read(), expected_grad.view());
      expect_equal(grad, expected_grad, "conv2d_input_grad");
    }
  }
  Tensor<T> grad(of_weight, layout), expected_grad(of_weight, layout);
  Tensor<T> bias_grad(of_bias), expected_bias_grad(of_bias);
  const bool with_bias = random.in(2);
  direct::conv2d_weight_grad<T>(p, input.read(), delta.read(), grad.view(),
                                with_bias ? bias_grad.view().data : nullptr);
  reference::conv2d_weight_grad<T>(p, input.read(), delta.read(), expected_grad.view(),
                                   with_bias ? expected_bias_grad.view().data : nullptr);
  expect_equal(grad, expected_grad, "conv2d_weight_grad");
  expect_equal(bias_grad, expected_bias_grad, "conv2d_weight_grad, bias");
}

template <typename T>
using Forward = void(const ConvProblem&, View<const T>, View<const T>, const Epilogue<T>&, View<T>);
template <typename T>
using InputGrad = void(const ConvProblem&, View<const T>, View<const T>, View<T>);
template <typename T>
using WeightGrad = void(const ConvProblem&, View<const T>, View<const T>, View<T>, T*);

// An algorithm's three operators; it may look at the tensors' strides before it takes a problem.
template <typename T>
struct Operators {
  std::string name;
  bool (*can_implement)(const ConvProblem&, const int64_t* source_stride,
                        const int64_t* other_stride);
  Forward<T>* conv2d;
  InputGrad<T>* input_grad;
  WeightGrad<T>* weight_grad;
  void (*compare)(const Tensor<T>& ours, const Tensor<T>& expected, const char* what);
};

template <typename T>
void try_operators(Random& random, const ConvProblem& p, const Operators<T>& ours) {
  const Size of_input{p.batch, p.groups * p.in_channels, p.in_size[0], p.in_size[1]};
  const Size of_weight{p.groups * p.out_channels, p.in_channels, p.kernel[0], p.kernel[1]};
  const Size of_output{p.batch, of_weight[0], p.out_size[0], p.out_size[1]};
  const Size of_bias{1, 1, 1, of_weight[0]};
  // Layouts that differ are mostly refused where strides matter.
  const Layout of_all = any_layout(random);
  const auto layout = [&] { return random.in(3) ? any_layout(random) : of_all; };
  const Layout of_results = of_all == Layout::kChannelsLast ||
                                    of_all == Layout::kChannelsLastView ||
                                    of_all == Layout::kChannelsLastWideView
                                ? Layout::kChannelsLast
                                : Layout::kContiguous;
  Tensor<T> input(of_input, layout()), weight(of_weight, any_layout(random));
  Tensor<T> delta(of_output, layout()), bias(of_bias);
  input.fill(random), weight.fill(random), delta.fill(random), bias.fill(random);
  const auto compare = [&](const Tensor<T>& a, const Tensor<T>& b, const char* what) {
    ours.compare(a, b, (ours.name + " " + what).c_str());
  };

  Tensor<T> output(of_output, of_results), expected_output(of_output, of_results);
  if (p.batch && ours.can_implement(p, input.read().stride, output.read().stride)) {
    Tensor<T> kept(of_output, of_results), expected_kept(of_output, of_results);
    Epilogue<T> epilogue;
    if (random.in(2)) epilogue.bias = bias.read().data;
    epilogue.activation = any_activation<Accumulator<T>>(random, true);
    const bool keep = random.in(2);
    if (keep) epilogue.pre_activation = kept.view().data;
    ours.conv2d(p, input.read(), weight.read(), epilogue, output.view());
    if (keep) epilogue.pre_activation = expected_kept.view().data;
    reference::conv2d<T>(p, input.read(), weight.read(), epilogue, expected_output.view());
    compare(output, expected_output, "conv2d");
    if (keep) compare(kept, expected_kept, "conv2d, pre-activation");
  }
  Tensor<T> grad(of_input, of_results), expected_grad(of_input, of_results);
  if (p.batch && ours.can_implement(p, delta.read().stride, grad.read().stride)) {
    ours.input_grad(p, weight.read(), delta.read(), grad.view());
    reference::conv2d_input_grad<T>(p, weight.read(), delta.read(), expected_grad.view());
    compare(grad, expected_grad, "conv2d_input_grad");
  }
  if (ours.can_implement(p, input.read().stride, delta.read().stride)) {
    Tensor<T> weight_grad(of_weight, of_results), expected_weight_grad(of_weight, of_results);
    Tensor<T> bias_grad(of_bias), expected_bias_grad(of_bias);
    const bool with_bias = random.in(2);
    ours.weight_grad(p, input.read(), delta.read(), weight_grad.view(),
                     with_bias ? bias_grad.view().data : nullptr);
    reference::conv2d_weight_grad<T>(p, input.read(), delta.read(), expected_weight_grad.view(),
                                     with_bias ? expected_bias_grad.view().data : nullptr);
    compare(weight_grad, expected_weight_grad, "conv2d_weight_grad");
    if (with_bias) compare(bias_grad, expected_bias_grad, "conv2d_weight_grad, bias");
  }
}

// The loop nests are slow.
bool is_small(const ConvProblem& p) {
  return static_cast<double>(p.batch) * p.groups * p.in_channels * p.out_channels * p.kernel[0] *
             p.kernel[1] * std::max(p.out_size[0] * p.out_size[1], p.in_size[0] * p.in_size[1]) <=
         1e6;
}

// The input gradient of a 7x7 filter is the direct kernels'.
template <typename T>
void winograd_input_grad(const ConvProblem& p, View<const T> weight, View<const T> delta,
                         View<T> input_grad) {
  if (winograd::can_implement(p, Operator::kInputGrad))
    winograd::conv2d_input_grad<T>(p, weight, delta, input_grad);
  else
    direct::conv2d_input_grad<T>(p, weight, delta, input_grad);
}

template <typename T>
void try_winograd(Random& random) {
  ConvProblem p = random_conv(random);
  constexpr int64_t kForms[][2] = {{3, 1}, {3, 2}, {3, 1}, {3, 2}, {5, 1}, {7, 2}};
  const auto& [kernel, stride] = kForms[random.number(0, 5)];
  for (const Spatial axis : {kHeight, kWidth}) {
    p.kernel[axis] = kernel, p.dilation[axis] = 1, p.stride[axis] = stride;
    const int64_t room = p.in_size[axis] + p.pad[axis] - kernel + random.number(0, 2);
    if (room < 0) return;
    p.out_size[axis] = room / stride + 1;
  }
  if (p.batch == 0 || p.in_channels == 0 || !winograd::can_implement(p, Operator::kForward)) return;
  try_operators<T>(
      random, p,
      {"Winograd", [](const ConvProblem&, const int64_t*, const int64_t*) { return true; },
       &winograd::conv2d<T>, &winograd_input_grad<T>, &winograd::conv2d_weight_grad<T>,
       &expect_near<T>});
}

template <typename T>
void try_depthwise(Random& random) {
  ConvProblem p = random_conv(random);
  p.groups = random.number(2, 70);
  p.in_channels = p.out_channels = 1;
  for (const Spatial axis : {kHeight, kWidth}) {
    p.kernel[axis] = random.number(1, 9), p.dilation[axis] = random.in(4) ? 2 : 1;
    p.stride[axis] = std::min(p.kernel[axis], random.number(1, 4));
    p.pad[axis] = random.number(0, p.kernel[axis] + 1);
    const int64_t room = p.in_size[axis] + p.pad[axis] + random.number(0, p.kernel[axis]) -
                         p.dilation[axis] * (p.kernel[axis] - 1) - 1;
    if (room < 0) return;
    p.out_size[axis] = room / p.stride[axis] + 1;
  }
  if (!is_small(p)) return;
  try_operators<T>(
      random, p,
      {"depthwise", &depthwise::can_implement, &depthwise::conv2d<T>,
       &depthwise::conv2d_input_grad<T>, &depthwise::conv2d_weight_grad<T>, &expect_equal<T>});
}

template <typename T>
void try_pointwise(Random& random) {
  ConvProblem p = random_conv(random);
  const auto channels = [&] {
    return random.in(6) ? random.number(250, 530) : random.number(16, 100);
  };
  p.groups = random.one_of<int64_t>({1, 1, 2, 3});
  p.in_channels = channels(), p.out_channels = channels();
  const bool patches = random.in(2);
  if (patches) p.groups = 1, p.in_channels = random.number(1, 100);
  for (const Spatial axis : {kHeight, kWidth}) {
    p.kernel[axis] = patches ? random.number(1, 4) : 1, p.pad[axis] = 0;
    if (p.kernel[axis] > 1) p.stride[axis] = p.kernel[axis], p.dilation[axis] = 1;
    p.in_size[axis] = std::clamp<int64_t>(p.in_size[axis], p.kernel[axis], 40);
    p.out_size[axis] = (p.in_size[axis] - p.kernel[axis]) / p.stride[axis] + 1;
  }
  if (!is_small(p)) return;
  try_operators<T>(
      random, p,
      {"pointwise", &pointwise::is_profitable, &pointwise::conv2d<T>,
       &pointwise::conv2d_input_grad<T>, &pointwise::conv2d_weight_grad<T>, &expect_equal<T>});
}

template <typename T>
void try_grouped(Random& random) {
  ConvProblem p = random_conv(random);
  p.groups = random.number(2, 9);
  p.in_channels = random.number(1, 16);
  p.out_channels = random.in(2) ? p.in_channels : random.number(1, 16);
  if (!is_small(p)) return;
  try_operators<T>(random, p,
                   {"grouped",
                    [](const ConvProblem& p, const int64_t*, const int64_t*) {
                      return grouped::is_profitable(p, sizeof(T));
                    },
                    &grouped::conv2d<T>, &grouped::conv2d_input_grad<T>,
                    &grouped::conv2d_weight_grad<T>, &expect_equal<T>});
}

template <typename T, typename Offset>
void try_max_pool(const PoolProblem& p, Random& random) {
  const Size of_input{p.batch, p.channels, p.in_size[0], p.in_size[1]};
  const Size of_output{p.batch, p.channels, p.out_size[0], p.out_size[1]};
  const Layout layout = dense_layout(random);
  Tensor<T> input(of_input, any_layout(random)), delta(of_output, any_layout(random));
  delta.fill(random), input.fill(random, 3);
  if (random.in(4))
    input.each([&](T x) { return random.in(9) ? static_cast<T>(std::nanf("")) : x; });

  Tensor<T> output(of_output, layout), expected_output(of_output, layout);
  Tensor<Offset> offset(of_output, layout), expected_offset(of_output, layout);
  pool::max_pool2d<T, Offset>(p, input.read(), output.view(), offset.view());
  pool::reference::max_pool2d<T, Offset>(p, input.read(), expected_output.view(),
                                         expected_offset.view());
  expect_equal(output, expected_output, "max_pool2d");
  expect_equal(offset, expected_offset, "max_pool2d, offsets");

  Tensor<T> gathered(of_output, layout);
  pool::max_pool2d_gather<T, Offset>(p, input.read(), offset.read(), gathered.view());
  // Windows with no position inside: the largest of nothing is -infinity, gathered is 0.
  const T least = static_cast<T>(-std::numeric_limits<float>::infinity());
  output.each([&](T x) { return x == least ? static_cast<T>(0.f) : x; });
  expect_equal(gathered, output, "max_pool2d_gather");

  // Offsets of another pooling are no error, and reach no foreign memory.
  if (random.in(4))
    offset.each([&](Offset) { return static_cast<Offset>(random.number(0, p.taps() + 3)); });
  Tensor<T> grad(of_input, layout), expected_grad(of_input, layout);
  pool::max_pool2d_input_grad<T, Offset>(p, delta.read(), offset.read(), grad.view());
  pool::reference::max_pool2d_input_grad<T, Offset>(p, delta.read(), offset.read(),
                                                    expected_grad.view());
  expect_equal(grad, expected_grad, "max_pool2d_input_grad");
}

template <typename T>
void try_average_pool(PoolProblem p, Random& random) {
  const bool divisible = choose_divisor<T>(p, random);
  if (p.dilation[0] != 1 || p.dilation[1] != 1) return;  // there is none
  const Size of_input{p.batch, p.channels, p.in_size[0], p.in_size[1]};
  const Size of_output{p.batch, p.channels, p.out_size[0], p.out_size[1]};
  const Layout layout = dense_layout(random);
  Tensor<T> input(of_input, any_layout(random)), delta(of_output, any_layout(random));
  input.fill(random), delta.fill(random, 2, divisible ? 3600 : 1);

  Tensor<T> output(of_output, layout), expected_output(of_output, layout);
  pool::avg_pool2d<T>(p, input.read(), output.view());
  pool::reference::avg_pool2d<T>(p, input.read(), expected_output.view());
  expect_equal(output, expected_output, "avg_pool2d");

  Tensor<T> grad(of_input, layout), expected_grad(of_input, layout);
  pool::avg_pool2d_input_grad<T>(p, delta.read(), grad.view());
  pool::reference::avg_pool2d_input_grad<T>(p, delta.read(), expected_grad.view());
  expect_equal(grad, expected_grad, "avg_pool2d_input_grad");
}

template <typename T>
void try_pools(Random& random) {
  const PoolProblem p = random_pool(random);
  if (p.taps() < 256)
    try_max_pool<T, uint8_t>(p, random);
  else
    try_max_pool<T, uint32_t>(p, random);
  try_average_pool<T>(p, random);
}

template <typename T>
void try_elementwise(Random& random) {
  using Acc = Accumulator<T>;
  const Channels size{random.number(0, 40), random.one_of<int64_t>({0, 1, 2, 3, 17, 1500}),
                      random.in(2) ? 1 : random.number(0, 1100)};
  const int64_t count = size.outer * size.channels * size.inner;
  if (count > 500000) return;
  const bool exact = random.in(2);  // sums of anything else depend on their order
  activation::Activation<Acc> g = any_activation<Acc>(random, exact);
  while (!g.functions) g = any_activation<Acc>(random, exact);  // the identity has no operator
  const Size of_tensor{1, size.outer, size.channels, size.inner};
  const Size of_bias{1, 1, 1, size.channels};
  Tensor<T> grad(of_tensor), kept(of_tensor), ours(of_tensor), again(of_tensor),
      expected(of_tensor);
  Tensor<T> bias_grad(of_bias), expected_bias_grad(of_bias);
  grad.fill(random), kept.fill(random, 4);

  activate<T>(g, kept.read().data, ours.view().data, count);
  const T* value = kept.read().data;
  expected.each([&](T) {
    Acc x = static_cast<Acc>(*value++);
    g.apply(&x, 1);
    return static_cast<T>(x);
  });
  expect_equal(ours, expected, "activation");

  error_signal<T>(g, grad.read().data, kept.read().data, ours.view().data, count);
  error_signal_bias_grad<T>(g, grad.read().data, kept.read().data, again.view().data, size,
                            bias_grad.view().data);
  const T *from = grad.read().data, *from_kept = kept.read().data;
  std::vector<double> sums(size.channels);
  int64_t index = 0;
  expected.each([&](T) {
    Acc x = static_cast<Acc>(from[index]);
    const Acc k = static_cast<Acc>(from_kept[index]);
    g.error_signal(&x, &k, &x, 1);
    sums[index++ / size.inner % size.channels] += static_cast<double>(x);
    return static_cast<T>(x);
  });
  expect_equal(ours, expected, "error_signal");
  expect_equal(again, expected, "error_signal_bias_grad");
  const double* sum = sums.data();
  expected_bias_grad.each([&](T) { return static_cast<T>(static_cast<Acc>(*sum++)); });
  if (exact) expect_equal(bias_grad, expected_bias_grad, "error_signal_bias_grad, bias");
}

void try_scratch() {
  for (const int64_t count : {int64_t{-1}, std::numeric_limits<int64_t>::max(), int64_t{1} << 61})
    try {
      Scratch::take<double>(ScratchName::kPatch, count);
      expect(false, "scratch memory of " + std::to_string(count) + " numbers");
    } catch (const std::bad_alloc&) {
      expect(Scratch::take<double>(ScratchName::kPatch, 3).data<double>() != nullptr, "scratch");
    }
}

// Each problem has a thread of its own, and with it scratch memory of its own.
void in_a_new_thread(void (*body)(Random&), uint64_t seed, const char* name) {
  std::string failure;
  std::thread([&] {
    Random random(seed);
    threads = random.one_of<int64_t>({1, 2, 3});
    try {
      body(random);
    } catch (const std::exception& error) {
      failure = error.what();
    }
  }).join();
  if (failure.empty()) return;
  std::fprintf(stderr, "FAILED: %s (%s, seed %llu)\n", failure.c_str(), name,
               static_cast<unsigned long long>(seed));
  std::exit(1);
}

template <typename T>
void try_all(const char* name, int64_t problems, uint64_t seed) {
  for (int64_t i = 0; i < problems; ++i) {
    in_a_new_thread(try_convolution<T>, seed + i, name);
    if constexpr (!std::is_same_v<T, double>) in_a_new_thread(try_winograd<T>, seed + i, name);
    if constexpr (sizeof(T) >= 4) {
      in_a_new_thread(try_depthwise<T>, seed + i, name);
      in_a_new_thread(try_pointwise<T>, seed + i, name);
      in_a_new_thread(try_grouped<T>, seed + i, name);
    }
    in_a_new_thread(try_pools<T>, seed + i, name);
    in_a_new_thread(try_elementwise<T>, seed + i, name);
  }
}

// A kernel is told something that is not so. Whoever looks must see it.
int tell_a_lie(const std::string& name) {
  ConvProblem p{4, 1, 3, 5, {6, 6}, {3, 3}, {4, 4}, {1, 1}, {0, 0}, {1, 1}};
  const bool is_short = name == "read", is_shared = name == "race";
  Random random(1);
  Tensor<float> input({4, 3, 6, 6}, Layout::kContiguous, is_short);
  if (!is_short) input.fill(random);
  Tensor<float> weight({5, 3, 3, 3}), output({4, 5, 4, 4}, Layout::kContiguous, name == "write");
  weight.fill(random);
  View<float> result = output.view();
  threads = 4;
  if (is_shared) result.stride[0] = 0;  // all images are written to one place
  if (name == "overflow") p.stride[kHeight] = int64_t{1} << 62;
  direct::conv2d<float>(p, input.read(), weight.read(), {}, result);
  if (name == "result") {
    Tensor<float> expected({4, 5, 4, 4});
    weight.view().at(4, 2, 2, 2) += 1.f;
    reference::conv2d<float>(p, input.read(), weight.read(), {}, expected.view());
    expect_equal(output, expected, "conv2d");
  }
  std::printf("nobody noticed\n");
  return 0;
}

}  // namespace
}  // namespace convbp::sanitize

int main(int argc, char** argv) {
  using namespace convbp::sanitize;
  const auto start = std::chrono::steady_clock::now();
  if (argc == 3 && argv[1] == std::string("--lie")) try {
      return tell_a_lie(argv[2]);
    } catch (const std::exception& error) {
      std::fprintf(stderr, "FAILED: %s\n", error.what());
      return 1;
    }
  const int64_t problems = argc > 1 ? std::atoll(argv[1]) : 100;
  const uint64_t seed = argc > 2 ? std::strtoull(argv[2], nullptr, 10) : 0;
  try_scratch();
  try_all<float>("float32", problems, seed);
  try_all<double>("float64", problems, seed);
  try_all<convbp::BFloat16>("bfloat16", problems, seed);
  try_all<convbp::Half>("float16", problems, seed);
  const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;
  std::printf(
      "%s: %lld comparisons on %lld random problems a kernel and element type, all equal "
      "(%.0f s)\n",
      convbp::capability_name(), static_cast<long long>(comparisons),
      static_cast<long long>(problems), seconds.count());
}
