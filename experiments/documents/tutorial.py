"""``python -m experiments.tutorial``: runs docs/tutorial.md as a notebook and keeps what it shows.

The page is the source. Its blocks of Python are the cells of docs/tutorial.ipynb, and the text
between them is the notebook's text. What stands directly after a block, one block of text
and then pictures, is what its cell printed and drew: no part of the notebook, and written anew.
"""

from __future__ import annotations

import argparse
import re
from base64 import b64decode
from collections.abc import Iterator
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbformat import NotebookNode, v4

PAGE = Path("docs/tutorial.md")
NOTEBOOK = PAGE.with_suffix(".ipynb")

CELL = re.compile(
    r"^```python\n(?P<code>.*?)\n```\n"
    r"(?P<shown>(?:\n```text\n.*?\n```\n)?(?:\n!\[[^]]*\]\([^)]*\)\n)*)",
    re.MULTILINE | re.DOTALL,
)
PICTURE = re.compile(r"!\[[^]]*\]\(([^)]*)\)")


def notebook_of(page: str) -> NotebookNode:
    """The page's cells, not run yet."""
    cells: list[NotebookNode] = []

    def add(text: str) -> None:
        if text.strip():
            cells.append(v4.new_markdown_cell(text.strip(), id=f"text-{len(cells)}"))

    end = 0
    for cell in CELL.finditer(page):
        add(page[end : cell.start()])
        cells.append(v4.new_code_cell(cell["code"], id=f"code-{len(cells)}"))
        end = cell.end()
    add(page[end:])
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    return v4.new_notebook(cells=cells, metadata={"kernelspec": kernel})


def run(notebook: NotebookNode, folder: Path) -> NotebookNode:
    """Run the cells in a kernel, in ``folder``; an exception in one of them is raised here."""
    where = {"metadata": {"path": str(folder)}}
    ran: NotebookNode = NotebookClient(notebook, timeout=300, resources=where).execute()
    return ran


def printed(cell: NotebookNode) -> str:
    """What a cell wrote to its standard output."""
    return "".join(o.text for o in cell.outputs if o.get("name") == "stdout")


def drawn(cell: NotebookNode) -> list[bytes]:
    """The pictures of a cell, as PNG."""
    shown = [o.data for o in cell.outputs if "data" in o]
    return [b64decode(data["image/png"]) for data in shown if "image/png" in data]


def as_shown(page: str, ran: NotebookNode) -> tuple[str, dict[str, bytes]]:
    """The page with what the cells printed, and its pictures by the names it gives them.

    Raises:
        ValueError: after a block there are more or fewer pictures than its cell drew.
    """
    pictures: dict[str, bytes] = {}
    cells: Iterator[NotebookNode] = (c for c in ran.cells if c.cell_type == "code")

    def with_output(found: re.Match[str]) -> str:
        cell = next(cells)
        images = list(PICTURE.finditer(found["shown"]))
        if len(images) != len(drawn(cell)):
            line = page.count("\n", 0, found.start()) + 1
            raise ValueError(
                f"{PAGE}:{line}: the block draws {len(drawn(cell))} pictures, "
                f"but {len(images)} stand after it"
            )
        pictures.update(zip((image[1] for image in images), drawn(cell), strict=True))
        text = printed(cell).rstrip()
        parts = [f"```python\n{found['code']}\n```", *([f"```text\n{text}\n```"] if text else [])]
        return "\n\n".join([*parts, *(image[0] for image in images)]) + "\n"

    return CELL.sub(with_output, page), pictures


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m experiments.tutorial",
        description=f"Make {NOTEBOOK} of {PAGE}, run it, and put what its cells print and draw "
        "on the page.",
    )
    parser.add_argument(
        "--no-run",
        action="store_true",
        help="make the notebook alone: for words that were changed, and no code",
    )
    only_make = parser.parse_args(arguments).no_run
    page = PAGE.read_text(encoding="utf-8")
    notebook = notebook_of(page)
    nbformat.write(notebook, NOTEBOOK)
    if only_make:
        return
    page, pictures = as_shown(page, run(notebook, PAGE.parent))
    PAGE.write_text(page, encoding="utf-8")
    for name, png in pictures.items():
        (PAGE.parent / name).write_bytes(png)
