"""Offsets that do not fit into 32 bits.

By default in views: the elements along one dimension lie 2^31 elements apart, in memory that is
reserved and never touched. For real, with tensors of more than 2^31 elements, marked `huge`.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator

import pytest
import torch
from cases import ALGORITHMS, integers
from torch import Tensor
from twins import OPERATOR_NAMES

import torch_convbp as bp

ops = torch.ops.torch_convbp
DTYPE = torch.bfloat16

# Every dimension has at least three elements.
INPUT, WEIGHT, OUTPUT = (3, 3, 5, 6), (4, 3, 3, 3), (3, 4, 3, 4)
GEOMETRY = ((1, 1), (0, 0, 0, 0), (1, 1), 1)
POOL = ((3, 3), (1, 1), (1, 1))
POOLED = (3, 3, 5, 6)


def far(tensor: Tensor, dim: int, order: str) -> Tensor:
    """The same values with those along ``dim`` so far apart that the last one's offset is beyond
    2^31, the others dense in that order."""
    strides, dense = [0] * 4, 1
    for d in (("nchw").index(letter) for letter in reversed(order)):
        if d != dim:
            strides[d] = dense
            dense *= tensor.shape[d]
    strides[dim] = 2**31 // (tensor.shape[dim] - 1) + 5
    try:
        room = torch.empty(strides[dim] * (tensor.shape[dim] - 1) + dense, dtype=tensor.dtype)
    except RuntimeError as error:  # vm.overcommit_memory=2 reserves no more than there is
        pytest.skip(f"4 GB cannot be reserved: {str(error).splitlines()[0]}")
    view = room.as_strided(tensor.shape, strides)
    view.copy_(tensor)
    return view


# operator: (function, the tensors it takes)
OPERATORS: dict[str, tuple[Callable[..., Tensor | tuple[Tensor, ...]], list[tuple[int, ...]]]] = {
    "conv2d": (lambda a, w: ops.conv2d(a, w, None, *GEOMETRY), [INPUT, WEIGHT]),
    "conv2d_activation_pair": (
        lambda a, w: ops.conv2d_activation_pair(a, w, None, *GEOMETRY, "relu", []), [INPUT, WEIGHT]
    ),
    "conv2d_input_grad": (
        lambda w, d: ops.conv2d_input_grad(INPUT, w, d, *GEOMETRY), [WEIGHT, OUTPUT]
    ),
    "conv2d_weight_bias_grad": (
        lambda a, d: ops.conv2d_weight_bias_grad(a, WEIGHT, d, *GEOMETRY), [INPUT, OUTPUT]
    ),
    "activation": (lambda p: ops.activation(p, "relu", []), [OUTPUT]),
    "error_signal_bias_grad": (
        lambda grad, a: ops.error_signal_bias_grad(grad, a, "relu", []), [OUTPUT, OUTPUT]
    ),
    "max_pool2d": (lambda a: ops.max_pool2d(a, *POOL, (1, 1), False), [INPUT]),
    "max_pool2d_input_grad": (
        lambda d, offset: ops.max_pool2d_input_grad(INPUT, d, offset, *POOL, (1, 1), False),
        [POOLED, POOLED],
    ),
    "max_pool2d_gather": (
        lambda a, offset: ops.max_pool2d_gather(a, offset, *POOL, (1, 1), False), [INPUT, POOLED]
    ),
    "avg_pool2d": (lambda a: ops.avg_pool2d(a, *POOL, False, True, 4), [INPUT]),
    "avg_pool2d_input_grad": (
        lambda d: ops.avg_pool2d_input_grad(INPUT, d, *POOL, False, True, 4), [POOLED]
    ),
}  # fmt: skip


# Those run the kernels of these; linear's are torch's.
LIKE = {
    "conv2d_activation": "conv2d_activation_pair",
    "conv2d_weight_grad": "conv2d_weight_bias_grad",
    "conv2d_backward": "conv2d_input_grad",
    "error_signal": "error_signal_bias_grad",
}
assert OPERATORS.keys() | LIKE.keys() | {"linear"} == OPERATOR_NAMES


@pytest.mark.parametrize("order", ["nchw", "nhwc"])
@pytest.mark.parametrize("dim", range(4), ids="nchw")
@pytest.mark.parametrize("operator", OPERATORS)
def test_offsets_in_views(operator: str, dim: int, order: str) -> None:
    function, sizes = OPERATORS[operator]
    near = [integers(size, DTYPE, seed) for seed, size in enumerate(sizes)]
    if operator in ("max_pool2d_input_grad", "max_pool2d_gather"):
        near[1] = ops.max_pool2d(integers(INPUT, DTYPE, 7), *POOL, (1, 1), False)[1]
    for algorithm in ALGORITHMS:
        with bp.backends.cpu.flags(conv_algorithm=algorithm):
            expected = function(*near)
            for i, tensor in enumerate(near):
                actual = function(*near[:i], far(tensor, dim, order), *near[i + 1 :])
                pairs = (
                    [(actual, expected)]
                    if isinstance(actual, Tensor)
                    else (zip(actual, expected, strict=True))
                )
                assert all(torch.equal(a, b) for a, b in pairs), f"tensor {i}"


# --- for real -------------------------------------------------------------------------------

# Rows * columns is a little more than 2^31. Windows lie a stride apart, so that the other side of
# an operator is small; its last row of windows begins at row 2^15, element 2^31.
ROWS, COLUMNS, STEP = 2**15 + 3, 2**16, 64
WINDOWS = (ROWS - 3) // STEP + 1, (COLUMNS - 3) // STEP + 1
STRIDED = ((STEP, STEP), (0, 0, 0, 0), (1, 1), 1)
STRIDED_POOL = ((3, 3), (STEP, STEP), (0, 0))
SLICES = (0, WINDOWS[0] // 2, WINDOWS[0] - 2)  # of two rows of windows each, where one looks
GIGABYTES = 12


@pytest.fixture
def memory() -> Iterator[None]:
    with open("/proc/meminfo") as file:
        available = next(int(line.split()[1]) for line in file if line.startswith("MemAvailable"))
    if available < GIGABYTES * 2**20:
        pytest.skip(f"{available / 2**20:.1f} GB of memory are available, this takes {GIGABYTES}")
    yield
    gc.collect()


def huge(test: Callable[..., None]) -> Callable[..., None]:
    for mark in (pytest.mark.huge, pytest.mark.slow, pytest.mark.usefixtures("memory")):
        test = mark(test)
    return test


def picture() -> Tensor:
    """One channel of ROWS x COLUMNS whole numbers, no two blocks of rows in the same place."""
    block = integers((77, COLUMNS), DTYPE, seed=1)
    picture = torch.empty(1, 1, ROWS, COLUMNS, dtype=DTYPE)
    for first in range(0, ROWS, 77):
        rows = picture[0, 0, first : first + 77]
        rows.copy_(block[: len(rows)])
    assert picture.numel() > 2**31
    return picture


def rows_of(windows: int) -> slice:
    """What the two rows of windows from there on read."""
    return slice(windows * STEP, windows * STEP + STEP + 3)


@huge
def test_an_input_of_more_than_2_31_elements() -> None:
    input, weight = picture(), integers((2, 1, 3, 3), DTYPE, seed=2)
    output = ops.conv2d(input, weight, None, *STRIDED)
    largest, offset = ops.max_pool2d(input, *STRIDED_POOL, (1, 1), False)
    average = ops.avg_pool2d(input, *STRIDED_POOL, False, True, 8)
    gathered = ops.max_pool2d_gather(input, offset, *STRIDED_POOL, (1, 1), False)
    assert output.shape[2:] == WINDOWS and output.any()
    assert torch.equal(gathered, largest)
    for windows in SLICES:
        some = input[:, :, rows_of(windows)].clone()
        found = slice(windows, windows + 2)
        assert torch.equal(output[:, :, found], ops.conv2d(some, weight, None, *STRIDED))
        expected = ops.max_pool2d(some, *STRIDED_POOL, (1, 1), False)
        assert torch.equal(largest[:, :, found], expected[0])
        assert torch.equal(offset[:, :, found], expected[1])
        expected = ops.avg_pool2d(some, *STRIDED_POOL, False, True, 8)
        assert torch.equal(average[:, :, found], expected)
        delta = torch.zeros_like(output)
        delta[:, :, found] = integers((1, 2, 2, WINDOWS[1]), DTYPE, seed=3)
        assert torch.equal(
            ops.conv2d_weight_grad(input, weight.shape, delta, *STRIDED),
            ops.conv2d_weight_grad(some, weight.shape, delta[:, :, found].clone(), *STRIDED),
        )


@huge
@pytest.mark.parametrize("operator", ["conv2d", "max_pool2d", "avg_pool2d"])
def test_an_input_gradient_of_more_than_2_31_elements(operator: str) -> None:
    size, pixels = (1, 1, ROWS, COLUMNS), (1, 1, STEP + 3, COLUMNS)
    weight = integers((2, 1, 3, 3), DTYPE, seed=2)
    delta = integers((1, 2 if operator == "conv2d" else 1, *WINDOWS), DTYPE, seed=3)
    offset = integers(delta.shape, torch.float32, seed=4).add(4).to(torch.uint8)

    def gradient(size: tuple[int, ...], rows: slice) -> Tensor:
        d, of_rows = delta[:, :, rows], offset[:, :, rows]
        if operator == "conv2d":
            return ops.conv2d_input_grad(size, weight, d, *STRIDED)
        if operator == "avg_pool2d":
            return ops.avg_pool2d_input_grad(size, d, *STRIDED_POOL, False, True, 4)
        return ops.max_pool2d_input_grad(size, d, of_rows, *STRIDED_POOL, (1, 1), False)

    whole = gradient(size, slice(None))
    assert whole.numel() > 2**31
    for windows in SLICES:
        expected = gradient(pixels, slice(windows, windows + 2))
        assert expected.any()
        assert torch.equal(whole[:, :, rows_of(windows)], expected)


@huge
@pytest.mark.parametrize("operator", ["conv2d", "conv2d + relu", "max_pool2d", "avg_pool2d"])
def test_an_output_of_more_than_2_31_elements(operator: str) -> None:
    """Of an input that is one picture, expanded to a batch."""
    images = 2**11 + 1
    one, weight = integers((1, 1, 2**9, 2**9), DTYPE, seed=1), integers((4, 1, 1, 1), DTYPE, seed=2)
    channels = 4 if operator.startswith("conv2d") else 1
    one = one if channels == 4 else one.repeat(1, 1, 2, 2)

    def forward(input: Tensor) -> Tensor:
        if operator == "conv2d":
            return ops.conv2d(input, weight, None, *GEOMETRY)
        if operator == "conv2d + relu":
            return ops.conv2d_activation(input, weight, None, *GEOMETRY, "relu", [])
        if operator == "avg_pool2d":
            return ops.avg_pool2d(input, (1, 1), (1, 1), (0, 0), False, True, None)
        return ops.max_pool2d(input, (1, 1), (1, 1), (0, 0), (1, 1), False)[0]

    output = forward(one.expand(images, -1, -1, -1))
    assert output.numel() > 2**31
    expected = forward(one)
    assert expected.any()
    for image in (0, images // 2, images - 1):
        assert torch.equal(output[image], expected[0])
    if operator == "conv2d":  # and as an error signal of that size
        input_size = (images, *one.shape[1:])
        grad = ops.conv2d_input_grad(input_size, weight, output, *GEOMETRY)
        expected_grad = ops.conv2d_input_grad(one.shape, weight, expected, *GEOMETRY)
        assert torch.equal(grad[-1], expected_grad[0])
        output[:-1] = 0
        assert torch.equal(
            ops.conv2d_weight_grad(one.expand(input_size), weight.shape, output, *GEOMETRY),
            ops.conv2d_weight_grad(one, weight.shape, expected, *GEOMETRY),
        )
