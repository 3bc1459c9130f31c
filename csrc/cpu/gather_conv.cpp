#include "cpu/gather_conv.h"

#include <utility>

#include "cpu/parallel.h"

namespace convbp {

ConvAxis forward_axis(const ConvProblem& p, Spatial axis) {
  ConvAxis a;
  a.count = p.out_size[axis];
  a.source_size = p.in_size[axis];
  a.step = p.stride[axis];
  for (int64_t tap = 0; tap < p.kernel[axis]; ++tap) {
    a.taps.push_back(tap);
    a.offset.push_back(p.input_position(axis, 0, tap));
  }
  return a;
}

// The input positions i = phase, phase + stride, ...: tap r reaches them from output
// position m = (i + pad - r * dilation) / stride, where that is a whole number.
ConvAxis input_grad_axis(const ConvProblem& p, Spatial axis, int64_t phase) {
  ConvAxis a;
  a.count = divide_up(p.in_size[axis] - phase, p.stride[axis]);
  a.first = phase;
  a.spacing = p.stride[axis];
  a.source_size = p.out_size[axis];
  for (int64_t tap = p.kernel[axis] - 1; tap >= 0; --tap) {  // in the order of ascending offsets
    const int64_t reach = phase - p.input_position(axis, 0, tap);
    if (reach % p.stride[axis]) continue;
    a.taps.push_back(tap);
    a.offset.push_back(reach / p.stride[axis]);
  }
  return a;
}

std::vector<ConvAxis> input_grad_axes(const ConvProblem& p, Spatial axis) {
  std::vector<ConvAxis> phases;
  for (int64_t i = 0; i < std::min(p.stride[axis], p.in_size[axis]); ++i)
    phases.push_back(input_grad_axis(p, axis, i));
  return phases;
}

int64_t balanced_tile(int64_t count, int64_t tile) {
  if (count == 0) return 1;
  return divide_up(count, divide_up(count, tile));
}

// Tiles do not change what an output element is made of, so the cut may depend on the number of
// threads.
void spread_over_threads(GatherConv& c, int64_t unit, int64_t least_pixels) {
  const int64_t threads = thread_count();
  const int64_t wanted = threads > 1 ? 3 * threads : 1;
  while (c.pixel_tasks() < wanted && c.batch_tile > 1) c.batch_tile = divide_up(c.batch_tile, 2);
  while (c.pixel_tasks() < wanted && c.h.tile * c.w.tile > least_pixels && c.h.tile > unit)
    c.h.set_tile(divide_up(divide_up(c.h.tile, 2), unit) * unit);
  c.oc_split = std::min(c.blocks(), divide_up(wanted, c.pixel_tasks()));
}

GatherConv make_gather_conv(const ConvProblem& p, ConvAxis h, ConvAxis w, int64_t in_channels,
                            int64_t out_channels, int64_t vector) {
  GatherConv c;
  c.batch = p.batch;
  c.h = std::move(h);
  c.w = std::move(w);
  c.channels = p.groups * out_channels;
  c.depthwise = p.groups > 1 && in_channels == 1 && out_channels == 1;
  if (c.depthwise) {
    c.oc_block = c.in_channels = c.out_channels = channel_block(c.channels, vector);
    c.groups = divide_up(c.channels, c.oc_block);
  } else {
    c.oc_block = channel_block(out_channels, vector);
    c.groups = p.groups;
    c.in_channels = in_channels;
    c.out_channels = out_channels;
  }
  return c;
}

// Strides of the gather convolution's groups and channels in the weight. Depthwise, a channel is a
// group of its own, and the next channel is a whole filter bank away.
WeightStrides weight_strides(const ConvProblem& p, const GatherConv& c, const int64_t* stride,
                             int out_channel, int in_channel) {
  const int64_t group = p.out_channels * stride[0];
  if (c.depthwise) return {c.oc_block * group, group, stride[in_channel], stride[2], stride[3]};
  return {group, stride[out_channel], stride[in_channel], stride[2], stride[3]};
}

}  // namespace convbp
