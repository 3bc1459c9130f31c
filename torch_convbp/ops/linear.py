"""The operator of the dense layer (L7), whose matrix product is torch's own."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from torch_convbp.ops import checks
from torch_convbp.ops.autocast import autocast
from torch_convbp.ops.registration import Ints, refuse_what_is_not_dense, register

linear = torch.ops.torch_convbp.linear.default


def _linear(input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """L7's matrix product is torch's own, on every device."""
    checks.check_is_tensor("linear", input=input, weight=weight)
    checks.check_same_device("weight", weight, "input", input)
    if bias is not None:
        checks.check_same_device("bias", bias, "input", input)
    return F.linear(input, weight, bias)


register(linear, "CompositeExplicitAutograd", _linear)


@torch.library.register_vmap("torch_convbp::linear")
def _(info: Any, in_dims: Any, input: Tensor, weight: Tensor, bias: Tensor | None) -> Any:
    input_dim, weight_dim, bias_dim = in_dims[:3]
    # F.linear refuses some biases of several dimensions when the input has one more.
    if weight_dim is None and bias_dim is None and (bias is None or bias.dim() < 2):
        return linear(input.movedim(input_dim, 0), weight, bias), 0

    def batched(tensor: Tensor, dim: int | None) -> Tensor:
        return tensor.movedim(dim, 0) if dim is not None else tensor.expand(size, *tensor.shape)

    size = info.batch_size
    rows, filters = batched(input, input_dim), batched(weight, weight_dim)
    *outputs, features = filters.shape[1:]
    products = torch.matmul(
        rows.reshape(size, math.prod(rows.shape[1:-1]), rows.shape[-1]),
        filters.reshape(size, math.prod(outputs), features).mT,
    )
    output = products.reshape(*rows.shape[:-1], *outputs)
    if bias is not None:
        shifts = batched(bias, bias_dim)
        ones = (1,) * (output.dim() - shifts.dim())  # a bias aligns with the last dimensions
        output = output + shifts.reshape(size, *ones, *shifts.shape[1:])
    return output, 0


register(linear, "AutocastCPU", autocast(linear, "cpu"))
register(linear, "AutocastCUDA", autocast(linear, "cuda"))


@register_flop_formula([torch.ops.torch_convbp.linear])
def _(input: Ints, weight: Ints, *_: Any, out_shape: Ints, **__: Any) -> int:
    return 2 * math.prod(out_shape) * weight[1]


refuse_what_is_not_dense((linear,))
