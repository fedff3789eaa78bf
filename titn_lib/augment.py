"""Augmentation: bytes in, varied bytes out, a whole batch at a time, on whatever device they are.

Every draw comes from the NumPy generator that is passed in, made for one training step. So the same step makes the same
pictures, on one process or many, in a run that was stopped or one that wasn't. Drawing and doing are apart: with the
same draws, what is done to a picture is what torchvision does to it.
"""

from collections.abc import Callable
from functools import cache

import numpy as np
import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor
from torch.nn import functional as F

from .distillation import MixedLabels
from .errors import unknown

Images = UInt8[Tensor, "batch channel height width"]
Draws = Float[np.ndarray, " batch"]  # one number a picture
Operation = Callable[[Tensor, np.random.Generator], Tensor]


def normalise(
    images: Images, mean: tuple[float, ...], std: tuple[float, ...]
) -> Float[Tensor, "batch channel height width"]:
    """(picture / 255 − mean) / std, channel by channel."""
    centre, scale = (torch.tensor(v, device=images.device).view(1, -1, 1, 1) for v in (mean, std))
    return torch.addcmul(-centre / scale, images, 1 / (255 * scale))


def on_device(values: np.ndarray, like: Tensor) -> Tensor:
    """Draws as a tensor beside the pictures, one a picture, ready to be broadcast over channels and places."""
    values = values.astype(np.float32) if values.dtype == np.float64 else values
    return torch.from_numpy(values).to(like.device, non_blocking=True).view(-1, 1, 1, 1)


# --- places: crop, flip, erase, and all that moves straight lines to straight lines


def crop(images: Images, top: np.ndarray, left: np.ndarray, margin: tuple[int, int], fill: int) -> Images:
    """Pad by `margin` (down, across) with `fill` (0–255), and cut each picture out again at its own (top, left)."""
    height, width = images.shape[-2:]
    padded = F.pad(images, [margin[1], margin[1], margin[0], margin[0]], value=fill)
    cuts = padded.unfold(2, height, 1).unfold(3, width, 1)  # a view: batch channel top left height width
    which, top_, left_ = (on_device(v, images).flatten() for v in (np.arange(len(images)), top, left))
    return cuts[which, :, top_, left_]


def flip(images: Images, which: np.ndarray) -> Images:
    """Mirror the chosen pictures, left to right."""
    return torch.where(on_device(which, images), images.flip(-1), images)


def erase(images: Images, top: np.ndarray, left: np.ndarray, height: np.ndarray, width: np.ndarray) -> Images:
    """Black out a rectangle of each picture."""
    rows = torch.arange(images.shape[-2], device=images.device).view(1, 1, -1, 1)
    columns = torch.arange(images.shape[-1], device=images.device).view(1, 1, 1, -1)
    top_, left_, height_, width_ = (on_device(v, images) for v in (top, left, height, width))
    inside = (rows >= top_) & (rows < top_ + height_) & (columns >= left_) & (columns < left_ + width_)
    return images.masked_fill(inside, 0)


def affine(
    images: Images,
    angle: Draws | float = 0.0,
    translate: tuple[Draws | float, Draws | float] = (0.0, 0.0),
    scale: Draws | float = 1.0,
    shear: tuple[Draws | float, Draws | float] = (0.0, 0.0),
    around_corner: np.ndarray | bool = False,
) -> Images:
    """Turn (degrees, clockwise), shift (across, down), scale and shear (degrees) each picture; the nearest point is
    taken, and what comes in is black.

    Args:
        around_corner: shear and turn around the upper left corner and not the middle.
    """
    batch, _, height, width = images.shape
    corner = np.broadcast_to(around_corner, batch)
    cx, cy = np.where(corner, -width / 2, 0.0), np.where(corner, -height / 2, 0.0)
    rotation, sx, sy = np.radians(angle), np.radians(shear[0]), np.radians(shear[1])
    a = np.cos(rotation - sy) / np.cos(sy)
    b = -(a * np.tan(sx) + np.sin(rotation))
    c = np.sin(rotation - sy) / np.cos(sy)
    d = np.cos(rotation) - c * np.tan(sx)
    a, b, c, d = d / scale, -b / scale, -c / scale, a / scale  # the inverse: from a place, where it comes from
    x, y = cx + translate[0], cy + translate[1]
    matrix = np.empty((batch, 2, 3))
    for row, column, value in (
        (0, 0, a), (0, 1, b), (0, 2, cx - a * x - b * y), (1, 0, c), (1, 1, d), (1, 2, cy - c * x - d * y)
    ):  # fmt: skip
        matrix[:, row, column] = value
    theta = torch.from_numpy(matrix.astype(np.float32)).to(images.device, non_blocking=True).transpose(1, 2)
    across, down = (torch.linspace((1.0 - n) * 0.5, (n - 1.0) * 0.5, n, device=images.device) for n in (width, height))
    places = torch.stack([*torch.meshgrid(across, down, indexing="xy"), torch.ones(height, width).to(across)], dim=-1)
    grid = places.view(1, -1, 3).expand(batch, -1, -1) @ (theta / torch.tensor([0.5 * width, 0.5 * height]).to(theta))
    moved = F.grid_sample(images.float(), grid.view(batch, height, width, 2), mode="nearest", align_corners=False)
    return moved.round_().to(torch.uint8)


