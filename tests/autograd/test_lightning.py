"""The callback: every layer and step logged, a picture at the end of any training."""

from __future__ import annotations

import builtins
import importlib.util
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from cases import normal
from torch import Tensor, nn

pytest.importorskip("lightning", reason="the callback needs Lightning")
pytest.importorskip("matplotlib", reason="the picture needs matplotlib")

import lightning as L
from lightning.pytorch.loggers import Logger
from torch.utils.data import DataLoader, TensorDataset

import torch_convbp as bp
from torch_convbp.error_signals import recording
from torch_convbp.error_signals.lightning import COLUMNS, History

# What Lightning says about loaders and loggers is not in question here.
pytestmark = [
    pytest.mark.filterwarnings(f"ignore:.*{text}")
    for text in ("many workers", "LeafSpec", "number of training batches", "no logger")
]

PNG = b"\x89PNG\r\n\x1a\n"
LAYERS = ["net.0", "net.1", "net.4"]


class Kept(Logger):
    """Keeps what is logged."""

    name, version = "kept", 0

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[tuple[int, dict[str, float]]] = []

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        if any("/" in name for name in metrics):
            self.rows.append((step or 0, metrics))

    def log_hyperparams(self, *_: Any, **__: Any) -> None:
        pass


class Net(L.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(
            bp.ConvBP2d(1, 3, 3, activation="sigmoid", dtype=torch.float64),
            bp.ConvBP2d(3, 2, 3, dtype=torch.float64),
            nn.ReLU(inplace=True),
            nn.Flatten(),
            bp.LinearBP(8, 2, dtype=torch.float64),
        )
        self.unused = bp.LinearBP(2, 2)
        self.stop: tuple[int, BaseException] | None = None

    def training_step(self, batch: list[Tensor], index: int) -> Tensor:
        if self.stop is not None and index == self.stop[0]:
            raise self.stop[1]
        return self.net(batch[0]).square().mean()

    def validation_step(self, batch: list[Tensor], index: int) -> None:
        self.net(batch[0])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def data(batch_size: int = 2, size: int = 12) -> DataLoader[Any]:
    return DataLoader(TensorDataset(normal((size, 1, 6, 6), torch.float64, 1)), batch_size)


def fit(
    monitor: bp.lightning.ErrorSignalMonitor,
    folder: Path,
    model: Net | None = None,
    train: DataLoader[Any] | None = None,
    **options: Any,
) -> Kept:
    kept = Kept()
    L.Trainer(
        accelerator="cpu",
        **{
            "max_epochs": 1,
            "logger": kept,
            "callbacks": [monitor],
            "default_root_dir": folder,
            "enable_checkpointing": False,
            "enable_model_summary": False,
            "enable_progress_bar": False,
            **options,
        },
    ).fit(Net() if model is None else model, data() if train is None else train, data(6))
    return kept


def hooks(model: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


def test_every_layer_and_step_is_logged_and_drawn(tmp_path: Path) -> None:
    model, monitor = Net(), bp.lightning.ErrorSignalMonitor(statistic="norm")
    kept = fit(monitor, tmp_path, model)
    assert [step for step, _ in kept.rows] == list(range(6))
    assert all(list(row) == [f"delta_norm/{n}" for n in LAYERS] for _, row in kept.rows)
    with bp.record_error_signals(other := Net()) as signals:
        other.training_step(next(iter(data())), 0).backward()
    for name in LAYERS:
        expected = signals[name][0].delta
        assert kept.rows[0][1][f"delta_norm/{name}"] == pytest.approx(expected.norm)
        column = monitor.histories["delta"].columns[0]
        assert column[name] == pytest.approx(expected.rms)
    assert (tmp_path / "error-signals.png").read_bytes().startswith(PNG)
    assert [path.name for path in tmp_path.iterdir()] == ["error-signals.png"]
    assert hooks(model) == 0 and recording._recordings == ()


def test_training_is_left_as_it_is(tmp_path: Path) -> None:
    model, plain = Net(), Net()
    fit(bp.lightning.ErrorSignalMonitor(), tmp_path, model)
    fit(bp.lightning.ErrorSignalMonitor(), tmp_path, plain, callbacks=[])
    for p, q in zip(model.parameters(), plain.parameters(), strict=True):
        assert torch.equal(p, q)


def test_every_n_steps_and_what(tmp_path: Path) -> None:
    monitor = bp.lightning.ErrorSignalMonitor(
        every_n_steps=4, what=("weight_grad", "input_grad"), folder=tmp_path / "new" / "one"
    )
    kept = fit(monitor, tmp_path)
    assert [step for step, _ in kept.rows] == [0, 4]
    # The first layer's input needs no gradient.
    names = [f"weight_grad_rms/{n}" for n in LAYERS] + [f"input_grad_rms/{n}" for n in LAYERS[1:]]
    assert list(kept.rows[0][1]) == names
    assert (tmp_path / "new" / "one" / "error-signals.png").exists()


def test_accumulated_batches_count_as_one_large_one(tmp_path: Path) -> None:
    few = fit(bp.lightning.ErrorSignalMonitor(), tmp_path, train=data(2), accumulate_grad_batches=2)
    large = fit(bp.lightning.ErrorSignalMonitor(), tmp_path, train=data(4))
    assert [step for step, _ in few.rows] == [step for step, _ in large.rows] == [0, 1, 2]
    for (_, one), (_, other) in zip(few.rows, large.rows, strict=True):
        assert one == pytest.approx(other)


@pytest.mark.parametrize(
    ("error", "raised"), [(KeyboardInterrupt(), SystemExit), (ValueError("stop"), ValueError)]
)
def test_a_training_that_ends_early_is_drawn(
    tmp_path: Path, error: BaseException, raised: type[BaseException]
) -> None:
    model = Net()
    model.stop = (3, error)
    with pytest.raises(raised):
        fit(bp.lightning.ErrorSignalMonitor(), tmp_path, model)
    assert (tmp_path / "error-signals.png").read_bytes().startswith(PNG)
    assert hooks(model) == 0 and recording._recordings == ()


def test_a_drawing_that_fails_leaves_no_half_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from matplotlib.figure import Figure

    monitor = bp.lightning.ErrorSignalMonitor()
    fit(monitor, tmp_path)
    path = tmp_path / "error-signals.png"
    before = path.read_bytes()

    def savefig(self: Any, file: Any, **_: Any) -> None:
        file.write(PNG)
        raise OSError("disk full")

    monkeypatch.setattr(Figure, "savefig", savefig)
    with pytest.raises(OSError, match="disk full"):
        monitor.save(path)
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]
    # What ended the training is what is raised.
    model = Net()
    model.stop = (3, ValueError("the real reason"))
    with (
        pytest.warns(UserWarning, match="could not draw: disk full"),
        pytest.raises(ValueError, match="the real reason"),
    ):
        fit(monitor, tmp_path, model)


def test_broken_signals_are_drawn(tmp_path: Path) -> None:
    """NaN, infinity, zeros and gaps, in one picture and alone."""
    from matplotlib.figure import Figure

    monitor = bp.lightning.ErrorSignalMonitor()
    fit(monitor, tmp_path)
    values = [1.0, math.nan, math.inf, 0.0, 1e-300, 1e300]
    for chosen in (values, [math.nan], [0.0], [1.0]):
        monitor.histories["delta"] = history = History()
        for step, value in enumerate(chosen):
            history.add(step, {"net.0": value, "net.4": value} if step % 2 else {"net.0": value})
        monitor.save(tmp_path / "broken.png")
    history.add(1, {"net.1": math.nan, "net.4": 0.0})
    axes = Figure().subplots()
    monitor.draw(axes, limits=(1e-3, 1.0))
    assert [text.get_text() for text in axes.get_yticklabels()] == LAYERS
    assert axes.get_ylim() == (2.5, -0.5)  # the first layer on top
    legend = axes.get_legend()
    assert legend is not None
    labels = [text.get_text() for text in legend.get_texts()]
    assert labels == ["NaN or infinite", "exactly zero", "no record"]


def test_memory_of_the_picture_is_bounded() -> None:
    history, total = History(), 5 * COLUMNS + 3
    for step in range(total):
        history.add(10 * step, {"a": 1.0, "b": 7.0 if step == 1000 else 0.5})
        assert len(history.columns) <= COLUMNS
    edges = history.edges()
    assert edges[0] == 0 and edges == sorted(set(edges)) and len(edges) == len(history.columns) + 1
    peak = max(range(len(history.columns)), key=lambda i: history.columns[i]["b"])
    assert edges[peak] <= 10 * 1000 < edges[peak + 1]  # a single step's peak is still there
    history.add(10 * total, {"a": math.nan})
    assert math.isnan(history.columns[-1]["a"])


def test_fast_dev_run_and_no_logger(tmp_path: Path) -> None:
    fit(bp.lightning.ErrorSignalMonitor(), tmp_path, fast_dev_run=True)
    assert not list(tmp_path.rglob("*.png"))
    fit(bp.lightning.ErrorSignalMonitor(), tmp_path, logger=False)
    assert (tmp_path / "error-signals.png").exists()


def test_without_matplotlib_it_says_so_and_logs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda n, *a: None if n == "matplotlib" else find(n, *a)
    )
    with pytest.warns(UserWarning, match="pip install matplotlib"):
        kept = fit(bp.lightning.ErrorSignalMonitor(), tmp_path)
    assert len(kept.rows) == 6 and not list(tmp_path.rglob("*.png"))


