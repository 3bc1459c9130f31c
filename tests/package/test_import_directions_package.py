"""Which module of torch_convbp may import which: every import goes one way."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
from imports import chains, imports, is_private

PACKAGE = Path(__file__).resolve().parents[2] / "torch_convbp"

# A room is a folder of the package, or a file beside them. What each may import besides itself.
MAY_IMPORT: dict[str, set[str]] = {
    "activations": set(),
    "extension": set(),
    "random_states": set(),
    "ops": {"activations", "extension"},
    "error_signals": {"ops"},
    "autograd": {"activations", "error_signals", "ops"},
    "functional": {"activations", "autograd", "ops"},
    "layer_geometry": {"ops"},
    "modules": {"activations", "autograd", "error_signals", "functional", "layer_geometry", "ops"},
    "tracing": {"modules", "ops", "random_states"},
    "fusion": {"activations", "modules", "ops", "tracing"},
    "folding": {"fusion", "modules", "ops", "tracing"},
    "convert": {"fusion", "layer_geometry", "modules", "ops"},
    "conversion": {"convert", "fusion", "ops"},
    "comparison": {"activations", "backends", "convert", "info", "modules", "ops", "random_states"},
    "integrations": {"activations", "convert", "functional", "fusion", "modules", "ops"},
    "backends": {"extension", "ops"},
    "lecture": {"ops"},
    "reference": {"lecture"},
    "explain": {"activations", "functional", "lecture", "ops", "reference"},
    "lightning": {"error_signals"},
    "info": set(),
    "_probe": {"", "extension"},  # "" is the package's own __init__.py
}
PRIVATE_NAMES_OF_TORCH = "ops/torch_private.py"


def is_module(name: str) -> bool:
    path = PACKAGE.parent / name.replace(".", "/")
    return path.is_dir() or path.with_suffix(".py").is_file()


def wrong_directions(file: str, source: str) -> list[str]:
    """Imports of rooms that the file may not know."""
    room = file.partition("/")[0].removesuffix(".py")
    found = []
    for name, _ in imports(ast.parse(source)):
        package, _, inside = name.partition(".")
        if package not in ("torch_convbp", ""):  # "": a relative import, which none is
            continue
        other = inside.partition(".")[0]
        other = other if other in MAY_IMPORT else ""
        if not package or other not in MAY_IMPORT[room] | {room}:
            found.append(name)
    return found


def private_names_of_others(file: str, source: str) -> list[str]:
    """Underscore names of other modules of the package."""
    tree = ast.parse(source)
    ours = {called: name for name, called in imports(tree) if name.startswith("torch_convbp")}
    modules = [called for called, name in ours.items() if is_module(name)]
    return [name for name in ours.values() if is_private(name)] + [
        chain
        for chain in chains(tree)
        for name in modules
        if chain.startswith(f"{name}.") and is_private(chain.removeprefix(f"{name}."))
    ]


def private_names_of_torch(file: str, source: str) -> list[str]:
    """Names that torch does not promise to keep. Our own operators may be private to us; what a
    subclass of nn.Module finds in itself is not looked for."""
    tree = ast.parse(source)
    names = [name for name, _ in imports(tree)] + chains(tree)
    found = [
        name
        for name in names
        if name.startswith("torch.")
        and not name.startswith("torch.ops.torch_convbp.")
        and is_private(name)
    ]
    return found + [name for name in names if name.endswith("._schema")]


def files() -> list[str]:
    return sorted(str(path.relative_to(PACKAGE)) for path in PACKAGE.rglob("*.py"))


@pytest.mark.parametrize("file", [file for file in files() if file != "__init__.py"])
def test_directions(file: str) -> None:
    source = (PACKAGE / file).read_text(encoding="utf-8")
    assert not wrong_directions(file, source)
    assert not private_names_of_others(file, source)
    if file != PRIVATE_NAMES_OF_TORCH:
        assert not private_names_of_torch(file, source)


def test_rooms_are_in_an_order() -> None:
    """Nobody is allowed a circle."""
    left = {room: others - {""} for room, others in MAY_IMPORT.items()}
    while left:
        free = [room for room, others in left.items() if not others & left.keys()]
        assert free, f"a circle: {left}"
        for room in free:
            del left[room]


BREACHES = {
    "ops from autograd": (wrong_directions, "from torch_convbp.autograd import conv2d"),
    "ops from modules": (wrong_directions, "import torch_convbp.modules"),
    "ops from the package": (wrong_directions, "def f():\n    from torch_convbp import convert"),
    "relative": (wrong_directions, "from . import checks"),
    "an underscore name": (private_names_of_others, "from torch_convbp.ops.checks import _check"),
    "an underscore of a module": (
        private_names_of_others,
        "from torch_convbp.ops import checks as c\nc._check()",
    ),
    "torch._C": (private_names_of_torch, "import torch\ntorch._C._dispatch_keys(x)"),
    "from torch._C": (private_names_of_torch, "from torch._C import _functorch"),
    "a private function": (private_names_of_torch, "from torch.autograd.forward_ad import _x"),
    "_schema": (private_names_of_torch, "operator._schema.name"),
}


@pytest.mark.parametrize("name", BREACHES)
def test_breaches_are_found(name: str) -> None:
    rule, source = BREACHES[name]
    assert rule("ops/linear.py", source)
