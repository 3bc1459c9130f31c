"""The pictures of a run: ratios as bars, and rates under the machine's roofline."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from experiments.common.plotting import COLORS, Picture, picture
from experiments.speed.results import Results, Row, unique

LAYOUT_COLORS = {"NCHW": "#1f5a96", "channels_last": "#d1600b"}
GRID: Any = {"sharex": True, "sharey": True, "squeeze": False, "layout": None}
MARKERS = {"NCHW": "o", "channels_last": "s"}


def draw_ratios(path: Path, results: Results) -> str:
    """A panel an operator, a bar a case and layout: eager torch's time over ours."""
    operators = unique(row.operator for row in results.rows)
    cases = unique(row.case for row in results.rows)
    layouts = unique(row.layout for row in results.rows)
    thickness = 0.8 / len(layouts)
    size = (2.2 + 2.3 * max(len(operators), 2), 1.3 + 0.36 * max(len(cases), 3))
    with picture(path, len(operators), 1, size, **GRID) as (drawn, panels):
        for axes, operator in zip(panels[0], operators, strict=True):
            for row in (row for row in results.rows if row.operator == operator):
                place = cases.index(row.case) + thickness * (
                    layouts.index(row.layout) - (len(layouts) - 1) / 2
                )
                draw_bar(drawn, axes, place, thickness, row)
            axes.axvline(1, color="#1d2129", linewidth=1)
            axes.set_title(operator)
            axes.grid(axis="y", visible=False)
        first = panels[0][0]
        first.set_xscale("log", base=2)
        first.xaxis.set_major_formatter(FuncFormatter(fraction))
        low, high = first.get_xlim()
        first.set_xlim(min(low, 0.7), max(high, 1.6) * 1.25)
        first.set_yticks(range(len(cases)), cases)
        first.invert_yaxis()
        handles = [
            plt.Rectangle((0, 0), 1, 1, color=LAYOUT_COLORS[layout], label=layout)
            for layout in layouts
        ]
        if any("compiled" in row.measured.spreads for row in results.rows):
            handles.append(handle("D", "#1d2129", False, "torch.compile's over ours"))
        if any(row.measured.disturbed for row in results.rows):
            hatched = {"facecolor": "white", "edgecolor": "#5c6370", "hatch": "////"}
            handles.append(plt.Rectangle((0, 0), 1, 1, **hatched, label="disturbed"))  # type: ignore[arg-type]
        drawn.figure.legend(handles=handles, loc="lower center", ncols=4)
        drawn.figure.suptitle(
            f"{results.title}\neager torch's time over torch_convbp's; right of 1, ours is faster",
            fontsize=9,
        )
        drawn.figure.tight_layout(rect=(0, 0.35 / size[1], 1, 1))
    return drawn.svg


def draw_bar(drawn: Picture, axes: Axes, place: float, thickness: float, row: Row) -> None:
    """A bar from 1 to the ratio, with what the quartiles of both sides allow."""
    ratio = row.ratio()
    low, high = row.ratio_quartiles()
    color = LAYOUT_COLORS[row.layout]
    style: dict[str, Any] = {"color": color}
    if row.measured.disturbed:
        style = {"facecolor": "white", "edgecolor": color, "hatch": "////"}
    (bar,) = axes.barh(place, ratio - 1, thickness, left=1, **style)
    drawn.tip(
        bar, f"{row.case}, {row.layout}, {row.operator}: {ratio:.2f} ({low:.2f} to {high:.2f})"
    )
    axes.plot([low, high], [place, place], color="#1d2129", linewidth=0.8)
    if "compiled" in row.measured.spreads:
        axes.plot(
            row.ratio("compiled"), place, "D", color="#1d2129", markersize=3, fillstyle="none"
        )
    # The number stands beyond the whisker, not on it.
    axes.annotate(
        f"{ratio:.2f}",
        (max(ratio, high, 1), place),
        xytext=(3, 0),
        textcoords="offset points",
        va="center",
        fontsize=6.5,
    )