def test_arguments() -> None:
    for options, message in (
        ({"every_n_steps": 0}, "every_n_steps"),
        ({"what": "delta"}, r"ErrorSignalMonitor\(\): argument 'what' must be one or more"),
        ({"what": ()}, "'what' must be one or more"),
        ({"what": 5}, "'what' must be one or more"),
        ({"what": [["delta"]]}, "'what' must be one or more"),
        ({"statistic": "median"}, "statistic must be one of rms, norm"),
    ):
        with pytest.raises(ValueError, match=message):
            bp.lightning.ErrorSignalMonitor(**options)
    with pytest.raises(TypeError, match=r"'folder' must be a str or an os\.PathLike, not int"):
        bp.lightning.ErrorSignalMonitor(folder=5)


def test_arguments_of_draw(tmp_path: Path) -> None:
    from matplotlib.figure import Figure

    monitor = bp.lightning.ErrorSignalMonitor()
    with pytest.raises(ValueError, match="no delta was recorded"):
        monitor.save(tmp_path / "nothing.png")
    fit(monitor, tmp_path)
    for options, message in (
        ({"what": "input_grad"}, "'what' must be one of those .*, delta, but got 'input_grad'"),
        ({"what": ["delta"]}, "'what' must be one of those"),
        ({"limits": (0, 1)}, r"'limits' must be two numbers above 0.* but got \(0, 1\)"),
        ({"limits": (2, 1)}, "'limits' must be"),
        ({"limits": (1, math.inf)}, "'limits' must be"),
    ):
        with pytest.raises(ValueError, match=message):
            monitor.draw(Figure().subplots(), **options)
    assert [path.name for path in tmp_path.iterdir()] == ["error-signals.png"]


