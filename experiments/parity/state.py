"""All that a run has given so far, in one file: what is left to do follows from it."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from experiments.common.atomic_write import atomic_write
from experiments.common.errors import UsageError
from experiments.parity.lockstep import Row
from experiments.parity.results import Epoch, SeedResult, TrainingResult

NAME = "record.json"


@dataclass
class State:
    """A run of the experiment: its command line, its data, and every step of every training."""

    arguments: list[str]
    data: str
    """Fingerprint of the pictures."""
    started: str
    seconds: float = 0.0
    seeds: list[SeedResult] = field(default_factory=list)

    def write(self, folder: Path) -> None:
        """Write the file in one move, NaN and infinite losses as Python reads them."""
        with atomic_write(folder / NAME) as part:
            part.write_text(json.dumps(asdict(self)) + "\n")


def read_state(folder: Path) -> State:
    """Read the state of a run from its folder."""
    try:
        found = json.loads((folder / NAME).read_text())
        return State(**{**found, "seeds": [seed_result(seed) for seed in found["seeds"]]})
    except FileNotFoundError:
        raise UsageError(f"--resume: expected a run folder, {folder} has no {NAME}") from None
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise UsageError(f"--resume: cannot read {folder / NAME} ({error})") from error


def seed_result(found: dict[str, Any]) -> SeedResult:
    """Make the result of a seed of what its file says."""
    sides = {
        side: TrainingResult(**{**result, "epochs": [Epoch(**epoch) for epoch in result["epochs"]]})
        for side, result in found["sides"].items()
    }
    return SeedResult(found["seed"], sides, [Row(**row) for row in found["rows"]])
