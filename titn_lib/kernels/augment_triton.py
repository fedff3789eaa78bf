"""Data augmentation for a GPU, in Triton: crop and flip, AutoAugment's operations, CutMix and normalization.

A program works on one image. It looks up what its image gets, so a batch takes one launch however many different
operations it needs. The pixels are those of `data.image_ops`, bit for bit. For that, `multiply_add` rounds once, as
PyTorch's `addcmul` does, and no other product may be fused with a sum.

PIXELS is HEIGHT · WIDTH, padded to a power of two.
"""

import triton
import triton.language as tl

from titn_lib.kernels.image_ops import KINDS
from titn_lib.kernels.primitives_triton import INTERPRETED

BRIGHTNESS, POSTERIZE, SOLARIZE, INVERT, COLOR, CONTRAST, AUTOCONTRAST, EQUALIZE, SHARPNESS = (
    tl.constexpr(kind) for kind in range(1, len(KINDS))
)


@triton.jit
def multiply_add(a, b, c):
    """a · b + c, rounded once."""
    if INTERPRETED:  # Triton's interpreter would round twice
        return (a.to(tl.float64) * b + c).to(tl.float32)
    return tl.fma(a, b, c)


@triton.jit
def to_byte(value):
    return tl.minimum(tl.maximum(value, 0.0), 255.0).to(tl.int32)


@triton.jit
def load_pixels(image_ptr, row, column, channel, inside, fill, HEIGHT: tl.constexpr, WIDTH: tl.constexpr):
    """Pixels of one channel; those outside the image are `fill`."""
    inside &= (row >= 0) & (row < HEIGHT) & (column >= 0) & (column < WIDTH)
    return tl.load(image_ptr + (channel * HEIGHT + row) * WIDTH + column, mask=inside, other=fill).to(tl.int32)


@triton.jit
def crop_flip_kernel(
    images_ptr, result_ptr, draws_ptr, batch, fill,
    CHANNELS: tl.constexpr, HEIGHT: tl.constexpr, WIDTH: tl.constexpr, PIXELS: tl.constexpr,
):  # fmt: skip
    """`draws`: "three batch": for each image the rows and columns to its source pixels, and whether it is mirrored."""
    image, pixel = tl.program_id(0), tl.arange(0, PIXELS)
    down = tl.load(draws_ptr + image)
    across = tl.load(draws_ptr + batch + image)
    mirrored = tl.load(draws_ptr + 2 * batch + image)
    start = image * CHANNELS * HEIGHT * WIDTH
    inside = pixel < HEIGHT * WIDTH
    row, column = pixel // WIDTH, pixel % WIDTH
    column = tl.where(mirrored != 0, WIDTH - 1 - column, column)
    for channel in tl.static_range(CHANNELS):
        value = load_pixels(images_ptr + start, row + down, column + across, channel, inside, fill, HEIGHT, WIDTH)
        tl.store(result_ptr + start + channel * HEIGHT * WIDTH + pixel, value.to(tl.uint8), mask=inside)


@triton.jit
def grayscale(image_ptr, source, CHANNELS: tl.constexpr, SIZE: tl.constexpr):
    """Luma, rounded down."""
    value = tl.load(image_ptr + source - 1, mask=source > 0, other=0).to(tl.float32)
    if CHANNELS == 3:
        green = tl.load(image_ptr + SIZE + source - 1, mask=source > 0, other=0).to(tl.float32)
        blue = tl.load(image_ptr + 2 * SIZE + source - 1, mask=source > 0, other=0).to(tl.float32)
        value = multiply_add(green, tl.full(green.shape, 0.587, tl.float32), value * 0.2989)
        value = tl.floor(multiply_add(blue, tl.full(blue.shape, 0.114, tl.float32), value))
    return value


@triton.jit
def stretch(value, inside):
    """The channel's values from the lowest to the highest, spread over 0–255."""
    lowest = tl.min(tl.where(inside, value, 255.0), 0)
    highest = tl.max(tl.where(inside, value, 0.0), 0)
    if lowest < highest:
        value = tl.div_rn(value - lowest, tl.zeros(value.shape, tl.float32) + (highest - lowest) * (1 / 255))
    return to_byte(value)


