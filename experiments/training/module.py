"""What ``python -m experiments.train`` trains: a network by its name, and the data for it.

Whatever is drawn at random in training is drawn from the seed, the epoch, the batch and the
process, never from a state carried along: a training resumed from a checkpoint, in the middle
of an epoch too, goes on with the bits it would have had.
"""

from __future__ import annotations

import hashlib
import math
import re
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import lightning as L
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from experiments.common.batches import BatchDataset, loader_in_order
from experiments.common.data import load
from experiments.common.errors import UsageError
from experiments.common.networks import NETWORKS, build, check_size

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch.utils.data import DataLoader

    from experiments.common.data import Data, Pictures

WARM_UP_SHARE = 0.2
MOMENTUM = 0.9


def seed_of(*parts: int) -> int:
    """Return a seed of its own for each combination of numbers."""
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:7], "big")


def check_seed(name: str, seed: int) -> None:
    """Refuse what torch's generators do not take, or take for another."""
    if not 0 <= seed < 2**63:
        raise UsageError(f"{name}: expected 0 to {2**63 - 1}, got {seed}")


class TrainBatches:
    """One process's share of the shuffled batches; a last short batch is left out.

    Args:
        data: the pictures.
        batch_size: pictures in a batch of one process.
        seed: of order and augmentation.
        augment: whether to shift and mirror.
        module: what is trained, or its data; its trainer knows the epoch and the processes.
    """

    def __init__(self, data: Data, batch_size: int, seed: int, augment: bool, module: Any) -> None:
        self.generator = torch.Generator()
        self.dataset = BatchDataset(data.train, data, self.generator if augment else None)
        self.batch_size, self.seed, self.module = batch_size, seed, module

    def __len__(self) -> int:
        trainer = self.module.trainer
        return len(self.dataset) // (self.batch_size * (trainer.world_size if trainer else 1))

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        trainer = self.module.trainer
        epoch, rank, world, done = 0, 0, 1, 0
        if trainer is not None:
            epoch, rank, world = trainer.current_epoch, trainer.global_rank, trainer.world_size
            # done: more than 0 where a training resumes in the middle of an epoch.
            done = trainer.fit_loop.epoch_loop.batch_progress.current.ready
        self.generator.manual_seed(seed_of(self.seed, epoch))
        order = torch.randperm(len(self.dataset), generator=self.generator)[rank::world]
        for index in range(done, len(self)):
            self.generator.manual_seed(seed_of(self.seed, epoch, index, rank))
            yield self.dataset[order[index * self.batch_size :][: self.batch_size].tolist()]


class ImageDataModule(L.LightningDataModule):
    """Pictures for training, some held out of these for validation, and the test part.

    Args:
        source: digits (embedded), cifar10, cifar100, or folder (train/CLASS/ and test/CLASS/).
        root: where the data lies (default for cifar10 and cifar100: data).
        download: fetch cifar10 or cifar100 where it is missing.
        image_size: side to which the pictures of a folder are resized.
        batch_size: pictures in a batch of one process.
        augment: shift and mirror the training pictures.
        limit_train: use so many training pictures.
        limit_test: use so many test pictures.
        val_share: of the training pictures, held out for validation; 0: validate on the test part.
        seed: of order, augmentation and what is held out.
    """

    def __init__(
        self,
        source: Literal["digits", "cifar10", "cifar100", "folder"] = "digits",
        root: Path | None = None,
        download: bool = False,
        image_size: int = 32,
        batch_size: int = 64,
        augment: bool = False,
        limit_train: int | None = None,
        limit_test: int | None = None,
        val_share: float = 0.1,
        seed: int = 0,
    ) -> None:
        super().__init__()
        limits = {"limit_train": limit_train, "limit_test": limit_test}
        for name, value in {"batch_size": batch_size, "image_size": image_size, **limits}.items():
            if value is not None and value < 1:
                raise UsageError(f"--data.{name}: expected at least 1, got {value}")
        check_seed("--data.seed", seed)
        if not 0 <= val_share < 1:
            raise UsageError(f"--data.val_share: expected 0 or more and below 1, got {val_share}")
        try:
            self.pictures = load(
                source,
                root=root,
                download=download,
                image_size=image_size,
                limit_train=limit_train,
                limit_test=limit_test,
            )
        except UsageError as error:
            raise UsageError(as_options(str(error))) from error
        self.pictures, self.held_out = hold_out(self.pictures, val_share, seed)
        if len(self.pictures.train) < batch_size:
            raise UsageError(
                f"--data.batch_size: expected at most the {len(self.pictures.train)} training "
                f"pictures, got {batch_size}"
            )
        self.batch_size, self.augment, self.seed = batch_size, augment, seed
        self.classes, self.image_size = len(self.pictures.classes), self.pictures.image_size

    def train_dataloader(self) -> TrainBatches:
        """Return the training batches."""
        processes = self.trainer.world_size if self.trainer else 1
        if len(self.pictures.train) < self.batch_size * processes:
            raise UsageError(
                f"--data.batch_size: expected at most 1/{processes} of the "
                f"{len(self.pictures.train)} training pictures, for {processes} processes, got "
                f"{self.batch_size}"
            )
        return TrainBatches(self.pictures, self.batch_size, self.seed, self.augment, self)

    def val_dataloader(self) -> DataLoader:
        """Return the pictures held out, in their order."""
        return loader_in_order(self.held_out, self.pictures, self.batch_size)

    def test_dataloader(self) -> DataLoader:
        """Return the test pictures in their order."""
        return loader_in_order(self.pictures.test, self.pictures, self.batch_size)

    predict_dataloader = test_dataloader


