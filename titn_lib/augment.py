"""Augmentation: bytes in, varied bytes out, a whole batch at a time, on whatever device they are.

Every draw comes from the NumPy generator that is passed in, made for one training step. So the same step makes the same
pictures, on one process or many, in a run that was stopped or one that wasn't. Drawing and doing are apart: with the
same draws, what is done to a picture is what torchvision does to it.
"""

from collections.abc import Callable, Sequence
from functools import cache, lru_cache, partial

import numpy as np
import torch
from jaxtyping import Float, Int32, Int64, UInt8
from torch import Tensor
from torch.nn import functional as F

from . import kernels
from .classifier import Images
from .distillation import MixedLabels
from .errors import TITNError, unknown

Bytes = UInt8[Tensor, "batch channel height width"]
Draws = Float[np.ndarray, " batch"]  # one number a picture
Operation = Callable[[Tensor, np.random.Generator], Tensor]


def normalise(images: Bytes, mean: tuple[float, ...], std: tuple[float, ...]) -> Images:
    """(picture / 255 − mean) / std, channel by channel."""
    centre, scale = (torch.tensor(v).to(images.device, non_blocking=True).view(1, -1, 1, 1) for v in (mean, std))
    return torch.addcmul(-centre / scale, images, 1 / (255 * scale))


def beside(values: np.ndarray, like: Tensor) -> Tensor:
    """As a tensor on the same device, for which a GPU isn't waited for."""
    return torch.from_numpy(values).to(like.device, non_blocking=True)


def on_device(values: np.ndarray, like: Tensor) -> Tensor:
    """Draws as a tensor beside the pictures, one a picture, ready to be broadcast over channels and places."""
    values = values.astype(np.float32) if values.dtype == np.float64 else values
    return beside(values, like).view(-1, 1, 1, 1)


def change(images: Bytes, members: np.ndarray, how: Callable[[Bytes], Bytes]) -> Bytes:
    """Do it to some of the pictures, in place."""
    if len(members):
        at = beside(members, images)
        part = how(images.index_select(0, at))
        if images.is_contiguous() and images[0].numel() % 8 == 0:  # eight bytes at a time are copied faster than one
            images.view(len(images), -1).view(torch.int64)[at] = part.flatten(1).view(torch.int64)
        else:
            images[at] = part
    return images


# --- places: crop, flip, erase, and all that moves straight lines to straight lines


def crop(images: Bytes, top: np.ndarray, left: np.ndarray, margin: tuple[int, int], fill: int) -> Bytes:
    """Pad by `margin` (down, across) with `fill` (0–255), and cut each picture out again at its own (top, left).

    Raises:
        TITNError: a place is outside the padded picture.
    """
    for place, room in ((top, margin[0]), (left, margin[1])):
        if len(place) and not 0 <= place.min() <= place.max() <= 2 * room:
            raise TITNError(f"a margin of {room} has places from 0 to {2 * room} for a crop, and not {place.tolist()}")
    height, width = images.shape[-2:]
    padded = F.pad(images, [margin[1], margin[1], margin[0], margin[0]], value=fill)
    places = (np.arange(len(images)), top, left)
    which, top_, left_ = (beside(place.astype(np.int64, copy=False), images) for place in places)
    if kernels.suits_bytes(images):
        return kernels.cut(padded, top_, left_, height, width)
    cuts = padded.unfold(2, height, 1).unfold(3, width, 1)  # a view: batch channel top left height width
    return cuts[which, :, top_, left_]


def flip(images: Bytes, which: np.ndarray) -> Bytes:
    """Mirror the chosen pictures, left to right."""
    return change(images.clone(), np.flatnonzero(which), lambda part: part.flip(-1))


def erase(images: Bytes, top: np.ndarray, left: np.ndarray, height: np.ndarray, width: np.ndarray) -> Bytes:
    """Black out a rectangle of each picture."""
    rows = torch.arange(images.shape[-2], device=images.device).view(1, 1, -1, 1)
    columns = torch.arange(images.shape[-1], device=images.device).view(1, 1, 1, -1)
    top_, left_, height_, width_ = (on_device(v, images) for v in (top, left, height, width))
    inside = (rows >= top_) & (rows < top_ + height_) & (columns >= left_) & (columns < left_ + width_)
    return images.masked_fill(inside, 0)


