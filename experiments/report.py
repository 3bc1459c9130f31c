"""The report of a run: one HTML file that holds its style and its pictures within itself."""

from __future__ import annotations

import base64
from html import escape
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING, Any

from experiments.figures import worst_of_steps
from experiments.spec import LABELS, SIDES

if TYPE_CHECKING:
    from collections.abc import Iterable

    from experiments.lockstep import Row
    from experiments.verdict import Check

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
.soft { color: var(--soft); }
.verdict { border-left: 6px solid; padding: .8rem 1.2rem; margin: 1.4rem 0 0; font-size: 1.15rem;
  font-weight: 600; }
.verdict.good { border-color: var(--good); background: #eef7f1; color: var(--good); }
.verdict.bad { border-color: var(--bad); background: #fcefee; color: var(--bad); }
.wide { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: .87rem; }
th, td { text-align: left; padding: .38rem .8rem .38rem 0; vertical-align: top;
  border-bottom: 1px solid var(--line); }
thead th { border-bottom: 2px solid #c9cdd3; font-weight: 600; white-space: nowrap; }
tbody th { font-weight: 600; white-space: nowrap; }
.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
td.rule { color: var(--soft); font-size: .82rem; line-height: 1.45; }
.mark { font-weight: 700; white-space: nowrap; }
.mark.good { color: var(--good); } .mark.bad, tr.bad td { color: var(--bad); }
code, .code { font: .84rem/1.5 ui-monospace, "DejaVu Sans Mono", Menlo, monospace; }
figure { margin: 1rem 0 0; } figure img { width: 100%; height: auto; display: block; }
figcaption { color: var(--soft); font-size: .87rem; margin-top: .4rem; max-width: 46rem; }
details { margin-top: .8rem; } summary { cursor: pointer; font-weight: 600; }
@media print { body { padding: 0; } h2, figure { break-inside: avoid; } }
</style>
<h1>$title</h1>
<p class="soft">$subtitle</p>
<div class="verdict $tone">$verdict</div>

<h2>The checks</h2>
<div class="wide">$checks</div>

<h2>Two independent trainings</h2>
<p>$trainings_text</p>
<div class="wide">$trainings</div>
<figure><img alt="Loss, difference of losses, accuracy and time a step" src="$curves">
<figcaption>The two trainings see the same batches. They part as rounding differences grow with
every step; what must agree is the start and the quality at the end.</figcaption></figure>

<h2>Lockstep: the same weights and batch through both</h2>
<p>$lockstep_text</p>
<figure><img alt="Errors of every layer in float64 and their bound" src="$lockstep64">
<figcaption>float64. Circles, squares and diamonds are the compared steps; the line is the bound
8uD. Errors of exactly zero stand at 1e-17.</figcaption></figure>
<figure><img alt="Errors of every layer in float32" src="$lockstep32">
<figcaption>float32, each side against the float64 truth, at the step where ConvBP2d came
closest to what it may err. Errors of exactly zero stand at 1e-9.</figcaption></figure>
<h2>Every convolution</h2>
<div class="wide">$convolutions</div>
<details><summary>Every tensor that was compared ($row_count)</summary>
<div class="wide">$rows</div></details>

<h2>How this was run</h2>
<p class="code">$command</p>
<div class="wide">$facts</div>
</html>
""")


def write_report(
    folder: Path, summary: dict[str, Any], checks: list[Check], rows: list[Row]
) -> None:
    """Write report.html beside the pictures it takes in."""
    settings = summary["settings"]
    data = summary["data"]
    good = summary["parity"]
    page = PAGE.substitute(
        title=escape(f"Parity: {settings['network']} on {data['name']}"),
        subtitle=escape(
            f"{LABELS['torch']} and {LABELS['bp']}, seed {summary['seed']}, "
            f"{summary['started'].replace('T', ' ')}"
        ),
        tone="good" if good else "bad",
        verdict=escape(summary["verdict"]),
        checks=checks_table(checks),
        trainings_text=escape(
            f"{data['train']:,} training and {data['test']:,} test pictures in "
            f"{data['classes']} classes; batches of {settings['batch_size']}, "
            f"{settings['total_steps']:,} steps in {settings['epochs']} epochs. The trainings run "
            "in a process each, so that peak memory is their own, and take turns of ten steps, so "
            "that a slower minute of the machine slows both. A step's time covers forward, "
            "backward and optimizer, not loading."
        ),
        trainings=trainings_table(summary["trainings"]),
        lockstep_text=escape(
            "Before the chosen steps of nn.Conv2d's training, its weights and batch went through "
            "both networks; every layer's output and every parameter's gradient is compared. An "
            "error is the largest difference divided by the largest entry of the tensor."
        ),
        convolutions=convolutions_table(rows),
        row_count=f"{len(rows):,}",
        rows=rows_table(rows),
        command=escape(summary["command"]),
        facts=facts_table(summary),
        **{
            name: embedded(folder / f"{name}.png")
            for name in ("curves", "lockstep64", "lockstep32")
        },
    )
    (folder / "report.html").write_text(page, encoding="utf-8")


def embedded(path: Path) -> str:
    """Return a picture as a data address."""
    return "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode("ascii")


def table(head: Iterable[tuple[str, str]], lines: Iterable[str]) -> str:
    """Return a table; the head gives each column's text and class."""
    columns = "".join(f'<th class="{kind}">{escape(text)}</th>' for text, kind in head)
    return f"<table><thead><tr>{columns}</tr></thead><tbody>{''.join(lines)}</tbody></table>"


def cell(text: str, kind: str = "") -> str:
    """Return one cell."""
    return f'<td class="{kind}">{escape(text)}</td>'


def checks_table(checks: list[Check]) -> str:
    """Return the verdict rule by rule."""
    lines = []
    for check in checks:
        tone, word = ("good", "\u2713 holds") if check.ok else ("bad", "\u2717 fails")
        lines.append(
            f'<tr><td class="mark {tone}">{word}</td><th>{escape(check.name)}</th>'
            f"{cell(check.measured)}{cell(check.allowed)}{cell(check.rule, 'rule')}</tr>"
        )
    return table([("", ""), ("check", ""), ("measured", ""), ("allowed", ""), ("rule", "")], lines)


def trainings_table(trainings: dict[str, Any]) -> str:
    """Return the figures of both trainings and how they compare."""
    lines = []
    for label, figures in training_figures(trainings):
        cells = "".join(cell(figure, "number") for figure in figures)
        lines.append(f"<tr><th>{escape(label)}</th>{cells}</tr>")
    head = [("", ""), *((LABELS[side], "number") for side in SIDES), ("ratio", "number")]
    return table(head, lines)


def training_figures(trainings: dict[str, Any]) -> list[tuple[str, tuple[str, str, str]]]:
    """Return what is said of both trainings, here and on the terminal: label, figures, ratio."""
    mib = 2**20
    pairs = {
        "loss at the first step": ("first_loss", 1.0, "{:.6f}"),
        "loss at the last step": ("last_loss", 1.0, "{:.6f}"),
        "test loss": ("test_loss", 1.0, "{:.4f}"),
        "test accuracy": ("test_accuracy", 1.0, "{:.2%}"),
        "seconds a step, median": ("median", 1.0, "{:.4f}"),
        "seconds a step, quartile 1": ("first_quartile", 1.0, "{:.4f}"),
        "seconds a step, quartile 3": ("third_quartile", 1.0, "{:.4f}"),
        "peak memory, MiB": ("peak_memory_bytes", mib, "{:,.0f}"),
        "peak memory above start, MiB": ("peak_memory_growth_bytes", mib, "{:,.0f}"),
    }
    lines = []
    for label, (key, unit, form) in pairs.items():
        values = [
            trainings[side].get(key, trainings[side]["seconds_per_step"].get(key)) for side in SIDES
        ]
        if any(value is None for value in values):
            lines.append((label, ("\u2013", "\u2013", "\u2013")))
            continue
        ratio = f"{values[1] / values[0]:.2f}" if values[0] and "loss" not in key else ""
        first, second = (form.format(value / unit) for value in values)
        lines.append((label, (first, second, ratio if "accuracy" not in key else "")))
    return lines


def convolutions_table(rows: list[Row]) -> str:
    """Return one line for each convolution: worst errors of all steps."""
    worst = {(r.comparison, r.kind, r.name): r for r in by_comparison(rows)}
    names = list(dict.fromkeys(row.name for row in rows if row.layer == "ConvBP2d"))
    names = [name for name in names if ("float64", "output", name) in worst]
    lines = []
    for name in names:
        cells = []
        for comparison in ("float64", "float32"):
            for kind, tensor in (("output", name), ("gradient", f"{name}.weight")):
                row = worst[comparison, kind, tensor]
                theirs = [number(row.torch_error)] if comparison == "float32" else []
                cells += [*theirs, number(row.error), number(row.allowed)]
        lines.append(f"<tr><th>{escape(name)}</th>{''.join(cells)}</tr>")
    groups = "".join(
        f'<th class="number" colspan="{width}">{text}</th>'
        for text, width in (
            ("float64 output", 2),
            ("float64 weight gradient", 2),
            ("float32 output", 3),
            ("float32 weight gradient", 3),
        )
    )
    pair = '<th class="number">ConvBP2d</th><th class="number">allowed</th>'
    sub = pair * 2 + f'<th class="number">Conv2d</th>{pair}' * 2
    return (
        f"<table><thead><tr><th>layer</th>{groups}</tr><tr><th></th>{sub}</tr></thead>"
        f"<tbody>{''.join(lines)}</tbody></table>"
    )


def by_comparison(rows: list[Row]) -> list[Row]:
    """Return the worst step of every tensor in every comparison."""
    comparisons = dict.fromkeys(row.comparison for row in rows)
    return [
        row
        for comparison in comparisons
        for row in worst_of_steps([row for row in rows if row.comparison == comparison])
    ]


def number(value: float) -> str:
    """Return a cell with an error."""
    return cell(f"{value:.1e}" if value else "0", "number")


def rows_table(rows: list[Row]) -> str:
    """Return every comparison made."""
    lines = [
        f'<tr class="{"" if row.ok else "bad"}">'
        f"{cell(row.comparison)}{cell(str(row.step), 'number')}"
        f"{cell(row.kind)}{cell(row.name, 'code')}{cell(row.layer)}{number(row.torch_error)}"
        f"{number(row.error)}{number(row.allowed)}</tr>"
        for row in rows
    ]
    head = [
        ("comparison", ""),
        ("step", "number"),
        ("of", ""),
        ("name", ""),
        ("layer", ""),
        ("Conv2d's error", "number"),
        ("ConvBP2d's error", "number"),
        ("allowed", "number"),
    ]
    return table(head, lines)


def facts_table(summary: dict[str, Any]) -> str:
    """Return settings, data, machine and versions."""
    lines = []
    for group in ("settings", "data", "machine", "versions"):
        for key, value in summary[group].items():
            if value is None:
                continue
            text = ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
            name = escape(key.replace("_", " "))
            lines.append(f"<tr>{cell(group, 'soft')}<th>{name}</th>{cell(text)}</tr>")
    return table([("", ""), ("", ""), ("", "")], lines)
