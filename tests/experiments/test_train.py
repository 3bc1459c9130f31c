"""``python -m experiments.train``: every verb, every config file, resuming bit for bit."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("lightning", reason="training needs torch_convbp[experiments]")
pytest.importorskip("torchvision", reason="training needs torch_convbp[experiments]")
pytest.importorskip("sklearn", reason="training needs torch_convbp[experiments]")
pytest.importorskip("jsonargparse", reason="training needs torch_convbp[experiments]")
pytest.importorskip("rich", reason="training needs torch_convbp[experiments]")
pytest.importorskip("tensorboard", reason="training needs torch_convbp[experiments]")

import lightning as L
import yaml

import torch_convbp as bp
from experiments.common.errors import UsageError
from experiments.common.networks import NETWORKS, SMALLEST
from experiments.training.command_line import main
from experiments.training.module import Classifier, ImageDataModule, initial

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = sorted((ROOT / "experiments" / "configs").glob("*.yaml"))
SMALL = ["--config", str(ROOT / "experiments" / "configs" / "lecture_digits.yaml")]
SMALL += ["--data.limit_train=107", "--data.limit_test=40", "--data.batch_size=16"]

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore"),  # Lightning's, about hardware and loaders
]


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The config files write below the current folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path / "runs" / "lecture_digits" / "checkpoints"


def fit(*arguments: str) -> None:
    assert main(["fit", *SMALL, "--trainer.max_epochs=2", *arguments]) == 0


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """The folder of a whole training with these options, which several tests look at."""
    folders: dict[tuple[str, ...], Path] = {}

    def train(*options: str) -> Path:
        if options not in folders:
            folder = tmp_path_factory.mktemp("whole")
            with pytest.MonkeyPatch.context() as patch:
                patch.chdir(folder)
                fit(*options)
            folders[options] = folder
        return folders[options]

    return train


def weights(path: Path) -> dict[str, Tensor]:
    return torch.load(path, weights_only=False)["state_dict"]


def test_fit_then_validate_test_and_predict(here: Path, tmp_path: Path) -> None:
    fit("--trainer.log_every_n_steps=1")
    assert (here / "best.ckpt").is_file() and (here / "last.ckpt").is_file()
    rows = next(tmp_path.rglob("metrics.csv")).read_text()
    assert "val_loss" in rows and "lr-SGD" in rows
    assert list(tmp_path.rglob("events.out.tfevents.*"))
    report = (here.parent / "report.html").read_text()
    assert "<title>validation, epoch 2:" in report and "seed_everything: 0" in report
    for verb in ("validate", "test", "predict"):
        assert main([verb, *SMALL, "--ckpt_path", str(here / "last.ckpt")]) == 0
    study = Classifier.load_from_checkpoint(here / "last.ckpt").eval()
    x, labels = next(iter(ImageDataModule(limit_train=107, limit_test=40).test_dataloader()))
    with torch.no_grad():
        classes = study(x).argmax(1).tolist()
    lines = (here.parent / "predictions.csv").read_text().splitlines()
    expected = [f"{i},{label},{classes[i]}" for i, label in enumerate(labels.tolist())]
    assert lines == ["picture,class,predicted", *expected]


EVERY_STEP = [
    "--trainer.callbacks+=lightning.pytorch.callbacks.ModelCheckpoint",
    "--trainer.callbacks.dirpath=steps",
    "--trainer.callbacks.filename={step}",
    "--trainer.callbacks.every_n_train_steps=1",
    "--trainer.callbacks.save_top_k=-1",
    "--data.augment=true",
]


@pytest.mark.parametrize("step", [2, 6, 9], ids=["first-epoch", "between-epochs", "second-epoch"])
@pytest.mark.parametrize(
    "option",
    ["--model.network=lecture", "--model.network=mobilenetv2", "--trainer.precision=64-true"],
    ids=["lecture", "dropout", "float64"],
)
def test_a_resumed_training_ends_with_the_same_bits(
    here: Path, tmp_path: Path, option: str, step: int, trained: Callable[..., Path]
) -> None:
    shutil.copytree(trained(option, *EVERY_STEP), tmp_path, dirs_exist_ok=True)
    whole = torch.load(here / "last.ckpt", weights_only=False)
    assert whole["global_step"] == 12
    stopped = tmp_path / "steps" / f"step={step}.ckpt"
    assert torch.load(stopped, weights_only=False)["global_step"] == step
    (here / "last.ckpt").unlink()
    fit(option, "--data.augment=true", f"--ckpt_path={stopped}")
    resumed = torch.load(here / "last.ckpt", weights_only=False)
    assert resumed["global_step"] == 12
    assert all(torch.equal(resumed["state_dict"][k], v) for k, v in whole["state_dict"].items())
    mine, theirs = (c["optimizer_states"][0]["state"] for c in (resumed, whole))
    for index, state in theirs.items():
        assert torch.equal(mine[index]["momentum_buffer"], state["momentum_buffer"])
    assert resumed["lr_schedulers"] == whole["lr_schedulers"]


# Six batches an epoch, of which four and two make a step.
FOUR_A_STEP = [
    "--trainer.accumulate_grad_batches=4",
    "--data.augment=true",
    "--trainer.val_check_interval=5",
]
AT_VALIDATION = [
    "--trainer.callbacks+=lightning.pytorch.callbacks.ModelCheckpoint",
    "--trainer.callbacks.dirpath=amid",
    "--trainer.callbacks.monitor=val_accuracy",
    "--trainer.callbacks.save_top_k=-1",
    "--trainer.callbacks.filename={epoch}",
]


@pytest.mark.parametrize("stopped", ["steps/step=3.ckpt", "amid/epoch=0.ckpt", "amid/epoch=1.ckpt"])
def test_accumulated_steps_resume_with_the_same_bits(
    here: Path, tmp_path: Path, stopped: str, trained: Callable[..., Path]
) -> None:
    training = trained(*FOUR_A_STEP, *EVERY_STEP, *AT_VALIDATION)
    shutil.copytree(training, tmp_path, dirs_exist_ok=True)
    whole = torch.load(here / "last.ckpt", weights_only=False)
    assert whole["global_step"] == 4
    held = torch.load(tmp_path / stopped, weights_only=False).get("gradients", {})
    assert ("amid" in stopped) == any(gradient.any() for gradient in held.values())
    (here / "last.ckpt").unlink()
    fit(*FOUR_A_STEP, f"--ckpt_path={tmp_path / stopped}")
    resumed = torch.load(here / "last.ckpt", weights_only=False)
    assert resumed["global_step"] == 4
    assert all(torch.equal(resumed["state_dict"][k], v) for k, v in whole["state_dict"].items())


def test_a_step_half_accumulated_by_several_processes_is_refused(
    here: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fit(*FOUR_A_STEP, *AT_VALIDATION)
    stopped = tmp_path / "amid" / "epoch=0.ckpt"
    kept = torch.load(stopped, weights_only=False)
    torch.save(kept | {"gradients": None}, stopped)  # as Classifier keeps it there
    assert main(["fit", *SMALL, "--trainer.max_epochs=2", *FOUR_A_STEP, f"--ckpt_path={stopped}"])
    assert "in the middle of an accumulated step" in capsys.readouterr().err


@pytest.mark.parametrize("name", NETWORKS)
def test_every_network_trains_alike_in_every_form(name: str) -> None:
    forms = {"torch": ("torch", False), "convbp": ("convbp", False), "fused": ("convbp", True)}
    random = torch.Generator().manual_seed(0)
    x = torch.randn(4, 3, 32, 32, generator=random, dtype=torch.double)
    y = torch.randint(10, (4,), generator=random)
    after = {}
    for form, (conv, fuse) in forms.items():
        net = initial(name, conv, fuse, 10, 32, "cifar", 0).double()
        before = {key: value.clone() for key, value in net.named_parameters()}
        optimizer = torch.optim.SGD(net.parameters(), 0.01, momentum=0.9)
        for _ in range(3):
            optimizer.zero_grad()
            torch.manual_seed(0)  # dropout
            nn.functional.cross_entropy(net(x), y).backward()
            optimizer.step()
        assert not any(torch.equal(before[key], value) for key, value in net.named_parameters())
        after[form] = net.state_dict()
    for form in ("convbp", "fused"):
        torch.testing.assert_close(after[form], after["torch"], rtol=1e-8, atol=1e-9)


def test_options_override_the_file(here: Path) -> None:
    fit("--model.lr=0", "--model.weight_decay=0", "--trainer.limit_train_batches=2")
    before = initial("lecture", "convbp", False, 10, 32, "cifar", 0).state_dict()
    after = weights(here / "last.ckpt")
    assert all(torch.equal(after[f"net.{name}"], value) for name, value in before.items())


@pytest.mark.parametrize("options", [["--trainer.precision=bf16-mixed"],
                                     ["--trainer.accumulate_grad_batches=2"],
                                     ["--model.fuse=true", "--model.network=vgg"]],
                         ids=["bf16-mixed", "accumulation", "fuse"])  # fmt: skip
def test_fit_with(here: Path, options: list[str]) -> None:
    fit("--trainer.max_epochs=1", *options)
    kept = torch.load(here / "last.ckpt", weights_only=False)
    assert kept["global_step"] == (3 if "accumulate" in options[0] else 6)
    assert all(value.isfinite().all() for value in kept["state_dict"].values())


def test_error_signals_are_a_callback(tmp_path: Path) -> None:
    fit(
        "--trainer.max_epochs=1",
        "--trainer.callbacks+=torch_convbp.lightning.ErrorSignalMonitor",
        "--trainer.callbacks.folder=signals",
    )
    assert (tmp_path / "signals" / "error-signals.png").is_file()
    assert "delta_rms/net.conv1" in next(tmp_path.rglob("metrics.csv")).read_text()


@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: path.stem)
def test_a_config_builds_the_same_network_on_both_convolutions(config: Path) -> None:
    text = yaml.safe_load(config.read_text())
    assert text["model"]["network"] in NETWORKS
    arguments = (False, 10, 32, "cifar", 0)
    nets = [initial(text["model"]["network"], conv, *arguments) for conv in ("torch", "convbp")]
    theirs, ours = (net.state_dict() for net in nets)
    assert list(theirs) == list(ours)
    assert all(torch.equal(theirs[name], ours[name]) for name in ours)
    kinds = [{type(m) for m in net.modules() if isinstance(m, nn.Conv2d)} for net in nets]
    assert kinds[0] == {nn.Conv2d} and all(issubclass(kind, bp.ConvBP2d) for kind in kinds[1])
    x = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0), dtype=torch.double)
    a, b = (net.double().eval()(x) for net in nets)
    torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model.network=alexnet"], "--model.network: expected one of lecture, vgg"),
        (["--model.conv=torch", "--model.fuse=true"], "--model.fuse true: goes with"),
        (["--data.source=cifar10", "--data.root=none"], "--data.download"),
        (["--data.source=folder"], "--data.root"),
        (["--data.batch_size=1000"], "--data.batch_size: expected at most the 96"),
        (["--config=absent.yaml"], "absent.yaml"),
        (["--model.lr=-1"], "--model.lr: expected a number of at least 0, got -1"),
        (["--model.lr=fast"], "Expected a <class 'float'>"),
        (["--data.limit_test=0"], "--data.limit_test: expected at least 1, got 0"),
        (["--data.val_share=1"], "--data.val_share: expected 0 or more and below 1, got 1"),
        (["--trainer.max_epochs=-7"], "`max_epochs` must be"),
        (["--trainer.accumulate_grad_batches=0"], "_batches: expected at least 1, got 0"),
        (["--trainer.check_val_every_n_epoch=0"], "_n_epoch: expected at least 1, got 0"),
        (["--trainer.val_check_interval=0"], "val_check_interval: expected more than 0, got 0"),
        (["--trainer.overfit_batches=1"], "--data.limit_train"),
        ([f"--model.seed={2**64}"], "--model.seed: expected 0 to"),
        (["--data.seed=-1"], "--data.seed: expected 0 to"),
        (["--trainer.accelerator=tpu"], "--trainer: "),
        (["--ckpt_path=last"], "--ckpt_path: there is no file last"),
        (["--ckpt_path="], "--ckpt_path: there is no file"),
        (
            [
                "--trainer.callbacks+=lightning.pytorch.callbacks.GradientAccumulationScheduler",
                "--trainer.callbacks.scheduling={0: 2, 1: 4}",
            ],
            "--trainer.callbacks: GradientAccumulationScheduler",
        ),
        (["--trainer.gradient_clip_val=-1"], "gradient_clip_val: expected at least 0, got -1"),
        (["--trainer.log_every_n_steps=-1"], "log_every_n_steps: expected at least 0, got -1"),
        (["--trainer.devices=-3"], "--trainer: `devices` selected with"),
        (["--trainer.strategy=foo"], "--trainer: You selected an invalid strategy name"),
        (["--trainer.default_root_dir=/proc/none"], "'/proc/none'"),
        (["--ckpt_path=best"], "--ckpt_path: there is no file best"),
        (["--seed_everything=-1"], "--seed_everything: expected 0 to"),
        (["--ckpt_path=absent.ckpt"], "--ckpt_path: there is no file absent.ckpt"),
        ([f"--ckpt_path={__file__}"], "test_train.py is no checkpoint that can be read"),
    ],
    ids=lambda value: value[-1].partition("=")[0] if isinstance(value, list) else "",
)
def test_what_is_wrong_is_said(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        status = main(["fit", *SMALL, *arguments])
    except SystemExit as leaving:
        status = leaving.code
    err = capsys.readouterr().err
    assert status == 2
    assert message in err and "Traceback" not in err
    assert not Path("runs").exists()


def test_limits_that_do_not_go_with_the_data(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fit", *SMALL, "--trainer.val_check_interval=100"]) == 2
    assert "--trainer: `val_check_interval` (100) must be" in capsys.readouterr().err


def test_a_checkpoint_of_other_layers_is_refused(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fit("--trainer.max_epochs=1")
    kept = torch.load(here / "last.ckpt", weights_only=False)
    kept["state_dict"]["net.dense.bias"] = torch.zeros(7)
    torch.save(kept, here / "seven.ckpt")
    del kept["state_dict"]["net.dense.bias"]
    torch.save(kept, here / "less.ckpt")
    for file, message in (
        ("seven.ckpt", "expected net.dense.bias (10,), the checkpoint has (7,)"),
        ("less.ckpt", "expected net.dense.bias (10,), the checkpoint has none"),
    ):
        assert main(["test", *SMALL, f"--ckpt_path={here / file}"]) == 2
        assert message in capsys.readouterr().err


@pytest.mark.parametrize("network", SMALLEST)
def test_a_network_says_how_small_a_picture_may_be(network: str) -> None:
    side = SMALLEST[network]
    for conv in ("torch", "convbp"):
        net = initial(network, conv, False, 10, side, "cifar", 0).eval()
        assert net(torch.zeros(1, 3, side, side)).shape == (1, 10)
    message = f"--data.image_size: {network} needs at least {side}, got {side - 1}"
    with pytest.raises(UsageError, match=message):
        Classifier(network, image_size=side - 1)


def test_a_checkpoint_says_what_it_was_made_with(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fit("--trainer.max_epochs=1")
    last = f"--ckpt_path={here / 'last.ckpt'}"
    assert main(["test", *SMALL, last, "--model.network=vgg"]) == 0
    assert "--ckpt_path: the checkpoint's network lecture (not vgg)" in capsys.readouterr().err
    assert main(["fit", *SMALL, last, "--trainer.max_epochs=5"]) == 2
    said = capsys.readouterr().err
    assert "was to fall over 6 steps, the options now make it 30" in said


def test_what_is_held_out_is_not_trained_on() -> None:
    def digests(loader: object) -> set[bytes]:
        return {picture.numpy().tobytes() for x, _ in loader for picture in x}  # type: ignore[attr-defined]

    pictures = ImageDataModule(batch_size=1)
    train, held, test = map(
        digests,
        (pictures.train_dataloader(), pictures.val_dataloader(), pictures.test_dataloader()),
    )
    assert (len(pictures.pictures.train), len(pictures.held_out)) == (1293, 144)
    assert not train & held and len(train | held) >= 1430  # a few digits are there twice
    assert digests(ImageDataModule(seed=1).val_dataloader()) != held
    assert digests(ImageDataModule(seed=0).val_dataloader()) == held
    assert digests(ImageDataModule(val_share=0).val_dataloader()) == test


def test_two_processes_share_the_batches() -> None:
    class Trainer:
        world_size, current_epoch = 2, 3
        fit_loop = L.Trainer(logger=False, enable_progress_bar=False).fit_loop

        def __init__(self, rank: int) -> None:
            self.global_rank = rank

    seen = []
    for rank in (0, 1):
        pictures = ImageDataModule(limit_train=107, batch_size=16)
        pictures.trainer = Trainer(rank)  # type: ignore[assignment]
        batches = list(pictures.train_dataloader())
        assert len(batches) == 3
        seen += [picture.numpy().tobytes() for x, _ in batches for picture in x]
    pictures.trainer.world_size = 7  # type: ignore[misc,union-attr]
    with pytest.raises(UsageError, match=r"batch_size: expected at most 1/7 of the 96"):
        pictures.train_dataloader()
    every = next(iter(ImageDataModule(limit_train=107, batch_size=96).train_dataloader()))[0]
    assert sorted(seen) == sorted(picture.numpy().tobytes() for picture in every)


@pytest.mark.slow
def test_ddp_with_two_processes_resumes_with_the_same_bits(tmp_path: Path, here: Path) -> None:
    def fit_in_two(*arguments: str) -> dict[str, Tensor]:
        command = [sys.executable, "-m", "experiments.train", "fit", *SMALL, *arguments]
        command += ["--trainer.max_epochs=2", "--trainer.strategy=ddp", "--trainer.devices=2"]
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        process = subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300
        )
        assert process.returncode == 0, process.stdout + process.stderr
        kept = torch.load(here / "last.ckpt", weights_only=False)
        assert kept["global_step"] == 6
        return kept["state_dict"]

    whole = fit_in_two(*EVERY_STEP)
    (here / "last.ckpt").unlink()
    resumed = fit_in_two("--data.augment=true", f"--ckpt_path={tmp_path / 'steps' / 'step=4.ckpt'}")
    assert all(torch.equal(resumed[name], value) for name, value in whole.items())