# --- values


def blend(images: Tensor, other: Tensor, factor: Draws) -> Images:
    """`factor` of the picture and 1 − `factor` of the other."""
    mixed = torch.addcmul(images * on_device(factor, images), other, on_device(1.0 - factor, images))
    return mixed.clamp_(0, 255).to(torch.uint8)


def grey(images: Images) -> Float[Tensor, "batch 1 height width"]:
    if images.shape[1] == 1:
        return images.float()
    red, green, blue = images.split(1, dim=1)
    return red.mul(0.2989).add_(green, alpha=0.587).add_(blue, alpha=0.114).floor_()


def brightness(images: Images, factor: Draws) -> Images:
    return (images * on_device(factor, images)).clamp_(0, 255).to(torch.uint8)


def saturation(images: Images, factor: Draws) -> Images:
    return images if images.shape[1] == 1 else blend(images, grey(images), factor)


def contrast(images: Images, factor: Draws) -> Images:
    return blend(images, grey(images).mean(dim=(-3, -2, -1), keepdim=True), factor)


def sharpness(images: Images, factor: Draws) -> Images:
    """Away from (or towards) the mean of nine neighbours, the middle five times; the border stays as it is."""
    channels = images.shape[1]
    kernel = torch.full((channels, 1, 3, 3), 1 / 13, device=images.device)
    kernel[:, :, 1, 1] = 5 / 13
    sharp = images.float()
    inside = sharp[..., 1:-1, 1:-1]
    inside.addcmul_(F.conv2d(sharp, kernel, groups=channels).round_() - inside, on_device(1.0 - factor, images))
    return sharp.clamp_(0, 255).to(torch.uint8)


def posterize(images: Images, bits: Draws) -> Images:
    """Keep the first so many bits."""
    return images & on_device((256 - 2 ** (8 - bits)).astype(np.uint8), images)


def solarize(images: Images, threshold: Draws) -> Images:
    """Invert what is at or above the threshold (0–255)."""
    return torch.where(images >= on_device(threshold, images), 255 - images, images)


def invert(images: Images, _: object = None) -> Images:
    return 255 - images


def autocontrast(images: Images, _: object = None) -> Images:
    from torchvision.transforms.v2 import functional  # here, because it takes longer to import than torch itself

    return functional.autocontrast(images)


def equalize(images: Images, _: object = None) -> Images:
    from torchvision.transforms.v2 import functional

    return functional.equalize(images)


# --- AutoAugment (Cubuk et al. 2019), the policy for CIFAR-10, in torchvision's terms

