"""The page for a lecture: its steps, its pictures, its own completeness, and its errors."""

from __future__ import annotations

import base64
import dataclasses
import re
import struct
import subprocess
import sys
import zlib
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from torch_convbp import functional, lecture
from torch_convbp.explain import __main__ as program
from torch_convbp.explain import drawing, layer, page, picture, steps
from torch_convbp.explain.activation import ACTIVATIONS
from torch_convbp.explain.errors import UsageError
from torch_convbp.ops import elementwise as elementwise_ops

ROOT = Path(__file__).resolve().parents[2]
VOID = {"meta", "img", "input", "br", "link", "hr"}


def boat(activation: str = "relu", *filters: str, seed: int = program.SEED) -> layer.Layer:
    names = filters or ("vertical", "corner")
    return layer.build(picture.built_in(), names, ACTIVATIONS[activation], seed)


def compared(built: layer.Layer) -> list[steps.Step]:
    return steps.compare(built, steps.by_loops(built))


# --- the steps ----------------------------------------------------------------------------------


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_three_computations_agree(activation: str) -> None:
    found = compared(boat(activation, "diagonal", "random", "blur"))
    assert {"L1", "L2", "L3", "L4", "L5", "L6"} <= {step.equation for step in found}
    assert all(step.agrees for step in found), found
    assert all(0 < step.allowed < 1e-10 for step in found)


def test_closed_forms_are_derivatives() -> None:
    p = torch.linspace(-4, 4, 101, dtype=torch.float64) + 1 / 64  # off the kink
    for activation in ACTIVATIONS.values():
        (expected,) = torch.autograd.grad(activation.g(p.requires_grad_()).sum(), p)
        torch.testing.assert_close(activation.g_prime(p.detach()), expected)


def test_pre_activations_are_exact() -> None:
    """Multiples of small powers of two: no order of summation can change a bit."""
    built = boat("tanh", "blur", "random")
    values = steps.by_loops(built)
    for conv2d in (functional.conv2d, F.conv2d):
        other = steps.by_autograd(built, conv2d, built.activation.g)
        assert torch.equal(values.p_pairs, other.p_pairs) and torch.equal(values.p, other.p)


def test_a_wrong_step_is_found() -> None:
    step = compared(boat())[0]
    wrong = step.ours.clone()
    wrong[1, 0, 3, 4] += 1e-9
    assert not dataclasses.replace(step, ours=wrong).agrees
    wrong[1, 0, 3, 4] = float("nan")
    assert not dataclasses.replace(step, ours=wrong).agrees
    assert not dataclasses.replace(step, ours=step.ours[..., 1:]).agrees


