"""One training with Lightning, in a process of its own, a few steps at a time when told to.

The process answers over a pipe: first what it starts from, then after each epoch the record of
it. What is not part of a training step (fingerprints, snapshots, the test pass, waiting for the
turn) lies outside the time that is measured.
"""

from __future__ import annotations

import logging
import time
import warnings
from typing import TYPE_CHECKING, Any

import lightning as L
import torch
import torch.nn.functional as F
from lightning.pytorch.callbacks import TQDMProgressBar
from torch import Tensor, nn

from experiments.batches import digest, loader_for_test, loader_for_training
from experiments.data import read_data
from experiments.memory import PeakMemory
from experiments.networks import convolutions, initial_network
from experiments.results import Epoch, Start
from experiments.spec import LABELS, Spec

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

WARM_UP_SHARE = 0.2
TURN_STEPS = 10
MOMENTUM = 0.9


class Classifier(L.LightningModule):
    """A network with cross entropy and SGD; the learning rate rises, then falls to zero."""

    def __init__(self, net: nn.Module, spec: Spec) -> None:
        super().__init__()
        self.net, self.spec = net, spec
        self.reset_counts()

    def reset_counts(self) -> None:
        """Start counting right answers anew."""
        self.train_right = self.train_seen = self.test_right = self.test_seen = 0
        self.test_loss_sum = 0.0

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, 3, H, W) to logits (B, classes)."""
        if self.spec.channels_last:
            x = x.contiguous(memory_format=torch.channels_last)
        return self.net(x)

    def training_step(self, batch: tuple[Tensor, Tensor], index: int) -> Tensor:
        """Return the mean loss of one batch."""
        x, y = batch
        logits = self(x)
        self.train_right += int((logits.detach().argmax(1) == y).sum())
        self.train_seen += len(y)
        return F.cross_entropy(logits, y)

    def validation_step(self, batch: tuple[Tensor, Tensor], index: int) -> None:
        """Count the loss and the right answers of one test batch."""
        x, y = batch
        logits = self(x)
        self.test_right += int((logits.argmax(1) == y).sum())
        self.test_seen += len(y)
        self.test_loss_sum += float(F.cross_entropy(logits, y, reduction="sum"))

    def configure_optimizers(self) -> Any:
        """Return SGD with momentum, and a one-cycle schedule over the steps of this run."""
        spec = self.spec
        optimizer = torch.optim.SGD(
            self.parameters(), spec.lr, MOMENTUM, weight_decay=spec.weight_decay, nesterov=True
        )
        if spec.total_steps * WARM_UP_SHARE < 2:
            return optimizer
        schedule = torch.optim.lr_scheduler.OneCycleLR(
            optimizer,
            spec.lr,
            total_steps=spec.total_steps,
            pct_start=WARM_UP_SHARE,
            cycle_momentum=False,
        )
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": schedule, "interval": "step"},
        }


class Turns(L.Callback):
    """Wait for the turn every TURN_STEPS steps; answer with the record after the test pass."""

    def __init__(self, pipe: Connection) -> None:
        self.pipe = pipe
        self.record = Epoch(0)

    def on_train_epoch_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Wait until the other training is at rest."""
        assert isinstance(module, Classifier)
        self.pipe.recv()
        self.record = Epoch(trainer.current_epoch)
        module.reset_counts()

    def on_train_batch_start(
        self, trainer: L.Trainer, module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Let the other training have its turn."""
        if batch_idx and batch_idx % TURN_STEPS == 0:
            self.pipe.send(None)
            self.pipe.recv()

    def on_train_epoch_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Send the record; after the last epoch rest until the other training ends too."""
        assert isinstance(module, Classifier)
        self.record.train_accuracy = module.train_right / max(module.train_seen, 1)
        self.record.test_accuracy = module.test_right / max(module.test_seen, 1)
        self.record.test_loss = module.test_loss_sum / max(module.test_seen, 1)
        self.pipe.send(self.record)
        if trainer.current_epoch + 1 == trainer.max_epochs:
            self.pipe.recv()


class Snapshots(L.Callback):
    """Keep the weights and the batch just before the chosen steps, for the lockstep reading."""

    def __init__(self, spec: Spec) -> None:
        self.spec = spec

    def on_train_batch_start(
        self, trainer: L.Trainer, module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Write them if this is such a step."""
        assert isinstance(module, Classifier)
        if trainer.global_step in self.spec.snapshot_steps:
            x, y = batch
            torch.save(
                {"state": module.net.state_dict(), "x": x, "y": y},
                self.spec.snapshot_file(trainer.global_step),
            )


class Meter(L.Callback):
    """Fingerprint each batch, time each step, keep its loss, watch the memory. Comes last."""

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
            self.memory = PeakMemory()
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
        assert isinstance(module, Classifier) and self.memory is not None
        record = self.turns.record
        record.seconds.append(time.perf_counter() - self.started)
        record.losses.append(float(outputs["loss"]))
        record.peak_bytes = self.memory.peak_bytes()
        record.start_bytes = self.memory.start_bytes
        record.memory_method = self.memory.method
        if trainer.global_step >= module.spec.total_steps:
            trainer.should_stop = True


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


def train(pipe: Connection, side: str, spec: Spec) -> None:
    """Train one side as the other end of the pipe says."""
    quieten()
    torch.set_num_threads(spec.threads)
    data = read_data(spec.data_file)
    net = initial_network(spec, side, len(data.classes), data.image_size)
    pipe.send(
        Start(
            weights=digest(*net.state_dict().values()),
            parameters=sum(parameter.numel() for parameter in net.parameters()),
            convolutions=[type(conv).__name__ for _, conv in convolutions(net)],
        )
    )
    turns = Turns(pipe)
    callbacks: list[L.Callback] = [turns]
    if side == "torch":
        callbacks.append(Snapshots(spec))
    if spec.progress:
        callbacks.append(Bar(LABELS[side]))
    callbacks.append(Meter(turns))
    L.Trainer(
        accelerator="cpu",
        devices=1,
        max_epochs=spec.epochs,
        callbacks=callbacks,
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=spec.progress,
        num_sanity_val_steps=0,
    ).fit(
        Classifier(net, spec),
        loader_for_training(data, spec.batch_size, spec.seed, spec.augment),
        loader_for_test(data, spec.batch_size),
    )


def quieten() -> None:
    """Silence what Lightning says about hardware and loaders that are not in question here."""
    for name in ("lightning.pytorch", "lightning.fabric", "pytorch_lightning"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    warnings.filterwarnings("ignore", message=".*LeafSpec.* is deprecated.*")
    warnings.filterwarnings("ignore", message=".*number of training batches.*")
    warnings.filterwarnings("ignore", message=".*lr_scheduler.step.*optimizer.step.*")
