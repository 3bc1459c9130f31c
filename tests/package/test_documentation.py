"""README, CONTRIBUTING and docs/: every block of Python runs, and all that the text names is there.

The blocks of a page run in order, in one namespace. One that cannot run says so to its readers, in
its first line: ``# Not run by the tests: <reason>``. docs/tutorial.md is a notebook, which
test_tutorial.py runs.
"""

from __future__ import annotations

import importlib.util
import os
import re
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

import torch_convbp as bp

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
IDS = [str(page.relative_to(ROOT)) for page in PAGES]
FENCE = re.compile(r"^( *)```python\n(.*?)^\1```$", re.MULTILINE | re.DOTALL)
NOT_RUN = "# Not run by the tests: "
TUTORIAL = ROOT / "docs" / "tutorial.md"
SOURCES = ("csrc", "torch_convbp", "tests", "experiments", "docs", ".github", ".ci")


class Block(NamedTuple):
    page: Path
    line: int
    code: str


def blocks(page: Path) -> Iterator[Block]:
    text = page.read_text(encoding="utf-8")
    for found in FENCE.finditer(text):
        line = text.count("\n", 0, found.start()) + 2
        yield Block(page, line, textwrap.dedent(found.group(2)))


BLOCKS = [block for page in PAGES if page != TUTORIAL for block in blocks(page)]


@pytest.fixture(scope="module")
def namespaces() -> dict[Path, dict[str, Any]]:
    """What the blocks of each page have defined so far."""
    return {}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("documentation")


@pytest.mark.parametrize("block", BLOCKS, ids=lambda b: f"{b.page.relative_to(ROOT)}:{b.line}")
def test_block(block: Block, namespaces, folder: Path, monkeypatch) -> None:
    if block.code.startswith(NOT_RUN):
        pytest.skip(block.code.splitlines()[0].removeprefix(NOT_RUN))
    monkeypatch.chdir(folder)
    namespace = namespaces.setdefault(block.page, {"__name__": "__main__"})
    code = "\n" * (block.line - 1) + block.code  # an error names the page's own line
    exec(compile(code, str(block.page), "exec"), namespace)


def test_blocks_are_found() -> None:
    """All that is fenced as Python, on the pages that have any."""
    pages = [page.read_text(encoding="utf-8") for page in PAGES if page != TUTORIAL]
    fences = sum(page.count("```python") for page in pages)
    assert len(BLOCKS) == fences
    with_blocks = {str(block.page.relative_to(ROOT)) for block in BLOCKS}
    assert {"README.md", "docs/start.md", "docs/convert.md"} <= with_blocks


# --- what the text names ------------------------------------------------------------------------


def code_of(page: Path) -> list[str]:
    """What is set as code: spans, and lines of indented blocks."""
    text = page.read_text(encoding="utf-8")
    return re.findall(r"`([^`\n]+)`", text) + re.findall(r"^ {4,}(\S.*)$", text, re.MULTILINE)


def files() -> list[str]:
    there = [name for name in os.listdir(ROOT) if (ROOT / name).is_file()]
    for source in SOURCES:
        for folder, _, names in os.walk(ROOT / source):
            there += [str((Path(folder) / name).relative_to(ROOT)) for name in names]
    return there


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_files_are_there(page: Path) -> None:
    there = ["/" + name for name in files()]
    named = [c for c in code_of(page) if re.fullmatch(r"[\w./-]+\.(py|h|cpp|cu|cuh|toml|yml)", c)]
    missing = [name for name in named if not any(f.endswith("/" + name) for f in there)]
    assert not missing


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_commands_are_there(page: Path) -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z-]+):", makefile, re.MULTILINE))
    for code in code_of(page):
        if found := re.match(r"make ([a-z][a-z-]*)", code):
            assert found.group(1) in targets, code
        if found := re.match(r"python -m ((?:torch_convbp|experiments)[.\w]*)", code):
            assert importlib.util.find_spec(found.group(1)), code


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_links_lead_to_files(page: Path) -> None:
    targets = re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8"))
    local = [t.partition("#")[0] for t in targets if not t.startswith(("http", "#"))]
    assert not [target for target in local if not (page.parent / target).is_file()]


def test_the_api_page_has_all_that_is_public() -> None:
    text = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
    shown = set(re.findall(r"^::: (\S+)", text, re.MULTILINE))
    for name in shown:
        module, _, attribute = name.rpartition(".")
        there = importlib.util.find_spec(name) if module == "torch_convbp" else None
        assert there or hasattr(importlib.import_module(module), attribute), name
    modules = {"backends": ("torch_convbp.backends._CPU", "torch_convbp.backends._CUDA")}
    for name in bp.__all__:
        public = getattr(bp, name)
        if name.startswith("__"):
            continue
        if hasattr(public, "__qualname__"):
            assert f"{public.__module__}.{public.__qualname__}" in shown, name
        else:
            assert set(modules.get(name, (public.__name__,))) <= shown, name


def test_the_changelog_has_this_version() -> None:
    assert f"## [{bp.__version__}]" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
