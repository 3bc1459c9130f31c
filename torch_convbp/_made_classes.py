"""Classes that are made at run time, and instances of them that can be copied all the same.

Pickle and deepcopy look classes up by name, which such a class cannot be found by. So what is
written down is how it was made: an importable function and its arguments.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

__all__ = ["reduce_as"]

# make(cls, *arguments) is the class made of cls, the same one each time.
Make: TypeAlias = Callable[..., Any]


def reduce_as(make: Make, cls: Any, *arguments: Any) -> Callable[..., tuple[Any, ...]]:
    """``__reduce_ex__`` of the class that is make(cls, *arguments)."""

    def __reduce_ex__(self: Any, protocol: Any) -> tuple[Any, ...]:
        if (cls.__reduce__, cls.__reduce_ex__) != (object.__reduce__, object.__reduce_ex__):
            rebuild, rebuild_arguments, *rest = cls.__reduce_ex__(self, protocol)
            return _rebuild_by, (make, arguments, rebuild, *rebuild_arguments), *rest
        getstate = getattr(self, "__getstate__", vars(self).copy)
        return _rebuild, (make, cls, *arguments), getstate()

    return __reduce_ex__


def _rebuild(make: Make, cls: type, *arguments: Any) -> Any:
    made = make(cls, *arguments)
    return made.__new__(made)


def _rebuild_by(make: Make, arguments: tuple[Any, ...], rebuild: Callable[..., Any], *args: Any):
    """In the class's own way, which knows nothing of the made one."""
    instance = rebuild(*args)
    instance.__class__ = make(type(instance), *arguments)
    return instance
