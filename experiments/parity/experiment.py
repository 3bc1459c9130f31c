"""Does ConvBP2d train a network as nn.Conv2d does? ``python -m experiments.parity`` answers.

One network is built twice from one seed, with torch.nn.Conv2d and with bp.ConvBP2d, and read
in two ways:

1. Lockstep (``lockstep``): the same weights and batch through both; every layer's output and
   every parameter's gradient is compared, in float64, float32 and, where training is in mixed
   precision, bfloat16, at the start and at later steps.
2. Two trainings (``process``, ``alternate``): independent, on the same batches in the same
   order; loss and accuracy, seconds a step, peak memory.

``--seeds N`` does this N times over, each time from another seed. Parity holds, and the exit
status is 0, if every rule in ``verdict.RULES`` does; docs/parity.md explains them.

Each run writes a fresh folder: metrics.csv (epochs), steps.csv, lockstep.csv, summary.json,
pictures and report.html, which contains them, and record.json, from which ``--resume`` goes on.
"""

from __future__ import annotations

import hashlib
import math
import os
import shlex
import sys
import time
from dataclasses import replace
from datetime import datetime
from typing import TYPE_CHECKING, Any

from experiments.common.errors import UsageError
from experiments.common.runfolder import RunFolder, fresh
from experiments.parity.config import LABELS, SIDES, Config
from experiments.parity.options import parse

if TYPE_CHECKING:
    import argparse
    from pathlib import Path

    from torch import nn

    from experiments.common.data import Data
    from experiments.parity.results import SeedResult
    from experiments.parity.state import State
    from experiments.parity.verdict import Check


