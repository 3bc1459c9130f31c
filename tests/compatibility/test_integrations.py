"""torch_convbp.integrations: what each library makes of a converted model, held against what it
makes of the model itself. A library that is not installed is skipped; `pip install
torch_convbp[integrations]` has them all."""

from __future__ import annotations

import copy
import io
import json
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from cases import normal
from torch import Tensor, nn
from twins import assert_close

import torch_convbp as bp
from torch_convbp import integrations

LIBRARIES = ("opacus", "backpack", "captum", "fvcore", "ptflops", "torch_pruning", "calflops")


def library(name: str) -> Any:
    return pytest.importorskip(name, reason=f"{name} is not installed")


class Network(nn.Module):
    """Convolutions of every kind, activations that a convolution can compute, pools, dense layers;
    all of them are kinds that Captum and BackPACK know."""

    def __init__(self, *convolutions: nn.Conv2d, activation: Callable[[], nn.Module] = nn.ReLU):
        super().__init__()
        blocks = [nn.Sequential(convolution, activation()) for convolution in convolutions]
        self.features = nn.Sequential(blocks[0], nn.MaxPool2d(2), *blocks[1:])
        self.last = nn.AvgPool2d(2)
        self.dense = nn.Sequential(nn.LazyLinear(7), nn.Tanh(), nn.Linear(7, 5))

    def forward(self, input: Tensor) -> Tensor:
        return self.dense(self.last(self.features(input)).flatten(1))


PLAIN = dict(kernel_size=3, padding=1)
KINDS: dict[str, dict[str, Any]] = {
    "plain": PLAIN,
    "without a bias": PLAIN | dict(bias=False),
    "stride, dilation": dict(kernel_size=(3, 2), padding=(2, 1), stride=(1, 2), dilation=(2, 1)),
    "groups": PLAIN | dict(groups=2),
    "valid": dict(kernel_size=3, padding="valid"),
    "same": dict(kernel_size=(2, 3), padding="same", dilation=(1, 2)),
    "circular": PLAIN | dict(padding_mode="circular"),
    "reflect": PLAIN | dict(padding_mode="reflect", groups=2),
    "replicate": PLAIN | dict(padding_mode="replicate", stride=2),
}


def network(*kinds: str, dtype: torch.dtype = torch.float64, **options: Any) -> nn.Module:
    torch.manual_seed(0)
    convolutions = [nn.Conv2d(4, 4, **KINDS[kind]) for kind in kinds]
    model = Network(*convolutions, **options).to(dtype).eval()
    model(images(dtype=dtype))  # the lazy layer
    return model


def images(batch: int = 5, dtype: torch.dtype = torch.float64) -> Tensor:
    return normal((batch, 4, 12, 14), dtype, 1)


CONVERSIONS: dict[str, dict[str, Any]] = {
    "convolutions": {},
    "all": dict(pooling=True, dense=True),
    "fused": dict(pooling=True, dense=True, fuse_activations=True),
}
every_conversion = pytest.mark.parametrize("conversion", CONVERSIONS)
every_kind = pytest.mark.parametrize("kind", KINDS)


def converted(model: nn.Module, conversion: str) -> nn.Module:
    return bp.convert(copy.deepcopy(model), **CONVERSIONS[conversion])


def with_own_activations(model: nn.Module) -> nn.Module:
    """The same model, whose convolutions and first dense layer end with their activations."""
    model = converted(model, "all")
    for block in [*model.features, model.dense]:
        if isinstance(block, nn.Sequential):
            block[0].activation, block[1] = block[1], nn.Identity()
    return model


# --- what is imported -------------------------------------------------------------------------


def test_nothing_is_imported_before_it_is_asked_for() -> None:
    script = """
        import json, sys, torch_convbp
        before = list(sys.modules)
        import torch_convbp.integrations
        print(json.dumps([before, list(sys.modules)]))
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], check=True, capture_output=True, text=True
    )
    before, after = json.loads(done.stdout)
    assert "torch_convbp.integrations" in {*after} - {*before}
    assert not {*LIBRARIES, "torchao"} & {*after}


# --- Opacus -----------------------------------------------------------------------------------


def loop_over_samples(model: nn.Module, input: Tensor) -> list[Tensor]:
    """The gradients of each sample's loss by each parameter, [N, ...]."""
    rows = []
    for sample in input:
        loss = model(sample[None]).pow(3).sum()
        rows.append(torch.autograd.grad(loss, list(model.parameters())))
    return [torch.stack(column) for column in zip(*rows, strict=True)]


