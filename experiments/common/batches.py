"""Pictures by the batch.

A loader asks its data set for a whole batch of indices at once; normalisation and augmentation
are a few tensor operations on that batch. There are no worker processes: the pictures are in
memory already.
"""

from __future__ import annotations

import hashlib

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import BatchSampler, DataLoader, Dataset, SequentialSampler

from experiments.common.data import Data, Pictures

CROP_MARGIN = 4


class BatchDataset(Dataset[tuple[Tensor, Tensor]]):
    """Pictures by the batch: float32 (B, 3, H, W) normalised, and labels (B,)."""

    def __init__(self, pictures: Pictures, data: Data, augment: torch.Generator | None) -> None:
        self.pictures, self.augment = pictures, augment
        self.mean = torch.tensor(data.mean).view(3, 1, 1)
        self.std = torch.tensor(data.std).view(3, 1, 1)

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, indices: list[int]) -> tuple[Tensor, Tensor]:
        batch = self.pictures.take(torch.tensor(indices))
        x = (batch.images.float() / 255 - self.mean) / self.std
        if self.augment is not None:
            x = crop_and_flip(x, self.augment)
        return x, batch.labels


def crop_and_flip(x: Tensor, generator: torch.Generator) -> Tensor:
    """Shift each picture by up to 4 pixels over a border of zeros; mirror every other one."""
    n, channels, height, width = x.shape
    padded = F.pad(x, (CROP_MARGIN,) * 4)
    top, left = torch.randint(2 * CROP_MARGIN + 1, (2, n, 1), generator=generator)
    mirror = torch.randint(2, (n, 1), generator=generator).bool()
    rows = top + torch.arange(height)
    columns = left + torch.where(mirror, torch.arange(width).flip(0), torch.arange(width))
    return padded[
        torch.arange(n).view(n, 1, 1, 1),
        torch.arange(channels).view(1, channels, 1, 1),
        rows.view(n, 1, height, 1),
        columns.view(n, 1, 1, width),
    ]


def loader_in_order(pictures: Pictures, data: Data, batch_size: int) -> DataLoader:
    """Return the pictures of a part of the data in their order, never augmented."""
    dataset = BatchDataset(pictures, data, None)
    sampler = SequentialSampler(range(len(dataset)))
    return DataLoader(
        dataset, sampler=BatchSampler(sampler, batch_size, drop_last=False), batch_size=None
    )


def digest(*tensors: Tensor) -> str:
    """Return a short fingerprint of the exact bits of tensors, whatever their memory format."""
    state = hashlib.sha256()
    for tensor in tensors:
        contiguous = tensor.detach().contiguous()
        state.update(contiguous.flatten().view(torch.uint8).cpu().numpy().data)
    return state.hexdigest()[:16]