def main(arguments: list[str] | None = None) -> int:
    """Run the experiment; return the exit status."""
    arguments = sys.argv[1:] if arguments is None else arguments
    _, args = parse(arguments)
    share_the_machine()
    try:
        return resume(args) if args.resume else begin(args, arguments)
    except (UsageError, OSError) as error:  # an OSError: the disk is full, say
        print(f"python -m experiments.parity: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


def share_the_machine() -> None:
    """Let waiting threads sleep instead of spin, unless the environment says otherwise.

    A network of small layers waits for its threads some thousand times a step. While other
    programs want the same cores, spinning holds up the very thread that is waited for, and a
    step takes several times as long. OpenMP reads this once, when torch is loaded; the two
    trainings inherit it, so that it is the same for both.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def begin(args: argparse.Namespace, arguments: list[str]) -> int:
    """Load the data and begin a run in a fresh folder."""
    from experiments.parity.state import State

    check_accelerator(args.accelerator)
    data = load_data(args)
    planned = plan(args, data)
    path = fresh(args.runs, args.name, f"{args.network}-{args.data}")
    state = State(
        [*arguments, *([] if "--threads" in arguments else ["--threads", str(args.threads)])],
        fingerprint(data),
        datetime.now().isoformat(timespec="seconds"),
    )
    return run(args, data, planned, path, state)


def resume(resumed: argparse.Namespace) -> int:
    """Go on with the run of a folder; if there is nothing left to do, write its report anew."""
    from experiments.parity.state import read_state

    state = read_state(resumed.resume)
    if resumed.seeds:
        state.arguments += ["--seeds", str(resumed.seeds)]
    _, args = parse(state.arguments)
    if args.seeds < len(state.seeds):
        raise UsageError(
            f"--seeds: expected at least the {len(state.seeds)} of the run in "
            f"{resumed.resume}, got {args.seeds}"
        )
    check_accelerator(args.accelerator)
    data = load_data(args)
    if fingerprint(data) != state.data:
        raise UsageError(f"--resume: the pictures are not those of the run in {resumed.resume}")
    return run(args, data, plan(args, data), resumed.resume, state)


def check_accelerator(accelerator: str) -> None:
    """Raise a UsageError where Lightning would take a GPU that is not there, or has no kernels."""
    import torch

    from experiments.common.machine import cuda_missing

    wanted = accelerator == "gpu" or (accelerator == "auto" and torch.cuda.is_available())
    if wanted and (missing := cuda_missing()):
        raise UsageError(f"--accelerator {accelerator}: {missing}; expected cpu")


def load_data(args: argparse.Namespace) -> Data:
    """Load the pictures."""
    from experiments.common.data import load
    from experiments.common.networks import check_size

    check_size("--image-size", args.network, args.image_size)
    return load(
        args.data,
        root=args.root,
        download=args.download,
        image_size=args.image_size,
        limit_train=args.limit_train,
        limit_test=args.limit_test,
    )


def fingerprint(data: Data) -> str:
    """Return a fingerprint of all pictures and labels."""
    parts = (data.train.images, data.train.labels, data.test.images, data.test.labels)
    state = hashlib.sha256()
    for part in parts:
        state.update(part.numpy().data)
    return state.hexdigest()[:16]


def run(
    args: argparse.Namespace,
    data: Data,
    planned: tuple[int, int, tuple[int, ...]],
    path: Path,
    state: State,
) -> int:
    """Train and compare in a folder; mark it if that breaks off."""
    folder = RunFolder(path)
    epochs, total_steps, lockstep_steps = planned
    config = Config(
        network=args.network,
        stem=args.stem,
        epochs=epochs,
        total_steps=total_steps,
        batch_size=args.batch_size,
        lr=args.lr,
        weight_decay=args.weight_decay,
        seed=args.seed,
        threads=args.threads,
        augment=args.augment,
        channels_last=args.channels_last,
        accelerator=args.accelerator,
        precision=args.precision,
        snapshot_steps=lockstep_steps,
        scratch=folder.scratch,
        progress=sys.stdout.isatty(),
    )
    try:
        return Parity(config, args.seeds, data, folder, state).run()
    except BaseException as error:
        interrupted = isinstance(error, KeyboardInterrupt)
        how = "Interrupted" if interrupted else f"Broken off by {error!r}"
        says = f"{how}. To go on: python -m experiments.parity --resume {path}"
        folder.mark(f"{says}\n")
        config.data_file.unlink(missing_ok=True)  # large at times, and made anew
        if interrupted:
            print(f"\n{says}", file=sys.stderr)
        raise


def plan(args: argparse.Namespace, data: Data) -> tuple[int, int, tuple[int, ...]]:
    """Return epochs, steps in all, and the steps to compare at."""
    pictures = len(data.train)
    if args.batch_size > pictures:
        raise UsageError(
            f"--batch-size: expected at most the {pictures} training pictures, "
            f"got {args.batch_size}"
        )
    a_pass = pictures // args.batch_size
    total = min(args.epochs * a_pass, args.steps or math.inf)
    assert isinstance(total, int)
    chosen = args.lockstep_steps or [0, total // 2, total - 1]
    if max(chosen) >= total:
        raise UsageError(
            f"--lockstep-steps: expected steps from 0 to {total - 1}, the last of this training, "
            f"got {max(chosen)}"
        )
    return math.ceil(total / a_pass), total, tuple(sorted(set(chosen)))


class Parity:
    """One run of the experiment, from the first line on the terminal to the verdict."""

    def __init__(
        self, config: Config, seeds: int, data: Data, folder: RunFolder, state: State
    ) -> None:
        self.config, self.data, self.folder, self.state = config, data, folder, state
        self.planned = range(config.seed, config.seed + seeds)
        self.seeds = state.seeds
        self.began = time.monotonic() - state.seconds
        self.failure: str | None = None

    def run(self) -> int:
        """Train, compare, judge, write and tell."""
        import torch

        from experiments.common.data import write_data
        from experiments.parity.alternate import TrainingFailed
        from experiments.parity.process import strict_float32
        from experiments.parity.verdict import Plan, all_passed, judge

        config = self.config
        torch.set_num_threads(config.threads)
        strict_float32(config.accelerator)
        self.say_beginning()
        self.state.write(self.folder.path)  # an interrupt in the first epoch can be resumed too
        write_data(self.data, config.data_file)
        try:
            for seed in self.planned:
                self.train(self.result_of(seed))
        except TrainingFailed as error:
            self.failure = str(error)
            say(self.failure)
        plan = Plan(
            seeds=len(self.planned),
            total_steps=config.total_steps,
            lockstep_steps=config.snapshot_steps,
            test_size=len(self.data.test),
            precision=config.precision,
        )
        checks = judge(self.seeds, plan, self.failure)
        summary = self.summary(checks, all_passed(checks))
        self.write(checks, summary)
        self.say_end(checks, summary)
        return 0 if all_passed(checks) else 1

    def result_of(self, seed: int) -> SeedResult:
        """Return what a seed has given before: nothing, if its checkpoints are missing."""
        from experiments.parity.results import SeedResult

        place = seed - self.planned.start
        if place < len(self.seeds):
            done = self.seeds[place].epochs_done
            config = replace(self.config, seed=seed)
            if done == config.epochs or all(
                config.checkpoint_file(side, done).is_file() for side in SIDES
            ):
                return self.seeds[place]
        self.seeds[place:] = [SeedResult(seed)]
        return self.seeds[place]

    def train(self, result: SeedResult) -> None:
        """Let both trainings of a seed run in turns; compare at each snapshot when it is there."""
        from experiments.parity.alternate import Trainings

        done = result.epochs_done
        config = replace(self.config, seed=result.seed, epochs_done=done)
        if done == config.epochs:
            return
        self.say_seed(result)
        with Trainings(config) as trainings:
            for side, start in trainings.starts().items():
                result.sides[side].begin(start)
            for side, epoch in trainings.epochs():
                result.sides[side].epochs.append(epoch)
                self.say_epoch(result, side)
                if side == SIDES[-1]:
                    self.compare_snapshots(config, result)
                    self.keep(config, result.epochs_done)

    def keep(self, config: Config, epochs: int) -> None:
        """Write down what both sides have done, and remove the checkpoints before that."""
        self.state.seconds = round(time.monotonic() - self.began, 1)
        self.state.write(self.folder.path)
        self.write_tables()
        for side in SIDES:
            config.checkpoint_file(side, epochs - 1).unlink(missing_ok=True)
            if epochs == config.epochs:
                config.checkpoint_file(side, epochs).unlink(missing_ok=True)

    def compare_snapshots(self, config: Config, result: SeedResult) -> None:
        """Do the lockstep comparison for every snapshot that is new."""
        import torch

        from experiments.parity.lockstep import COMPARISONS, compare

        def build(side: str) -> nn.Module:
            from experiments.parity.process import make_classifier

            return make_classifier(config, side, len(self.data.classes), self.data.image_size).net

        for step in config.snapshot_steps:
            file = config.snapshot_file(step)
            if not file.is_file():
                continue
            saved = torch.load(file, weights_only=True)
            file.unlink()
            rows = compare(
                step,
                build,
                saved["state"],
                saved["x"],
                saved["y"],
                config.channels_last,
                config.precision,
            )
            result.rows += rows
            worst = {
                name: max(row.error for row in rows if row.comparison == name)
                for name in COMPARISONS[config.precision]
            }
            bad = sum(not row.ok for row in rows)
            say(
                f"  lockstep before step {step}: largest error "
                + ", ".join(f"{name} {error:.1e}" for name, error in worst.items())
                + (f"; {bad} of {len(rows)} BEYOND THE BOUND" if bad else "; each within its bound")
            )

    def summary(self, checks: list[Check], parity: bool) -> dict[str, Any]:
        """Return what summary.json says."""
        from experiments.common.machine import machine, versions
        from experiments.parity.results import over_seeds

        config, data = self.config, self.data
        failing = [check.name for check in checks if not check.ok]
        return {
            "verdict": f"Parity holds: all {len(checks)} checks."
            if parity
            else f"Parity does not hold: {len(failing)} of {len(checks)} checks fail "
            f"({', '.join(failing)}).",
            "parity": parity,
            "checks": [
                {
                    "name": check.name,
                    "ok": check.ok,
                    "measured": check.measured,
                    "allowed": check.allowed,
                    "rule": check.rule,
                }
                for check in checks
            ],
            "failure": self.failure,
            "command": shlex.join(["python", "-m", "experiments.parity", *self.state.arguments]),
            "started": self.state.started,
            "seconds": round(time.monotonic() - self.began, 1),
            "settings": {
                "network": config.network,
                "stem": config.stem if config.network == "resnet18" else None,
                "seeds": list(self.planned),
                "epochs": config.epochs,
                "total_steps": config.total_steps,
                "batch_size": config.batch_size,
                "lr": config.lr,
                "weight_decay": config.weight_decay,
                "augment": config.augment,
                "channels_last": config.channels_last,
                "accelerator": config.accelerator,
                "precision": config.precision,
                "lockstep_steps": config.snapshot_steps,
            },
            "data": {
                "name": data.name,
                "train": len(data.train),
                "test": len(data.test),
                "classes": len(data.classes),
                "image_size": data.image_size,
                "mean": data.mean,
                "std": data.std,
            },
            "trainings": over_seeds(self.seeds),
            "seeds": [result.summary() for result in self.seeds],
            "machine": machine(config.threads),
            "versions": versions(),
        }

    def write_tables(self) -> None:
        """Write the tables of the trainings as far as they have come."""
        self.folder.write_csv(
            "metrics.csv",
            [
                "seed",
                "epoch",
                "side",
                "train_loss",
                "train_accuracy",
                "test_loss",
                "test_accuracy",
                "seconds_per_step",
                "peak_memory_bytes",
            ],
            (
                [
                    result.seed,
                    e.epoch,
                    side,
                    sum(e.losses) / len(e.losses),
                    e.train_accuracy,
                    e.test_loss,
                    e.test_accuracy,
                    sum(e.seconds) / len(e.seconds),
                    e.peak_bytes,
                ]
                for result in self.seeds
                for side in SIDES
                for e in result.sides[side].epochs
            ),
        )
        self.folder.write_csv(
            "steps.csv",
            ["seed", "step", "side", "loss", "seconds", "batch"],
            (
                [result.seed, step, side, *values]
                for result in self.seeds
                for side, r in result.sides.items()
                for step, values in enumerate(zip(r.losses, r.seconds, r.batches, strict=True))
            ),
        )

    def write(self, checks: list[Check], summary: dict[str, Any]) -> None:
        """Write tables, pictures and report, and the summary last."""
        from dataclasses import asdict

        from experiments.common.index import renew_index
        from experiments.parity.report import write_report

        path = self.folder.path
        self.state.write(path)
        self.write_tables()
        rows = [
            {"seed": result.seed, **asdict(row), "ok": row.ok}
            for result in self.seeds
            for row in result.rows
        ]
        self.folder.write_csv("lockstep.csv", list(rows[0]) if rows else [], map(dict.values, rows))
        write_report(path, summary, checks, self.seeds)
        self.folder.finish(summary)
        renew_index(path.parent)

    def say_beginning(self) -> None:
        """Say what is about to happen."""
        config, data = self.config, self.data
        n = len(self.planned)
        seeds = f"seed {config.seed}" if n == 1 else f"seeds {config.seed} to {config.seed + n - 1}"
        say(
            f"{LABELS['torch']} and {LABELS['bp']}: {config.network} on {data.name}, "
            f"{len(data.train):,} training and {len(data.test):,} test pictures\n"
            f"{config.total_steps:,} steps of {config.batch_size} pictures in "
            f"{config.epochs} epochs, {seeds}, {config.threads} threads\n"
        )

    def say_seed(self, result: SeedResult) -> None:
        """Say which seed comes, if there are several, and where it goes on."""
        where = f", after epoch {result.epochs_done}" if result.epochs_done else ""
        if len(self.planned) > 1 or where:
            say(f"seed {result.seed}{where}")

    def say_epoch(self, result: SeedResult, side: str) -> None:
        """Say how the last epoch of one side went."""
        epoch = result.sides[side].epochs[-1]
        head = f"epoch {epoch.epoch + 1}/{self.config.epochs}"
        say(
            f"{head if side == SIDES[0] else '':12s} {LABELS[side]:15s} "
            f"loss {sum(epoch.losses) / len(epoch.losses):.4f}   "
            f"test accuracy {epoch.test_accuracy:7.2%}   "
            f"{sum(epoch.seconds) / len(epoch.seconds):.3f} s a step"
        )

    def say_end(self, checks: list[Check], summary: dict[str, Any]) -> None:
        """Say the figures, the checks and the verdict."""
        from experiments.parity.report import training_figures

        say(f"\n{'':28s} {LABELS['torch']:>17s} {LABELS['bp']:>17s} {'ratio':>7s}")
        for label, (first, second, ratio) in training_figures(summary["trainings"]):
            say(f"{label:28s} {first:>17s} {second:>17s} {ratio:>7s}".rstrip())
        width = max(len(check.measured) for check in checks)
        say(f"\n{'':5s} {'check':22s} {'measured':{width}s}  allowed")
        for check in checks:
            mark = "ok" if check.ok else "FAIL"
            say(f"{mark:5s} {check.name:22s} {check.measured:{width}s}  {check.allowed}".rstrip())
        say(f"\n{summary['verdict']}\nReport: {self.folder.path / 'report.html'}")


def say(text: str) -> None:
    """Print at once; wipe a progress bar that stands on the line."""
    print(("\r\033[K" if sys.stdout.isatty() else "") + text, flush=True)
