"""Models that a careless fusing of activations makes compute something else.

Most run with one flag while they are converted, and with another afterwards.
"""

from __future__ import annotations

import copy
import functools
import operator
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrize


def conv() -> nn.Conv2d:
    return nn.Conv2d(3, 3, 3, padding=1)


class Base(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = conv()
        self.act: Any = nn.Sigmoid()
        self.ident = nn.Identity()
        self.last = conv()
        self.flag = True


class Straight(Base):
    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.conv(x))


@dataclass
class Trap:
    make: Callable[[], nn.Module]
    reason: str = ""  # why conv is left alone; "" where it is fused, and right
    change: Callable[[Any], Any] = lambda model: None  # after it was converted
    run: Callable[[Any, Tensor], Tensor] = lambda model, x: model(x)
    part: str = ""  # what is converted


def unset(model: Any) -> None:
    for module in model.modules():
        if "flag" in vars(module):
            module.flag = False


# ---------------------------------------------------------------- what is shared with other models


class SharedDefault(nn.Module):
    def __init__(self, act: nn.Module) -> None:
        super().__init__()
        self.conv, self.act = conv(), act

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.conv(x))


def two_with_one_activation() -> nn.Module:
    act = nn.ReLU()
    return nn.ModuleDict({"a": SharedDefault(act), "b": SharedDefault(act)})


def encoder_and_decoder() -> nn.ModuleDict:
    act = nn.Tanh()
    return nn.ModuleDict({
        "enc": nn.Sequential(conv(), act),
        "dec": nn.Sequential(nn.BatchNorm2d(3), act),
    })  # fmt: skip


class EncoderAlone(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.both = encoder_and_decoder()

    def forward(self, x: Tensor) -> Tensor:
        return self.both["enc"](x)


class InTransformer(Base):
    """A layer of torch's that torch.fx does not look into uses the activation too."""

    def __init__(self) -> None:
        super().__init__()
        self.act = nn.GELU()
        self.layer = nn.TransformerEncoderLayer(8, 2, 8, 0.0, self.act, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(self.act(self.conv(x)).flatten(1, 2))


# --------------------------------------------------------------------- other ways through the code


class Optional(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.block = Straight()

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        if mask is not None:
            return self.block(x) * mask
        return self.block.conv(x)


class OnlyTensors(Optional):
    def forward(self, x: Tensor) -> Tensor:
        if isinstance(x, Tensor):
            return self.block.conv(x)
        return self.block(x)


class Asserts(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(conv(), nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        assert x.shape[1] == 3
        return self.features[0](x)


class Perceptual(Asserts):
    def forward(self, x: Tensor) -> Tensor:
        if x.shape[1] == 1:
            x = x.expand(-1, 3, -1, -1)
        outputs = []
        for layer in self.features:
            x = layer(x)
            outputs.append(x)
        return torch.cat(outputs)


class Raw(Base):
    raw = False

    def step(self, x: Tensor) -> Tensor:
        return torch.sigmoid(self.conv(x))

    def forward(self, x: Tensor) -> Tensor:
        if self.raw:
            return self.conv(x)
        return self.step(x)


class RawInside(nn.Module):
    """The branch is in the code of a module that the straight one calls."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = Raw()

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x) + 1


class Holds:
    """No module, so that what it holds is no submodule."""

    def __init__(self, **held: Any) -> None:
        vars(self).update(held)


class Hidden(nn.Module):
    """Reaches the convolution by what is no submodule of its."""

    def __init__(self, of: nn.Module) -> None:
        super().__init__()
        self.holds = [Holds(of=of)]
        self.flag = True

    def forward(self, x: Tensor) -> Tensor:
        return x * 2 if self.flag else self.holds[0].of(x)


class ReachesHidden(Base):
    def __init__(self) -> None:
        super().__init__()
        self.hidden = Hidden(self.conv)

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.conv(x)) + self.hidden(x)


class DropPath(nn.Module):
    p = 0.0

    def forward(self, x: Tensor) -> Tensor:
        return x if self.p == 0 else x * (1 - self.p)


class Logs(nn.Module):
    """Has no way to the convolution but what it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.flag, self.seen = True, None

    def forward(self, p: Tensor) -> None:
        if not self.flag:
            self.seen = p.mean()


class WithDropPath(Base):
    def __init__(self) -> None:
        super().__init__()
        self.drop = DropPath()

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.drop(self.conv(x)))


class LogsAfter(Base):
    def __init__(self) -> None:
        super().__init__()
        self.logs = Logs()

    def forward(self, x: Tensor) -> Tensor:
        p = self.conv(x)
        y = self.act(p)
        self.logs(p)
        return y


class LogsBetween(Base):
    seen = None

    def log(self, p: Tensor) -> None:
        if not self.flag:
            self.seen = p.detach().mean()

    def forward(self, x: Tensor) -> Tensor:
        p = self.conv(x)
        self.log(p)
        return self.act(p)


class Maybe(Base):
    def maybe(self, x: Tensor) -> Tensor:
        return x if self.flag else x + 1

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.maybe(self.conv(x)))


class Picks(Base):
    """All that forward may call to be given an activation."""

    def __init__(self) -> None:
        super().__init__()
        self.table = {True: self.act, False: self.ident}
        self.which = "act"
        self.partial = functools.partial(operator.getitem, self.table)

    def method(self) -> nn.Module:
        return self.act if self.flag else self.ident

    @property
    def g(self) -> nn.Module:
        return self.act if self.flag else self.ident

    @property
    def by_partial(self) -> Any:
        return self.partial(self.flag)


class ByMethod(Picks):
    def forward(self, x: Tensor) -> Tensor:
        return self.method()(self.conv(x))


class ByProperty(Picks):
    def forward(self, x: Tensor) -> Tensor:
        return self.g(self.conv(x))


class ByPartial(Picks):
    def forward(self, x: Tensor) -> Tensor:
        return self.by_partial(self.conv(x))


class ByTable(Picks):
    def forward(self, x: Tensor) -> Tensor:
        return {True: self.act, False: self.ident}.get(self.flag)(self.conv(x))


class ByStoredTable(Picks):
    def forward(self, x: Tensor) -> Tensor:
        return self.table.get(self.flag)(self.conv(x))


class ByModules(Picks):
    def forward(self, x: Tensor) -> Tensor:
        return self._modules.get(self.which)(self.conv(x))  # type: ignore[misc]


class ByGetattr(Base):
    def __getattr__(self, name: str) -> Any:
        if name == "g":
            return self.act if self.flag else self.ident
        return super().__getattr__(name)

    def forward(self, x: Tensor) -> Tensor:
        return self.g(self.conv(x))


@torch.fx.wrap
def wrapped(module: nn.Module, x: Tensor, flag: bool) -> Tensor:
    return x if flag else module(x)


class Wrapped(Base):
    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.conv(x)) + wrapped(self.conv, x, self.flag)


EVERYWHERE: list[Any] = []


@torch.fx.wrap
def wrapped_global(x: Tensor) -> Tensor:
    return x if EVERYWHERE[0].flag else EVERYWHERE[0].conv(x)


class WrappedGlobal(Base):
    def __init__(self) -> None:
        super().__init__()
        EVERYWHERE[:] = [self]

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.conv(x)) + wrapped_global(x)


class Conditional(Base):
    """A function of torch's is told what to call."""

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.conv(x)) + torch.cond(self.flag, self.ident, self.conv, (x,))


