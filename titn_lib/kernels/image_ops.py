"""Operations on uint8 images: in C++ for a CPU (`image_ops.cpp`), in Triton for a GPU (`augment_triton.py`)."""

import ctypes

import torch
from jaxtyping import Float, Int32, Int64, UInt8
from torch import Tensor

from titn_lib.kernels import build
from titn_lib.kernels.fused_layer import triton_available

# What `operate` can do to a pixel, by number. Geometric operations are maps.
KINDS = ("", "brightness", "posterize", "solarize", "invert", "color", "contrast", "autocontrast", "equalize",
         "sharpness")  # fmt: skip
MAX_PIXELS = 64 * 64  # of an image that a Triton program keeps in registers


def can_use_image_ops(images: Tensor) -> bool:
    """Whether `apply_lut`, `histogram`, `crop` and `remap` support the images' dtype and device."""
    return images.dtype == torch.uint8 and images.device.type == "cpu" and build.available()


def apply_lut(
    images: UInt8[Tensor, "batch channel height width"], table: UInt8[Tensor, "batch channel 1 256"]
) -> UInt8[Tensor, "batch channel height width"]:
    """Replace every value by its entry in the image's and channel's lookup table."""
    result = torch.empty(images.shape, dtype=torch.uint8)
    rows, length = images.shape[:2].numel(), images.shape[2:].numel()
    call("apply_lut", [images.contiguous(), table.contiguous(), result], rows, length)
    return result


def histogram(images: UInt8[Tensor, "batch channel height width"]) -> Int32[Tensor, "batch channel 1 256"]:
    """Number of pixels of each image and channel that have each of the 256 values."""
    counts = torch.empty(*images.shape[:2], 1, 256, dtype=torch.int32)
    call("histogram", [images.contiguous(), counts], images.shape[:2].numel(), images.shape[2:].numel())
    return counts


def crop(
    images: UInt8[Tensor, "batch channel height width"],
    top: Int64[Tensor, " batch"],
    left: Int64[Tensor, " batch"],
    height: int,
    width: int,
) -> UInt8[Tensor, "batch channel new_height new_width"]:
    """Cut a window of height × width out of each image, at an offset of its own."""
    result = torch.empty(*images.shape[:2], height, width, dtype=torch.uint8)
    sizes = *images.shape[:2], height, width, *images.shape[2:]
    call("crop", [images.contiguous(), top, left, result], *sizes)
    return result


def remap(
    images: UInt8[Tensor, "batch channel height width"],
    maps: Int64[Tensor, "map height width"],
    which: Int64[Tensor, " batch"],
) -> UInt8[Tensor, "batch channel height width"]:
    """Replace every pixel by the one whose index its map holds; indices count from 1, and 0 stands for black.

    Args:
        which: for each image, the index of its map.
    """
    result = torch.empty(images.shape, dtype=torch.uint8)
    call("remap", [images.contiguous(), maps, which, result], *images.shape[:2], images.shape[2:].numel())
    return result


def call(name: str, tensors: list[Tensor], *sizes: int) -> None:
    """Call a function of image_ops.cpp: tensors, sizes, number of threads."""
    getattr(build.load(), name)(*build.data_pointers(*tensors), *map(ctypes.c_int64, sizes), torch.get_num_threads())


# On a GPU


def can_augment(images: Tensor) -> bool:
    """Whether `crop_flip`, `operate` and `mix_normalize` support the images' dtype, size and device."""
    fits = images.dtype == torch.uint8 and images.shape[1] in (1, 3) and images.shape[2:].numel() <= MAX_PIXELS
    return fits and images.device.type == "cuda" and triton_available()


def crop_flip(
    images: UInt8[Tensor, "batch channel height width"], draws: Int32[Tensor, "three batch"], fill: int
) -> UInt8[Tensor, "batch channel height width"]:
    """Take each pixel from some rows below and some columns to the right, and mirror some images.

    Args:
        draws: for each image the rows, the columns, and whether it is mirrored.
        fill: the value of pixels outside the image.
    """
    return launch("crop_flip_kernel", images, torch.uint8, draws, len(images), fill)


def operate(
    images: UInt8[Tensor, "batch channel height width"],
    choices: Int32[Tensor, " batch"],
    kinds: Int32[Tensor, " operation"],
    factors: Float[Tensor, "operation two"],
    maps: Int32[Tensor, "operation pixel"],
) -> UInt8[Tensor, "batch channel height width"]:
    """Apply to each image its operation, whose index in the other arguments it chose (`data.batches.Operations`)."""
    return launch("operation_kernel", images, torch.uint8, choices, kinds, factors, maps)


def mix_normalize(
    images: UInt8[Tensor, "batch channel height width"],
    partners: Int32[Tensor, " batch"],
    box: Int32[Tensor, " four"],
    offset: Float[Tensor, " channel"],
    factor: Float[Tensor, " channel"],
) -> Float[Tensor, "batch channel height width"]:
    """Paste the box of its partner into each image, and then factor · value + offset.

    Args:
        box: first row, row after the last one, and the same for columns.
    """
    return launch("mix_normalize_kernel", images, torch.float32, partners, box, offset, factor)


def launch(name: str, images: Tensor, dtype: torch.dtype, *arguments: Tensor | int) -> Tensor:
    """Launch a kernel of augment_triton.py: a program for each image."""
    from titn_lib.kernels import augment_triton  # here, because Triton isn't installed everywhere

    result = torch.empty(images.shape, dtype=dtype, device=images.device)
    kernel = getattr(augment_triton, name)
    kernel[(len(images),)](images.contiguous(), result, *arguments, **launch_options(images))
    return result


def launch_options(images: Tensor) -> dict[str, int | bool]:
    """The sizes that a kernel is compiled for, and how."""
    _, channels, height, width = images.shape
    pixels = 1 << (height * width - 1).bit_length()
    sizes = {"CHANNELS": channels, "HEIGHT": height, "WIDTH": width, "PIXELS": pixels}
    return {**sizes, "num_warps": max(1, min(8, pixels // 256)), "enable_fp_fusion": False}
