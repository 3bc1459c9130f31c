"""What both trainings share: one picklable description, and the names of the two sides."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

SIDES = ("torch", "bp")
LABELS = {"torch": "torch.nn.Conv2d", "bp": "bp.ConvBP2d"}


@dataclass(frozen=True)
class Config:
    """A training, but for the convolution class: everything else is the same on both sides."""

    network: str
    stem: str
    epochs: int
    total_steps: int
    batch_size: int
    lr: float
    weight_decay: float
    seed: int
    threads: int
    augment: bool
    channels_last: bool
    accelerator: str
    precision: str
    snapshot_steps: tuple[int, ...]
    scratch: Path
    progress: bool
    epochs_done: int = 0

    @property
    def data_file(self) -> Path:
        """Where the pictures lie for both trainings."""
        return self.scratch / "data.pt"

    def snapshot_file(self, step: int) -> Path:
        """Where the weights and the batch before ``step`` lie."""
        return self.scratch / f"step-{step:06d}.pt"

    def checkpoint_file(self, side: str, epochs: int) -> Path:
        """Where everything lies that goes on after so many ``epochs``."""
        return self.scratch / f"seed-{self.seed}-{side}-{epochs}.ckpt"
