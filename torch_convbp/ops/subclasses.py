"""Tensor subclasses that know torch's functions alone, such as quantised weights or DTensor: they
get torch's function, as they would from torch's layer."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar

from torch import Tensor, nn
from torch.overrides import has_torch_function

from torch_convbp import activations

# nn.Parameter turns the override off, as subclasses do whose operators alone are overridden.
_NOT_OVERRIDDEN = (
    vars(Tensor)["__torch_function__"].__func__,
    nn.Parameter.__torch_function__,
)

Function = TypeVar("Function", bound=Callable[..., Any])


def _subclasses(values: Any) -> list[Any]:
    plain = (Tensor, nn.Parameter)
    return [type(v) for v in values if isinstance(v, Tensor) and type(v) not in plain]


def _is_overridden(cls: Any) -> bool:
    """Does the class look at the functions that it is given to?"""
    rule = cls.__torch_function__
    return getattr(rule, "__func__", rule) not in _NOT_OVERRIDDEN


def torchs_for_subclasses(torchs: Callable[..., Any]) -> Callable[[Function], Function]:
    """Makes a function of ours hand a call on to torch's, where a Tensor subclass overrides torch's
    functions, or has no rule for our operator."""

    def decorate(ours: Any) -> Any:
        @functools.wraps(ours)
        def function(*args: Any, **kwargs: Any) -> Any:
            values = (*args, *kwargs.values()) if kwargs else args
            try:
                if not has_torch_function(values) or not any(
                    map(_is_overridden, _subclasses(values))
                ):
                    return ours(*args, **kwargs)
            except NotImplementedError:  # what __torch_dispatch__ raises
                if not _subclasses(values):
                    raise
            g = activations.parse(ours.__name__, kwargs.pop("activation", None))
            output = torchs(*args, **kwargs)
            return output if g is None else activations.TABLE[g.name].g(output, *g.parameters)

        return function

    return decorate
