"""One way in to every data set: train, validation and test images in memory, always split the same way.

Files are looked for in the folder that TITN_DATA names, else in the checkout's data/, and downloaded there by
torchvision where there is internet. All images of a data set come at one size (32×32, digits 16×16, unless you say
otherwise), as bytes. torchvision and scikit-learn are imported where they work: they take longer than torch itself.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from titn_lib.data.images import ImageDataset, load_image_folder
from titn_lib.errors import TITNError, unknown
from titn_lib.io import REASONS, cannot_write, make_folder, repo_root
from titn_lib.validation import to_2tuple

SPLIT_SEED = 0  # every run, whatever its own seed, sees the same split
VALIDATION = 0.1  # of what is not the test set


@dataclass(frozen=True)
class DataSplits:
    """A data set, split once and for all.

    Attributes:
        classes: a name for each label.
        mean, std: one value a channel, for channels scaled to 0–1; networks see (image − mean) / std.
        train: what networks learn from.
        validation: what every choice is made on (10 %, stratified).
        test: what is read once, at the end.
    """

    name: str
    classes: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    train: ImageDataset
    validation: ImageDataset
    test: ImageDataset

    @property
    def in_channels(self) -> int:
        return self.train.images.shape[1]

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width."""
        return self.train.images.shape[2], self.train.images.shape[3]


Reader = Callable[[Path], tuple[ImageDataset, ImageDataset | None, tuple[str, ...]]]  # folder → rest, test, classes


@dataclass(frozen=True)
class DatasetInfo:
    """Where a data set comes from. `mean` and `std` are those of the paper's code, where it has them."""

    load: Reader
    about: str
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    image_size: tuple[int, int] = (32, 32)


def data_dir() -> Path:
    """Where data sets are kept: TITN_DATA, else data/ of the checkout, else data/ where you are."""
    if named := os.environ.get("TITN_DATA"):
        return Path(named).expanduser()
    return (repo_root() or Path.cwd()) / "data"


def load_dataset(name: str, image_size: tuple[int, int] | int | None = None) -> DataSplits:
    """A data set by name, or a folder of images by class.

    Args:
        name: one of `DATASETS`, or the path of a folder with a subfolder for each class (or with train/ and test/, each
            holding such subfolders).
        image_size: height and width (or one number for both) that every image is resized to (bilinear,
            antialiased); by default 32×32, and 16×16 for the tiny digits.

    Raises:
        TITNError: an unknown name; a bad image_size; files that are missing and can't be downloaded, or are damaged;
            an empty class; an image that can't be read.
    """
    wanted = None if image_size is None else to_2tuple(image_size)
    if name in DATASETS:
        source = DATASETS[name]
        size = wanted or source.image_size
        rest, test, classes = source.load(data_dir())
    elif Path(name).is_dir():
        source, size = None, wanted or (32, 32)
        rest, test, classes = load_image_folder(Path(name), size)
    elif os.sep in name:
        raise TITNError(f"there is no folder {name}: check the path")
    else:
        raise unknown("data set", name, DATASETS)
    if test is None:
        rest, test = stratified_split(rest, 0.2, name)
    train, validation = stratified_split(rest, VALIDATION, name)
    parts = [resize(part, size) for part in (train, validation, test)]
    mean, std = (source.mean, source.std) if source and source.mean and source.std else channel_stats(parts[0])
    return DataSplits(Path(name).name, classes, mean, std, *parts)


def stratified_split(images: ImageDataset, aside: float | int, name: str) -> tuple[ImageDataset, ImageDataset]:
    """Set a fraction (or so many) aside, with the same share of each class, always the same ones."""
    from sklearn.model_selection import train_test_split

    try:
        kept, chosen = train_test_split(
            np.arange(len(images)), test_size=aside, stratify=images.labels.numpy(), random_state=SPLIT_SEED
        )
    except ValueError as problem:
        fewest = int(images.labels.bincount().min())
        raise TITNError(
            f"{name} has too few images to split ({len(images)} in all, {fewest} in the smallest class): "
            "give every class 13 or more"
        ) from problem
    return images[np.sort(kept)], images[np.sort(chosen)]


def subset(images: ImageDataset, count: int, name: str) -> ImageDataset:
    """So many images with the same share of each class, always the same ones; all of them for 0."""
    if not 0 < count < len(images):
        return images
    classes = int(images.labels.max()) + 1
    if not classes <= count <= len(images) - classes:
        raise TITNError(
            f"{count} images of {len(images)} can't be chosen fairly among {classes} classes of {name}: choose "
            f"train_images and test_images between {classes} and {len(images) - classes}, or 0 for all"
        )
    return stratified_split(images, count, name)[1]


def add_label_noise(images: ImageDataset, share: float, classes: int, seed: int) -> ImageDataset:
    """The same images, a share of them under another class than their own, drawn evenly (symmetric noise).

    Which images, and which class each gets, depends on the seed alone: what was wrong can be looked up afterwards.
    """
    if not share:
        return images
    rng = np.random.default_rng([seed, 0x4E015E])
    wrong = torch.from_numpy(rng.choice(len(images), round(share * len(images)), replace=False))
    labels = images.labels.clone()
    labels[wrong] = (labels[wrong] + torch.from_numpy(rng.integers(1, classes, len(wrong)))) % classes
    return replace(images, labels=labels)


