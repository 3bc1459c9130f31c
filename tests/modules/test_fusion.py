"""Activations computed in the convolutions before them: where it may not be seen, nowhere else."""

from __future__ import annotations

import copy
import functools
import io
import logging
import pickle
import random
import threading
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from cases import normal
from fusion_models import MODELS, Model, SharedRelu, Two, sequential
from torch import Tensor, nn
from torch.ao.nn import qat
from torch.ao.quantization import get_default_qat_qconfig
from torch.nn.utils import parametrizations, prune
from torch.utils.checkpoint import checkpoint, checkpoint_sequential
from twins import bytes_of, kept

import torch_convbp as bp
from torch_convbp import fusion

pytestmark = pytest.mark.every_device


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


def prepared(case: Model) -> tuple[nn.Module, Tensor]:
    model = case.make().double()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 0.0  # several passes would move the statistics
    return model, normal((2, 3, case.pixels, case.pixels), torch.float64, seed=1)


def results(model: nn.Module, input: Tensor) -> tuple[list[Tensor], int]:
    """Output and gradients, and the bytes that were kept for backward."""
    model.zero_grad()
    torch.manual_seed(3)  # dropout
    leaf = input.clone().requires_grad_()
    output, tensors = kept(lambda: model(leaf), model.parameters())
    output.square().sum().backward()
    gradients = [leaf.grad, *(p.grad for p in model.parameters() if p.grad is not None)]
    return [output.detach(), *(g.clone() for g in gradients if g is not None)], bytes_of(tensors)


def assert_close(these: list[Tensor], others: list[Tensor]) -> None:
    """Sums of at most 10^4 products through at most a hundred layers, in units of the largest."""
    largest = max(other.abs().max().item() for other in others)
    for this, other in zip(these, others, strict=True):
        bound = 1e4 * 2**-53 * 100 * max(other.abs().max().item(), 1e-4 * largest)
        assert (this - other).abs().max() <= bound


def runs_fused(model: nn.Module, input: Tensor) -> int:
    """How many activations are computed in convolutions when the model is called."""
    taken, take = [], fusion.Mark.take
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fusion.Mark, "take", lambda m, g, out: taken.append(g) or take(m, g, out))
        model(input)
    return len(taken)


# ---------------------------------------------------------------------------------- what is a pair


@pytest.mark.filterwarnings("ignore:torch_convbp.revert left 1 layer")
@pytest.mark.parametrize("name", MODELS)
def test_models(name: str) -> None:
    case = MODELS[name]
    model, input = prepared(case)
    keys, modules = list(model.state_dict()), dict(model.named_modules())
    kinds = [type(m).__name__ for m in modules.values()]
    torchs, _ = results(model, input)
    bp.convert(model)
    converted, bytes_before_fusing = results(model, input)
    assert_close(converted, torchs)

    assert bp.convert(model, fuse_activations=True) is model
    report = bp.fusions(model)
    assert {f.convolution: f"{f.g} of {f.activation}" for f in report.fused} == case.fused
    left = dict(report.left_alone)
    assert left.keys() == case.left.keys(), str(report)
    for place, words in case.left.items():
        assert words in left[place]
    assert list(model.state_dict()) == keys
    assert dict(model.named_modules()).items() == modules.items()  # the same objects
    assert runs_fused(model, input) == len(case.fused)

    fused, bytes_fused = results(model, input)
    assert_close(fused, converted)
    if all(g.startswith("relu of") for g in case.fused.values()):
        assert torch.equal(fused[0], converted[0])
    assert bytes_fused <= bytes_before_fusing

    bp.revert(model)
    assert runs_fused(model, input) == 0
    if name != "own_activation":
        assert [type(m).__name__ for m in model.modules()] == kinds
        assert all(torch.equal(a, b) for a, b in zip(results(model, input)[0], torchs, strict=True))


