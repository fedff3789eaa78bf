"""Training batches: images augmented, mixed and normalized, and their targets.

On a GPU, the usual pipelines run in Triton kernels (`kernels.augment_triton`): one for crop and flip, one for each of
AutoAugment's two operations, one for CutMix and normalization. Operation by operation, they would take some 270
launches. The random values are drawn as on a CPU and travel in one copy, and the images are the same, bit for bit.
"""

from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int32
from torch import Tensor

from titn_lib import kernels
from titn_lib.data.autoaugment import (
    BLEND_OPS,
    GEOMETRIC_OPS,
    OPERATIONS,
    cifar10_policy,
    draw_policies,
    source_indices,
)
from titn_lib.data.image_ops import to_device_of
from titn_lib.data.images import ImageDataset
from titn_lib.data.mixing import MixedTargets, draw_cutmix, mix_batch
from titn_lib.data.transforms import Images, augment, draw_crop, draw_flip, normalization, normalize


class Pipeline(NamedTuple):
    """What a pipeline that runs in Triton kernels does to the images."""

    fill: int  # of the padding before the crop
    flip: bool
    auto_augment: bool


IN_KERNELS = {"shift": Pipeline(0, False, False), "crop_flip": Pipeline(128, True, False),
              "paper_cifar": Pipeline(128, True, True)}  # fmt: skip


def training_batch(
    part: ImageDataset,
    pipeline: str,
    rng: np.random.Generator,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    cutmix: float = 0.0,
    mixup: float = 0.0,
    views: int = 1,
    share: slice = slice(None),
) -> tuple[Images, MixedTargets]:
    """A batch as a network takes it.

    Args:
        part: the batch's images.
        pipeline: a name of `transforms.PIPELINES`.
        cutmix, mixup: α; 0 for none.
        views: how often each image is there, augmented anew; mixed images have one view.
        share: the images to return, for one of several processes. All of them are drawn and mixed.
    """
    if views == 1 and not mixup and pipeline in IN_KERNELS and kernels.can_augment(part.images):
        images, targets = batch_in_kernels(part, IN_KERNELS[pipeline], rng, mean, std, cutmix)
        return images[share], MixedTargets(targets.a[share], targets.b[share], targets.lam)
    targets = MixedTargets(part.labels, part.labels)
    augmented = [augment(part.images, pipeline, rng) for _ in range(views)]
    if cutmix or mixup:
        augmented[0], targets = mix_batch(augmented[0], part.labels, rng, cutmix, mixup)
    images = torch.cat([view[share] for view in augmented])
    a, b = (labels[share].repeat(views) for labels in (targets.a, targets.b))
    return normalize(images, mean, std), MixedTargets(a, b, targets.lam)


def batch_in_kernels(
    part: ImageDataset,
    pipeline: Pipeline,
    rng: np.random.Generator,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    cutmix: float,
) -> tuple[Images, MixedTargets]:
    """All random values are drawn first, in the order of the other way, and copied to the GPU together."""
    images, batch, size = part.images, len(part), (part.images.shape[-2], part.images.shape[-1])
    top, left, margin = draw_crop(images, rng)
    flipped = draw_flip(images, rng) if pipeline.flip else np.zeros(batch, dtype=bool)
    choices = draw_policies(batch, rng) if pipeline.auto_augment else []
    box, lam, partner = np.zeros(4, dtype=np.int64), 1.0, np.arange(batch)
    if cutmix:
        rows, columns, lam, partner = draw_cutmix(images, rng, cutmix)
        box = np.array([rows.start, rows.stop, columns.start, columns.stop])
    fields = [top - margin[0], left - margin[1], flipped, *choices, partner, box]
    draws = to_device_of(np.concatenate(fields, dtype=np.int32, casting="unsafe"), images)
    draws, place = draws[:-4].view(-1, batch), draws[-4:]

    images = kernels.crop_flip(images, draws[:3], pipeline.fill)
    for half, choice in enumerate(draws[3:-1]):
        images = kernels.operate(images, choice, *policy_on_device(half, size, images.device))
    factors = (values.flatten() for values in normalization(tuple(mean), tuple(std), images.device))
    images = kernels.mix_normalize(images, draws[-1], place, *factors)
    return images, MixedTargets(part.labels, part.labels[draws[-1]] if cutmix else part.labels, lam)


class Operations(NamedTuple):
    """Operations with their magnitudes, as the kernel takes them. An image chooses one of them by its index.

    Attributes:
        kinds: indices of `kernels.KINDS`; "" for geometric operations, which are maps alone.
        factors: what a blend multiplies the image and the other image by; for others their magnitude.
        maps: where each pixel comes from: see `source_indices`.
    """

    kinds: Int32[Tensor, " operation"]
    factors: Float[Tensor, "operation two"]
    maps: Int32[Tensor, "operation pixel"]


@lru_cache(maxsize=20)
def policy_on_device(half: int, size: tuple[int, int], device: torch.device) -> Operations:
    """The first or second half of `cifar10_policy`."""
    return operations_on_device(*cifar10_policy(size)[half], size, device)


def operations_on_device(
    operations: np.ndarray, magnitude: np.ndarray, size: tuple[int, int], device: torch.device
) -> Operations:
    kinds, factors, maps = [], [], []
    identity = torch.arange(1, size[0] * size[1] + 1)
    for name, value in zip([OPERATIONS[index] for index in operations], magnitude.tolist(), strict=True):
        geometric = name in GEOMETRIC_OPS
        kinds.append(0 if geometric else kernels.KINDS.index(name))
        factor = 1 + value if name in BLEND_OPS else 256 - 2 ** (8 - value) if name == "posterize" else value
        factors.append([factor, 1 - factor])
        maps.append(source_indices(name, value, *size, torch.device("cpu")).flatten() if geometric else identity)
    return Operations(
        torch.tensor(kinds, dtype=torch.int32, device=device),
        torch.tensor(factors, dtype=torch.float32, device=device),
        torch.stack(maps).to(device, torch.int32),
    )
