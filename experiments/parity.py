"""Does ConvBP2d train a network as nn.Conv2d does? ``python -m experiments.parity`` answers.

One network is built twice from one seed, with torch.nn.Conv2d and with bp.ConvBP2d, and read
in two ways:

1. Lockstep (``lockstep``): the same weights and batch through both; every layer's output and
   every parameter's gradient is compared, in float64 and float32, at the start and at later steps.
2. Two trainings (``training``, ``conductor``): independent, on the same batches in the same
   order; loss and accuracy, seconds a step, peak memory.

Parity holds, and the exit status is 0, if every rule in ``verdict.RULES`` does:

- each network has its convolutions, and both start from the same bits;
- all batches are the same bits in the same order;
- lockstep in float64 agrees to rounding (8uD, see ``lockstep``) in every tensor at every step;
- lockstep in float32: ConvBP2d's error against float64 is comparable with nn.Conv2d's;
- both trainings finish with finite losses;
- the first losses agree to rounding in float32;
- the final test accuracies agree within what the size of the test set can tell.

Each run writes a fresh folder: metrics.csv (epochs), steps.csv, lockstep.csv, summary.json, three
pictures and report.html, which contains them.
"""

from __future__ import annotations

import math
import os
import shlex
import sys
from datetime import datetime
from typing import TYPE_CHECKING, Any

from experiments.errors import UsageError
from experiments.options import parse
from experiments.results import TrainingResult
from experiments.runfolder import RunFolder
from experiments.spec import LABELS, SIDES, Spec

if TYPE_CHECKING:
    import argparse

    from torch import nn

    from experiments.data import Data
    from experiments.lockstep import Row
    from experiments.verdict import Check


def main(arguments: list[str] | None = None) -> int:
    """Run the experiment; return the exit status."""
    _, args = parse(arguments)
    share_the_machine()
    try:
        return run(args, sys.argv[1:] if arguments is None else arguments)
    except UsageError as error:
        print(f"python -m experiments.parity: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nInterrupted; a run folder that was begun is marked UNFINISHED.", file=sys.stderr)
        return 130