@triton.jit
def equalize(value, inside):
    """The channel's values, replaced so that their histogram becomes flat."""
    counts = tl.histogram(value, 256, mask=inside)
    below = tl.cumsum(counts, 0) - counts
    highest = tl.max(tl.where(inside, value, 0), 0)
    step = tl.sum((inside & (value < highest)).to(tl.int32), 0) // 255
    if step > 0:
        value = tl.minimum((tl.gather(below, value, 0) + step // 2) // step, 255)
    return value


@triton.jit
def smooth(image_ptr, pixel, channel, inside, HEIGHT: tl.constexpr, WIDTH: tl.constexpr):
    """The mean over 3×3 pixels, with weight 5 for the one in the center and 1 for the others, rounded."""
    row, column = pixel // WIDTH, pixel % WIDTH
    total = load_pixels(image_ptr, row, column, channel, inside, 0, HEIGHT, WIDTH) * 4
    for down in tl.static_range(-1, 2):
        for across in tl.static_range(-1, 2):
            total += load_pixels(image_ptr, row + down, column + across, channel, inside, 0, HEIGHT, WIDTH)
    return total.to(tl.float32) * (1 / 13) + 12582912.0 - 12582912.0  # 1.5 · 2²³: rounds to an integer


@triton.jit
def operation_kernel(
    images_ptr, result_ptr, choices_ptr, kinds_ptr, factors_ptr, maps_ptr,
    CHANNELS: tl.constexpr, HEIGHT: tl.constexpr, WIDTH: tl.constexpr, PIXELS: tl.constexpr,
):  # fmt: skip
    """Apply to each image the operation that it chose."""
    SIZE: tl.constexpr = HEIGHT * WIDTH
    image, pixel = tl.program_id(0), tl.arange(0, PIXELS)
    inside = pixel < SIZE
    choice = tl.load(choices_ptr + image)
    kind = tl.load(kinds_ptr + choice)
    factor, rest = tl.load(factors_ptr + 2 * choice), tl.load(factors_ptr + 2 * choice + 1)
    start = image * CHANNELS * SIZE
    source = tl.load(maps_ptr + choice * SIZE + pixel, mask=inside, other=0)
    gray = grayscale(images_ptr + start, source, CHANNELS, SIZE)
    if kind == CONTRAST:
        gray = tl.zeros(gray.shape, tl.float32) + tl.div_rn(tl.sum(gray, 0), SIZE * 1.0)
    rest = tl.zeros(gray.shape, tl.float32) + rest
    for channel in tl.static_range(CHANNELS):
        value = tl.load(images_ptr + start + channel * SIZE + source - 1, mask=source > 0, other=0).to(tl.int32)
        real = value.to(tl.float32)
        if kind == BRIGHTNESS:
            value = to_byte(real * factor)
        elif kind == POSTERIZE:
            value &= factor.to(tl.int32)
        elif kind == SOLARIZE:
            value = tl.where(real >= factor, 255 - value, value)
        elif kind == INVERT:
            value = 255 - value
        elif ((kind == COLOR) & (CHANNELS == 3)) | (kind == CONTRAST):
            value = to_byte(multiply_add(gray, rest, real * factor))
        elif kind == AUTOCONTRAST:
            value = stretch(real, inside)
        elif kind == EQUALIZE:
            value = equalize(value, inside)
        elif kind == SHARPNESS:
            smoothed = smooth(images_ptr + start, pixel, channel, inside, HEIGHT, WIDTH)
            row, column = pixel // WIDTH, pixel % WIDTH
            border = (row == 0) | (row == HEIGHT - 1) | (column == 0) | (column == WIDTH - 1)
            value = tl.where(border, value, to_byte(multiply_add(smoothed - real, rest, real)))
        tl.store(result_ptr + start + channel * SIZE + pixel, value.to(tl.uint8), mask=inside)


@triton.jit
def mix_normalize_kernel(
    images_ptr, result_ptr, partners_ptr, box_ptr, offsets_ptr, factors_ptr,
    CHANNELS: tl.constexpr, HEIGHT: tl.constexpr, WIDTH: tl.constexpr, PIXELS: tl.constexpr,
):  # fmt: skip
    """Paste the box of its partner into each image, and normalize. `box`: first row, row after the last, and the same
    for columns."""
    SIZE: tl.constexpr = HEIGHT * WIDTH
    image, pixel = tl.program_id(0), tl.arange(0, PIXELS)
    inside = pixel < SIZE
    row, column = pixel // WIDTH, pixel % WIDTH
    pasted = (row >= tl.load(box_ptr)) & (row < tl.load(box_ptr + 1))
    pasted &= (column >= tl.load(box_ptr + 2)) & (column < tl.load(box_ptr + 3))
    start = tl.where(pasted, tl.load(partners_ptr + image), image) * CHANNELS * SIZE
    for channel in tl.static_range(CHANNELS):
        value = tl.load(images_ptr + start + channel * SIZE + pixel, mask=inside, other=0).to(tl.float32)
        factor = tl.zeros(value.shape, tl.float32) + tl.load(factors_ptr + channel)
        value = multiply_add(value, factor, tl.zeros(value.shape, tl.float32) + tl.load(offsets_ptr + channel))
        tl.store(result_ptr + (image * CHANNELS + channel) * SIZE + pixel, value, mask=inside)
