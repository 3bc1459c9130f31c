"""Libraries that need not be told of our layers: what they make of a converted model is what they
make of the model itself. docs/integrations.md lists them with their versions."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import pytest
import torch
from cases import normal
from torch import Tensor, nn
from twins import assert_close

import torch_convbp as bp

TARGETS = torch.tensor([0, 1, 2, 3])


def network(norm: bool = True) -> nn.Sequential:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, padding=1, groups=2),
        nn.BatchNorm2d(8) if norm else nn.Identity(),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(8, 6, 1),
        nn.Tanh(),
        nn.AvgPool2d(8),
        nn.Flatten(),
        nn.Linear(6, 4),
    )
    with torch.no_grad():
        model(images(torch.float32))  # the batch norm's statistics
    return model


def images(dtype: torch.dtype = torch.float64, batch: int = 4) -> Tensor:
    return normal((batch, 3, 16, 16), dtype, 1)


def dtype_of(model: nn.Module) -> torch.dtype:
    return next(model.parameters()).dtype


def parameters(model: nn.Module) -> list[Tensor]:
    return [parameter.detach().clone() for parameter in model.parameters()]


def train(model: nn.Module, after: Callable[[], Any] = lambda: None) -> None:
    """Three steps, each followed by ``after``."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(images(dtype_of(model))), TARGETS).backward()
        optimizer.step()
        after()


# --- attributions, attacks --------------------------------------------------------------------


def captums(name: str, layer: int | None = None, **options: Any) -> Callable[[nn.Module], Any]:
    def attribute(model: Any) -> Any:
        from captum import attr

        arguments = (model,) if layer is None else (model, model[layer])
        return getattr(attr, name)(*arguments).attribute(images(), target=1, **options)

    return attribute


def grad_cam(name: str) -> Callable[[nn.Module], Any]:
    def attribute(model: Any) -> Any:
        import pytorch_grad_cam

        cam = getattr(pytorch_grad_cam, name)(model=model.float(), target_layers=[model[2]])
        return torch.from_numpy(cam(input_tensor=images(torch.float32), targets=None))

    return attribute


def zennits(name: str, **options: Any) -> Callable[[nn.Module], Any]:
    def attribute(model: Any) -> Any:
        from zennit import composites
        from zennit.attribution import Gradient
        from zennit.torchvision import SequentialMergeBatchNorm

        canonizers = [SequentialMergeBatchNorm()]
        composite = getattr(composites, name)(canonizers=canonizers, **options)
        with Gradient(model=model, composite=composite) as attributor:
            return attributor(images(), torch.eye(4).double())

    return attribute


def torchattacks_pgd(model: nn.Module) -> Tensor:
    import torchattacks

    attack = torchattacks.PGD(model.float(), random_start=False)
    return attack(images(torch.float32).sigmoid(), TARGETS)


def foolbox_pgd(model: nn.Module) -> Tensor:
    import foolbox

    attack = foolbox.attacks.LinfPGD(random_start=False, steps=5)
    bounded = foolbox.PyTorchModel(model.float(), bounds=(-5, 5))
    return attack(bounded, images(torch.float32), TARGETS, epsilons=0.1)[0]


# --- curvature, meta-learning -----------------------------------------------------------------


def curvlinops(name: str) -> Callable[[nn.Module], Any]:
    def product(model: nn.Module) -> Tensor:
        import curvlinops

        data = [(images(), TARGETS)]
        weights = list(model.parameters())
        matrix = getattr(curvlinops, name)(model, nn.CrossEntropyLoss(), weights, data)
        return matrix @ normal((matrix.shape[1],), torch.float64, 2)

    return product


def laplace(model: nn.Module) -> Tensor:
    from laplace import Laplace
    from torch.utils.data import DataLoader, TensorDataset

    data = DataLoader(TensorDataset(images(torch.float32), TARGETS), batch_size=2)
    found = Laplace(
        model.float(), "classification", subset_of_weights="all", hessian_structure="kron"
    )
    found.fit(data)
    return found(images(torch.float32))