class SetsProfiler(Base):
    def forward(self, x: Tensor) -> Tensor:
        sys.setprofile(None)
        return self.act(self.conv(x))


class Registered(nn.Module):
    """Reaches the convolution by its class."""

    all: ClassVar[list[Any]] = []

    def forward(self, x: Tensor) -> Tensor:
        return x if self.all[0].flag else self.all[0].conv(x)


class ReachesRegistered(Base):
    def __init__(self) -> None:
        super().__init__()
        self.registered = Registered()
        Registered.all[:] = [self]

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.conv(x)) + self.registered(x)


def choose() -> Any:
    return F.relu


class Chooses(Base):
    def forward(self, x: Tensor) -> Tensor:
        return choose()(self.conv(x))


class OwnCall(Straight):
    def __call__(self, x: Tensor) -> Tensor:
        return super().__call__(x) if self.flag else self.conv(x)


class Iterates(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(conv(), nn.Sigmoid())
        self.flag = True

    def __iter__(self) -> Any:
        return iter(list(self._modules.values())[: 2 if self.flag else 1])


class Both(Base):
    def step(self, x: Tensor) -> tuple[Tensor, Tensor]:
        p = self.conv(x)
        return self.act(p), p

    def forward(self, x: Tensor) -> Tensor:
        y, _ = self.step(x)
        return y


class Loss(Straight):
    def loss(self, x: Tensor) -> Tensor:
        return self.conv(x).abs().mean() + self(x).mean()


class Features(Base):
    def features(self, x: Tensor) -> Tensor:
        return self.conv(x)

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.features(x))


class First(Straight):
    """What is looked up is in a property, behind a decorator, in a function inside."""

    @property
    @torch.no_grad()
    def first(self) -> Callable[[Tensor], Tensor]:
        return lambda x: self.conv(x)


