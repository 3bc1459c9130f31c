"""What one training gave, gathered from the records of its epochs."""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass, field
from typing import Any

WARM_UP_STEPS = 3


@dataclass
class Start:
    """What a training begins with."""

    weights: str
    parameters: int
    convolutions: list[str]


@dataclass
class Epoch:
    """The record of one epoch, step by step, and of the test pass after it."""

    epoch: int
    losses: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    batches: list[str] = field(default_factory=list)
    train_accuracy: float = float("nan")
    test_loss: float = float("nan")
    test_accuracy: float = float("nan")
    peak_bytes: int = 0
    start_bytes: int = 0
    memory_method: str = ""


@dataclass
class TrainingResult:
    """One side of the experiment."""

    weights: str = ""
    parameters: int = 0
    convolutions: list[str] = field(default_factory=list)
    epochs: list[Epoch] = field(default_factory=list)

    def begin(self, start: Start) -> None:
        """Note what the training starts from."""
        self.weights, self.parameters = start.weights, start.parameters
        self.convolutions = start.convolutions

    @property
    def losses(self) -> list[float]:
        """Loss of every step."""
        return [loss for epoch in self.epochs for loss in epoch.losses]

    @property
    def batches(self) -> list[str]:
        """Fingerprint of every batch."""
        return [batch for epoch in self.epochs for batch in epoch.batches]

    @property
    def seconds(self) -> list[float]:
        """Time of every step."""
        return [seconds for epoch in self.epochs for seconds in epoch.seconds]

    @property
    def accuracy(self) -> float:
        """Test accuracy after the last epoch."""
        return self.epochs[-1].test_accuracy if self.epochs else math.nan

    @property
    def peak_bytes(self) -> int:
        """Highest resident memory of the process."""
        return max((epoch.peak_bytes for epoch in self.epochs), default=0)

    @property
    def growth_bytes(self) -> int:
        """Peak memory beyond what was resident before the first step."""
        return self.peak_bytes - self.epochs[0].start_bytes if self.epochs else 0

    def seconds_quartiles(self) -> tuple[float, float, float]:
        """Return quartiles of the seconds a step; the median is the figure quoted.

        The first steps, which allocate and compile, are left out if enough others remain.
        """
        first = WARM_UP_STEPS if len(self.seconds) > 2 * WARM_UP_STEPS else 0
        steady = self.seconds[first:]
        if not steady:
            return math.nan, math.nan, math.nan
        if len(steady) == 1:
            return steady[0], steady[0], steady[0]
        low, middle, high = statistics.quantiles(steady, n=4, method="inclusive")
        return low, middle, high

    def summary(self) -> dict[str, Any]:
        """Return the figures of this side for summary.json."""
        low, middle, high = self.seconds_quartiles()
        last = self.epochs[-1] if self.epochs else None
        return {
            "steps": len(self.losses),
            "first_loss": self.losses[0] if self.losses else None,
            "last_loss": self.losses[-1] if self.losses else None,
            "train_accuracy": last.train_accuracy if last else None,
            "test_loss": last.test_loss if last else None,
            "test_accuracy": last.test_accuracy if last else None,
            "seconds_per_step": {"first_quartile": low, "median": middle, "third_quartile": high},
            "peak_memory_bytes": self.peak_bytes,
            "peak_memory_growth_bytes": self.growth_bytes,
            "memory_method": last.memory_method if last else None,
            "parameters": self.parameters,
            "convolutions": len(self.convolutions),
            "initial_weights": self.weights,
        }