def higher(model: nn.Module) -> list[Tensor]:
    import higher

    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with higher.innerloop_ctx(model, optimizer, copy_initial_weights=False) as (inner, steps):
        steps.step(inner(images()).square().mean())
        inner(images()).square().mean().backward()
    return [parameter.grad for parameter in model.parameters()]


# --- averages, training loops, files ----------------------------------------------------------


def torch_ema(model: nn.Module) -> Tensor:
    from torch_ema import ExponentialMovingAverage

    average = ExponentialMovingAverage(model.parameters(), decay=0.9)
    train(model, average.update)
    with average.average_parameters():
        return model(images())


def timm_ema(model: nn.Module) -> Tensor:
    from timm.utils import ModelEmaV3

    average = ModelEmaV3(model, decay=0.9)
    train(model, lambda: average.update(model))
    return average(images())


def torchs_average(model: nn.Module) -> Tensor:
    average = torch.optim.swa_utils.AveragedModel(model)
    train(model, lambda: average.update_parameters(model))
    return average(images())


def skorch(model: nn.Module) -> list[Tensor]:
    from skorch import NeuralNetClassifier

    classifier = NeuralNetClassifier(
        model.float(),
        criterion=nn.CrossEntropyLoss,
        iterator_train__shuffle=False,
        lr=0.1,
        max_epochs=3,
        train_split=None,
        verbose=0,
    )
    classifier.fit(images(torch.float32).numpy(), TARGETS.numpy())
    return parameters(classifier.module_)


def ignite(model: nn.Module) -> list[Tensor]:
    from ignite.engine import create_supervised_trainer

    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    trainer = create_supervised_trainer(model, optimizer, nn.CrossEntropyLoss())
    trainer.run([(images(), TARGETS)] * 3, max_epochs=1)
    return parameters(model)


def accelerate(model: nn.Module) -> list[Tensor]:
    from accelerate import Accelerator

    accelerator = Accelerator(cpu=True)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model, optimizer = accelerator.prepare(model, optimizer)
    for _ in range(3):
        optimizer.zero_grad()
        accelerator.backward(nn.functional.cross_entropy(model(images()), TARGETS))
        optimizer.step()
    return parameters(model)


def offloaded(model: nn.Module) -> Tensor:
    from accelerate import cpu_offload

    return cpu_offload(model.eval(), execution_device="cpu")(images())


def safetensors(model: nn.Module) -> Tensor:
    from safetensors.torch import load_model, save_model

    save_model(model, "model.safetensors")
    loaded = network().double()
    load_model(loaded, "model.safetensors")
    return loaded(images())


# --- adapters, pruning, quantisation ----------------------------------------------------------


def peft(kind: str, **options: Any) -> Callable[[nn.Module], Any]:
    def adapted(model: nn.Module) -> Any:
        import peft

        config = getattr(peft, kind)(target_modules=["0", "6", "10"], r=2, **options)
        torch.manual_seed(3)
        model = peft.get_peft_model(model, config).double()
        output = model(images())
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        gradients = torch.autograd.grad(output.square().mean(), trained)
        return output, gradients, model.merge_and_unload()(images())

    return adapted


def torch_pruning(model: Any) -> Any:
    import torch_pruning as library

    pruner = library.pruner.MagnitudePruner(
        model.eval(),
        images(),
        importance=library.importance.MagnitudeImportance(p=2),
        pruning_ratio=0.5,
        ignored_layers=[model[-1]],
    )
    pruner.step()
    return model(images()), parameters(model)


def quanto(model: nn.Module) -> Any:
    from optimum.quanto import freeze, qint8, quantize

    model = model.float().eval()
    quantize(model, weights=qint8)
    freeze(model)
    layers = sum(type(layer).__name__ in ("QConv2d", "QLinear") for layer in model.modules())
    assert layers == 4
    return model(images(torch.float32))