@pytest.mark.parametrize(
    ("name", "pairs"),
    [("mobilenet_v3_large", 8), ("efficientnet_b0", 32), ("regnet_y_400mf", 32), ("maxvit_t", 22)],
)
def test_real_models(name: str, pairs: int) -> None:
    """Squeeze and excitation: two convolutions of 1x1, each with its activation."""
    model = bp.convert(getattr(torchvision.models, name)(), fuse_activations=True)
    report = bp.fusions(model)
    assert len(report.fused) == pairs
    assert "convolution(s) left alone: followed by BatchNorm2d" in str(report)
    layers = sum(isinstance(m, bp.ConvBP2d) for m in model.modules())
    assert pairs + len(report.left_alone) == layers


def test_pairs_by_name() -> None:
    model, input = prepared(MODELS["untraceable"])
    expected, _ = results(model, input)
    bp.convert(model, fuse_activations=[("features.0", "features.1"), ["blocks.0.0", "blocks.0.1"]])
    assert runs_fused(model, input) == 2
    assert_close(results(model, input)[0], expected)


def test_a_pair_that_no_module_calls() -> None:
    """Its innermost module is a list, and there is none around."""
    model = nn.ModuleList([nn.Conv2d(3, 4, 3), nn.Tanh()]).double()
    input = normal((2, 3, 8, 8), torch.float64, seed=1)
    expected = model[1](model[0](input))
    bp.convert(model, fuse_activations=[("0", "1")])
    assert_close([model[1](model[0](input))], [expected])


NO_PAIRS = {
    "a number": (5, TypeError, "must be bool or pairs of names, not int"),
    "nothing": (None, TypeError, "must be bool or pairs of names, not NoneType"),
    "one name": ("conv", TypeError, "must be bool or pairs of names, not 'conv'"),
    "names": (["conv", "act"], TypeError, "must be bool or pairs of names, not 'conv'"),
    "three": ([("conv", "act", "last")], TypeError, "not ('conv', 'act', 'last')"),
    "unknown": ([("conv", "relu")], ValueError, "has 'relu', but model has no module of that name"),
    "no conv": ([("act", "conv")], ValueError, "has 'act' first in a pair, which is no nn.Conv2d"),
    "no g": ([("conv", "last")], ValueError, "has 'last' second, which is no activation it knows"),
}


@pytest.mark.parametrize("name", NO_PAIRS)
def test_what_are_no_pairs(name: str) -> None:
    value, error, message = NO_PAIRS[name]
    model, _ = prepared(MODELS["modules"])
    with pytest.raises(error) as raised:
        bp.convert(model, fuse_activations=value)
    assert message in str(raised.value)
    assert type(model.conv) is nn.Conv2d and type(model.act) is nn.ReLU


# ------------------------------------------- whatever is done to the modules of a fused model


