"""Giving a module another class, made here, so that it still pickles and copies."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn
from torch.nn.utils import parametrize

__all__ = ["reduce_by", "set_class"]

# From a class to the one that is to take its place; picklable. None: leave it.
Change = Callable[[Any], Any]


def _rebuild(change: Change, cls: Any) -> nn.Module:
    module: nn.Module = cls.__new__(change(cls))
    return module


def _rebuild_by(change: Change, make: Callable[..., Any], *args: Any) -> Any:
    module = make(*args)
    set_class(module, change)
    return module


def reduce_by(change: Change, cls: Any) -> Callable[[nn.Module, Any], tuple[Any, ...]]:
    """The ``__reduce_ex__`` of what ``change`` makes of ``cls``.

    Pickle and deepcopy look classes up by name; such a one is made anew.
    """

    def __reduce_ex__(self: nn.Module, protocol: Any) -> tuple[Any, ...]:
        if (cls.__reduce__, cls.__reduce_ex__) != (object.__reduce__, object.__reduce_ex__):
            rule: Any = cls.__reduce_ex__(self, protocol)
            make, args, *rest = rule
            return _rebuild_by, (change, make, *args), *rest
        getstate = getattr(self, "__getstate__", vars(self).copy)
        return _rebuild, (change, cls), getstate()

    return __reduce_ex__


def set_class(module: nn.Module, change: Change) -> bool:
    """Gives the module the class that ``change`` makes of its own; False where that is None."""
    cls = type(module)
    if not parametrize.is_parametrized(module):
        changed = change(cls)
    elif (base := change(cls.__bases__[0])) is None:
        changed = None
    else:
        # torch derives a class for each parametrized module and keeps its properties there: the
        # same class over another base. Copies of the module share the old one, so it stays.
        namespace = {k: v for k, v in vars(cls).items() if k not in ("__dict__", "__weakref__")}
        changed = type(f"Parametrized{base.__name__}", (base,), namespace)
    if changed is not None:
        module.__class__ = changed
    return changed is not None