# --- counters ---------------------------------------------------------------------------------


def torchinfo(model: nn.Module) -> Tensor:
    from torchinfo import summary

    found = summary(model, input_data=images(), verbose=0)
    return torch.tensor([found.total_mult_adds, found.total_params, found.total_output_bytes])


def thop(model: nn.Module) -> Tensor:
    from thop import profile

    return torch.tensor(profile(model, inputs=(images(),), verbose=False))


# Name -> library, what it makes of a model, and the error that its float32 allows; None in float64.
CHECKS: dict[str, tuple[str, Callable[[nn.Module], Any], float | None]] = {
    "IntegratedGradients": ("captum", captums("IntegratedGradients"), None),
    "Saliency": ("captum", captums("Saliency"), None),
    "GuidedBackprop": ("captum", captums("GuidedBackprop"), None),
    "Deconvolution": ("captum", captums("Deconvolution"), None),
    "LayerGradCam": ("captum", captums("LayerGradCam", 2), None),
    "LayerConductance": ("captum", captums("LayerConductance", 0), None),
    "GradCAM": ("pytorch_grad_cam", grad_cam("GradCAM"), 1e-5),
    "GradCAMPlusPlus": ("pytorch_grad_cam", grad_cam("GradCAMPlusPlus"), 1e-5),
    "HiResCAM": ("pytorch_grad_cam", grad_cam("HiResCAM"), 1e-5),
    "EigenCAM": ("pytorch_grad_cam", grad_cam("EigenCAM"), 1e-5),
    "EpsilonPlus": ("zennit", zennits("EpsilonPlus"), None),
    "EpsilonAlpha2Beta1Flat": ("zennit", zennits("EpsilonAlpha2Beta1Flat"), None),
    "EpsilonGammaBox": ("zennit", zennits("EpsilonGammaBox", low=-3.0, high=3.0), None),
    "torchattacks": ("torchattacks", torchattacks_pgd, 1e-5),
    "foolbox": ("foolbox", foolbox_pgd, 1e-5),
    "Hessian": ("curvlinops", curvlinops("HessianLinearOperator"), None),
    "GGN": ("curvlinops", curvlinops("GGNLinearOperator"), None),
    "laplace": ("laplace", laplace, 1e-5),
    "higher": ("higher", higher, None),
    "torch-ema": ("torch_ema", torch_ema, None),
    "ModelEmaV3": ("timm", timm_ema, None),
    "AveragedModel": ("torch", torchs_average, None),
    "skorch": ("skorch", skorch, 1e-5),
    "ignite": ("ignite", ignite, None),
    "accelerate": ("accelerate", accelerate, None),
    "cpu_offload": ("accelerate", offloaded, None),
    "safetensors": ("safetensors", safetensors, None),
    "LoRA": ("peft", peft("LoraConfig", init_lora_weights=False), None),
    "DoRA": ("peft", peft("LoraConfig", init_lora_weights=False, use_dora=True), None),
    "LoHa": ("peft", peft("LoHaConfig", init_weights=False), None),
    "Torch-Pruning": ("torch_pruning", torch_pruning, None),
    "optimum-quanto": ("optimum.quanto", quanto, 1e-5),
    "torchinfo": ("torchinfo", torchinfo, 0.0),
    "thop": ("thop", thop, 0.0),
}

# torch.func refuses a batch norm's running statistics, laplace a batch norm.
WITHOUT_NORM = ("Hessian", "GGN", "laplace")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", CHECKS)
def test_a_library_makes_the_same_of_it(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    library, check, error = CHECKS[name]
    pytest.importorskip(library, reason=f"{library} is not installed")
    monkeypatch.chdir(tmp_path)
    model = network(norm=name not in WITHOUT_NORM).double()
    ours = bp.convert(copy.deepcopy(model), pooling=True, dense=True, fuse_activations=True)
    with redirect_stdout(io.StringIO()):
        found = [check(each) for each in (ours, model)]
    assert_close(*found, error)
