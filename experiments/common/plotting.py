"""How the pictures of the experiments look, and how they are kept.

Each is a PNG beside the report and an SVG within it. What ``tip`` was given stands in the SVG as
the title of its point, which a browser shows under the pointer.
"""

from __future__ import annotations

import io
from contextlib import contextmanager
from html import escape
from typing import TYPE_CHECKING, Any

import matplotlib

matplotlib.use("Agg")

from matplotlib import pyplot as plt

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from matplotlib.artist import Artist
    from matplotlib.figure import Figure

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


class Picture:
    """A picture that is being drawn, and its SVG when it is."""

    def __init__(self, figure: Figure) -> None:
        self.figure = figure
        self.tips: list[str] = []
        self.svg = ""

    def tip(self, artist: Artist, text: str) -> None:
        """Let a browser say ``text`` of what was drawn."""
        artist.set_gid(f"tip-{len(self.tips)}-")
        self.tips.append(text)


@contextmanager
def picture(
    path: Path, columns: int, rows: int, size: tuple[float, float], **more: Any
) -> Iterator[tuple[Picture, Any]]:
    """Yield a ``Picture`` and its axes; write it as PNG to ``path`` at the end.

    ``more`` goes to ``plt.subplots``.
    """
    with plt.rc_context({**STYLE, "svg.hashsalt": path.stem}):
        more = {"layout": "constrained", **more}
        figure, axes = plt.subplots(rows, columns, figsize=size, **more)
        drawn = Picture(figure)
        yield drawn, axes
        figure.savefig(path)
        drawn.svg = svg_of(drawn)
        plt.close(figure)


def svg_of(drawn: Picture) -> str:
    """Return the SVG element, with its tips."""
    file = io.StringIO()
    drawn.figure.savefig(file, format="svg", metadata={"Date": None})
    svg = file.getvalue()
    svg = svg[svg.index("<svg") :]
    for number, text in enumerate(drawn.tips):
        svg = svg.replace(f'<g id="tip-{number}-">', f"<g><title>{escape(text)}</title>", 1)
    return svg
