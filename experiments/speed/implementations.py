"""The implementations that are compared: for a case and an operator, one function of each side.

"torch" is eager torch, "benchmarked" the same with torch.backends.cudnn.benchmark, "compiled"
torch.compile of the same modules, "ours" torch_convbp, "ours_compiled" torch.compile of it
(of whole networks: a layer alone has nothing that a compiler could add), "apart"
torch_convbp with the activation a module of its own; "auto", "direct", "winograd" and "plain" are
"ours" with that algorithm. All sides of one operator work on the same tensors.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import torch_convbp as bp
from experiments.common import networks
from experiments.speed.cases import ACTIVATIONS, SMALL_PICTURES, Case, Network, Shape
from experiments.speed.options import ALGORITHMS

MEMORY_FORMATS = {"NCHW": torch.contiguous_format, "channels_last": torch.channels_last}
# Where g' jumps, gradients are compared with the g' that the side itself saw.
KINKED = ("relu", "relu6")

Values = tuple[Tensor, ...]
Run = Callable[[], Values]


@dataclass(frozen=True)
class Setup:
    """What is the same for every case; other processes get it too."""

    layout: str
    implementations: tuple[str, ...]
    algorithm: str
    threads: int
    seed: int
    device: str
    precision: str = "float32"
    graphs: bool = False  # calls are recorded as CUDA graphs, then replayed

    @property
    def dtype(self) -> torch.dtype:
        return {"bfloat16": torch.bfloat16, "float16": torch.float16}.get(
            self.precision, torch.float32
        )


def switch(side: str, setup: Setup) -> None:
    """Sets what a side depends on, before it runs."""
    if setup.device == "cpu":
        bp.backends.cpu.conv_algorithm = side if side in ALGORITHMS else setup.algorithm
        return
    bp.backends.cuda.conv_algorithm = setup.algorithm
    torch.backends.cudnn.benchmark = side == "benchmarked"


def set_precision(setup: Setup) -> None:
    """Sets the precision of float32's products on a GPU, for both sides."""
    products = "tf32" if setup.precision == "tf32" else "ieee"
    torch.backends.cudnn.conv.fp32_precision = products  # type: ignore[attr-defined]
    torch.backends.cuda.matmul.fp32_precision = products


@dataclass
class Work:
    """One operator of one case: what each side runs, and what float64 says to its values."""

    runs: dict[str, Run]
    truth: Callable[[Values], Values]
    compared: Callable[[Values], Values] = lambda values: values

    def error(self, values: Values) -> float:
        """Largest difference over largest entry, of the tensor where that is worst."""
        pairs = zip(self.compared(values), self.compared(self.truth(values)), strict=True)
        return max(float((a - b).abs().max() / b.abs().max()) for a, b in pairs)


def work(case: Case, operator: str, setup: Setup) -> Work:
    """Make the tensors and the functions of one operator."""
    torch.manual_seed(setup.seed)
    if isinstance(case, Network):
        made = network_work(case, setup)
    elif case.kind:
        made = pooling_work(case, operator, setup)
    elif operator in ("layer", "block"):
        made = layer_work(case, operator, setup)
    else:
        made = operator_work(case, operator, setup)
    ours = {name: made.runs["ours"] for name in setup.implementations if name in ALGORITHMS}
    runs = made.runs | ours | {"benchmarked": made.runs["torch"]}
    made.runs = {name: runs[name] for name in setup.implementations if name in runs}
    if setup.graphs:
        for name, run in made.runs.items():
            switch(name, setup)
            made.runs[name] = recorded(run)
    return made


