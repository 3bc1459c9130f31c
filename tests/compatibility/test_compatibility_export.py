"""Table "Transforms", the part of torch.export, ONNX, AOTInductor, torch.jit and torch.fx."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from cases import normal
from layers import LAYERS, every
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from twins import assert_close, gradients

import torch_convbp as bp

TABLE = "Transforms"


def row(name: str, **options: Any) -> pytest.MarkDecorator:
    return pytest.mark.cell(TABLE, name, **options)


def input_of(layer: str, by: int = 0) -> Tensor:
    return LAYERS[layer].input(by + 1, torch.float32, grow=by)


def assert_same_gradients(one: nn.Module, other: nn.Module, input: Tensor) -> None:
    assert_close(*(gradients(module, input.detach().requires_grad_()) for module in (one, other)))


def exported(layer: str, strict: bool = False) -> ExportedProgram:
    """The layer for any batch, even of 0, any height and width; raises were they bounded."""
    input = input_of(layer)
    sizes = {d: Dim(f"size_{d}", min=3 if d else 0) for d in range(input.dim()) if d != 1}
    module = LAYERS[layer].make(torch.float32).eval()
    return torch.export.export(module, (input,), dynamic_shapes=(sizes,), strict=strict)


def torchs(layer: str) -> nn.Module:
    return LAYERS[layer].torchs(torch.float32).eval()


def operators(program: ExportedProgram) -> list[Any]:
    return [
        node.target
        for node in program.graph.nodes
        if isinstance(node.target, torch._ops.OpOverload)
    ]


def are_ours(targets: list[Any]) -> list[bool]:
    return [target.namespace == "torch_convbp" for target in targets]


# --- torch.export ---------------------------------------------------------------------------


@row("torch.export: keeps the operator, any batch, height and width")
@every()
@pytest.mark.parametrize("strict", [False, True], ids=["non-strict", "strict"])
def test_export(layer: str, strict: bool) -> None:
    program = exported(layer, strict=strict)
    assert all(are_ours(operators(program))) and operators(program)
    for by in (0, 4):
        assert_close(program.module()(input_of(layer, by)), torchs(layer)(input_of(layer, by)))


@row("torch.export: the program's gradients")
@every()
def test_training_an_exported_program(layer: str) -> None:
    assert_same_gradients(exported(layer).module(), torchs(layer), input_of(layer, 2))


@row("torch.export: decomposed to ATen (bp.decompositions())")
@every()
def test_decomposed(layer: str) -> None:
    program = exported(layer).run_decompositions(bp.decompositions())
    assert not any(are_ours(operators(program))) and operators(program)
    for by in (0, 4):
        assert_close(program.module()(input_of(layer, by)), torchs(layer)(input_of(layer, by)))


@row("torch.export: decomposed to core ATen")
@every()
def test_core_aten(layer: str) -> None:
    table = torch.export.default_decompositions()
    table.update(bp.decompositions())
    program = exported(layer).run_decompositions(table)
    targets = operators(program)
    assert targets and all(torch.Tag.core in target.tags for target in targets), targets
    assert_close(program.module()(input_of(layer, 4)), torchs(layer)(input_of(layer, 4)))


# --- in another process ---------------------------------------------------------------------

# Loads the file of each folder, runs its example, and writes the error, or null.
RUN = """
import json, os, sys, torch
importing, *folders = sys.argv[1:]
if importing == "True":
    import torch_convbp
results = {}
for folder in folders:
    try:
        if os.path.exists(folder + "/package.pt2"):
            program = torch._inductor.aoti_load_package(folder + "/package.pt2")
        else:
            program = torch.export.load(folder + "/program.pt2").module()
        input, expected = torch.load(folder + "/example.pt")
        torch.testing.assert_close(program(input), expected)
        results[folder] = None
    except Exception as error:
        results[folder] = f"{type(error).__name__}: {error}"
assert ("torch_convbp" in sys.modules) == (importing == "True")
print(json.dumps(results))
"""


def in_a_fresh_process(folders: dict[str, Path], importing: bool) -> tuple[dict[str, Any], str]:
    """Each layer's error, None where there was none; and what torch logged."""
    done = subprocess.run(
        [sys.executable, "-c", RUN, str(importing), *map(str, folders.values())],
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    results = json.loads(done.stdout.splitlines()[-1])
    return {layer: results[str(folder)] for layer, folder in folders.items()}, done.stderr


def saved(folder: Path, save: Callable[[ExportedProgram, Path], Any], **changes: Any) -> Any:
    """Each layer's program in a folder of its own, beside an example of its use."""
    folders = {}
    for i, layer in enumerate(LAYERS):
        folders[layer] = folder / str(i)
        folders[layer].mkdir()
        program = exported(layer)
        if changes.get("decomposed"):
            program = program.run_decompositions(bp.decompositions())
        save(program, folders[layer])
        input = input_of(layer, 4)
        with torch.no_grad():
            torch.save((input, torchs(layer)(input)), folders[layer] / "example.pt")
    return folders


def program_file(program: ExportedProgram, folder: Path) -> None:
    torch.export.save(program, folder / "program.pt2")


def package_file(program: ExportedProgram, folder: Path) -> None:
    torch._inductor.aoti_compile_and_package(program, package_path=str(folder / "package.pt2"))


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return saved(tmp_path_factory.mktemp("programs"), program_file)


@pytest.fixture(scope="module")
def loaded(programs: dict[str, Path]) -> tuple[dict[str, Any], str]:
    return in_a_fresh_process(programs, importing=True)


@pytest.fixture(scope="module")
def loaded_without(programs: dict[str, Path]) -> tuple[dict[str, Any], str]:
    return in_a_fresh_process(programs, importing=False)


@pytest.fixture(scope="module")
def loaded_decomposed(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], str]:
    folder = tmp_path_factory.mktemp("decomposed")
    return in_a_fresh_process(saved(folder, program_file, decomposed=True), importing=False)


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return saved(tmp_path_factory.mktemp("packages"), package_file)