def opacus_gradients(model: nn.Module, input: Tensor) -> list[Tensor]:
    from opacus import GradSampleModule

    integrations.opacus()
    wrapped = GradSampleModule(model.train(), loss_reduction="sum")
    wrapped(input).pow(3).sum().backward()
    return [parameter.grad_sample for parameter in model.parameters() if parameter.requires_grad]


@every_conversion
@every_kind
def test_opacus(kind: str, conversion: str) -> None:
    library("opacus")
    model = network(kind, "plain")
    ours = opacus_gradients(converted(model, conversion), images())
    assert_close(ours, loop_over_samples(model, images()))


@pytest.mark.parametrize("activation", [nn.ReLU, nn.SiLU, nn.GELU], ids=lambda a: a.__name__)
@every_kind
def test_opacus_with_activations_of_the_layers_own(kind: str, activation: Any) -> None:
    library("opacus")
    model = network(kind, "plain", activation=activation)
    ours = opacus_gradients(with_own_activations(model), images())
    assert_close(ours, loop_over_samples(model, images()))


def test_opacus_of_a_batch_without_samples() -> None:
    """Poisson sampling draws such batches."""
    library("opacus")
    model = converted(network("groups", "circular"), "all")
    ours = opacus_gradients(model, images(batch=0))
    assert [g.shape for g in ours] == [(0, *p.shape) for p in model.parameters()]


def test_opacus_leaves_frozen_parameters_alone() -> None:
    library("opacus")
    model = converted(network("plain"), "convolutions")
    convolution = model.features[0][0]
    convolution.weight.requires_grad_(False)
    opacus_gradients(model, images())
    assert not hasattr(convolution.weight, "grad_sample")
    assert convolution.bias.grad_sample.shape == (5, 4)


@pytest.mark.parametrize("mode", ["hooks", "ghost", "functorch"])
@every_conversion
def test_a_private_training_step(mode: str, conversion: str) -> None:
    """The validator accepts the layers, and clipped steps without noise are the same."""
    library("opacus")
    from opacus import PrivacyEngine
    from opacus.validators import ModuleValidator
    from torch.utils.data import DataLoader, TensorDataset

    integrations.opacus()
    data = TensorDataset(images(), torch.tensor([0, 1, 2, 3, 4]))
    trained = []
    model = network("plain", "same").train()
    for each in (model, converted(model, conversion)):
        assert not ModuleValidator.validate(each)
        private, optimizer, *criterion, loader = PrivacyEngine().make_private(
            module=each,
            optimizer=torch.optim.SGD(each.parameters(), lr=0.1),
            criterion=nn.CrossEntropyLoss(),
            data_loader=DataLoader(data, batch_size=5),
            noise_multiplier=0.0,
            max_grad_norm=0.5,
            grad_sample_mode=mode,
            poisson_sampling=False,
        )
        loss = criterion[0] if criterion else nn.CrossEntropyLoss()
        for input, target in loader:
            optimizer.zero_grad()
            loss(private(input), target).backward()
            optimizer.step()
        trained.append([parameter.detach().clone() for parameter in each.parameters()])
    assert_close(*trained)


# --- BackPACK ---------------------------------------------------------------------------------

EXTENSIONS = (
    "BatchGrad", "BatchL2Grad", "SumGradSquared", "Variance", "DiagGGNExact", "DiagGGNMC",
    "BatchDiagGGNExact", "BatchDiagGGNMC", "DiagHessian", "BatchDiagHessian", "KFAC", "KFLR",
    "KFRA", "SqrtGGNExact", "SqrtGGNMC", "HMP", "GGNMP", "PCHMP",
)  # fmt: skip

# BackPACK's own message, but for BatchL2Grad, whose numbers are wrong.
REFUSE_GROUPS = dict.fromkeys(("KFAC", "KFLR", "KFRA"), "groups ≠ 1 is not supported") | {
    "BatchL2Grad": "BatchL2Grad is wrong for groups=2"
}


def backpack_results(model: nn.Module, extension: Any) -> Any:
    """What the extension finds for each parameter; matrices as products with random vectors."""
    import backpack

    loss = backpack.extend(nn.CrossEntropyLoss())
    # A flattening by module, and all in a row: extensions of second order see modules alone.
    chain = nn.Sequential(model.features, model.last, nn.Flatten(), model.dense)
    output = backpack.extend(chain)(images())
    torch.manual_seed(1)  # the extensions named MC draw numbers
    with backpack.backpack(extension):
        loss(output, torch.tensor([0, 1, 2, 3, 4])).backward()
    found = [getattr(parameter, extension.savefield) for parameter in model.parameters()]
    if callable(found[0]):
        vectors = [normal((2, *p.shape), p.dtype, 2) for p in model.parameters()]
        found = [product(v) for product, v in zip(found, vectors, strict=True)]
    return found


