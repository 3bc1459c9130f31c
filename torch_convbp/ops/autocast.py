"""The rule of torch.autocast: which arguments of an operator it casts, and to what."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from torch_convbp.ops.torch_private import Operator


def autocast(operator: Operator, device_type: str) -> Callable[..., Any]:
    def cast(value: Any) -> Any:
        # float64 is left alone, as in torch; integers are for the operator to refuse.
        if isinstance(value, Tensor) and value.is_floating_point() and value.dtype != torch.float64:
            return value.to(torch.get_autocast_dtype(device_type))
        return value

    def kernel(*args: Any, **kwargs: Any) -> Any:
        args = tuple(cast(a) for a in args)
        with torch.autocast(device_type, enabled=False):
            return operator(*args, **kwargs)

    return kernel