class Between(nn.Module):
    """Puts something between a module and what comes after it."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module, self.scale = module, 0.5

    def forward(self, x: Tensor) -> Tensor:
        return self.module(x) * self.scale


def plain_conv(model: Any) -> None:
    layer, torchs = model.conv, nn.Conv2d(3, 4, 3).double()
    torchs.load_state_dict(layer.state_dict())
    model.conv = torchs


def quantised(model: Any) -> None:
    model.conv.qconfig = get_default_qat_qconfig()
    model.conv = qat.Conv2d.from_float(bp.revert(copy.deepcopy(model.conv)).float())
    model.float().eval()


def fold_batch_norm(model: Any) -> None:
    norm = nn.BatchNorm2d(4).double().eval()
    torch.nn.init.normal_(norm.running_mean)
    model.eval().conv = torch.nn.utils.fuse_conv_bn_eval(model.conv.eval(), norm)


def replaces(name: str, make: Callable[[nn.Module], nn.Module]) -> Callable[[Any], None]:
    return lambda model: setattr(model, name, make(getattr(model, name)))


def pops(model: Any) -> None:
    """A slice that ends at the convolution, in a model of its own."""
    conv = model.conv
    del model.act
    model.conv = nn.Sequential(conv)


# What is done, and whether the pair runs as one afterwards.
CHANGES: dict[str, tuple[Callable[[Any], Any], bool]] = {
    "another convolution": (plain_conv, False),
    "pruned": (lambda m: prune.l1_unstructured(m.conv, "weight", 0.5), False),
    "pruned for good": (
        lambda m: prune.remove(prune.l1_unstructured(m.conv, "weight", 0.5), "weight"), True),
    "quantised": (quantised, False),
    "weight_norm": (lambda m: parametrizations.weight_norm(m.conv), True),
    "spectral_norm": (lambda m: parametrizations.spectral_norm(m.conv), True),
    "a norm folded in": (fold_batch_norm, True),
    "another activation": (replaces("act", lambda _: nn.GELU()), False),
    "no activation": (replaces("act", lambda _: nn.Identity()), False),
    "the activation's parameter": (lambda m: setattr(m.act, "negative_slope", 0.7), True),
    "no parameter": (lambda m: setattr(m.act, "negative_slope", torch.tensor(0.7)), True),
    "the activation's forward": (lambda m: setattr(m.act, "forward", lambda x: x * 2), False),
    "the activation deeper": (replaces("act", nn.Sequential), False),
    "after the convolution": (replaces("conv", Between), False),
    "before the activation": (replaces("act", lambda a: nn.Sequential(nn.Tanh(), a)), False),
    "without the activation": (pops, False),
    "in eval": (lambda m: m.eval(), True),
    "frozen": (lambda m: m.conv.requires_grad_(False), True),
    "another dtype": (lambda m: m.float(), True),
    "an activation of the layer's": (lambda m: setattr(m.conv, "activation", "tanh"), False),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:.*torch.ao.quantization is deprecated", "ignore::FutureWarning")
@pytest.mark.parametrize("name", CHANGES)
def test_changes(name: str) -> None:
    """Whatever is done to the modules of a fused model, it does what the unfused one does."""
    change, still_fused = CHANGES[name]
    seen = []
    for fuse in (False, True):
        torch.manual_seed(0)
        make = sequential(act=lambda: nn.LeakyReLU(0.2))
        model = bp.convert(make().double(), fuse_activations=fuse)
        torch.manual_seed(1)
        change(model)
        dtype = next(model.parameters()).dtype
        input = normal((2, 3, 8, 8), dtype, seed=1)
        assert runs_fused(model, input) == (fuse and still_fused)
        seen.append([tensor.double() for tensor in results(model, input)[0]])
    error = max((a - b).abs().max() / b.abs().max() for a, b in zip(*seen, strict=True))
    assert error <= 1e-12 if dtype == torch.float64 else 1e-5


HOOKS = [
    "register_forward_hook",
    "register_forward_pre_hook",
    "register_full_backward_hook",
    "register_full_backward_pre_hook",
]


@pytest.mark.parametrize("place", ["conv", "act", "block", "everywhere"])
@pytest.mark.parametrize("hook", HOOKS)
def test_hooks(hook: str, place: str) -> None:
    """Hooks see what they see in the unfused model, and once they are gone it is fused again."""
    seen: list[list[Tensor]] = []
    for fuse in (False, True):
        torch.manual_seed(0)
        block = nn.Sequential(nn.Conv2d(3, 4, 3))
        layers = [("block", block), ("act", nn.SiLU()), ("last", nn.Conv2d(4, 2, 1))]
        model: Any = nn.Sequential()
        for name, layer in layers:
            model.add_module(name, layer)
        bp.convert(model.double(), fuse_activations=fuse)
        input = normal((2, 3, 8, 8), torch.float64, seed=1)
        seen.append([])

        def note(module: nn.Module, *values: Any, into: list[Tensor] = seen[-1]) -> None:
            for value in values:
                given = value if isinstance(value, tuple) else (value,)
                into += [v.detach().clone() for v in given if v is not None]

        if place == "everywhere":
            name = {"register_full_backward_pre_hook": "register_module_full_backward_pre_hook"}
            name = name.get(hook, hook.replace("register_", "register_module_"))
            handle = getattr(nn.modules.module, name)(note)
        else:
            module = {"conv": model.block[0], "act": model.act, "block": model.block}[place]
            handle = getattr(module, hook)(note)
        with handle:
            assert runs_fused(model, input) == 0
            seen[-1] += results(model, input)[0]
        assert runs_fused(model, input) == fuse
    assert len(seen[0]) > 3
    assert_close(seen[1], seen[0])


def test_activations_are_what_they_were() -> None:
    """Found by their class, and free to have any attribute."""
    model, input = prepared(MODELS["shared_activation"])
    bp.convert(model, fuse_activations=True)
    found = [m for m in model.modules() if isinstance(m, nn.LeakyReLU)]
    assert found == [model[1]] and repr(model[1]) == "FusedLeakyReLU(negative_slope=0.2)"
    model[1].anything, model[1].negative_slope = "there", 0.9
    assert [f.g for f in bp.fusions(model).fused] == ["leaky_relu(0.9)"] * 2
    for output in (model(input), bp.revert(model)(input)):
        assert_close([output], [model(input)])
    assert type(model[1]) is nn.LeakyReLU and vars(model[1])["anything"] == "there"
    assert not any("_convbp" in name for m in model.modules() for name in vars(m))
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_nothing_is_left_on_tensors() -> None:
    model, input = prepared(MODELS["shared_relu"])
    assert not vars(bp.convert(model, fuse_activations=True)(input))


class Waits(nn.Module):
    """Its one activation has another use while an output waits for it."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.g = nn.Conv2d(3, 4, 3), nn.Conv2d(3, 4, 3), nn.Tanh()
        self.norm = nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.a(x), self.norm(self.b(x))
        return self.g(b) + self.g(a)

    def logits(self, x: Tensor) -> Tensor:
        """The layers are called by another method than forward, as a training step may."""
        return self.a(x)


