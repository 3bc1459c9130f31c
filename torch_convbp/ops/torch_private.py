"""An autograd.Function under a dispatch key: the code with torch's private names.

An operator whose ``Autograd`` key runs an ``autograd.Function`` is the one design that is right
under torch.func, torch.compile and torch.export alike. torch.func's levels and the compiler see
an ordinary operator, and at each level the Function records its derivative. The Function must be
applied at the present level alone. ``Function.apply`` hands itself to torch.func instead; its
base class _SingleLevelFunction does not. So each Function gets a twin that derives from that class
and has the same methods.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, TypeAlias, TypeVar

import torch
from torch.autograd import forward_ad

__all__ = [
    "Operator",
    "argument_names",
    "autograd_kernel",
    "constant_while_tracing",
    "is_legacy_batchedtensor",
    "is_plain_call",
    "is_recorded",
    "is_transformed",
    "needs_derivative",
    "plain_call",
    "redispatch_below_autograd",
    "saved_tensors_hooks",
    "skip_autograd_unless_needed",
    "transforms_active",
]

try:
    from torch._C import (
        _any_requires_grad,
        _are_functorch_transforms_active,
        _AutoDispatchBelowADInplaceOrView,
        _AutoDispatchBelowAutograd,
        _get_tracing_state,
        _is_any_autocast_enabled,
        _len_torch_dispatch_stack,
        _len_torch_function_stack,
    )
    from torch._C._autograd import _top_saved_tensors_default_hooks
    from torch._C._functorch import (
        get_single_level_autograd_function_allowed,
        is_legacy_batchedtensor,
        set_single_level_autograd_function_allowed,
    )
    from torch.autograd.forward_ad import _set_fwd_grad_enabled

    _SingleLevelFunction = torch.autograd.function._SingleLevelFunction
    transforms_active = _are_functorch_transforms_active  # is a torch.func transform running?
    _unpack_dual = torch._VF._unpack_dual  # type: ignore[attr-defined]
    # Attribute that compiled autograd needs, and the base class lacks.
    _compiled_autograd_key = torch.autograd.Function._compiled_autograd_key
except (ImportError, AttributeError) as error:
    raise ImportError(
        f"torch_convbp does not know how to record derivatives in torch {torch.__version__}: "
        f"{error}. Versions 2.10 to 2.14 are known to work."
    ) from error


Operator: TypeAlias = torch._ops.OpOverload
Function = TypeVar("Function", bound=Callable[..., Any])


def argument_names(operator: Operator, keyword_only: bool = False) -> list[str]:
    """Names of the operator's arguments, in the order of its schema."""
    return [a.name for a in operator._schema.arguments if a.kwarg_only or not keyword_only]


@functools.cache
def single_level(function: type[torch.autograd.Function]) -> Any:
    """The function's twin, whose ``apply`` records it at the present level alone."""
    methods = ("forward", "setup_context", "backward")
    return type(
        function.__name__,
        (_SingleLevelFunction,),
        {name: staticmethod(getattr(function, name)) for name in methods}
        | {
            "jvp": staticmethod(_tangent_at_outer_levels(function)),
            "_compiled_autograd_key": staticmethod(_compiled_autograd_key),
        },
    )


def autograd_kernel(
    operator: Operator, function: type[torch.autograd.Function]
) -> Callable[..., Any]:
    """A kernel for the operator's ``Autograd`` key that records ``function`` at this level.

    The function's arguments are the operator's, the keyword-only ones last.
    """
    twin = single_level(function)
    keywords = argument_names(operator, keyword_only=True)

    def kernel(*args: Any, **kwargs: Any) -> Any:
        if not needs_derivative(*args):
            return redispatch_below_autograd(operator, *args, **kwargs)
        before = get_single_level_autograd_function_allowed()
        set_single_level_autograd_function_allowed(True)
        try:
            # The dispatcher drops keyword arguments that have their default value, None.
            return twin.apply(*args, *[kwargs.get(name) for name in keywords])
        finally:
            set_single_level_autograd_function_allowed(before)

    return kernel


def _tangent_at_outer_levels(function: Any) -> Callable[..., Any]:
    """The function's jvp, so that its result has derivatives of outer levels.

    torch turns forward mode off during jvp, as nothing there belongs to this level any more. Within
    torch.func that would turn off outer levels too: the tangent of a tangent (of jvp(jvp)) would
    be lost where tangents are added.
    """

    def jvp(ctx: Any, *tangents: Any) -> Any:
        if not transforms_active():
            return function.jvp(ctx, *tangents)
        with _AutoDispatchBelowAutograd(), torch.enable_grad(), _set_fwd_grad_enabled(True):
            return function.jvp(ctx, *tangents)

    return jvp


