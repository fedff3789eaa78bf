"""Random augmentation pipelines for batches of uint8 images, and normalization.

Every random value comes from a NumPy generator that is made for one training step and passed in. So a step produces
the same images on one process or many, and in a resumed run as in one without a break.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from titn_lib.data.autoaugment import auto_augment
from titn_lib.data.image_ops import (
    UInt8Images,
    affine,
    apply_lut,
    brightness,
    contrast,
    crop,
    horizontal_flip,
    per_image,
)
from titn_lib.errors import TITNError, unknown

Images = Float[Tensor, "batch channel height width"]  # normalized


@dataclass(frozen=True)
class Preprocessing:
    """What a trained model's file says of its input and output: normalization and class names.

    Attributes:
        data: the data set the model was trained on.
        classes: the name of each logit's class.
        mean, std: one value per channel, for channels scaled to 0–1.
    """

    data: str
    classes: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]


Operation = Callable[[Tensor, np.random.Generator], Tensor]


def normalize(images: UInt8Images, mean: tuple[float, ...], std: tuple[float, ...]) -> Images:
    """(images / 255 − mean) / std, with one mean and std per channel."""
    offset, factor = normalization(tuple(mean), tuple(std), images.device)
    return torch.addcmul(offset, images, factor)


@lru_cache(maxsize=100)  # kept on the device, so that no step waits for a copy
def normalization(mean: tuple[float, ...], std: tuple[float, ...], device: torch.device) -> tuple[Tensor, Tensor]:
    """What `normalize` adds to each channel, and what it multiplies the bytes by, each "1 channel 1 1"."""
    center, scale = (torch.tensor(values).view(1, -1, 1, 1) for values in (mean, std))
    return (-center / scale).to(device), (1 / (255 * scale)).to(device)


def random_crop(fill: int, part: int = 8) -> Operation:
    """Pad by a part of each side (an eighth, 4 pixels of 32, is usual) with `fill` (0–255), and crop at random."""

    def pad_and_crop(images: UInt8Images, rng: np.random.Generator) -> UInt8Images:
        top, left, margin = draw_crop(images, rng, part)
        return crop(images, top, left, margin, fill)

    return pad_and_crop


def draw_crop(
    images: UInt8Images, rng: np.random.Generator, part: int = 8
) -> tuple[np.ndarray, np.ndarray, tuple[int, int]]:
    """The crops' first rows and columns in the padded images, and the margin of the padding."""
    margin = images.shape[-2] // part, images.shape[-1] // part
    top, left = (rng.integers(0, 2 * pixels + 1, size=len(images)) for pixels in margin)
    return top, left, margin


def random_horizontal_flip(images: UInt8Images, rng: np.random.Generator) -> UInt8Images:
    """Mirror each image, left to right, with probability ½."""
    return horizontal_flip(images, draw_flip(images, rng))


def draw_flip(images: UInt8Images, rng: np.random.Generator) -> np.ndarray:
    return rng.random(len(images)) < 0.5


def random_rotation(images: UInt8Images, rng: np.random.Generator) -> UInt8Images:
    """Rotate each image by −30° to 30°."""
    return affine(images, angle=-rng.uniform(-30, 30, len(images)))


def random_affine(images: UInt8Images, rng: np.random.Generator) -> UInt8Images:
    """Rotate by −20° to 20°, translate by up to a tenth of each side, scale by 0.9 to 1.1."""
    batch, (height, width) = len(images), images.shape[-2:]
    shift = tuple(np.round(rng.uniform(-0.1 * side, 0.1 * side, batch)) for side in (width, height))
    angle, scale = rng.uniform(-20, 20, batch), rng.uniform(0.9, 1.1, batch)
    return affine(images, angle=angle, translate=shift, scale=scale)  # type: ignore[arg-type]


def color_jitter(images: UInt8Images, rng: np.random.Generator) -> UInt8Images:
    """Scale brightness and contrast by 0.8 to 1.2, in random order."""
    bright, contrasted = (rng.uniform(0.8, 1.2, len(images)) for _ in range(2))
    bright_first = per_image(rng.random(len(images)) < 0.5, images)
    images = apply_lut(images, torch.where(bright_first, brightness(images, bright), contrast(images, contrasted)))
    return apply_lut(images, torch.where(bright_first, contrast(images, contrasted), brightness(images, bright)))


PIPELINES: dict[str, list[Operation]] = {
    "none": [],
    "shift": [random_crop(fill=0)],
    "crop_flip": [random_crop(fill=128), random_horizontal_flip],
    "small_crop_flip": [random_crop(fill=128, part=16), random_horizontal_flip],  # for short runs
    "affine": [random_affine],
    # Those of the published code, in its order.
    "paper_cifar": [random_crop(fill=128), random_horizontal_flip, auto_augment],
    "paper_mnist": [random_crop(fill=128), random_rotation, random_affine, color_jitter],
}


def augment(
    images: UInt8[Tensor, "batch channel height width"], pipeline: str, rng: np.random.Generator
) -> UInt8[Tensor, "batch channel height width"]:
    """Apply a pipeline of `PIPELINES` to a batch.

    Args:
        rng: the source of all random values.

    Raises:
        TITNError: there is no such pipeline, or the images are not uint8.
    """
    if pipeline not in PIPELINES:
        raise unknown("augmentation", pipeline, PIPELINES)
    if images.dtype != torch.uint8:
        raise TITNError(f"augmentation expects uint8 images, not {images.dtype}: augment before `normalize`")
    for operation in PIPELINES[pipeline]:
        images = operation(images, rng)
    return images
