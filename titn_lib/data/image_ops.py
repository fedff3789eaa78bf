"""Image operations for augmentation: batches of uint8 images in and out, on any device.

Nothing here draws random values: each operation takes one value per image. Given the same values, every operation
equals torchvision's, bit for bit.
"""

from collections.abc import Callable

import numpy as np
import torch
from jaxtyping import Float, Int32, UInt8
from torch import Tensor
from torch.nn import functional as F

from titn_lib import kernels
from titn_lib.errors import TITNError

UInt8Images = UInt8[Tensor, "batch channel height width"]
RandomValues = Float[np.ndarray, " batch"]  # one value per image


def to_device_of(values: np.ndarray, like: Tensor) -> Tensor:
    """Copy `values` to `like`'s device without synchronizing.

    A GPU copies pinned memory while the host goes on. PyTorch doesn't reuse that memory before the copy is done.
    """
    tensor = torch.from_numpy(values)
    return tensor.pin_memory().to(like.device, non_blocking=True) if like.is_cuda else tensor.to(like.device)


def per_image(values: np.ndarray, images: Tensor) -> Tensor:
    """One value per image as a tensor on the images' device, "batch 1 1 1"; float64 becomes float32."""
    values = values.astype(np.float32) if values.dtype == np.float64 else values
    return to_device_of(values, images).view(-1, 1, 1, 1)


def apply_to_subset(images: UInt8Images, indices: np.ndarray, fn: Callable[[UInt8Images], UInt8Images]) -> UInt8Images:
    """Apply `fn` to the selected images, in place."""
    if len(indices):
        at = to_device_of(indices, images)
        changed = fn(images.index_select(0, at))
        if images.is_contiguous() and images[0].numel() % 8 == 0:  # copying as int64 is faster than as uint8
            images.view(len(images), -1).view(torch.int64)[at] = changed.flatten(1).view(torch.int64)
        else:
            images[at] = changed
    return images


def crop(images: UInt8Images, top: np.ndarray, left: np.ndarray, margin: tuple[int, int], fill: int) -> UInt8Images:
    """Pad each image and crop it to its former size, at its own (top, left).

    Args:
        top, left: the crop's corner in the padded image, one per image: from 0 to twice the margin.
        margin: pixels of padding above and below, left and right.
        fill: the padding's value, 0–255.

    Raises:
        TITNError: a crop reaches beyond the padded image.
    """
    for offsets, pixels in ((top, margin[0]), (left, margin[1])):
        if len(offsets) and not 0 <= offsets.min() <= offsets.max() <= 2 * pixels:
            raise TITNError(
                f"crop offsets must be from 0 to {2 * pixels}, twice the margin, and they are {offsets.tolist()}"
            )
    height, width = images.shape[-2:]
    padded = F.pad(images, [margin[1], margin[1], margin[0], margin[0]], value=fill)
    indices = (np.arange(len(images)), top, left)
    image, row, column = (to_device_of(values.astype(np.int64, copy=False), images) for values in indices)
    if kernels.can_use_image_ops(images):
        return kernels.crop(padded, row, column, height, width)
    windows = padded.unfold(2, height, 1).unfold(3, width, 1)  # a view: batch channel top left height width
    return windows[image, :, row, column]


def horizontal_flip(images: UInt8Images, chosen: np.ndarray) -> UInt8Images:
    """Mirror the chosen images (a boolean per image), left to right."""
    return apply_to_subset(images.clone(), np.flatnonzero(chosen), lambda part: part.flip(-1))


def affine(
    images: Tensor,
    angle: RandomValues | float = 0.0,
    translate: tuple[RandomValues | float, RandomValues | float] = (0.0, 0.0),
    scale: RandomValues | float = 1.0,
    shear: tuple[RandomValues | float, RandomValues | float] = (0.0, 0.0),
    center: tuple[RandomValues | float, RandomValues | float] | None = None,
) -> Tensor:
    """Rotate, translate, scale and shear each image, with nearest-neighbor interpolation and black fill.

    Args:
        angle: degrees, clockwise.
        translate: pixels to the right and down.
        shear: degrees, along x and y.
        center: (x, y) in pixels of the fixed point of rotation and shear, (0, 0) for the upper left corner; by default
            the image's center.
    """
    batch, _, height, width = images.shape
    cx, cy = (0.0, 0.0) if center is None else (center[0] - width / 2, center[1] - height / 2)
    rotation, sx, sy = np.radians(angle), np.radians(shear[0]), np.radians(shear[1])
    a = np.cos(rotation - sy) / np.cos(sy)
    b = -(a * np.tan(sx) + np.sin(rotation))
    c = np.sin(rotation - sy) / np.cos(sy)
    d = np.cos(rotation) - c * np.tan(sx)
    a, b, c, d = d / scale, -b / scale, -c / scale, a / scale  # the inverse: from an output pixel to its source
    x, y = cx + translate[0], cy + translate[1]
    matrix = np.empty((batch, 2, 3))
    for row, column, value in (
        (0, 0, a), (0, 1, b), (0, 2, cx - a * x - b * y), (1, 0, c), (1, 1, d), (1, 2, cy - c * x - d * y)
    ):  # fmt: skip
        matrix[:, row, column] = value
    theta = to_device_of(matrix.astype(np.float32), images).transpose(1, 2)
    across, down = (torch.linspace((1.0 - n) * 0.5, (n - 1.0) * 0.5, n, device=images.device) for n in (width, height))
    ones = torch.ones(height, width, device=images.device)
    output = torch.stack([*torch.meshgrid(across, down, indexing="xy"), ones], dim=-1)
    half = to_device_of(np.array([0.5 * width, 0.5 * height], dtype=np.float32), images)
    grid = output.view(1, -1, 3).expand(batch, -1, -1) @ (theta / half)
    sampled = F.grid_sample(
        images.to(grid.dtype), grid.view(batch, height, width, 2), mode="nearest", align_corners=False
    )
    return sampled.round_().to(images.dtype)