def test_who_else_calls_the_layers() -> None:
    model, input = prepared(Model(Waits))
    expected = [model(input), model.logits(input)]
    bp.convert(model, fuse_activations=True)
    assert_close([model(input), model.logits(input)], expected)
    assert runs_fused(model, input) == 1


PARTS: dict[str, Callable[[Any], nn.Module]] = {
    "a slice": lambda m: m[:1],
    "its children": lambda m: nn.Sequential(*list(m.children())[:1]),
    "torch.fx, without the activation": lambda m: without(torch.fx.symbolic_trace(m), "act"),
    "the layer": lambda m: m.conv,
    "its copy": lambda m: copy.deepcopy(m.conv),
    "pickled": lambda m: pickle.loads(pickle.dumps(m.conv)),
}


def without(graph: torch.fx.GraphModule, name: str) -> nn.Module:
    graph.act, graph.last = nn.Identity(), nn.Identity()
    return graph


@pytest.mark.parametrize("part", PARTS)
def test_parts_of_a_fused_model(part: str) -> None:
    """Whoever calls a layer in another way than its owner does gets what it computes alone."""
    model, input = prepared(MODELS["gelu"])
    expected = model.conv(input)
    bp.convert(model, fuse_activations=True)
    model.register_buffer("big", torch.ones(300, 300))
    assert_close([PARTS[part](model)(input)], [expected])
    assert len(pickle.dumps(model.conv)) < 10_000  # nothing of the model is in it


class Wires(Two):
    """Runs another way when it is told to."""

    def __init__(self) -> None:
        super().__init__()
        self.way = 0

    def forward(self, x: Tensor) -> Tensor:
        p = self.one(x)
        if self.way == 1:
            p = p + 1
        return self.two(p if self.way == 2 else self.relu(p))


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("way", [1, 2])
def test_what_runs_another_way_says_so(way: int, compiled: bool) -> None:
    model, input = prepared(Model(Wires))
    bp.convert(model, fuse_activations=True)
    model(input)
    model.way = way
    run = torch.compile(model, backend="eager") if compiled else model
    with pytest.raises(RuntimeError, match="Wires: a convolution has computed relu"):
        run(input)
    expected = bp.revert(copy.deepcopy(model))(input)
    bp.convert(model, fuse_activations=True)  # as it is now
    assert_close([model(input)], [expected])


