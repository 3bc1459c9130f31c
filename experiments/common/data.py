"""Real pictures, decoded once into memory as bytes, and the statistics that normalise them.

Every source ends in the same form: ``Pictures`` of uint8 (N, 3, H, W) and labels. A picture
folder is decoded once and kept too, since decoding tens of thousands of small JPEGs in every
epoch would take longer than training on them.
"""

from __future__ import annotations

import hashlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from experiments.common.errors import UsageError

FOLDER_BYTES_LIMIT = 8 << 30
DIGITS_TEST = 360


@dataclass(frozen=True)
class Pictures:
    """Pictures as uint8 (N, 3, H, W) and their labels as int64 (N,)."""

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, indices: Tensor) -> Pictures:
        """Return the pictures at ``indices``, in that order."""
        return Pictures(self.images[indices], self.labels[indices])


@dataclass(frozen=True)
class Data:
    """A training and a test set, with the mean and spread of each training channel (0 to 1)."""

    name: str
    train: Pictures
    test: Pictures
    classes: tuple[str, ...]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    @property
    def image_size(self) -> int:
        """Side of the square pictures."""
        return self.train.images.shape[-1]


def load(
    name: str,
    *,
    root: Path | None = None,
    download: bool = False,
    image_size: int = 32,
    limit_train: int | None = None,
    limit_test: int | None = None,
) -> Data:
    """Load a data set by name; the limits keep a fixed random slice of each part."""
    match name:
        case "digits":
            train, test, classes = load_digits()
        case "cifar10" | "cifar100":
            train, test, classes = load_cifar(name, root or Path("data"), download)
        case "folder":
            if root is None:
                raise UsageError("--data folder needs --root DIR with train/ and test/ inside")
            train, test, classes = load_folder(root, image_size, limit_train, limit_test)
            name = root.resolve().name
        case _:
            raise UsageError(f"--data: expected digits, cifar10, cifar100 or folder, got {name!r}")
    train = train.take(slice_of(len(train), limit_train))
    test = test.take(slice_of(len(test), limit_test))
    mean, std = statistics(train.images)
    return Data(name, train, test, classes, mean, std)


def slice_of(count: int, limit: int | None) -> Tensor:
    """Return the indices that a limit keeps: a fixed random choice, or everything in order."""
    if limit is None or limit >= count:
        return torch.arange(count)
    return torch.randperm(count, generator=torch.Generator().manual_seed(0))[:limit]


def statistics(images: Tensor) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
    """Return the mean and standard deviation of each channel, with bytes counted as 0 to 1."""
    levels = torch.arange(256, dtype=torch.float64) / 255
    mean, std = [], []
    for channel in range(3):
        values = images[:, channel].flatten()
        share = torch.bincount(values, minlength=256).double() / values.numel()
        m = (share * levels).sum()
        mean.append(m.item())
        std.append(max((share * (levels - m) ** 2).sum().sqrt().item(), 1 / 255))
    return (mean[0], mean[1], mean[2]), (std[0], std[1], std[2])


def load_digits() -> tuple[Pictures, Pictures, tuple[str, ...]]:
    """Return scikit-learn's 1,797 scanned digits, 8x8 in 17 grey levels, as 3x32x32."""
    from sklearn.datasets import load_digits as load_bunch
    from sklearn.model_selection import train_test_split

    bunch = load_bunch()
    small = torch.from_numpy(bunch.images).float().unsqueeze(1) * (255 / 16)
    large = F.interpolate(small, size=32, mode="bilinear", align_corners=False)
    images = large.round().to(torch.uint8).expand(-1, 3, -1, -1).contiguous()
    labels = torch.from_numpy(bunch.target).long()
    train, test = train_test_split(
        torch.arange(len(labels)).numpy(),
        test_size=DIGITS_TEST,
        stratify=labels.numpy(),
        random_state=0,
    )
    everything = Pictures(images, labels)
    classes = tuple(str(digit) for digit in range(10))
    return (
        everything.take(torch.from_numpy(train)),
        everything.take(torch.from_numpy(test)),
        classes,
    )


def load_cifar(name: str, root: Path, download: bool) -> tuple[Pictures, Pictures, tuple[str, ...]]:
    """Return CIFAR-10 or CIFAR-100 from ``root`` through torchvision."""
    from torchvision import datasets

    source = datasets.CIFAR10 if name == "cifar10" else datasets.CIFAR100
    check_cifar(name, source, root, download)
    try:
        parts = [source(str(root), train=train, download=True) for train in (True, False)]
    except Exception as error:
        raise UsageError(
            f"--download: fetching {source.url} into {root} failed ({error}); "
            f"fetch it elsewhere, put it there as {root / source.filename} and run again"
        ) from error
    train, test = (
        Pictures(
            torch.from_numpy(part.data).permute(0, 3, 1, 2).contiguous(),
            torch.tensor(part.targets),
        )
        for part in parts
    )
    return train, test, tuple(parts[0].classes)


