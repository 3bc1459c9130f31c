"""The activations g of the lecture's layer (L2), and the error signal of each (L3).

A row has g, and delta = g'(p) ⊙ dL/da in terms of the *saved* tensor: the output a = g(p) where
g' follows from a, else the pre-activation p. csrc/core/activation.h has the same rows for the
kernels, and a test compares the two.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = [
    "TABLE",
    "Activation",
    "ActivationLike",
    "Row",
    "bias_grad",
    "check",
    "error_signal",
    "of_module",
    "parse",
]


class Activation(NamedTuple):
    """A row's name and all its parameters, as in ``leaky_relu(0.2)``."""

    name: str
    parameters: tuple[float, ...] = ()

    def __str__(self) -> str:
        row = TABLE.get(self.name)
        if row is not None and self.parameters == tuple(row.parameters.values()):
            return self.name
        return f"{self.name}({', '.join(f'{p:g}' for p in self.parameters)})"

    @property
    def saves_output(self) -> bool:
        """Is the output saved for the error signal, rather than the pre-activation?"""
        saves = TABLE[self.name].saves_output
        return saves(*self.parameters) if callable(saves) else saves


class Row(NamedTuple):
    """One activation.

    error_signal(grad, saved, *parameters) is delta, in torch's own differentiable operators, so
    delta can be differentiated to any order.
    """

    g: Callable[..., Tensor]
    error_signal: Callable[..., Tensor]
    saves_output: bool | Callable[..., bool]
    module: type[nn.Module]
    # Name of each parameter, which is the module's attribute too, and its default.
    parameters: Mapping[str, float] = {}


def _zero(grad: Tensor) -> Tensor:
    return torch.zeros((), dtype=grad.dtype, device=grad.device)


def _relu(grad: Tensor, a: Tensor) -> Tensor:
    return torch.where(a <= 0, _zero(grad), grad)


def _leaky_relu(grad: Tensor, a: Tensor, slope: float) -> Tensor:
    return torch.where(a > 0, grad, grad * slope)


def _relu6(grad: Tensor, a: Tensor) -> Tensor:
    return torch.where((a <= 0) | (a >= 6), _zero(grad), grad)


def _sigmoid(grad: Tensor, a: Tensor) -> Tensor:
    return grad * (1 - a) * a


def _tanh(grad: Tensor, a: Tensor) -> Tensor:
    return grad * (1 - a * a)


def _silu(grad: Tensor, p: Tensor) -> Tensor:
    s = torch.sigmoid(p)
    return grad * s * (1 + p * (1 - s))


def _gelu(grad: Tensor, p: Tensor) -> Tensor:
    below = 0.5 * (1 + torch.erf(p * math.sqrt(0.5)))
    density = torch.exp(-0.5 * p * p) / math.sqrt(2 * math.pi)
    return grad * (below + p * density)


def _gelu_tanh(grad: Tensor, p: Tensor) -> Tensor:
    scale = math.sqrt(2 / math.pi)
    t = torch.tanh(scale * (p + 0.044715 * p**3))
    slope = scale * (1 + 3 * 0.044715 * p * p)
    return grad * (0.5 * (1 + t) + 0.5 * p * (1 - t * t) * slope)


def _hardswish(grad: Tensor, p: Tensor) -> Tensor:
    between = torch.where(p >= 3, grad, grad * (p / 3 + 0.5))
    return torch.where(p <= -3, _zero(grad), between)


def _softplus(grad: Tensor, p: Tensor, beta: float, threshold: float) -> Tensor:
    return torch.where(p * beta > threshold, grad, grad * torch.sigmoid(p * beta))


def _hardsigmoid(grad: Tensor, a: Tensor) -> Tensor:
    return torch.where((a > 0) & (a < 1), grad / 6, _zero(grad))


def _mish(grad: Tensor, p: Tensor) -> Tensor:
    t = torch.tanh(F.softplus(p))
    return grad * (t + p * torch.sigmoid(p) * (1 - t * t))


def _elu(grad: Tensor, saved: Tensor, alpha: float) -> Tensor:
    below = saved + alpha if alpha >= 0 else alpha * torch.exp(saved)
    return torch.where(saved > 0, grad, grad * below)


def _gelu_tanh_g(p: Tensor) -> Tensor:
    return F.gelu(p, approximate="tanh")


def _keeps_sign(slope: float) -> bool:
    return slope >= 0


TABLE: Mapping[str, Row] = {
    "relu": Row(F.relu, _relu, True, nn.ReLU),
    "leaky_relu": Row(
        F.leaky_relu, _leaky_relu, _keeps_sign, nn.LeakyReLU, {"negative_slope": 0.01}
    ),
    "relu6": Row(F.relu6, _relu6, True, nn.ReLU6),
    "sigmoid": Row(torch.sigmoid, _sigmoid, True, nn.Sigmoid),
    "tanh": Row(torch.tanh, _tanh, True, nn.Tanh),
    "silu": Row(F.silu, _silu, False, nn.SiLU),
    "gelu": Row(F.gelu, _gelu, False, nn.GELU),
    "gelu_tanh": Row(_gelu_tanh_g, _gelu_tanh, False, nn.GELU),
    "hardswish": Row(F.hardswish, _hardswish, False, nn.Hardswish),
    "softplus": Row(F.softplus, _softplus, False, nn.Softplus, {"beta": 1.0, "threshold": 20.0}),
    "hardsigmoid": Row(F.hardsigmoid, _hardsigmoid, True, nn.Hardsigmoid),
    "mish": Row(F.mish, _mish, False, nn.Mish),
    "elu": Row(F.elu, _elu, _keeps_sign, nn.ELU, {"alpha": 1.0}),
}