class Checkpointed(nn.Module):
    """Its end runs in a checkpoint when it is told to."""

    flag = False

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 4, 3), nn.Sequential(nn.GELU(), nn.Conv2d(4, 2, 1))

    def forward(self, x: Tensor) -> Tensor:
        p = self.conv(x)
        return checkpoint(self.head, p, use_reentrant=True) if self.flag else self.head(p)


def test_a_checkpoint_between_the_two_says_so() -> None:
    model, input = prepared(Model(Checkpointed))
    bp.convert(model, fuse_activations=True)
    assert runs_fused(model, input) == 1
    model.flag = True
    with pytest.raises(RuntimeError, match="a convolution has computed gelu"):
        model(input)


def test_a_hook_before_the_owner_that_raises() -> None:
    def stop(*_: Any) -> None:
        raise ValueError("stop")

    model, input = prepared(MODELS["gelu"])
    expected = model(input)
    bp.convert(model, fuse_activations=True)
    with model.register_forward_pre_hook(stop, prepend=True), warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(ValueError, match="stop"):
            model(input)
    assert_close([model(input)], [expected])


class Fails(Two):
    """Stops between the two, once."""

    stops = False

    def forward(self, x: Tensor) -> Tensor:
        p = self.one(x)
        if self.stops:
            raise KeyError("here")
        return self.two(self.relu(p))


def test_an_exception_between_the_two() -> None:
    model, input = prepared(Model(Fails))
    bp.convert(model, fuse_activations=True)
    expected = model(input)
    model.stops = True
    with pytest.raises(KeyError, match="here"):
        model(input)
    model.stops = False
    assert_close([model(input)], [expected])
    assert model.one(input).min() < 0


# ------------------------------------------------------------------------ copies and other programs


def saved_and_loaded(model: nn.Module) -> nn.Module:
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    loaded: nn.Module = torch.load(file, weights_only=False)
    return loaded


FUSING = ["modules", "gelu", "shared_relu", "untraceable", "weight_norm"]


@pytest.mark.parametrize(
    "copied",
    [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m)), saved_and_loaded],
    ids=["deepcopy", "pickle", "torch.save"],
)
@pytest.mark.parametrize("name", FUSING)
def test_copies(name: str, copied: Callable[[nn.Module], nn.Module]) -> None:
    if name == "weight_norm" and copied is not copy.deepcopy:
        pytest.skip("torch refuses to pickle parametrized modules")
    model, input = prepared(MODELS[name])
    before = [type(m) for m in model.modules()]
    fused, _ = results(bp.convert(model, fuse_activations=True), input)
    other = copied(model)
    assert repr(other) == repr(model)
    assert bp.fusions(other) == bp.fusions(model)
    assert runs_fused(other, input) == len(MODELS[name].fused)
    assert all(map(torch.equal, results(other, input)[0], fused))
    bp.revert(other)  # and not the one it was copied from
    if name != "weight_norm":  # of each such module torch makes a class
        assert [type(m) for m in other.modules()] == before
    assert runs_fused(model, input) == len(MODELS[name].fused)


def test_a_part_is_reverted() -> None:
    for part in ("conv", "act"):
        model, input = prepared(MODELS["modules"])
        expected = model(input)
        bp.convert(model, fuse_activations=True)
        bp.revert(model.get_submodule(part))
        assert runs_fused(model, input) == 0
        assert_close([model(input)], [expected])


@pytest.mark.parametrize("name", FUSING)
def test_state_dict_both_ways(name: str) -> None:
    fused, input = prepared(MODELS[name])
    plain, _ = prepared(MODELS[name])
    bp.convert(fused, fuse_activations=True)
    plain.load_state_dict(fused.state_dict())
    assert_close(results(fused, input)[0], results(plain, input)[0])
    fused.load_state_dict(prepared(MODELS[name])[0].state_dict())


def checkpointed(parts: int, use_reentrant: bool) -> Callable[[Any, Tensor], Any]:
    """Each part of a Sequential runs again in the backward pass; 0: the model as a whole."""

    def make(model: Any, x: Tensor) -> Callable[[Tensor], Tensor]:
        if parts == 0:
            return lambda y: checkpoint(model, y, use_reentrant=use_reentrant)
        return lambda y: checkpoint_sequential(model, parts, y, use_reentrant=use_reentrant)

    return make


