"""The pictures of the lockstep reading: errors layer by layer, the worst of all seeds."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from experiments.common.plotting import BOUND, COLORS, Picture, picture
from experiments.parity.config import LABELS

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from matplotlib.axes import Axes

    from experiments.parity.lockstep import Row

TICKS_AT_MOST = 24
SHADES = ("#f0a35e", "#d1600b", "#7a3503", "#4a2000")
FLOOR = {"float64": 1e-17, "float32": 1e-9, "bfloat16": 1e-5}


def draw_float64(path: Path, rows: list[Row]) -> str:
    """Draw the float64 errors of every output and gradient, with their bound, for each step."""
    mine = [row for row in rows if row.comparison == "float64" and row.kind != "loss"]
    steps = sorted({row.step for row in mine})
    with picture(path, 2, 1, (10, 4.4), sharey=True) as (drawn, panels):
        for axes, kind in zip(panels, ("output", "gradient"), strict=True):
            names = unique(row.name for row in mine if row.kind == kind)
            place = {name: index for index, name in enumerate(names)}
            bound: dict[str, float] = {}
            for number, step in enumerate(steps):
                chosen = worst([row for row in mine if row.kind == kind and row.step == step])
                bound |= {row.name: row.allowed for row in chosen}
                for row in chosen:
                    (point,) = axes.plot(
                        [place[row.name]],
                        [visible(row.error, row)],
                        linestyle="none",
                        marker="osD^v"[number % 5],
                        markersize=4,
                        markerfacecolor="none",
                        color=SHADES[number % len(SHADES)],
                        label=f"before step {step}" if row is chosen[0] else None,
                    )
                    drawn.tip(point, f"{tip_of(row)}, step {step}: {row.error:.1e}")
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
            title = f"float64: {kind}s, ConvBP2d against nn.Conv2d"
            finish_layers(axes, names, convolutional(mine), title)
        panels[0].set_ylabel("max |difference| / max |value|")
        panels[0].legend(loc="best")
    return drawn.svg


def draw_rounded(path: Path, rows: list[Row], comparison: str) -> str:
    """Draw both sides' errors in ``comparison`` against the float64 truth, worst of all steps."""
    with picture(path, 2, 1, (10, 4.4), sharey=True) as (drawn, panels):
        for axes, kind in zip(panels, ("output", "gradient"), strict=True):
            chosen = [row for row in rows if row.comparison == comparison and row.kind == kind]
            draw_pair(drawn, axes, worst(chosen))
            names = unique(row.name for row in chosen)
            title = f"{comparison}: {kind}s, each against float64"
            finish_layers(axes, names, convolutional(chosen), title)
        panels[0].set_ylabel("error against float64, worst of all steps")
        panels[0].legend(loc="best")
    return drawn.svg


def draw_pair(drawn: Picture, axes: Axes, rows: list[Row]) -> None:
    """Draw nn.Conv2d's error, ConvBP2d's error and what it may be, one column for each row."""
    axes.plot(
        range(len(rows)),
        [row.allowed for row in rows],
        color=BOUND,
        label="allowed for ConvBP2d",
        drawstyle="steps-mid",
        linewidth=1.2,
    )
    style: dict[str, Any] = {"linestyle": "none", "markersize": 4.5}
    sides: dict[str, dict[str, Any]] = {
        "torch": {"marker": "o", "markerfacecolor": "none"},
        "bp": {"marker": "x"},
    }
    for side, marker in sides.items():
        for place, row in enumerate(rows):
            error = row.torch_error if side == "torch" else row.error
            (point,) = axes.plot(
                [place],
                [visible(error, row)],
                color=COLORS[side],
                label=LABELS[side] if place == 0 else None,
                **style,
                **marker,
            )
            drawn.tip(point, f"{LABELS[side]}, {tip_of(row)}, step {row.step}: {error:.1e}")


def tip_of(row: Row) -> str:
    """Say what tensor a point is about."""
    return f"{row.kind} of {row.name} ({row.layer}; allowed {row.allowed:.1e})"


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


def worst(rows: list[Row]) -> list[Row]:
    """Keep of each tensor the step and seed at which its error came closest to its bound."""
    found: dict[tuple[str, str], Row] = {}
    for row in rows:
        key = (row.name, row.kind)
        if key not in found or not row.ok or nearness(row) > nearness(found[key]):
            found[key] = row
    return list(found.values())


def nearness(row: Row) -> float:
    """Return the error as a share of what is allowed."""
    return row.error / row.allowed if row.allowed else math.inf


def visible(error: float, row: Row) -> float:
    """Return an error of zero as the floor of a logarithmic axis."""
    return max(error, FLOOR[row.comparison]) if math.isfinite(error) else math.nan


def unique(names: Iterable[str]) -> list[str]:
    """Return names without repetition, in order."""
    return list(dict.fromkeys(names))
