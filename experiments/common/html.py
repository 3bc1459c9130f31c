"""The pages of the experiments: one HTML file each, which holds its style and pictures itself.

A page is read without a network, and printed. Its figures are SVG: their points say what they are
when the pointer rests on them. Tables of class ``sift`` are sorted by a click on a column's head,
and searched in a field above them.
"""

from __future__ import annotations

import base64
from html import escape
from string import Template
from typing import TYPE_CHECKING

from experiments.common.atomic_write import atomic_write

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

PAGE = Template("""<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>$title</title>
<style>
:root { --ink: #1d2129; --soft: #5c6370; --line: #e3e5e9; --good: #17693a; --bad: #a8211b; }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 2.5rem 1.5rem 4rem; max-width: 66rem; color: var(--ink);
  background: #fff; font: 15px/1.55 system-ui, "Helvetica Neue", Arial, sans-serif; }
h1 { font-size: 1.7rem; line-height: 1.2; margin: 0 0 .3rem; letter-spacing: -.01em; }
h2 { font-size: 1.15rem; margin: 2.6rem 0 .6rem; }
p { max-width: 46rem; margin: .5rem 0; }
a { color: #1f5a96; }
.soft { color: var(--soft); }
.verdict { border-left: 6px solid; padding: .8rem 1.2rem; margin: 1.4rem 0 0; font-size: 1.15rem;
  font-weight: 600; }
.verdict.good { border-color: var(--good); background: #eef7f1; color: var(--good); }
.verdict.bad { border-color: var(--bad); background: #fcefee; color: var(--bad); }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(11.5rem, 1fr));
  gap: .8rem; margin: 1.2rem 0 0; }
.tile { border: 1px solid var(--line); border-radius: 6px; padding: .7rem .9rem; }
.tile b { display: block; font-size: 1.35rem; font-weight: 600; letter-spacing: -.01em;
  font-variant-numeric: tabular-nums; }
.tile span { color: var(--soft); font-size: .84rem; line-height: 1.35; display: block; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: .87rem; }
th, td { text-align: left; padding: .38rem .8rem .38rem 0; vertical-align: top;
  border-bottom: 1px solid var(--line); }
table + table, .wide + .wide { margin-top: 1.4rem; }
thead th { border-bottom: 2px solid #c9cdd3; font-weight: 600; vertical-align: bottom; }
tbody th { font-weight: 600; white-space: nowrap; }
.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
thead th.number { white-space: normal; }
td.rule { min-width: 20rem; color: var(--soft); font-size: .82rem; line-height: 1.45; }
.mark { font-weight: 700; white-space: nowrap; }
.mark.good { color: var(--good); } .mark.bad, tr.bad td { color: var(--bad); }
code, .code { font: .84rem/1.5 ui-monospace, "DejaVu Sans Mono", Menlo, monospace; }
figure { margin: 1rem 0 0; } figure img, figure svg { width: 100%; height: auto; display: block; }
figcaption { color: var(--soft); font-size: .87rem; margin-top: .4rem; max-width: 46rem; }
details { margin-top: .8rem; } summary { cursor: pointer; font-weight: 600; }
.sort { cursor: pointer; } .sort:hover { color: #1f5a96; }
.sort[data-way="1"]::after { content: " \\25b4"; }
.sort[data-way="-1"]::after { content: " \\25be"; }
.search { font: inherit; padding: .3rem .6rem; margin: .6rem 0; width: 20rem; max-width: 100%;
  border: 1px solid #c9cdd3; border-radius: 4px; }
.runs { display: grid; grid-template-columns: repeat(auto-fill, minmax(19rem, 1fr)); gap: 1.2rem; }
.run { border: 1px solid var(--line); border-radius: 6px; overflow: hidden; }
.run img { width: 100%; height: 11rem; object-fit: cover; object-position: left top;
  border-bottom: 1px solid var(--line); display: block; }
.run div { padding: .7rem .9rem .8rem; } .run p { font-size: .87rem; margin: .25rem 0 0; }
@media print { body { padding: 0; max-width: none; }
  h2, figure, .tile, .run { break-inside: avoid; } h2 { break-after: avoid; }
  .search, details { display: none; } }
</style>
<h1>$title</h1>
<p class="soft">$subtitle</p>
$body
<script>
for (const table of document.querySelectorAll("table.sift")) {
  const rows = [...table.tBodies[0].rows];
  const text = (row, column) => row.cells[column].textContent;
  for (const head of table.tHead.rows[0].cells) {
    head.classList.add("sort");
    head.onclick = () => {
      const way = head.dataset.way === "1" ? -1 : 1;
      for (const other of table.tHead.rows[0].cells) delete other.dataset.way;
      head.dataset.way = way;
      const column = head.cellIndex;
      const compare = (a, b) => text(a, column) - text(b, column)
        || text(a, column).localeCompare(text(b, column));
      table.tBodies[0].append(...rows.sort((a, b) => way * compare(a, b)));
    };
  }
  const search = document.createElement("input");
  search.className = "search";
  search.placeholder = "show rows with \\u2026";
  search.oninput = () => {
    const wanted = search.value.toLowerCase();
    for (const row of rows) row.hidden = !row.textContent.toLowerCase().includes(wanted);
  };
  table.before(search);
}
</script>
</html>
""")