@pytest.fixture(scope="module")
def packages_loaded(packages: dict[str, Path]) -> tuple[dict[str, Any], str]:
    return in_a_fresh_process(packages, importing=True)


@pytest.fixture(scope="module")
def packages_loaded_without(packages: dict[str, Path]) -> tuple[dict[str, Any], str]:
    return in_a_fresh_process(packages, importing=False)


@pytest.fixture(scope="module")
def packages_loaded_decomposed(
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[dict[str, Any], str]:
    folder = tmp_path_factory.mktemp("decomposed_packages")
    return in_a_fresh_process(saved(folder, package_file, decomposed=True), importing=False)


Loaded = tuple[dict[str, Any], str]


@row("torch.export: saved, loaded in another process")
@every()
def test_loaded(layer: str, loaded: Loaded) -> None:
    errors, _ = loaded
    assert errors[layer] is None


@row("torch.export: the same without importing torch_convbp", refused=True)
@every()
def test_loaded_without_importing_torch_convbp(layer: str, loaded_without: Loaded) -> None:
    errors, log = loaded_without
    assert "ran into an error when deserializing" in errors[layer]
    operator = operators(exported(layer))[0]
    assert f"failed to resolve torch.ops.{operator} to an operator" in log
    assert "Please import the custom op" in log


@row("torch.export: decomposed, loaded without torch_convbp")
@every()
def test_loaded_decomposed(layer: str, loaded_decomposed: Loaded) -> None:
    errors, _ = loaded_decomposed
    assert errors[layer] is None


@row("AOTInductor package, loaded in another process")
@pytest.mark.slow
@every()
def test_package(layer: str, packages_loaded: Loaded) -> None:
    errors, _ = packages_loaded
    assert errors[layer] is None


@row("AOTInductor package, the same without importing torch_convbp", refused=True)
@pytest.mark.slow
@every()
def test_package_without_importing_torch_convbp(
    layer: str, packages_loaded_without: Loaded
) -> None:
    errors, _ = packages_loaded_without
    assert "torch_convbp" in errors[layer]


@row("AOTInductor package, decomposed, loaded without torch_convbp")
@pytest.mark.slow
@every()
def test_package_decomposed(layer: str, packages_loaded_decomposed: Loaded) -> None:
    errors, _ = packages_loaded_decomposed
    assert errors[layer] is None


# --- ONNX -----------------------------------------------------------------------------------


def onnx_results(program: ExportedProgram, inputs: list[Tensor], file: Path) -> list[Tensor]:
    """What onnxruntime makes of the program, decomposed and written as ONNX."""
    pytest.importorskip("onnxscript", reason="torch.onnx needs onnxscript")
    onnxruntime = pytest.importorskip("onnxruntime", reason="onnxruntime runs what is exported")
    program = program.run_decompositions(bp.decompositions())
    torch.onnx.export(program, f=file, dynamo=True, verbose=False)
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    (name,) = (i.name for i in session.get_inputs())
    results = [session.run(None, {name: input.numpy()}) for input in inputs]
    return [torch.from_numpy(output) for outputs in results for output in outputs]


@row("ONNX, in onnxruntime")
@every()
def test_onnx(layer: str, tmp_path: Path) -> None:
    inputs = [input_of(layer, by) for by in (0, 4)]
    actual = onnx_results(exported(layer), inputs, tmp_path / "layer.onnx")
    for output, input in zip(actual, inputs, strict=True):
        assert_close(output, torchs(layer)(input).detach())


@pytest.mark.cell(TABLE, "ONNX, in onnxruntime", column="max_pool2d")
def test_onnx_of_max_pooling_with_indices(tmp_path: Path) -> None:
    """Of any height and width, of which the indices are made."""
    pool = bp.MaxPoolBP2d(3, stride=2, padding=1, return_indices=True)
    inputs = [normal((2, 3, *size), torch.float32, 1) for size in ((9, 7), (6, 11))]
    sizes = ({2: Dim.DYNAMIC, 3: Dim.DYNAMIC},)
    program = torch.export.export(pool, (inputs[0],), dynamic_shapes=sizes)
    actual = onnx_results(program, inputs, tmp_path / "pool.onnx")
    expected = [t for input in inputs for t in F.max_pool2d(input, 3, 2, 1, return_indices=True)]
    assert all(map(torch.equal, actual, expected)) and len(actual) == 4


def test_onnx_of_a_converted_network(tmp_path: Path) -> None:
    """Everything at once, any batch: batch norm, padding modes, a residual, pools, dense layers."""

    class Residual(nn.Sequential):
        def forward(self, input: Tensor) -> Tensor:
            return torch.relu(input + super().forward(input))

    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding="same", padding_mode="reflect"), nn.BatchNorm2d(8), nn.ReLU(),
        nn.MaxPool2d(3, 2, 1),
        Residual(nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.Conv2d(8, 8, 1), nn.SiLU()),
        nn.Conv2d(8, 12, (2, 4), padding="same", bias=False), nn.LeakyReLU(0.2),
        nn.AvgPool2d(2), nn.Flatten(), nn.Linear(12 * 4 * 4, 10), nn.Softmax(1),
    ).eval()  # fmt: skip
    inputs = [normal((batch, 3, 16, 16), torch.float32, batch) for batch in (2, 5)]
    expected = [network(input).detach() for input in inputs]
    bp.convert(network, pooling=True, dense=True, fuse_activations=True)
    program = torch.export.export(network, (inputs[0],), dynamic_shapes=({0: Dim.DYNAMIC},))
    assert sum(are_ours(operators(program))) == 7
    assert_close(onnx_results(program, inputs, tmp_path / "network.onnx"), expected)


