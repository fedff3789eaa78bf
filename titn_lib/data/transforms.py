"""Random augmentation pipelines for batches of uint8 images, and normalization.

Every random value comes from the NumPy generator that is passed in, made for one training step. So the same step makes the
same images, on one process or many, in a run that was stopped or one that wasn't.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from titn_lib.data.autoaugment import auto_augment
from titn_lib.data.image_ops import Bytes, affine, brightness, contrast, crop, erase, flip, look_up, on_device
from titn_lib.errors import TITNError, unknown

Images = Float[Tensor, "batch channel height width"]  # normalized


@dataclass(frozen=True)
class Preprocessing:
    """What a trained network must be told about images: how they were normalized, and what its answers are called.

    Attributes:
        data: the data set it was trained on.
        classes: a name for each logit.
        mean, std: one value a channel, for channels scaled to 0–1.
    """

    data: str
    classes: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]


Operation = Callable[[Tensor, np.random.Generator], Tensor]


def normalize(images: Bytes, mean: tuple[float, ...], std: tuple[float, ...]) -> Images:
    """(image / 255 − mean) / std, channel by channel."""
    centre, scale = (torch.tensor(v).to(images.device, non_blocking=True).view(1, -1, 1, 1) for v in (mean, std))
    return torch.addcmul(-centre / scale, images, 1 / (255 * scale))


def random_crop(fill: int) -> Operation:
    """Shift every image by up to an eighth of its side (4 on 32, as usual); what comes in is `fill` (0–255)."""

    def shift(images: Bytes, rng: np.random.Generator) -> Bytes:
        margin = images.shape[-2] // 8, images.shape[-1] // 8
        top, left = (rng.integers(0, 2 * most + 1, size=len(images)) for most in margin)
        return crop(images, top, left, margin, fill)

    return shift


def random_horizontal_flip(images: Bytes, rng: np.random.Generator) -> Bytes:
    """Mirror every other image, left to right."""
    return flip(images, rng.random(len(images)) < 0.5)


def random_erasing(images: Bytes, rng: np.random.Generator) -> Bytes:
    """In every fourth image, a rectangle of 2 % to a third of its area (Zhong et al. 2020)."""
    height, width = images.shape[-2:]
    area = rng.uniform(0.02, 1 / 3, len(images)) * height * width * (rng.random(len(images)) < 0.25)
    ratio = np.exp(rng.uniform(np.log(0.3), np.log(1 / 0.3), len(images)))
    tall = np.minimum(np.round(np.sqrt(area * ratio)), height).astype(np.int64)
    wide = np.minimum(np.round(np.sqrt(area / ratio)), width).astype(np.int64)
    return erase(images, rng.integers(0, height - tall + 1), rng.integers(0, width - wide + 1), tall, wide)


def random_rotation(images: Bytes, rng: np.random.Generator) -> Bytes:
    """By up to 30° either way."""
    return affine(images, angle=-rng.uniform(-30, 30, len(images)))


def random_affine(images: Bytes, rng: np.random.Generator) -> Bytes:
    """By up to 20°, a tenth of the side, and a tenth in size."""
    batch, (height, width) = len(images), images.shape[-2:]
    shift = tuple(np.round(rng.uniform(-0.1 * side, 0.1 * side, batch)) for side in (width, height))
    angle, scale = rng.uniform(-20, 20, batch), rng.uniform(0.9, 1.1, batch)
    return affine(images, angle=angle, translate=shift, scale=scale)  # type: ignore[arg-type]


def color_jitter(images: Bytes, rng: np.random.Generator) -> Bytes:
    """Brightness and contrast by up to a fifth, in either order."""
    bright, contrasted = (rng.uniform(0.8, 1.2, len(images)) for _ in range(2))
    bright_first = on_device(rng.random(len(images)) < 0.5, images)
    images = look_up(images, torch.where(bright_first, brightness(images, bright), contrast(images, contrasted)))
    return look_up(images, torch.where(bright_first, contrast(images, contrasted), brightness(images, bright)))


PIPELINES: dict[str, list[Operation]] = {
    "none": [],
    "shift": [random_crop(fill=0)],
    "crop_flip": [random_crop(fill=128), random_horizontal_flip],
    "affine": [random_affine],
    # As the code published with the paper has them, in its order.
    "paper_cifar": [random_crop(fill=128), random_horizontal_flip, auto_augment],
    "paper_cifar_erasing": [random_crop(fill=128), random_horizontal_flip, auto_augment, random_erasing],
    "paper_mnist": [random_crop(fill=128), random_rotation, random_affine, color_jitter],
}


def augment(
    images: UInt8[Tensor, "batch channel height width"], pipeline: str, rng: np.random.Generator
) -> UInt8[Tensor, "batch channel height width"]:
    """The named pipeline on a batch.

    Raises:
        TITNError: there is no such pipeline, or the images are no bytes.
    """
    if pipeline not in PIPELINES:
        raise unknown("augmentation", pipeline, PIPELINES)
    if images.dtype != torch.uint8:
        raise TITNError(f"images are varied as bytes (uint8), and these are {images.dtype}: do it before `normalize`")
    for operation in PIPELINES[pipeline]:
        images = operation(images, rng)
    return images
