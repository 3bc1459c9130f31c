"""Tensor subclasses that know torch's functions alone, such as quantised weights or DTensor: they
get torch's function, as they would from torch's layer."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any, TypeVar

from torch import Tensor, nn
from torch.overrides import has_torch_function

from torch_convbp import activations

# nn.Parameter and subclasses that override operators alone have the second.
_NOT_OVERRIDDEN = (
    vars(Tensor)["__torch_function__"].__func__,
    nn.Parameter.__torch_function__,
)

Function = TypeVar("Function", bound=Callable[..., Any])


def _subclasses(values: Any) -> list[Any]:
    plain = (Tensor, nn.Parameter)
    return [type(v) for v in values if isinstance(v, Tensor) and type(v) not in plain]


def _is_overridden(cls: Any) -> bool:
    """Does the class override torch's functions?"""
    rule = cls.__torch_function__
    return getattr(rule, "__func__", rule) not in _NOT_OVERRIDDEN


def torch_function_for_subclasses(
    torch_function: Callable[..., Any],
) -> Callable[[Function], Function]:
    """Makes a function of ours hand a call on to torch's, where a Tensor subclass overrides torch's
    functions, or has no rule for our operator."""

    def decorate(ours: Any) -> Any:
        has_activation = "activation" in inspect.signature(ours).parameters

        @functools.wraps(ours)
        def function(*args: Any, **kwargs: Any) -> Any:
            values = (*args, *kwargs.values()) if kwargs else args
            try:
                if not has_torch_function(values) or not any(
                    map(_is_overridden, _subclasses(values))
                ):
                    return ours(*args, **kwargs)
            except (NotImplementedError, TypeError) as error:
                # A subclass has no rule for our operator: it raises, or returns NotImplemented.
                declined = isinstance(error, NotImplementedError) or "NotImplemented" in str(error)
                if not declined or not _subclasses(values):
                    raise
            g = None
            if has_activation:
                g = activations.parse(ours.__name__, kwargs.pop("activation", None))
            output = torch_function(*args, **kwargs)
            return output if g is None else activations.TABLE[g.name].g(output, *g.parameters)

        return function

    return decorate
