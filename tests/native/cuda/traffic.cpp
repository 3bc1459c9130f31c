// What the CUDA kernels ask of memory, for layers of known networks: how many sectors of global
// memory and turns of shared memory they take, and how many they would take at least (accesses.h).
// It is no time, and says nothing of what the caches keep. It prints a table (table.h).
//
//   traffic [layer [type]]   all layers and element types, or those of this name
#include <algorithm>
#include <deque>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "cuda/depthwise/depthwise.h"
#include "cuda/elementwise/elementwise.h"
#include "cuda/implicit_gemm/implicit_gemm.h"
#include "cuda/pool/pool.h"
#include "cuda/reference/conv2d.h"
#include "../sanitize/tensor.h"
#include "accesses.h"
#include "table.h"

namespace convbp::traffic {
namespace {

using sanitize::Layout;
using sanitize::Random;
using sanitize::Size;
using sanitize::Tensor;

// --- a launch -------------------------------------------------------------------------------

// Runs one operator, and keeps what its kernels asked for.
class Run final : public cuda::Context {
 public:
  Run(std::vector<Line>& lines, std::string title) : lines_(lines), title_(std::move(title)) {
    stream = nullptr;
    multiprocessors = 132;  // an H100
  }
  void* scratch(int64_t bytes) override {
    held_.emplace_back(new char[bytes]());
    names_.push_back("scratch " + std::to_string(held_.size()));
    add(names_.back().c_str(), held_.back().get(), bytes);
    return held_.back().get();
  }
  template <typename T>
  Run& tensor(const char* name, Tensor<T>& tensor) {
    add(name, tensor.view().data, tensor.count() * sizeof(T));
    return *this;
  }
  void finish() {
    std::map<std::string, Line> by_kernel;
    for (Requests& r : take()) {
      Line& line = by_kernel[r.kernel];
      line.title = title_, line.kernel = r.kernel, line.size = size_;
      line.requests.push_back(std::move(r));
    }
    for (auto& [kernel, line] : by_kernel) {
      std::sort(line.requests.begin(), line.requests.end(),
                [](const auto& a, const auto& b) { return a.cost - a.least > b.cost - b.least; });
      lines_.push_back(std::move(line));
    }
  }

 private:
  void add(const char* name, const void* data, int64_t bytes) {
    watch(name, data, bytes);
    size_[name] = bytes;
  }