def write_page(path: Path, title: str, subtitle: str, body: str) -> None:
    """Write a page in one move; ``body`` is HTML."""
    with atomic_write(path) as part:
        part.write_text(
            PAGE.substitute(title=escape(title), subtitle=escape(subtitle), body=body),
            encoding="utf-8",
            errors="replace",  # the name of a folder may be any bytes
        )


def section(title: str, *parts: str) -> str:
    """Return a headed section of HTML parts."""
    return f"\n<h2>{escape(title)}</h2>\n" + "\n".join(parts)


def paragraph(text: str) -> str:
    """Return a paragraph."""
    return f"<p>{escape(text)}</p>"


def verdict(text: str, good: bool) -> str:
    """Return the line that says how a run ended."""
    return f'<div class="verdict {"good" if good else "bad"}">{escape(text)}</div>'


def tiles(figures: Iterable[tuple[str, str]]) -> str:
    """Return the figures to see first, each with what it is."""
    found = "".join(
        f'<div class="tile"><b>{escape(figure)}</b><span>{escape(text)}</span></div>'
        for figure, text in figures
    )
    return f'<div class="tiles">{found}</div>'


def figure(picture: str, says: str, caption: str) -> str:
    """Return a picture, an SVG element, with what it shows in words and a caption."""
    drawn = picture.replace("<svg ", f'<svg role="img" aria-label="{escape(says)}" ', 1)
    return f"<figure>{drawn}<figcaption>{escape(caption)}</figcaption></figure>"


def image(path: Path, says: str) -> str:
    """Return a PNG picture as an element that holds it."""
    data = base64.b64encode(path.read_bytes()).decode("ascii")
    return f'<img alt="{escape(says)}" src="data:image/png;base64,{data}">'


def table(head: Iterable[tuple[str, str]], lines: Iterable[str], kind: str = "") -> str:
    """Return a table; the head gives each column's text and class."""
    columns = "".join(f'<th class="{kind}">{escape(text)}</th>' for text, kind in head)
    return (
        f'<div class="wide"><table class="{kind}"><thead><tr>{columns}</tr></thead>'
        f"<tbody>{''.join(lines)}</tbody></table></div>"
    )


def cell(text: str, kind: str = "") -> str:
    """Return one cell."""
    return f'<td class="{kind}">{escape(text)}</td>'


def facts(groups: dict[str, dict[str, object]]) -> str:
    """Return a table of settings, machine, versions and the like."""
    lines = []
    for group, values in groups.items():
        for key, value in values.items():
            if value is None:
                continue
            text = ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
            name = escape(key.replace("_", " "))
            lines.append(f"<tr>{cell(group, 'soft')}<th>{name}</th>{cell(text)}</tr>")
    return table([("", ""), ("", ""), ("", "")], lines)
