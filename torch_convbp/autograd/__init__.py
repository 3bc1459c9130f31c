"""The derivatives: the backward pass L3 to L8, and the derivatives of that pass.

Start with conv2d.py. Each file has the torch.autograd.Functions of its operators, and registers
them when this package is imported.
"""

from torch_convbp.autograd import activation, conv2d, linear, pool2d

__all__ = ["activation", "conv2d", "linear", "pool2d"]