def affine(
    images: Tensor,
    angle: Draws | float = 0.0,
    translate: tuple[Draws | float, Draws | float] = (0.0, 0.0),
    scale: Draws | float = 1.0,
    shear: tuple[Draws | float, Draws | float] = (0.0, 0.0),
    around_corner: np.ndarray | bool = False,
) -> Tensor:
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
    theta = beside(matrix.astype(np.float32), images).transpose(1, 2)
    across, down = (torch.linspace((1.0 - n) * 0.5, (n - 1.0) * 0.5, n, device=images.device) for n in (width, height))
    ones = torch.ones(height, width, device=images.device)
    places = torch.stack([*torch.meshgrid(across, down, indexing="xy"), ones], dim=-1)
    half = beside(np.array([0.5 * width, 0.5 * height], dtype=np.float32), images)
    grid = places.view(1, -1, 3).expand(batch, -1, -1) @ (theta / half)
    moved = F.grid_sample(
        images.to(grid.dtype), grid.view(batch, height, width, 2), mode="nearest", align_corners=False
    )
    return moved.round_().to(images.dtype)


# --- values


def blend(images: Tensor, other: Tensor, factor: Draws) -> Bytes:
    """`factor` of the picture and 1 − `factor` of the other."""
    mixed = torch.addcmul(images * on_device(factor, images), other, on_device(1.0 - factor, images))
    return mixed.clamp_(0, 255).to(torch.uint8)


def grey(images: Bytes) -> Float[Tensor, "batch 1 height width"]:
    if images.shape[1] == 1:
        return images.float()
    red, green, blue = images.split(1, dim=1)
    return red.mul(0.2989).add_(green, alpha=0.587).add_(blue, alpha=0.114).floor_()


def saturation(images: Bytes, factor: Draws) -> Bytes:
    return images if images.shape[1] == 1 else blend(images, grey(images), factor)


def sharpness(images: Bytes, factor: Draws) -> Bytes:
    """Away from (or towards) the mean of nine neighbours, the middle five times; the border stays as it is."""
    sharp = images.float()
    columns = sharp[..., :-2, :] + sharp[..., 1:-1, :] + sharp[..., 2:, :]
    inside = sharp[..., 1:-1, 1:-1]
    sums = columns[..., :-2].add(columns[..., 1:-1]).add_(columns[..., 2:]).add_(inside, alpha=4)
    inside.addcmul_(sums.mul_(1 / 13).round_().sub_(inside), on_device(1.0 - factor, images))
    return sharp.clamp_(0, 255).to(torch.uint8)


# Where a point's new value depends on its old one alone, a table says what becomes of each of the 256.
Table = UInt8[Tensor, "batch channel 1 256"]


def every_value(images: Bytes) -> Table:
    return torch.arange(256, dtype=torch.uint8, device=images.device).expand(*images.shape[:2], 1, 256)


def brightness(images: Bytes, factor: Draws) -> Table:
    return (every_value(images) * on_device(factor, images)).clamp_(0, 255).to(torch.uint8)


def contrast(images: Bytes, factor: Draws) -> Table:
    return blend(every_value(images), grey(images).mean(dim=(-3, -2, -1), keepdim=True), factor)


def posterize(images: Bytes, bits: Draws) -> Table:
    """Keep the first so many bits."""
    return every_value(images) & on_device((256 - 2 ** (8 - bits)).astype(np.uint8), images)


def solarize(images: Bytes, threshold: Draws) -> Table:
    """Invert what is at or above the threshold (0–255)."""
    values = every_value(images)
    return torch.where(values >= on_device(threshold, images), 255 - values, values)


def invert(images: Bytes, _: object = None) -> Table:
    return 255 - every_value(images)


def autocontrast(images: Bytes, _: object = None) -> Table:
    """Stretch each channel so that it reaches from 0 to 255; one that has a single value stays as it is."""
    lowest, highest = (extreme.float() for extreme in images.flatten(2).aminmax(dim=2))
    same = lowest == highest
    step = ((highest - lowest) * (1 / 255)).masked_fill(same, 1)[..., None, None]
    start = lowest.masked_fill(same, 0)[..., None, None]
    return (every_value(images) - start).div_(step).clamp_(0, 255).to(torch.uint8)


