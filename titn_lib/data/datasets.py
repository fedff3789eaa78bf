"""Every data set by its name: training, validation and test images in memory, always split the same way.

One entry of `DATASETS` describes a data set. Adding one, in this file or in your own code, is one line:

    DATASETS["mine"] = DatasetInfo(my_reader, "what it shows", grayscale=True)

Files are looked for in the folder that TITN_DATA names, else in the checkout's data/. Missing ones are downloaded there
by torchvision. All images of a data set have one size (32×32 by default, 16×16 for the digits) and are uint8.
torchvision and scikit-learn are imported inside the functions that need them: that takes longer than importing PyTorch.
"""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from titn_lib.data.folders import ALL, list_images, list_own_images
from titn_lib.data.images import ImageDataset, require_memory
from titn_lib.data.reading import read_images
from titn_lib.errors import TITNError
from titn_lib.io import REASONS, cannot_write, make_folder, repo_root
from titn_lib.validation import to_2tuple

SPLIT_SEED = 0  # every run, whatever its own seed, sees the same split
VALIDATION_FRACTION = 0.1  # of the images outside the test set
TEST_FRACTION = 0.2  # where a data set has no test set of its own


@dataclass(frozen=True)
class DataSplits:
    """A data set in its three splits, which are the same for every run and seed.

    Attributes:
        classes: a name for each label.
        mean, std: one value per channel, for channels scaled to 0–1. The models' input is (image − mean) / std.
        train: the images that models are trained on.
        validation: the images for model selection and hyperparameters (10 % of what is not the test set, stratified).
        test: the images for the final evaluation, used once.
        fingerprint: for images of your own: how many there are of each class, and a hash (`ImageList.fingerprint`).
    """

    name: str
    classes: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    train: ImageDataset
    validation: ImageDataset
    test: ImageDataset
    fingerprint: dict[str, object] | None = None

    @property
    def in_channels(self) -> int:
        return self.train.images.shape[1]

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width."""
        return self.train.images.shape[2], self.train.images.shape[3]


# From the data folder to the images outside the test set, the test set (None: it is split off), and the class names.
Reader = Callable[[Path], tuple[ImageDataset, ImageDataset | None, tuple[str, ...]]]


class PublishedResult(NamedTuple):
    """The paper's accuracy on the test set, in percent; its authors' code chooses the checkpoint by it, too."""

    title: str
    top1: float
    top5: float | None


@dataclass(frozen=True)
class DatasetInfo:
    """How to read a data set, and the settings that depend on it.

    Attributes:
        reader: reads its files from the data folder.
        description: one line for `titn download`.
        mean, std: each channel's, as in the published code where it has them; None to measure the training split.
        image_size: height and width that images are resized to.
        grayscale: whether images are augmented like the paper's MNIST, without flips, AutoAugment and CutMix: their
            number of channels doesn't matter.
        published: the paper's result (arXiv 2502.16762, abstract), if it reports one.
        published_epochs: epochs of the published recipe.
        small_student, small_teacher: the default student and teacher in every preset but "gpu".
        student_recipe, teacher_recipe: settings of the laptop recipes that differ for this data set, such as
            {"epochs": 9}. Without them, a student is trained for 14 epochs and `vgg7_bn` for 24.
    """

    reader: Reader
    description: str
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    image_size: tuple[int, int] = (32, 32)
    grayscale: bool = False
    published: PublishedResult | None = None
    published_epochs: int = 350
    small_student: str = "titn_mini"
    small_teacher: str = "vgg7_bn"
    student_recipe: Mapping[str, Any] = field(default_factory=dict)
    teacher_recipe: Mapping[str, Any] = field(default_factory=dict)


def data_dir() -> Path:
    """The folder of the data sets: TITN_DATA, else data/ in the checkout, else data/ in the current directory."""
    if named := os.environ.get("TITN_DATA"):
        try:
            return Path(named).expanduser()
        except RuntimeError as problem:  # no such user, or none at all
            raise TITNError(f"TITN_DATA is {named}, and there is no such home folder: give a whole path") from problem
    return (repo_root() or Path.cwd()) / "data"


def dataset_info(name: str) -> DatasetInfo:
    """What is known of a data set. A folder of images, or a name that isn't known, has the settings for photographs."""
    return DATASETS.get(name, PHOTOGRAPHS)