# Types that users may pass as an activation.
ActivationLike: TypeAlias = str | nn.Module | Activation | None


def parse(function: str, activation: ActivationLike) -> Activation | None:
    """``"relu"``, ``"leaky_relu(0.2)"`` or a torch.nn module as an Activation; None stays None.

    Raises:
        ValueError: activation is unknown, has a wrong number of parameters, or one is no number.
        TypeError: activation is neither a name nor a module of a known type.
    """
    if activation is None:
        return None
    if isinstance(activation, Activation):
        return _checked(function, activation, activation)
    if isinstance(activation, nn.Module):
        return _checked(function, _of_module(function, activation), activation)
    if isinstance(activation, str):
        return _of_name(function, activation)
    raise TypeError(
        f"{function}(): argument 'activation' must be None, a name or a torch.nn module, "
        f"not {type(activation).__name__}"
    )


def _of_name(function: str, text: str) -> Activation:
    name, bracket, rest = (part.strip() for part in text.partition("("))
    defaults = tuple(TABLE[name].parameters.values()) if name in TABLE else ()
    inside = rest.removesuffix(")").strip()
    try:
        if bracket and not rest.endswith(")"):
            raise ValueError
        values = tuple(float(p) for p in inside.split(",")) if inside else ()
    except ValueError:
        values = (math.nan,)
    return _checked(function, Activation(name, values + defaults[len(values) :]), text)


def _checked(function: str, g: Activation, given: Any) -> Activation:
    """g, if the table has it with those parameters."""
    if g.name not in TABLE:
        raise ValueError(
            f"{function}(): argument 'activation' must be one of {', '.join(TABLE)}, "
            f"but got {given!r}"
        )
    if not _has_its_parameters(g):
        takes = " and ".join(TABLE[g.name].parameters) or "no parameters"
        raise ValueError(f"{function}(): activation {g.name} takes {takes}, but got {given!r}")
    return g


def _has_its_parameters(g: Activation) -> bool:
    return len(g.parameters) == len(TABLE[g.name].parameters) and all(
        isinstance(p, (int, float)) and p == p for p in g.parameters
    )


def _of_module(function: str, module: nn.Module) -> Activation:
    activation = _as_written(module)
    if activation is None:
        known = ", ".join(dict.fromkeys(f"nn.{row.module.__name__}" for row in TABLE.values()))
        raise TypeError(
            f"{function}(): argument 'activation' must be one of {known}, but got {module}"
        )
    return activation


def of_module(module: Any) -> Activation | None:
    """The row of a torch.nn activation module; None where there is none.

    A subclass gives None, since its forward may differ; only fusion.py's subclasses count.
    """
    g = _as_written(module)
    return g if g is None or not g.parameters or _has_its_parameters(g) else None


def _as_written(module: Any) -> Activation | None:
    """The row of a module, parameters unchecked: torch.nn itself fails only when called."""
    name = _NAMES.get(getattr(type(module), "activation_class", type(module)))
    if name is None:
        return None
    values = [getattr(module, p) for p in TABLE[name].parameters]
    if name == "gelu" and module.approximate == "tanh":
        name = "gelu_tanh"
    elif name == "gelu" and module.approximate != "none":
        values = [module.approximate]
    return Activation(name, tuple(float(v) if hasattr(v, "__float__") else v for v in values))


_NAMES = {row.module: name for name, row in TABLE.items() if name != "gelu_tanh"}


def error_signal(grad: Tensor, saved: Tensor, name: str, parameters: Sequence[float]) -> Tensor:
    """L3 in torch's operators, and in float32 at least, as in the kernels."""
    wide = torch.promote_types(saved.dtype, torch.float32)
    delta = TABLE[name].error_signal(grad.to(wide), saved.to(wide), *parameters)
    return delta.to(saved.dtype)


def bias_grad(delta: Tensor) -> Tensor:
    """L5: the sums of delta [N, O, ...] over all dimensions but the filters."""
    return delta.sum([d for d in range(delta.dim()) if d != 1])


def check(name: str, parameters: Sequence[float]) -> None:
    """Raises RuntimeError for an unknown name or a wrong number of parameters."""
    if name not in TABLE:
        known = ", ".join(f"{name} {len(row.parameters)}" for name, row in TABLE.items())
        raise RuntimeError(
            f"Expected activation to be one of (name and number of parameters) {known}, "
            f'but got "{name}"'
        )
    expected = len(TABLE[name].parameters)
    if len(parameters) != expected:
        raise RuntimeError(
            f"Expected {expected} parameters of activation {name}, but got {len(parameters)}"
        )
