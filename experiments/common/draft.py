"""A file that is there as a whole or not at all."""

from __future__ import annotations

import os
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@contextmanager
def draft_of(path: Path) -> Iterator[Path]:
    """Give a file beside ``path`` to write to, which then takes its place in one move."""
    draft = path.with_name(f"{path.name}.part")
    yield draft
    os.replace(draft, path)