@pytest.fixture
def double() -> Iterator[None]:
    """BackPACK makes tensors of the default dtype, for average pools."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("kind", ["plain", "stride, dilation", "groups", "without a bias"])
@pytest.mark.parametrize("name", EXTENSIONS)
def test_backpack(name: str, kind: str) -> None:
    library("backpack")
    from backpack import extensions

    extension = getattr(extensions, name)
    model = network(kind, "plain", activation=nn.Sigmoid)
    for conversion in ("convolutions", "fused"):
        ours = integrations.backpack(extension())
        if kind == "groups" and name in REFUSE_GROUPS:
            with pytest.raises(NotImplementedError, match=REFUSE_GROUPS[name]):
                backpack_results(converted(model, conversion), ours)
        else:
            theirs = backpack_results(copy.deepcopy(model), extension())
            assert_close(backpack_results(converted(model, conversion), ours), theirs)


WRONG = {
    "same": (lambda: converted(network("same"), "all"), "padding='same'"),
    "circular": (lambda: converted(network("circular"), "all"), "padding_mode='circular'"),
    "activation": (lambda: with_own_activations(network("plain")), "with activation tanh"),
}


@pytest.mark.parametrize("name", WRONG)
def test_backpack_refuses_what_it_gets_wrong(name: str) -> None:
    library("backpack")
    from backpack.extensions import BatchGrad

    make, said = WRONG[name]
    extension = integrations.backpack(integrations.backpack(BatchGrad()))  # twice does no harm
    with pytest.raises(NotImplementedError, match=said):
        backpack_results(make(), extension)


def test_backpack_refuses_what_is_no_extension() -> None:
    library("backpack")
    from backpack.extensions import BatchGrad

    with pytest.raises(TypeError, match=r"'extension' must be an extension .* but got <class"):
        integrations.backpack(BatchGrad)


# --- Captum -----------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:Setting backward hooks on ReLU")
@every_conversion
def test_captum(conversion: str) -> None:
    library("captum")
    from captum.attr import LRP

    integrations.captum()
    model = network("groups", "circular", "stride, dilation")
    theirs = LRP(copy.deepcopy(model)).attribute(images(), target=2)
    assert_close(LRP(converted(model, conversion)).attribute(images(), target=2), theirs)


@pytest.mark.filterwarnings("ignore:\\s*Setting forward, backward hooks")
@every_conversion
def test_captums_deep_lift(conversion: str) -> None:
    library("captum")
    from captum.attr import DeepLift

    integrations.captum()
    model = network("groups", "circular", activation=nn.Sigmoid)
    theirs = DeepLift(copy.deepcopy(model)).attribute(images(), target=2)
    assert_close(DeepLift(converted(model, conversion)).attribute(images(), target=2), theirs)


@every_conversion
def test_captums_gradients_of_samples(conversion: str) -> None:
    """As TracInCP takes them; Captum's own are wrong for groups and padding modes."""
    library("captum")
    from captum._utils.sample_gradient import SampleGradientWrapper

    integrations.captum()
    model = network("groups", "circular", "same")
    ours = converted(model, conversion)
    wrapper = SampleGradientWrapper(ours)
    wrapper.add_hooks()
    loss = ours(images().requires_grad_()).pow(3).sum()
    wrapper.compute_param_sample_gradients(loss, loss_mode="sum")
    found = [parameter.sample_grad for parameter in ours.parameters()]
    assert_close(found, loop_over_samples(model, images()))


def test_captum_refuses_activations_of_the_layers_own_and_leaves_them() -> None:
    library("captum")
    from captum.attr import LRP

    integrations.captum()
    model = with_own_activations(network("plain"))
    model.features[0][1] = nn.ReLU()  # Captum has no rule for nn.Identity
    model.dense[1] = nn.ReLU()
    with pytest.raises(AttributeError, match="activation relu") as raised:
        LRP(model).attribute(images(), target=2)
    assert "Captum's LRP knows layers without an activation" in str(raised.value.__context__)
    assert str(model.features[0][0].activation) == "relu"


# --- counters of operations -------------------------------------------------------------------


