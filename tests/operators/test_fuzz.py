"""Configurations drawn at random against torch (fuzz.py); and the fuzzer against bugs.

`make fuzz` draws new ones for as long as one likes; these here are the same every time.
"""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Callable
from typing import Any

import fuzz
import pytest
import torch
from configurations import KINDS, Common, parse
from hypothesis import HealthCheck, given, settings

from torch_convbp.ops import conv2d as conv2d_ops
from torch_convbp.ops import conv2d_backward as backward_ops
from torch_convbp.ops import pool2d as pool2d_ops

pytestmark = [pytest.mark.every_device, pytest.mark.usefixtures("one_thread")]
STABLE = settings(
    max_examples=1000, derandomize=True, deadline=None, database=None,
    suppress_health_check=list(HealthCheck),
)  # fmt: skip


def test_drawn_configurations_compute_what_torch_computes() -> None:
    """Every kind, few that are refused; and the line of JSON is the configuration."""
    counts: Counter[str] = Counter()

    @STABLE
    @given(fuzz.CONFIGURATIONS)
    def draw(configuration: Common) -> None:
        assert parse(str(configuration)) == configuration
        counts[type(configuration).__name__] += 1
        counts["refused"] += not fuzz.check(configuration)

    draw()
    assert all(counts[kind.__name__] >= 60 for kind in KINDS.values()), counts
    assert 0 < counts["refused"] < counts.total() / 5, counts


def wrong_column(real: Callable[..., Any]) -> Callable[..., Any]:
    def conv2d(input: torch.Tensor, weight: torch.Tensor, bias: Any, *geometry: Any) -> Any:
        output = real(input, weight, bias, *geometry)
        if geometry[2][1] == 2 and weight.shape[3] == 3 and weight.shape[0] > 8:
            output[..., -1] += 1
        return output

    return conv2d


def wrong_scale(real: Callable[..., Any]) -> Callable[..., Any]:
    def conv2d_backward(*arguments: Any, **format: Any) -> Any:
        input_grad, weight_grad, bias_grad = real(*arguments, **format)
        if arguments[6][0] == 3 and weight_grad.dtype == torch.float32:
            weight_grad = weight_grad * (1 + 2**-12)
        return input_grad, weight_grad, bias_grad

    return conv2d_backward


def unwritten(real: Callable[..., Any]) -> Callable[..., Any]:
    def avg_pool2d(input: torch.Tensor, kernel: Any, *geometry: Any) -> Any:
        output = real(input, kernel, *geometry)
        if input.shape[1] > 8 and geometry[-2] is False:
            output[0, 8] = torch.empty_like(output[0, 8])
        return output

    return avg_pool2d


# name: (module, operator, what is wrong with it, what every case that shows it has when it is
# shrunk: how small the rest gets is Hypothesis's affair)
BUGS: dict[str, Any] = {
    "wrong_column": (conv2d_ops, "conv2d", wrong_column,
        {"kernel": (1, 3), "dilation": (1, 2)}),
    "wrong_scale": (backward_ops, "conv2d_backward", wrong_scale,
        {"stride": (3, 1), "dtype": "float32"}),
    "unwritten": (pool2d_ops, "avg_pool2d", unwritten,
        {"kernel": (1, 1), "count_include_pad": False}),
}  # fmt: skip


@pytest.mark.parametrize("name", BUGS)
def test_a_bug_is_found_and_shrunk(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    module, operator, bug, smallest = BUGS[name]
    with monkeypatch.context() as patch:
        patch.setattr(module, operator, bug(getattr(module, operator)))
        wrong = fuzz.search(3000, number=1)
        assert wrong is not None, "not found"
        command = shlex.split(str(wrong).splitlines()[-1])
        assert command[:3] == ["reproduce:", "python", "tests/support/fuzz.py"]
        found = parse(command[3])
        assert {key: getattr(found, key) for key in smallest} == smallest, command[3]
        with pytest.raises(fuzz.Wrong):
            fuzz.check(found)
    assert fuzz.check(found)


def test_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    line = '{"kind":"max_pool2d","size":[3,3],"dtype":"bfloat16"}'
    assert fuzz.main([line]) == 0 and capsys.readouterr().out == "as torch\n"
    assert fuzz.main(["--examples", "50", "--seed", "3"]) == 0
    printed = capsys.readouterr().out
    assert "50 configurations" in printed and "every one as torch" in printed
