"""torch_convbp: convolutional backpropagation as a lecture writes it, on kernels of its own.

import torch_convbp as bp

bp.ConvBP2d(3, 64, 3, padding=1)      # a torch.nn.Conv2d with an open backward pass
bp.convert(model)                     # every nn.Conv2d of a model becomes one
bp.conversion(model)                  # what is ours, what stayed torch's, and why
bp.compare(model, input)              # each layer's time and error, torch's and ours
bp.functional.conv2d(input, weight)   # the operators as functions
bp.record_error_signals(model)        # each layer's gradients in a backward pass
"""

from __future__ import annotations

import importlib
import sys
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

# `python -m torch_convbp.info` imports this file first, but must work where the imports below fail.
# While Python looks for the module, argv[0] is "-m"; the module's name comes just before its own
# arguments.
_is_for_info = sys.argv[:1] == ["-m"] and sys.orig_argv[-len(sys.argv)].endswith(
    "torch_convbp.info"
)

if not _is_for_info:
    from torch_convbp import backends, functional, info, lecture  # noqa: F401  (info: bp.info.report)
    from torch_convbp.comparison.compare import compare
    from torch_convbp.conversion import conversion
    from torch_convbp.convert import convert, revert
    from torch_convbp.error_signals.recording import record_error_signals
    from torch_convbp.folding import fold_batch_norm
    from torch_convbp.fusion import fusions
    from torch_convbp.modules import AvgPoolBP2d, ConvBP2d, LinearBP, MaxPoolBP2d
    from torch_convbp.ops.decompositions import decompositions

if TYPE_CHECKING:
    from torch_convbp import integrations, lightning  # noqa: F401


def __getattr__(name: str) -> Any:
    if name in ("integrations", "lightning"):  # on demand: few need them; Lightning is optional
        return importlib.import_module(f"torch_convbp.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


__all__ = [
    "AvgPoolBP2d",
    "ConvBP2d",
    "LinearBP",
    "MaxPoolBP2d",
    "__version__",
    "backends",
    "compare",
    "conversion",
    "convert",
    "decompositions",
    "fold_batch_norm",
    "functional",
    "fusions",
    "lecture",
    "record_error_signals",
    "revert",
]