def check_cifar(name: str, source: Any, root: Path, download: bool) -> None:
    """Raise a UsageError that says what to do unless torchvision will find what it needs.

    An intact archive without its unpacked folder is fine: torchvision unpacks it offline.
    """
    if download:
        return
    archive, folder = root / source.filename, root / source.base_folder
    remedy = f"add --download to fetch it, or put an intact {source.filename} into {root}"
    files = [*source.train_list, *source.test_list, [source.meta["filename"], source.meta["md5"]]]
    missing = [file for file, _ in files if not (folder / file).is_file()]
    damaged = [file for file, md5 in files if file not in missing and md5_of(folder / file) != md5]
    if not missing and not damaged:
        return
    if archive.is_file():
        got = md5_of(archive)
        if got == source.tgz_md5:
            return
        raise UsageError(
            f"--data {name}: {archive} is damaged (MD5 {got}, expected {source.tgz_md5}, "
            f"{archive.stat().st_size:,} bytes); delete it, then {remedy}"
        )
    if damaged:
        raise UsageError(
            f"--data {name}: {', '.join(str(folder / file) for file in damaged)} damaged "
            f"(wrong MD5); delete {folder}, then {remedy}"
        )
    if folder.is_dir():
        raise UsageError(f"--data {name}: {folder} lacks {', '.join(missing)}; {remedy}")
    raise UsageError(f"--data {name}: neither {archive} nor {folder} exists; {remedy}")


def md5_of(path: Path) -> str:
    """Return the MD5 of a file in hexadecimal."""
    state = hashlib.md5(usedforsecurity=False)
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            state.update(block)
    return state.hexdigest()


def load_folder(
    root: Path, image_size: int, limit_train: int | None, limit_test: int | None
) -> tuple[Pictures, Pictures, tuple[str, ...]]:
    """Return the pictures under ``root/train/<class>`` and ``root/test/<class>``.

    Only the pictures that the limits keep are decoded; the others are not read.
    """
    from torchvision.datasets.folder import IMG_EXTENSIONS

    if not root.is_dir():
        raise UsageError(f"--root: expected a folder with train/ and test/ inside, got {root}")
    for part in ("train", "test"):
        if not (root / part).is_dir():
            raise UsageError(f"--root: expected train/ and test/ in {root}, found no {part}/")
    classes = tuple(sorted(path.name for path in (root / "train").iterdir() if path.is_dir()))
    if len(classes) < 2:
        raise UsageError(
            f"--root: expected two or more class folders in {root / 'train'}, got {len(classes)}"
        )
    unknown = sorted(
        path.name
        for path in (root / "test").iterdir()
        if path.is_dir() and path.name not in classes
    )
    if unknown:
        raise UsageError(
            f"--root: {root / 'test'} has classes that train/ lacks: {', '.join(unknown)}"
        )
    parts: list[Pictures] = []
    for part, limit in (("train", limit_train), ("test", limit_test)):
        files = [
            (path, label)
            for label, name in enumerate(classes)
            for path in sorted((root / part / name).glob("**/*"))
            if path.suffix.lower() in IMG_EXTENSIONS
        ]
        shown = {label for _, label in files}
        empty = [name for label, name in enumerate(classes) if label not in shown]
        if empty and (part == "train" or not files):
            raise UsageError(
                f"--root: no pictures in {', '.join(empty)} of {root / part}; expected files "
                f"that end in {', '.join(IMG_EXTENSIONS)}"
            )
        parts.append(decode([files[i] for i in slice_of(len(files), limit)], image_size))
    return parts[0], parts[1], classes


def decode(files: list[tuple[Path, int]], image_size: int) -> Pictures:
    """Decode picture files into memory, resized to a square where they are not that already."""
    size = len(files) * 3 * image_size**2
    if size > FOLDER_BYTES_LIMIT:
        raise UsageError(
            f"--image-size {image_size}: {len(files):,} pictures would take {size / 2**30:.1f} "
            f"GiB in memory, more than {FOLDER_BYTES_LIMIT >> 30}; choose a smaller size or "
            "--limit-train"
        )
    images = torch.empty(len(files), 3, image_size, image_size, dtype=torch.uint8)

    def decode_one(index: int) -> None:
        images[index] = decode_file(files[index][0], image_size)

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(decode_one, range(len(files))))
    return Pictures(images, torch.tensor([label for _, label in files]))


def decode_file(path: Path, image_size: int) -> Tensor:
    """Return one picture as uint8 (3, image_size, image_size)."""
    from PIL import Image
    from torchvision.transforms.functional import pil_to_tensor

    try:
        with Image.open(path) as picture:
            if picture.mode.startswith(("I", "F")):
                raise UsageError(
                    f"--root: {path} has more than 8 bits a channel (mode {picture.mode}), which "
                    "would be cut off; make it a picture of 8 bits"
                )
            rgb = picture.convert("RGB")
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise UsageError(
            f"--root: {path} is not a readable picture ({error}); mend or remove it"
        ) from error
    if rgb.size != (image_size, image_size):
        rgb = rgb.resize((image_size, image_size), Image.Resampling.BILINEAR)
    return pil_to_tensor(rgb)


def read_data(file: Path) -> Data:
    """Return what ``write_data`` wrote."""
    saved = torch.load(file, weights_only=True)
    train, test = (Pictures(*saved.pop(part)) for part in ("train", "test"))
    return Data(train=train, test=test, **saved)


def write_data(data: Data, file: Path) -> None:
    """Write a data set for the processes that train on it."""
    torch.save(
        {
            "name": data.name,
            "train": (data.train.images, data.train.labels),
            "test": (data.test.images, data.test.labels),
            "classes": data.classes,
            "mean": data.mean,
            "std": data.std,
        },
        file,
    )
