"""Train, validate, test and predict from a YAML file: ``python -m experiments.train --help``."""

from __future__ import annotations

import csv
import sys
import warnings
from argparse import ArgumentError
from pathlib import Path
from typing import Any

import torch
from lightning import Trainer
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import GradientAccumulationScheduler
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI

from experiments.common.atomic_write import atomic_write
from experiments.common.errors import UsageError
from experiments.common.silence import silence_lightning
from experiments.training.module import Classifier, ImageDataModule
from experiments.training.report import write_report

LEAST = {
    "accumulate_grad_batches": 1,
    "check_val_every_n_epoch": 1,
    "gradient_clip_val": 0,
    "log_every_n_steps": 0,
}


class Command(LightningCLI):
    """The command line: a study and its pictures."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Let the data say how large the network's input and output are."""
        for field in ("classes", "image_size"):
            parser.link_arguments(f"data.{field}", f"model.{field}", apply_on="instantiate")

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Look into the checkpoint first: Lightning takes the model's options from there."""
        super().parse_arguments(parser, args)
        config = self.config[self.config.subcommand]
        check(config)
        if config.get("ckpt_path") is not None:
            kept = read_checkpoint(Path(config.ckpt_path)).get("hyper_parameters", {})
            told = vars(config.model)
            other = [
                f"{name} {kept[name]} (not {told[name]})"
                for name in kept
                if name in told and told[name] != kept[name]
            ]
            if other:
                print(f"--ckpt_path: the checkpoint's {', '.join(other)}", file=sys.stderr)

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Let what the trainer says of its options be a sentence."""
        try:
            return super().instantiate_trainer(**kwargs)
        except (TypeError, ValueError, RuntimeError, ImportError) as error:
            raise UsageError(f"--trainer: {error}") from error

    def before_fit(self) -> None:
        """Find out now what would go wrong when hours have gone into the training."""
        callbacks = self.trainer.callbacks  # type: ignore[attr-defined]
        if any(isinstance(callback, GradientAccumulationScheduler) for callback in callbacks):
            raise UsageError(
                "--trainer.callbacks: GradientAccumulationScheduler changes how many steps there "
                "are, which the learning rate is planned for; give "
                "--trainer.accumulate_grad_batches"
            )
        Path(self.trainer.default_root_dir).mkdir(parents=True, exist_ok=True)

    def before_predict(self) -> None:
        """Make the study's folder."""
        if self.trainer.world_size > 1:
            raise UsageError(
                f"--trainer.devices: expected one process for predict, got "
                f"{self.trainer.world_size}, which would have a share of the pictures each"
            )
        Path(self.trainer.default_root_dir).mkdir(parents=True, exist_ok=True)

    def after_predict(self) -> None:
        """Write the class of every test picture into the study's folder, and say where."""
        pictures = self.datamodule.pictures
        found = torch.cat(self.trainer.predict_loop.predictions).tolist()
        path = Path(self.trainer.default_root_dir) / "predictions.csv"
        with atomic_write(path) as part, part.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(("picture", "class", "predicted"))
            for index, predicted in enumerate(found):
                label = pictures.test.labels[index]
                writer.writerow((index, pictures.classes[label], pictures.classes[predicted]))
        print(path)

    def after_fit(self) -> None:
        """Write report.html into the study's folder."""
        logs = self.trainer.log_dir
        if self.trainer.is_global_zero and logs:
            write_report(Path(self.trainer.default_root_dir), Path(logs))


def check(config: Any) -> None:
    """Refuse options that Lightning takes and makes nothing of, or a traceback."""
    if not 0 <= int(config.seed_everything) < 2**32:
        raise UsageError(
            f"--seed_everything: expected 0 to {2**32 - 1}, got {config.seed_everything}"
        )
    for name, least in LEAST.items():
        value = config.trainer[name]
        if value is not None and not value >= least:
            raise UsageError(f"--trainer.{name}: expected at least {least}, got {value}")
    if config.trainer.val_check_interval == 0:
        raise UsageError("--trainer.val_check_interval: expected more than 0, got 0")
    if config.trainer.overfit_batches:
        raise UsageError("--trainer.overfit_batches: give --data.limit_train instead")


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint of this program."""
    if not path.is_file():
        raise UsageError(f"--ckpt_path: there is no file {path}")
    try:
        kept = torch.load(path, map_location="cpu", weights_only=True)
        if "state_dict" in kept and "hyper_parameters" in kept:
            return kept
    except Exception as error:
        raise UsageError(f"--ckpt_path: {path} is no checkpoint that can be read") from error
    raise UsageError(f"--ckpt_path: expected a checkpoint of a study, got {path}")


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    silence_lightning()
    # The warning is about loaders without a state; TrainBatches asks the trainer where to go on.
    warnings.filterwarnings("ignore", message=".*your dataloader is not resumable.*")
    try:
        Command(
            Classifier,
            ImageDataModule,
            args=arguments,
            seed_everything_default=0,
            save_config_kwargs={"overwrite": True},
        )
    except (UsageError, MisconfigurationException, ArgumentError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0
