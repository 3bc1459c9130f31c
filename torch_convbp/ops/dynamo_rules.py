"""Has torch.compile treat the layers as it treats torch.nn's.

They become part of the graph around them, and run as they are where a graph break has left one
alone. By default torch would compile each layer between two graph breaks by itself, up to its limit
of recompilations. The rules are private to torch; where it has others, nothing changes.

They must be there before the first call of torch.compile, and loading its compiler takes a second
that an import of this package should not take: so they are added when the compiler is loaded.
"""

from __future__ import annotations

import importlib.abc
import importlib.util
import os
import sys
import threading
from typing import Any

_MODULE = "torch._dynamo.trace_rules"

# The files and folders whose functions a call of a layer runs; not fusion.py, whose hooks must be
# traced with the model that they belong to.
_PACKAGE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
_OF_THE_LAYERS = [
    os.path.join(_PACKAGE, *name.split("/"))
    for name in (
        "activations.py",
        "autograd/",
        "error_signals/recording.py",
        "functional.py",
        "layer_geometry.py",
        "modules.py",
        "ops/",
    )
]


def _add_rules(rules: Any) -> None:
    names = ("BUILTIN_INLINE_WHEN_CALLED", "SKIP_DIRS", "_recompile_re")
    if all(hasattr(rules, name) for name in names):
        rules.BUILTIN_INLINE_WHEN_CALLED.update(_OF_THE_LAYERS)
        rules.SKIP_DIRS.extend(_OF_THE_LAYERS)
        rules._recompile_re()


class _WhenLoaded(importlib.abc.MetaPathFinder):
    """Adds the rules to their module as soon as it has been loaded."""

    def __init__(self) -> None:
        self.looking = threading.local()

    def find_spec(self, name: str, path: Any, target: Any = None) -> Any:
        if name != _MODULE or getattr(self.looking, "on", False):
            return None
        self.looking.on = True
        try:
            spec = importlib.util.find_spec(name)  # the others find it
        finally:
            self.looking.on = False
        if spec is not None and spec.loader is not None:
            load = spec.loader.exec_module

            def exec_module(module: Any) -> None:
                load(module)
                _add_rules(module)
                if self in sys.meta_path:
                    sys.meta_path.remove(self)

            spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


if _MODULE in sys.modules:
    _add_rules(sys.modules[_MODULE])
else:
    sys.meta_path.insert(0, _WhenLoaded())
