"""Random states, saved and restored where a model runs that must not seem to have run."""

from __future__ import annotations

import random
import sys
from typing import Any

import torch

__all__ = ["RandomStates"]


class RandomStates:
    """The states of Python, NumPy and torch, of all devices, when this object was made."""

    def __init__(self) -> None:
        self.numpy: Any = getattr(sys.modules.get("numpy"), "random", None)
        self.of_numpy = self.numpy and self.numpy.get_state()
        self.of_python, self.of_cpu = random.getstate(), torch.get_rng_state()
        self.of_gpus = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []

    def restore(self) -> None:
        random.setstate(self.of_python)
        torch.set_rng_state(self.of_cpu)
        if self.numpy:
            self.numpy.set_state(self.of_numpy)
        if self.of_gpus:
            torch.cuda.set_rng_state_all(self.of_gpus)
