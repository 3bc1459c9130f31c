"""``python -m experiments.error_signals``: the picture of docs/error-signals.md."""

from __future__ import annotations

import argparse
import tempfile
from itertools import chain, pairwise
from pathlib import Path

import lightning as L
import torch
import torch.nn.functional as F
from lightning.pytorch.callbacks import Callback
from matplotlib.figure import Figure
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import torch_convbp as bp
from experiments.common.silence import silence_lightning

DEPTH, CHANNELS, STEPS = 14, 16, 150


class Deep(L.LightningModule):
    """Convolutions one after the other, and nothing that would help the signal through."""

    def __init__(self, activation: str) -> None:
        super().__init__()
        channels = [1, *[CHANNELS] * DEPTH]
        self.features = nn.Sequential(
            *(bp.ConvBP2d(k, o, 3, padding=1, activation=activation) for k, o in pairwise(channels))
        )
        self.classifier = bp.LinearBP(CHANNELS, 10)
        for layer in self.features.children():
            assert isinstance(layer, bp.ConvBP2d) and layer.bias is not None
            if activation == "relu":
                nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            else:
                nn.init.xavier_normal_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, images: Tensor) -> Tensor:
        return self.classifier(self.features(images).mean((2, 3)))

    def training_step(self, batch: list[Tensor], _: int) -> Tensor:
        images, digits = batch
        return F.cross_entropy(self(images), digits)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.01, momentum=0.9)


def train(activation: str) -> bp.lightning.ErrorSignalMonitor:
    L.seed_everything(1, verbose=False)
    images, digits = load_digits(return_X_y=True)
    data = TensorDataset(
        torch.tensor(images, dtype=torch.float32).view(-1, 1, 8, 8) / 8 - 1, torch.tensor(digits)
    )
    with tempfile.TemporaryDirectory() as folder:
        monitor = bp.lightning.ErrorSignalMonitor(folder=folder)
        callbacks: list[Callback] = [monitor]
        L.Trainer(
            accelerator="cpu",
            max_steps=STEPS,
            callbacks=callbacks,
            logger=False,
            enable_checkpointing=False,
            enable_model_summary=False,
            enable_progress_bar=False,
        ).fit(Deep(activation), DataLoader(data, batch_size=64, shuffle=True, drop_last=True))
    return monitor


def parse_arguments(arguments: list[str]) -> Path:
    """Where the picture goes; exits with 2 if it cannot go there."""
    parser = argparse.ArgumentParser(
        prog="python -m experiments.error_signals",
        description="Train one deep network with sigmoids and with ReLUs and draw the error "
        "signals of their layers.",
    )
    parser.add_argument(
        "picture",
        nargs="?",
        type=Path,
        default=Path("docs/images/error-signals.png"),
        metavar="PICTURE.png",
        help="the file to write (default: %(default)s)",
    )
    picture: Path = parser.parse_args(arguments).picture
    kinds = Figure().canvas.get_supported_filetypes()
    if picture.suffix and picture.suffix[1:] not in kinds:
        parser.error(
            f"argument PICTURE.png: expected the ending to be one of {', '.join(kinds)}, "
            f"but got {picture}"
        )
    if not picture.parent.is_dir():
        parser.error(f"argument PICTURE.png: there is no folder {picture.parent}")
    return picture


def main(path: Path) -> None:
    silence_lightning()
    monitors = {activation: train(activation) for activation in ("sigmoid", "relu")}
    found = [
        rms
        for column in chain(*(m.histories["delta"].columns for m in monitors.values()))
        for rms in column.values()
    ]
    limits = min(found), max(found)
    figure = Figure(figsize=(10, 3.6), dpi=110, layout="constrained")
    axes = figure.subplots(1, 2, sharey=True)
    for ax, (activation, monitor) in zip(axes, monitors.items(), strict=True):
        monitor.draw(ax, limits=limits)
        ax.set_title(f"{activation}: {ax.get_title(loc='left')}", loc="left", fontsize=10)
    figure.savefig(path)
