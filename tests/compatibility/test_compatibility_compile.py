"""Table "Transforms", the part of torch.compile: our layers compiled against torch's in eager mode.

Most compile with the backend aot_eager, which does all but generate code.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from cases import in_layout, normal
from layers import LAYERS, every
from torch import Tensor, nn
from torch._dynamo import compiled_autograd
from torch._dynamo.backends.common import aot_autograd
from torch._dynamo.testing import CompileCounterWithBackend
from torch.testing import assert_close
from torch.utils.checkpoint import checkpoint

import torch_convbp as bp

pytestmark = pytest.mark.every_device

TABLE = "Transforms"
Results = list[Tensor]


@pytest.fixture(autouse=True)
def nothing_compiled() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def row(name: str, **options: Any) -> pytest.MarkDecorator:
    return pytest.mark.cell(TABLE, name, **options)


def compiled(function: Any, **options: Any) -> Any:
    return torch.compile(function, **{"backend": "aot_eager", "fullgraph": True, **options})


def grown(layer: str, by: int = 0) -> Tensor:
    return LAYERS[layer].input(by + 1, grow=by)


def training(call: Callable[..., Tensor], module: nn.Module, input: Tensor) -> Results:
    """Output of ``call`` and the gradients of input and parameters."""
    leaves = [input.detach().requires_grad_(), *module.parameters()]
    output = call(leaves[0])
    delta = normal(tuple(output.shape), output.dtype, 9)
    return [output.detach(), *torch.autograd.grad(output, leaves, delta)]


def assert_trains_as_torchs(
    layer: str, of_module: Callable[[nn.Module], Any], input: Tensor, **bounds: Any
) -> None:
    """of_module(ours), compiled, against of_module(torch's), not compiled."""
    ours, theirs = LAYERS[layer].make(input.dtype), LAYERS[layer].torchs(input.dtype)
    actual = training(compiled(of_module(ours)), ours, input)
    for a, b in zip(actual, training(of_module(theirs), theirs, input), strict=True):
        assert_close(a, b, **bounds)


# --- training and inference -----------------------------------------------------------------


@row("torch.compile: training")
@every()
def test_training(layer: str) -> None:
    assert_trains_as_torchs(layer, lambda module: module, grown(layer))


@row("torch.compile: inference")
@every()
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_inference(layer: str, mode: Any) -> None:
    with mode():
        output = compiled(LAYERS[layer].make().eval())(grown(layer))
        assert_close(output, LAYERS[layer].torchs().eval()(grown(layer)))


# Generating and compiling C++ takes a quarter of a minute a layer.
GENERATED = [
    pytest.param(layer, id=layer, marks=[] if layer == "max_pool2d" else pytest.mark.slow)
    for layer in LAYERS
]


@row("torch.compile: code from Inductor")
@pytest.mark.parametrize("layer", GENERATED)
def test_inductor(layer: str) -> None:
    def model(module: nn.Module) -> Callable[[Tensor], Tensor]:
        return lambda input: module(input.square()) + 1

    ours, theirs = LAYERS[layer].make(), LAYERS[layer].torchs()
    step = compiled(model(ours), backend="inductor", dynamic=True)
    for by in (0, 2):
        actual = training(step, ours, grown(layer, by))
        for a, b in zip(actual, training(model(theirs), theirs, grown(layer, by)), strict=True):
            assert_close(a, b)


# --- sizes ----------------------------------------------------------------------------------


def growing(input: Tensor) -> list[int]:
    return [d for d in range(input.dim()) if d != 1]


@row("torch.compile: dynamic sizes, compiled once")
@every()
@pytest.mark.parametrize("how", ["dynamic=True", "mark_dynamic"])
def test_dynamic_sizes(layer: str, how: str) -> None:
    """mark_dynamic raises where a size becomes a constant; the stance, where one is guarded."""
    ours, theirs = LAYERS[layer].make(), LAYERS[layer].torchs()
    step = compiled(ours, dynamic=True if how == "dynamic=True" else None)

    def marked(input: Tensor) -> Tensor:
        if how == "mark_dynamic":
            torch._dynamo.mark_dynamic(input, growing(input))
        return step(input)

    for by, stance in ((0, "default"), (3, "fail_on_recompile"), (8, "fail_on_recompile")):
        with torch.compiler.set_stance(stance):
            actual = training(marked, ours, grown(layer, by))
        for a, b in zip(actual, training(theirs, theirs, grown(layer, by)), strict=True):
            assert_close(a, b)


@row("torch.compile: as few recompilations as torch's")
@every()
def test_recompilations(layer: str) -> None:
    counts = []
    for module in (LAYERS[layer].make(), LAYERS[layer].torchs()):
        torch._dynamo.reset()
        counter = CompileCounterWithBackend("aot_eager")
        step = compiled(module, backend=counter)
        for batch in (3, 4, 5, 1, 7, 2, 16):
            training(step, module, LAYERS[layer].input(batch=batch))
        counts.append(counter.frame_count)
    ours, theirs = counts
    assert ours <= theirs


# --- together with ... ----------------------------------------------------------------------


@row("torch.compile: channels_last")
@every("conv2d", "conv2d + activation", "max_pool2d", "avg_pool2d")
def test_channels_last(layer: str) -> None:
    input = in_layout(grown(layer), "channels_last")
    whole = {"memory_format": torch.channels_last}
    assert_trains_as_torchs(layer, lambda module: module.to(**whole), input, check_stride=True)


@row("torch.compile: autocast")
@every()
def test_autocast(layer: str) -> None:
    """The output's dtype is torch's; what the products of bfloat16 numbers round to may differ."""

    def under_autocast(module: nn.Module) -> Callable[[Tensor], Tensor]:
        def call(input: Tensor) -> Tensor:
            with torch.autocast("cpu", dtype=torch.bfloat16):
                return module(input)

        return call

    input = grown(layer).float()
    # A gradient sums tens of products, each rounded to 8 bits.
    assert_trains_as_torchs(layer, under_autocast, input, rtol=2**-6, atol=2**-5)


@row("torch.compile: checkpointing")
@every()
def test_checkpointing(layer: str) -> None:
    def checkpointed(module: nn.Module) -> Callable[[Tensor], Tensor]:
        return lambda input: checkpoint(module, input.sin(), use_reentrant=False).exp()

    assert_trains_as_torchs(layer, checkpointed, grown(layer))


@row("compiled autograd")
@every()
@pytest.mark.parametrize("forward", ["eager", "compiled"])
def test_compiled_autograd(layer: str, forward: str) -> None:
    ours, theirs = LAYERS[layer].make(), LAYERS[layer].torchs()
    step = compiled(ours) if forward == "compiled" else ours
    with compiled_autograd._enable(torch.compile(backend="aot_eager", fullgraph=True)):
        input = grown(layer).requires_grad_()
        output = step(input)
        output.backward(torch.ones_like(output))
    expected = grown(layer).requires_grad_()
    theirs(expected).sum().backward()
    pairs = zip((input, *ours.parameters()), (expected, *theirs.parameters()), strict=True)
    for a, b in pairs:
        assert_close(a.grad, b.grad)


@row("torch.compile: a backend without our operators (decompositions)")
@every()
def test_decompositions(layer: str) -> None:
    """aot_autograd, as backends use it: graphs of ATen alone arrive, forward and backward."""
    targets: list[str] = []

    def compiler(graph: torch.fx.GraphModule, _: Any) -> Any:
        targets.extend(str(node.target) for node in graph.graph.nodes if node.op == "call_function")
        return graph

    backend = aot_autograd(fw_compiler=compiler, decompositions=bp.decompositions())
    ours, theirs = LAYERS[layer].make(), LAYERS[layer].torchs()
    step = compiled(ours, backend=backend, dynamic=True)
    for by, stance in ((0, "default"), (3, "fail_on_recompile")):
        with torch.compiler.set_stance(stance):
            actual = training(step, ours, grown(layer, by))
        for a, b in zip(actual, training(theirs, theirs, grown(layer, by)), strict=True):
            assert_close(a, b)
    assert len(targets) > 1 and not any("torch_convbp" in target for target in targets)


# --- torch.func -----------------------------------------------------------------------------


def cubes(module: nn.Module) -> Callable[[Tensor], Tensor]:
    return lambda input: module(input).pow(3).sum()


def per_sample(module: nn.Module, input: Tensor) -> Any:
    def loss(parameters: dict[str, Tensor], sample: Tensor) -> Tensor:
        return torch.func.functional_call(module, parameters, (sample[None],)).pow(3).sum()

    parameters = dict(module.named_parameters())
    both = torch.vmap(torch.func.grad(loss, argnums=(0, 1)), in_dims=(None, 0))
    by_parameters, by_input = both(parameters, input)
    return [by_input, *by_parameters.values()]


FUNC: dict[str, Callable[[nn.Module, Tensor], Any]] = {
    "grad": lambda module, input: torch.func.grad(cubes(module))(input),
    "vjp": lambda module, input: torch.func.vjp(module, input)[1](module(input)),
    "jvp": lambda module, input: [
        torch.func.jvp(module, (input,), (input.cos(),)),
        torch.func.jvp(lambda t: module(t.sin()).exp(), (input,), (input.cos(),)),
    ],
    "jvp(jvp)": lambda module, input: torch.func.jvp(
        lambda t: torch.func.jvp(module, (t,), (t.cos(),))[1], (input,), (input.sin(),)
    ),
    "vmap": lambda module, input: torch.vmap(lambda t: module(t))(
        torch.stack([input, input.cos()])
    ),
    "vmap(grad)": per_sample,
    "jacrev": lambda module, input: torch.func.jacrev(module)(input),
    "jacfwd": lambda module, input: torch.func.jacfwd(module)(input),
    "hessian": lambda module, input: torch.func.hessian(cubes(module))(input[:1]),
    "grad(grad)": lambda module, input: torch.func.grad(
        lambda t: torch.func.grad(cubes(module))(t).square().sum()
    )(input),
}


@every()
@pytest.mark.parametrize(
    "transform",
    [
        pytest.param(name, marks=row(f"torch.compile of torch.func.{name}"), id=name)
        for name in FUNC
    ],
)
def test_torch_func(layer: str, transform: str) -> None:
    ours, theirs = LAYERS[layer].make(), LAYERS[layer].torchs()
    expected = FUNC[transform](theirs, grown(layer))
    # Relative to the whole: products of Jacobians cancel, and the order of sums differs.
    for run in (lambda f: f, compiled):
        actual = run(lambda input: FUNC[transform](ours, input))(grown(layer))
        assert_close(actual, expected, rtol=1e-7, atol=1e-9)


@row("torch.compile: double backward", refused=True)
@every()
def test_double_backward(layer: str) -> None:
    """torch's compiler says so of every operator."""
    input = grown(layer).requires_grad_()
    output = compiled(LAYERS[layer].make())(input).pow(3).sum()
    (grad,) = torch.autograd.grad(output, input, create_graph=True)
    with pytest.raises(RuntimeError, match="does not currently support double backward"):
        grad.square().sum().backward()
