"""Tensor subclasses that know torch's functions alone get torch's function."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from cases import normal
from torch import Tensor
from torch.utils._pytree import tree_map
from twins import Calls

import torch_convbp as bp

f = bp.functional


class Overrides(Tensor):
    """Computes four functions by itself; the others as they are."""

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.__name__ in ("conv2d", "linear", "max_pool2d", "avg_pool2d"):
            return torch.tensor([-7.0, 7.0])
        with torch._C.DisableTorchFunctionSubclass():
            return func(*args, **(kwargs or {}))


class Wraps(Tensor):
    """Has a rule for each of torch's operators, and for no other."""

    inner: Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls: Any, inner: Tensor) -> Any:
        wrapper = Tensor._make_wrapper_subclass(cls, inner.shape, dtype=inner.dtype)
        wrapper.inner = inner
        return wrapper

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace != "aten":
            raise NotImplementedError(f"no rule for {func}")
        args, kwargs = tree_map(lambda t: t.inner if type(t) is cls else t, (args, kwargs or {}))
        return tree_map(lambda t: cls(t) if isinstance(t, Tensor) else t, func(*args, **kwargs))


class Declines(Wraps):
    """The same, in torch's words for it."""

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace != "aten":
            return NotImplemented
        return super().__torch_dispatch__(func, types, args, kwargs)


class Plain(Tensor):
    """Changes nothing."""


INPUT, WEIGHT = normal((2, 3, 6, 6), torch.float32, 0), normal((4, 3, 3, 3), torch.float32, 1)
MATRIX = normal((2, 6), torch.float32, 2)
CALLS: dict[str, Callable[[Any, Callable[[Tensor], Tensor]], Tensor]] = {
    "conv2d": lambda m, sub: m.conv2d(sub(INPUT), sub(WEIGHT), None, 1, "same"),
    "linear": lambda m, sub: m.linear(sub(INPUT), weight=sub(MATRIX)),
    "max_pool2d": lambda m, sub: m.max_pool2d(sub(INPUT), 2),
    "avg_pool2d": lambda m, sub: m.avg_pool2d(sub(INPUT), 2, padding=1),
}
WEIGHT_ALONE: dict[str, Callable[[Any, Callable[[Tensor], Tensor]], Tensor]] = {
    "conv2d, its weight": lambda m, sub: m.conv2d(INPUT, sub(WEIGHT), stride=2),
    "linear, its weight": lambda m, sub: m.linear(INPUT, sub(MATRIX)),
}


@pytest.mark.parametrize("name", [*CALLS, *WEIGHT_ALONE])
@pytest.mark.parametrize("kind", [Overrides, Wraps, Declines])
def test_torchs_function_is_called(kind: Any, name: str) -> None:
    call = {**CALLS, **WEIGHT_ALONE}[name]
    sub = kind if issubclass(kind, Wraps) else lambda t: t.as_subclass(kind)
    expected, got = (call(module, sub) for module in (F, f))
    assert type(got) is type(expected)
    inner = [t.inner if isinstance(t, Wraps) else t for t in (got, expected)]
    torch.testing.assert_close(*inner)


def test_with_an_activation() -> None:
    got = f.conv2d(INPUT, WEIGHT.as_subclass(Overrides), activation="leaky_relu(0.5)")
    assert torch.equal(got, torch.tensor([-3.5, 7.0]))


def test_layer_with_such_a_weight() -> None:
    layer = bp.LinearBP(6, 2, activation="relu")
    layer.weight = torch.nn.Parameter(Wraps(normal((2, 6), torch.float32, 2)), requires_grad=False)
    layer.bias = None
    output: Any = layer(INPUT)
    torch.testing.assert_close(output.inner, F.relu(F.linear(INPUT, layer.weight.inner)))


@pytest.mark.parametrize("name", CALLS)
def test_plain_subclass_has_our_operators(name: str) -> None:
    with Calls() as calls:
        output = CALLS[name](f, lambda t: t.as_subclass(Plain))
    assert type(output) is Plain and calls.names
