"""The package and the life of a process: imports, its end, threads. Each script runs in a process
of its own, since none of this can be undone."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

SCRIPTS = {
    "reloaded": """
        import importlib
        layer_type = bp.ConvBP2d
        assert importlib.reload(bp) is bp and bp.ConvBP2d is layer_type
        layer(x).sum().backward()
        """,
    "used after its modules are gone": """
        del bp
        forget()
        layer(x).sum().backward()
        (grad,) = torch.autograd.grad(layer(x).sum(), x, create_graph=True)
        grad.square().sum().backward()
        """,
    "imported a second time": """
        forget()
        with raises(ImportError, "torch_convbp: cannot be loaded more than once in a process"):
            import torch_convbp
        """,
    "a graph is pending at the end": """
        import atexit
        pending = layer(x).sum()
        cycle = [pending, layer]
        cycle.append(cycle)
        layer.pending = cycle
        atexit.register(lambda: pending.backward())
        torch.pending = layer(x).sum()  # outlives the package's modules
        """,
    "the compiler is not loaded": """
        assert "torch._dynamo" not in sys.modules
        """,
}

BEFORE_IMPORT = {
    "a torch that is too old": """
        def load_library(path):
            raise OSError(f"{path}: undefined symbol: torch_parallel_for")
        torch.ops.load_library, torch.__version__ = load_library, "2.9.1"
        with raises(ImportError, "in torch 2.9.1 .*undefined symbol.* torch >= 2.10 is needed"):
            import torch_convbp
        """,
    "a torch that cannot record derivatives": """
        del torch.autograd.function._SingleLevelFunction
        with raises(ImportError, "how to record derivatives in torch .*Versions 2.10 to 2.14"):
            import torch_convbp
        """,
}

START = """
import os, sys, torch
from pytest import raises as raises_match
def raises(kind, text):
    return raises_match(kind, match=text)
def forget():
    for name in [name for name in sys.modules if name.partition(".")[0] == "torch_convbp"]:
        del sys.modules[name]
"""
IMPORT = """
import torch_convbp as bp
layer = bp.ConvBP2d(3, 4, 3, activation="silu")
x = torch.ones(2, 3, 9, 9, requires_grad=True)
"""

# Imports torch once and forks, which is sound as long as torch has started no threads; the package
# is imported when the scripts before its import have run. A child ends as every program does.
FORKS = """
import json, os, sys, torch, pytest
before, after = json.load(sys.stdin)
for name, script in [*before.items(), ("", ""), *after.items()]:
    if not name:
        import torch_convbp
    elif os.fork() == 0:
        print("---", name, file=sys.stderr, flush=True)
        exec(compile(script, name, "exec"), {"__name__": "__main__"})
        sys.exit()
    else:
        print(json.dumps([name, os.waitstatus_to_exitcode(os.wait()[1])]), flush=True)
"""


@pytest.fixture(scope="module")
def outcomes() -> tuple[dict[str, int], str]:
    """The exit status of each script, and all that was written to stderr."""
    before = {name: START + textwrap.dedent(body) for name, body in BEFORE_IMPORT.items()}
    after = {name: START + IMPORT + textwrap.dedent(body) for name, body in SCRIPTS.items()}
    done = subprocess.run(
        [sys.executable, "-c", FORKS], input=json.dumps([before, after]), cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True,
    )  # fmt: skip
    return dict(map(json.loads, done.stdout.splitlines())), done.stderr


@pytest.mark.parametrize("name", [*SCRIPTS, *BEFORE_IMPORT])
def test_process(name: str, outcomes: tuple[dict[str, int], str]) -> None:
    status, stderr = outcomes
    assert status.get(name) == 0, stderr
