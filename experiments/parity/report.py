"""The report of a run of the parity experiment: its pictures and report.html."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING, Any

from experiments.common import html
from experiments.parity.config import LABELS, SIDES
from experiments.parity.curves import draw_curves, draw_seeds
from experiments.parity.lockstep_plots import draw_float64, draw_rounded, worst
from experiments.parity.verdict import accuracies, spread_of

if TYPE_CHECKING:
    from pathlib import Path

    from experiments.parity.lockstep import Row
    from experiments.parity.results import SeedResult
    from experiments.parity.verdict import Check

MIB = 2**20


def write_report(
    folder: Path, summary: dict[str, Any], checks: list[Check], seeds: list[SeedResult]
) -> None:
    """Draw the pictures and write report.html, which holds them."""
    settings, data = summary["settings"], summary["data"]
    rows = [row for seed in seeds for row in seed.rows]
    numbers = ", ".join(map(str, settings["seeds"]))
    body = [
        html.verdict(summary["verdict"], summary["parity"]),
        html.tiles(first_figures(summary, seeds, rows)),
        html.section("The checks", checks_table(checks)),
        html.section(
            "Independent trainings",
            html.paragraph(trainings_text(settings, data)),
            trainings_table(summary["trainings"]),
            *([seeds_table(summary["seeds"])] if len(seeds) > 1 else []),
            html.figure(
                draw_curves(folder / "curves.png", seeds),
                "Loss, difference of losses, accuracy and time a step",
                "The two trainings of a seed see the same batches. They part as rounding "
                "differences grow with every step; what must agree is the start and the quality "
                "at the end."
                + (
                    " Lines are means over the seeds, bands reach from the lowest to the highest."
                    if len(seeds) > 1
                    else ""
                ),
            ),
            *seeds_figure(folder, seeds),
        ),
        html.section(
            "Lockstep: the same weights and batch through both",
            html.paragraph(
                "Before the chosen steps of nn.Conv2d's training, its weights and batch went "
                "through both networks; every layer's output and every parameter's gradient is "
                "compared. An error is the largest difference relative to the largest entry of "
                "the output, or of the layer's gradients."
            ),
            *lockstep_figures(folder, rows),
        ),
        html.section("Every convolution", convolutions_table(rows)),
        f"<details><summary>Every tensor that was compared ({len(rows):,})</summary>"
        f"{rows_table(seeds)}</details>",
        html.section(
            "How this was run",
            f'<p class="code">{escape(summary["command"])}</p>',
            html.facts({name: summary[name] for name in FACTS}),
        ),
    ]
    html.write_page(
        folder / "report.html",
        f"Parity: {settings['network']} on {data['name']}",
        f"{LABELS['torch']} and {LABELS['bp']}, "
        f"{'seed' if len(settings['seeds']) == 1 else 'seeds'} {numbers}, "
        f"{summary['started'].replace('T', ' ')}",
        "\n".join(body),
    )


FACTS = ("settings", "data", "machine", "versions")


def first_figures(
    summary: dict[str, Any], seeds: list[SeedResult], rows: list[Row]
) -> list[tuple[str, str]]:
    """Return what a reader wants to know first, and what it is."""
    theirs, ours = (summary["trainings"][side] for side in SIDES)
    found = []
    if theirs["test_accuracy"] is not None and ours["test_accuracy"] is not None:
        words = f"test accuracy with ConvBP2d; {theirs['test_accuracy']:.2%} with nn.Conv2d"
        if len(seeds) > 1:
            spread = spread_of(accuracies(seeds))
            words += (
                f". Difference {100 * spread.difference:+.2f} \u00b1 "
                f"{100 * spread.half_width(0.05):.2f} points"
            )
        found.append((f"{ours['test_accuracy']:.2%}", words))
        time = ours["seconds_per_step"]["median"] / theirs["seconds_per_step"]["median"]
        found.append((f"{time:.2f} \u00d7", "the time of a training step, median"))
        memory = ours["peak_memory_growth_bytes"] / theirs["peak_memory_growth_bytes"]
        found.append((f"{memory:.2f} \u00d7", "the memory of training, peak above start"))
    exact = [row for row in rows if row.comparison == "float64"]
    if exact:
        found.append(
            (
                f"{max(row.error for row in exact):.1e}",
                f"the largest relative error of {len(exact):,} tensors compared in float64",
            )
        )
    return found


def trainings_text(settings: dict[str, Any], data: dict[str, Any]) -> str:
    """Say what was trained, and how the two share the machine."""
    return (
        f"{data['train']:,} training and {data['test']:,} test pictures in {data['classes']} "
        f"classes; batches of {settings['batch_size']}, {settings['total_steps']:,} steps in "
        f"{settings['epochs']} epochs. The trainings run in a process each, so that peak memory "
        "is their own, and take turns of ten steps, so that a slower minute of the machine slows "
        "both. A step's time covers forward, backward and optimizer, not loading."
    )


def seeds_figure(folder: Path, seeds: list[SeedResult]) -> list[str]:
    """Return the picture of the seeds, if there are several that ended."""
    if len(seeds) < 2:
        return []
    return [
        html.figure(
            draw_seeds(folder / "seeds.png", seeds),
            "Final accuracy of every seed, and the mean difference with its interval",
            "Left: both sides of every seed. Right: their differences, the mean with its 95 % "
            "confidence interval, and what is allowed: the 99.73 % interval that the spread from "
            "seed to seed gives.",
        )
    ]


def lockstep_figures(folder: Path, rows: list[Row]) -> list[str]:
    """Return a picture for each comparison."""
    found = [
        html.figure(
            draw_float64(folder / "lockstep64.png", rows),
            "Errors of every layer in float64 and their bound",
            "float64. Circles, squares and diamonds are the compared steps; the line is the "
            "bound 8uD. Errors of exactly zero stand at 1e-17.",
        )
    ]
    for comparison, name in (("float32", "lockstep32"), ("bfloat16", "lockstep16")):
        if any(row.comparison == comparison for row in rows):
            found.append(
                html.figure(
                    draw_rounded(folder / f"{name}.png", rows, comparison),
                    f"Errors of every layer in {comparison}",
                    f"{comparison}, each side against the float64 truth, at the step where "
                    "ConvBP2d came closest to what it may err.",
                )
            )
    return found


def checks_table(checks: list[Check]) -> str:
    """Return the verdict rule by rule."""
    lines = []
    for check in checks:
        tone, word = ("good", "\u2713 holds") if check.ok else ("bad", "\u2717 fails")
        lines.append(
            f'<tr><td class="mark {tone}">{word}</td><th>{escape(check.name)}</th>'
            f"{html.cell(check.measured)}{html.cell(check.allowed)}"
            f"{html.cell(check.rule, 'rule')}</tr>"
        )
    head = [("", ""), ("check", ""), ("measured", ""), ("allowed", ""), ("rule", "")]
    return html.table(head, lines)


def trainings_table(trainings: dict[str, Any]) -> str:
    """Return the figures of both sides and how they compare."""
    lines = []
    for label, figures in training_figures(trainings):
        cells = "".join(html.cell(figure, "number") for figure in figures)
        lines.append(f"<tr><th>{escape(label)}</th>{cells}</tr>")
    head = [("", ""), *((LABELS[side], "number") for side in SIDES), ("ratio", "number")]
    return html.table(head, lines)


def training_figures(trainings: dict[str, Any]) -> list[tuple[str, tuple[str, str, str]]]:
    """Return what is said of both sides, here and on the terminal: label, figures, ratio.

    Over several seeds, means come with their standard deviation.
    """
    rows = {
        "loss at the first step": ("first_loss", 1, "{:.6f}"),
        "loss at the last step": ("last_loss", 1, "{:.6f}"),
        "test loss": ("test_loss", 1, "{:.4f}"),
        "test accuracy, %": ("test_accuracy", 0.01, "{:.2f}"),
        "seconds a step, median": ("median", 1, "{:.4f}"),
        "seconds a step, quartile 1": ("first_quartile", 1, "{:.4f}"),
        "seconds a step, quartile 3": ("third_quartile", 1, "{:.4f}"),
        "peak memory, MiB": ("peak_memory_bytes", MIB, "{:,.0f}"),
        "peak memory above start, MiB": ("peak_memory_growth_bytes", MIB, "{:,.0f}"),
    }
    lines = []
    for label, (key, unit, form) in rows.items():
        sides = [trainings[side] | trainings[side]["seconds_per_step"] for side in SIDES]
        if any(side[key] is None for side in sides):
            lines.append((label, ("\u2013", "\u2013", "\u2013")))
            continue
        texts = []
        for side in sides:
            deviation = side.get(f"{key}_deviation")
            spread = "" if deviation is None else " \u00b1 " + form.format(deviation / unit)
            texts.append(form.format(side[key] / unit) + spread)
        quality = "loss" in key or "accuracy" in key
        ratio = "" if quality or not sides[0][key] else f"{sides[1][key] / sides[0][key]:.2f}"
        lines.append((label, (texts[0], texts[1], ratio)))
    return lines


def seeds_table(seeds: list[dict[str, Any]]) -> str:
    """Return one line for each seed."""
    head = [("seed", "number")]
    for what in ("test loss", "test accuracy", "s a step"):
        head += [(f"{what}, {name}", "number") for name in ("Conv2d", "ConvBP2d")]
    head += [("time", "number"), ("memory", "number")]
    lines = []
    for seed in seeds:
        theirs, ours = (seed["trainings"][side] for side in SIDES)
        if theirs["test_loss"] is None or ours["test_loss"] is None:
            lines.append(f"<tr>{html.cell(str(seed['seed']), 'number')}</tr>")
            continue
        times = [side["seconds_per_step"]["median"] for side in (theirs, ours)]
        memory = [side["peak_memory_growth_bytes"] for side in (theirs, ours)]
        cells = [
            str(seed["seed"]),
            *(f"{side['test_loss']:.4f}" for side in (theirs, ours)),
            *(f"{side['test_accuracy']:.2%}" for side in (theirs, ours)),
            *(f"{seconds:.4f}" for seconds in times),
            f"{times[1] / times[0]:.2f}",
            f"{memory[1] / memory[0]:.2f}",
        ]
        lines.append(f"<tr>{''.join(html.cell(text, 'number') for text in cells)}</tr>")
    return html.table(head, lines)


def convolutions_table(rows: list[Row]) -> str:
    """Return one line for each convolution: worst errors of all steps and seeds."""
    comparisons = list(dict.fromkeys(row.comparison for row in rows))
    of_all = {
        (row.comparison, row.kind, row.name): row
        for comparison in comparisons
        for row in worst([row for row in rows if row.comparison == comparison])
    }
    names = list(dict.fromkeys(row.name for row in rows if row.layer == "ConvBP2d"))
    groups, columns = "", ""
    for comparison in comparisons:
        theirs = ["Conv2d"] if comparison != "float64" else []
        for kind in ("output", "weight gradient"):
            heads = [*theirs, "ConvBP2d", "allowed"]
            groups += f'<th class="number" colspan="{len(heads)}">{comparison} {kind}</th>'
            columns += "".join(f'<th class="number">{text}</th>' for text in heads)
    lines = []
    for name in names:
        if ("float64", "output", name) not in of_all:
            continue
        cells = []
        for comparison in comparisons:
            for kind, tensor in (("output", name), ("gradient", f"{name}.weight")):
                row = of_all[comparison, kind, tensor]
                theirs = [number(row.torch_error)] if comparison != "float64" else []
                cells += [*theirs, number(row.error), number(row.allowed)]
        lines.append(f"<tr><th>{escape(name)}</th>{''.join(cells)}</tr>")
    return (
        f'<div class="wide"><table><thead><tr><th>layer</th>{groups}</tr>'
        f"<tr><th></th>{columns}</tr></thead><tbody>{''.join(lines)}</tbody></table></div>"
    )


def number(value: float) -> str:
    """Return a cell with an error."""
    return html.cell(f"{value:.1e}" if value else "0", "number")


def rows_table(seeds: list[SeedResult]) -> str:
    """Return every comparison made."""
    lines = [
        f'<tr class="{"" if row.ok else "bad"}">{html.cell(str(seed.seed), "number")}'
        f"{html.cell(row.comparison)}{html.cell(str(row.step), 'number')}"
        f"{html.cell(row.kind)}{html.cell(row.name, 'code')}{html.cell(row.layer)}"
        f"{number(row.torch_error)}{number(row.error)}{number(row.allowed)}</tr>"
        for seed in seeds
        for row in seed.rows
    ]
    head = [
        ("seed", "number"),
        ("comparison", ""),
        ("step", "number"),
        ("of", ""),
        ("name", ""),
        ("layer", ""),
        ("Conv2d's error", "number"),
        ("ConvBP2d's error", "number"),
        ("allowed", "number"),
    ]
    return html.table(head, lines, "sift")
