"""The pictures of the trainings: curves of both sides, and how seeds differ.

With several seeds, lines are their mean and bands reach from the lowest to the highest.
"""

from __future__ import annotations

import math
import statistics
from typing import TYPE_CHECKING

from matplotlib.ticker import MaxNLocator, PercentFormatter

from experiments.common.plotting import BOUND, COLORS, LINES, Picture, picture
from experiments.parity.config import LABELS, SIDES
from experiments.parity.results import quartiles
from experiments.parity.verdict import BEYOND_CONFIDENCE, accuracies, spread_of

if TYPE_CHECKING:
    from pathlib import Path

    from matplotlib.axes import Axes

    from experiments.parity.results import Epoch, SeedResult

SMOOTH_ABOVE = 400
MARKERS = {"torch": "o", "bp": "s"}


def draw_curves(path: Path, seeds: list[SeedResult]) -> str:
    """Draw loss, difference of the losses, accuracy and time a step of both sides."""
    with picture(path, 2, 2, (10, 6.4)) as (drawn, ((loss, drift), (accuracy, seconds))):
        draw_loss(loss, seeds)
        draw_drift(drift, seeds)
        draw_accuracy(drawn, accuracy, seeds)
        draw_seconds(seconds, seeds)
    return drawn.svg


def draw_band(
    axes: Axes, side: str, x: list[int], curves: list[list[float]], **style: object
) -> None:
    """Draw the mean of some curves, and a band where there are several."""
    points = list(zip(*curves, strict=False))
    axes.plot(
        x[: len(points)],
        [statistics.fmean(values) for values in points],
        color=COLORS[side],
        **{**LINES[side], "linewidth": 1.5, **style},
    )
    if len(curves) > 1:
        low, high = [min(values) for values in points], [max(values) for values in points]
        axes.fill_between(x[: len(points)], low, high, color=COLORS[side], alpha=0.16, linewidth=0)


def running_mean(values: list[float], width: int) -> list[float]:
    """Return the mean of up to ``width`` values that end at each."""
    parts = (values[max(0, i - width + 1) : i + 1] for i in range(len(values)))
    return [statistics.fmean(part) for part in parts]


def draw_loss(axes: Axes, seeds: list[SeedResult]) -> None:
    """Draw the training loss by step, as a running mean if there are many."""
    losses = {side: [seed.sides[side].losses for seed in seeds] for side in SIDES}
    longest = max(len(curve) for curves in losses.values() for curve in curves)
    width = max(1, longest // 100) if longest > SMOOTH_ABOVE else 1
    for side in SIDES:
        means = [running_mean(curve, width) for curve in losses[side]]
        draw_band(axes, side, list(range(longest)), means, label=LABELS[side])
    title = "Training loss" + (f", mean of {width} steps" if width > 1 else "")
    axes.set(title=title, xlabel="step", ylabel="cross entropy")
    every = [value for curves in losses.values() for curve in curves for value in curve]
    positive = [value for value in every if 0 < value < math.inf]
    if positive and max(positive) > 50 * min(positive):
        axes.set_yscale("log")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.legend()


def draw_drift(axes: Axes, seeds: list[SeedResult]) -> None:
    """Draw how far the two losses are apart: rounding at first, then growing."""
    axes.set(
        title="Rounding grows: difference of the two losses",
        xlabel="step",
        ylabel="|difference|",
    )
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    shades = ("#3d4451", "#7b818c", "#b3b8c0")
    for number, seed in enumerate(seeds):
        pairs = zip(*(seed.sides[side].losses for side in SIDES), strict=False)
        points = [(step, abs(a - b)) for step, (a, b) in enumerate(pairs) if a != b]
        points = [(step, value) for step, value in points if math.isfinite(value)]
        if points:
            axes.plot(
                *zip(*points, strict=True),
                color=shades[number % len(shades)],
                linewidth=0.7,
                marker=".",
                markersize=2.5,
                label=f"seed {seed.seed}",
                rasterized=len(points) > SMOOTH_ABOVE,
            )
    if not axes.lines:
        axes.text(0.5, 0.5, "no difference", transform=axes.transAxes, ha="center")
        return
    axes.set_yscale("log")
    if len(seeds) > 1:
        axes.legend(loc="lower right")


def draw_accuracy(drawn: Picture, axes: Axes, seeds: list[SeedResult]) -> None:
    """Draw the test accuracy by epoch, the training accuracy faintly."""
    for side in SIDES:
        epochs = [seed.sides[side].epochs for seed in seeds]
        longest = max(map(len, epochs))
        x = list(range(1, longest + 1))
        training = [[epoch.train_accuracy for epoch in run] for run in epochs]
        draw_band(axes, side, x, training, alpha=0.35, linewidth=1)
        test = [[epoch.test_accuracy for epoch in run] for run in epochs]
        draw_band(axes, side, x, test, label=LABELS[side])
        for place in x:
            reached = [run[place - 1] for run in epochs if len(run) >= place]
            (point,) = axes.plot(
                [place],
                [statistics.fmean(epoch.test_accuracy for epoch in reached)],
                color=COLORS[side],
                marker=MARKERS[side],
                markersize=5,
                markerfacecolor="white" if side == "bp" else COLORS[side],
            )
            drawn.tip(point, accuracy_tip(side, place, reached))
    axes.set(title="Test accuracy (training accuracy faint)", xlabel="epoch", ylabel="right")
    axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.legend(loc="lower right")


def accuracy_tip(side: str, epoch: int, reached: list[Epoch]) -> str:
    """Say what a point of the accuracy curve is."""
    values = [record.test_accuracy for record in reached]
    each = ", ".join(f"{value:.2%}" for value in values)
    return f"{LABELS[side]}, epoch {epoch}: {each}"


def draw_seconds(axes: Axes, seeds: list[SeedResult]) -> None:
    """Draw the time of every step in order; the median as a line."""
    markers = {"torch": "o", "bp": "x"}
    highest = 0.0
    for side in SIDES:
        steady = [s for seed in seeds for s in seed.sides[side].steady_seconds]
        if not steady:
            continue
        _, median, high = quartiles(steady).values()
        highest = max(highest, 3 * high - 2 * median, 1.6 * median)
        for seed in seeds:
            axes.plot(
                seed.sides[side].seconds,
                linestyle="none",
                marker=markers[side],
                markersize=2.5,
                markeredgewidth=0.8,
                color=COLORS[side],
                alpha=0.45,
                rasterized=True,
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
        axes.legend(loc="upper right", frameon=True, framealpha=0.9, edgecolor="white")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))


