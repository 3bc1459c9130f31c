"""The Winograd algorithm: near the exact results everywhere, and taken only where it is allowed."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from cases import LAYOUTS, Case, in_layout, integers, normal, parameters
from torch import Tensor

import torch_convbp as bp

ops = torch.ops.torch_convbp

BOUND = 3e-6  # of the largest result: how far one may lie from float64's

SAME = {"kernel": (3, 3), "padding": (1, 1, 1, 1)}
CASES = [
    Case("whole_tiles", in_channels=16, out_channels=32, size=(8, 12), **SAME),
    Case("ragged", in_channels=17, out_channels=40, size=(15, 19), **SAME),
    Case("no_padding", in_channels=33, out_channels=5, size=(7, 9), kernel=(3, 3)),
    Case("padding_beyond", in_channels=4, out_channels=6, size=(5, 3), kernel=(3, 3),
         padding=(4, 3, 2, 5)),
    Case("groups", in_channels=18, out_channels=27, groups=3, size=(9, 10), **SAME),
    Case("one_pixel", in_channels=20, out_channels=20, size=(1, 1), **SAME),
    Case("two_by_two", in_channels=20, out_channels=9, size=(2, 2), **SAME),
    Case("three_by_five", in_channels=3, out_channels=70, size=(3, 5), **SAME),
    Case("channels_130", in_channels=130, out_channels=150, size=(4, 4), batch=5, **SAME),
    Case("wide", in_channels=5, out_channels=3, size=(6, 300), batch=1, **SAME),
    Case("one_row_of_tiles", in_channels=5, out_channels=3, size=(3, 1500), kernel=(3, 3)),
    Case("stride_2", in_channels=16, out_channels=32, size=(16, 24), stride=(2, 2), **SAME),
    Case("stride_2_ragged", in_channels=17, out_channels=40, size=(15, 20), stride=(2, 2), **SAME),
    Case("stride_2_no_padding", in_channels=33, out_channels=5, size=(8, 9), stride=(2, 2),
         kernel=(3, 3)),
    Case("stride_2_padding_beyond", in_channels=4, out_channels=6, size=(5, 3), kernel=(3, 3),
         stride=(2, 2), padding=(4, 3, 2, 5)),
    Case("stride_2_unread_border", in_channels=9, out_channels=8, size=(10, 14), stride=(2, 2),
         kernel=(3, 3), padding=(0, 0, 1, 0)),
    Case("stride_2_groups", in_channels=18, out_channels=27, groups=3, size=(9, 10),
         stride=(2, 2), **SAME),
    Case("stride_2_one_result", in_channels=20, out_channels=20, size=(2, 1), stride=(2, 2),
         **SAME),
    Case("stride_2_channels_130", in_channels=130, out_channels=150, size=(8, 8), stride=(2, 2),
         batch=5, **SAME),
    Case("stride_2_wide", in_channels=5, out_channels=3, size=(6, 1300), stride=(2, 2), batch=1,
         **SAME),
    Case("kernel_5", in_channels=16, out_channels=32, size=(8, 12), kernel=(5, 5),
         padding=(2, 2, 2, 2)),
    Case("kernel_5_ragged", in_channels=17, out_channels=40, size=(15, 19), kernel=(5, 5),
         padding=(2, 2, 2, 2)),
    Case("kernel_5_no_padding", in_channels=33, out_channels=5, size=(7, 10), kernel=(5, 5)),
    Case("kernel_5_padding_beyond", in_channels=4, out_channels=6, size=(5, 3), kernel=(5, 5),
         padding=(6, 5, 4, 7)),
    Case("kernel_5_groups", in_channels=18, out_channels=27, groups=3, size=(9, 10),
         kernel=(5, 5), padding=(2, 2, 2, 2)),
    Case("kernel_5_one_result", in_channels=20, out_channels=20, size=(5, 5), kernel=(5, 5)),
    Case("kernel_7_stem", in_channels=3, out_channels=64, size=(32, 32), stride=(2, 2),
         kernel=(7, 7), padding=(3, 3, 3, 3)),
    Case("kernel_7_ragged", in_channels=5, out_channels=17, size=(23, 20), stride=(2, 2),
         kernel=(7, 7), padding=(3, 3, 3, 3)),
    Case("kernel_7_no_padding", in_channels=33, out_channels=5, size=(12, 15), stride=(2, 2),
         kernel=(7, 7)),
    Case("kernel_7_padding_beyond", in_channels=4, out_channels=6, size=(5, 3), stride=(2, 2),
         kernel=(7, 7), padding=(8, 7, 6, 9)),
    Case("kernel_7_groups", in_channels=18, out_channels=27, groups=3, size=(13, 14),
         stride=(2, 2), kernel=(7, 7), padding=(3, 3, 3, 3)),
    Case("kernel_7_channels_130", in_channels=130, out_channels=70, size=(9, 9), stride=(2, 2),
         kernel=(7, 7), padding=(3, 3, 3, 3), batch=3),
    Case("dilated", in_channels=16, out_channels=32, size=(13, 16), dilation=(2, 2),
         kernel=(3, 3), padding=(2, 2, 2, 2)),
    Case("dilated_ragged", in_channels=17, out_channels=24, size=(14, 11), dilation=(3, 3),
         kernel=(3, 3), padding=(1, 2, 4, 0)),
    Case("dilated_no_padding", in_channels=9, out_channels=16, size=(9, 10), dilation=(4, 4),
         kernel=(3, 3)),
    Case("dilated_beyond", in_channels=9, out_channels=16, size=(3, 2), dilation=(5, 5),
         kernel=(3, 3), padding=(7, 6, 5, 8)),
    Case("dilated_fewer_results_than_phases", in_channels=9, out_channels=16, size=(14, 13),
         dilation=(6, 6), kernel=(3, 3)),
    Case("lanes_of_four_vectors", in_channels=24, out_channels=64, size=(13, 13), **SAME),
    Case("stride_2_lanes_of_four_vectors", in_channels=64, out_channels=64, size=(13, 13),
         stride=(2, 2), **SAME),
    Case("rows_of_four", in_channels=32, out_channels=48, size=(4, 4), batch=3, **SAME),
    Case("rows_of_seven", in_channels=24, out_channels=40, size=(7, 7), batch=3, **SAME),
    Case("past_the_caches", in_channels=8, out_channels=64, size=(136, 132), batch=2, **SAME),
    Case("one_image", in_channels=64, out_channels=64, size=(28, 28), batch=1, **SAME),
]  # fmt: skip
OTHERS = [  # not for it: computed directly
    Case("stride", in_channels=16, out_channels=16, stride=(2, 1), **SAME),
    Case("dilation", in_channels=16, out_channels=16, dilation=(1, 2), **SAME),
    Case(
        "dilation_beyond_the_results",
        in_channels=16,
        out_channels=16,
        size=(4, 4),
        dilation=(100_000, 100_000),
        kernel=(3, 3),
        padding=(100_000,) * 4,
    ),
    Case("kernel_3_by_5", in_channels=16, out_channels=16, kernel=(3, 5)),
    Case("kernel_5_stride_2", in_channels=16, out_channels=16, kernel=(5, 5), stride=(2, 2)),
    Case("kernel_7_stride_1", in_channels=16, out_channels=16, size=(9, 9), kernel=(7, 7)),
    Case("no_channels", in_channels=0, out_channels=16, **SAME),
    Case("one_channel_a_group", in_channels=16, out_channels=16, groups=16, **SAME),
]


def everything(case: Case, a: Tensor, w: Tensor, b: Tensor, delta: Tensor) -> dict[str, Tensor]:
    weight_grad, bias_grad = ops.conv2d_weight_bias_grad(a, w.shape, delta, *case.geometry)
    output, before = ops.conv2d_activation_pair(a, w, b, *case.geometry, "silu", [])
    return {
        "output": ops.conv2d(a, w, b, *case.geometry),
        "relu": ops.conv2d_activation(a, w, b, *case.geometry, "relu", []),
        "silu": output,
        "before silu": before,
        "input_grad": ops.conv2d_input_grad(a.shape, w, delta, *case.geometry),
        "weight_grad": ops.conv2d_weight_grad(a, w.shape, delta, *case.geometry),
        "weight_grad with bias": weight_grad,
        "bias_grad": bias_grad,
    }


def operands(case: Case, numbers, dtype: torch.dtype) -> list[Tensor]:
    sizes = (case.input_size, case.weight_size, (case.out_channels,), case.output_size)
    return [numbers(size, dtype, seed=i) for i, size in enumerate(sizes)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("case", parameters(CASES))
def test_close_to_the_exact_results(case: Case, layout: str, dtype: torch.dtype) -> None:
    """Within 3e-6 of the largest result, and the rounding of what is stored."""
    a, w, b, delta = operands(case, normal, dtype)
    with bp.backends.cpu.flags(conv_algorithm="winograd"):
        ours = everything(case, in_layout(a, layout), in_layout(w, layout), b,
                          in_layout(delta, layout))  # fmt: skip
    with bp.backends.cpu.flags(conv_algorithm="direct"):
        exact = everything(case, *(t.double() for t in (a, w, b, delta)))
    bound = BOUND + (0 if dtype == torch.float32 else torch.finfo(dtype).eps)
    for name, result in ours.items():
        assert result.dtype == dtype
        largest = exact[name].abs().max()
        assert largest > 0, name
        error = (result.double() - exact[name]).abs().max() / largest
        assert error <= bound, f"{name}: {error:.2g}"


@pytest.mark.parametrize(("kernel", "stride"), [(3, 1), (3, 2), (5, 1), (7, 2)])
@pytest.mark.parametrize("channels", [8, 64, 512, 2048])
def test_error_does_not_grow_with_the_channels(channels: int, kernel: int, stride: int) -> None:
    """As docs/performance.md says: below 3e-6 of the largest result, up to 2,048 channels."""
    pad = kernel // 2
    case = Case("wide", batch=2, in_channels=channels, out_channels=32, size=(12, 12),
                kernel=(kernel, kernel), stride=(stride, stride), padding=(pad,) * 4)  # fmt: skip
    a, w, b, delta = operands(case, normal, torch.float32)
    # Of the input gradient, the sum goes over the other channels; that of 7x7 is computed directly.
    turned = replace(case, in_channels=32, out_channels=channels if kernel < 7 else 32)
    with bp.backends.cpu.flags(conv_algorithm="winograd"):
        ours = everything(case, a, w, b, delta)
        operand = operands(turned, normal, torch.float32)
        ours["input_grad"] = everything(turned, *operand)["input_grad"]
    exact = everything(case, *(t.double() for t in (a, w, b, delta)))
    exact["input_grad"] = everything(turned, *(t.double() for t in operand))["input_grad"]
    for name, result in ours.items():
        error = (result.double() - exact[name]).abs().max() / exact[name].abs().max()
        assert error <= BOUND, f"{name}: {error:.2g}"


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("size", [(1, 1), (2, 2), (1, 2), (2, 1)], ids=str)
def test_tiles_of_two_are_exact_on_integers(size: tuple[int, int], stride: int) -> None:
    """Results of one or two pixels a side are computed with F(2x2, 3x3), which halves at most."""
    case = replace(CASES[1], size=size, stride=(stride, stride))
    operand = operands(case, integers, torch.float32)
    expected = everything(case, *(t.double() for t in operand))
    with bp.backends.cpu.flags(conv_algorithm="winograd"):
        ours = everything(case, *operand)
    for name in set(ours) - {"silu"}:
        assert torch.equal(ours[name].double(), expected[name]), name


@pytest.mark.parametrize("case", parameters(OTHERS))
def test_other_convolutions_are_computed_directly(case: Case) -> None:
    results = []
    for algorithm in ("winograd", "direct"):
        with bp.backends.cpu.flags(conv_algorithm=algorithm):
            results.append(everything(case, *operands(case, normal, torch.float32)))
    for name, result in results[0].items():
        assert torch.equal(result, results[1][name]), name


def test_float64_is_computed_directly() -> None:
    operand = operands(CASES[0], normal, torch.float64)
    direct = everything(CASES[0], *operand)
    with bp.backends.cpu.flags(conv_algorithm="winograd"):
        for name, result in everything(CASES[0], *operand).items():
            assert torch.equal(result, direct[name]), name


def test_it_is_what_auto_takes() -> None:
    """For many channels on large maps; and "direct" leaves it."""
    case = CASES[-1]
    a, w, b, _ = operands(case, normal, torch.float32)
    results = {}
    for algorithm in ("auto", "winograd", "direct"):
        with bp.backends.cpu.flags(conv_algorithm=algorithm):
            results[algorithm] = bp.functional.conv2d(a, w, b, padding=1)
    assert torch.equal(results["auto"], results["winograd"])
    assert not torch.equal(results["auto"], results["direct"])
    exact = F.conv2d(a.double(), w.double(), b.double(), padding=1)
    assert torch.allclose(results["auto"].double(), exact, atol=BOUND * exact.abs().max().item())