BLENDS = ("brightness", "color", "contrast", "sharpness")
MOVES = ("shear_x", "shear_y", "translate_x", "translate_y", "rotate")
COLOURS: dict[str, Callable[[Tensor, np.ndarray], Tensor]] = {
    "brightness": brightness,
    "color": saturation,
    "contrast": contrast,
    "sharpness": sharpness,
    "posterize": posterize,
    "solarize": solarize,
    "autocontrast": autocontrast,
    "equalize": equalize,
    "invert": invert,
}
# Each line is one of the 25 policies: two operations, each with its chance and its strength (0–9).
CIFAR10_POLICY = [
    line.split()
    for line in """
    invert 0.1 0        contrast 0.2 6
    rotate 0.7 2        translate_x 0.3 9
    sharpness 0.8 1     sharpness 0.9 3
    shear_y 0.5 8       translate_y 0.7 9
    autocontrast 0.5 0  equalize 0.9 0
    shear_y 0.2 7       posterize 0.3 7
    color 0.4 3         brightness 0.6 7
    sharpness 0.3 9     brightness 0.7 9
    equalize 0.6 0      equalize 0.5 0
    contrast 0.6 7      sharpness 0.6 5
    color 0.7 7         translate_x 0.5 8
    equalize 0.3 0      autocontrast 0.4 0
    translate_y 0.4 3   sharpness 0.2 6
    brightness 0.9 6    color 0.2 8
    solarize 0.5 2      invert 0.0 0
    equalize 0.2 0      autocontrast 0.6 0
    equalize 0.2 0      equalize 0.6 0
    color 0.9 9         equalize 0.6 0
    autocontrast 0.8 0  solarize 0.2 8
    brightness 0.1 3    color 0.7 0
    solarize 0.4 5      autocontrast 0.9 0
    translate_y 0.9 9   translate_y 0.7 9
    autocontrast 0.9 0  solarize 0.8 3
    equalize 0.8 0      invert 0.1 0
    translate_y 0.7 9   autocontrast 0.9 0
    """.strip().splitlines()
]


@cache  # for every policy of every batch
def strengths(operation: str, size: tuple[int, int]) -> np.ndarray:
    """What the strengths 0–9 mean: degrees of a turn, points of a shift, the factor of a blend beyond 1, …"""
    largest = {
        "shear_x": 0.3, "shear_y": 0.3, "translate_x": 150 / 331 * size[1], "translate_y": 150 / 331 * size[0],
        "rotate": 30.0, "brightness": 0.9, "color": 0.9, "contrast": 0.9, "sharpness": 0.9,
    }  # fmt: skip
    if operation == "posterize":
        return np.round(8 - np.arange(10) / (9 / 4))
    if operation == "solarize":
        return 255 * torch.linspace(1.0, 0.0, 10).double().numpy()
    return torch.linspace(0.0, largest.get(operation, 0.0), 10).double().numpy()  # rounded as torchvision's


def apply(images: Images, operation: np.ndarray, value: Draws) -> Images:
    """To each picture its own operation (a name, or "") with its own signed strength."""
    chosen = images.clone()
    moves = np.flatnonzero(np.isin(operation, MOVES))
    if len(moves):
        is_, how = (lambda name: operation[moves] == name), value[moves]
        degrees = np.degrees(np.arctan(how))
        at = torch.from_numpy(moves).to(images.device)
        chosen[at] = affine(
            images[at],
            angle=np.where(is_("rotate"), -how, 0.0),
            translate=(
                np.where(is_("translate_x"), np.trunc(how), 0.0),
                np.where(is_("translate_y"), np.trunc(how), 0.0),
            ),
            shear=(np.where(is_("shear_x"), degrees, 0.0), np.where(is_("shear_y"), degrees, 0.0)),
            around_corner=is_("shear_x") | is_("shear_y"),
        )
    for name, change in COLOURS.items():
        members = np.flatnonzero(operation == name)
        if len(members):
            at = torch.from_numpy(members).to(images.device)
            factor = value[members] + (1.0 if name in BLENDS else 0.0)
            chosen[at] = change(images[at], factor)
    return chosen


def auto_augment(images: Images, rng: np.random.Generator) -> Images:
    """One of the 25 policies for each picture."""
    batch, size = len(images), (images.shape[-2], images.shape[-1])
    policy = rng.integers(len(CIFAR10_POLICY), size=batch)
    for first in (0, 3):
        names, chances, levels = (np.array([line[first + i] for line in CIFAR10_POLICY]) for i in range(3))
        values = np.array([strengths(n, size)[int(level)] for n, level in zip(names, levels, strict=True)])
        signed = np.isin(names, [*MOVES, *BLENDS])[policy]
        sign = np.where(signed & (rng.random(batch) <= 0.5), -1.0, 1.0)
        happens = rng.random(batch) <= chances.astype(float)[policy]
        images = apply(images, np.where(happens, names[policy], ""), values[policy] * sign)
    return images


# --- with draws


