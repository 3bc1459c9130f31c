"""What the trainings gave, gathered from the records of their epochs."""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from experiments.parity.config import SIDES

if TYPE_CHECKING:
    from experiments.parity.lockstep import Row

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
    """One training: one side, one seed."""

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
        """Peak memory beyond what was resident before the first step (of each process)."""
        return max((epoch.peak_bytes - epoch.start_bytes for epoch in self.epochs), default=0)

    @property
    def steady_seconds(self) -> list[float]:
        """Time of every step but the first ones, which allocate; of all where steps are few."""
        return self.seconds[WARM_UP_STEPS if len(self.seconds) > 2 * WARM_UP_STEPS else 0 :]

    def summary(self) -> dict[str, Any]:
        """Return the figures of this training for summary.json."""
        last = self.epochs[-1] if self.epochs else None
        return {
            "steps": len(self.losses),
            "first_loss": self.losses[0] if self.losses else None,
            "last_loss": self.losses[-1] if self.losses else None,
            "train_accuracy": last.train_accuracy if last else None,
            "test_loss": last.test_loss if last else None,
            "test_accuracy": last.test_accuracy if last else None,
            "seconds_per_step": quartiles(self.steady_seconds),
            "peak_memory_bytes": self.peak_bytes,
            "peak_memory_growth_bytes": self.growth_bytes,
            "memory_method": last.memory_method if last else None,
            "parameters": self.parameters,
            "convolutions": len(self.convolutions),
            "initial_weights": self.weights,
        }


def quartiles(seconds: list[float]) -> dict[str, float]:
    """Return the quartiles of the seconds a step; the median is the figure quoted."""
    if len(seconds) < 2:
        cuts = [seconds[0] if seconds else math.nan] * 3
    else:
        cuts = statistics.quantiles(seconds, n=4, method="inclusive")
    return dict(zip(("first_quartile", "median", "third_quartile"), cuts, strict=True))


@dataclass
class SeedResult:
    """Both trainings from one seed, and the lockstep readings on the way."""

    seed: int
    sides: dict[str, TrainingResult] = field(
        default_factory=lambda: {side: TrainingResult() for side in SIDES}
    )
    rows: list[Row] = field(default_factory=list)

    @property
    def epochs_done(self) -> int:
        """How many epochs both sides have ended."""
        return min(len(result.epochs) for result in self.sides.values())

    def summary(self) -> dict[str, Any]:
        """Return the figures of this seed for summary.json."""
        return {
            "seed": self.seed,
            "trainings": {side: result.summary() for side, result in self.sides.items()},
        }


AVERAGED = ("first_loss", "last_loss", "train_accuracy", "test_loss", "test_accuracy")
HIGHEST = ("peak_memory_bytes", "peak_memory_growth_bytes")


def over_seeds(seeds: list[SeedResult]) -> dict[str, dict[str, Any]]:
    """Return the figures of each side over all seeds, for summary.json.

    Losses and accuracies are means, with their standard deviation where there are several;
    quartiles are those of all steps, memory is the highest.
    """
    found = {}
    for side in SIDES:
        results = [seed.sides[side] for seed in seeds]
        summaries = [result.summary() for result in results]
        figures = {
            "steps": sum(summary["steps"] for summary in summaries),
            "seconds_per_step": quartiles([s for result in results for s in result.steady_seconds]),
        }
        for name in AVERAGED:
            values = [summary[name] for summary in summaries if summary[name] is not None]
            figures[name] = statistics.fmean(values) if values else None
            figures[f"{name}_deviation"] = statistics.stdev(values) if len(values) > 1 else None
        for name in HIGHEST:
            figures[name] = max(summary[name] for summary in summaries)
        found[side] = figures
    return found
