"""One torch.fx trace of a model in a mode, for what looks for neighbours in it: fusion.py, and the
folding of batch norms."""

from __future__ import annotations

import contextlib
import copy
import inspect
import threading
import warnings
from collections import deque
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
import torch.fx
from torch import Tensor, nn
from torch.fx import Graph, Node
from torch.nn.parameter import UninitializedBuffer, UninitializedParameter

from torch_convbp.modules import ConvBP2d
from torch_convbp.ops.torch_private import saved_tensors_hooks
from torch_convbp.random_states import RandomStates

__all__ = [
    "HOOKS",
    "Part",
    "is_identity",
    "is_plain_convolution",
    "modes",
    "through_identities",
    "traced_parts",
]

HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


class Part(NamedTuple):
    """A part of a model (its name there; "" for the whole), as a copy, and the copy's graph.

    held: nodes that the copy has stored in an attribute. Where torch.fx cannot trace what calls a
    module, graph is None, and reason says why.
    """

    name: str
    module: nn.Module
    graph: Graph | None
    held: set[Node]
    reason: str


def modes() -> tuple[Any, ...]:
    """Gradient mode, and the hooks of a checkpoint."""
    if torch.compiler.is_compiling():
        return ()
    return torch.is_grad_enabled(), saved_tensors_hooks()


class _Tracer(torch.fx.Tracer):
    """The leaves and torch's own modules are nodes. Calls from other threads run as usual, which
    torch.fx alone would trace too."""

    def __init__(self, leaves: tuple[type, ...]) -> None:
        super().__init__()
        self.leaves, self.thread = leaves, threading.get_ident()

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, self.leaves) or super().is_leaf_module(m, module_qualified_name)

    def create_node(self, *args: Any, **kwargs: Any) -> Node:
        node = super().create_node(*args, **kwargs)
        autocast = torch.is_autocast_enabled("cpu"), torch.is_autocast_enabled("cuda")
        node.meta["modes"] = *modes(), torch.is_inference_mode_enabled(), autocast
        return node

    def call_module(self, m: nn.Module, forward: Any, args: Any, kwargs: Any) -> Any:
        if threading.get_ident() != self.thread:
            return forward(*args, **kwargs)
        return super().call_module(m, forward, args, kwargs)

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Any]) -> Any:
        if threading.get_ident() != self.thread:
            return attr_val
        return super().getattr(attr, attr_val, parameter_proxy_cache)


_one_at_a_time = threading.RLock()  # torch.fx replaces nn.Module.__call__ while it traces


@contextlib.contextmanager
def _unseen() -> Iterator[None]:
    """Restores random states and hides warnings: the model is not really run."""
    states = RandomStates()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        states.restore()


def _instances(kind: type, value: Any) -> list[Any]:
    """Instances of ``kind`` in an attribute's value, also inside containers."""
    if isinstance(value, kind):
        return [value]
    parts = value.values() if isinstance(value, dict) else value
    several = isinstance(value, (dict, list, tuple, set, frozenset, deque))
    return [found for part in parts for found in _instances(kind, part)] if several else []


def _stand_in(tensor: Tensor) -> Tensor:
    if isinstance(tensor, (UninitializedBuffer, UninitializedParameter)):
        return tensor
    if isinstance(tensor, nn.Parameter):
        return nn.Parameter(torch.empty_like(tensor, device="meta"), tensor.requires_grad)
    return tensor.detach().clone()


def _structural_copy(model: nn.Module, training: bool) -> nn.Module:
    """A copy to trace, in that mode: without hooks, Parameters without values, and nothing shared
    that a forward could change."""
    memo: dict[int, Any] = {}
    for module in model.modules():
        memo |= {id(tensor): _stand_in(tensor) for tensor in _instances(Tensor, vars(module))}
        memo |= {id(vars(module)[kind]): type(vars(module)[kind])() for kind in HOOKS}
    copied = copy.deepcopy(model, memo)
    originals = {*model.modules()}
    for module in copied.modules():  # the outermost first
        if module in originals:
            raise ValueError(f"{type(module).__name__} gives itself as its copy")
    return copied.train(training)


def traced_parts(
    model: nn.Module, training: bool, gradients: bool, leaves: tuple[type, ...] = ()
) -> list[Part]:
    """The largest parts of the model that torch.fx can trace, in training or evaluation mode and
    with or without gradients, and that hold a ConvBP2d. The model is not changed. A ConvBP2d, a
    module of the classes in ``leaves`` and torch's own modules are nodes."""
    try:
        with _one_at_a_time, _unseen(), torch.set_grad_enabled(gradients):
            return _parts(_structural_copy(model, training), "", "", (ConvBP2d, *leaves))
    except Exception as error:  # a model's deepcopy may raise anything
        reason = f"{type(model).__name__} cannot be copied ({error or type(error).__name__})"
        named = model.named_modules()
        return [Part(name, m, None, set(), reason) for name, m in named if isinstance(m, ConvBP2d)]


def _parts(module: nn.Module, name: str, why: str, leaves: tuple[type, ...]) -> list[Part]:
    if isinstance(module, ConvBP2d):
        return [Part(name, module, None, set(), why or "it is not called by a module")]
    if not any(isinstance(inner, ConvBP2d) for inner in module.modules()):
        return []
    try:
        if "forward" in vars(module):  # torch.fx would trace the class's forward
            raise ValueError("its forward was replaced on the object")
        parameters = inspect.signature(type(module).forward).parameters.values()
        defaults = {p.name: p.default for p in parameters if p.default is not p.empty}
        graph = _Tracer(leaves).trace(module, defaults)
    except Exception as error:  # a model's forward may raise anything
        if not isinstance(module, (nn.ModuleList, nn.ModuleDict)):
            said = str(error).strip().partition("\n")[0].partition(". ")[0]
            why = f"torch.fx cannot trace {type(module).__name__} ({said or type(error).__name__})"
        parts = []
        for child_name, child in module.named_children():
            child_name = f"{name}.{child_name}" if name else child_name
            parts += _parts(child, child_name, why, leaves)
        return parts
    held = {proxy.node for m in module.modules() for proxy in _instances(torch.fx.Proxy, vars(m))}
    return [Part(name, module, graph, held, "")]


def is_plain_convolution(module: nn.Module) -> bool:
    """Is ``module`` a ConvBP2d without an activation, with the class's own forward?"""
    cls: Any = type(module)
    return (
        isinstance(module, ConvBP2d)
        and module.activation is None
        and (cls.forward, cls._conv_forward) == (ConvBP2d.forward, ConvBP2d._conv_forward)
        and "forward" not in vars(module)
        and "_conv_forward" not in vars(module)
    )


def is_identity(module: nn.Module | None) -> bool:
    return type(module) is nn.Identity


def through_identities(root: nn.Module, node: Node) -> tuple[Node, tuple[str, ...]]:
    """The last of the nodes that hand on the node's tensor as it is, and the names of the
    nn.Identity modules on the way."""
    names: list[str] = []
    while len(node.users) == 1:
        (user,) = node.users
        if user.op != "call_module" or not is_identity(root.get_submodule(str(user.target))):
            break
        node = user
        names.append(str(user.target))
    return node, tuple(names)
