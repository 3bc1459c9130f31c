"""A file that is there as a whole or not at all."""

from __future__ import annotations

import os
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Give a file beside ``path`` to write to, which then takes its place in one move."""
    part = path.with_name(f"{path.name}.part")
    yield part
    os.replace(part, path)