def recorded(run: Run) -> Run:
    """A replay of the call's work on the GPU."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):  # warms up: some work is done once
            run()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        values = run()

    def replay() -> Values:
        graph.replay()
        return values

    return replay


def normal(size: Sequence[int], setup: Setup) -> Tensor:
    tensor = torch.randn(*size, device=setup.device, dtype=setup.dtype)
    return tensor.contiguous(memory_format=MEMORY_FORMATS[setup.layout])


def double(*tensors: Tensor) -> list[Tensor]:
    return [tensor.detach().double() for tensor in tensors]


def tensors_of(case: Shape, setup: Setup) -> tuple[Tensor, Tensor, Tensor]:
    """Input, weight and output gradient; the weight such that outputs are about 1."""
    size = (case.filters, case.channels // case.groups, case.kernel, case.kernel)
    weight = normal(size, setup).div_((size[1] * case.kernel**2) ** 0.5)
    input = normal((case.batch, case.channels, case.height, case.width), setup)
    return input, weight, normal(case.output_size, setup)


def backward(
    delta: Tensor, input: Tensor, weight: Tensor, case: Shape, *wanted: bool
) -> tuple[Tensor, ...]:
    """torch's gradients for input, weight and bias, as its autograd calls for them."""
    return torch.ops.aten.convolution_backward(
        delta, input, weight, [case.filters], [case.stride] * 2, [case.padding] * 2,
        [case.dilation] * 2, False, [0, 0], case.groups, wanted,
    )  # fmt: skip


def operator_work(case: Shape, operator: str, setup: Setup) -> Work:
    """The convolution or one of its gradients, without autograd."""
    input, weight, delta = tensors_of(case, setup)
    geometry = (case.stride, case.padding, case.dilation, case.groups)
    ours = {
        "forward": lambda: bp.functional.conv2d(input, weight, None, *geometry),
        "input gradient": lambda: bp.functional.conv2d_input_grad(
            input.shape, weight, delta, *geometry
        ),
        "weight gradient": lambda: bp.functional.conv2d_weight_grad(
            input, weight.shape, delta, *geometry
        ),
    }[operator]

    def theirs(input: Tensor, weight: Tensor, delta: Tensor) -> Tensor:
        if operator == "forward":
            return F.conv2d(input, weight, None, *geometry)
        wanted = [operator == name for name in ("input gradient", "weight gradient")]
        return backward(delta, input, weight, case, *wanted, False)[wanted.index(True)]

    exact = functools.cache(lambda: (theirs(*double(input, weight, delta)),))
    runs: dict[str, Run] = {
        "torch": torch.no_grad()(lambda: (theirs(input, weight, delta),)),
        "ours": torch.no_grad()(lambda: (ours(),)),
    }
    return Work(runs, lambda values: exact())


def layer_work(case: Shape, operator: str, setup: Setup) -> Work:
    """Convolution, bias and activation: as inference ("layer") or with gradients ("block")."""
    input, weight, delta = tensors_of(case, setup)
    geometry = (case.kernel, case.stride, case.padding, case.dilation, case.groups)
    g = getattr(nn, ACTIVATIONS[case.activation])()

    def layer(make: type[nn.Conv2d], **options: Any) -> nn.Conv2d:
        made = make(case.channels, case.filters, *geometry, device=setup.device, **options)
        made = made.to(dtype=setup.dtype, memory_format=MEMORY_FORMATS[setup.layout])  # type: ignore[call-overload]
        with torch.no_grad():
            made.weight.copy_(weight)
            made.bias.copy_(torch.linspace(-1, 1, case.filters))  # type: ignore[union-attr]
        return made

    models: dict[str, nn.Module] = {
        "torch": nn.Sequential(layer(nn.Conv2d), g),
        "apart": nn.Sequential(layer(bp.ConvBP2d), g),
        "ours": layer(bp.ConvBP2d, activation=case.activation),
    }
    if "compiled" in setup.implementations:
        models["compiled"] = compiled(nn.Sequential(layer(nn.Conv2d), g))
    bias = models["ours"].bias

    def block(model: nn.Module) -> Values:
        output = model(input)
        wanted = [*([] if case.first else [input]), *model.parameters()]
        return output.detach(), *torch.autograd.grad(output, wanted, delta)

    @functools.cache
    def exact() -> Tensor:
        x, w, b = double(input, weight, bias)  # type: ignore[arg-type]
        return F.conv2d(x, w, b, *geometry[1:])

    def truth(values: Values) -> Values:
        output = g(exact())
        if operator == "layer":
            return (output,)
        before = values[0].double() if case.activation in KINKED else exact()
        before = before.detach().requires_grad_()
        x, w, d = double(input, weight, delta)
        (d,) = torch.autograd.grad(g(before), before, d)
        gradients = backward(d, x, w, case, not case.first, True, True)
        return output, *gradients[case.first :]

    def layer_forward(model: nn.Module) -> Values:
        return (model(input),)

    input.requires_grad_(operator == "block" and not case.first)
    call = block if operator == "block" else torch.no_grad()(layer_forward)
    runs: dict[str, Run] = {side: functools.partial(call, model) for side, model in models.items()}
    return Work(runs, truth)


