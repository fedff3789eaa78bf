"""Augmentation: bytes in, normalised and varied pictures out.

Every draw comes from the NumPy generator that is passed in, made for one training step. So the same step makes the same
pictures, on one process or many, in a run that was stopped or one that wasn't.
"""

from collections.abc import Callable
from functools import cache
from types import ModuleType

import numpy as np
import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor
from torch.nn import functional as F

from .distillation import MixedLabels
from .errors import unknown

Operation = Callable[[Tensor, np.random.Generator], Tensor]


def normalise(
    images: UInt8[Tensor, "batch channel height width"], mean: tuple[float, ...], std: tuple[float, ...]
) -> Float[Tensor, "batch channel height width"]:
    """(picture / 255 − mean) / std, channel by channel."""
    centre, scale = (torch.tensor(v, device=images.device).view(1, -1, 1, 1) for v in (mean, std))
    return (images / 255 - centre) / scale


def random_crop(fill: int) -> Operation:
    """Shift every picture by up to an eighth of its side (4 on 32, as usual); what comes in is `fill` (0–255)."""

    def crop(
        images: UInt8[Tensor, "batch channel height width"], rng: np.random.Generator
    ) -> UInt8[Tensor, "batch channel height width"]:
        batch, _, height, width = images.shape
        down, across = height // 8, width // 8
        padded = F.pad(images, [across, across, down, down], value=fill)
        top, left = (
            torch.from_numpy(rng.integers(0, 2 * most + 1, size=batch)).to(images.device) for most in (down, across)
        )
        rows = (top[:, None] + torch.arange(height, device=images.device))[:, :, None]
        columns = (left[:, None] + torch.arange(width, device=images.device))[:, None, :]
        which = torch.arange(batch, device=images.device)[:, None, None]
        return padded[which, :, rows, columns].movedim(-1, 1)

    return crop


def random_flip(
    images: UInt8[Tensor, "batch channel height width"], rng: np.random.Generator
) -> UInt8[Tensor, "batch channel height width"]:
    """Mirror every other picture, left to right."""
    flip = torch.from_numpy(rng.random(len(images)) < 0.5).to(images.device)
    return torch.where(flip[:, None, None, None], images.flip(-1), images)


def one_by_one(make: Callable[[ModuleType], Callable[[Tensor], Tensor]]) -> Operation:
    """A transform of torchvision's v2 on each picture, each with a draw of its own."""

    @cache
    def transform() -> Callable[[Tensor], Tensor]:
        from torchvision.transforms import v2  # here, because it takes longer to import than torch itself

        return make(v2)

    def apply(
        images: UInt8[Tensor, "batch channel height width"], rng: np.random.Generator
    ) -> UInt8[Tensor, "batch channel height width"]:
        changed = []
        with torch.random.fork_rng(devices=[]):
            for image, seed in zip(images, rng.integers(2**63, size=len(images)).tolist(), strict=True):
                torch.manual_seed(seed)
                changed.append(transform()(image))
        return torch.stack(changed)

    return apply


PIPELINES: dict[str, list[Operation]] = {
    "none": [],
    "shift": [random_crop(fill=0)],
    "crop_flip": [random_crop(fill=128), random_flip],
    # As the code published with the paper has them, in its order.
    "paper_cifar": [
        random_crop(fill=128),
        random_flip,
        one_by_one(lambda v2: v2.AutoAugment(v2.AutoAugmentPolicy.CIFAR10)),
    ],
    "paper_mnist": [
        random_crop(fill=128),
        one_by_one(lambda v2: v2.RandomRotation(30)),
        one_by_one(lambda v2: v2.RandomAffine(degrees=20, translate=(0.1, 0.1), scale=(0.9, 1.1))),
        one_by_one(lambda v2: v2.ColorJitter(brightness=0.2, contrast=0.2)),
    ],
}


def augment(
    images: UInt8[Tensor, "batch channel height width"], pipeline: str, rng: np.random.Generator
) -> UInt8[Tensor, "batch channel height width"]:
    """The named pipeline on a batch.

    Raises:
        TITNError: there is no such pipeline.
    """
    if pipeline not in PIPELINES:
        raise unknown("augmentation", pipeline, PIPELINES)
    for operation in PIPELINES[pipeline]:
        images = operation(images, rng)
    return images


def cutmix_box(height: int, width: int, weight: float, row: float, column: float) -> tuple[slice, slice, float]:
    """The box that CutMix pastes, and the share of the picture that is left (Yun et al. 2019, eq. 2).

    The box has √(1 − weight) of each side and its middle at (row, column), both 0–1; it is clipped at the border. The
    share is computed from the clipped box. (TITN's code keeps the share that was drawn, so that labels and pixels
    disagree.)
    """
    side = (1 - weight) ** 0.5
    rows, columns = (
        slice(
            int(np.clip(int(middle * length) - int(length * side) // 2, 0, length)),
            int(np.clip(int(middle * length) + int(length * side) // 2, 0, length)),
        )
        for middle, length in ((row, height), (column, width))
    )
    area = (rows.stop - rows.start) * (columns.stop - columns.start)
    return rows, columns, 1 - area / (height * width)


def cutmix(
    images: Tensor, labels: Int64[Tensor, " batch"], rng: np.random.Generator, alpha: float = 1.0
) -> tuple[Tensor, MixedLabels]:
    """Paste the same box of another picture of the batch into every picture; one λ ~ Beta(α, α) for the batch."""
    height, width = images.shape[-2:]
    rows, columns, weight = cutmix_box(height, width, rng.beta(alpha, alpha), rng.random(), rng.random())
    partner = torch.from_numpy(rng.permutation(len(labels))).to(labels.device)
    mixed = images.clone()
    mixed[:, :, rows, columns] = images[partner][:, :, rows, columns]
    return mixed, MixedLabels(labels, labels[partner], weight)
