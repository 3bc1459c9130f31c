"""The Markdown of a run, and putting it into a document."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

from experiments.speed.ceilings import Ceiling
from experiments.speed.results import Results, Row, unique

END = "<!-- end of speed -->"
PRECISIONS = {
    "float32": "float32",
    "tf32": "float32, products in TF32 allowed",
    "bfloat16": "bfloat16",
    "float16": "float16",
}
MEANINGS = {
    "torch": "eager torch",
    "benchmarked": "eager torch with cudnn.benchmark",
    "compiled": "torch.compile",
    "apart": "torch_convbp, the activation apart",
    "ours": "torch_convbp",
    "ours_compiled": "torch.compile of torch_convbp",
    "auto": "torch_convbp, auto",
    "direct": "torch_convbp, direct",
    "winograd": "torch_convbp, winograd",
}
SHARE = (
    "The share is the floor over the time of torch_convbp. The floor is the longer of two times: "
    "of the multiply-adds of the algorithm that it chose, and of the bytes that must be read or "
    "written once, each at the most reached (of bytes, with a working set as large). Above 100 %, "
    "bytes were still in a cache, or other programs ran while the most was measured."
)


def has_shares(results: Results) -> bool:
    return any(row.plans for row in results.rows)


def caption(results: Results) -> str:
    """Machine, versions and command, and what the numbers are."""
    m, v = results.machine, results.versions
    lines = [
        f"    {results.command}",
        "",
        f"{m.get('gpu') or cpu_of(m)}; "
        f"torch {v['torch']}, torch_convbp {v['torch_convbp']}, Python {v['python']}, "
        f"{m['system']}. {PRECISIONS[results.settings['precision']]}. {results.started}, "
        f"load before {m['load_before']}, after {m['load_after']}.",
        "",
    ]
    for c in results.ceilings:
        lines.append(
            f"- The most that {c.of} reached: {c.arithmetic / 1e9:.0f} GF/s "
            f"({c.by}), copying {c.copy / 1e9:.0f} GB/s (read and written); at most "
            f"{bandwidths(c)}{'; disturbed by other programs' if c.disturbed else ''}."
        )
    if has_shares(results):
        lines.append(f"- {SHARE}")
    disturbed = sum(row.measured.disturbed for row in results.rows)
    unknown = any(row.measured.foreign_share is None for row in results.rows)
    lines.append(
        "- Whether other programs used the machine is not known."
        if unknown
        else f"- {disturbed} of {len(results.rows)} measurements were disturbed by other programs"
        + (" even at the last attempt; they are marked with †." if disturbed else ".")
    )
    return "\n".join(lines)


def bandwidths(ceiling: Ceiling) -> str:
    """Rates by the size of the working set."""
    measured = (f"{rate / 1e9:.0f} GB/s on {size / 2**20:g} MiB" for size, rate in ceiling.memory)
    return ", ".join(measured)


def cpu_of(machine: dict[str, Any]) -> str:
    m = machine
    return f"{m['processor']}, {m['threads']} threads on {m['cpus']} CPUs, {m['capability']}"


def summaries(results: Results) -> list[list[str]]:
    """Means over all cases; last, the fastest of each side over all layouts."""
    lines = [["operator", "layout", "against", "geometric mean", "worst", "", "mean share"]]
    for s in results.summaries():
        labels = [s.operator, s.layout, s.against]
        mean, worst = f"{s.geometric_mean:.2f}", f"{s.worst:.2f}"
        lines.append([*labels, mean, worst, s.worst_case, percent(s.share)])
    return lines


def compact(results: Results) -> tuple[str, list[list[str]]]:
    """What the table says, and one line a case and layout.

    Times of all operators, errors, peak memory of the last.
    """
    operators = unique(row.operator for row in results.rows)
    names = unique(side for row in results.rows for side in row.measured.spreads)
    order = " / ".join(MEANINGS[side] for side in names)
    text = (
        f"Times in milliseconds: {order} = ratio of eager torch to torch_convbp"
        f"{' (share)' if has_shares(results) else ''}. Medians; error: "
        "largest difference from float64 over the largest entry, the worst of the operators; "
        f"memory: peak of one call of {operators[-1]} in a fresh process, in MiB."
    )
    head = ["case", "layout", *operators, f"error: {' / '.join(names)}", "memory"]
    lines = [head]
    for case, layout in dict.fromkeys((row.case, row.layout) for row in results.rows):
        rows = [row for row in results.rows if (row.case, row.layout) == (case, layout)]
        cells = {row.operator: times(results, row, names) for row in rows}
        errors = {n: [row.errors[n] for row in rows if n in row.errors] for n in names}
        worst = [f"{max(e):.0e}" if e else "–" for e in errors.values()]
        memory = [mebibytes(rows[-1].peaks.get(name)) for name in names]
        cells_in_order = [cells.get(operator, "") for operator in operators]
        lines.append([case, layout, *cells_in_order, " / ".join(worst), " / ".join(memory)])
    return text, lines


def times(results: Results, row: Row, names: list[str]) -> str:
    spreads = row.measured.spreads
    taken = [f"{digits(1e3 * row.seconds(n))}" if n in spreads else "–" for n in names]
    star = "†" if row.measured.disturbed else ""
    share = f" ({percent(results.share(row))})" if row.plans else ""
    return f"{' / '.join(taken)} = {row.ratio():.2f}{star}{share}"


def full(results: Results) -> tuple[str, list[list[str]]]:
    """What the table says, and one line an operator and side."""
    peak = results.ceilings[-1]
    head = ["case", "layout", "operator", "side", "ms", "quartiles", "calls", "page faults a call"]
    head += ["algorithm", "floor", "bound by"]
    head += ["GF/s", "of the most", "GB/s", "of copying", "error", "peak MiB"]
    lines = [head]
    for row in results.rows:
        for side, s in row.measured.spreads.items():
            cells = [row.case, row.layout, row.operator, side, digits(1e3 * s.median)]
            cells += [f"{digits(1e3 * s.first_quartile)}–{digits(1e3 * s.third_quartile)}"]
            cells += [str(s.samples), f"{s.page_faults:.0f}"]
            floor = results.floor(row, side)
            cells += (
                [row.plans[side].algorithm, digits(1e3 * floor.seconds), floor.bound]
                if floor
                else ["–"] * 3
            )
            for amount, ceiling in ((row.operations, peak.arithmetic), (row.bytes, peak.copy)):
                rate = amount / s.median
                cells += [f"{rate / 1e9:.1f}", f"{rate / ceiling:.0%}"] if amount else ["–", "–"]
            cells += [f"{row.errors[side]:.1e}", mebibytes(row.peaks.get(side))]
            lines.append(cells)
    return (
        "Floors are in milliseconds. Operations are those of the direct arithmetic: Winograd's "
        "algorithms do fewer, and may come above the most the machine can do. Bytes are those that "
        "must be read or written once.",
        lines,
    )


def sweep(results: Results) -> tuple[str, list[list[str]]]:
    """What the table says; what auto took, the fastest algorithm, and what the choice costs."""
    head = ["case", "layout", "operator", "auto", "direct", "winograd", "auto took", "fastest"]
    lines = [[*head, "auto / fastest"]]
    for row in results.rows:
        spreads = row.measured.spreads
        taken = [digits(1e3 * row.seconds(n)) if n in spreads else "–" for n in head[3:6]]
        best, cost = row.best_algorithm()
        star = "†" if row.measured.disturbed else ""
        chosen = row.plans["auto"].algorithm if row.plans else "some of each"
        labels = [row.case, row.layout, row.operator, *taken]
        lines.append([*labels, chosen, best, f"{cost:.2f}{star}"])
    worst = max(results.rows, key=lambda row: row.best_algorithm()[1])
    return (
        "Milliseconds; depthwise, grouped and pointwise kernels are direct's. Where auto took the "
        "fastest, what departs from 1 is noise. The dearest "
        f"choice: {worst.case}, {worst.layout}, {worst.operator}, "
        f"{worst.best_algorithm()[1]:.2f} times the fastest algorithm's time.",
        lines,
    )


def digits(value: float) -> str:
    """Three significant digits."""
    return f"{value:.3g}" if value < 1000 else f"{value:.0f}"


def percent(share: float | None) -> str:
    return "–" if share is None else f"{100 * share:.0f} %"


def mebibytes(count: int | None) -> str:
    return "–" if count is None else f"{count / 2**20:.1f}"


def markdown(lines: list[list[str]]) -> str:
    head, *rows = lines
    return "".join(f"| {' | '.join(line)} |\n" for line in (head, ["---"] * len(head), *rows))


def every_case(results: Results) -> tuple[str, list[list[str]]]:
    """What the table of the cases says, and its lines."""
    return sweep(results) if results.settings["sweep"] else compact(results)


def short(results: Results) -> str:
    """What goes into a document."""
    text, lines = every_case(results)
    return f"{caption(results)}\n\n{markdown(summaries(results))}\n{text}\n\n{markdown(lines)}"


def write_folder(folder: Path, results: Results) -> None:
    """Write table.md, which has everything."""
    pictures = "".join(f"![{p.stem}]({p.name})\n\n" for p in sorted(folder.glob("*.png")))
    text, lines = full(results)
    (folder / "table.md").write_text(
        f"# Speed: {results.title}\n\n{short(results)}\n{pictures}## Every side\n\n{text}\n\n"
        f"{markdown(lines)}"
    )


def write_document(document: Path, folder: Path, results: Results) -> None:
    """Put the short text between the marks, and the pictures beside the document."""
    images = document.parent / "images"
    images.mkdir(exist_ok=True)
    slug = re.sub(r"[^a-z0-9]+", "-", results.title.lower())
    pictures = ""
    for picture in sorted(folder.glob("*.png")):
        name = f"speed-{slug}-{picture.name}"
        shutil.copyfile(picture, images / name)
        pictures += f"![{picture.stem}, {results.title}](images/{name})\n\n"
    begin = f"<!-- speed: {results.title} -->"
    before, _, rest = document.read_text().partition(begin)
    _, _, after = rest.partition(END)
    document.write_text(f"{before}{begin}\n{short(results)}\n{pictures}{END}{after}")