@pytest.mark.parametrize("activation", [g for g in ACTIVATIONS if g != "identity"])
def test_the_error_signal_is_the_package_s_own(
    activation: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    error_signal = elementwise_ops.error_signal
    monkeypatch.setattr(elementwise_ops, "error_signal", lambda *args: error_signal(*args) * 1.0001)
    wrong = {step.equation for step in compared(boat(activation)) if not step.agrees}
    assert wrong == {"L3", "L4", "L5", "L6"}


def test_shares_add_up_to_the_input_gradient() -> None:
    built = boat()
    values = steps.by_loops(built)
    shares = [steps.one_filters_share(built, values.delta, o) for o in range(2)]
    assert torch.equal(sum(shares), values.input_grad[0])


# --- the page -----------------------------------------------------------------------------------


class Page(HTMLParser):
    """What a test asks of a page; complains where elements are not closed in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: set[str] = set()
        self.addresses: list[str] = []
        self.maps: dict[str, tuple[str, list[str]]] = {}  # by name: address, numbers
        self.pictures_without_text = 0
        self.name = ""
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        if tag not in VOID:
            self.open.append(tag)
        self.ids |= {given["id"] or ""} if "id" in given else set()
        addresses = [given[key] or "" for key in ("src", "href", "xlink:href") if key in given]
        self.addresses += addresses
        if tag == "svg":
            self.name = (given.get("aria-label") or "").partition(":")[0]
        if tag in ("svg", "img") and not (given.get("aria-label") or given.get("alt")):
            self.pictures_without_text += 1
        if tag == "image":
            self.maps[self.name] = (addresses[0], [])

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID and "/" not in tag:
            if self.open and self.open[-1] == tag:
                self.open.pop()
            else:
                raise AssertionError(f"</{tag}> closes {self.open[-3:]}")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "text" and self.name in self.maps:
            self.maps[self.name][1].append(data)


@pytest.fixture(scope="module")
def built() -> layer.Layer:
    return boat()


@pytest.fixture(scope="module")
def text(built: layer.Layer) -> str:
    return page.build(built, steps.by_loops(built), compared(built), "the command")


@pytest.fixture(scope="module")
def parsed(text: str) -> Page:
    return Page(text)


def test_page_is_self_contained(text: str, parsed: Page) -> None:
    assert {"layer", "L1", "L2", "loss", "L3", "L4", "L5", "L6", "erratum", "check"} <= parsed.ids
    assert parsed.addresses
    for address in parsed.addresses:
        assert address.startswith("data:image/png;base64,") or address[1:] in parsed.ids, address
    assert not re.search(r"https?://|@import|url\(", text)
    assert '<html lang="en">' in text and parsed.pictures_without_text == 0
    assert text.count("✓ agrees") == 9 and "✗ differs" not in text


def decode(address: str) -> list[list[tuple[int, ...]]]:
    """The pixels of an RGB PNG whose rows have no filter."""
    data = base64.b64decode(address.partition(",")[2])
    assert data.startswith(b"\x89PNG\r\n\x1a\n")
    chunks, at = {}, 8
    while at < len(data):
        (length,) = struct.unpack(">I", data[at : at + 4])
        kind, body = data[at + 4 : at + 8], data[at + 8 : at + 8 + length]
        (check,) = struct.unpack(">I", data[at + 8 + length : at + 12 + length])
        assert check == zlib.crc32(kind + body)
        chunks[kind] = body
        at += 12 + length
    width, height, *form = struct.unpack(">IIBBBBB", chunks[b"IHDR"])
    assert form == [8, 2, 0, 0, 0]
    raw = zlib.decompress(chunks[b"IDAT"])
    stride = 1 + 3 * width
    assert len(raw) == stride * height
    lines = [raw[stride * i : stride * (i + 1)] for i in range(height)]
    assert all(line[0] == 0 for line in lines)
    return [[tuple(line[1 + 3 * j : 4 + 3 * j]) for j in range(width)] for line in lines]


def test_pictures_hold_the_values(built: layer.Layer, parsed: Page) -> None:
    values = steps.by_loops(built)
    expected = {
        "a₁": (built.a[0, 0], 1.0),
        "p₁₁": (values.p_pairs[0, 0, 0], values.p_pairs.abs().max()),
        "p₂": (values.p[0, 1], max(values.p.abs().max(), values.p_pairs.abs().max())),
        "∂L/∂w₂₁": (values.w_grad[1, 0], values.w_grad.abs().max()),
    }
    block = drawing.BLOCK
    for name, (map_, scale) in expected.items():
        pixels = decode(parsed.maps[name][0])
        rows = map_.tolist()
        assert (len(pixels), len(pixels[0])) == (len(rows) * block, len(rows[0]) * block)
        for i, row in enumerate(rows):
            for j, value in enumerate(row):
                colour = drawing.diverging(value, float(scale))
                for corner in (0, block - 1):
                    assert pixels[i * block + corner][j * block + corner] == colour, (name, i, j)
    numbers = [float(n.replace("−", "-")) for n in parsed.maps["p₂"][1]]
    assert numbers == values.p[0, 1].flatten().tolist()  # halves: two decimals are exact


def test_colours() -> None:
    assert drawing.diverging(0, 3) == drawing.diverging(0, 0) == (255, 255, 255)
    assert drawing.diverging(3, 3) == drawing.POSITIVE
    assert drawing.diverging(-3, 3) == drawing.NEGATIVE
    assert drawing.number(-0.001) == "0" and drawing.number(100) == "100"
    assert drawing.cell_number(-0.25, 2) == "−.25" and drawing.cell_number(99.97, 2) == "100"


def test_sums_under_the_pictures(built: layer.Layer, text: str) -> None:
    """Position [0, 5] of p_11, by hand: the filter's left column on the mast's right edge."""
    window = built.a[0, 0, :3, 5:8]
    assert window[:, 0].tolist() == [0, 1, 1] and built.b[0, 0] == 0.5
    assert "p₁₁[0, 5] = 1 · (−0.5) + 1 · (−0.5) − 0.5 = −1.5" in text.replace("\u00a0", " ")
    assert (window * lecture.flip(built.w)[0, 0]).sum() - 0.5 == -1.5


# --- the command line ---------------------------------------------------------------------------


def run(*arguments: object) -> tuple[int, str]:
    """The exit status, and that of argparse's own errors."""
    try:
        return program.main([str(a) for a in arguments]), ""
    except SystemExit as ended:
        assert isinstance(ended.code, int)
        return ended.code, ""


def write_png(path: Path, maps: torch.Tensor) -> None:
    rows = (maps * 255).round().int().permute(1, 2, 0).tolist()
    path.write_bytes(drawing.png([[tuple(pixel) for pixel in row] for row in rows], block=1))


def test_as_a_program(tmp_path: Path) -> None:
    """With nothing but torch: what plots, trains or reads pictures is not even looked for."""
    code = (
        "import sys; sys.path.insert(0, '.');"
        "sys.modules.update(dict.fromkeys(['matplotlib','lightning','torchvision','PIL','jinja2']));"
        "from torch_convbp.explain.__main__ import main; sys.exit(main(sys.argv[1:]))"
    )
    output = tmp_path / "page.html"
    command = [sys.executable, "-c", code, "--output", str(output)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert str(output) in done.stdout and done.stdout.count("agrees") == 9
    assert output.read_text(encoding="utf-8").rstrip().endswith("</html>")
    assert [path.name for path in tmp_path.iterdir()] == ["page.html"]


@pytest.mark.parametrize("maps", [1, 3])
def test_own_picture(tmp_path: Path, capsys: pytest.CaptureFixture[str], maps: int) -> None:
    pytest.importorskip("PIL", reason="reading a picture needs Pillow")
    file, output = tmp_path / "own & <small>.png", tmp_path / "page.html"
    pixels = torch.rand(maps, 20, 30, generator=torch.Generator().manual_seed(1)).expand(3, -1, -1)
    write_png(file, pixels)
    status, _ = run("--picture", file, "--size", 12, "--output", output, "--activation", "tanh")
    assert status == 0 and f"{maps} x 8 x 12" in capsys.readouterr().out
    text = output.read_text(encoding="utf-8")
    assert "own &amp; &lt;small&gt;.png" in text and "<small>" not in text
    Page(text)

    small = picture.from_file(file, 12).maps
    assert small.shape == (maps, 8, 12)
    assert torch.equal(small * 64, (small * 64).round())
    exact = F.adaptive_avg_pool2d((pixels * 255).round().double() / 255, (8, 12))[:maps]
    assert (small - exact).abs().max() <= 1 / 128


@pytest.mark.filterwarnings("ignore:The image decoding:DeprecationWarning")
def test_readers_agree(tmp_path: Path) -> None:
    pytest.importorskip("PIL")
    pytest.importorskip("torchvision")
    file = tmp_path / "own.png"
    write_png(file, torch.rand(3, 7, 9))
    assert torch.equal(picture.with_pillow(file), picture.with_torchvision(file))


def test_no_reader(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(picture, "find_spec", lambda name: None)
    write_png(tmp_path / "own.png", torch.rand(3, 7, 9))
    assert run("--picture", tmp_path / "own.png", "--output", tmp_path / "p.html")[0] == 2
    assert "needs Pillow or torchvision" in capsys.readouterr().err


def test_bad_pictures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("PIL", reason="reading a picture needs Pillow")
    whole, narrow = tmp_path / "whole.png", tmp_path / "narrow.png"
    write_png(whole, torch.rand(3, 40, 40))
    write_png(narrow, torch.rand(3, 100, 10))
    cut = tmp_path / "cut.png"
    cut.write_bytes(whole.read_bytes()[:500])
    text = tmp_path / "text.png"
    text.write_text("no picture")
    cases = {
        tmp_path / "nowhere.png": "is not there",
        tmp_path: "is a folder",
        cut: "cannot be read as a picture",
        text: "cannot be read as a picture",
        narrow: "10 x 100 pixels, is made 2 x 16",
    }
    output = tmp_path / "page.html"
    for file, message in cases.items():
        assert run("--picture", file, "--output", output)[0] == 2, file
        said = capsys.readouterr().err
        assert message in said and "Traceback" not in said, said
        assert not output.exists()


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--filters", "vertical,nothing"], "expected names of vertical, .*got 'nothing'"),
        (["--filters", ""], "got ''"),
        (["--filters", "blur,blur,blur,blur,blur"], "at most 4, got 5"),
        (["--activation", "step"], "invalid choice: 'step'"),
        (["--seed", "-1"], "whole number from 0"),
        (["--seed", "half"], "got 'half'"),
        (["--size", "4"], "from 5 to 32, got '4'"),
        (["--picture", "same.html", "--output", "same.html"], "take the place of the picture"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_bad_options(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(*arguments)[0] == 2
    assert re.search(message, capsys.readouterr().err)


def test_unwritable_output(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    for output in (tmp_path, tmp_path / "nowhere" / "page.html", tmp_path / "file" / "page.html"):
        assert run("--output", output)[0] == 2
        said = capsys.readouterr()
        assert f"--output: {output}" in said.err and not said.out
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize(
    ("error", "raised", "said"),
    [
        (OSError(28, "No space left on device"), UsageError, "cannot be written .No space left"),
        (KeyboardInterrupt(), KeyboardInterrupt, None),
    ],
    ids=["full", "interrupted"],
)
def test_nothing_half_written(
    error: BaseException,
    raised: type[BaseException],
    said: str | None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    output = tmp_path / "page.html"
    output.write_text("an older page")

    def by_half(draft: Path, text: str, **options: str) -> int:
        with draft.open("w") as file:
            file.write(text[: len(text) // 2])
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(program.Path, "write_text", by_half)
        with pytest.raises(raised, match=said):
            program.write(output, "a newer page")
    assert [path.name for path in tmp_path.iterdir()] == ["page.html"]
    assert output.read_text() == "an older page"


def test_status_tells_of_a_difference(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def wrong(*arguments: object, **options: object) -> torch.Tensor:
        return F.conv2d(*arguments, **options) * 1.0001  # type: ignore[arg-type]

    monkeypatch.setattr(functional, "conv2d", wrong)
    output = tmp_path / "page.html"
    assert run("--output", output)[0] == 1
    assert "DIFFERS" in capsys.readouterr().out
    assert "✗ differs" in output.read_text(encoding="utf-8")
