"""One training with Lightning, in a process of its own, a few steps at a time when told to.

What is trained is the ``Classifier`` of ``experiments.train``, on its batches. The process answers
over a pipe: first what the training starts from, then the record of each epoch, once the
checkpoint after it is written. What is not part of a training step (fingerprints,
snapshots, the test pass, checkpoints, waiting for the turn) lies outside the time that is
measured.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import lightning as L
import torch
from lightning.pytorch.callbacks import TQDMProgressBar

from experiments.common.atomic_write import atomic_write
from experiments.common.batches import digest, loader_in_order
from experiments.common.data import read_data
from experiments.common.memory import PeakMemory, peak_memory
from experiments.common.networks import convolutions
from experiments.common.silence import silence_lightning
from experiments.parity.config import LABELS, Config
from experiments.parity.results import Epoch, Start
from experiments.training.module import Classifier, TrainBatches

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

TURN_STEPS = 10
CONV = {"torch": "torch", "bp": "convbp"}


class Turns(L.Callback):
    """Wait for the turn every TURN_STEPS steps; answer with the record after the test pass."""

    def __init__(self, pipe: Connection, side: str, config: Config) -> None:
        self.pipe, self.side, self.config = pipe, side, config
        self.record = Epoch(0)

    def on_train_epoch_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Wait until the other training is at rest."""
        self.pipe.recv()
        self.record = Epoch(trainer.current_epoch)

    def on_train_batch_start(
        self, trainer: L.Trainer, module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Let the other training have its turn."""
        if batch_idx and batch_idx % TURN_STEPS == 0:
            self.pipe.send(None)
            self.pipe.recv()

    def on_train_epoch_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Save, send the record; after the last epoch rest until the other training ends too."""
        metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
        self.record.train_accuracy = metrics["train_accuracy"]
        self.record.test_accuracy = metrics["val_accuracy"]
        self.record.test_loss = metrics["val_loss"]
        self.save(trainer)
        self.pipe.send(self.record)
        if trainer.current_epoch + 1 == trainer.max_epochs:
            self.pipe.recv()

    def save(self, trainer: L.Trainer) -> None:
        """Write the checkpoint of this epoch, in one move."""
        file = self.config.checkpoint_file(self.side, trainer.current_epoch + 1)
        with atomic_write(file) as part:
            trainer.save_checkpoint(part)


class Snapshots(L.Callback):
    """Keep the weights and the batch just before the chosen steps, for the lockstep reading."""

    def __init__(self, config: Config) -> None:
        self.config = config

    def on_train_batch_start(
        self, trainer: L.Trainer, module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Write both before a chosen step."""
        assert isinstance(module, Classifier)
        if trainer.global_step in self.config.snapshot_steps:
            x, y = batch
            torch.save(
                {"state": module.net.state_dict(), "x": x, "y": y},
                self.config.snapshot_file(trainer.global_step),
            )


class Meter(L.Callback):
    """The last callback: fingerprints each batch, times each step, keeps losses and memory."""

    def __init__(self, turns: Turns) -> None:
        self.turns = turns
        self.memory: PeakMemory | None = None
        self.started = 0.0

    def on_train_batch_start(
        self, trainer: L.Trainer, module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Take the fingerprint, then start the clock."""
        self.turns.record.batches.append(digest(*batch))
        if self.memory is None:
            self.memory = peak_memory(module.device)
        wait_for(module.device)
        self.started = time.perf_counter()

    def on_train_batch_end(
        self,
        trainer: L.Trainer,
        module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Stop the clock and note loss and memory; stop the training after its last step."""
        assert self.memory is not None
        wait_for(module.device)
        record = self.turns.record
        record.seconds.append(time.perf_counter() - self.started)
        record.losses.append(float(outputs["loss"]))
        record.peak_bytes = self.memory.peak_bytes()
        record.start_bytes = self.memory.start_bytes
        record.memory_method = self.memory.method
        if trainer.global_step >= self.turns.config.total_steps:
            # Lightning's max_steps would end without the test pass, and resume an epoch's end.
            trainer.should_stop = True


def wait_for(device: torch.device) -> None:
    """Wait until a GPU has done what it was given; a CPU always has."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


class Bar(TQDMProgressBar):
    """Lightning's progress bar for one epoch: labelled, and gone before the record is sent."""

    def __init__(self, label: str) -> None:
        super().__init__()
        self.label = label

    def on_train_start(self, *_: Any) -> None:
        """Show nothing while the other training has its turn."""

    def on_train_epoch_start(self, trainer: L.Trainer, *args: Any) -> None:
        """Show a new bar with side and epoch."""
        self.train_progress_bar = self.init_train_tqdm()
        self.train_progress_bar.leave = False
        super().on_train_epoch_start(trainer, *args)
        self.train_progress_bar.set_description(
            f"{self.label} epoch {trainer.current_epoch + 1}/{trainer.max_epochs}"
        )

    def on_validation_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Clear both lines: the test pass ends the epoch."""
        super().on_validation_end(trainer, module)
        self.train_progress_bar.close()

    def on_train_epoch_end(self, *_: Any) -> None:
        """Leave the terminal to the other process."""


def train(pipe: Connection, side: str, config: Config) -> None:
    """Train one side as the other end of the pipe says."""
    silence_lightning()
    torch.set_num_threads(config.threads)
    strict_float32(config.accelerator)
    data = read_data(config.data_file)
    classifier = make_classifier(config, side, len(data.classes), data.image_size)
    pipe.send(
        Start(
            weights=digest(*classifier.net.state_dict().values()),
            parameters=sum(parameter.numel() for parameter in classifier.net.parameters()),
            convolutions=[type(conv).__name__ for _, conv in convolutions(classifier.net)],
        )
    )
    turns = Turns(pipe, side, config)
    callbacks: list[L.Callback] = [turns]
    if side == "torch":
        callbacks.append(Snapshots(config))
    if config.progress:
        callbacks.append(Bar(LABELS[side]))
    callbacks.append(Meter(turns))
    L.Trainer(
        accelerator=config.accelerator,
        devices=1,
        precision=config.precision,  # type: ignore[arg-type]
        max_epochs=config.epochs,
        callbacks=callbacks,
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=config.progress,
        num_sanity_val_steps=0,
    ).fit(
        classifier,
        TrainBatches(data, config.batch_size, config.seed, config.augment, classifier),
        loader_in_order(data.test, data, config.batch_size),
        ckpt_path=config.checkpoint_file(side, config.epochs_done) if config.epochs_done else None,
        weights_only=False,
    )


def make_classifier(config: Config, side: str, classes: int, image_size: int) -> Classifier:
    """Build what one side trains."""
    classifier = Classifier(
        network=config.network,
        conv=CONV[side],  # type: ignore[arg-type]
        stem=config.stem,  # type: ignore[arg-type]
        lr=config.lr,
        weight_decay=config.weight_decay,
        seed=config.seed,
        channels_last=config.channels_last,
        classes=classes,
        image_size=image_size,
    )
    classifier.total_steps = config.total_steps
    return classifier


def strict_float32(accelerator: str) -> None:
    """Let float32 be float32 on a GPU too: TF32 would hide in its rounding what is looked for.

    These are settings of the process, which a CPU does not need.
    """
    if accelerator == "cpu":
        return
    torch.backends.cudnn.fp32_precision = "ieee"
    torch.backends.cuda.matmul.fp32_precision = "ieee"
