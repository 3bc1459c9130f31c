"""Other libraries and our layers: what a library must be told before it knows them.

    from torch_convbp import integrations

    integrations.opacus()  # before the model is given to Opacus

Most libraries ask ``isinstance(layer, nn.Conv2d)`` and need nothing. The libraries here look up a
layer's exact class in a table, or an operator's name. Each function enters ours into the table of
one library, which is imported when the function is called. Calling twice does no harm.

For a library that is not here, ``torch_convbp.revert(model)`` gives the layers of torch back.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from math import prod
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from torch_convbp import functional
from torch_convbp.activations import TABLE
from torch_convbp.convert import CONVOLUTION, DENSE, POOLING
from torch_convbp.fusion import FusedActivation
from torch_convbp.modules import ConvBP2d, LinearBP
from torch_convbp.ops import elementwise as elementwise_ops

__all__ = [
    "backpack",
    "calflops",
    "captum",
    "fvcore",
    "opacus",
    "ptflops_hooks",
    "torch_pruning",
]

ops = torch.ops.torch_convbp


def _twins() -> dict[type[nn.Module], type[nn.Module]]:
    """Torch's class of each of ours, of activations that a convolution may compute too."""
    layers = {ours: theirs for theirs, ours in (CONVOLUTION | POOLING | DENSE).items()}
    fused: Any = FusedActivation.__subclasses__()
    return layers | {ours: ours.activation_class for ours in fused}


def _refuse_activation(library: str, layer: Any) -> None:
    if g := getattr(layer, "activation", None):
        raise NotImplementedError(
            f"{library} knows layers without an activation of their own, but got a "
            f"{type(layer).__name__} with activation {g}: write the activation as a module after it"
        )


# --- gradients of each sample ---------------------------------------------------------------


def opacus() -> None:
    """Gives Opacus the per-sample gradients of ConvBP2d and LinearBP.

    The weight gradient of each sample is L4 with the samples as groups: one call, and no unfolded
    input. Every padding mode, and a layer with an activation, are taken into account. Opacus has a
    way for layers without a sampler, which runs each sample's forward pass again under torch.func:
    right too, but slower.

    Of the ``grad_sample_mode``s "hooks" and "ghost" use the samplers; "functorch" needs none, and
    "ew" knows torch's own functions alone.

    Raises:
        ModuleNotFoundError: Opacus is not installed.
    """
    from opacus.grad_sample import linear, register_grad_sampler, register_norm_sampler

    def norms(layer: LinearBP, inputs: list[Tensor], grad: Tensor) -> Any:
        input, delta = inputs[0].to(grad.dtype), grad
        if layer.activation is not None:
            p = functional.linear(input, layer.weight, layer.bias)
            delta = _error_signal(layer, p, grad)
        return linear.compute_linear_norm_sample(layer, [input], delta)

    register_grad_sampler([ConvBP2d, LinearBP])(_gradients_of_samples)
    register_norm_sampler(LinearBP)(norms)


def _gradients_of_samples(
    layer: ConvBP2d | LinearBP, inputs: list[Tensor], grad: Tensor
) -> dict[Tensor, Tensor]:
    """Each sample's gradients by weight and bias, [N, *size], of those that need any."""
    input = inputs[0].to(grad.dtype)
    if isinstance(layer, ConvBP2d):
        return _of_convolution(layer, input, grad)
    return _of_linear(layer, input, grad)


def _of_convolution(layer: ConvBP2d, input: Tensor, grad: Tensor) -> dict[Tensor, Tensor]:
    """L4 and L5 of each sample."""
    padding: Any = layer.padding
    if layer.padding_mode != "zeros":
        input = F.pad(input, layer._reversed_padding_repeated_twice, mode=layer.padding_mode)
        padding = 0
    stride, dilation, groups = layer.stride, layer.dilation, layer.groups
    delta = grad
    if layer.activation is not None:
        p = functional.conv2d(input, layer.weight, layer.bias, stride, padding, dilation, groups)
        delta = _error_signal(layer, p, grad)
    found: dict[Tensor, Tensor] = {}
    if layer.weight.requires_grad:
        batch, size = len(input), layer.weight.shape
        found[layer.weight] = delta.new_zeros(0, *size)
        if batch > 0:
            of_all = functional.conv2d_weight_grad(
                input.flatten(0, 1)[None],  # [1, N * K, H, W]
                (batch * size[0], *size[1:]),
                delta.flatten(0, 1)[None],  # [1, N * O, M, N']
                stride,
                padding,
                dilation,
                batch * groups,
            )
            found[layer.weight] = of_all.reshape(batch, *size)
    if layer.bias is not None and layer.bias.requires_grad:
        found[layer.bias] = delta.sum((2, 3))
    return found


