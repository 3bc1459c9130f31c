"""The pictures of a run: curves of both trainings, errors layer by layer."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib

matplotlib.use("Agg")

from matplotlib import pyplot as plt
from matplotlib.ticker import MaxNLocator, PercentFormatter

from experiments.spec import LABELS, SIDES

if TYPE_CHECKING:
    from collections.abc import Iterable

    from matplotlib.axes import Axes

    from experiments.lockstep import Row
    from experiments.results import TrainingResult

STYLE: Any = {
    "figure.facecolor": "white",
    "figure.dpi": 130,
    "font.family": "sans-serif",
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#8a8f98",
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.color": "#e6e8eb",
    "grid.linewidth": 0.7,
    "legend.frameon": False,
    "legend.fontsize": 8,
}
COLORS = {"torch": "#1f5a96", "bp": "#d1600b"}
LINES: dict[str, Any] = {"torch": {"linestyle": "-"}, "bp": {"linestyle": (0, (4, 1.6))}}
BOUND = "#5c6370"
SMOOTH_ABOVE = 400
TICKS_AT_MOST = 24


def draw_curves(path: Path, results: dict[str, TrainingResult]) -> None:
    """Draw loss, difference of the losses, accuracy and time a step of both trainings."""
    with plt.rc_context(STYLE):
        figure, ((loss, drift), (accuracy, seconds)) = plt.subplots(
            2, 2, figsize=(10, 6.4), layout="constrained"
        )
        draw_loss(loss, results)
        draw_drift(drift, results)
        draw_accuracy(accuracy, results)
        draw_seconds(seconds, results)
        figure.savefig(path)
        plt.close(figure)


def draw_loss(axes: Axes, results: dict[str, TrainingResult]) -> None:
    """Draw the training loss by step, as a running mean if there are many."""
    longest = max(len(result.losses) for result in results.values())
    width = max(1, longest // 100) if longest > SMOOTH_ABOVE else 1
    for side in SIDES:
        losses = results[side].losses
        means = [
            sum(losses[max(0, i - width + 1) : i + 1]) / len(losses[max(0, i - width + 1) : i + 1])
            for i in range(len(losses))
        ]
        axes.plot(means, color=COLORS[side], label=LABELS[side], linewidth=1.5, **LINES[side])
    title = "Training loss" + (f", mean of {width} steps" if width > 1 else "")
    axes.set(title=title, xlabel="step", ylabel="cross entropy")
    positive = [v for side in SIDES for v in results[side].losses if 0 < v < math.inf]
    if positive and max(positive) > 50 * min(positive):
        axes.set_yscale("log")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.legend()


def draw_drift(axes: Axes, results: dict[str, TrainingResult]) -> None:
    """Draw how far the two losses are apart: rounding at first, then growing."""
    pairs = zip(results["torch"].losses, results["bp"].losses, strict=False)
    points = [(step, abs(a - b)) for step, (a, b) in enumerate(pairs) if a != b]
    points = [(step, value) for step, value in points if math.isfinite(value)]
    axes.set(
        title="Rounding grows: difference of the two losses",
        xlabel="step",
        ylabel="|difference|",
    )
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    if not points:
        axes.text(0.5, 0.5, "no difference", transform=axes.transAxes, ha="center")
        return
    axes.set_yscale("log")
    axes.plot(*zip(*points, strict=True), color="#3d4451", linewidth=0.9, marker=".", markersize=3)


def draw_accuracy(axes: Axes, results: dict[str, TrainingResult]) -> None:
    """Draw the test accuracy by epoch, the training accuracy faintly."""
    markers = {"torch": "o", "bp": "s"}
    for side in SIDES:
        epochs = [epoch.epoch + 1 for epoch in results[side].epochs]
        axes.plot(
            epochs,
            [epoch.train_accuracy for epoch in results[side].epochs],
            color=COLORS[side],
            alpha=0.35,
            linewidth=1,
            **LINES[side],
        )
        axes.plot(
            epochs,
            [epoch.test_accuracy for epoch in results[side].epochs],
            color=COLORS[side],
            label=LABELS[side],
            linewidth=1.5,
            marker=markers[side],
            markersize=5,
            markerfacecolor="white" if side == "bp" else COLORS[side],
            **LINES[side],
        )
    axes.set(title="Test accuracy (training accuracy faint)", xlabel="epoch", ylabel="right")
    axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.legend(loc="lower right")


def draw_seconds(axes: Axes, results: dict[str, TrainingResult]) -> None:
    """Draw the time of every step in order; the median as a line."""
    markers = {"torch": "o", "bp": "x"}
    highest = 0.0
    for side in SIDES:
        seconds = results[side].seconds
        _, median, high = results[side].seconds_quartiles()
        if not seconds:
            continue
        highest = max(highest, 3 * high - 2 * median, 1.6 * median)
        axes.plot(
            seconds,
            linestyle="none",
            marker=markers[side],
            markersize=2.5,
            markeredgewidth=0.8,
            color=COLORS[side],
            alpha=0.45,
        )
        axes.axhline(
            median,
            color=COLORS[side],
            linewidth=1.5,
            label=f"{LABELS[side]}: median {median:.3g} s",
            **LINES[side],
        )
    axes.set(title="Time of a training step", xlabel="step", ylabel="seconds")
    if highest:
        axes.set_ylim(0, highest)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.legend(loc="upper right")


def draw_lockstep64(path: Path, rows: list[Row]) -> None:
    """Draw the float64 errors of every output and gradient, with their bound, for each step."""
    mine = [row for row in rows if row.comparison == "float64" and row.kind != "loss"]
    steps = sorted({row.step for row in mine})
    shades = ["#f0a35e", "#d1600b", "#7a3503", "#4a2000"]
    markers = "osD^v"
    with plt.rc_context(STYLE):
        figure, panels = plt.subplots(1, 2, figsize=(10, 4.4), layout="constrained", sharey=True)
        for axes, kind in zip(panels, ("output", "gradient"), strict=True):
            names = unique(row.name for row in mine if row.kind == kind)
            place = {name: index for index, name in enumerate(names)}
            bound: dict[str, float] = {}
            for number, step in enumerate(steps):
                chosen = [row for row in mine if row.kind == kind and row.step == step]
                bound |= {row.name: row.allowed for row in chosen}
                axes.plot(
                    [place[row.name] for row in chosen],
                    [visible(row.error, 1e-17) for row in chosen],
                    linestyle="none",
                    marker=markers[number % len(markers)],
                    markersize=4,
                    markerfacecolor="none",
                    color=shades[number % len(shades)],
                    label=f"before step {step}",
                )
            axes.plot(
                range(len(names)),
                [bound.get(name, math.nan) for name in names],
                color=BOUND,
                linewidth=1.5,
                linestyle="-",
                drawstyle="steps-mid",
                label="bound 8uD",
            )
            axes.axhline(2.0**-53, color="#a9afb8", linewidth=0.8, linestyle=":")
            axes.annotate(
                "u = 2$^{-53}$",
                (1, 2.0**-53),
                xycoords=("axes fraction", "data"),
                ha="right",
                va="bottom",
                fontsize=7,
                color="#7b818c",
            )
            finish_layers(
                axes, names, convolutional(mine), f"float64: {kind}s, ConvBP2d against nn.Conv2d"
            )
        panels[0].set_ylabel("max |difference| / max |value|")
        panels[0].legend(loc="best")
        figure.savefig(path)
        plt.close(figure)


def draw_lockstep32(path: Path, rows: list[Row]) -> None:
    """Draw both sides' float32 errors against the float64 truth, worst of all steps."""
    with plt.rc_context(STYLE):
        figure, panels = plt.subplots(1, 2, figsize=(10, 4.4), layout="constrained", sharey=True)
        for axes, kind in zip(panels, ("output", "gradient"), strict=True):
            chosen = [row for row in rows if row.comparison == "float32" and row.kind == kind]
            draw_pair(axes, worst_of_steps(chosen))
            names = unique(row.name for row in chosen)
            finish_layers(
                axes, names, convolutional(chosen), f"float32: {kind}s, each against float64"
            )
        panels[0].set_ylabel("error against float64, worst of all steps")
        panels[0].legend(loc="best")
        figure.savefig(path)
        plt.close(figure)