def pooling_work(case: Shape, operator: str, setup: Setup) -> Work:
    input = normal((case.batch, case.channels, case.height, case.width), setup)
    pools = {
        side: functools.partial(
            getattr(functions, f"{case.kind}_pool2d"),
            kernel_size=case.kernel,
            stride=case.stride,
            padding=case.padding,
        )
        for side, functions in (("torch", F), ("ours", bp.functional))
    }
    delta = normal(case.output_size, setup)

    def run_of(side: str, input: Tensor, delta: Tensor) -> Run:
        if operator == "forward":
            return torch.no_grad()(lambda: (pools[side](input),))
        input = input.detach().requires_grad_()
        output = pools[side](input)
        return lambda: torch.autograd.grad(output, input, delta, retain_graph=True)

    runs = {side: run_of(side, input, delta) for side in pools}
    return Work(runs, lambda values: run_of("torch", *double(input, delta))())


def mobilenetv2() -> nn.Module:
    import torchvision

    return torchvision.models.mobilenet_v2(num_classes=10, dropout=0.0)


def vgg16() -> nn.Module:
    """VGG-16 as it is used on 32x32 pictures: one dense layer after the convolutions."""
    import torchvision

    features = torchvision.models.vgg16_bn().features
    return nn.Sequential(features, nn.Flatten(), nn.Linear(512, 10))


def torchvisions(name: str) -> nn.Module:
    import torchvision

    return getattr(torchvision.models, name)(num_classes=10)


MODELS: dict[str, Callable[[], nn.Module]] = {
    **{name: functools.partial(torchvisions, name) for name in SMALL_PICTURES},
    "resnet20": lambda: networks.build("resnet20", nn.Conv2d, 10),
    "vgg": lambda: networks.build("vgg", nn.Conv2d, 10),
    "vgg16": vgg16,
    "mobilenetv2": mobilenetv2,
}


def network_work(case: Network, setup: Setup) -> Work:
    """Training steps at a learning rate of 0: the same arithmetic, the same weights every step."""
    input = normal((case.batch, 3, case.pixels, case.pixels), setup)
    labels = torch.randint(10, (case.batch,), device=setup.device)
    original = MODELS[case.model]().to(setup.device)
    original = original.to(memory_format=MEMORY_FORMATS[setup.layout])  # type: ignore[call-overload]
    ours = bp.convert(copy.deepcopy(original), pooling=True, fuse_activations=True)
    models = {"torch": copy.deepcopy(original), "ours": ours}
    if "compiled" in setup.implementations:
        models["compiled"] = compiled(copy.deepcopy(original))
        models["ours_compiled"] = compiled(copy.deepcopy(ours))

    def step_of(model: nn.Module, input: Tensor) -> Run:
        half = input.dtype in (torch.bfloat16, torch.float16)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.0, momentum=0.9)

        def step() -> Values:
            optimizer.zero_grad()
            with torch.autocast(setup.device, input.dtype, enabled=half):
                loss = F.cross_entropy(model(input), labels)
            loss.backward()
            optimizer.step()
            return loss.detach(), *(p.grad for p in model.parameters() if p.grad is not None)

        return step

    return Work(
        {side: step_of(model, input) for side, model in models.items()},
        lambda values: step_of(copy.deepcopy(original).double(), input.double())(),
        # All gradients as one: those that are zero but for rounding have no scale of their own.
        lambda values: (values[0], torch.cat([v.flatten() for v in values[1:]])),
    )


def compiled(model: nn.Module) -> Any:
    torch._dynamo.reset()  # without it, a suite's many shapes end in one program for any shape
    return torch.compile(model)