def blend(images: Tensor, other: Tensor, factor: RandomValues) -> UInt8Images:
    """factor · images + (1 − factor) · other, clipped to 0–255."""
    mixed = torch.addcmul(images * per_image(factor, images), other, per_image(1.0 - factor, images))
    return mixed.clamp_(0, 255).to(torch.uint8)


def grayscale(images: UInt8Images) -> Float[Tensor, "batch 1 height width"]:
    """Luma, rounded down (ITU-R 601-2)."""
    if images.shape[1] == 1:
        return images.float()
    red, green, blue = images.split(1, dim=1)
    return red.mul(0.2989).add_(green, alpha=0.587).add_(blue, alpha=0.114).floor_()


def saturation(images: UInt8Images, factor: RandomValues) -> UInt8Images:
    """Blend each image with its grayscale version."""
    return images if images.shape[1] == 1 else blend(images, grayscale(images), factor)


def sharpness(images: UInt8Images, factor: RandomValues) -> UInt8Images:
    """Blend each image with its 3×3 smoothing (center weight 5 of 13); the border pixels stay as they are."""
    sharp = images.float()
    columns = sharp[..., :-2, :] + sharp[..., 1:-1, :] + sharp[..., 2:, :]
    inside = sharp[..., 1:-1, 1:-1]
    sums = columns[..., :-2].add(columns[..., 1:-1]).add_(columns[..., 2:]).add_(inside, alpha=4)
    inside.addcmul_(sums.mul_(1 / 13).round_().sub_(inside), per_image(1.0 - factor, images))
    return sharp.clamp_(0, 255).to(torch.uint8)


# If a pixel's new value depends on its old value alone, a lookup table has the new value for each of the 256.
LookupTable = UInt8[Tensor, "batch channel 1 256"]


def identity_lut(images: UInt8Images) -> LookupTable:
    """The table that changes nothing."""
    return torch.arange(256, dtype=torch.uint8, device=images.device).expand(*images.shape[:2], 1, 256)


def brightness(images: UInt8Images, factor: RandomValues) -> LookupTable:
    """Multiply by the factor."""
    return (identity_lut(images) * per_image(factor, images)).clamp_(0, 255).to(torch.uint8)


def contrast(images: UInt8Images, factor: RandomValues) -> LookupTable:
    """Blend each image with its mean gray level."""
    return blend(identity_lut(images), grayscale(images).mean(dim=(-3, -2, -1), keepdim=True), factor)


def posterize(images: UInt8Images, bits: RandomValues) -> LookupTable:
    """Keep the `bits` most significant bits."""
    return identity_lut(images) & per_image((256 - 2 ** (8 - bits)).astype(np.uint8), images)


def solarize(images: UInt8Images, threshold: RandomValues) -> LookupTable:
    """Invert the values at or above the threshold (0–255)."""
    values = identity_lut(images)
    return torch.where(values >= per_image(threshold, images), 255 - values, values)


def invert(images: UInt8Images, _: object = None) -> LookupTable:
    """255 − the value."""
    return 255 - identity_lut(images)


def autocontrast(images: UInt8Images, _: object = None) -> LookupTable:
    """Stretch each channel to the range 0–255; a channel with a single value stays as it is."""
    lowest, highest = (extreme.float() for extreme in images.flatten(2).aminmax(dim=2))
    same = lowest == highest
    step = ((highest - lowest) * (1 / 255)).masked_fill(same, 1)[..., None, None]
    start = lowest.masked_fill(same, 0)[..., None, None]
    return (identity_lut(images) - start).div_(step).clamp_(0, 255).to(torch.uint8)


def equalize(images: UInt8Images, _: object = None) -> LookupTable:
    """Equalize each channel's histogram, as PIL does; a channel with too few pixels stays as it is."""
    counts = histogram(images)
    up_to = counts.cumsum(dim=-1)
    below = up_to - counts
    step = below.gather(-1, up_to.argmax(dim=-1, keepdim=True)) // 255  # pixels of all values but the highest
    spread = ((below + step // 2) // step.clamp(min=1)).clamp_(max=255).to(torch.uint8)
    return torch.where(step > 0, spread, identity_lut(images))


def apply_lut(images: UInt8Images, table: LookupTable) -> UInt8Images:
    """Replace every pixel's value by its entry in the table of its image and channel."""
    if kernels.can_use_image_ops(images):
        return kernels.apply_lut(images, table)
    return table.flatten(2).gather(2, images.flatten(2).long()).view_as(images)


def histogram(images: UInt8Images) -> Int32[Tensor, "batch channel 1 256"]:
    """How many pixels have each of the 256 values."""
    if kernels.can_use_image_ops(images):
        return kernels.histogram(images)
    pixels = images.flatten(2).long()
    counts = torch.zeros(*images.shape[:2], 256, dtype=torch.int32, device=images.device)
    return counts.scatter_add_(2, pixels, torch.ones_like(counts[:1, :1, :1]).expand_as(pixels))[:, :, None]
