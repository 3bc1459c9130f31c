"""A layer's parameters as the lecture writes them, and as torch does.

The lecture flips its filters and subtracts its biases; torch does neither, and adds one bias for
each output map where the lecture has one for each pair of maps:

    convolution   weight[o, k] = w̃_ok (w_ok flipped)   bias[o] = -sum_k b_ok   (L1, L2)
    dense layer   weight[i, j] = W_ij                   bias[i] = -b_i          (L7)

Shapes: a convolution has w [O, K / groups, R, S] and b [O, K / groups], a dense layer w [I, J] and
b [I]; torch's weight has w's shape, its bias is [O] or [I]. All functions are differentiable and
work on any dtype and device.
"""

from __future__ import annotations

from typing import overload

from torch import Tensor

from torch_convbp.ops import checks

__all__ = ["from_torch", "gradients_from_torch", "to_torch"]


def _check(function: str, name: str, w: Tensor) -> None:
    checks.check_is_tensor(function, **{name: w})
    if w.dim() not in (2, 4):
        raise RuntimeError(
            f"Expected 4D {name} of a convolution or 2D {name} of a dense layer, "
            f"but got {name} of size: {list(w.shape)}"
        )


def flip(w: Tensor) -> Tensor:
    """w̃: the filters turned by 180 degrees. Flipping twice gives w back."""
    checks.check_is_tensor("flip", w=w)
    return w.flip(-2, -1)


def to_torch(w: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """The lecture's (w, b) as torch's (weight, bias).

    Raises:
        RuntimeError: w has neither four dimensions nor two, or b does not fit to it.
    """
    _check("to_torch", "w", w)
    checks.check_is_tensor("to_torch", b=b)
    expected = w.shape[:2] if w.dim() == 4 else w.shape[:1]
    if b.shape != expected:
        raise RuntimeError(
            f"Given w of size {list(w.shape)}, expected b of size {list(expected)}, "
            f"but got b of size {list(b.shape)}"
        )
    return (flip(w), -b.sum(1)) if w.dim() == 4 else (w, -b)


@overload
def from_torch(weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]: ...
@overload
def from_torch(weight: Tensor, bias: None = None) -> tuple[Tensor, None]: ...
def from_torch(weight: Tensor, bias: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
    """torch's (weight, bias) as the lecture's (w, b).

    The lecture has K / groups biases for each output map; from_torch returns equal ones, whose sum
    is -bias.

    Raises:
        RuntimeError: weight has neither four dimensions nor two.
    """
    _check("from_torch", "weight", weight)
    if weight.dim() == 2:
        return weight, None if bias is None else -bias
    maps = weight.shape[1]
    return flip(weight), None if bias is None else (-bias / maps)[:, None].expand(-1, maps)


@overload
def gradients_from_torch(weight_grad: Tensor, bias_grad: Tensor) -> tuple[Tensor, Tensor]: ...
@overload
def gradients_from_torch(weight_grad: Tensor, bias_grad: None = None) -> tuple[Tensor, None]: ...
def gradients_from_torch(
    weight_grad: Tensor, bias_grad: Tensor | None = None
) -> tuple[Tensor, Tensor | None]:
    """(dL/dweight, dL/dbias) as the lecture's (dL/dw, dL/db): L4 flipped, L5 with its sign.

    Raises:
        RuntimeError: weight_grad has neither four dimensions nor two.
    """
    _check("gradients_from_torch", "weight_grad", weight_grad)
    if weight_grad.dim() == 2:
        return weight_grad, None if bias_grad is None else -bias_grad
    w_grad = flip(weight_grad)
    if bias_grad is None:
        return w_grad, None
    return w_grad, -bias_grad[:, None].expand(-1, weight_grad.shape[1])