def checkpoints_switched_on(use_reentrant: bool) -> Callable[[Any, Tensor], Any]:
    """A model's own flag, set after it was fused, puts each layer into a checkpoint."""

    def make(model: Any, x: Tensor) -> nn.Module:
        for layer in model.children():
            forward = type(layer).forward.__get__(layer)
            vars(layer)["forward"] = functools.partial(
                checkpoint, forward, use_reentrant=use_reentrant
            )
        return model

    return make


def compiled_part(model: Any) -> nn.Module:
    model.conv = torch.compile(model.conv, backend="aot_eager")
    return model


def prepared_again(name: str) -> nn.Module:
    torch.manual_seed(0)
    return prepared(MODELS[name])[0]


PROGRAMS: dict[str, Callable[[nn.Module, Tensor], Any]] = {
    "torch.compile": lambda m, x: torch.compile(m, fullgraph=True, backend="aot_eager"),
    "torch.export": lambda m, x: torch.export.export(m, (x,)).module(),
    "torch.export, strict": lambda m, x: torch.export.export(m, (x,), strict=True).module(),
    "torch.fx": lambda m, x: torch.fx.symbolic_trace(m),
    "torch.jit.trace": lambda m, x: torch.jit.trace(m, x),
    "vmap": lambda m, x: lambda y: torch.func.vmap(m)(y[:, None])[:, 0],
    "functional_call": lambda m, x: lambda y: torch.func.functional_call(m, {}, (y,)),
    "checkpoint": checkpointed(0, False),
    "checkpoint, reentrant": checkpointed(0, True),
    "checkpoints of layers": checkpointed(3, False),
    "checkpoints of layers, reentrant": checkpointed(3, True),
    "checkpoints, later": checkpoints_switched_on(False),
    "checkpoints, later, reentrant": checkpoints_switched_on(True),
    "torch.compile of a part": lambda m, x: compiled_part(m),
    "again": lambda m, x: bp.convert(bp.convert(m), fuse_activations=True),
}


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize("program", PROGRAMS)
@pytest.mark.parametrize("name", ["modules", "gelu"])
def test_programs(name: str, program: str) -> None:
    model, input = prepared(MODELS[name])
    bp.convert(model, fuse_activations=True)
    made = PROGRAMS[program](model, input)
    both = []
    for run in (bp.convert(prepared_again(name)), made):
        leaf = input.clone().requires_grad_()
        output = run(leaf)
        output.square().sum().backward()
        both.append([output.detach(), leaf.grad])
    assert_close(*both)


@pytest.mark.parametrize("strict", [False, True])
def test_an_exported_program_is_fused(strict: bool) -> None:
    model, input = prepared(MODELS["modules"])
    bp.convert(model, fuse_activations=True)
    code = torch.export.export(model, (input,), strict=strict).graph_module.code
    assert code.count("torch_convbp.conv2d_activation") == 1 and "aten.relu" not in code


def test_a_feature_extractor_finds_the_activation() -> None:
    extraction = pytest.importorskip("torchvision.models.feature_extraction")
    model, input = prepared(MODELS["modules"])
    expected = model.act(model.conv(input))
    bp.convert(model, fuse_activations=True)
    extracted = extraction.create_feature_extractor(model, ["act"])(input)
    assert_close([extracted["act"]], [expected])
    assert torch.equal(torch.fx.symbolic_trace(model.act)(input), input.relu())


def test_error_signals_of_fused_layers() -> None:
    """delta is that of the pre-activation, whoever computes g."""
    deltas = []
    for fuse in (False, True):
        torch.manual_seed(0)
        model, input = prepared(MODELS["modules"])
        bp.convert(model, fuse_activations=fuse)
        with bp.record_error_signals(model, keep="tensors") as record:
            model(input).square().sum().backward()
        deltas.append([record[name][-1].delta for name in ("conv", "last")])
    assert_close(*deltas)