def draw_pair(axes: Axes, rows: list[Row]) -> None:
    """Draw nn.Conv2d's error, ConvBP2d's error and what it may be, one column for each row."""
    places = range(len(rows))
    style: dict[str, Any] = {"linestyle": "none", "markersize": 4.5}
    axes.plot(
        places,
        [row.allowed for row in rows],
        color=BOUND,
        label="allowed for ConvBP2d",
        drawstyle="steps-mid",
        linewidth=1.2,
    )
    axes.plot(
        places,
        [visible(row.torch_error, 1e-9) for row in rows],
        marker="o",
        markerfacecolor="none",
        color=COLORS["torch"],
        label=LABELS["torch"],
        **style,
    )
    axes.plot(
        places,
        [visible(row.error, 1e-9) for row in rows],
        marker="x",
        color=COLORS["bp"],
        label=LABELS["bp"],
        **style,
    )


def finish_layers(axes: Axes, names: list[str], named: set[str], title: str) -> None:
    """Give an axis of layers its title, scale and the names of some layers."""
    axes.set_title(title)
    axes.set_yscale("log")
    places = [place for place, name in enumerate(names) if name in named]
    places = places[:: max(1, math.ceil(len(places) / TICKS_AT_MOST))]
    labels = [names[place].removesuffix(".weight") for place in places]
    axes.set_xticks(places, labels, rotation=90, fontsize=6.5)
    axes.set_xlim(-0.8, max(len(names), 1) - 0.2)
    axes.set_xlabel("layers in forward order, convolutions named")
    axes.grid(axis="x", visible=False)


def convolutional(rows: list[Row]) -> set[str]:
    """Return the names of convolutions and of their weights."""
    return {row.name for row in rows if row.layer == "ConvBP2d" and not row.name.endswith("bias")}


def worst_of_steps(rows: list[Row]) -> list[Row]:
    """Keep of each tensor the step at which its error came closest to what is allowed."""
    worst: dict[tuple[str, str], Row] = {}
    for row in rows:
        key = (row.name, row.kind)
        if key not in worst or not row.ok or nearness(row) > nearness(worst[key]):
            worst[key] = row
    return list(worst.values())


def nearness(row: Row) -> float:
    """Return the error as a share of what is allowed."""
    return row.error / row.allowed if row.allowed else math.inf


def visible(error: float, floor: float) -> float:
    """Return an error of zero as the floor of a logarithmic axis."""
    return max(error, floor) if math.isfinite(error) else math.nan


def unique(names: Iterable[str]) -> list[str]:
    """Return names without repetition, in order."""
    return list(dict.fromkeys(names))
