"""The parity experiment: its parts, its command line end to end, and that it can fail."""

import argparse
import csv
import dataclasses
import hashlib
import json
import math
import multiprocessing
import os
import pickle
import re
import runpy
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

pytest.importorskip("lightning", reason="the experiments need torch_convbp[experiments]")
pytest.importorskip("torchvision", reason="the experiments need torch_convbp[experiments]")
pytest.importorskip("sklearn", reason="the experiments need torch_convbp[experiments]")
pytest.importorskip("matplotlib", reason="the experiments need torch_convbp[experiments]")

import torch_convbp as bp
from experiments.common import data, index, networks
from experiments.common.batches import crop_and_flip, digest, loader_in_order
from experiments.common.errors import UsageError
from experiments.common.runfolder import RunFolder, fresh
from experiments.parity import alternate, lockstep, options, verdict
from experiments.parity import experiment as parity
from experiments.parity.config import SIDES, Config
from experiments.parity.results import Epoch, SeedResult, Start, TrainingResult
from experiments.parity.state import read_state
from experiments.training.module import TrainBatches

ROOT = Path(__file__).resolve().parents[2]
SMALL = ["--network", "lecture", "--limit-train", "96", "--limit-test", "40"]
SMALL += ["--batch-size", "32", "--threads", "1"]
FINISHED = [*SMALL, "--epochs", "2", "--steps", "5", "--lockstep-steps", "0", "4", "--augment"]
ONE_SEED = [rule for rule in verdict.RULES if "bfloat16" not in rule and "seeds" not in rule]