def share_the_machine() -> None:
    """Let waiting threads sleep instead of spin, unless the environment says otherwise.

    A network of small layers waits for its threads some thousand times a step. While other
    programs want the same cores, spinning holds up the very thread that is waited for, and a
    step takes several times as long. OpenMP reads this once, when torch is loaded; the two
    trainings inherit it, so that it is the same for both.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def run(args: argparse.Namespace, arguments: list[str]) -> int:
    """Load the data, open a run folder, train and compare; mark the folder if that breaks off."""
    from experiments.data import load

    data = load(
        args.data,
        root=args.root,
        download=args.download,
        image_size=args.image_size,
        limit_train=args.limit_train,
        limit_test=args.limit_test,
    )
    epochs, total_steps, lockstep_steps = plan(args, data)
    folder = RunFolder(args.runs, args.name, f"{args.network}-{args.data}")
    spec = Spec(
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
        snapshot_steps=lockstep_steps,
        scratch=folder.scratch,
        progress=sys.stdout.isatty(),
    )
    try:
        return Parity(spec, data, folder, arguments).run()
    except BaseException as error:
        interrupted = isinstance(error, KeyboardInterrupt)
        folder.mark("Interrupted.\n" if interrupted else f"Broken off by {error!r}.\n")
        folder.drop_scratch()
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

    def __init__(self, spec: Spec, data: Data, folder: RunFolder, arguments: list[str]) -> None:
        self.spec, self.data, self.folder, self.arguments = spec, data, folder, arguments
        self.started = datetime.now()
        self.results = {side: TrainingResult() for side in SIDES}
        self.rows: list[Row] = []
        self.failure: str | None = None

    def run(self) -> int:
        """Train, compare, judge, write and tell."""
        import torch

        from experiments.conductor import TrainingFailed
        from experiments.verdict import holds, judge

        torch.set_num_threads(self.spec.threads)
        self.say_beginning()
        try:
            self.train()
        except TrainingFailed as error:
            self.failure = str(error)
            say(self.failure)
        self.compare_snapshots()
        checks = judge(
            self.results,
            self.rows,
            test_size=len(self.data.test),
            total_steps=self.spec.total_steps,
            lockstep_steps=self.spec.snapshot_steps,
            failure=self.failure,
        )
        summary = self.summary(checks, holds(checks))
        self.write(checks, summary)
        self.say_end(checks, summary)
        return 0 if holds(checks) else 1

    def train(self) -> None:
        """Let both trainings run in turns; compare at each snapshot as soon as it is there."""
        from experiments.conductor import Trainings
        from experiments.data import write_data

        write_data(self.data, self.spec.data_file)
        with Trainings(self.spec) as trainings:
            for side, start in trainings.starts().items():
                self.results[side].begin(start)
            for side, record in trainings.epochs():
                self.results[side].epochs.append(record)
                self.say_epoch(side)
                if side == SIDES[-1]:
                    self.write_tables()
                    self.compare_snapshots()

    def compare_snapshots(self) -> None:
        """Do the lockstep comparison for every snapshot that is new."""
        import torch

        from experiments.lockstep import COMPARISONS, compare

        for step in self.spec.snapshot_steps:
            file = self.spec.snapshot_file(step)
            if not file.is_file():
                continue
            saved = torch.load(file, weights_only=True)
            file.unlink()
            rows = compare(
                step,
                self.build,
                saved["state"],
                saved["x"],
                saved["y"],
                self.spec.channels_last,
            )
            self.rows += rows
            worst = {
                name: max(row.error for row in rows if row.comparison == name)
                for name in COMPARISONS
            }
            bad = sum(not row.ok for row in rows)
            say(
                f"  lockstep before step {step}: largest error "
                + ", ".join(f"{name} {error:.1e}" for name, error in worst.items())
                + (f"; {bad} of {len(rows)} BEYOND THE BOUND" if bad else "; all within bounds")
            )

    def build(self, side: str) -> nn.Module:
        """Build one side's network."""
        from experiments.networks import initial_network

        return initial_network(self.spec, side, len(self.data.classes), self.data.image_size)

    def summary(self, checks: list[Check], parity: bool) -> dict[str, Any]:
        """Return what summary.json says."""
        from experiments.machine import machine, versions

        spec, data = self.spec, self.data
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
            "command": shlex.join(["python", "-m", "experiments.parity", *self.arguments]),
            "seed": spec.seed,
            "started": self.started.isoformat(timespec="seconds"),
            "seconds": round((datetime.now() - self.started).total_seconds(), 1),
            "settings": {
                "network": spec.network,
                "stem": spec.stem if spec.network == "resnet18" else None,
                "epochs": spec.epochs,
                "total_steps": spec.total_steps,
                "batch_size": spec.batch_size,
                "lr": spec.lr,
                "weight_decay": spec.weight_decay,
                "augment": spec.augment,
                "channels_last": spec.channels_last,
                "lockstep_steps": spec.snapshot_steps,
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
            "trainings": {side: self.results[side].summary() for side in SIDES},
            "machine": machine(spec.threads),
            "versions": versions(),
        }

    def write_tables(self) -> None:
        """Write the tables of the trainings as far as they have come."""
        self.folder.write_csv(
            "metrics.csv",
            [
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
                    e.epoch,
                    side,
                    sum(e.losses) / len(e.losses),
                    e.train_accuracy,
                    e.test_loss,
                    e.test_accuracy,
                    sum(e.seconds) / len(e.seconds),
                    e.peak_bytes,
                ]
                for side in SIDES
                for e in self.results[side].epochs
            ),
        )
        self.folder.write_csv(
            "steps.csv",
            ["step", "side", "loss", "seconds", "batch"],
            (
                [step, side, *values]
                for side, r in self.results.items()
                for step, values in enumerate(zip(r.losses, r.seconds, r.batches, strict=True))
            ),
        )

    def write(self, checks: list[Check], summary: dict[str, Any]) -> None:
        """Write tables, pictures and report, and the summary last."""
        from experiments.figures import draw_curves, draw_lockstep32, draw_lockstep64
        from experiments.report import write_report

        path = self.folder.path
        self.write_tables()
        self.folder.write_csv(
            "lockstep.csv",
            [
                "step",
                "comparison",
                "kind",
                "name",
                "layer",
                "torch_error",
                "bp_error",
                "length",
                "allowed",
                "ok",
            ],
            (
                [
                    r.step,
                    r.comparison,
                    r.kind,
                    r.name,
                    r.layer,
                    r.torch_error,
                    r.error,
                    r.length,
                    r.allowed,
                    r.ok,
                ]
                for r in self.rows
            ),
        )
        draw_curves(path / "curves.png", self.results)
        draw_lockstep64(path / "lockstep64.png", self.rows)
        draw_lockstep32(path / "lockstep32.png", self.rows)
        write_report(path, summary, checks, self.rows)
        self.folder.finish(summary)

    def say_beginning(self) -> None:
        """Say what is about to happen."""
        spec, data = self.spec, self.data
        say(
            f"{LABELS['torch']} and {LABELS['bp']}: {spec.network} on {data.name}, "
            f"{len(data.train):,} training and {len(data.test):,} test pictures\n"
            f"{spec.total_steps:,} steps of {spec.batch_size} pictures in {spec.epochs} epochs, "
            f"seed {spec.seed}, {spec.threads} threads\n"
        )

    def say_epoch(self, side: str) -> None:
        """Say how the last epoch of one side went."""
        epoch = self.results[side].epochs[-1]
        head = f"epoch {epoch.epoch + 1}/{self.spec.epochs}"
        say(
            f"{head if side == SIDES[0] else '':12s} {LABELS[side]:15s} "
            f"loss {sum(epoch.losses) / len(epoch.losses):.4f}   "
            f"test accuracy {epoch.test_accuracy:7.2%}   "
            f"{sum(epoch.seconds) / len(epoch.seconds):.3f} s a step"
        )

    def say_end(self, checks: list[Check], summary: dict[str, Any]) -> None:
        """Say the figures, the checks and the verdict."""
        from experiments.report import training_figures

        say(f"\n{'':28s} {LABELS['torch']:>15s} {LABELS['bp']:>15s} {'ratio':>7s}")
        for label, (first, second, ratio) in training_figures(summary["trainings"]):
            say(f"{label:28s} {first:>15s} {second:>15s} {ratio:>7s}".rstrip())
        width = max(len(check.measured) for check in checks)
        say(f"\n{'':5s} {'check':22s} {'measured':{width}s}  allowed")
        for check in checks:
            mark = "ok" if check.ok else "FAIL"
            say(f"{mark:5s} {check.name:22s} {check.measured:{width}s}  {check.allowed}".rstrip())
        say(f"\n{summary['verdict']}\nReport: {self.folder.path / 'report.html'}")


def say(text: str) -> None:
    """Print at once; wipe a progress bar that stands on the line."""
    print(("\r\033[K" if sys.stdout.isatty() else "") + text, flush=True)


if __name__ == "__main__":
    sys.exit(main())