def needs_derivative(*args: Any) -> bool:
    """May a derivative, backward or forward, be asked for at this level?"""
    if torch.is_grad_enabled() and _any_requires_grad(*args):
        return True
    if torch.is_inference_mode_enabled():  # there are no tangents either
        return False
    return any([has_tangent(a) for a in args])  # a generator costs more than the test


def has_tangent(value: Any) -> bool:
    """Is the value a tensor with a tangent?

    Tangents are looked up directly: forward_ad does not know a level that a compiled graph has
    entered. There is one level, number 0. Sparse tensors have none to look up.
    """
    return (
        isinstance(value, torch.Tensor)
        and value.layout is torch.strided
        and _unpack_dual(value, 0)[1] is not None
    )


_PLAIN_TYPES = (torch.Tensor, torch.nn.Parameter)


def is_plain_call(*tensors: torch.Tensor | None) -> bool:
    """May a call leave the dispatcher's upper keys out?

    Its tensors are of torch's own two classes, and nothing watches, rewrites or traces calls: no
    compiler, tracer, transform, mode, autocast or forward-mode level (of torch.autograd.forward_ad;
    compiled code may enter one by itself, in which it calls operators, not layers).
    """
    if torch.compiler.is_compiling():  # first: Dynamo does not trace what follows
        return False
    for tensor in tensors:  # all() of a generator costs more than the test
        if tensor is not None and (
            type(tensor) not in _PLAIN_TYPES or is_legacy_batchedtensor(tensor)
        ):
            return False
    return not (
        transforms_active()
        or _len_torch_function_stack()
        or _len_torch_dispatch_stack()
        or _is_any_autocast_enabled()
        or _get_tracing_state() is not None
        or forward_ad._current_level >= 0
    )


def is_recorded(*args: Any) -> bool:
    """Does a plain call with these arguments record a graph?"""
    return torch.is_grad_enabled() and _any_requires_grad(*args)


def plain_call(operator: Operator, function: type[torch.autograd.Function], *args: Any) -> Any:
    """A plain call (``is_plain_call``) of an operator whose derivative ``function`` records.

    It goes straight to the function, or to the operator's kernel where no graph is recorded: the
    way through the dispatcher costs as much as a small convolution.
    """
    if is_recorded(*args):
        return single_level(function).apply(*args)
    return redispatch_below_autograd(operator, *args)


def redispatch_below_autograd(operator: Operator, *args: Any, **kwargs: Any) -> Any:
    """Runs the operator's next kernel below the ``Autograd`` key.

    The key that notes views is skipped too: a result that torch makes as a view of a temporary
    could not be changed in place outside the Function.

    A Function's forward runs with gradients turned off. Without torch.func the next kernel only
    computes numbers. Within torch.func the next kernel may be the derivative of an outer level
    (hessian has two), which would be zero: gradients are turned on again.
    """
    with _AutoDispatchBelowADInplaceOrView():
        if not transforms_active():
            return operator(*args, **kwargs)
        with torch.enable_grad(), _set_fwd_grad_enabled(True):
            return operator(*args, **kwargs)


def constant_while_tracing(function: Function) -> Function:
    """As ``torch.compiler.assume_constant_result``, which would load the whole compiler now."""
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return function


def is_transformed(tensor: Any) -> bool:
    """Is a torch.func transform running, or the tensor a batch of is_grads_batched?"""
    if torch.compiler.is_compiling():  # the tracer sees operators, and their rules do the rest
        return False
    return transforms_active() or (tensor is not None and is_legacy_batchedtensor(tensor))


def saved_tensors_hooks() -> Any:
    """Hooks that see the tensors saved for backward, such as a checkpoint's; None for no hooks."""
    return _top_saved_tensors_default_hooks(True)


def skip_autograd_unless_needed(
    *gradients: torch.Tensor | None,
    saved: Sequence[torch.Tensor | None] = (),
    saved_has_tangents: bool = False,
) -> AbstractContextManager[Any]:
    """Lets a backward pass skip the ``Autograd`` key where no derivative is wanted of the
    gradients that come in, or of what the forward pass saved.

    Each ``Autograd`` kernel would find the same, at the price of a small convolution.
    """
    if (
        saved_has_tangents
        or not is_plain_call(*gradients, *saved)
        or is_recorded(*gradients, *saved)
        or any([has_tangent(grad) for grad in gradients])  # only now: batches have no such test
    ):
        return nullcontext()
    return _AutoDispatchBelowAutograd()