def test_what_no_layer_has_is_left_out_of_the_picture(tmp_path: Path) -> None:
    model, monitor = Net(), bp.lightning.ErrorSignalMonitor(what=("bias_grad", "delta"))
    for layer in model.modules():
        if isinstance(layer, recording.Layer):
            layer.bias = None
    fit(monitor, tmp_path, model)
    assert not monitor.histories["bias_grad"].columns
    assert (tmp_path / "error-signals.png").read_bytes().startswith(PNG)


def test_a_model_without_our_layers(tmp_path: Path) -> None:
    model = Net()
    model.net, model.unused = nn.Sequential(nn.Conv2d(1, 1, 3).double()), nn.Identity()
    with pytest.raises(ValueError, match="has no layer of torch_convbp"):
        fit(bp.lightning.ErrorSignalMonitor(), tmp_path, model)


def test_what_cannot_be_recorded_is_said_once(tmp_path: Path) -> None:
    model = Net()
    model.training_step = lambda *_: sum(  # type: ignore[assignment]
        p.sum() for p in model.parameters()
    )
    with pytest.warns(UserWarning, match="nothing was recorded") as caught:
        kept = fit(bp.lightning.ErrorSignalMonitor(), tmp_path, model)
    assert len([w for w in caught if "recorded" in str(w.message)]) == 1
    assert not kept.rows and not list(tmp_path.rglob("*.png"))


def test_pytorch_lightning_takes_it_too(tmp_path: Path) -> None:
    """Both names of Lightning may be installed; the callback is made of the first."""
    pl = pytest.importorskip("pytorch_lightning")

    class Other(pl.LightningModule):  # type: ignore[name-defined, misc]
        __init__ = Net.__init__
        training_step = Net.training_step
        configure_optimizers = Net.configure_optimizers

    Other.__init__ = lambda self: (  # type: ignore[method-assign, assignment]
        pl.LightningModule.__init__(self),
        setattr(self, "net", Net().net),
        setattr(self, "stop", None),
    )[0]
    monitor = bp.lightning.ErrorSignalMonitor(folder=tmp_path)
    pl.Trainer(
        accelerator="cpu", max_steps=2, logger=False, callbacks=[monitor],
        enable_checkpointing=False, enable_model_summary=False, enable_progress_bar=False,
    ).fit(Other(), data())  # fmt: skip
    assert len(monitor.histories["delta"].columns) == 2
    assert (tmp_path / "error-signals.png").exists()


def test_lightning_is_optional(monkeypatch: pytest.MonkeyPatch) -> None:
    """The package does not import it; bp.lightning says what is missing."""
    code = (
        "import sys, torch_convbp as bp; "
        "assert not {'lightning', 'pytorch_lightning', 'matplotlib'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    real = builtins.__import__

    def without(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.split(".")[0] in ("lightning", "pytorch_lightning"):
            raise ModuleNotFoundError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    for name in (bp.lightning.__name__, bp.lightning.ErrorSignalMonitor.__module__):
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.delattr(bp, "lightning")
    with pytest.raises(ImportError, match="pip install 'lightning"):
        bp.lightning  # noqa: B018
    with pytest.raises(AttributeError, match="thunder"):
        bp.thunder  # noqa: B018