  std::vector<Line>& lines_;
  std::string title_;
  std::map<std::string, int64_t> size_;
  std::deque<std::string> names_;
  std::vector<std::unique_ptr<char[]>> held_;
};

// --- layers ---------------------------------------------------------------------------------

enum class Algorithm { kGemm, kDepthwise, kReference };

struct Layer {
  const char* name;
  Algorithm algorithm;
  int64_t batch, groups, in_channels, out_channels, size, kernel, stride;
  int tile = -1;  // of the implicit GEMM, as in its Options
};

const Layer kLayers[] = {
    {"3x3-64", Algorithm::kGemm, 1, 1, 64, 64, 14, 3, 1},
    {"3x3-128", Algorithm::kGemm, 1, 1, 128, 128, 8, 3, 1, 0},
    {"3x3-128/2", Algorithm::kGemm, 1, 1, 64, 128, 14, 3, 2, 1},
    {"1x1-256", Algorithm::kGemm, 1, 1, 64, 256, 14, 1, 1},
    {"1x1-100", Algorithm::kGemm, 1, 1, 30, 100, 14, 1, 1},
    {"stem-7x7", Algorithm::kGemm, 1, 1, 3, 64, 56, 7, 2},
    {"stem-3x3", Algorithm::kGemm, 1, 1, 3, 16, 32, 3, 1},
    {"depthwise-3x3", Algorithm::kDepthwise, 2, 96, 1, 1, 28, 3, 1},
    {"depthwise-3x3/2", Algorithm::kDepthwise, 2, 96, 1, 1, 28, 3, 2},
    {"depthwise-5x5", Algorithm::kDepthwise, 2, 96, 1, 1, 28, 5, 1},
    {"depthwise-5x5/2", Algorithm::kDepthwise, 2, 96, 1, 1, 28, 5, 2},
    {"depthwise-7x7", Algorithm::kDepthwise, 2, 96, 1, 1, 28, 7, 1},
    {"depthwise-9x9", Algorithm::kDepthwise, 1, 32, 1, 1, 16, 9, 1},
    {"reference-3x3", Algorithm::kReference, 1, 1, 8, 16, 14, 3, 1},
};

int64_t output_size(int64_t size, int64_t kernel, int64_t stride) {
  return (size + 2 * (kernel / 2) - kernel) / stride + 1;
}

template <typename T>
void run_convolution(std::vector<Line>& lines, const Layer& layer, const std::string& title,
                     Layout layout, bool tf32) {
  const int64_t out = output_size(layer.size, layer.kernel, layer.stride);
  const int64_t pad = layer.kernel / 2;
  const ConvProblem p{layer.batch,
                      layer.groups,
                      layer.in_channels,
                      layer.out_channels,
                      {layer.size, layer.size},
                      {layer.kernel, layer.kernel},
                      {out, out},
                      {layer.stride, layer.stride},
                      {pad, pad},
                      {1, 1}};
  const int64_t filters = layer.groups * layer.out_channels;
  const Size of_input{layer.batch, layer.groups * layer.in_channels, layer.size, layer.size};
  const Size of_weight{filters, layer.in_channels, layer.kernel, layer.kernel};
  Tensor<T> input(of_input, layout), weight(of_weight, layout);
  Tensor<T> output({layer.batch, filters, out, out}, layout), bias({1, 1, 1, filters});
  Epilogue<T> epilogue;
  epilogue.bias = bias.read().data;
  epilogue.activation.row = 0;  // ReLU
  const cuda::gemm::Options options{tf32, layer.tile};
  const auto operators = [&](Run run, auto&& reference, auto&& depthwise, auto&& gemm) {
    run.tensor("input", input).tensor("weight", weight).tensor("output", output);
    run.tensor("bias", bias);
    if (layer.algorithm == Algorithm::kReference) reference(run);
    if (layer.algorithm == Algorithm::kDepthwise) depthwise(run);
    if (layer.algorithm == Algorithm::kGemm) gemm(run);
    run.finish();
  };
#define CONVBP_RUN(name, function, ...)                                                         \
  operators(                                                                                    \
      {lines, title + name}, [&](Run& run) { cuda::reference::function<T>(run, __VA_ARGS__); }, \
      [&](Run& run) { cuda::depthwise::function<T>(run, __VA_ARGS__); },                        \
      [&](Run& run) { cuda::gemm::function<T>(run, __VA_ARGS__, options); })
  CONVBP_RUN("forward", conv2d, p, input.read(), weight.read(), epilogue, output.view());
  CONVBP_RUN("input gradient", conv2d_input_grad, p, weight.read(), output.read(), input.view());
  CONVBP_RUN("weight gradient", conv2d_weight_grad, p, input.read(), output.read(), weight.view(),
             bias.view().data);
#undef CONVBP_RUN
  if (layer.algorithm == Algorithm::kDepthwise) {
    Tensor<T> kept({layer.batch, filters, out, out}, layout), input_grad(of_input, layout);
    Tensor<T> weight_grad(of_weight, layout);
    Run run(lines, title + "backward");
    run.tensor("input", input).tensor("weight", weight).tensor("grad", output).tensor("kept", kept);
    run.tensor("input_grad", input_grad).tensor("weight_grad", weight_grad).tensor("bias", bias);
    cuda::depthwise::backward<T>(run, p, {{0}, output.read(), kept.read()}, input.read(),
                                 weight.read(), input_grad.view(), weight_grad.view(),
                                 bias.view().data);
    run.finish();
  }
}

template <typename T>
void run_pools(std::vector<Line>& lines, const std::string& title, Layout layout, int64_t kernel) {
  constexpr int64_t kSize = 28, kChannels = 64;
  const int64_t out = output_size(kSize, kernel, 2), pad = kernel / 2;
  const PoolProblem p{1,          kChannels, {kSize, kSize}, {kernel, kernel},
                      {out, out}, {2, 2},    {pad, pad}};
  Tensor<T> input({1, kChannels, kSize, kSize}, layout), output({1, kChannels, out, out}, layout);
  Tensor<uint8_t> offset({1, kChannels, out, out}, layout);
  Random random(0);
  input.fill(random, 100);
  const auto run = [&](const char* name, const auto& body) {
    Run run(lines, title + name);
    run.tensor("input", input).tensor("output", output).tensor("offset", offset);
    body(run);
    run.finish();
  };
  using namespace cuda::pool;
  run("max", [&](Run& run) {
    max_pool2d<T, uint8_t>(run, p, input.read(), output.view(), offset.view());
  });
  run("max, gather", [&](Run& run) {
    max_pool2d_gather<T, uint8_t>(run, p, input.read(), offset.read(), output.view());
  });
  run("max, input gradient", [&](Run& run) {
    max_pool2d_input_grad<T, uint8_t>(run, p, output.read(), offset.read(), input.view());
  });
  run("average", [&](Run& run) { avg_pool2d<T>(run, p, input.read(), output.view()); });
  run("average, input gradient",
      [&](Run& run) { avg_pool2d_input_grad<T>(run, p, output.read(), input.view()); });
}

template <typename T>
void run_elementwise(std::vector<Line>& lines, const std::string& title, Layout layout) {
  constexpr int64_t kBatch = 2, kSize = 14, kChannels = 96;
  const Size size{kBatch, kChannels, kSize, kSize};
  Tensor<T> grad(size, layout), kept(size, layout), delta(size, layout);
  Tensor<T> bias_grad({1, 1, 1, kChannels});
  const Channels channels = layout == Layout::kContiguous
                                ? Channels{kBatch, kChannels, kSize * kSize}
                                : Channels{kBatch * kSize * kSize, kChannels, 1};
  const activation::Activation<Accumulator<T>> relu{0};
  Run run(lines, title + "element-wise");
  run.tensor("grad", grad).tensor("kept", kept).tensor("delta", delta);
  run.tensor("bias_grad", bias_grad);
  cuda::activate<T>(run, relu, grad.read().data, delta.view().data, grad.count());
  cuda::error_signal<T>(run, relu, grad.read().data, kept.read().data, delta.view().data,
                        grad.count());
  cuda::error_signal_bias_grad<T>(run, relu, grad.read().data, kept.read().data, delta.view().data,
                                  channels, bias_grad.view().data);
  run.finish();
}

template <typename T>
void run_all(std::vector<Line>& lines, const std::string& layer_only, const std::string& type,
             bool tf32) {
  const auto wanted = [&](const std::string& name) {
    return layer_only.empty() || name == layer_only;
  };
  for (const Layout layout : {Layout::kContiguous, Layout::kChannelsLast}) {
    const std::string rest =
        "; " + type + "; " + (layout == Layout::kContiguous ? "NCHW" : "channels_last") + "; ";
    for (const Layer& layer : kLayers)
      if (wanted(layer.name) && (!tf32 || layer.algorithm == Algorithm::kGemm))
        run_convolution<T>(lines, layer, layer.name + rest, layout, tf32);
    if (tf32) continue;
    for (const int64_t kernel : {2, 3}) {
      const std::string name = "pool-" + std::to_string(kernel);
      if (wanted(name)) run_pools<T>(lines, name + rest, layout, kernel);
    }
    if (wanted("elementwise")) run_elementwise<T>(lines, "elementwise" + rest, layout);
  }
}

int run(const std::string& layer, const std::string& type) {
  std::vector<Line> lines;
  const auto wanted = [&](const char* name) { return type.empty() || type == name; };
  if (wanted("bfloat16")) run_all<BFloat16>(lines, layer, "bfloat16", false);
  if (wanted("float32")) run_all<float>(lines, layer, "float32", false);
  if (wanted("TF32")) run_all<float>(lines, layer, "TF32", true);
  print(lines);
  return lines.empty();
}

}  // namespace
}  // namespace convbp::traffic

int main(int count, char** values) {
  const auto value = [&](int i) { return i < count ? values[i] : ""; };
  return convbp::traffic::run(value(1), value(2));
}