def fvcores(name: str) -> Callable[[nn.Module, Tensor], Any]:
    def count(model: nn.Module, input: Tensor) -> Any:
        import fvcore.nn

        analysis = getattr(fvcore.nn, name)(model, input)
        analysis = integrations.fvcore(analysis).unsupported_ops_warnings(False)
        return analysis.total(), analysis.by_operator()

    return count


def ptflops_of(backend: str) -> Callable[[nn.Module, Tensor], Any]:
    def count(model: nn.Module, input: Tensor) -> Any:
        from ptflops import get_model_complexity_info

        return get_model_complexity_info(
            model,
            tuple(input.shape[1:]),
            as_strings=False,
            print_per_layer_stat=False,
            custom_modules_hooks=integrations.ptflops_hooks(),
            backend=backend,
            backend_specific_config={"count_functional": False},
        )

    return count


def torch_prunings(model: nn.Module, input: Tensor) -> Any:
    from torch_pruning.utils import count_ops_and_params

    integrations.torch_pruning()
    return count_ops_and_params(model, input)


def calflops_of(model: nn.Module, input: Tensor) -> Any:
    from calflops import calculate_flops

    integrations.calflops()
    with redirect_stdout(io.StringIO()):
        return calculate_flops(model, tuple(input.shape), output_as_string=False)


COUNTERS = {
    "fvcore, operations": ("fvcore", fvcores("FlopCountAnalysis")),
    "fvcore, activations": ("fvcore", fvcores("ActivationCountAnalysis")),
    "ptflops, modules": ("ptflops", ptflops_of("pytorch")),
    "ptflops, operators": ("ptflops", ptflops_of("aten")),
    "Torch-Pruning": ("torch_pruning", torch_prunings),
    "calflops": ("calflops", calflops_of),
}


# calflops does not count a layer's own activation.
COUNTED = [
    (counter, conversion)
    for counter in COUNTERS
    for conversion in (*CONVERSIONS, "own activations")
    if (counter, conversion) != ("calflops", "own activations")
]


@pytest.mark.parametrize(("counter", "conversion"), COUNTED)
def test_counters(counter: str, conversion: str) -> None:
    name, count = COUNTERS[counter]
    library(name)
    own = conversion == "own activations"
    # No "same": fvcore does not count nn.Conv2d with it.
    kinds = ("plain", "stride, dilation", "groups", "circular", "without a bias")
    model = network(*kinds, dtype=torch.float32)
    input = images(batch=1, dtype=torch.float32)
    ours = with_own_activations(model) if own else converted(model, conversion)
    counted = count(ours, input)
    assert counted == count(model, input)
    total = counted[0] if isinstance(counted, tuple) else counted
    assert total > 0


def test_fvcore_refuses_another_analysis() -> None:
    library("fvcore")
    with pytest.raises(TypeError, match=r"must be a FlopCountAnalysis or .* not int"):
        integrations.fvcore(1)


# --- what is wrong with torch's layers, or fails ----------------------------------------------


