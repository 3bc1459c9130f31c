"""The reference is the lecture: it agrees with torch's autograd on everything it states."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from cases import SMALL, Case, integers, normal, parameters, small

from torch_convbp import reference


def geometry_of(case: Case) -> reference.Geometry:
    return reference.Geometry(case.stride, case.padding, case.dilation, case.groups)


def lecture_tensors(case: Case) -> tuple[torch.Tensor, ...]:
    """a, w, b_ok and delta, of whole numbers: every comparison below is exact."""
    a = integers(case.input_size, torch.float64, seed=1)
    w = integers(case.weight_size, torch.float64, seed=2)
    b = integers(case.weight_size[:2], torch.float64, seed=3)
    delta = integers(case.output_size, torch.float64, seed=4)
    return a, w, b, delta


def torch_conv2d(case: Case, a: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None):
    top, bottom, left, right = case.padding
    padded = F.pad(a, (left, right, top, bottom))
    return F.conv2d(padded, weight, bias, case.stride, 0, case.dilation, case.groups)


# torch's conv2d gives a wrong shape without channels: the next file checks that case.
WITH_CHANNELS = [case for case in SMALL if case.in_channels > 0]


@pytest.mark.parametrize("case", parameters(WITH_CHANNELS))
def test_forward_and_gradients_are_torchs(case: Case) -> None:
    a, w, b, delta = lecture_tensors(case)
    geometry = geometry_of(case)
    a.requires_grad_()
    weight, bias = (t.clone().requires_grad_() for t in reference.to_torch(w, b))
    p = torch_conv2d(case, a, weight, bias)
    a_grad, weight_grad, bias_grad = torch.autograd.grad(p, (a, weight, bias), delta)

    assert torch.equal(reference.pre_activation(a.detach(), w, b, geometry), p)
    assert torch.equal(reference.input_grad(case.size, w, delta, geometry), a_grad)
    filter_grad = reference.filter_grad(a.detach(), delta, case.kernel, geometry)
    assert torch.equal(reference.flip(filter_grad), weight_grad)
    per_pair = reference.bias_grad(delta, case.weight_size[1])
    assert torch.equal(-per_pair, bias_grad[:, None].expand_as(per_pair))


def test_pre_activation_is_a_convolution_with_the_flipped_filter() -> None:
    """L1 as the lecture writes it, one pair of maps, one position, by hand."""
    a, w, b, _ = lecture_tensors(small("slides"))
    pairs = reference.pre_activation_pairs(a, w, b)
    o, k, m, n = 2, 1, 3, 0
    flipped = w[o, k].flip(0, 1)
    by_hand = (a[1, k, m : m + 3, n : n + 3] * flipped).sum() - b[o, k]
    assert pairs[1, o, k, m, n] == by_hand


def test_error_signal_multiplies_before_it_convolves() -> None:
    """L2, L3 and the recursion through g, against autograd."""
    case = small("padding")
    a = normal(case.input_size, torch.float64, seed=5).requires_grad_()
    w = normal(case.weight_size, torch.float64, seed=6)
    b = normal(case.weight_size[:2], torch.float64, seed=7)
    weight, bias = reference.to_torch(w, b)
    out = torch.tanh(torch_conv2d(case, a, weight, bias))
    above = normal(tuple(out.shape), torch.float64, seed=8)
    (expected,) = torch.autograd.grad(out, a, above)

    p = reference.pre_activation(a.detach(), w, b, geometry_of(case))
    torch.testing.assert_close(reference.activation(p, torch.tanh), out)
    delta = reference.error_signal(p, above, lambda p: 1 - torch.tanh(p) ** 2)
    actual = reference.input_grad(case.size, w, delta, geometry_of(case))
    torch.testing.assert_close(actual, expected)


def test_summary_slides_taken_literally_do_not_fit() -> None:
    """The erratum: g' outside the convolution has not even the right shape."""
    case = small("slides")
    a, w, b, above = lecture_tensors(case)
    p = reference.pre_activation(a, w, b)
    convolved = reference.input_grad(case.size, w, above)  # the full convolution: larger than p
    with pytest.raises(RuntimeError, match="must match the size"):
        (1 - torch.tanh(p) ** 2).sum(1, keepdim=True) * convolved
