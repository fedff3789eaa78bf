"""Operations on uint8 images, in C++ (`image_ops.cpp`)."""

import ctypes

import torch
from jaxtyping import Int32, Int64, UInt8
from torch import Tensor

from titn_lib.kernels import build


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
