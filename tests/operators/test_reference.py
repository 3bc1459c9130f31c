"""The reference is the lecture: it agrees with torch's autograd on everything it states."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from cases import SMALL, Case, integers, normal, parameters, small

from torch_convbp import lecture, reference

pytestmark = pytest.mark.every_device


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
    weight, bias = (t.clone().requires_grad_() for t in lecture.to_torch(w, b))
    p = torch_conv2d(case, a, weight, bias)
    a_grad, weight_grad, bias_grad = torch.autograd.grad(p, (a, weight, bias), delta)

    assert torch.equal(reference.pre_activation(a.detach(), w, b, geometry), p)
    assert torch.equal(reference.input_grad(case.size, w, delta, geometry), a_grad)
    filter_grad = reference.filter_grad(a.detach(), delta, case.kernel, geometry)
    assert torch.equal(lecture.flip(filter_grad), weight_grad)
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
    weight, bias = lecture.to_torch(w, b)
    out = torch.tanh(torch_conv2d(case, a, weight, bias))
    above = normal(tuple(out.shape), torch.float64, seed=8)
    (expected,) = torch.autograd.grad(out, a, above)

    p = reference.pre_activation(a.detach(), w, b, geometry_of(case))
    torch.testing.assert_close(reference.activation(p, torch.tanh), out)
    delta = reference.error_signal(p, above, lambda p: 1 - torch.tanh(p) ** 2)
    actual = reference.input_grad(case.size, w, delta, geometry_of(case))
    torch.testing.assert_close(actual, expected)


def test_summary_slides_taken_literally_do_not_fit() -> None:
    """The erratum: g' outside the convolution has not even the right shape.

    sum_o g'(p_o) ⊙ (delta_o * w̃_ok) wants g'(p_o), M x N', times a full convolution, of the
    input's size; and g'(p_o) ⊙ (delta_o * a_k) wants it times a weight gradient, of the filter's.
    """
    case = small("slides")
    a, w, b, above = lecture_tensors(case)
    p = reference.pre_activation(a, w, b)
    g_prime = 1 - torch.tanh(p) ** 2
    full = reference.input_grad(case.size, w, above)
    assert full.shape[2:] == a.shape[2:] != g_prime.shape[2:]
    with pytest.raises(RuntimeError, match="must match the size"):
        g_prime.sum(1, keepdim=True) * full
    valid = reference.filter_grad(a, above, case.kernel)
    assert valid.shape[2:] == w.shape[2:] != g_prime.shape[2:]
    with pytest.raises(RuntimeError, match="must match the size"):
        g_prime[0, :, None] * valid


class DerivedLayer(torch.autograd.Function):
    """a = tanh(p) in the lecture's own parameters, with the backward pass of the derivation."""

    @staticmethod
    def forward(ctx, a, w, b):
        p = reference.pre_activation(a, w, b)
        ctx.save_for_backward(a, w, p)
        return torch.tanh(p)

    @staticmethod
    def backward(ctx, above):
        a, w, p = ctx.saved_tensors
        delta = reference.error_signal(p, above, lambda p: 1 - torch.tanh(p) ** 2)
        return (
            reference.input_grad(a.shape[2:], w, delta),
            reference.filter_grad(a, delta, w.shape[2:]),
            reference.bias_grad(delta, w.shape[1]),
        )


def test_the_derivation_passes_gradcheck() -> None:
    sizes = ((1, 2, 4, 5), (2, 2, 3, 2), (2, 2))
    leaves = [normal(s, torch.float64, i).requires_grad_() for i, s in enumerate(sizes)]
    assert torch.autograd.gradcheck(DerivedLayer.apply, leaves)


def test_dense_layer_is_torchs() -> None:
    a, w, b, delta = (integers(s, torch.float64, i) for i, s in
                      enumerate(((3, 4), (5, 4), (5,), (3, 5))))  # fmt: skip
    leaves = [t.clone().requires_grad_() for t in (a, *lecture.to_torch(w, b))]
    p = F.linear(*leaves)
    assert torch.equal(reference.dense(a, w, b), p)
    a_grad, *parameters = torch.autograd.grad(p, leaves, delta)
    for ours, theirs in zip(
        reference.dense_grads(a, w, delta),
        (a_grad, *lecture.gradients_from_torch(*parameters)),
        strict=True,
    ):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("size", [(6, 2, 3, 5), (4, 7)], ids=str)
def test_the_lectures_parameters_and_back(size: tuple[int, ...]) -> None:
    weight, bias = normal(size, torch.float64, 1), normal(size[:1], torch.float64, 2)
    w, b = lecture.from_torch(weight, bias)
    assert b.shape == (size[:2] if len(size) == 4 else size[:1])
    again = lecture.to_torch(w, b)
    assert torch.equal(again[0], weight)
    torch.testing.assert_close(again[1], bias)
    assert lecture.from_torch(weight)[1] is None
    # The gradients are those of the map between the two.
    leaves = [t.detach().clone().requires_grad_() for t in (w, b)]
    weight_grad, bias_grad = normal(size, torch.float64, 3), normal(size[:1], torch.float64, 4)
    expected = torch.autograd.grad(lecture.to_torch(*leaves), leaves, (weight_grad, bias_grad))
    for a, e in zip(lecture.gradients_from_torch(weight_grad, bias_grad), expected, strict=True):
        assert torch.equal(a, e)
    assert lecture.gradients_from_torch(weight_grad)[1] is None


def test_parameters_of_no_layer() -> None:
    one = torch.ones(2, 2, 2)
    for call in (
        lecture.from_torch,
        lecture.gradients_from_torch,
        lambda w: lecture.to_torch(w, w),
    ):
        with pytest.raises(RuntimeError, match=r"Expected 4D .* or 2D .* size: .2, 2, 2."):
            call(one)
    with pytest.raises(RuntimeError, match=r"expected b of size \[2, 3\], but got b of size \[2\]"):
        lecture.to_torch(torch.ones(2, 3, 3, 3), torch.ones(2))