def load_dataset(
    name: str | Path,
    image_size: tuple[int, int] | int | None = None,
    in_channels: int = 3,
    skip_damaged: bool = False,
    progress: bool = True,
) -> DataSplits:
    """A data set by name, a folder of images by class, or a table of image files and labels.

    A folder or table may have a split of its own (`data.folders.list_images`). What it lacks is split off: a fifth of
    the images outside the test set for testing, then a tenth of the others for validation.

    Args:
        name: one of `DATASETS`, or the path of a folder with a subfolder for each class (or with train/, val/ and test/
            in any mixture with train/, each holding such subfolders), or of a .csv file with columns file and label.
        image_size: height and width (or one number for both) that every image is resized to (bilinear,
            antialiased). The default is 32×32, and 16×16 for the digits.
        in_channels: for a folder or table: 3 for color, 1 for grayscale.
        skip_damaged: leave out images of a folder or table that can't be read, with a warning.
        progress: show a bar where reading a folder takes more than two seconds.

    Raises:
        TITNError: an unknown name; a bad image_size; files that are missing and can't be downloaded, or are damaged;
            an empty class; images that can't be read, all of them named.
    """
    name = str(name)
    info = dataset_info(name)
    size = info.image_size if image_size is None else to_2tuple(image_size)
    fingerprint: dict[str, object] | None = None
    if name in DATASETS:
        rest, test, classes = info.reader(data_dir())
        given = {"train": rest} if test is None else {"train": rest, "test": test}
    else:
        listed = list_own_images(name, DATASETS)
        classes, fingerprint = listed.classes, listed.fingerprint()
        given = read_images(listed, size, in_channels, skip_damaged, progress)
    return complete_splits(given, name, classes, size, fingerprint)


def complete_splits(
    given: dict[str, ImageDataset],
    name: str,
    classes: tuple[str, ...],
    size: tuple[int, int],
    fingerprint: dict[str, object] | None = None,
) -> DataSplits:
    """Splits of one size: those that are given ("all", or "train" and perhaps others), and the missing ones split off.

    Raises:
        TITNError: there are too few images to split.
    """
    info, given = dataset_info(name), dict(given)
    require_memory(sum(map(len, given.values())), next(iter(given.values())).images.shape[1], size, name)
    train = given[ALL] if ALL in given else given["train"]
    if "test" not in given:
        train, given["test"] = stratified_split(train, TEST_FRACTION, name)
    if "validation" not in given:
        train, given["validation"] = stratified_split(train, VALIDATION_FRACTION, name)
    train, validation, test = (resize(part, size) for part in (train, given["validation"], given["test"]))
    mean, std = (info.mean, info.std) if info.mean and info.std else channel_stats(train)
    return DataSplits(Path(name).name, classes, mean, std, train, validation, test, fingerprint)


def data_fingerprint(name: str) -> dict[str, object] | None:
    """The fingerprint of a folder or table as it is now, without reading the images; None for another data set.

    Raises:
        TITNError: its images can't be used (`list_images`).
    """
    return list_images(Path(name)).fingerprint() if name not in DATASETS and os.path.exists(name) else None


def stratified_split(images: ImageDataset, holdout: float | int, name: str) -> tuple[ImageDataset, ImageDataset]:
    """Hold out a fraction (or a number) of the images, with the same share of each class; always the same images.

    Returns:
        What is kept, and what is held out.
    """
    from sklearn.model_selection import train_test_split

    try:
        kept, held_out = train_test_split(
            np.arange(len(images)), test_size=holdout, stratify=images.labels.numpy(), random_state=SPLIT_SEED
        )
    except ValueError as problem:
        fewest = int(images.labels.bincount().min())
        raise TITNError(
            f"{name} has too few images to split ({len(images)} in all, {fewest} in the smallest class): "
            "give every class 13 or more"
        ) from problem
    return images[np.sort(kept)], images[np.sort(held_out)]


def subset(images: ImageDataset, count: int, name: str) -> ImageDataset:
    """`count` images with the same share of each class, always the same images; all images for 0."""
    if not 0 < count < len(images):
        return images
    classes = int(images.labels.max()) + 1
    if not classes <= count <= len(images) - classes:
        raise TITNError(
            f"{name} has {len(images)} images in {classes} classes, and a stratified subset can't have {count}: choose "
            f"train_images and test_images between {classes} and {len(images) - classes}, or 0 for all"
        )
    return stratified_split(images, count, name)[1]


def add_label_noise(images: ImageDataset, share: float, classes: int, seed: int) -> ImageDataset:
    """The same images with symmetric label noise: a share of them gets another class, drawn uniformly.

    Which images, and which class each gets, depends on the seed alone, so the noisy labels can be found afterwards.
    """
    if not share:
        return images
    rng = np.random.default_rng([seed, 0x4E015E])
    noisy = torch.from_numpy(rng.choice(len(images), round(share * len(images)), replace=False))
    labels = images.labels.clone()
    labels[noisy] = (labels[noisy] + torch.from_numpy(rng.integers(1, classes, len(noisy)))) % classes
    return replace(images, labels=labels)


def resize(images: ImageDataset, size: tuple[int, int]) -> ImageDataset:
    """The same images, resized (bilinear, antialiased)."""
    if tuple(images.images.shape[2:]) == tuple(size):
        return images
    from torchvision.transforms.v2 import functional as TF

    parts = [TF.resize(part, list(size), antialias=True) for part in images.images.split(4096)]
    return replace(images, images=torch.cat(parts))


