"""Operations on uint8 images, in C++."""

import ctypes

import torch
from jaxtyping import Int32, Int64, UInt8
from torch import Tensor

from titn_lib.kernels import build


def can_use_image_ops(images: Tensor) -> bool:
    """Whether `look_up`, `count`, `cut` and `move` are made for this kind of numbers and machine."""
    return images.dtype == torch.uint8 and images.device.type == "cpu" and build.available()


def look_up(
    images: UInt8[Tensor, "batch channel height width"], table: UInt8[Tensor, "batch channel 1 256"]
) -> UInt8[Tensor, "batch channel height width"]:
    """What each image's and channel's table makes of every point."""
    result = torch.empty(images.shape, dtype=torch.uint8)
    rows, length = images.shape[:2].numel(), images.shape[2:].numel()
    call_bytes("look_up", [images.contiguous(), table.contiguous(), result], rows, length)
    return result


def count(images: UInt8[Tensor, "batch channel height width"]) -> Int32[Tensor, "batch channel 1 256"]:
    """How many points of each image and channel have each of the 256 values."""
    counts = torch.empty(*images.shape[:2], 1, 256, dtype=torch.int32)
    call_bytes("count", [images.contiguous(), counts], images.shape[:2].numel(), images.shape[2:].numel())
    return counts


def cut(
    images: UInt8[Tensor, "batch channel height width"],
    top: Int64[Tensor, " batch"],
    left: Int64[Tensor, " batch"],
    height: int,
    width: int,
) -> UInt8[Tensor, "batch channel new_height new_width"]:
    """A window of each image, at its own place."""
    result = torch.empty(*images.shape[:2], height, width, dtype=torch.uint8)
    sizes = *images.shape[:2], height, width, *images.shape[2:]
    call_bytes("cut", [images.contiguous(), top, left, result], *sizes)
    return result


def move(
    images: UInt8[Tensor, "batch channel height width"],
    maps: Int64[Tensor, "map height width"],
    which: Int64[Tensor, " batch"],
) -> UInt8[Tensor, "batch channel height width"]:
    """Every place of an image gets the point that its map names: counted from 1, or 0 for black."""
    result = torch.empty(images.shape, dtype=torch.uint8)
    call_bytes("move", [images.contiguous(), maps, which, result], *images.shape[:2], images.shape[2:].numel())
    return result


def call_bytes(name: str, tensors: list[Tensor], *sizes: int) -> None:
    getattr(build.load(), name)(*build.addresses(*tensors), *map(ctypes.c_int64, sizes), torch.get_num_threads())