def start_parity(*arguments: str) -> subprocess.Popen[str]:
    """Start the experiment as a user would, in a process group of its own like a terminal's."""
    return subprocess.Popen(
        [sys.executable, "-m", "experiments.parity", *arguments],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


# --- the whole run -----------------------------------------------------------------------------


@dataclasses.dataclass
class Finished:
    status: int
    out: str
    err: str
    folder: Path


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    runs = tmp_path_factory.mktemp("runs")
    process = start_parity(*FINISHED, "--runs", str(runs), "--name", "small")
    out, err = process.communicate(timeout=300)
    return Finished(process.returncode, out, err, runs / "small")


def table(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_a_run_ends_with_parity_and_status_0(finished: Finished) -> None:
    assert finished.status == 0, finished.out + finished.err
    assert "Parity holds: all 8 checks." in finished.out
    assert str(finished.folder / "report.html") in finished.out
    assert len(re.findall(r"^ok ", finished.out, re.MULTILINE)) == 8


def test_a_run_says_nothing_on_stderr_and_draws_no_bar_into_a_pipe(finished: Finished) -> None:
    assert finished.err == ""
    assert "it/s" not in finished.out and "\033" not in finished.out


def test_the_run_folder_holds_these_files_and_no_others(finished: Finished) -> None:
    assert sorted(path.name for path in finished.folder.iterdir()) == [
        "curves.png",
        "lockstep.csv",
        "lockstep32.png",
        "lockstep64.png",
        "metrics.csv",
        "record.json",
        "report.html",
        "steps.csv",
        "summary.json",
    ]


def test_metrics_have_every_epoch_of_both_sides(finished: Finished) -> None:
    rows = table(finished.folder / "metrics.csv")
    assert [(row["seed"], row["side"], row["epoch"]) for row in rows] == [
        ("0", side, epoch) for side in SIDES for epoch in ("0", "1")
    ]
    for row in rows:
        assert math.isfinite(float(row["train_loss"])) and math.isfinite(float(row["test_loss"]))
        assert 0 <= float(row["train_accuracy"]) <= 1 and 0 <= float(row["test_accuracy"]) <= 1
        assert float(row["seconds_per_step"]) > 0
        assert int(row["peak_memory_bytes"]) > 2**26


def test_both_trainings_saw_the_same_batches_and_no_batch_twice(finished: Finished) -> None:
    rows = table(finished.folder / "steps.csv")
    batches = {side: [row["batch"] for row in rows if row["side"] == side] for side in SIDES}
    assert batches["torch"] == batches["bp"]
    assert len(set(batches["torch"])) == 5


def test_the_trainings_are_independent_and_start_alike(finished: Finished) -> None:
    rows = table(finished.folder / "steps.csv")
    losses = {side: [float(r["loss"]) for r in rows if r["side"] == side] for side in SIDES}
    assert losses["torch"][0] == pytest.approx(losses["bp"][0], rel=1e-5)
    assert len(losses["torch"]) == len(losses["bp"]) == 5


def test_lockstep_compares_every_output_and_gradient(finished: Finished) -> None:
    rows = table(finished.folder / "lockstep.csv")
    net = networks.build("lecture", nn.Conv2d, 10)
    for step in ("0", "4"):
        for comparison in lockstep.COMPARISONS["32-true"]:
            mine = [r for r in rows if r["step"] == step and r["comparison"] == comparison]
            outputs = [r["name"] for r in mine if r["kind"] == "output"]
            gradients = [r["name"] for r in mine if r["kind"] == "gradient"]
            # In float64 the activation is part of ConvBP2d: what it puts out is compared behind.
            inside = ("conv1", "conv2") if comparison == "float64" else ()
            assert outputs == [name for name, _ in net.named_children() if name not in inside]
            assert gradients == [name for name, _ in net.named_parameters()]
            assert all(float(r["error"]) <= float(r["allowed"]) for r in mine)
    assert any(float(row["error"]) > 0 for row in rows if row["comparison"] == "float64")


def test_the_summary_says_what_ran_where(finished: Finished) -> None:
    summary = json.loads((finished.folder / "summary.json").read_text())
    assert summary["parity"] is True and summary["failure"] is None
    assert [check["name"] for check in summary["checks"]] == ONE_SEED
    assert summary["settings"]["seeds"] == [0] and len(summary["seeds"]) == 1
    assert summary["command"].startswith("python -m experiments.parity --network lecture")
    assert summary["settings"]["total_steps"] == 5 and summary["settings"]["augment"] is True
    assert (summary["data"]["train"], summary["data"]["test"]) == (96, 40)
    assert summary["versions"]["torch"] == torch.__version__.split("+")[0]
    assert summary["versions"]["torch_convbp"] == bp.__version__
    assert summary["machine"]["capability"] == bp.backends.cpu.capability()
    assert summary["machine"]["threads"] == 1
    for side in SIDES:
        training = summary["trainings"][side]
        assert training["steps"] == 5
        assert 0 < training["peak_memory_growth_bytes"] < training["peak_memory_bytes"]
        times = training["seconds_per_step"]
        assert 0 < times["first_quartile"] <= times["median"] <= times["third_quartile"]


@pytest.mark.parametrize("name", ["curves", "lockstep32", "lockstep64"])
def test_the_pictures_show_something(finished: Finished, name: str) -> None:
    from PIL import Image

    with Image.open(finished.folder / f"{name}.png") as picture:
        assert picture.format == "PNG" and picture.width > 900 and picture.height > 400
        colors = picture.convert("RGB").getcolors(maxcolors=1 << 24)
    assert colors is not None and len(colors) > 100


def test_the_report_holds_everything_within_itself(finished: Finished) -> None:
    text = (finished.folder / "report.html").read_text(encoding="utf-8")
    sources = re.findall(r"\b(?:src|href|url)\s*[=(]\s*[\"']?([^\"')\s>]{0,40})", text)
    assert len(sources) > 20
    assert all(source.startswith(("#", "data:image/png;base64,")) for source in sources)
    assert not re.search(r"<link|@import|<script [^>]*src", text)
    assert text.count("<svg ") == 3
    assert "<title>gradient of conv1.weight (ConvBP2d; allowed" in text
    assert "Parity holds" in text and "float64" in text
    assert all(f"<th>{name}</th>" in text for name in ONE_SEED)


def test_the_index_lists_the_runs(finished: Finished, capsys: pytest.CaptureFixture[str]) -> None:
    runs = finished.folder.parent
    assert 'href="small/report.html"' in (runs / "index.html").read_text()
    (runs / "begun").mkdir()
    (runs / "begun" / "UNFINISHED").write_text("Interrupted & left.")
    (runs / "other").mkdir()
    (runs / "broken").mkdir()
    (runs / "broken" / "summary.json").write_text("{")
    odd = runs / os.fsdecode(b"odd\xff<b>")
    odd.mkdir()
    (odd / "summary.json").write_text('{"verdict": null, "settings": []}')
    (odd / "gone").symlink_to("nowhere")
    assert index.main([str(runs)]) == 0
    assert capsys.readouterr().out == f"{runs / 'index.html'}\n"
    text = (runs / "index.html").read_text()
    assert "4 runs" in text and "odd?&lt;b&gt;" in text and "Parity holds: all 8 checks." in text
    assert "Interrupted &amp; left." in text and "not readable" in text and ">other<" not in text
    assert 'src="small/curves.png"' in text
    for path in ("begun", "other", "broken", odd.name):
        shutil.rmtree(runs / path)
    assert index.main([str(runs / "nowhere")]) == 2
    assert "DIR: expected a folder" in capsys.readouterr().err


def test_an_index_that_cannot_be_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "index.html").mkdir()
    index.renew_index(tmp_path)
    assert capsys.readouterr().err.startswith(f"warning: no index of {tmp_path}: ")
    assert index.main([str(tmp_path)]) == 2
    assert "error: DIR: " in capsys.readouterr().err


def test_a_finished_run_takes_more_seeds(
    finished: Finished, tmp_path: Path, one_thread: None, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its own seed is not trained again, and its report is written anew."""
    folder = tmp_path / "more"
    shutil.copytree(finished.folder, folder)
    before = read_state(folder).seeds[0]
    assert parity.main(["--resume", str(folder), "--seeds", "2"]) == 0
    out = capsys.readouterr().out
    assert "Parity holds: all 9 checks." in out and "\nseed 1\n" in out and "\nseed 0\n" not in out
    first, second = read_state(folder).seeds
    assert first == before and second.seed == 1
    assert second.sides["bp"].weights != first.sides["bp"].weights
    assert {row["seed"] for row in table(folder / "steps.csv")} == {"0", "1"}
    assert (folder / "seeds.png").is_file() and not (folder / "scratch").exists()


# --- the experiment can fail -------------------------------------------------------------------


class ScaledGradient(torch.autograd.Function):
    """The identity, whose gradient is slightly too large."""

    @staticmethod
    def forward(ctx, weight: torch.Tensor, factor: float) -> torch.Tensor:
        ctx.factor = factor
        return weight.view_as(weight)

    @staticmethod
    def backward(ctx, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        return gradient * ctx.factor, None


def wrong_convolution(what: str) -> type[nn.Conv2d]:
    """Return a ConvBP2d that is wrong in one place, by little."""

    class ConvBP2d(bp.ConvBP2d):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            weight = self.weight
            if what == "weight gradient" and self.in_channels > 3:
                weight = ScaledGradient.apply(weight, 1 + 1e-8)
            if what == "input gradient":
                x = ScaledGradient.apply(x, 1 + 1e-8)
            output = self._conv_forward(x, weight, self.bias)
            if what == "one pixel":
                output = output + output.detach().abs().max() * 1e-8 * corner_of(output)
            if what == "single precision" and x.dtype == torch.float64:
                output = self._conv_forward(x.float(), weight.float(), None).double()
                output = output + self.bias.view(-1, 1, 1)
            if what == "float32 only" and x.dtype == torch.float32:
                output = output * (1 + 1e-4 * corner_of(output))
            return output

    return ConvBP2d


def corner_of(x: torch.Tensor) -> torch.Tensor:
    corner = torch.zeros_like(x)
    corner[..., -1, -1] = 1
    return corner


def test_a_wrong_weight_gradient_ends_with_status_1(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    # the trainings, in processes of their own, have the right one: lockstep alone must see it
    monkeypatch.setattr(bp, "ConvBP2d", wrong_convolution("weight gradient"))
    arguments = [*SMALL, "--steps", "2", "--lockstep-steps", "0", "--runs", str(tmp_path)]
    assert parity.main([*arguments, "--name", "wrong"]) == 1
    out = capfd.readouterr().out
    assert re.search(r"^FAIL  lockstep float64 +1 of \d+ beyond; .*conv2.weight", out, re.MULTILINE)
    assert "Parity does not hold: 1 of 8 checks fail (lockstep float64)." in out
    summary = json.loads((tmp_path / "wrong" / "summary.json").read_text())
    assert summary["parity"] is False
    assert "does not hold" in (tmp_path / "wrong" / "report.html").read_text(encoding="utf-8")


def compare_lecture(
    monkeypatch: pytest.MonkeyPatch, conv: type[nn.Conv2d] | None
) -> list[lockstep.Row]:
    if conv is not None:
        monkeypatch.setattr(bp, "ConvBP2d", conv)
    digits = data.load("digits", limit_train=16)
    x, y = next(iter(loader_in_order(digits.test, digits, 16)))

    def build(side: str) -> nn.Module:
        torch.manual_seed(0)
        return networks.build("lecture", bp.ConvBP2d if side == "bp" else nn.Conv2d, 10)

    return lockstep.compare(0, build, build("torch").state_dict(), x, y)


def test_lockstep_passes_the_right_convolution(monkeypatch: pytest.MonkeyPatch) -> None:
    assert all(row.ok for row in compare_lecture(monkeypatch, None))


@pytest.mark.parametrize(
    ("what", "comparison"),
    [
        ("weight gradient", "float64"),
        ("input gradient", "float64"),
        ("one pixel", "float64"),
        ("single precision", "float64"),
        ("float32 only", "float32"),
    ],
)
def test_lockstep_sees_a_convolution_that_is_slightly_wrong(
    monkeypatch: pytest.MonkeyPatch, what: str, comparison: str
) -> None:
    rows = compare_lecture(monkeypatch, wrong_convolution(what))
    assert {row.comparison for row in rows if not row.ok} == {comparison}


@pytest.mark.parametrize("name", networks.NETWORKS)
def test_every_network_agrees_in_lockstep(name: str) -> None:
    digits = data.load("digits", limit_train=16)
    x, y = next(iter(loader_in_order(digits.test, digits, 4)))

    def build(side: str) -> nn.Module:
        torch.manual_seed(0)
        return networks.build(name, nn.Conv2d if side == "torch" else bp.ConvBP2d, 10, 32, "cifar")

    state = build("torch").state_dict()
    rows = lockstep.compare(0, build, state, x, y, precision="bf16-mixed")
    assert {row.comparison for row in rows} == {"float64", "float32", "bfloat16"}
    assert not [row for row in rows if not row.ok]


def test_an_error_that_is_not_a_number_is_beyond_every_bound() -> None:
    row = lockstep.Row(0, "float64", "output", "conv1", "ConvBP2d", 0.0, 0.0, 1, 1e-15)
    assert row.ok
    assert not dataclasses.replace(row, error=math.nan).ok
    assert not dataclasses.replace(row, error=math.inf).ok
    assert not dataclasses.replace(row, allowed=math.nan).ok


def good_result(label: str) -> TrainingResult:
    epoch = Epoch(0, [2.5, 1.5], [0.1, 0.1], ["aa", "bb"], 0.5, 1.0, 0.9, 2**28, 2**27, "VmHWM")
    return TrainingResult("same", 10, [label, label], [epoch])


def good_row(comparison: str, kind: str = "loss") -> lockstep.Row:
    return lockstep.Row(0, comparison, kind, "loss", "", 1e-16, 0.0, 100, 1e-15)


def judged(
    results: dict[str, TrainingResult], rows: list[lockstep.Row], **plan: object
) -> list[verdict.Check]:
    """Judge a run of one seed."""
    planned = {"seeds": 1, "total_steps": 2, "lockstep_steps": (0,), "test_size": 1000}
    return verdict.judge([SeedResult(0, results, rows)], verdict.Plan(**{**planned, **plan}))


TAMPERINGS = {
    "convolutions": lambda r, rows: r.convolutions.__setitem__(0, "Conv2d"),
    "initial weights": lambda r, rows: setattr(r, "weights", "other"),
    "batches": lambda r, rows: r.epochs[0].batches.__setitem__(1, "cc"),
    "lockstep float64": lambda r, rows: rows.__setitem__(
        0, dataclasses.replace(rows[0], error=2e-15)
    ),
    "lockstep float32": lambda r, rows: rows.pop(1),
    "lockstep bfloat16": lambda r, rows: rows.__setitem__(
        2, dataclasses.replace(rows[2], error=math.nan)
    ),
    "trainings finished": lambda r, rows: r.epochs[0].losses.__setitem__(1, math.nan),
    "first loss": lambda r, rows: r.epochs[0].losses.__setitem__(0, 2.5 * 1.5),
    "final accuracy": lambda r, rows: setattr(r.epochs[0], "test_accuracy", 0.84),
}


@pytest.mark.parametrize("name", [None, *TAMPERINGS])
def test_each_check_fails_by_itself(name: str | None) -> None:
    results = {"torch": good_result("Conv2d"), "bp": good_result("ConvBP2d")}
    rows = [good_row(comparison) for comparison in lockstep.COMPARISONS["bf16-mixed"]]
    if name is not None:
        TAMPERINGS[name](results["bp"], rows)
    checks = judged(results, rows, precision="bf16-mixed")
    assert [check.name for check in checks] == list(TAMPERINGS)
    assert [check.name for check in checks if not check.ok] == ([] if name is None else [name])
    assert verdict.all_passed(checks) is (name is None)


def test_the_first_loss_agrees_to_the_rounding_of_the_precision() -> None:
    for precision, close, far in (("32-true", 2e-6, 1e-5), ("bf16-mixed", 0.2, 0.4)):
        for difference, ok in ((close, True), (far, False)):
            results = {"torch": good_result("Conv2d"), "bp": good_result("ConvBP2d")}
            results["bp"].epochs[0].losses[0] = 2.5 * (1 + difference)
            rows = [good_row(name) for name in lockstep.COMPARISONS[precision]]
            checks = judged(results, rows, precision=precision)
            assert {check.name: check.ok for check in checks}["first loss"] is ok


def test_a_missing_step_or_a_missing_training_is_no_parity() -> None:
    results = {"torch": good_result("Conv2d"), "bp": good_result("ConvBP2d")}
    rows = [good_row(comparison) for comparison in lockstep.COMPARISONS["32-true"]]
    checks = judged(results, rows, total_steps=3, lockstep_steps=(0, 2))
    failing = {check.name for check in checks if not check.ok}
    assert failing == {"lockstep float64", "lockstep float32", "trainings finished"}
    assert not any(check.ok for check in judged({side: TrainingResult() for side in SIDES}, []))


def seeds_with(pairs: list[tuple[float, float]]) -> list[SeedResult]:
    seeds = []
    for seed, pair in enumerate(pairs):
        sides = {"torch": good_result("Conv2d"), "bp": good_result("ConvBP2d")}
        for side, accuracy in zip(SIDES, pair, strict=True):
            sides[side].epochs[0].test_accuracy = accuracy
        rows = [good_row(comparison) for comparison in lockstep.COMPARISONS["32-true"]]
        seeds.append(SeedResult(seed, sides, rows))
    return seeds


def test_one_bad_seed_is_no_parity_and_is_named() -> None:
    plan = verdict.Plan(seeds=3, total_steps=2, lockstep_steps=(0,), test_size=1000)
    seeds = seeds_with([(0.90, 0.91), (0.91, 0.90), (0.92, 0.93)])
    assert verdict.all_passed(verdict.judge(seeds, plan))
    assert [check.name for check in verdict.judge(seeds, plan)] == [
        *ONE_SEED,
        "accuracy over seeds",
    ]
    seeds[1].sides["bp"].epochs[0].batches[1] = "cc"
    (bad,) = (check for check in verdict.judge(seeds, plan) if not check.ok)
    assert bad.name == "batches" and bad.measured == "step 1 differs (bb, cc), seed 1"
    checks = verdict.judge(seeds_with([(0.9, 0.9)] * 2), plan)
    assert not any(check.ok for check in checks) and checks[0].measured == "2 of 3 seeds"


def test_accuracies_over_seeds_may_differ_by_what_seeds_do() -> None:
    spread = verdict.spread_of([(0.90, 0.91), (0.92, 0.93), (0.94, 0.95)])
    assert spread.difference == pytest.approx(0.01) and spread.freedom == 4
    assert spread.seed_to_seed == pytest.approx(0.02)
    assert spread.error == pytest.approx(0.02 * math.sqrt(2 / 3))
    # Student's t for 4 degrees of freedom and 95 %, from any table: 2.776.
    assert spread.half_width(0.05) == pytest.approx(2.776 * spread.error, rel=1e-3)
    near = [(0.900, 0.905), (0.902, 0.905), (0.904, 0.905), (0.901, 0.904)]
    assert verdict.check_spread(seeds_with(near), 4).ok
    apart = [(0.900, 0.915), (0.902, 0.915), (0.904, 0.915), (0.901, 0.914)]
    assert not verdict.check_spread(seeds_with(apart), 4).ok
    assert verdict.check_spread(seeds_with([(0.9, 0.9), (0.9, 0.9)]), 2).ok


def test_the_accuracy_may_differ_by_what_the_test_set_cannot_tell() -> None:
    few, many = (verdict.accuracy_tolerance(0.9, 0.9, size) for size in (100, 10_000))
    assert few == pytest.approx(3 * math.sqrt(2 * 0.9 * 0.1 / 100) + 0.01, rel=0.02)
    assert many == pytest.approx(3 * math.sqrt(2 * 0.9 * 0.1 / 10_000) + 0.01, rel=0.001)
    assert verdict.accuracy_tolerance(1.0, 1.0, 100) > 0.01


def test_a_training_that_breaks_is_reported_and_no_parity(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(self: parity.Parity, result: SeedResult) -> None:
        for side, label in zip(SIDES, ("Conv2d", "ConvBP2d"), strict=True):
            result.sides[side].begin(Start("same", 10, [label]))
        result.sides["torch"].epochs.append(
            Epoch(0, [2.5, math.inf], [0.1, 0.1], ["aa", "bb"], 0.5, math.nan, 0.9, 2, 1, "")
        )
        raise alternate.TrainingFailed("bp.ConvBP2d: RuntimeError: out of luck")

    monkeypatch.setattr(parity.Parity, "train", broken)
    assert parity.main([*SMALL, "--runs", str(tmp_path), "--name", "broken"]) == 1
    assert "out of luck" in capsys.readouterr().out
    summary = json.loads((tmp_path / "broken" / "summary.json").read_text())
    assert "out of luck" in summary["failure"] and summary["trainings"]["bp"]["steps"] == 0
    assert summary["trainings"]["torch"]["last_loss"] == "inf"


def some_config(scratch: Path) -> Config:
    return Config(
        network="lecture",
        stem="torchvision",
        epochs=1,
        total_steps=1,
        batch_size=4,
        lr=0.01,
        weight_decay=0.0,
        seed=0,
        threads=torch.get_num_threads(),
        augment=False,
        channels_last=False,
        accelerator="cpu",
        precision="32-true",
        snapshot_steps=(0,),
        scratch=scratch,
        progress=False,
    )


def test_a_process_that_fails_sends_its_traceback(tmp_path: Path) -> None:
    ours, theirs = multiprocessing.Pipe()
    alternate.work(theirs, "bp", some_config(tmp_path))  # there are no pictures to read
    trainings = alternate.Trainings(some_config(tmp_path))
    trainings.pipes["bp"] = ours
    with pytest.raises(alternate.TrainingFailed, match=r"(?s)bp\.ConvBP2d: .*data\.pt"):
        trainings.receive("bp")


# --- breaking off ------------------------------------------------------------------------------


def begun(tmp_path: Path) -> subprocess.Popen[str]:
    """An experiment that would go on for hours, after its first epoch."""
    process = start_parity(*SMALL, "--epochs", "5000", "--runs", str(tmp_path), "--name", "run")
    assert process.stdout is not None
    while not process.stdout.readline().startswith("epoch 1/"):
        assert process.poll() is None, process.stderr
    return process


def all_end(process: subprocess.Popen[str]) -> bool:
    """Do the processes of the experiment end? What does not is killed."""
    for _ in range(100):
        try:
            os.killpg(process.pid, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.1)
    os.killpg(process.pid, signal.SIGKILL)
    return False


def test_an_interrupt_leaves_a_folder_marked_unfinished(tmp_path: Path) -> None:
    process = begun(tmp_path)
    os.killpg(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in err and "Interrupted" in err
    how = f"To go on: python -m experiments.parity --resume {tmp_path / 'run'}\n"
    assert (tmp_path / "run" / "UNFINISHED").read_text() == f"Interrupted. {how}"
    assert how in err
    assert not (tmp_path / "run" / "summary.json").exists()
    assert not (tmp_path / "run" / "scratch" / "data.pt").exists()
    assert all_end(process), "a process of the experiment is still there"


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_the_trainings_end_with_an_experiment_that_is_ended(
    how: signal.Signals, tmp_path: Path
) -> None:
    """They are told nothing, they notice; and the folder has been marked from the beginning."""
    process = begun(tmp_path)
    process.send_signal(how)
    process.communicate(timeout=60)
    assert process.returncode == -how
    assert "has not finished" in (tmp_path / "run" / "UNFINISHED").read_text()
    assert not (tmp_path / "run" / "summary.json").exists()
    assert all_end(process), "a process of the experiment is still there"


def what_was_trained(folder: Path) -> list[object]:
    """Everything that does not depend on the time a step took."""
    found: list[object] = []
    for seed in read_state(folder).seeds:
        found += [dataclasses.replace(row) for row in seed.rows]
        for side in SIDES:
            for epoch in seed.sides[side].epochs:
                found.append((seed.seed, side, epoch.epoch, epoch.losses, epoch.batches))
                found.append((epoch.train_accuracy, epoch.test_loss, epoch.test_accuracy))
    return found


def test_a_resumed_run_ends_with_the_same_bits(tmp_path: Path, one_thread: None) -> None:
    """Killed in the second epoch; MobileNetV2 has all that is drawn in training: dropout too."""
    arguments = ["--network", "mobilenetv2", "--limit-train", "24", "--limit-test", "8"]
    arguments += ["--batch-size", "8", "--threads", "1", "--epochs", "3", "--lockstep-steps", "1"]
    arguments += ["--augment", "--runs", str(tmp_path)]
    process = start_parity(*arguments, "--name", "killed")
    assert process.stdout is not None
    while not process.stdout.readline().startswith("epoch 2/"):
        assert process.poll() is None, process.stderr
    process.kill()
    process.communicate(timeout=60)
    assert all_end(process), "a process of the experiment is still there"
    assert not (tmp_path / "killed" / "summary.json").exists()
    assert parity.main(["--resume", str(tmp_path / "killed")]) == 0
    assert parity.main([*arguments, "--name", "whole"]) == 0
    assert what_was_trained(tmp_path / "killed") == what_was_trained(tmp_path / "whole")
    assert len(what_was_trained(tmp_path / "whole")) > 2 * 2 * 3
    assert not (tmp_path / "killed" / "scratch").exists()


def test_a_run_that_broke_off_before_its_first_epoch_is_resumed(
    finished: Finished, tmp_path: Path, one_thread: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(parity.Parity, "train", broken)
        assert parity.main([*FINISHED, "--runs", str(tmp_path), "--name", "run"]) == 2
    assert "--resume" in (tmp_path / "run" / "UNFINISHED").read_text()
    assert not (tmp_path / "run" / "summary.json").exists()
    assert parity.main(["--resume", str(tmp_path / "run")]) == 0
    assert what_was_trained(tmp_path / "run") == what_was_trained(finished.folder)


def resume_error(folder: Path, capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parity.Parity, "run", lambda self: pytest.fail("it ran"))
        try:
            status = parity.main(["--resume", str(folder), *arguments])
        except SystemExit as stop:
            status = stop.code
    assert status == 2
    return capsys.readouterr().err


def test_a_run_that_cannot_be_resumed_says_why(
    finished: Finished, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(finished.folder, folder)
    before = sorted(path.name for path in folder.iterdir())
    assert "has no record.json" in resume_error(tmp_path, capsys)
    said = resume_error(folder, capsys, "--epochs", "3")
    assert "argument --epochs: --resume takes it from the run folder" in said
    record = read_state(folder)
    record.seeds *= 2
    record.write(folder)
    assert "--seeds: expected at least the 2 of the run" in resume_error(folder, capsys)
    record.arguments += ["--seeds", "2"]
    record.write(folder)
    said = resume_error(folder, capsys, "--seeds", "1")
    assert "--seeds: expected at least the 2 of the run" in said
    record.seeds, record.data = record.seeds[:1], "other"
    record.write(folder)
    assert "--resume: the pictures are not those of the run" in resume_error(folder, capsys)
    (folder / "record.json").write_text('{"arguments": [')
    assert "--resume: cannot read" in resume_error(folder, capsys)
    assert sorted(path.name for path in folder.iterdir()) == before


def test_two_processes_do_not_write_to_one_folder(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    first = RunFolder(tmp_path / "run")
    with pytest.raises(UsageError, match="another process is at work in"):
        RunFolder(tmp_path / "run")
    first.finish({})
    RunFolder(tmp_path / "run").finish({})


def test_a_run_folder_is_fresh_and_unfinished_until_the_summary_is_there(tmp_path: Path) -> None:
    first, second = (RunFolder(fresh(tmp_path, None, "lecture-digits")) for _ in range(2))
    assert first.path != second.path
    assert (first.path / "UNFINISHED").exists()
    first.finish({"loss": math.nan, "path": tmp_path, "steps": (1, 2)})
    assert [path.name for path in first.path.iterdir()] == ["summary.json"]
    summary = json.loads((first.path / "summary.json").read_text())
    assert summary == {"loss": "nan", "path": str(tmp_path), "steps": [1, 2]}
    assert (second.path / "UNFINISHED").exists()


# --- the command line --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ("--epochs -3", "--epochs: expected a whole number of at least 1, got '-3'"),
        ("--epochs many", "--epochs: expected a whole number of at least 1, got 'many'"),
        ("--batch-size 1", "--batch-size: expected a whole number of at least 2, got '1'"),
        ("--batch-size 64", "--batch-size: expected at most the 20 training pictures, got 64"),
        ("--lr 0", "--lr: expected a number above 0, got '0'"),
        ("--lr nan", "--lr: expected a number above 0, got 'nan'"),
        ("--seed 99999999999", "--seed: expected a whole number of at least 0, at most"),
        ("--threads 0", "--threads: expected a whole number of at least 1"),
        ("--network alexnet", "--network: invalid choice: 'alexnet' (choose from"),
        ("--data mnist", "--data: invalid choice: 'mnist' (choose from"),
        ("--epoch 3", "unrecognized arguments: --epoch 3"),
        ("--stem cifar", "--stem: goes with --network resnet18 only"),
        ("--image-size 48", "--image-size: goes with --data folder only"),
        ("--image-size 8", "--image-size: expected a whole number of at least 16"),
        ("--download", "--download: goes with --data cifar10 or cifar100 only"),
        ("--root .", "--root: goes with cifar10, cifar100 or folder"),
        ("--data folder", "--root: --data folder needs one with train/ and test/ inside"),
        ("--data folder --root missing", "--root: expected a folder with train/ and test/ inside"),
        ("--data folder --root empty", "--root: expected train/ and test/ in"),
        ("--data cifar10 --root missing", "--data cifar10: neither"),
        ("--data cifar100 --root missing", "add --download to fetch it"),
        ("--lockstep-steps 0 99", "--lockstep-steps: expected steps from 0 to"),
        ("--name ../up", "--name: expected letters, digits"),
        ("--name there", "--name: "),
        ("--runs file", "--runs: expected a folder,"),
        ("--seeds 0", "--seeds: expected a whole number of at least 1"),
        ("--accelerator abacus", "--accelerator: invalid choice: 'abacus' (choose from"),
        pytest.param(
            "--accelerator gpu",
            "--accelerator gpu: ",
            marks=pytest.mark.skipif(
                bp.backends.cuda.is_available(), reason="a GPU is here, and its kernels"
            ),
        ),
        ("--precision 16", "--precision: invalid choice: '16' (choose from"),
    ],
)
def test_bad_arguments_say_what_is_allowed_and_leave_nothing(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: str,
    says: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "runs" / "there").mkdir(parents=True)
    (tmp_path / "file").touch()
    before = sorted(tmp_path.glob("**/*"))
    small = [] if "--data" in arguments else ["--limit-train", "20", "--batch-size", "10"]
    try:
        status = parity.main([*small, *arguments.split()])
    except SystemExit as stop:
        status = stop.code
    out, err = capsys.readouterr()
    assert status == 2
    assert says in err and "Traceback" not in err and out == ""
    assert sorted(tmp_path.glob("**/*")) == before


def test_help_names_every_option_and_its_default(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        parity.main(["--help"])
    assert stop.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    for action in options.make_parser()._actions:
        assert all(name in text for name in action.option_strings)
    assert text.count("(default: ") >= 14


@pytest.mark.parametrize("name", options.DATA)
def test_every_data_set_has_sensible_defaults(name: str) -> None:
    arguments = ["--data", name] + (["--root", "x"] if name == "folder" else [])
    _, args = options.parse(arguments)
    assert args.augment is name.startswith("cifar")
    assert args.network in options.NETWORKS and args.epochs >= 1 and args.batch_size >= 2
    assert args.lr == options.LEARNING_RATE


def test_steps_and_epochs_become_a_plan() -> None:
    pictures = data.load("digits", limit_train=100, limit_test=1)

    def plan(**given: object) -> tuple[int, int, tuple[int, ...]]:
        defaults = {"batch_size": 30, "epochs": 4, "steps": None, "lockstep_steps": None}
        return parity.plan(argparse.Namespace(**{**defaults, **given}), pictures)

    assert plan() == (4, 12, (0, 6, 11))
    assert plan(steps=5) == (2, 5, (0, 2, 4))
    assert plan(steps=50) == (4, 12, (0, 6, 11))
    assert plan(steps=1) == (1, 1, (0,))
    assert plan(lockstep_steps=[7, 3, 7]) == (4, 12, (3, 7))


# --- the lockstep model ------------------------------------------------------------------------


def test_the_lengths_add_up_along_the_way_there_and_back() -> None:
    net = networks.build("lecture", nn.Conv2d, 10)
    found = lockstep.trace(net, torch.randn(4, 3, 32, 32), torch.arange(4))
    conv1, conv2 = 3 * 25, 32 * 25
    lengths = lockstep.output_lengths(found.calls)
    assert lengths == [conv1] * 3 + [conv1 + conv2] * 5
    of = lockstep.gradient_lengths(found.calls, list(found.gradients))
    assert of["dense.weight"] == conv1 + conv2
    assert of["conv2.bias"] == conv1 + conv2 + 4 * 10 * 10
    assert of["conv1.weight"] == conv1 + conv2 + 64 * 25 + 4 * 28 * 28


def test_lengths_of_a_grouped_convolution() -> None:
    conv = nn.Conv2d(8, 12, (3, 5), groups=4)
    lengths = lockstep.lengths_of(conv, conv(torch.zeros(2, 8, 6, 9)))
    assert (lengths.output, lengths.input_grad, lengths.weight_grad) == (2 * 15, 3 * 15, 2 * 4 * 5)


def test_replayed_choices_take_the_place_of_the_own_ones() -> None:
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(inplace=True), nn.MaxPool2d(2), nn.Flatten())
    x = torch.randn(3, 1, 8, 8)
    y = torch.arange(3)

    def fresh() -> nn.Sequential:
        copied = pickle.loads(pickle.dumps(net))
        copied.zero_grad()
        return copied

    own = lockstep.trace(fresh(), x, y)
    same = lockstep.trace(fresh(), x, y, own.choices)
    for a, b in zip(own.calls, same.calls, strict=True):
        assert torch.equal(a.output, b.output)
    assert all(torch.equal(own.gradients[name], same.gradients[name]) for name in own.gradients)

    other = lockstep.trace(fresh(), -x, y, own.choices)
    open_units, taken = own.choices.made
    p = other.calls[0].output
    assert torch.equal(other.calls[1].output, p * open_units)
    assert (other.calls[1].output < 0).any(), "a ReLU of its own would have closed these"
    chosen = other.calls[1].output.flatten(2).gather(2, taken.flatten(2)).view_as(taken)
    assert torch.equal(other.calls[2].output, chosen)


def test_relative_error() -> None:
    truth = torch.tensor([1.0, -4.0], dtype=torch.float64)
    assert lockstep.relative_error(torch.tensor([1.5, -4.0]), truth) == 0.125
    assert lockstep.relative_error(torch.zeros(2), torch.zeros(2)) == 0
    assert lockstep.relative_error(torch.ones(2), torch.zeros(2)) == math.inf
    assert lockstep.relative_error(torch.ones(3), truth) == math.inf
    assert math.isnan(lockstep.relative_error(torch.tensor([math.nan, 0.0]), truth))


# --- networks ----------------------------------------------------------------------------------


@pytest.mark.parametrize("stem", options.STEMS)
@pytest.mark.parametrize("name", options.NETWORKS)
def test_a_network_is_the_same_with_both_convolutions(name: str, stem: str) -> None:
    nets = []
    for conv in (nn.Conv2d, bp.ConvBP2d):
        torch.manual_seed(3)
        nets.append(networks.build(name, conv, 7, image_size=32, stem=stem))
    states = [net.state_dict() for net in nets]
    assert list(states[0]) == list(states[1])
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
    for net, conv in zip(nets, (nn.Conv2d, bp.ConvBP2d), strict=True):
        found = networks.convolutions(net)
        assert found and all(type(module) is conv for _, module in found)
    assert nets[1].eval()(torch.zeros(2, 3, 32, 32)).shape == (2, 7)


def test_networks_take_other_sizes_and_refuse_other_names() -> None:
    for name in options.NETWORKS:
        net = networks.build(name, nn.Conv2d, 4, image_size=48).eval()
        assert net(torch.zeros(1, 3, 48, 48)).shape == (1, 4)
    assert len(networks.convolutions(networks.build("resnet20", nn.Conv2d, 4))) == 19
    with pytest.raises(ValueError, match="expected one of lecture, vgg, resnet20, resnet18, "):
        networks.build("alexnet", nn.Conv2d, 4)


# --- data --------------------------------------------------------------------------------------


def test_digits_are_all_there_once() -> None:
    digits = data.load("digits")
    assert digits.train.images.shape == (1437, 3, 32, 32)
    assert digits.test.images.shape == (360, 3, 32, 32)
    assert digits.train.images.dtype == torch.uint8
    assert sorted(set(digits.train.labels.tolist())) == list(range(10))
    fingerprints = {digest(i) for p in (digits.train, digits.test) for i in p.images}
    assert len(fingerprints) == 1797


def test_normalised_training_pictures_have_mean_0_and_spread_1() -> None:
    digits = data.load("digits")
    x = torch.cat([x for x, _ in loader_in_order(digits.train, digits, 100)])
    assert x.mean((0, 2, 3)).abs().max() < 1e-4
    assert (x.std((0, 2, 3)) - 1).abs().max() < 1e-3


def test_statistics_of_known_pictures() -> None:
    images = torch.zeros(2, 3, 4, 4, dtype=torch.uint8)
    images[1, 0] = 255
    mean, std = data.statistics(images)
    assert mean == pytest.approx((0.5, 0, 0))
    assert std == pytest.approx((0.5, 1 / 255, 1 / 255)), "a constant channel is not divided by 0"


def test_limits_keep_a_fixed_slice() -> None:
    first, second = (data.load("digits", limit_train=50, limit_test=20) for _ in range(2))
    assert len(first.train) == 50 and len(first.test) == 20
    assert torch.equal(first.train.images, second.train.images)
    assert len(set(first.train.labels.tolist())) > 5


def test_batches_repeat_with_the_seed_and_differ_between_epochs_and_seeds() -> None:
    digits = data.load("digits", limit_train=64)

    def fingerprints(seed: int, augment: bool) -> list[str]:
        return [
            digest(x, y)
            for epoch in range(2)
            for x, y in TrainBatches(digits, 20, seed, augment, in_epoch(epoch))
        ]

    for augment in (False, True):
        assert fingerprints(1, augment) == fingerprints(1, augment)
        assert len(set(fingerprints(1, augment) + fingerprints(2, augment))) == 2 * 2 * 3


def in_epoch(epoch: int) -> SimpleNamespace:
    """What batches ask of the module that is trained."""
    progress = SimpleNamespace(current=SimpleNamespace(ready=0))
    loops = SimpleNamespace(epoch_loop=SimpleNamespace(batch_progress=progress))
    trainer = SimpleNamespace(current_epoch=epoch, global_rank=0, world_size=1, fit_loop=loops)
    return SimpleNamespace(trainer=trainer)


def test_an_epoch_has_every_picture_at_most_once() -> None:
    digits = data.load("digits", limit_train=60)
    loader = TrainBatches(digits, 20, 0, False, in_epoch(0))
    assert len(loader) == 3
    assert len({digest(picture) for x, _ in loader for picture in x}) == 60


def window(padded: torch.Tensor, top: int, left: int, mirror: bool) -> torch.Tensor:
    cut = padded[:, top : top + 8, left : left + 8]
    return cut.flip(-1) if mirror else cut


def test_crop_and_flip_shift_and_mirror_whole_pictures() -> None:
    x = torch.randn(40, 3, 8, 8)
    y = crop_and_flip(x, torch.Generator().manual_seed(0))
    padded = nn.functional.pad(x, (4, 4, 4, 4))
    seen = set()
    for before, after in zip(padded, y, strict=True):
        ways = [
            (top, left, mirror)
            for top in range(9)
            for left in range(9)
            for mirror in (False, True)
            if torch.equal(window(before, top, left, mirror), after)
        ]
        assert len(ways) == 1
        seen.add(ways[0])
    assert len(seen) > 20 and {mirror for *_, mirror in seen} == {False, True}


def test_a_fingerprint_depends_on_bits_and_not_on_memory_format() -> None:
    x = torch.randn(2, 3, 4, 4)
    assert digest(x) == digest(x.contiguous(memory_format=torch.channels_last))
    changed = x.clone()
    changed[1, 2, 3, 3] = torch.nextafter(changed[1, 2, 3, 3], torch.tensor(9.0))
    assert digest(x) != digest(changed)


def write_16_bits(path: Path) -> None:
    from PIL import Image

    Image.new("I;16", (8, 8)).save(path)


def make_folder(root: Path) -> Path:
    """Make small picture folders: sizes and modes differ, red is one class, blue the other."""
    from PIL import Image

    for part, count in (("train", 6), ("test", 3)):
        for name, color in (("blue", (0, 0, 255)), ("red", (255, 0, 0))):
            folder = root / part / name
            folder.mkdir(parents=True)
            for number in range(count):
                picture = Image.new("RGB", (20 + 7 * number, 32), color)
                (picture.convert("P") if number == 1 else picture).save(folder / f"{number}.png")
            (folder / "notes.txt").write_text("not a picture")
    return root


def test_a_picture_folder_is_read_resized_and_labelled(tmp_path: Path) -> None:
    found = data.load("folder", root=make_folder(tmp_path), image_size=24)
    assert found.classes == ("blue", "red")
    assert found.train.images.shape == (12, 3, 24, 24) and len(found.test) == 6
    assert found.image_size == 24
    red = found.train.images[found.train.labels == 1]
    assert len(red) == 6 and (red[:, 0] == 255).all() and (red[:, 1:] == 0).all()
    assert found.mean == pytest.approx((0.5, 0, 0.5))
    few = data.load("folder", root=tmp_path, limit_train=4, limit_test=1)
    assert len(few.train) == 4 and len(few.test) == 1


def test_a_picture_folder_survives_the_way_to_the_other_process(tmp_path: Path) -> None:
    found = data.load("folder", root=make_folder(tmp_path / "pictures"))
    data.write_data(found, tmp_path / "data.pt")
    again = data.read_data(tmp_path / "data.pt")
    assert torch.equal(found.train.images, again.train.images)
    assert torch.equal(found.test.labels, again.test.labels)
    for field in ("name", "classes", "mean", "std"):
        assert getattr(found, field) == getattr(again, field)


def remove(path: Path) -> None:
    for inner in sorted(path.glob("**/*"), reverse=True):
        inner.rmdir() if inner.is_dir() else inner.unlink()
    path.rmdir() if path.is_dir() else path.unlink()


@pytest.mark.parametrize(
    ("harm", "says"),
    [
        (lambda root: remove(root / "test"), "found no test/"),
        (lambda root: remove(root / "train" / "red"), "two or more class folders in .*, got 1"),
        (lambda root: (root / "test" / "green").mkdir(), "classes that train/ lacks: green"),
        (
            lambda root: [path.unlink() for path in root.glob("test/*/*.png")],
            r"no pictures in .* of .*test; expected files that end in \.jpg",
        ),
        (
            lambda root: (root / "train" / "red" / "0.png").write_bytes(b"junk"),
            r"0\.png is not a readable picture \(.*\); mend or remove it",
        ),
        (
            lambda root: os.truncate(root / "train" / "red" / "0.png", 60),
            r"0\.png is not a readable picture",
        ),
        (lambda root: (root / "train" / "blue2").mkdir(), r"no pictures in blue2 of .*train"),
        (
            lambda root: write_16_bits(root / "train" / "red" / "0.png"),
            r"0\.png has more than 8 bits a channel",
        ),
    ],
    ids=[
        "no test",
        "one class",
        "unknown class",
        "no pictures",
        "junk",
        "cut short",
        "an empty class",
        "16 bits",
    ],
)
def test_a_picture_folder_that_is_not_one_says_so(tmp_path: Path, harm, says: str) -> None:
    harm(make_folder(tmp_path))
    with pytest.raises(UsageError, match=f"(?s)--root: .*{says}"):
        data.load("folder", root=tmp_path)


def test_a_folder_that_does_not_fit_into_memory_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(data, "FOLDER_BYTES_LIMIT", 12 * 3 * 16**2 - 1)
    with pytest.raises(UsageError, match="--image-size 16: 12 pictures would take"):
        data.load("folder", root=make_folder(tmp_path), image_size=16)


def make_cifar(root: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> Path:
    """Write a tiny data set in CIFAR's own format and let torchvision take it for the real one."""
    from torchvision import datasets

    source = datasets.CIFAR10 if name == "cifar10" else datasets.CIFAR100
    folder = root / source.base_folder
    folder.mkdir(parents=True)
    key = "labels" if name == "cifar10" else "fine_labels"
    generator = torch.Generator().manual_seed(0)

    def write(file: str, content: object) -> str:
        (folder / file).write_bytes(pickle.dumps(content))
        return hashlib.md5((folder / file).read_bytes()).hexdigest()

    def part(names: list[list[str]]) -> list[list[str]]:
        lines = []
        for file, _ in names:
            pixels = torch.randint(256, (8, 3072), dtype=torch.uint8, generator=generator).numpy()
            lines.append([file, write(file, {"data": pixels, key: [0, 1] * 4})])
        return lines

    meta = dict(source.meta)
    meta["md5"] = write(meta["filename"], {meta["key"]: ["first", "second"]})
    monkeypatch.setattr(source, "train_list", part(source.train_list))
    monkeypatch.setattr(source, "test_list", part(source.test_list))
    monkeypatch.setattr(source, "meta", meta)
    return folder


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_cifar_is_read_from_its_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    folder = make_cifar(tmp_path, monkeypatch, name)
    found = data.load(name, root=tmp_path)
    files = 5 if name == "cifar10" else 1
    assert len(found.train) == 8 * files and len(found.test) == 8
    assert found.classes == ("first", "second")
    file = folder / ("data_batch_1" if name == "cifar10" else "train")
    pixels = torch.from_numpy(pickle.loads(file.read_bytes())["data"]).view(8, 3, 32, 32)
    assert torch.equal(found.train.images[:8], pixels)
    assert found.train.labels[:4].tolist() == [0, 1, 0, 1]


def test_damaged_cifar_files_say_which_and_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make_cifar(tmp_path, monkeypatch, "cifar10")
    with (folder / "data_batch_3").open("ab") as file:
        file.write(b"!")
    with pytest.raises(UsageError, match=r"data_batch_3 damaged.*delete .*--download to fetch"):
        data.load("cifar10", root=tmp_path)
    (folder / "data_batch_3").unlink()
    with pytest.raises(UsageError, match=r"cifar-10-batches-py lacks data_batch_3; add --download"):
        data.load("cifar10", root=tmp_path)


def test_a_damaged_cifar_archive_ends_with_status_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    archive = tmp_path / "cifar-10-python.tar.gz"
    archive.write_bytes(b"this is no archive")
    runs = tmp_path / "runs"
    status = parity.main(["--data", "cifar10", "--root", str(tmp_path), "--runs", str(runs)])
    err = capsys.readouterr().err
    assert status == 2
    assert f"{archive} is damaged (MD5 " in err and "18 bytes" in err
    assert "delete it, then add --download" in err
    assert not runs.exists()


def test_a_download_that_fails_says_what_else_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from torchvision import datasets

    monkeypatch.setattr(datasets.CIFAR10, "url", (tmp_path / "nowhere.tar.gz").as_uri())
    with pytest.raises(UsageError, match=r"--download: fetching file:.* failed .*put it there as"):
        data.load("cifar10", root=tmp_path / "data", download=True)


@pytest.mark.parametrize(
    ("argument", "status", "text"),
    [
        ("--help", 0, "the file to write"),
        ("nowhere/picture.png", 2, "there is no folder nowhere"),
        ("picture.doc", 2, "expected the ending to be one of"),
    ],
)
def test_the_picture_of_error_signals_is_asked_for_before_the_training(
    argument: str,
    status: int,
    text: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["error_signals", argument])
    with pytest.raises(SystemExit) as end:
        runpy.run_module("experiments.error_signals", run_name="__main__")
    assert end.value.code == status
    assert text in "".join(capsys.readouterr())
    assert not list(tmp_path.iterdir())