def channel_stats(images: ImageDataset) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel, scaled to 0–1."""
    count = images.images[:, 0].numel()
    total = squares = torch.zeros(images.images.shape[1], dtype=torch.float64)
    for part in images.images.split(256):  # float64 takes eight times the memory of uint8
        values = part.double() / 255
        total, squares = total + values.sum(dim=(0, 2, 3)), squares + values.square().sum(dim=(0, 2, 3))
    mean = total / count
    std = ((squares - count * mean**2) / (count - 1)).clamp(min=1e-6).sqrt()
    return tuple(round(v, 4) for v in mean.tolist()), tuple(round(v, 4) for v in std.tolist())


def no_reader(_: Path) -> tuple[ImageDataset, ImageDataset | None, tuple[str, ...]]:
    """For images of your own, which `load_dataset` finds and reads without a reader."""
    raise TITNError("a folder of images has no reader: load_dataset takes its path")


def read_digits(_: Path) -> tuple[ImageDataset, ImageDataset | None, tuple[str, ...]]:
    """The 1,797 handwritten digits of scikit-learn, 8×8, with gray levels 0–16 scaled to 0–255."""
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
        for file in files:  # a header of 16 or 8 bytes, then a byte for each pixel or label
            count = 60_000 if file.name.startswith("train") else 10_000
            header = (2051, count, 28, 28) if "images" in file.name else (2049, count)
            size = 4 * len(header) + count * (28 * 28 if "images" in file.name else 1)
            with open(file, "rb") as opened:
                start = opened.read(4 * len(header))
            if file.stat().st_size != size or start != np.array(header, ">u4").tobytes():
                raise damaged(file)
        sets = [kind(str(folder), train=train) for train in (True, False)]
        parts = [ImageDataset(s.data[:, None].contiguous(), s.targets) for s in sets]
        return parts[0], parts[1], tuple(label.split(" - ")[0] for label in sets[0].classes)

    return read


def ensure_downloaded(folder: Path, dataset: Any, complete: bool) -> None:
    """Download the missing files of a torchvision data set, with its progress bar and checksums."""
    if complete:
        return
    home = folder / getattr(dataset, "base_folder", f"{dataset.__name__}/raw")
    make_folder(folder)
    try:
        dataset(str(folder), download=True)
    except (RuntimeError, OSError) as problem:
        if isinstance(problem, OSError) and problem.errno in REASONS:
            raise cannot_write(home, problem) from problem
        raise TITNError(
            f"{dataset.__name__} is not in {folder} and can't be downloaded ({problem}): connect to the internet, or "
            f"put its files into {home}, or set TITN_DATA to the folder that holds {home.relative_to(folder)}; "
            "data/README.md says where they come from. The data set 'digits' needs no download"
        ) from problem


def damaged(file: Path) -> TITNError:
    return TITNError(f"{file} is damaged or cut short: delete it to have it downloaded again, or copy it again")


CIFAR_MEAN, CIFAR_STD = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)
MNIST_STUDENT = {"epochs": 9, "batch_size": 64, "lr": 1e-3, "warmup_epochs": 0.2}

PHOTOGRAPHS = DatasetInfo(no_reader, "a folder of images by class")
DATASETS = {
    "digits": DatasetInfo(
        read_digits,
        "handwritten digits, 1,797 grayscale images of 8×8; comes with scikit-learn",
        image_size=(16, 16),
        grayscale=True,
        small_student="titn_nano",
        student_recipe={"epochs": 48},
        teacher_recipe={"epochs": 15, "batch_size": 64},
    ),
    "mnist": DatasetInfo(
        read_mnist("MNIST"),
        "handwritten digits, 70,000 grayscale images of 28×28",
        mean=(0.1307,),
        std=(0.3081,),
        grayscale=True,
        published=PublishedResult("MNIST", 99.56, None),
        small_student="titn_pico",
        student_recipe=MNIST_STUDENT,
        teacher_recipe={"epochs": 3},
    ),
    "fashion_mnist": DatasetInfo(
        read_mnist("FashionMNIST"),
        "clothes, 70,000 grayscale images of 28×28",
        mean=(0.2860,),
        std=(0.3530,),
        grayscale=True,
        small_student="titn_pico",
        student_recipe=MNIST_STUDENT,
        teacher_recipe={"epochs": 3},
    ),
    "cifar10": DatasetInfo(
        read_cifar("CIFAR10"),
        "photographs of 10 classes, 60,000 color images of 32×32",
        mean=CIFAR_MEAN,
        std=CIFAR_STD,
        published=PublishedResult("CIFAR-10", 92.03, 99.80),
        small_student="titn_mini_conv",
        small_teacher="airbench",
    ),
    "cifar100": DatasetInfo(
        read_cifar("CIFAR100"),
        "photographs of 100 classes, 60,000 color images of 32×32",
        mean=CIFAR_MEAN,
        std=CIFAR_STD,
        published=PublishedResult("CIFAR-100", 74.71, 92.28),
        small_student="titn_mini_conv",
        small_teacher="airbench",
        published_epochs=600,
    ),
}
