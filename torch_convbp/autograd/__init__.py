"""The derivatives: the backward pass L3 to L8, and that of the backward pass itself.

Start with conv2d.py. Each file has the torch.autograd.Functions of its operators, and registers
them: whoever imports this package has derivatives.
"""

from torch_convbp.autograd import activation, conv2d, linear, pool2d

__all__ = ["activation", "conv2d", "linear", "pool2d"]
