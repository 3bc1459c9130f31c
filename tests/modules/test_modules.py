"""ConvBP2d is an nn.Conv2d: same parameters, same numbers, same life around it."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from cases import integers, normal
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import torch_convbp as bp

pytestmark = pytest.mark.every_device

ARGUMENTS = {
    "plain": dict(in_channels=3, out_channels=8, kernel_size=3),
    "everything": dict(
        in_channels=4, out_channels=6, kernel_size=(3, 2), stride=(2, 1), padding=(1, 2),
        dilation=(1, 2), groups=2, bias=False,
    ),
    "same": dict(in_channels=3, out_channels=4, kernel_size=(4, 3), padding="same"),
    "valid": dict(in_channels=3, out_channels=4, kernel_size=3, padding="valid"),
    "reflect": dict(in_channels=3, out_channels=4, kernel_size=3, padding=(2, 1),
                    padding_mode="reflect"),
    "replicate": dict(in_channels=3, out_channels=4, kernel_size=3, padding="same",
                      padding_mode="replicate"),
    "circular": dict(in_channels=3, out_channels=4, kernel_size=3, padding=2, stride=2,
                     padding_mode="circular"),
    "depthwise": dict(in_channels=4, out_channels=8, kernel_size=5, padding=2, groups=4),
    "float64": dict(in_channels=3, out_channels=4, kernel_size=3, dtype=torch.float64),
    "bfloat16": dict(in_channels=3, out_channels=4, kernel_size=3, dtype=torch.bfloat16),
    "device": dict(in_channels=3, out_channels=4, kernel_size=3, device="cpu"),
}  # fmt: skip


def twins(name: str) -> tuple[nn.Conv2d, bp.ConvBP2d]:
    torch.manual_seed(7)
    theirs = nn.Conv2d(**ARGUMENTS[name])
    torch.manual_seed(7)
    return theirs, bp.ConvBP2d(**ARGUMENTS[name])


def whole_parameters(*modules: nn.Module) -> None:
    """The same small whole numbers into every module: results are then exact."""
    for module in modules:
        for seed, parameter in enumerate(module.parameters()):
            parameter.data = integers(tuple(parameter.shape), parameter.dtype, seed)


@pytest.mark.parametrize("name", ARGUMENTS)
def test_is_nn_conv2d(name: str) -> None:
    theirs, ours = twins(name)
    assert isinstance(ours, nn.Conv2d)
    assert repr(ours) == repr(theirs).replace("Conv2d(", "ConvBP2d(")
    for (their_name, their_value), (our_name, our_value) in zip(
        theirs.state_dict().items(), ours.state_dict().items(), strict=True
    ):
        assert their_name == our_name
        assert torch.equal(their_value, our_value), "the same seed gives other weights"
    assert vars(theirs).keys() == vars(ours).keys()


@pytest.mark.parametrize("name", ARGUMENTS)
def test_computes_what_nn_conv2d_computes(name: str) -> None:
    theirs, ours = twins(name)
    whole_parameters(theirs, ours)
    dtype = theirs.weight.dtype
    results = []
    for module in (theirs, ours):
        input = integers((2, theirs.in_channels, 9, 8), dtype, seed=1).requires_grad_()
        output = module(input)
        output.backward(integers(tuple(output.shape), dtype, seed=2))
        results.append([output, input.grad, *(p.grad for p in module.parameters())])
    for a, b in zip(*results, strict=True):
        assert torch.equal(a, b)
        assert a.stride() == b.stride()


@pytest.mark.parametrize("strict", [True, False])
def test_export_with_sizes_as_arguments(strict: bool) -> None:
    """What is checked of them must not bind them."""

    class InputGrad(nn.Module):
        def forward(self, input: Tensor, delta: Tensor) -> Tensor:
            weight = delta.new_ones(4, 3, 3, 3)
            return bp.functional.conv2d_input_grad(input.shape, weight, delta, padding=1)

    sizes = {0: torch.export.Dim("n"), 2: torch.export.Dim("h")}
    example = torch.randn(2, 3, 8, 8), torch.randn(2, 4, 8, 8)
    exported = torch.export.export(
        InputGrad(), example, dynamic_shapes=(sizes, sizes), strict=strict
    ).module()
    given = torch.randn(5, 3, 9, 8), torch.randn(5, 4, 9, 8)
    assert torch.equal(exported(*given), InputGrad()(*given))


def test_torch_fx_keeps_layers_whole() -> None:
    class Subclass(nn.Conv2d):
        pass

    layers = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), Subclass(4, 2, 1), bp.LinearBP(4, 5))
    traced = torch.fx.symbolic_trace(bp.convert(layers))
    assert [n.op for n in traced.graph.nodes] == ["placeholder", *["call_module"] * 4, "output"]
    input = torch.randn(1, 3, 6, 6)
    assert torch.equal(traced(input), layers(input))


def test_floating_point_operations_are_counted_as_torchs() -> None:
    counts = []
    for conv, linear in ((nn.Conv2d, nn.Linear), (bp.ConvBP2d, bp.LinearBP)):
        layers = nn.Sequential(conv(4, 8, 3), conv(8, 4, 3, 2, 1), nn.Flatten(), linear(36, 5))
        with FlopCounterMode(display=False) as counter:
            layers(torch.randn(2, 4, 8, 8, requires_grad=True)).sum().backward()
        counts.append(counter.get_total_flops())
    assert counts[0] == counts[1] > 0


def test_constructor_takes_what_stands_for_ints() -> None:
    several = bp.ConvBP2d(3, 4, np.array([3, 2]), padding=range(1, 3), stride=torch.tensor([2, 1]))
    assert (several.kernel_size, several.padding, several.stride) == ((3, 2), (1, 2), (2, 1))
    """numpy's ints, lists, and a single one for both directions."""
    layer = bp.ConvBP2d(np.int64(3), 4, [3], stride=(2,), padding=(np.int32(1), 2), groups=1)
    assert (layer.kernel_size, layer.stride, layer.padding) == ((3, 3), (2, 2), (1, 2))
    assert layer(torch.ones(1, 3, 8, 8)).shape == (1, 4, 4, 5)


