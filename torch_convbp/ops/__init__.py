"""The operators ``torch.ops.torch_convbp.*``: what torch must know of them besides their CPU and
CUDA kernels, which are in csrc/.

Schemas are in csrc/torch/schema.cpp, derivatives in autograd/. Each operator's file registers its
fake kernel (shapes, strides and checks without data), its batching and autocast rules, its number
of floating point operations, and the errors for tensors and devices without kernels.
"""