def hold_out(data: Data, share: float, seed: int) -> tuple[Data, Pictures]:
    """Return the data without a random share of its training pictures, and that share.

    Each part keeps at least one picture. With a share of 0, the test part is returned beside all.
    """
    if share == 0:
        return data, data.test
    count = len(data.train)
    held = min(max(round(share * count), 1), count - 1)
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed_of(seed, -1)))
    kept, out = order[held:].sort().values, order[:held].sort().values
    return replace(data, train=data.train.take(kept)), data.train.take(out)


def as_options(text: str) -> str:
    """Name the options of a message as this command line has them."""
    text = re.sub(r"--data\b(?!\.)", "--data.source", text)
    text = re.sub(r"--download\b", "--data.download true", text)
    return re.sub(
        r"--(root|image-size|limit-train|limit-test)\b",
        lambda found: "--data." + found[1].replace("-", "_"),
        text,
    )


class Classifier(L.LightningModule):
    """A network with cross entropy and SGD; the learning rate rises, then falls to zero.

    Args:
        network: its name.
        conv: whose convolution: torch.nn.Conv2d or bp.ConvBP2d.
        fuse: let each convolution compute the activation after it (conv convbp only).
        stem: the first layers of resnet18: made for small pictures, or torchvision's.
        lr: the highest learning rate.
        weight_decay: of SGD.
        seed: of the initial weights.
        channels_last: weights and batches in NHWC memory order.
        classes: set from the data.
        image_size: set from the data.
    """

    def __init__(
        self,
        network: str = "resnet20",
        conv: Literal["torch", "convbp"] = "convbp",
        fuse: bool = False,
        stem: Literal["cifar", "torchvision"] = "cifar",
        lr: float = 0.05,
        weight_decay: float = 5e-4,
        seed: int = 0,
        channels_last: bool = False,
        classes: int = 10,
        image_size: int = 32,
    ) -> None:
        super().__init__()
        if network not in NETWORKS:
            raise UsageError(
                f"--model.network: expected one of {', '.join(NETWORKS)}, got {network!r}"
            )
        check_size("--data.image_size", network, image_size)
        check_seed("--model.seed", seed)
        for name, value in (("lr", lr), ("weight_decay", weight_decay)):
            if not 0 <= value < math.inf:
                raise UsageError(f"--model.{name}: expected a number of at least 0, got {value}")
        if fuse and conv == "torch":
            raise UsageError("--model.fuse true: goes with --model.conv convbp only")
        self.save_hyperparameters()
        self.lr, self.weight_decay, self.seed = lr, weight_decay, seed
        self.total_steps: float | None = None  # None: as many as the trainer will make
        self.accumulated: dict[str, Tensor | None] = {}  # gradients of a checkpoint
        self.layout = torch.channels_last if channels_last else torch.contiguous_format
        net = initial(network, conv, fuse, classes, image_size, stem, seed)
        self.net = net.to(memory_format=self.layout)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, 3, H, W) to logits (B, classes)."""
        return self.net(x.contiguous(memory_format=self.layout))

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Let what the network draws (dropout) depend on the batch alone."""
        trainer = self.trainer
        torch.manual_seed(
            seed_of(self.seed, trainer.current_epoch, batch_idx, trainer.global_rank, 1)
        )

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Return the mean loss of one batch."""
        return self.measure("train", batch)

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Log loss and accuracy."""
        self.measure("val", batch)

    def test_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Log loss and accuracy."""
        self.measure("test", batch)

    def predict_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Return the class of each picture."""
        return self(batch[0]).argmax(1)

    def measure(self, part: str, batch: tuple[Tensor, Tensor]) -> Tensor:
        """Log loss and accuracy of a batch; return the loss."""
        x, y = batch
        logits = self(x)
        loss = F.cross_entropy(logits, y)
        accuracy = (logits.detach().argmax(1) == y).float().mean()
        self.log_dict(
            {f"{part}_loss": loss.detach(), f"{part}_accuracy": accuracy},
            on_step=False,
            on_epoch=True,
            prog_bar=True,
            batch_size=len(y),
            sync_dist=True,
        )
        return loss

    @property
    def planned_steps(self) -> float:
        """How many steps the schedule is made for."""
        if self.total_steps:
            return self.total_steps
        try:
            return self.trainer.estimated_stepping_batches
        except ValueError as error:  # the trainer's limits do not go with the data
            raise UsageError(f"--trainer: {str(error).strip()}") from error

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep what the schedule was made for, and the gradients of a step half accumulated."""
        checkpoint["planned_steps"] = self.planned_steps
        if self.accumulating:
            # Several processes have gradients each, and a checkpoint keeps those of one.
            alone = self.trainer.world_size == 1
            gradients = {name: p.grad for name, p in self.named_parameters()}
            checkpoint["gradients"] = gradients if alone else None

    @property
    def accumulating(self) -> bool:
        """Whether gradients of earlier batches wait for those of the next."""
        batches = self.trainer.fit_loop.epoch_loop.batch_progress
        into = batches.current.ready % self.trainer.accumulate_grad_batches
        return into != 0 and not batches.is_last_batch

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse what does not go with these options; be ready for the weights."""
        if self._trainer is None:  # Classifier.load_from_checkpoint
            return
        own, kept = (
            {name: tuple(value.shape) for name, value in state.items()}
            for state in (self.state_dict(), checkpoint["state_dict"])
        )
        for name in own | kept:
            if own.get(name) != kept.get(name):
                raise UsageError(
                    f"--ckpt_path: expected {name} {own.get(name, 'to be absent')}, "
                    f"the checkpoint has {kept.get(name, 'none')}"
                )
        # Lightning would make the module double only after it has rounded the weights to float32.
        self.trainer.precision_plugin.convert_module(self)
        if self.trainer.state.fn != "fit":
            return
        planned = checkpoint.get("planned_steps", "other")
        if planned != self.planned_steps:
            raise UsageError(
                f"--ckpt_path: the learning rate of this training was to fall over {planned} "
                f"steps, the options now make it {self.planned_steps}; give the epochs, batch size "
                "and data that it was begun with"
            )
        gradients = checkpoint.get("gradients", {})
        if gradients is None:
            raise UsageError(
                "--ckpt_path: this checkpoint lies in the middle of an accumulated step of several "
                "processes, whose gradients it does not hold; take one between two steps"
            )
        self.accumulated = gradients

    def on_train_start(self) -> None:
        """Take up a step half accumulated; the trainer has zeroed all gradients by now."""
        for name, gradient in self.accumulated.items():
            parameter = self.get_parameter(name)
            parameter.grad = None if gradient is None else gradient.to(parameter.device)
        self.accumulated = {}

    def configure_optimizers(self) -> Any:
        """Return SGD with momentum, and a one-cycle schedule over the steps of this run."""
        optimizer = torch.optim.SGD(
            self.parameters(), self.lr, MOMENTUM, weight_decay=self.weight_decay, nesterov=True
        )
        steps = self.planned_steps
        if steps * WARM_UP_SHARE < 2 or steps == float("inf"):
            return optimizer
        schedule = torch.optim.lr_scheduler.OneCycleLR(
            optimizer,
            self.lr,
            total_steps=int(steps),
            pct_start=WARM_UP_SHARE,
            cycle_momentum=False,
        )
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": schedule, "interval": "step"},
        }


def initial(
    network: str, conv: str, fuse: bool, classes: int, image_size: int, stem: str, seed: int
) -> nn.Module:
    """Build the network from the seed: the same weights whatever the convolution."""
    import torch_convbp as bp

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = build(
            network, bp.ConvBP2d if conv == "convbp" else nn.Conv2d, classes, image_size, stem
        )
    return bp.convert(net, fuse_activations=True) if fuse else net