def fraction(value: float, _: int) -> str:
    return f"{value:g}" if value >= 1 else f"1/{1 / value:g}"


def draw_roofline(path: Path, results: Results) -> str:
    """A panel an operator: rates over operations a byte, torch's and ours joined by a line."""
    operators = unique(row.operator for row in results.rows if row.operations)
    columns = min(len(operators), 2)
    lines = -(-len(operators) // columns)
    size = (5.6 * columns, 4.0 * lines + 0.7)
    with picture(path, columns, lines, size, **GRID) as (drawn, panels):
        first = panels[0][0]
        first.set_xscale("log")
        first.set_yscale("log")
        for axes in panels.flat[len(operators) :]:
            axes.set_visible(False)
        for axes, operator in zip(panels.flat, operators, strict=False):
            for row in (row for row in results.rows if row.operator == operator):
                draw_rates(drawn, axes, row)
            axes.set_title(operator)
            axes.set_xlabel("operations a byte that must be moved")
            axes.set_ylabel("GF/s")
            axes.tick_params(labelbottom=True, labelleft=True)
        low, high = first.get_xlim()
        bottom = first.get_ylim()[0]
        for axes in panels.flat[: len(operators)]:
            draw_roofs(axes, results, low, high)
        first.set_xlim(low, high)
        first.set_ylim(bottom=bottom)
        first.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        for axis in (first.xaxis, first.yaxis):
            axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            axis.set_minor_formatter(NullFormatter())
        handles = [
            handle(MARKERS[layout], COLORS[side], side == "bp", f"{name}, {layout}")
            for side, name in (("torch", "eager torch"), ("bp", "torch_convbp"))
            for layout in unique(row.layout for row in results.rows)
        ]
        drawn.figure.legend(handles=handles, loc="lower center", ncols=4)
        drawn.figure.suptitle(
            f"{results.title}\nrates of the direct arithmetic; algorithms that do less of it may "
            "come above the roof",
            fontsize=9,
        )
        drawn.figure.tight_layout(rect=(0, 0.35 / size[1], 1, 1))
    return drawn.svg


def draw_rates(drawn: Picture, axes: Axes, row: Row) -> None:
    x = row.operations / row.bytes
    theirs, ours = (row.operations / row.seconds(side) / 1e9 for side in ("torch", row.ours))
    marker = MARKERS[row.layout]
    axes.plot([x, x], [theirs, ours], color="#b9bec7", linewidth=0.8, zorder=1)
    for side, rate, fill, name in (
        ("torch", theirs, "none", "eager torch"),
        ("bp", ours, "full", "torch_convbp"),
    ):
        (point,) = axes.plot(x, rate, marker, color=COLORS[side], markersize=4.5, fillstyle=fill)
        drawn.tip(point, f"{name}, {row.case}, {row.layout}: {rate:.0f} GF/s")


def draw_roofs(axes: Axes, results: Results, low: float, high: float) -> None:
    for ceiling in results.ceilings:
        peak, memory = ceiling.arithmetic / 1e9, ceiling.memory[-1][1] / 1e9
        knee = peak / memory
        line = "-" if ceiling is results.ceilings[-1] else ":"
        left, right = min(low, knee), max(high, knee)
        roof = [memory * left, peak, peak]
        axes.plot([left, knee, right], roof, line, color="#1d2129", linewidth=1, zorder=0)
        text = f"{ceiling.of}: {peak:.0f} GF/s, {memory:.0f} GB/s"
        below = {"xytext": (4, -9 if line == ":" else 3), "textcoords": "offset points"}
        axes.annotate(text, (knee, peak), fontsize=7, **below)  # type: ignore[arg-type]


def handle(marker: str, color: str, filled: bool, label: str) -> Any:
    face = color if filled else "none"
    return plt.Line2D(
        [], [], color=color, marker=marker, markerfacecolor=face, linestyle="", label=label
    )