@row("ONNX without decompositions", refused=True)
@every()
def test_onnx_without_decompositions(layer: str, tmp_path: Path) -> None:
    pytest.importorskip("onnxscript", reason="torch.onnx needs onnxscript")
    with pytest.raises(torch.onnx.OnnxExporterError, match=r"No ONNX function found for .*convbp"):
        torch.onnx.export(exported(layer), f=tmp_path / "layer.onnx", dynamo=True, verbose=False)


# --- torch.jit and torch.fx -----------------------------------------------------------------

DEPRECATED = pytest.mark.filterwarnings("ignore:.*torch.jit.* is deprecated")


@DEPRECATED
@row("torch.jit.trace, saved and loaded, and its gradients")
@every()
def test_trace(layer: str, tmp_path: Path) -> None:
    traced = torch.jit.trace(LAYERS[layer].make(torch.float32), (input_of(layer),))
    torch.jit.save(traced, tmp_path / "traced.pt")
    loaded = torch.jit.load(tmp_path / "traced.pt")
    assert_same_gradients(loaded, torchs(layer), input_of(layer, 3))


@DEPRECATED
@row("torch.jit.script", refused=True)
@every()
@pytest.mark.parametrize("within", [False, True], ids=["alone", "within a model"])
def test_script(layer: str, within: bool) -> None:
    module = LAYERS[layer].make()
    name = type(module).__name__
    with pytest.raises(
        NotImplementedError, match=rf"torch\.jit\.script does not support {name}: use"
    ):
        torch.jit.script(nn.Sequential(nn.ReLU(), module) if within else module)


@row("torch.fx.symbolic_trace")
@every()
@pytest.mark.parametrize("within", [False, True], ids=["alone", "within a model"])
def test_symbolic_trace(layer: str, within: bool) -> None:
    """Within a model a layer stays one node; alone its function is one."""
    module, twin = LAYERS[layer].make(torch.float32), torchs(layer)
    traced = torch.fx.symbolic_trace(nn.Sequential(module) if within else module)
    nodes = [n for n in traced.graph.nodes if n.op in ("call_module", "call_function")]
    functions = vars(bp.functional).values()
    assert sum(n.op == "call_module" or n.target in functions for n in nodes) == 1
    assert_same_gradients(pickle.loads(pickle.dumps(traced)), twin, input_of(layer, 3))


@row("torch.fx.symbolic_trace")
@every()
def test_symbolic_trace_of_functions(layer: str) -> None:
    """Calls of bp.functional are nodes too."""
    weight = {"conv2d": (6, 4, 3, 3), "linear": (6, 5)}.get(name := layer.split()[0])
    arguments = (2,) if weight is None else (normal(weight, torch.float32, 1),)
    options = {"activation": "relu"} if "activation" in layer else {}

    class Model(nn.Module):
        def forward(self, input: Tensor) -> Tensor:
            return getattr(bp.functional, name)(input, *arguments, **options)

    traced = torch.fx.symbolic_trace(Model())
    assert getattr(bp.functional, name) in [n.target for n in traced.graph.nodes]
    assert torch.equal(traced(input_of(layer, 1)), Model()(input_of(layer, 1)))
