"""Augmentation: bytes in, varied bytes out, a whole batch at a time, on whatever device they are.

Every draw comes from the NumPy generator that is passed in, made for one training step. So the same step makes the same
images, on one process or many, in a run that was stopped or one that wasn't. Drawing and doing are apart: with the
same draws, what is done to an image is what torchvision does to it.
"""

from collections.abc import Callable

import numpy as np
import torch
from jaxtyping import Float, Int32, UInt8
from torch import Tensor
from torch.nn import functional as F

from titn_lib import kernels
from titn_lib.errors import TITNError

Bytes = UInt8[Tensor, "batch channel height width"]
Draws = Float[np.ndarray, " batch"]  # one number an image


def beside(values: np.ndarray, like: Tensor) -> Tensor:
    """As a tensor on the same device, for which a GPU isn't waited for."""
    return torch.from_numpy(values).to(like.device, non_blocking=True)


def on_device(values: np.ndarray, like: Tensor) -> Tensor:
    """Draws as a tensor beside the images, one an image, ready to be broadcast over channels and places."""
    values = values.astype(np.float32) if values.dtype == np.float64 else values
    return beside(values, like).view(-1, 1, 1, 1)


def change(images: Bytes, members: np.ndarray, how: Callable[[Bytes], Bytes]) -> Bytes:
    """Do it to some of the images, in place."""
    if len(members):
        at = beside(members, images)
        part = how(images.index_select(0, at))
        if images.is_contiguous() and images[0].numel() % 8 == 0:  # eight bytes at a time are copied faster than one
            images.view(len(images), -1).view(torch.int64)[at] = part.flatten(1).view(torch.int64)
        else:
            images[at] = part
    return images


def crop(images: Bytes, top: np.ndarray, left: np.ndarray, margin: tuple[int, int], fill: int) -> Bytes:
    """Pad by `margin` (down, across) with `fill` (0–255), and cut each image out again at its own (top, left).

    Raises:
        TITNError: a place is outside the padded image.
    """
    for place, room in ((top, margin[0]), (left, margin[1])):
        if len(place) and not 0 <= place.min() <= place.max() <= 2 * room:
            raise TITNError(f"a margin of {room} has places from 0 to {2 * room} for a crop, and not {place.tolist()}")
    height, width = images.shape[-2:]
    padded = F.pad(images, [margin[1], margin[1], margin[0], margin[0]], value=fill)
    places = (np.arange(len(images)), top, left)
    which, top_, left_ = (beside(place.astype(np.int64, copy=False), images) for place in places)
    if kernels.can_use_image_ops(images):
        return kernels.cut(padded, top_, left_, height, width)
    cuts = padded.unfold(2, height, 1).unfold(3, width, 1)  # a view: batch channel top left height width
    return cuts[which, :, top_, left_]


def flip(images: Bytes, which: np.ndarray) -> Bytes:
    """Mirror the chosen images, left to right."""
    return change(images.clone(), np.flatnonzero(which), lambda part: part.flip(-1))


def erase(images: Bytes, top: np.ndarray, left: np.ndarray, height: np.ndarray, width: np.ndarray) -> Bytes:
    """Black out a rectangle of each image."""
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
    """Turn (degrees, clockwise), shift (across, down), scale and shear (degrees) each image; the nearest point is
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


def blend(images: Tensor, other: Tensor, factor: Draws) -> Bytes:
    """`factor` of the image and 1 − `factor` of the other."""
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
    """Away from (or towards) the mean of nine neighbors, the middle five times; the border stays as it is."""
    sharp = images.float()
    columns = sharp[..., :-2, :] + sharp[..., 1:-1, :] + sharp[..., 2:, :]
    inside = sharp[..., 1:-1, 1:-1]
    sums = columns[..., :-2].add(columns[..., 1:-1]).add_(columns[..., 2:]).add_(inside, alpha=4)
    inside.addcmul_(sums.mul_(1 / 13).round_().sub_(inside), on_device(1.0 - factor, images))
    return sharp.clamp_(0, 255).to(torch.uint8)


# Where a point's new value depends on its old one alone, a table says what becomes of each of the 256.
Table = UInt8[Tensor, "batch channel 1 256"]


def identity_lut(images: Bytes) -> Table:
    return torch.arange(256, dtype=torch.uint8, device=images.device).expand(*images.shape[:2], 1, 256)


def brightness(images: Bytes, factor: Draws) -> Table:
    return (identity_lut(images) * on_device(factor, images)).clamp_(0, 255).to(torch.uint8)


def contrast(images: Bytes, factor: Draws) -> Table:
    return blend(identity_lut(images), grey(images).mean(dim=(-3, -2, -1), keepdim=True), factor)


def posterize(images: Bytes, bits: Draws) -> Table:
    """Keep the first so many bits."""
    return identity_lut(images) & on_device((256 - 2 ** (8 - bits)).astype(np.uint8), images)


def solarize(images: Bytes, threshold: Draws) -> Table:
    """Invert what is at or above the threshold (0–255)."""
    values = identity_lut(images)
    return torch.where(values >= on_device(threshold, images), 255 - values, values)


def invert(images: Bytes, _: object = None) -> Table:
    return 255 - identity_lut(images)


def autocontrast(images: Bytes, _: object = None) -> Table:
    """Stretch each channel so that it reaches from 0 to 255; one that has a single value stays as it is."""
    lowest, highest = (extreme.float() for extreme in images.flatten(2).aminmax(dim=2))
    same = lowest == highest
    step = ((highest - lowest) * (1 / 255)).masked_fill(same, 1)[..., None, None]
    start = lowest.masked_fill(same, 0)[..., None, None]
    return (identity_lut(images) - start).div_(step).clamp_(0, 255).to(torch.uint8)


def equalize(images: Bytes, _: object = None) -> Table:
    """Spread each channel's values evenly over 0–255, as PIL does; one that has too few to spread stays as it is."""
    counts = count(images)
    until = counts.cumsum(dim=-1)
    before = until - counts
    step = before.gather(-1, until.argmax(dim=-1, keepdim=True)) // 255  # of all but the highest value
    spread = ((before + step // 2) // step.clamp(min=1)).clamp_(max=255).to(torch.uint8)
    return torch.where(step > 0, spread, identity_lut(images))


def look_up(images: Bytes, table: Table) -> Bytes:
    """What the table makes of every point."""
    if kernels.can_use_image_ops(images):
        return kernels.look_up(images, table)
    return table.flatten(2).gather(2, images.flatten(2).long()).view_as(images)


def count(images: Bytes) -> Int32[Tensor, "batch channel 1 256"]:
    """How many points have each of the 256 values."""
    if kernels.can_use_image_ops(images):
        return kernels.count(images)
    points = images.flatten(2).long()
    counts = torch.zeros(*images.shape[:2], 256, dtype=torch.int32, device=images.device)
    return counts.scatter_add_(2, points, torch.ones_like(counts[:1, :1, :1]).expand_as(points))[:, :, None]
