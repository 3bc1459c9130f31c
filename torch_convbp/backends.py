"""Switches, in the manner of ``torch.backends``: ``backends.cpu`` and ``backends.cuda``."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor

from torch_convbp import extension
from torch_convbp.ops import checks

__all__ = ["ConvAlgorithm", "cpu", "cuda"]

_operators = torch.ops.torch_convbp


def _checked(name: str) -> str:
    """The name of an algorithm; TypeError for a value that is no str."""
    if not isinstance(name, str):
        raise TypeError(f"conv_algorithm must be a str, not {type(name).__name__}")
    return name


class _Backend:
    """Base of a device's switches."""

    __slots__ = ()  # a misspelt switch is an error

    conv_algorithm: str  # a property of each subclass

    @contextmanager
    def flags(self, *, conv_algorithm: str) -> Iterator[None]:
        """Sets conv_algorithm within a ``with`` block."""
        before = self.conv_algorithm
        self.conv_algorithm = conv_algorithm  # type: ignore[misc]
        try:
            yield
        finally:
            self.conv_algorithm = before  # type: ignore[misc]


class ConvAlgorithm(NamedTuple):
    """The algorithm that computes an operator of a convolution.

    Attributes:
        name: "direct", "depthwise", "grouped" or "pointwise" (direct arithmetic in kernels of their
            own), "winograd" or "reference".
        multiply_adds: products that the algorithm computes and adds, also those with padding;
            Winograd's transforms are not counted.
    """

    name: str
    multiply_adds: int


class _CPU(_Backend):
    """The CPU kernels."""

    __slots__ = ()

    @property
    def conv_algorithm(self) -> str:
        """How convolutions and poolings are computed, in every thread of the process.

        - "auto": the fastest algorithm for each problem, by its shape and element type alone;
        - "direct": every product of the sum is computed and added (depthwise, grouped and 1x1
          convolutions have their own kernels);
        - "winograd": Winograd's minimal filtering wherever it exists and sums are float32:
          3x3 filters with stride 1 or 2, 5x5 with stride 1, 7x7 with stride 2 (not its input
          gradient), dilated 3x3 (not its weight gradient); direct for all else. The error is
          within 3e-6 of the largest result. An infinite or NaN value spoils its whole tile (6x6
          pixels; with stride 2, 9x9 and 11x11);
        - "reference": the loop nests of csrc/cpu/reference, for reading along; slow. The old name
          "plain" is accepted too.

        Raises:
            RuntimeError: set to another name; TypeError: set to a value that is no str.
        """
        return _operators._cpu_conv_algorithm()

    @conv_algorithm.setter
    def conv_algorithm(self, name: str) -> None:
        _operators._set_cpu_conv_algorithm(_checked(name))

    def chosen_algorithm(
        self,
        input: Tensor,
        weight: Tensor,
        stride: Any = 1,
        padding: Any = 0,
        dilation: Any = 1,
        groups: int = 1,
        *,
        operator: str = "forward",
    ) -> ConvAlgorithm:
        """Which algorithm computes a convolution under the present ``conv_algorithm``.

        Nothing is computed: the tensors' sizes, dtype and memory format count, their values do
        not. For a layer: ``chosen_algorithm(x, layer.weight, layer.stride, layer.padding,
        layer.dilation, layer.groups)``.

        Args:
            input: [N, K, H, W] or [K, H, W]; float32, float64, bfloat16 or float16, on the CPU.
            weight: [O, K / groups, R, S], of input's dtype.
            stride, padding, dilation, groups: as ``bp.functional.conv2d`` takes them.
            operator: "forward", "input_grad" or "weight_grad"; the output's gradient is taken to
                have the output's memory format.

        Raises:
            TypeError: an argument is of another type.
            RuntimeError: sizes, dtypes or devices do not fit together, or a value is out of range.
        """
        function = "chosen_algorithm"
        checks.check_is_tensor(function, input=input, weight=weight)
        checks.check_dim(function, "input", input.shape)
        checks.check_weight_dim(weight.shape)
        geometry = checks.geometry(function, weight.shape, stride, padding, dilation, groups)
        if not isinstance(operator, str):
            raise TypeError(
                f"{function}(): argument 'operator' must be str, not {type(operator).__name__}"
            )
        batched = input if input.dim() == 4 else input.unsqueeze(0)
        name, multiply_adds = _operators._cpu_chosen_algorithm(operator, batched, weight, *geometry)
        return ConvAlgorithm(name, int(multiply_adds))

    def capability(self) -> str:
        """The instruction set in use: "AVX512_BF16" (AVX512, and products of pairs of bfloat16),
        "AVX512", "AVX2" or "DEFAULT" (what every processor has).

        The environment variable TORCH_CONVBP_CPU_CAPABILITY asks for a lower set; it is read
        once, by this function or by the first convolution.
        """
        return _operators._cpu_capability()


class _CUDA(_Backend):
    """The CUDA kernels."""

    __slots__ = ()

    @property
    def conv_algorithm(self) -> str:
        """How convolutions are computed on GPUs, in every thread of the process.

        - "auto": the fastest kernel for each problem, by its shape and element type alone;
        - "reference": one thread per output, float64 sums (csrc/cuda/reference), for reading along
          and for comparisons; slow. The old name "plain" is accepted too.

        Raises:
            RuntimeError: set to another name, or the CUDA kernels are not built;
                TypeError: set to a value that is no str.
        """
        self._check_built()
        return _operators._cuda_conv_algorithm()

    @conv_algorithm.setter
    def conv_algorithm(self, name: str) -> None:
        self._check_built()
        _operators._set_cuda_conv_algorithm(_checked(name))

    def _check_built(self) -> None:
        if extension.cuda_missing is not None:
            raise RuntimeError(
                f"torch_convbp.backends.cuda.conv_algorithm: there are no CUDA kernels here: "
                f"{extension.cuda_missing}"
            )

    def is_available(self) -> bool:
        """Are the CUDA kernels built, loaded, and is there a GPU?"""
        return extension.cuda_missing is None and torch.cuda.is_available()


cpu = _CPU()
cuda = _CUDA()