def _of_linear(layer: LinearBP, input: Tensor, grad: Tensor) -> dict[Tensor, Tensor]:
    """L7's gradients of each sample, summed over the dimensions between the first and the last."""
    delta = grad
    if layer.activation is not None:
        delta = _error_signal(layer, functional.linear(input, layer.weight, layer.bias), grad)
    found: dict[Tensor, Tensor] = {}
    if layer.weight.requires_grad:
        found[layer.weight] = torch.einsum("n...i,n...j->nij", delta, input)
    if layer.bias is not None and layer.bias.requires_grad:
        found[layer.bias] = torch.einsum("n...i->ni", delta)
    return found


def _error_signal(layer: ConvBP2d | LinearBP, p: Tensor, grad: Tensor) -> Tensor:
    """L3 from the pre-activation p, of a layer with an activation."""
    g = layer.activation
    assert g is not None
    saved = elementwise_ops.activation(p, *g) if g.saves_output else p
    return elementwise_ops.error_signal(grad, saved, *g)


def backpack(extension: Any) -> Any:
    """Gives an extension of BackPACK our layers, from its own table for torch's layers.

        with backpack(integrations.backpack(BatchGrad())):
            loss(model(input), target).backward()

    BackPACK computes with its own formulas: its numbers are those for a model of torch's layers.

    Args:
        extension: a ``backpack.extensions`` object, of first or second order.

    Returns:
        The same extension.

    Raises:
        ModuleNotFoundError: BackPACK is not installed.
        TypeError: extension is no object of BackPACK's.
        NotImplementedError: in the backward pass, where BackPACK's formulas do not hold: a layer
            with an activation, a padding_mode other than "zeros", padding="same"; BatchL2Grad
            with groups.
    """
    from backpack.extensions.backprop_extension import BackpropExtension

    if not isinstance(extension, BackpropExtension):
        raise TypeError(
            "backpack(): argument 'extension' must be an extension of BackPACK, such as "
            f"BatchGrad(), but got {extension!r}"
        )
    known = vars(extension)["_BackpropExtension__module_extensions"]  # there is no other way
    for ours, theirs in _twins().items():
        if theirs in known:
            extension.set_module_extension(ours, _checked(known[theirs]), overwrite=True)
    return extension


def _checked(theirs: Callable[..., None]) -> Callable[..., None]:
    """A module extension of BackPACK that first refuses what it would get wrong."""

    def module_extension(extension: Any, module: Any, *gradients: Any) -> None:
        _refuse_activation("BackPACK", module)
        if isinstance(module, ConvBP2d):
            kind, wrong = type(extension).__name__, None
            if module.padding_mode != "zeros":
                wrong = f"padding_mode={module.padding_mode!r}"
            elif module.padding == "same":
                wrong = "padding='same'"
            elif module.groups > 1 and kind == "BatchL2Grad":
                wrong = f"groups={module.groups}"
            if wrong:
                raise NotImplementedError(f"BackPACK's {kind} is wrong for {wrong}: {module}")
        theirs(extension, module, *gradients)

    return module_extension


# --- attributions ---------------------------------------------------------------------------


def captum() -> None:
    """Gives Captum's methods that look for classes what they know of torch's: LRP its rules,
    DeepLift its multipliers, TracInCP the gradients of each sample.

    Captum's other methods need nothing. DeepLift does not see a layer's own activation: write it as
    a module after the layer.

    Raises:
        ModuleNotFoundError: Captum is not installed.
        AttributeError: in ``LRP.attribute``, for a layer with an activation of its own, which LRP
            would delete. The NotImplementedError before it says what to do.
    """
    from captum._utils import sample_gradient
    from captum.attr._core import deep_lift, lrp

    def checked(theirs: Any) -> Any:
        class Rule(theirs):
            def forward_hook_weights(self, module: Any, inputs: Any, outputs: Any) -> None:
                _refuse_activation("Captum's LRP", module)
                super().forward_hook_weights(module, inputs, outputs)

        return Rule

    def keep_gradients(layer: Any, input: Tensor, grad: Tensor, reset: bool = False) -> None:
        for parameter, found in _gradients_of_samples(layer, [input], grad).items():
            before = 0 if reset else parameter.sample_grad  # type: ignore[attr-defined]
            parameter.sample_grad = before + found  # type: ignore[attr-defined]

    rules, non_linear = lrp.SUPPORTED_LAYERS_WITH_RULES, lrp.SUPPORTED_NON_LINEAR_LAYERS
    multipliers = deep_lift.SUPPORTED_NON_LINEAR
    for ours, theirs in _twins().items():
        if theirs in rules:
            rules[ours] = checked(rules[theirs])
        if theirs in non_linear and ours not in non_linear:
            non_linear.append(ours)
        if theirs in multipliers:
            multipliers[ours] = multipliers[theirs]
    for layer in (ConvBP2d, LinearBP):
        sample_gradient.SUPPORTED_MODULES[layer] = keep_gradients


# --- counters of operations -----------------------------------------------------------------