def random_crop(fill: int) -> Operation:
    """Shift every picture by up to an eighth of its side (4 on 32, as usual); what comes in is `fill` (0–255)."""

    def shift(images: Images, rng: np.random.Generator) -> Images:
        margin = images.shape[-2] // 8, images.shape[-1] // 8
        top, left = (rng.integers(0, 2 * most + 1, size=len(images)) for most in margin)
        return crop(images, top, left, margin, fill)

    return shift


def random_flip(images: Images, rng: np.random.Generator) -> Images:
    """Mirror every other picture, left to right."""
    return flip(images, rng.random(len(images)) < 0.5)


def random_erasing(images: Images, rng: np.random.Generator) -> Images:
    """In every fourth picture, a rectangle of 2 % to a third of its area (Zhong et al. 2020)."""
    height, width = images.shape[-2:]
    area = rng.uniform(0.02, 1 / 3, len(images)) * height * width * (rng.random(len(images)) < 0.25)
    ratio = np.exp(rng.uniform(np.log(0.3), np.log(1 / 0.3), len(images)))
    tall = np.minimum(np.round(np.sqrt(area * ratio)), height).astype(np.int64)
    wide = np.minimum(np.round(np.sqrt(area / ratio)), width).astype(np.int64)
    return erase(images, rng.integers(0, height - tall + 1), rng.integers(0, width - wide + 1), tall, wide)


def random_rotation(images: Images, rng: np.random.Generator) -> Images:
    """By up to 30° either way."""
    return affine(images, angle=-rng.uniform(-30, 30, len(images)))


def random_affine(images: Images, rng: np.random.Generator) -> Images:
    """By up to 20°, a tenth of the side, and a tenth in size."""
    batch, (height, width) = len(images), images.shape[-2:]
    shift = tuple(np.round(rng.uniform(-0.1 * side, 0.1 * side, batch)) for side in (width, height))
    angle, scale = rng.uniform(-20, 20, batch), rng.uniform(0.9, 1.1, batch)
    return affine(images, angle=angle, translate=shift, scale=scale)  # type: ignore[arg-type]


def random_jitter(images: Images, rng: np.random.Generator) -> Images:
    """Brightness and contrast by up to a fifth, in either order."""
    bright, contrasted = (rng.uniform(0.8, 1.2, len(images)) for _ in range(2))
    bright_first = rng.random(len(images)) < 0.5
    one = contrast(brightness(images, bright), contrasted)
    other = brightness(contrast(images, contrasted), bright)
    return torch.where(on_device(bright_first, images), one, other)


PIPELINES: dict[str, list[Operation]] = {
    "none": [],
    "shift": [random_crop(fill=0)],
    "crop_flip": [random_crop(fill=128), random_flip],
    "affine": [random_affine],
    # As the code published with the paper has them, in its order.
    "paper_cifar": [random_crop(fill=128), random_flip, auto_augment],
    "paper_cifar_erasing": [random_crop(fill=128), random_flip, auto_augment, random_erasing],
    "paper_mnist": [random_crop(fill=128), random_rotation, random_affine, random_jitter],
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
    mixed[:, :, rows, columns] = images[:, :, rows, columns][partner]
    return mixed, MixedLabels(labels, labels[partner], weight)


def mixup(
    images: Images, labels: Int64[Tensor, " batch"], rng: np.random.Generator, alpha: float = 1.0
) -> tuple[Images, MixedLabels]:
    """λ of every picture and 1 − λ of another of the batch (Zhang et al. 2018); one λ ~ Beta(α, α) for the batch."""
    weight = rng.beta(alpha, alpha)
    partner = torch.from_numpy(rng.permutation(len(labels))).to(labels.device)
    mixed = torch.lerp(images[partner].float(), images.float(), weight).round_().to(torch.uint8)
    return mixed, MixedLabels(labels, labels[partner], weight)


def mix(
    images: Images, labels: Int64[Tensor, " batch"], rng: np.random.Generator, cutmix_alpha: float, mixup_alpha: float
) -> tuple[Images, MixedLabels]:
    """CutMix or MixUp, whichever has an α; by a coin, if both have."""
    if cutmix_alpha and (not mixup_alpha or rng.random() < 0.5):
        return cutmix(images, labels, rng, cutmix_alpha)
    return mixup(images, labels, rng, mixup_alpha)