def equalize(images: Bytes, _: object = None) -> Table:
    """Spread each channel's values evenly over 0–255, as PIL does; one that has too few to spread stays as it is."""
    counts = count(images)
    until = counts.cumsum(dim=-1)
    before = until - counts
    step = before.gather(-1, until.argmax(dim=-1, keepdim=True)) // 255  # of all but the highest value
    spread = ((before + step // 2) // step.clamp(min=1)).clamp_(max=255).to(torch.uint8)
    return torch.where(step > 0, spread, every_value(images))


def look_up(images: Bytes, table: Table) -> Bytes:
    """What the table makes of every point."""
    if kernels.suits_bytes(images):
        return kernels.look_up(images, table)
    return table.flatten(2).gather(2, images.flatten(2).long()).view_as(images)


def count(images: Bytes) -> Int32[Tensor, "batch channel 1 256"]:
    """How many points have each of the 256 values."""
    if kernels.suits_bytes(images):
        return kernels.count(images)
    points = images.flatten(2).long()
    counts = torch.zeros(*images.shape[:2], 256, dtype=torch.int32, device=images.device)
    return counts.scatter_add_(2, points, torch.ones_like(counts[:1, :1, :1]).expand_as(points))[:, :, None]


# --- AutoAugment (Cubuk et al. 2019), the policy for CIFAR-10, in torchvision's terms

BLENDS = ("brightness", "color", "contrast", "sharpness")
MOVES = ("shear_x", "shear_y", "translate_x", "translate_y", "rotate")
TABLES: dict[str, Callable[[Bytes, Draws], Table]] = {
    "brightness": brightness,
    "contrast": contrast,
    "posterize": posterize,
    "solarize": solarize,
    "autocontrast": autocontrast,
    "equalize": equalize,
    "invert": invert,
}
OPERATIONS = ("", *MOVES, "color", "sharpness", *TABLES)  # their numbers stand for them; "" changes nothing
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


@lru_cache(maxsize=100)  # a policy has a few dozen; on the device, where a step needn't wait for them
def origins(move: str, how: float, height: int, width: int, device: torch.device) -> Int64[Tensor, "height width"]:
    """Where each point of a moved picture comes from: counted from 1, row by row; 0 from outside."""
    places = torch.arange(1, height * width + 1).view(1, 1, height, width)
    how_by = {name: how if name == move else 0.0 for name in MOVES}
    shear_x, shear_y = (float(np.degrees(np.arctan(how_by[name]))) for name in ("shear_x", "shear_y"))
    shift = float(np.trunc(how_by["translate_x"])), float(np.trunc(how_by["translate_y"]))
    return affine(places, -how_by["rotate"], shift, 1.0, (shear_x, shear_y), "shear" in move)[0, 0].long().to(device)


def move_points(images: Bytes, operation: np.ndarray, how: Draws) -> Bytes:
    """To each picture its own move."""
    moves, which = np.unique(operation + 1j * how, return_inverse=True)  # pairs
    place = (*images.shape[-2:], images.device)
    table = torch.stack([origins(OPERATIONS[int(move.real)], move.imag, *place) for move in moves.tolist()])
    rows = beside(which, images)
    if kernels.suits_bytes(images):
        return kernels.move(images, table, rows)
    points = F.pad(images.flatten(2), [1, 0])  # the first is black
    return points.gather(2, table[rows].flatten(1)[:, None].expand_as(images.flatten(2))).view_as(images)


def apply(images: Bytes, operation: np.ndarray, value: Draws) -> Bytes:
    """To each picture its own operation (a number of `OPERATIONS`) with its own signed strength."""
    first_table = len(OPERATIONS) - len(TABLES)
    moved = np.flatnonzero((operation > 0) & (operation <= len(MOVES)))
    changed = change(images.clone(), moved, lambda part: move_points(part, operation[moved], value[moved]))
    for name, blending in (("color", saturation), ("sharpness", sharpness)):
        its = np.flatnonzero(operation == OPERATIONS.index(name))
        change(changed, its, partial(blending, factor=1.0 + value[its]))
    tabled = np.flatnonzero(operation >= first_table)

    def from_tables(part: Bytes) -> Bytes:
        table = torch.empty(*part.shape[:2], 1, 256, dtype=torch.uint8, device=images.device)
        for number, name in enumerate(OPERATIONS[first_table:], first_table):
            its = np.flatnonzero(operation[tabled] == number)
            if len(its):
                at = beside(its, images)
                made = TABLES[name](part.index_select(0, at), value[tabled[its]] + (1.0 if name in BLENDS else 0.0))
                table[at] = made
        return look_up(part, table)

    return change(changed, tabled, from_tables)


@cache
def cifar10_policy(size: tuple[int, int]) -> Sequence[tuple[np.ndarray, ...]]:
    """For first and second operation, of the 25 policies each: operation, chance, strength, whether it has a sign."""
    parts = []
    for first in (0, 3):
        names, chances, levels = zip(*(line[first : first + 3] for line in CIFAR10_POLICY), strict=True)
        numbers = np.array([OPERATIONS.index(name) for name in names])
        values = np.array([strengths(n, size)[int(level)] for n, level in zip(names, levels, strict=True)])
        parts.append((numbers, np.array(chances, dtype=float), values, np.isin(names, [*MOVES, *BLENDS])))
    return parts


def auto_augment(images: Bytes, rng: np.random.Generator) -> Bytes:
    """One of the 25 policies for each picture."""
    batch = len(images)
    policy = rng.integers(len(CIFAR10_POLICY), size=batch)
    for operations, chances, values, signed in cifar10_policy((images.shape[-2], images.shape[-1])):
        sign = np.where(signed[policy] & (rng.random(batch) <= 0.5), -1.0, 1.0)
        happens = rng.random(batch) <= chances[policy]
        images = apply(images, np.where(happens, operations[policy], 0), values[policy] * sign)
    return images


# --- with draws


def random_crop(fill: int) -> Operation:
    """Shift every picture by up to an eighth of its side (4 on 32, as usual); what comes in is `fill` (0–255)."""

    def shift(images: Bytes, rng: np.random.Generator) -> Bytes:
        margin = images.shape[-2] // 8, images.shape[-1] // 8
        top, left = (rng.integers(0, 2 * most + 1, size=len(images)) for most in margin)
        return crop(images, top, left, margin, fill)

    return shift


def random_flip(images: Bytes, rng: np.random.Generator) -> Bytes:
    """Mirror every other picture, left to right."""
    return flip(images, rng.random(len(images)) < 0.5)


def random_erasing(images: Bytes, rng: np.random.Generator) -> Bytes:
    """In every fourth picture, a rectangle of 2 % to a third of its area (Zhong et al. 2020)."""
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


def random_jitter(images: Bytes, rng: np.random.Generator) -> Bytes:
    """Brightness and contrast by up to a fifth, in either order."""
    bright, contrasted = (rng.uniform(0.8, 1.2, len(images)) for _ in range(2))
    bright_first = on_device(rng.random(len(images)) < 0.5, images)
    images = look_up(images, torch.where(bright_first, brightness(images, bright), contrast(images, contrasted)))
    return look_up(images, torch.where(bright_first, contrast(images, contrasted), brightness(images, bright)))


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
        TITNError: there is no such pipeline, or the pictures are no bytes.
    """
    if pipeline not in PIPELINES:
        raise unknown("augmentation", pipeline, PIPELINES)
    if images.dtype != torch.uint8:
        raise TITNError(f"pictures are varied as bytes (uint8), and these are {images.dtype}: do it before `normalise`")
    for operation in PIPELINES[pipeline]:
        images = operation(images, rng)
    return images


def cutmix_box(height: int, width: int, weight: float, row: float, column: float) -> tuple[slice, slice, float]:
    """The box that CutMix pastes, and the share of the picture that is left (Yun et al. 2019, eq. 2).

    The box has √(1 − weight) of each side and its middle at (row, column), both 0–1; it is clipped at the border. The
    share is computed from the clipped box. Before clipping its sides are even, as torchvision's are; in TITN's code the
    edges are floats that are rounded. There, labels are weighed by the share that was drawn: on average, it is 0.18 off
    what is left of the image.
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
    partner = beside(rng.permutation(len(labels)), labels)
    mixed = images.clone()
    mixed[:, :, rows, columns] = images[:, :, rows, columns][partner]
    return mixed, MixedLabels(labels, labels[partner], weight)


def mixup(
    images: Tensor, labels: Int64[Tensor, " batch"], rng: np.random.Generator, alpha: float = 1.0
) -> tuple[Tensor, MixedLabels]:
    """λ of every picture and 1 − λ of another of the batch (Zhang et al. 2018); one λ ~ Beta(α, α) for the batch. Bytes
    stay bytes."""
    weight = rng.beta(alpha, alpha)
    partner = beside(rng.permutation(len(labels)), labels)
    mixed = torch.lerp(images[partner].float(), images.float(), weight)
    mixed = mixed if images.is_floating_point() else mixed.round_()
    return mixed.to(images.dtype), MixedLabels(labels, labels[partner], weight)


def mix(
    images: Bytes, labels: Int64[Tensor, " batch"], rng: np.random.Generator, cutmix_alpha: float, mixup_alpha: float
) -> tuple[Bytes, MixedLabels]:
    """CutMix or MixUp, whichever has an α; by a coin, if both have."""
    if cutmix_alpha and (not mixup_alpha or rng.random() < 0.5):
        return cutmix(images, labels, rng, cutmix_alpha)
    return mixup(images, labels, rng, mixup_alpha)