def fvcore(analysis: Any) -> Any:
    """Lets an analysis of fvcore count our convolutions and dense layers as torch's.

        integrations.fvcore(FlopCountAnalysis(model, input)).total()

    Args:
        analysis: a FlopCountAnalysis or an ActivationCountAnalysis.

    Returns:
        The same analysis. Pools and activations are not counted, as torch's are not.

    Raises:
        ModuleNotFoundError: fvcore is not installed.
        TypeError: another kind of analysis.
    """
    from fvcore.nn import ActivationCountAnalysis, FlopCountAnalysis
    from fvcore.nn.jit_handles import (
        conv_flop_count,
        generic_activation_jit,
        get_shape,
        linear_flop_jit,
    )

    def flops(inputs: list[Any], outputs: list[Any]) -> Counter[str]:
        shapes = map(get_shape, (inputs[0], inputs[1], outputs[0]))
        return Counter({"conv": conv_flop_count(*shapes)})

    if isinstance(analysis, FlopCountAnalysis):
        of_convolution, of_linear = flops, linear_flop_jit
    elif isinstance(analysis, ActivationCountAnalysis):
        of_convolution, of_linear = generic_activation_jit("conv"), generic_activation_jit()
    else:
        raise TypeError(
            "fvcore(): argument 'analysis' must be a FlopCountAnalysis or an "
            f"ActivationCountAnalysis, not {type(analysis).__name__}"
        )
    for name in ("conv2d", "conv2d_activation", "conv2d_activation_pair"):
        analysis.set_op_handle(f"torch_convbp::{name}", of_convolution)
    return analysis.set_op_handle("torch_convbp::linear", of_linear)


Hook = Callable[[Any, Any, Any], None]


def _hooks(theirs: Mapping[Any, Hook]) -> dict[Any, Hook]:
    """A counter's forward hooks for our layers, from its hooks for torch's layers.

    An activation of the layer is counted as the module that it stands for.
    """

    def of_layer(hook: Hook) -> Hook:
        def count(module: Any, input: Any, output: Any) -> None:
            hook(module, input, output)
            g = getattr(module, "activation", None)
            if g is not None and (of_g := theirs.get(TABLE[g.name].module)):
                of_g(module, input, output)

        return count

    return {ours: of_layer(theirs[kind]) for ours, kind in _twins().items() if kind in theirs}


def ptflops_hooks() -> dict[Any, Any]:
    """Hooks for the argument ``custom_modules_hooks`` of ptflops.get_model_complexity_info.

    They serve both of its backends. The backend "pytorch" counts the pools and activations of torch
    twice, as modules and as functions: a MaxPoolBP2d or AvgPoolBP2d is counted once, as torch's is
    with ``backend_specific_config={"count_functional": False}``.

    Raises:
        ModuleNotFoundError: ptflops is not installed.
    """
    from ptflops.aten_ops import conv_flop_count
    from ptflops.pytorch_ops import MODULES_MAPPING

    def convolution(inputs: Any, outputs: Any) -> int:
        input, weight, bias = inputs[:3]
        shapes = input.shape, weight.shape, outputs[0].shape
        return int(conv_flop_count(*shapes, bias=bias is not None))

    def linear(inputs: Any, outputs: Any) -> int:
        _, weight, bias = inputs
        return prod(outputs[0].shape) * (weight.shape[1] + (bias is not None))

    names = ("conv2d", "conv2d_activation", "conv2d_activation_pair")
    operators = {getattr(ops, name): convolution for name in names} | {ops.linear: linear}
    return _hooks(MODULES_MAPPING) | operators


def torch_pruning() -> None:
    """Lets ``torch_pruning.utils.count_ops_and_params`` count our layers as torch's.

    The pruners of Torch-Pruning need nothing.

    Raises:
        ModuleNotFoundError: Torch-Pruning is not installed.
    """
    from torch_pruning.utils.op_counter import MODULES_MAPPING

    MODULES_MAPPING.update(_hooks(MODULES_MAPPING))


def calflops() -> None:
    """Lets ``calflops.calculate_flops`` count our convolutions and pools as torch's functions.

    Dense layers need nothing. A layer's own activation is not counted.

    Raises:
        ModuleNotFoundError: calflops is not installed, or transformers, which it imports.
    """
    from calflops import pytorch_ops

    def convolution(layer: ConvBP2d, inputs: Any, output: Any) -> None:
        geometry = layer.stride, layer.padding, layer.dilation, layer.groups
        flops, macs = pytorch_ops._conv_flops_compute(
            inputs[0], layer.weight, layer.bias, *geometry
        )
        layer.__flops__ += flops
        layer.__macs__ += macs

    def pool(layer: Any, inputs: Any, output: Any) -> None:
        layer.__flops__ += inputs[0].numel()

    hooks = {ConvBP2d: convolution} | dict.fromkeys(POOLING.values(), pool)
    pytorch_ops.MODULE_HOOK_MAPPING.update(hooks)