def resize(images: ImageDataset, size: tuple[int, int]) -> ImageDataset:
    """The same images at another size (bilinear, antialiased)."""
    if tuple(images.images.shape[2:]) == tuple(size):
        return images
    from torchvision.transforms.v2 import functional as TF

    parts = [TF.resize(part, list(size), antialias=True) for part in images.images.split(4096)]
    return replace(images, images=torch.cat(parts))


def channel_stats(images: ImageDataset) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel, scaled to 0–1."""
    count = images.images[:, 0].numel()
    total = squares = torch.zeros(images.images.shape[1], dtype=torch.float64)
    for part in images.images.split(256):  # as numbers, images take eight times the memory
        values = part.double() / 255
        total, squares = total + values.sum(dim=(0, 2, 3)), squares + values.square().sum(dim=(0, 2, 3))
    mean = total / count
    std = ((squares - count * mean**2) / (count - 1)).clamp(min=1e-6).sqrt()
    return tuple(round(v, 4) for v in mean.tolist()), tuple(round(v, 4) for v in std.tolist())


def read_digits(_: Path) -> tuple[ImageDataset, ImageDataset | None, tuple[str, ...]]:
    """1,797 real 8×8 handwritten digits that scikit-learn carries; gray levels 0–16."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = torch.from_numpy(digits.images * (255 / 16)).round().to(torch.uint8)
    return ImageDataset(images[:, None], torch.from_numpy(digits.target).long()), None, tuple("0123456789")


def read_cifar(name: str) -> Reader:
    def read(folder: Path) -> tuple[ImageDataset, ImageDataset | None, tuple[str, ...]]:
        from torchvision import datasets
        from torchvision.datasets.utils import check_integrity

        kind = getattr(datasets, name)
        home = folder / kind.base_folder
        wanted = [*kind.train_list, *kind.test_list, [kind.meta["filename"], kind.meta["md5"]]]
        ensure_downloaded(folder, kind, all((home / file).exists() for file, _ in wanted))
        try:
            sets = [kind(str(folder), train=train) for train in (True, False)]
        except RuntimeError as problem:  # torchvision compares checksums
            raise damaged(next(home / f for f, md5 in wanted if not check_integrity(str(home / f), md5))) from problem
        parts = [
            ImageDataset(torch.from_numpy(s.data).permute(0, 3, 1, 2).contiguous(), torch.tensor(s.targets))
            for s in sets
        ]
        return parts[0], parts[1], tuple(sets[0].classes)

    return read


def read_mnist(name: str) -> Reader:
    def read(folder: Path) -> tuple[ImageDataset, ImageDataset | None, tuple[str, ...]]:
        from torchvision import datasets

        kind, raw = getattr(datasets, name), folder / name / "raw"
        files = [raw / file.removesuffix(".gz") for file, _ in kind.resources]
        ensure_downloaded(folder, kind, all(file.exists() for file in files))
        for file in files:  # a header of 16 or 8 bytes, then a byte for each image element or label
            pictures = 60_000 if file.name.startswith("train") else 10_000
            if file.stat().st_size != (16 + 28 * 28 * pictures if "images" in file.name else 8 + pictures):
                raise damaged(file)
        sets = [kind(str(folder), train=train) for train in (True, False)]
        parts = [ImageDataset(s.data[:, None].contiguous(), s.targets) for s in sets]
        return parts[0], parts[1], tuple(label.split(" - ")[0] for label in sets[0].classes)

    return read


def ensure_downloaded(folder: Path, kind: Any, complete: bool) -> None:
    """Download what is missing of a data set of torchvision's, with its progress bar and checksums."""
    if complete:
        return
    home = folder / getattr(kind, "base_folder", f"{kind.__name__}/raw")
    make_folder(folder)
    try:
        kind(str(folder), download=True)
    except (RuntimeError, OSError) as problem:
        if isinstance(problem, OSError) and problem.errno in REASONS:
            raise cannot_write(home, problem) from problem
        raise TITNError(
            f"{kind.__name__} is not in {folder} and can't be downloaded ({problem}): connect to the internet, or put "
            f"its files into {home}, or set TITN_DATA to the folder that holds {home.relative_to(folder)}; "
            "data/README.md says where they come from. The data set 'digits' needs no download"
        ) from problem


def damaged(file: Path) -> TITNError:
    return TITNError(f"{file} is damaged or cut short: delete it, and it will be downloaded again (or copy it again)")


CIFAR_MEAN, CIFAR_STD = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)
DATASETS = {
    "digits": DatasetInfo(
        read_digits, "handwritten digits, 8×8 gray, 1,797; comes with scikit-learn", image_size=(16, 16)
    ),
    "mnist": DatasetInfo(read_mnist("MNIST"), "handwritten digits, 28×28 gray, 70,000", (0.1307,), (0.3081,)),
    "fashion_mnist": DatasetInfo(read_mnist("FashionMNIST"), "clothes, 28×28 gray, 70,000", (0.2860,), (0.3530,)),
    "cifar10": DatasetInfo(read_cifar("CIFAR10"), "ten kinds of things, 32×32 color, 60,000", CIFAR_MEAN, CIFAR_STD),
    "cifar100": DatasetInfo(
        read_cifar("CIFAR100"), "a hundred kinds of things, 32×32 color, 60,000", CIFAR_MEAN, CIFAR_STD
    ),
}