def test_a_step_inside_autocast_counts_at_once() -> None:
    """Autocast keeps its casts of torch's weights until its end; ours are cast in each call."""
    layer, input = bp.ConvBP2d(4, 6, 3), images(dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        layer(input).float().sum().backward()
        with torch.no_grad():
            for parameter in layer.parameters():
                parameter.zero_()
        assert not layer(input).any()


def test_traced_under_autocast() -> None:
    layer, input = bp.ConvBP2d(4, 6, 3), images(dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        traced = torch.jit.trace(layer, input)
        assert torch.equal(traced(input), layer(input))


def test_fx_leaves_a_convolution_alone_that_it_would_fold_twice() -> None:
    from torch.fx.experimental.optimization import fuse

    class UsedTwice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.convolution, self.norm = bp.ConvBP2d(4, 4, 3), nn.BatchNorm2d(4)

        def forward(self, input: Tensor) -> Tensor:
            return self.norm(self.convolution(input)) + self.convolution(input)

    model = UsedTwice().double()
    model(images())  # statistics to fold
    model.eval()
    assert torch.equal(fuse(model)(images()), model(images()))


# --- quantisation -----------------------------------------------------------------------------


def test_a_qconfig_warns() -> None:
    layer = bp.ConvBP2d(3, 4, 3)
    with pytest.warns(UserWarning, match=r"ConvBP2d: .*torch_convbp.revert\(model\)"):
        layer.qconfig = object()
    with pytest.warns(UserWarning, match="LinearBP"):
        bp.LinearBP(3, 4).qconfig = object()


@pytest.mark.filterwarnings("error")
def test_no_qconfig_does_not_warn() -> None:
    layer = bp.ConvBP2d(3, 4, 3)
    layer.qconfig = None
    layer.__dict__["qconfig"] = "set before"
    assert copy.deepcopy(layer).qconfig == "set before"
    bp.MaxPoolBP2d(2).qconfig = "needs none"


@pytest.mark.filterwarnings("ignore:.*reduce_range:UserWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize("way", ["prepare", "prepare_qat", "prepare_fx"])
def test_preparing_a_model_for_quantisation_warns(way: str) -> None:
    quantization = pytest.importorskip("torch.ao.quantization", reason="this torch has it no more")
    model = converted(network("plain", dtype=torch.float32), "all")
    if way == "prepare_fx":
        from torch.ao.quantization.quantize_fx import prepare_fx

        mapping = quantization.get_default_qconfig_mapping("x86")
        arguments = (mapping, (images(dtype=torch.float32),))
        with pytest.warns(UserWarning, match="ConvBP2d: torch.ao.quantization looks for"):
            prepare_fx(model, *arguments)
        return
    qat = way == "prepare_qat"
    model.train(qat)
    model.qconfig = getattr(quantization, f"get_default_{'qat_' if qat else ''}qconfig")("x86")
    with pytest.warns(UserWarning, match="ConvBP2d: torch.ao.quantization looks for"):
        getattr(quantization, way)(model)


def nodes(program: torch.export.ExportedProgram) -> list[str]:
    return [str(node.target) for node in program.graph.nodes if node.op == "call_function"]


def exported(model: nn.Module) -> torch.export.ExportedProgram:
    return torch.export.export(model, (images(dtype=torch.float32),))


@every_conversion
def test_decompositions_give_what_torch_exports(conversion: str) -> None:
    """Quantisers of PT2E look for these operators: aten.conv2d, not aten.convolution."""
    model = network("plain", "groups", dtype=torch.float32)
    ours = exported(converted(model, conversion)).run_decompositions(bp.decompositions())
    theirs = exported(model).run_decompositions({})
    assert nodes(ours) == nodes(theirs)
    assert {f"aten.{n}.default" for n in ("conv2d", "relu", "max_pool2d", "linear")} < {
        *nodes(ours)
    }


@pytest.mark.filterwarnings("ignore")
@every_conversion
def test_torchao_quantises_a_decomposed_model(conversion: str) -> None:
    """As many nodes as of the model itself, and the same numbers after it."""
    library("torchao")
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e
    from torchao.testing.pt2e import _xnnpack_quantizer as xnnpack

    model = network("plain", "groups", "stride, dilation", dtype=torch.float32)
    input = images(dtype=torch.float32)
    counts, outputs = [], []
    for program in (
        exported(converted(model, conversion)).run_decompositions(bp.decompositions()),
        exported(model).run_decompositions({}),
    ):
        quantizer = xnnpack.XNNPACKQuantizer()
        quantizer.set_global(xnnpack.get_symmetric_quantization_config())
        prepared = prepare_pt2e(program.module(), quantizer)
        prepared(input)
        quantised = convert_pt2e(prepared)
        targets = [str(node.target) for node in quantised.graph.nodes]
        counts.append(sum("quantize" in target for target in targets))
        outputs.append(quantised(input))
    assert counts[0] == counts[1] > 2 * 5
    assert F.mse_loss(*outputs) == 0


@pytest.mark.filterwarnings("ignore")
@every_conversion
@pytest.mark.parametrize("dynamic", [False, True], ids=["weights", "activations"])
def test_torchao_quantises_dense_layers(conversion: str, dynamic: bool) -> None:
    """Weights that are tensors of its own: the dense layers run torch's function."""
    library("torchao")
    from torchao import quantization

    kind = "Int8DynamicActivationInt8WeightConfig" if dynamic else "Int8WeightOnlyConfig"
    model = network("plain", dtype=torch.float32)
    both = converted(model, conversion), copy.deepcopy(model)
    outputs = []
    for one in both:
        one.eval()
        quantization.quantize_(one, getattr(quantization, kind)())
        assert type(one.dense[0].weight.data) is not Tensor
        outputs.append(one(images(dtype=torch.float32)))
    # An activation between two of 127 steps may go to the other one.
    step = outputs[1].abs().max().item() / 127 if dynamic else 1e-5
    torch.testing.assert_close(*outputs, rtol=1.3e-6, atol=step)
