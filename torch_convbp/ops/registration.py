"""Code that the operators' files share: registering a kernel under a dispatch key, the folding of
torch.vmap's dimension, and the errors for tensors and devices without kernels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor

from torch_convbp import extension
from torch_convbp.ops import checks
from torch_convbp.ops.torch_private import Operator, argument_names

Ints: TypeAlias = Sequence[int]

# Registrations live as long as this object does.
_registry = torch.library.Library("torch_convbp", "IMPL")


def register(operator: Operator, key: str, kernel: Callable[..., Any]) -> None:
    """Makes ``kernel`` the operator's implementation under a dispatch key."""
    _registry.impl(operator, kernel, key)


# --- batching (torch.vmap) ------------------------------------------------------------------


def fold(tensor: Tensor, dim: int | None, size: int, into: int) -> Tensor:
    """Moves the dimension ``dim``, or one made by repetition, into dimension ``into``."""
    if dim is None:
        tensor = tensor.unsqueeze(into).expand(*tensor.shape[:into], size, *tensor.shape[into:])
    else:
        tensor = tensor.movedim(dim, into)
    return tensor.flatten(into, into + 1)


def unfold(result: Any, dim: int, sizes: tuple[int, int]) -> Any:
    """The result, or each of a pair, with dimension ``dim`` cut in two; and that dimension."""
    if isinstance(result, Tensor):
        return result.unflatten(dim, sizes), dim
    return tuple(part.unflatten(dim, sizes) for part in result), (dim,) * len(result)


# --- tensors that are not dense ---------------------------------------------------------------

# Dispatch keys of such tensors; the dispatcher's own message names no argument.
NOT_DENSE = ("SparseCPU", "SparseCsrCPU", "MkldnnCPU", "QuantizedCPU", "NestedTensorCPU",
             "AutogradNestedTensor")  # fmt: skip


def _only_dense(operator: Operator) -> Callable[..., Any]:
    names = argument_names(operator)
    # The function that users call, which is conv2d with an activation too.
    function = operator.name().split("::")[1].removesuffix("_pair").removesuffix("_activation")

    def kernel(*args: Any, **kwargs: Any) -> Any:
        tensors = {n: a for n, a in zip(names, args, strict=False) if isinstance(a, Tensor)}
        checks.check_is_tensor(function, **tensors)

    return kernel


def refuse_what_is_not_dense(operators: Sequence[Operator]) -> None:
    for operator in operators:
        for key in NOT_DENSE:
            register(operator, key, _only_dense(operator))


# --- devices without kernels ----------------------------------------------------------------


def _no_cuda(operator: Operator) -> Callable[..., Any]:
    def kernel(*args: Any, **kwargs: Any) -> Any:
        raise NotImplementedError(
            f"{operator.name()} got a CUDA tensor, but torch_convbp cannot run on CUDA here: "
            f"{extension.cuda_missing}. Move the model and its input to the CPU, or keep "
            "torch.nn's layers on the GPU (torch_convbp.revert(model))."
        )

    return kernel


def refuse_cuda(operators: Sequence[Operator]) -> None:
    """Without CUDA kernels, a CUDA tensor raises an error that says what is missing."""
    if extension.cuda_missing is not None:
        for operator in operators:
            register(operator, "CUDA", _no_cuda(operator))
