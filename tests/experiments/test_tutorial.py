"""docs/tutorial.md and its notebook: the same cells, and every one of them runs in a kernel."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

pytest.importorskip("nbclient", reason="the tutorial's notebook needs torch_convbp[test]")
pytest.importorskip("ipykernel", reason="the tutorial's notebook needs torch_convbp[test]")
pytest.importorskip("torchvision", reason="the tutorial needs torch_convbp[experiments]")
pytest.importorskip("sklearn", reason="the tutorial needs torch_convbp[experiments]")
pytest.importorskip("matplotlib", reason="the tutorial needs torch_convbp[experiments]")

import nbformat
from nbclient.exceptions import CellExecutionError

from experiments.documents.tutorial import NOTEBOOK, PAGE, as_shown, notebook_of, run

ROOT = Path(__file__).resolve().parents[2]
SMALL = """\
# Two cells

The first prints,

```python
print("one", 2)
```

```text
what an older one printed
```

and the second draws.

```python
import matplotlib.pyplot as plt

_, ax = plt.subplots()
```

![axes](images/axes.png)
"""


@pytest.fixture(scope="module", autouse=True)
def kernels(tmp_path_factory):
    """Without the user's settings of Jupyter and IPython, and with threads that wait asleep.

    Beside other processes, threads that spin take four times as long.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_WAIT_POLICY", "passive")
        for name in ("IPYTHONDIR", "JUPYTER_RUNTIME_DIR", "JUPYTER_CONFIG_DIR"):
            patch.setenv(name, str(tmp_path_factory.mktemp(name)))
        yield


def without_numbers(text: str) -> str:
    """What is left where times and rounding differ between machines."""
    return re.sub(r" +", " ", re.sub(r"\d[\d.e+-]*", "0", text))


def test_the_notebook_is_the_pages() -> None:
    page = (ROOT / PAGE).read_text(encoding="utf-8")
    there = nbformat.reads((ROOT / NOTEBOOK).read_text(encoding="utf-8"), as_version=4)
    assert there == notebook_of(page), f"{NOTEBOOK} is not what {PAGE} says: make tutorial"


def test_the_notebook_runs_and_shows_what_the_page_does(tmp_path: Path) -> None:
    notebook = nbformat.reads((ROOT / NOTEBOOK).read_text(encoding="utf-8"), as_version=4)
    page = (ROOT / PAGE).read_text(encoding="utf-8")
    shown, pictures = as_shown(page, run(notebook, tmp_path))
    assert without_numbers(shown) == without_numbers(page)
    there = {f"images/{file.name}" for file in (ROOT / "docs/images").glob("tutorial-*.png")}
    assert pictures.keys() == there
    assert not list(tmp_path.iterdir())  # it leaves nothing behind


# --- the tool itself, on a page of two cells ------------------------------------------------------


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    return run(notebook_of(SMALL), tmp_path_factory.mktemp("small"))


def test_what_is_shown_is_no_part_of_the_notebook() -> None:
    cells = [(cell.cell_type, cell.source) for cell in notebook_of(SMALL).cells]
    assert cells == [
        ("markdown", "# Two cells\n\nThe first prints,"),
        ("code", 'print("one", 2)'),
        ("markdown", "and the second draws."),
        ("code", "import matplotlib.pyplot as plt\n\n_, ax = plt.subplots()"),
    ]


def test_what_is_shown_is_written_anew(ran) -> None:
    shown, pictures = as_shown(SMALL, ran)
    assert shown == SMALL.replace("what an older one printed", "one 2")
    assert pictures.keys() == {"images/axes.png"}
    assert pictures["images/axes.png"].startswith(b"\x89PNG")


@pytest.mark.parametrize("line, count", [("", 0), ("![axes](a.png)\n\n![more](b.png)\n", 2)])
def test_pictures_and_places_must_be_as_many(ran, line: str, count: int) -> None:
    page = SMALL.replace("![axes](images/axes.png)\n", line)
    with pytest.raises(ValueError, match=rf"md:15: .* draws 1 pictures, but {count} stand"):
        as_shown(page, ran)


def test_a_cell_that_fails_is_an_error(tmp_path: Path) -> None:
    page = "```python\nimport torch_convbp\n\nassert torch_convbp.__version__ is None\n```\n"
    with pytest.raises(CellExecutionError, match="AssertionError"):
        run(notebook_of(page), tmp_path)
