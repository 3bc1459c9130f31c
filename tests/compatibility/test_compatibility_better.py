"""Where ConvBP2d behaves better than nn.Conv2d: what each does, measured as the tests run.

Only what ours does is asserted: torch may mend its own.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from cases import normal
from deviations import what_happens
from torch import Tensor, nn

import torch_convbp as bp

Cell = Callable[[str, str, str, str], None]
TABLE = "Better behaved"


@pytest.fixture
def both(cell: Cell) -> Callable[[str, str, str], None]:
    """Writes down what either layer does in the row of that name."""

    def write(row: str, torchs: str, ours: str) -> None:
        cell(TABLE, row, "nn.Conv2d", torchs)
        cell(TABLE, row, "ConvBP2d", ours)

    return write


# --- sizes, devices, arguments --------------------------------------------------------------


def layers(*args: Any, **kwargs: Any) -> list[Callable[[], nn.Module]]:
    """What makes nn.Conv2d's and our layer of those arguments."""
    return [lambda: nn.Conv2d(*args, **kwargs), lambda: bp.ConvBP2d(*args, **kwargs)]


@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
def test_zero_channels(both: Any) -> None:
    outputs = [make()(torch.ones(2, 0, 5, 5)) for make in layers(0, 8, 3)]
    assert outputs[1].shape == (2, 8, 3, 3)
    both(
        "Conv2d(0, 8, 3) of size [2, 0, 5, 5]: output of size",
        *(str(list(o.shape)) for o in outputs),
    )


def on(input: str = "cpu", weight: str = "cpu", bias: str = "cpu") -> list[Callable[[], Tensor]]:
    """Calls of either layer with its tensors on those devices."""

    def call(layer: nn.Module) -> Tensor:
        own = {
            "weight": torch.ones(4, 3, 3, 3, device=weight),
            "bias": torch.ones(4, device=bias),
        }
        x = torch.ones(2, 3, 5, 5, device=input)
        return torch.func.functional_call(layer, own, (x,))

    return [lambda make=make: call(make()) for make in layers(3, 4, 3)]  # type: ignore[misc]


def called(make: Callable[[], nn.Module], dtype: torch.dtype = torch.float32) -> Callable[[], Any]:
    return lambda: make()(torch.ones(2, 3, 5, 5, dtype=dtype))


def said(call: Callable[[], Any]) -> str:
    """What happens, short enough for a table."""
    text = what_happens(call).replace("|", "/")
    return text if len(text) <= 150 else text[:147] + "..."


