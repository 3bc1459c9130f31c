"""``python -m experiments.index``: one page that lists the runs of a folder, index.html.

The parity experiment and the speed benchmark write it anew whenever a run ends.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import dataclass
from html import escape
from pathlib import Path
from urllib.parse import quote

from experiments import page
from experiments.runfolder import MARK

PICTURES = ("curves.png", "ratios.png", "error-signals.png")


@dataclass(frozen=True)
class Run:
    """What the index says of one folder."""

    path: Path
    kind: str
    says: str
    good: bool | None
    picture: Path | None

    @property
    def changed(self) -> float:
        """When something was written there last."""
        return max((file.stat().st_mtime for file in self.path.iterdir()), default=0.0)


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
    print(write_index(folder))
    return 0


def write_index(folder: Path) -> Path:
    """Write index.html into a folder of runs; return its path."""
    found = (read_run(path) for path in folder.iterdir() if path.is_dir())
    runs = sorted((run for run in found if run), key=lambda run: run.changed, reverse=True)
    cards = "".join(card(run) for run in runs)
    subtitle = f"{len(runs)} run{'' if len(runs) == 1 else 's'} in {folder}, the latest first"
    page.write_page(folder / "index.html", "Runs", subtitle, f'<div class="runs">{cards}</div>')
    return folder / "index.html"


def read_run(path: Path) -> Run | None:
    """Read what a folder is; None if it is no run."""
    picture = next((file for name in PICTURES for file in sorted(path.rglob(name))), None)
    if (path / MARK).is_file():
        return Run(path, "unfinished", (path / MARK).read_text().strip(), None, picture)
    try:
        if (path / "summary.json").is_file():
            summary = json.loads((path / "summary.json").read_text())
            settings = summary["settings"]
            kind = f"parity: {settings['network']} on {summary['data']['name']}"
            return Run(path, kind, summary["verdict"], summary["parity"], picture)
        if (path / "results.json").is_file():
            results = json.loads((path / "results.json").read_text())
            return Run(path, f"speed: {results['title']}", results["started"], None, picture)
    except (OSError, ValueError, KeyError, TypeError) as error:
        return Run(path, "not readable", repr(error), False, picture)
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
        name = f'<a href="{quote(f"{run.path.name}/report.html")}">{name}</a>'
    drawn = ""
    if run.picture:
        address = quote(run.picture.relative_to(run.path.parent).as_posix())
        drawn = f'<img alt="" loading="lazy" src="{address}">'
    return (
        f'<div class="run">{drawn}<div><b>{name}</b><p class="soft">{escape(run.kind)}</p>'
        f'<p class="{tone}">{escape(run.says)}</p></div></div>'
    )


if __name__ == "__main__":
    sys.exit(main())
