"""The page of a study that ``python -m experiments.train`` has trained."""

from __future__ import annotations

import csv
from html import escape
from typing import TYPE_CHECKING

from matplotlib.ticker import MaxNLocator, PercentFormatter

from experiments.common import html
from experiments.common.plotting import BOUND, COLORS, Picture, picture

if TYPE_CHECKING:
    from pathlib import Path

    from matplotlib.axes import Axes

PARTS = {"train": COLORS["torch"], "val": COLORS["bp"]}
WORDS = {"train": "training", "val": "validation"}
Curve = list[tuple[float, float]]


def write_report(folder: Path, logs: Path) -> Path | None:
    """Write report.html into the folder of a study from what was logged; return its path.

    Args:
        folder: the study's ``default_root_dir``.
        logs: where this training's metrics.csv lies, with config.yaml and error-signals.png beside
            it where there are such.
    """
    if not (logs / "metrics.csv").is_file():
        return None
    curves = read_curves(logs / "metrics.csv")
    body = [html.tiles(first_figures(curves))]
    drawn = html.figure(
        draw_curves(folder / "curves.png", curves),
        "Loss, accuracy and learning rate by epoch",
        "Training losses and accuracies are means over an epoch, in which the weights move.",
    )
    body.append(html.section("Curves", drawn))
    for signals in sorted(logs.glob("error-signals*.png")):
        shown = html.image(signals, "rms of the error signal, layers against steps")
        body.append(html.section("Error signals", f"<figure>{shown}</figure>"))
    if (logs / "config.yaml").is_file():
        settings = escape((logs / "config.yaml").read_text())
        body.append(html.section("Settings", f'<pre class="code">{settings}</pre>'))
    html.write_page(folder / "report.html", f"Training: {folder.name}", str(logs), "\n".join(body))
    return folder / "report.html"


def read_curves(file: Path) -> dict[str, Curve]:
    """Return what was logged, by name: points of epoch (learning rates: of step) and value."""
    curves: dict[str, Curve] = {}
    epoch = 0.0
    with file.open(newline="") as lines:
        for line in csv.DictReader(lines):
            epoch = float(line["epoch"]) if line.get("epoch") else epoch
            for name, text in line.items():
                if text and name not in ("epoch", "step"):
                    place = float(line["step"]) if name.startswith("lr-") else epoch + 1
                    curves.setdefault(name, []).append((place, float(text)))
    return curves


def first_figures(curves: dict[str, Curve]) -> list[tuple[str, str]]:
    """Return what a reader wants to know first, and what it is."""
    found = []
    if accuracies := curves.get("val_accuracy"):
        epoch, best = max(accuracies, key=lambda point: point[1])
        found.append((f"{accuracies[-1][1]:.2%}", "validation accuracy at the end"))
        found.append((f"{best:.2%}", f"the best, after epoch {epoch:.0f}"))
    if losses := curves.get("val_loss"):
        found.append((f"{losses[-1][1]:.4f}", "validation loss at the end"))
        found.append((f"{losses[-1][0]:.0f}", "epochs"))
    return found


def draw_curves(path: Path, curves: dict[str, Curve]) -> str:
    """Draw losses, accuracies and the learning rate."""
    rates = {name: curve for name, curve in curves.items() if name.startswith("lr-")}
    with picture(path, 3 if rates else 2, 1, (10, 3.2)) as (drawn, panels):
        for axes, what in zip(panels[:2], ("loss", "accuracy"), strict=True):
            for part, color in PARTS.items():
                draw_curve(drawn, axes, curves.get(f"{part}_{what}", []), color, WORDS[part])
            axes.set(title=what.capitalize(), xlabel="epoch")
            if axes.lines:
                axes.legend()
        panels[1].yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        for name, curve in rates.items():
            panels[2].plot(*zip(*curve, strict=True), color=BOUND, marker=".", label=name)
            panels[2].set(title="Learning rate", xlabel="step")
        for axes in panels:
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    return drawn.svg


def draw_curve(drawn: Picture, axes: Axes, curve: Curve, color: str, label: str) -> None:
    """Draw one curve whose points say what they are."""
    if not curve:
        return
    axes.plot(*zip(*curve, strict=True), color=color, linewidth=1.5, label=label)
    for epoch, value in curve:
        (point,) = axes.plot([epoch], [value], "o", color=color, markersize=3.5)
        drawn.tip(point, f"{label}, epoch {epoch:.0f}: {value:.4f}")
