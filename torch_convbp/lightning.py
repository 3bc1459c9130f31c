"""``bp.lightning``: the callback of error_signals/lightning.py, under the name that users give.

Imported when it is first asked for: the package itself needs no Lightning.
"""

from torch_convbp.error_signals.lightning import ErrorSignalMonitor

__all__ = ["ErrorSignalMonitor"]
