"""``bp.lightning``: the callback of error_signals/lightning.py, under the name that users give.

The package imports this file on first use, since it needs no Lightning itself.
"""

from torch_convbp.error_signals.lightning import ErrorSignalMonitor

__all__ = ["ErrorSignalMonitor"]
