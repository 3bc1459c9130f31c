"""``python -m experiments.index``: one page that lists the runs of a folder, index.html.

The parity experiment and the speed benchmark write it anew whenever a run ends.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from dataclasses import dataclass
from html import escape
from pathlib import Path
from urllib.parse import quote

from experiments.common import html
from experiments.common.runfolder import MARK

PICTURES = ("curves.png", "ratios.png", "error-signals.png")


@dataclass(frozen=True)
class Run:
    """What the index says of one folder."""

    path: Path
    kind: str
    says: str
    good: bool | None
    picture: Path | None = None


def main(arguments: list[str] | None = None) -> int:
    """Write the page; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m experiments.index", description=__doc__)
    parser.add_argument("runs", type=Path, nargs="?", default=Path("runs"), metavar="DIR")
    folder = parser.parse_args(arguments).runs
    if not folder.is_dir():
        print(
            f"python -m experiments.index: error: DIR: expected a folder, got {folder}",
            file=sys.stderr,
        )
        return 2
    try:
        print(write_index(folder))
    except OSError as error:
        print(f"python -m experiments.index: error: DIR: {error}", file=sys.stderr)
        return 2
    return 0


def renew_index(folder: Path) -> None:
    """Write the page after a run; only warn where it cannot be written."""
    try:
        write_index(folder)
    except OSError as error:
        print(f"warning: no index of {folder}: {error}", file=sys.stderr)


def write_index(folder: Path) -> Path:
    """Write index.html into a folder of runs; return its path."""
    found = (read_run(path) for path in folder.iterdir() if path.is_dir())
    runs = sorted((run for run in found if run), key=lambda run: changed(run.path), reverse=True)
    cards = "".join(card(run) for run in runs)
    subtitle = f"{len(runs)} run{'' if len(runs) == 1 else 's'} in {folder}, the latest first"
    html.write_page(folder / "index.html", "Runs", subtitle, f'<div class="runs">{cards}</div>')
    return folder / "index.html"


def changed(path: Path) -> float:
    """Return when something was written last in a folder; 0 where that cannot be told."""
    try:
        return max((file.lstat().st_mtime for file in path.iterdir()), default=0.0)
    except OSError:  # no right to read it, or a file that has vanished meanwhile
        return 0.0


def read_run(path: Path) -> Run | None:
    """Read what a folder is; None if it is no run."""
    try:
        return read(path)
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        return Run(path, "not readable", repr(error), False)


def read(path: Path) -> Run | None:
    """Read what a folder is; raise an error if its files are not what they should be."""
    picture = next((file for name in PICTURES for file in sorted(path.rglob(name))), None)
    if (path / MARK).is_file():
        return Run(path, "unfinished", (path / MARK).read_text().strip(), None, picture)
    if (path / "summary.json").is_file():
        summary = json.loads((path / "summary.json").read_text())
        kind = f"parity: {summary['settings']['network']} on {summary['data']['name']}"
        return Run(path, kind, str(summary["verdict"]), summary["parity"] is True, picture)
    if (path / "results.json").is_file():
        results = json.loads((path / "results.json").read_text())
        return Run(path, f"speed: {results['title']}", str(results["started"]), None, picture)
    if (path / "checkpoints").is_dir():
        kept = sorted(file.name for file in (path / "checkpoints").glob("*.ckpt"))
        return Run(path, "training", f"checkpoints: {', '.join(kept)}", None, picture)
    return None


def card(run: Run) -> str:
    """Return what is shown of a run."""
    tone = {True: "mark good", False: "mark bad", None: "soft"}[run.good]
    name = escape(run.path.name)
    report = run.path / "report.html"
    if report.is_file():
        name = f'<a href="{address_of(run, report)}">{name}</a>'
    drawn = ""
    if run.picture:
        drawn = f'<img alt="" loading="lazy" src="{address_of(run, run.picture)}">'
    return (
        f'<div class="run">{drawn}<div><b>{name}</b><p class="soft">{escape(run.kind)}</p>'
        f'<p class="{tone}">{escape(run.says)}</p></div></div>'
    )


def address_of(run: Run, file: Path) -> str:
    """Return a file's address as seen from the page."""
    return quote(os.fsencode(file.relative_to(run.path.parent)))