def test_threads() -> None:
    """Each knows of its own convolutions alone, at a shared activation too."""
    model, input = prepared(MODELS["shared_elsewhere"])
    expected, errors = model(input), []
    bp.convert(model, fuse_activations=True)

    def call() -> None:
        try:
            for _ in range(50):
                assert_close([model(input)], [expected])
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=call) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors


# --------------------------------------------------------------------------------- how it is found


class Noisy(nn.Module):
    """Its forward does what others could see."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("count", torch.zeros(()))
        self.n, self.last = torch.zeros(1), None
        self.weight = nn.Parameter(torch.ones(2))

    def forward(self, x: Tensor) -> Tensor:
        self.last = x
        self.n += 1
        self.n.add_(1)
        for parameter in self.parameters():
            parameter.data.mul_(2)
        warnings.warn("noisy", stacklevel=2)
        torch.rand(3), random.random(), np.random.rand()
        return x


def test_the_model_is_not_run_or_changed() -> None:
    noisy = Noisy()
    model = nn.Sequential(noisy, nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3))
    calls: list[int] = []
    model.register_forward_hook(lambda *_: calls.append(1))
    model[3].eval()
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        bp.convert(model, fuse_activations=True)
        assert [f.convolution for f in bp.fusions(model).fused] == ["1"]
    assert torch.equal(torch.get_rng_state(), states[0]) and random.getstate() == states[1]
    assert np.array_equal(np.random.get_state()[1], states[2])
    assert noisy.last is None and noisy.n == 0 and not calls
    assert torch.equal(noisy.weight, torch.ones(2))
    assert model.training and not model[3].training


def test_other_threads_call_modules_meanwhile() -> None:
    model, input = prepared(MODELS["modules"])
    other = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()).double()
    expected, done, errors = other(input), threading.Event(), []

    def call() -> None:
        while not done.is_set():
            try:
                assert torch.equal(other(input), expected)
            except Exception as error:
                errors.append(error)
                return

    thread = threading.Thread(target=call)
    thread.start()
    try:
        for _ in range(10):
            bp.revert(bp.convert(model, fuse_activations=True))
    finally:
        done.set()
        thread.join()
    assert not errors


class Exits(SharedRelu):
    """Ends the program when it is traced, as a handler of a signal may."""

    def forward(self, x: Tensor) -> Tensor:
        if type(x) is not Tensor:
            raise SystemExit(3)
        return super().forward(x)


def test_nothing_is_fused_by_half() -> None:
    model, input = prepared(Model(Exits))
    with pytest.raises(SystemExit):
        bp.convert(model, fuse_activations=True)
    assert runs_fused(model, input) == 0


def test_what_cannot_be_copied() -> None:
    model, input = prepared(MODELS["modules"])
    model.lock = threading.Lock()
    bp.convert(model, fuse_activations=True)
    [entry] = {reason for _, reason in bp.fusions(model).left_alone}
    assert "Sequential cannot be copied (cannot pickle" in entry
    bp.convert(model, fuse_activations=[("conv", "act")])
    assert runs_fused(model, input) == 1


def test_it_says_what_it_did(caplog: pytest.LogCaptureFixture) -> None:
    model, _ = prepared(MODELS["untraceable"])
    with caplog.at_level(logging.INFO, "torch_convbp"):
        bp.convert(model, fuse_activations=True)
    assert str(bp.fusions(model)) in caplog.text
    assert "2 activation(s) computed in the convolutions before them" in caplog.text
    assert "features.0 computes relu of features.1" in caplog.text
    assert "1 convolution(s) left alone: followed by PReLU" in caplog.text


def test_no_module() -> None:
    with pytest.raises(TypeError, match=r"fusions.*'model' must be a torch\.nn\.Module, not int"):
        bp.fusions(5)  # type: ignore[arg-type]


class WithShadow(nn.Module):
    """Holds tensors of a graph, which deepcopy refuses, and another reference to its model."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.module = model
        self.shadow = {name: p * 1 for name, p in model.named_parameters()}
        self.online = [model]

    def forward(self, input: Tensor) -> Tensor:
        return self.module(input)


