"""A fresh folder for one run, which is visibly unfinished until its summary is written."""

from __future__ import annotations

import csv
import fcntl
import json
import math
import shutil
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from experiments.common.atomic_write import atomic_write
from experiments.common.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterable

MARK = "UNFINISHED"


class RunFolder:
    """Files of a run. ``UNFINISHED`` lies beside them until ``finish`` has written the summary.

    One process at a time writes to a folder: it holds a lock on that mark.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.scratch = path / "scratch"
        self.lock = (path / MARK).open("a")
        try:
            fcntl.flock(self.lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self.lock.close()
            raise UsageError(f"--resume: another process is at work in {path}") from None
        self.scratch.mkdir(exist_ok=True)
        self.mark("This run has not finished; what lies here is not complete.\n")

    def mark(self, text: str) -> None:
        """Say why the run is unfinished."""
        (self.path / MARK).write_text(text)

    def write_csv(self, name: str, header: list[str], rows: Iterable[Iterable[Any]]) -> None:
        """Write one table."""
        with (self.path / name).open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(header)
            writer.writerows(rows)

    def drop_scratch(self) -> None:
        """Remove pictures, snapshots and checkpoints, which only an unfinished run needs."""
        shutil.rmtree(self.scratch, ignore_errors=True)

    def finish(self, summary: dict[str, Any], name: str = "summary.json") -> None:
        """Write the summary in one move, then take the mark away."""
        with atomic_write(self.path / name) as part:
            part.write_text(json.dumps(plain(summary), indent=2, allow_nan=False) + "\n")
        self.drop_scratch()
        (self.path / MARK).unlink()
        self.lock.close()


def fresh(runs: Path, name: str | None, suffix: str) -> Path:
    """Make and return a folder that was not there before."""
    try:
        runs.mkdir(parents=True, exist_ok=True)
        if name is not None:
            (runs / name).mkdir()
            return runs / name
        stem = f"{datetime.now():%Y-%m-%d_%H-%M-%S}_{suffix}"
        for attempt in range(1, 1000):
            path = runs / (stem if attempt == 1 else f"{stem}_{attempt}")
            try:
                path.mkdir()
            except FileExistsError:
                continue
            return path
    except FileExistsError as error:
        if name is not None and (runs / name).exists():
            raise UsageError(
                f"--name: {runs / name} exists already; choose another name, or leave it out"
            ) from error
        raise UsageError(f"--runs: expected a folder, {runs} is a file") from error
    except OSError as error:
        raise UsageError(f"--runs: cannot make a folder in {runs} ({error.strerror})") from error
    raise UsageError(f"--runs: no free name for {stem} in {runs}")


def plain(value: Any) -> Any:
    """Return ``value`` with what JSON cannot say (NaN, infinities, paths) as text."""
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, Path):
        return str(value)
    return value