def test_state_dict_goes_both_ways() -> None:
    theirs, ours = twins("everything")
    torch.nn.init.normal_(theirs.weight)
    assert ours.load_state_dict(theirs.state_dict()) == nn.modules.module._IncompatibleKeys([], [])
    assert torch.equal(ours.weight, theirs.weight)
    torch.nn.init.normal_(ours.weight)
    theirs.load_state_dict(ours.state_dict())
    assert torch.equal(ours.weight, theirs.weight)


def test_same_values_in_other_memory_formats() -> None:
    module = twins("plain")[1]
    input = normal((2, 3, 7, 7), torch.float32, seed=1)
    expected = module(input)
    for other in (input.to(memory_format=torch.channels_last), input.mT.contiguous().mT):
        assert torch.equal(module(other), expected)
    last = copy.deepcopy(module).to(memory_format=torch.channels_last)
    assert last(input).is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(last(input), expected)


def test_zero_channels_have_the_right_shape() -> None:
    """Where nn.Conv2d returns no channels at all."""
    module = bp.ConvBP2d(0, 8, 3)
    output: Tensor = module(torch.empty(2, 0, 5, 5))
    assert output.shape == (2, 8, 3, 3)
    assert torch.equal(output, module.bias[None, :, None, None].expand_as(output))


@pytest.mark.parametrize("groups", [0, -1])
def test_groups_in_torchs_words(groups: int) -> None:
    with pytest.raises(ValueError, match="groups must be a positive integer"):
        nn.Conv2d(3, 4, 3, groups=groups)
    with pytest.raises(ValueError, match=f"groups must be a positive integer, but got {groups}"):
        bp.ConvBP2d(3, 4, 3, groups=groups)
