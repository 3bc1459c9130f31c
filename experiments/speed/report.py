"""The pictures of a run and report.html, which holds them and the tables."""

from __future__ import annotations

from html import escape
from pathlib import Path

from experiments.common import html
from experiments.speed import table
from experiments.speed.pictures import draw_ratios, draw_roofline
from experiments.speed.results import Results


def write_report(folder: Path, results: Results) -> None:
    """Draw the pictures and write the page."""
    text, lines = table.every_case(results)
    sides, side_lines = table.full(results)
    pictures = [
        html.figure(
            draw_ratios(folder / "ratios.png", results),
            "Eager torch's time over torch_convbp's, case by case",
            "Eager torch's time over torch_convbp's: right of 1, ours is faster. Whiskers are what "
            "the quartiles of both allow.",
        )
    ]
    if any(row.operations for row in results.rows):
        pictures.append(
            html.figure(
                draw_roofline(folder / "roofline.png", results),
                "Rates of both sides under the machine's roofline",
                "Rates of the direct arithmetic, torch's and ours joined by a line; algorithms "
                "that do less of it may come above the roof.",
            )
        )
    figures = [
        (
            f"{s.geometric_mean:.2f}",
            f"{s.operator}, {s.layout}: geometric mean of the ratios against {s.against}; "
            f"worst {s.worst:.2f}" + (f"; mean share {table.percent(s.share)}" if s.share else ""),
        )
        for s in results.summaries()
    ]
    shares = [html.paragraph(table.SHARE)] if table.has_shares(results) else []
    body = [
        html.tiles(figures[:8]),
        html.section("Ratios", *pictures),
        html.section("All means", html_table(table.summaries(results)), *shares),
        html.section("Every case", html.paragraph(text), html_table(lines, "sift")),
        f"<details><summary>Every side</summary>{html.paragraph(sides)}"
        f"{html_table(side_lines, 'sift')}</details>",
        html.section(
            "How this was run",
            f'<p class="code">{escape(results.command)}</p>',
            html.facts(
                {
                    "settings": results.settings,
                    "machine": results.machine,
                    "versions": dict(results.versions),
                    "most reached": {
                        c.of: f"{c.arithmetic / 1e9:.0f} GF/s, copying {c.copy / 1e9:.0f} GB/s; "
                        f"at most {table.bandwidths(c)}"
                        for c in results.ceilings
                    },
                }
            ),
        ),
    ]
    html.write_page(
        folder / "report.html", f"Speed: {results.title}", results.started, "\n".join(body)
    )


def html_table(lines: list[list[str]], kind: str = "") -> str:
    """Return a table whose first line is its head."""
    head, *rows = lines
    body = (f"<tr>{''.join(html.cell(text) for text in row)}</tr>" for row in rows)
    return html.table([(text, "") for text in head], body, kind)
