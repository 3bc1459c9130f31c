"""The tables of docs/compatibility.md, from test results: `make compatibility` fills them in.

``@pytest.mark.cell(table, row)`` says what a test shows: that the thing of that row works for the
layer in the test's parameter ``layer`` (the column). A cell holds the worst its tests show.
The fixture ``cell`` writes down what a test measured instead.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

RANK = {"✓": 0, "refused": 1, "skipped": 2, "✗": 3}

# table -> row -> column -> what its tests showed
Tables = dict[str, dict[str, dict[str, list[str]]]]
TABLES = pytest.StashKey[Tables]()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--tables", type=Path, metavar="FILE", help="fill in the tables of this Markdown file"
    )


def pytest_configure(config: pytest.Config) -> None:
    config.stash[TABLES] = {}
    config.addinivalue_line(
        "markers",
        "cell(table, row, column=None, refused=False): the cell of docs/compatibility.md that the "
        "test decides; column is the parameter 'layer' if not given; refused=True: what passes is "
        "a clear error",
    )


def write(config: pytest.Config, table: str, row: str, column: str, value: str) -> None:
    rows = config.stash[TABLES].setdefault(table, {})
    rows.setdefault(row, {}).setdefault(column, []).append(value)


@pytest.fixture
def cell(pytestconfig: pytest.Config) -> Callable[[str, str, str, str], None]:
    """cell(table, row, column, value) writes down a measured value."""

    def write_value(table: str, row: str, column: str, value: str) -> None:
        write(pytestconfig, table, row, column, value)

    return write_value


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]):
    report = yield
    if report.when == "call" or report.outcome != "passed":
        for marker in item.iter_markers("cell"):
            where, options = marker.args, dict(marker.kwargs)
            passed = "refused" if options.pop("refused", False) else "✓"
            outcome = {"passed": passed, "skipped": "skipped", "failed": "✗"}[report.outcome]
            callspec = getattr(item, "callspec", None)
            column = options.get("column") or str(callspec.params["layer"] if callspec else "")
            write(item.config, *where, column, outcome)
    return report


def pytest_sessionfinish(session: pytest.Session) -> None:
    file: Path | None = session.config.getoption("--tables")
    if file is None:
        return
    text, tables = file.read_text(), session.config.stash[TABLES]
    blocks = re.findall(r"^<!-- table: (.+) -->$", text, re.MULTILINE)
    if sorted(blocks) != sorted(tables):
        raise pytest.UsageError(
            f"{file} has blocks for the tables {sorted(blocks)}, the tests for {sorted(tables)}"
        )
    for name, rows in tables.items():
        block = rf"(<!-- table: {re.escape(name)} -->\n).*?(<!-- end of table -->)"
        filled = markdown(name, rows)
        text = re.sub(block, lambda m, t=filled: f"{m[1]}\n{t}\n{m[2]}", text, flags=re.DOTALL)
    file.write_text(text)


def markdown(name: str, rows: dict[str, dict[str, list[str]]]) -> str:
    """A table whose rows and columns are in the order in which the tests ran."""
    columns = list(dict.fromkeys(column for row in rows.values() for column in row))
    lines = [["", *columns], ["---"] * (len(columns) + 1)]
    for row, cells in rows.items():
        lines.append([row, *(worst(cells.get(column, [])) for column in columns)])
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def worst(values: list[str]) -> str:
    if values and all(value in RANK for value in values):
        return max(values, key=lambda value: RANK[value])
    return " / ".join(dict.fromkeys(values)) or "–"