class Above(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.block = Straight()

    def forward(self, x: Tensor) -> Tensor:
        return self.block(x)

    def middle(self, x: Tensor) -> Tensor:
        return getattr(self.block, "conv")(x)  # noqa: B009


class Whole(nn.Module):
    """A method that has the convolution and the activation, or neither, shows nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(conv(), nn.Sigmoid())

    def forward(self, x: Tensor) -> Tensor:
        return self.features(x)

    def loss(self, x: Tensor) -> Tensor:
        return self.features(x).mean()


class Part(Whole):
    def part(self, x: Tensor) -> Tensor:
        for layer in self.features[:1]:
            x = layer(x)
        return x


class Nested(Whole):
    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(self.features)

    def part(self, x: Tensor) -> Tensor:
        return self.features[0][0](x)


class Numbered(nn.Sequential):
    def part(self, x: Tensor) -> Tensor:
        return self[0](x)


class Bare(Base):
    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)


class Uncalled(nn.Module):
    """Its block's own forward is not what runs."""

    def __init__(self) -> None:
        super().__init__()
        self.block = Bare()

    def forward(self, x: Tensor) -> Tensor:
        return self.block.act(self.block.conv(x))


class FeaturesTwice(nn.Module):
    """What a method gives in one object, it does not show of another."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = Features(), Features()
        self.two.act = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.two(self.one(x))


class Decorated(Base):
    @torch.enable_grad()
    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.conv(x))


class DefaultArgument(nn.Module):
    class Block(Base):
        def forward(self, x: Tensor, act: Any = torch.sigmoid) -> Tensor:
            return act(self.conv(x))

    def __init__(self) -> None:
        super().__init__()
        self.block = self.Block()

    def forward(self, x: Tensor) -> Tensor:
        return self.block(x)


# ------------------------------------------------------------------ old code that stays reachable


class Impl(Base):
    def _impl(self, x: Tensor) -> Tensor:
        return torch.sigmoid(self.conv(x))


class Stored(Impl):
    def __init__(self) -> None:
        super().__init__()
        self.step = self._impl

    def forward(self, x: Tensor) -> Tensor:
        return self.step(x)


class Alias(Base):
    def _impl(self, x: Tensor) -> Tensor:
        return torch.sigmoid(self.conv(x))

    forward = _impl


class Sup(Impl):
    def forward(self, x: Tensor) -> Tensor:
        return super()._impl(x)


class Explicit(Impl):
    def forward(self, x: Tensor) -> Tensor:
        return Impl._impl(self, x)


class Go(Base):
    def _go(self, x: Tensor) -> Tensor:
        return torch.sigmoid(self.conv(x))

    def forward(self, x: Tensor) -> Tensor:
        return self._go(x)


def stored_on_the_object() -> nn.Module:
    model: Any = Go()
    model._go = model._go
    return model


class Functional(Base):
    def forward(self, x: Tensor) -> Tensor:
        return torch.sigmoid(self.conv(x))


class CopiesItself(Functional):
    def __deepcopy__(self, memo: Any) -> nn.Module:
        new = type(self)()
        new.load_state_dict(self.state_dict())
        return new.to(self.conv.weight.dtype)


class TimesFive(Base):
    def forward(self, x: Tensor) -> Tensor:
        return torch.sigmoid(self.conv(x)) * 5


def class_that_changed() -> nn.Module:
    """Its class had been fused with another forward."""
    import torch_convbp as bp

    class Changed(Functional):
        pass

    Changed.forward = Functional.forward  # type: ignore[method-assign]
    bp.convert(Changed(), fuse_activations=True)
    Changed.forward = TimesFive.forward  # type: ignore[method-assign]
    return Changed()


def made_again(model: nn.Module, x: Tensor) -> Tensor:
    new = type(model)().double()
    new.load_state_dict(model.state_dict())
    return new(x)


# ------------------------------------------------------------------------- names and their meanings


class Gate(Base):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("b", torch.ones(3, 1, 1))
        self.nonlin = torch.sigmoid

    def forward(self, x: Tensor) -> Tensor:
        gate = torch.sigmoid(self.b)
        return self.nonlin(self.conv(x)) * gate


class Local(Base):
    def forward(self, x: Tensor) -> Tensor:
        g = torch.sigmoid
        post = lambda t: torch.sigmoid(t) * 2  # noqa: E731
        return post(self.last(g(self.conv(x))))


class OnSelf(Base):
    def __init__(self) -> None:
        super().__init__()
        self.relu: Any = F.relu

    def forward(self, x: Tensor) -> Tensor:
        return self.relu(self.conv(x))


class ForwardToo(Base):
    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.conv(x)) + self.act.forward(x)


# -------------------------------------------------------------------------------- classes and hooks


class InPlaceAfter(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.b = nn.Sequential(conv(), nn.ReLU6())

    def forward(self, x: Tensor) -> Tensor:
        x = self.b(x)
        x[:, 0] = 0
        return x


@torch.fx.wrap
def adds_one(x: Tensor) -> Tensor:
    return x.add_(1)


torch.library.define("fusion_traps::adds_one", "(Tensor(a!) x) -> Tensor")


@torch.library.impl("fusion_traps::adds_one", "CompositeImplicitAutograd")
def _adds_one(x: Tensor) -> Tensor:
    return x.add_(1).clone()


class ChangedByFunction(Base):
    def forward(self, x: Tensor) -> Tensor:
        y = F.leaky_relu(self.conv(x), 0.2)
        return adds_one(y) * 2


class ChangedByOperator(Base):
    """Whose name does not say so."""

    def forward(self, x: Tensor) -> Tensor:
        y = F.leaky_relu(self.conv(x), 0.2)
        return torch.ops.fusion_traps.adds_one(y) * 2


def weight_grad(model: Any, x: Tensor) -> Tensor:
    return torch.autograd.grad(model(x).sum(), model.conv.weight)[0]


class Parametrized(Base):
    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor) -> Tensor:
        return torch.sigmoid(self.conv(x)) * self.w


class Frozen(Functional):
    def __setattr__(self, name: str, value: Any) -> None:
        if "flag" in vars(self):
            raise AttributeError("frozen")
        super().__setattr__(name, value)


class HookElsewhere(Base):
    def __init__(self) -> None:
        super().__init__()
        self.flag = True
        self.ident.register_forward_hook(self.hook)

    def hook(self, module: nn.Module, args: Any, output: Tensor) -> Tensor | None:
        return None if self.flag else self.conv(output)

    def forward(self, x: Tensor) -> Tensor:
        return self.ident(self.act(self.conv(x)))


def hooked_in_between() -> nn.Module:
    model = nn.Sequential(conv(), nn.Sequential(), nn.ReLU())
    model[1].register_forward_hook(lambda module, args, output: output * 2)
    return model


def copied_inside_a_recording() -> nn.Module:
    import torch_convbp as bp

    model = bp.convert(nn.Sequential(conv(), nn.ReLU()))
    with bp.record_error_signals(model):
        model(torch.ones(1, 3, 4, 4)).sum().backward()
        return copy.deepcopy(model)


HAS_IF = "forward has an If"
TRAPS = {
    "default_argument": Trap(
        two_with_one_activation, run=lambda m, x: m["b"](x), part="a"),
    "decoder_of_another": Trap(
        encoder_and_decoder, run=lambda m, x: m["dec"](x), part="enc"),
    "decoder_not_called": Trap(EncoderAlone, "both.dec.1 too, which was not called",
                               run=lambda m, x: m.both["dec"](x)),
    "in_a_transformer": Trap(InTransformer, "what layer does with them is not known"),
    "optional_argument": Trap(Optional, HAS_IF, run=lambda m, x: m(x, torch.ones(()))),
    "only_tensors": Trap(OnlyTensors, HAS_IF),
    "asserts": Trap(Asserts, "torch.fx cannot trace it"),
    "perceptual_loss": Trap(Perceptual, "torch.fx cannot trace it"),
    "raw": Trap(Raw, HAS_IF, lambda m: setattr(m, "raw", True)),
    "raw_inside": Trap(RawInside, HAS_IF, lambda m: setattr(m.inner, "raw", True)),
    "reaches_hidden": Trap(ReachesHidden, "Hidden.forward, which has them in reach", unset),
    "by_method": Trap(ByMethod, "calls self.method(), which may be", unset),
    "by_property": Trap(ByProperty, "Picks.g, which has them in reach, has an IfExp", unset),
    "by_partial": Trap(ByPartial, "by_partial, which has them in reach, picks what", unset),
    "by_table": Trap(ByTable, "ByTable.forward calls {True: self.act", unset),
    "by_stored_table": Trap(ByStoredTable, "calls self.table.get(self.flag), which", unset),
    "by_modules": Trap(ByModules, "calls self._modules.get(",
                       lambda m: setattr(m, "which", "ident")),
    "by_getattr": Trap(ByGetattr, "__getattr__, which has them in reach", unset),
    "wrapped": Trap(Wrapped, "is not known", unset),
    "wrapped_global": Trap(WrappedGlobal, "is not known", unset),
    "conditional": Trap(Conditional, "cond, which has them in reach", unset),
    "sets_profiler": Trap(SetsProfiler, "it sets a profiler"),
    "by_its_class": Trap(ReachesRegistered, "Registered.forward, which has them in", unset),
    "chosen_function": Trap(Chooses, "not a name of torch's function"),
    "own_call": Trap(OwnCall, "a way of its own of being called", unset),
    "iterates": Trap(Iterates, "Iterates.__iter__, which has them in reach", unset),
    "returns_both": Trap(Both, "Both.step returns the convolution's output",
                         run=lambda m, x: m.step(x)[1]),
    "another_method": Trap(Loss, "Loss.loss may hand out", run=lambda m, x: m.loss(x)),
    "helper": Trap(Features, "Features.features may hand out", run=lambda m, x: m.features(x)),
    "helper_of_two": Trap(
        FeaturesTwice, "Features.features may", run=lambda m, x: m.one.features(x)),
    "property": Trap(First, "First.first may hand out", run=lambda m, x: m.first(x)),
    "method_above": Trap(Above, "Above.middle may hand out", run=lambda m, x: m.middle(x)),
    "method_of_a_part": Trap(Part, "Part.part may hand out", run=lambda m, x: m.part(x)),
    "method_of_a_nested_part": Trap(Nested, "Nested.part may", run=lambda m, x: m.part(x)),
    "method_of_a_sequential": Trap(
        lambda: Numbered(conv(), nn.ReLU()), "Numbered.part may", run=lambda m, x: m.part(x)),
    "forward_not_called": Trap(Uncalled, "Bare.forward may", run=lambda m, x: m.block(x)),
    "method_of_the_whole": Trap(Whole, run=lambda m, x: m.loss(x)),
    "decorated": Trap(Decorated, "may do something between the two"),
    "default_function": Trap(DefaultArgument, "not a name of torch's function",
                             run=lambda m, x: m.block(x, torch.tanh)),
    "maybe": Trap(Maybe, "Maybe.maybe runs between the two", unset),
    "drop_path": Trap(WithDropPath, "drop is called between", lambda m: setattr(m.drop, "p", 0.5)),
    "drop_path_in_sequential": Trap(
        lambda: nn.Sequential(conv(), DropPath(), nn.ReLU()), "1 is called between the two",
        lambda m: setattr(m[1], "p", 0.5)),
    "hooked_in_between": Trap(hooked_in_between, "1 is called between the two"),
    "hook_elsewhere": Trap(HookElsewhere, "a hook has them in reach", unset),
    "logs_between": Trap(LogsBetween, "LogsBetween.log runs between the two",
                         unset, lambda m, x: (m(x), m.seen)[1]),
    "logs_after": Trap(LogsAfter, "Logs.forward is given the convolution's output too",
                       unset, lambda m, x: (m(x), m.logs.seen)[1]),
    "stored_method": Trap(Stored, "it is still computed there"),
    "class_alias": Trap(Alias, "it is still computed there"),
    "super": Trap(Sup, "it is still computed there"),
    "explicit": Trap(Explicit, "it is still computed there"),
    "stored_on_the_object": Trap(stored_on_the_object, "it is still computed there"),
    "forward_too": Trap(ForwardToo, "called by its forward too"),
    "gate": Trap(Gate, "not a name of torch's function"),
    "local_names": Trap(Local, "not a name of torch's function"),
    "function_on_self": Trap(OnSelf, "not a name of torch's function",
                             lambda m: setattr(m, "relu", torch.abs)),
    "made_again": Trap(Functional, run=made_again),
    "copies_itself": Trap(CopiesItself, "its copy has other modules"),
    "class_that_changed": Trap(class_that_changed),
    "changed_in_place": Trap(InPlaceAfter, "torch.fx cannot trace it"),
    "output_changed_in_place": Trap(
        lambda: nn.Sequential(conv(), nn.LeakyReLU(0.2)), "its output is the model's",
        run=lambda m, x: torch.autograd.grad(m(x).add_(1).sum(), m[0].weight)[0]),
    "changed_by_wrapped": Trap(
        ChangedByFunction, "what adds_one does with its output is not known",
        run=weight_grad),
    "changed_by_operator": Trap(
        ChangedByOperator, "its output is changed in place",
        run=weight_grad),
    "parametrized_later": Trap(
        Parametrized, "", lambda m: parametrize.register_parametrization(m, "w", nn.Identity())),
    "frozen": Trap(Frozen, "frozen"),
    "copied_inside_a_recording": Trap(copied_inside_a_recording),
}  # fmt: skip