def draw_seeds(path: Path, seeds: list[SeedResult]) -> str:
    """Draw the final accuracy of every seed, and the mean difference against their spread."""
    pairs = accuracies(seeds)
    spread = spread_of(pairs)
    with picture(path, 2, 1, (10, 3), width_ratios=(3, 2)) as (drawn, (each, difference)):
        for place, (seed, pair) in enumerate(zip(seeds, pairs, strict=True)):
            each.plot([place, place], pair, color="#c9cdd3", linewidth=3, zorder=1)
            for side, value in zip(SIDES, pair, strict=True):
                (point,) = each.plot(
                    [place],
                    [value],
                    marker=MARKERS[side],
                    markersize=7,
                    linestyle="none",
                    color=COLORS[side],
                    markerfacecolor="white" if side == "bp" else COLORS[side],
                    label=LABELS[side] if place == 0 else None,
                )
                drawn.tip(point, f"{LABELS[side]}, seed {seed.seed}: {value:.2%}")
        each.set_xticks(range(len(seeds)), [str(seed.seed) for seed in seeds])
        each.set(title="Final test accuracy of every seed", xlabel="seed", ylabel="right")
        each.set_xlim(-0.6, len(seeds) - 0.4)
        each.yaxis.set_major_formatter(PercentFormatter(1, decimals=1))
        each.margins(y=0.25)
        each.legend(loc="best")
        points = [100 * (bp - torch) for torch, bp in pairs]
        allowed = 100 * spread.half_width(BEYOND_CONFIDENCE)
        difference.axvspan(-allowed, allowed, color="#eef0f2", label="allowed")
        difference.axvline(0, color=BOUND, linewidth=0.8)
        difference.plot(
            points, [0.62] * len(points), "|", color=BOUND, markersize=11, label="of each seed"
        )
        bar = difference.errorbar(
            [100 * spread.difference],
            [0.3],
            xerr=[100 * spread.half_width(0.05)],
            fmt="D",
            color=COLORS["bp"],
            capsize=4,
            markersize=5,
            label="mean, 95 % interval",
        )
        drawn.tip(bar.lines[0], f"mean difference {100 * spread.difference:+.2f} points")
        difference.set(
            title="ConvBP2d less nn.Conv2d", xlabel="percentage points", yticks=[], ylim=(0, 1.25)
        )
        difference.grid(axis="y", visible=False)
        difference.spines["left"].set_visible(False)
        difference.legend(loc="upper center", ncols=3, columnspacing=1, handlelength=1.2)
    return drawn.svg