# What torch or another library puts around a model, or beside a part of it.
COMPANY: dict[str, Callable[[nn.Module], nn.Module]] = {
    "scripted": lambda m: nn.Sequential(m, torch.jit.script(nn.Sequential(nn.Conv2d(2, 2, 1)))),
    "traced": lambda m: nn.Sequential(m, torch.jit.trace(nn.ReLU(), torch.ones(1, 2, 3, 3))),
    "exponential moving average": torch.optim.swa_utils.AveragedModel,
    "shadow": WithShadow,
}


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.filterwarnings("ignore:torch_convbp.convert left")
@pytest.mark.parametrize("name", COMPANY)
def test_pairs_in_company(name: str) -> None:
    model = bp.convert(COMPANY[name](sequential()()), fuse_activations=True)
    assert len(bp.fusions(model).fused) == 1, str(bp.fusions(model))
    assert runs_fused(model, torch.ones(1, 3, 6, 6)) == 1


class Walked(nn.Module):
    """Calls the layers of its Sequential one by one, and one Sequential twice."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 3, 1))
        self.block = nn.Sequential(nn.Sequential(nn.Conv2d(3, 3, 1), nn.Identity(), nn.Tanh()))

    def forward(self, input: Tensor) -> Tensor:
        for layer in self.features:
            input = layer(input)
        return self.block(self.block(input))


def test_the_owner_is_called() -> None:
    model = bp.convert(Walked(), fuse_activations=True)
    assert {pair.convolution for pair in bp.fusions(model).fused} == {"features.0", "block.0.0"}
    assert runs_fused(model, torch.ones(1, 3, 6, 6)) == 3
    assert "_convbp_pairs" in vars(model) and "_convbp_pairs" in vars(model.block[0])
    assert "_convbp_pairs" not in vars(model.features)


class Changed(nn.Module):
    """Changes p in place on its way, once told to."""

    def __init__(self, activation: nn.Module, change: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.conv, self.act = nn.Conv2d(3, 3, 3), activation
        self.change, self.changes = change, False

    def forward(self, input: Tensor) -> Tensor:
        p = self.conv(input)
        if self.changes:
            self.change(p)
        return self.act(p)


@pytest.mark.parametrize("activation", [nn.ReLU, nn.SiLU])
@pytest.mark.parametrize(
    "change", [lambda p: p.add_(1), lambda p: p[:, :1].zero_()], ids=["add_", "a part"]
)
@pytest.mark.parametrize("pairs", [True, [("conv", "act")]], ids=["found", "named"])
def test_changed_in_place_on_the_way(activation: Any, change: Any, pairs: Any) -> None:
    model = bp.convert(Changed(activation(), change), fuse_activations=pairs)
    input = torch.randn(1, 3, 8, 8)
    assert runs_fused(model, input) == 1
    model.changes = True
    with torch.no_grad(), pytest.raises(RuntimeError, match="The model runs another way now"):
        model(input)


def test_an_output_that_leaves_by_an_argument() -> None:
    class Leaves(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.act = nn.Conv2d(3, 3, 3), nn.ReLU()

        def forward(self, input: Tensor, raw: list[Tensor] | None = None) -> Tensor | None:
            p = self.conv(input)
            if raw is None:
                return self.act(p)
            raw.append(p)
            return None

    model = bp.convert(Leaves(), fuse_activations=[("conv", "act")])
    with pytest.raises(RuntimeError, match="The model runs another way now"):
        model(torch.randn(1, 3, 8, 8), [])


def test_a_part_that_is_its_own_copy() -> None:
    class Frozen(nn.Sequential):
        def __deepcopy__(self, memo: Any) -> Any:
            return self

    model = nn.Sequential(nn.Conv2d(3, 3, 3), nn.ReLU(), Frozen(nn.Dropout()))
    bp.convert(model, fuse_activations=True)
    assert all(module.training for module in model.modules())
    assert "cannot be copied (Frozen gives itself as its copy)" in str(bp.fusions(model))