# row: (torch's call, our call, exception, the words in ours)
ERRORS: dict[str, tuple[Callable[[], Any], Callable[[], Any], type[Exception], str]] = {
    **{
        f"{name} on meta, the others on the CPU": (
            *on(**{name: "meta"}), RuntimeError,
            r"Expected all tensors to be on the same device, but got .*meta",
        )
        for name in ("input", "weight", "bias")
    },
    **{
        f"building Conv2d(3, 4, {text})": (
            *layers(3, 4, **arguments), ValueError, words,
        )
        for text, arguments, words in (
            ("3, stride=0", {"kernel_size": 3, "stride": 0}, r"stride must be .*got 0"),
            ("3, stride=(1, 1, 1)", {"kernel_size": 3, "stride": (1, 1, 1)}, r"stride must be"),
            ("3, padding=-1", {"kernel_size": 3, "padding": -1}, r"padding must be .*got -1"),
            ("3, dilation=0", {"kernel_size": 3, "dilation": 0}, r"dilation must be .*got 0"),
            ("(3, 3, 3)", {"kernel_size": (3, 3, 3)}, r"kernel_size must be .*got \(3, 3, 3\)"),
            ("0", {"kernel_size": 0}, r"kernel_size must be .*got 0"),
        )
    },
    "calling Conv2d(3, 4, (3, 3, 3))": (
        *(called(make) for make in layers(3, 4, (3, 3, 3))), ValueError, r"kernel_size must be",
    ),
    "calling it with an input of float64": (
        *(called(make, torch.float64) for make in layers(3, 4, 3)), RuntimeError,
        r"input type \(Double\) and weight type \(Float\) should be the same",
    ),
    "calling Conv2d(3, 4, 3, padding=2**40)": (
        *(called(make) for make in layers(3, 4, 3, padding=2**40)), ValueError,
        r"padding must be at most 2147483647, but got 1099511627776",
    ),
    "calling Conv2d(3, 4, 3, padding=2**30)": (
        *(called(make) for make in layers(3, 4, 3, padding=2**30)), RuntimeError,
        r"the output of size .* would not fit into the address space; .* padding=",
    ),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
@pytest.mark.parametrize("row", ERRORS)
def test_errors(row: str, both: Any) -> None:
    torchs, ours, exception, words = ERRORS[row]
    with pytest.raises(exception, match=words):
        ours()
    both(row, said(torchs), said(ours))


# --- numbers --------------------------------------------------------------------------------

NETWORK_SHAPES = [(64, 64, 3, 14), (32, 48, 3, 9), (128, 64, 1, 7), (3, 64, 7, 33)]


def largest_difference(run: Callable[[Callable[[], nn.Module], Tensor], tuple[Tensor, Tensor]]):
    """Between two ways of computing the same, of either layer, relative to the largest value."""
    worst = [0.0, 0.0]
    for i, (channels, filters, kernel, size) in enumerate(NETWORK_SHAPES):
        for which, make in enumerate(layers(channels, filters, kernel, padding=kernel // 2)):
            torch.manual_seed(i)
            one, other = run(make, normal((16, channels, size, size), torch.float32, i))
            difference = (one - other).abs().max() / one.abs().max()
            worst[which] = max(worst[which], difference.item())
    return worst


def test_a_sample_has_the_same_bits_in_any_batch(both: Any) -> None:
    def run(make: Callable[[], nn.Module], input: Tensor) -> tuple[Tensor, Tensor]:
        layer = make()
        return layer(input), torch.cat([layer(sample) for sample in input.split(1)])

    theirs, ours = largest_difference(run)
    assert ours == 0
    both("a sample alone and in a batch of 16: largest difference", f"{theirs:.1g}", f"{ours:.1g}")


def test_the_same_bits_with_any_number_of_threads(
    both: Any, set_threads: Callable[[int], None]
) -> None:
    def run(make: Callable[[], nn.Module], input: Tensor) -> tuple[Tensor, Tensor]:
        layer, results = make(), []
        for threads in (1, 2):
            set_threads(threads)
            leaf = input.clone().requires_grad_()
            gradients = torch.autograd.grad(layer(leaf).sin().sum(), [leaf, *layer.parameters()])
            results.append(torch.cat([g.flatten() / g.abs().max() for g in gradients]))
        return results[0], results[1]

    theirs, ours = largest_difference(run)
    assert ours == 0
    both("gradients with 1 thread and with 2: largest difference", f"{theirs:.1g}", f"{ours:.1g}")


# --- the error signal -----------------------------------------------------------------------


def test_full_backward_hooks_with_an_activation(both: Any) -> None:
    """The gradient a hook gets, of a convolution with a ReLU that allocates nothing."""

    def read(model: nn.Module, layer: nn.Module) -> Tensor:
        seen: list[Tensor] = []
        layer.register_full_backward_hook(lambda module, grads, outputs: seen.append(outputs[0]))
        model(torch.ones(2, 3, 5, 5, requires_grad=True)).sum().backward()
        return seen[0]

    conv, ours = nn.Conv2d(3, 4, 3), bp.ConvBP2d(3, 4, 3, activation="relu")
    torchs = nn.Sequential(conv, nn.ReLU(inplace=True))
    assert torch.equal(read(ours, ours), torch.ones(2, 4, 3, 3))
    both(
        "full backward hook with an in-place ReLU: the gradient read",
        said(lambda: read(torchs, conv)),
        said(lambda: read(ours, ours)),
    )
