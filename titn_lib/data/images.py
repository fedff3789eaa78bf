"""Image files, one at a time, as uint8 tensors; and labeled images in memory."""

import os
import re
import stat
import warnings
from collections.abc import Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Int64, UInt8
from PIL import Image, ImageOps
from torch import Tensor

from titn_lib.errors import TITNError
from titn_lib.validation import to_2tuple

MODES = {1: "L", 3: "RGB"}  # Pillow's, by number of channels


@dataclass(frozen=True)
class ImageDataset:
    """Images and their labels, in memory.

    Attributes:
        images: uint8, 0–255.
        labels: the index of each image's class.
    """

    images: UInt8[Tensor, "image channel height width"]
    labels: Int64[Tensor, " image"]

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, which: Tensor | np.ndarray | slice) -> "ImageDataset":
        return ImageDataset(self.images[which], self.labels[which])

    def to(self, device: torch.device) -> "ImageDataset":
        return ImageDataset(self.images.to(device), self.labels.to(device))


def memory_bytes() -> int | None:
    """This machine's memory, or the container's share of it; None where the system doesn't tell."""
    known = list[int]()
    with suppress(OSError, ValueError, AttributeError):
        known.append(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    with suppress(OSError, ValueError):  # "max": no limit
        known.append(int(Path("/sys/fs/cgroup/memory.max").read_text(encoding="utf-8")))
    return min(known, default=None)


def require_memory(count: int, channels: int, size: tuple[int, int], name: str) -> None:
    """Raises TITNError if so many images take more than half of the memory: they are copied when they are split."""
    needed, memory = count * channels * size[0] * size[1], memory_bytes()
    if memory is not None and needed > memory / 2:
        raise TITNError(
            f"{name} has {count:,} images, which take {needed / 1e9:,.1f} GB at {size[0]}×{size[1]}, and this machine "
            f"has {memory / 1e9:,.1f} GB: choose a smaller image_size (--image-size), or fewer images"
        )


class ImageError(TITNError):
    """An image that can't be read.

    Attributes:
        reason: what is wrong, such as "photo.jpg is empty".
    """

    def __init__(self, reason: str, remedy: str):
        super().__init__(f"{reason}: {remedy}")
        self.reason = reason


def load_image(
    path: str | Path | Image.Image, in_channels: int, image_size: tuple[int, int] | int
) -> UInt8[Tensor, "channel height width"]:
    """Load an image file as uint8: turned upright as its EXIF data say, transparency on white, resized, center-cropped.

    A large JPEG file is decoded at ½, ¼ or ⅛ of its size, but at no less than twice `image_size`. 16 bits a channel
    are scaled to 8; so are 32-bit integers and floats whose values lie within 0–65535, 0–255 or 0–1.

    Args:
        path: the file's path, or an image opened with Pillow.
        in_channels: 1 for grayscale, 3 for color.
        image_size: height and width, or one number for both.

    Raises:
        TITNError: the file is missing, damaged or not an image; `in_channels` is neither 1 nor 3; or a bad image_size.
    """
    size = to_2tuple(image_size)
    if in_channels not in MODES:
        raise TITNError(f"image files have 1 or 3 channels, not {in_channels}: pass tensors to such a model")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's, of odd metadata and of photographs with 90 megapixels or more
        return read_image(path, in_channels, size)


def load_images(
    paths: Sequence[str | Path], in_channels: int, image_size: tuple[int, int] | int
) -> UInt8[Tensor, "image channel height width"]:
    """Several image files, each read by `load_image`.

    Raises:
        TITNError: as `load_image`, or no path. All files that can't be read are named.
    """
    if isinstance(paths, str | Path) or not paths:
        raise TITNError(f"load_images expects a list of files, not {paths!r}: for one image, use load_image")
    images, problems = list[Tensor](), list[ImageError]()
    for path in paths:
        try:
            images.append(load_image(path, in_channels, image_size))
        except ImageError as problem:
            problems.append(problem)
    if len(problems) > 1:
        reasons = "; ".join(problem.reason for problem in problems)
        raise TITNError(f"{len(problems)} of {len(paths)} images can't be read ({reasons}): leave them out")
    if problems:
        raise problems[0]
    return torch.stack(images)


def read_image(
    path: str | Path | Image.Image, in_channels: int, size: tuple[int, int]
) -> UInt8[Tensor, "channel height width"]:
    """`load_image` without its checks; Pillow may warn.

    Raises:
        ImageError: the image can't be read.
    """
    height, width = size
    if is_pipe(path):
        raise ImageError(f"{path} is a named pipe", "give an image file")
    try:
        with nullcontext(path) if isinstance(path, Image.Image) else Image.open(path) as opened:
            if not isinstance(path, Image.Image):
                opened.draft(None, (2 * max(size), 2 * max(size)))  # the sides may be exchanged when turned upright
            upright: Image.Image = ImageOps.exif_transpose(opened)
            if upright.mode[0] in "IF":  # Pillow would clip values above 255; no transparency is read from these
                upright = Image.fromarray(to_bytes(upright, opened.format in ("PNG", "PPM"), path))
            if upright.has_transparency_data:
                rgba = upright.convert("RGBA")
                upright = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba)
            upright = upright.convert(MODES[in_channels])
            resized = ImageOps.fit(upright, (width, height), Image.Resampling.BILINEAR)
    except ImageError:
        raise
    except Exception as problem:  # Pillow raises many types for damaged files
        raise explain(path, problem) from problem
    return torch.from_numpy(np.array(resized).reshape(height, width, in_channels)).permute(2, 0, 1).contiguous()


def is_pipe(path: str | Path | Image.Image) -> bool:
    """Whether a path is a named pipe: opening one would wait for ever."""
    with suppress(OSError, ValueError):  # what can't be opened
        return not isinstance(path, Image.Image) and stat.S_ISFIFO(os.stat(path).st_mode)
    return False


def to_bytes(image: Image.Image, sixteen_bits: bool, path: object) -> UInt8[np.ndarray, "height width"]:
    """The values of an image of 16 bits, 32-bit integers or floats, scaled to 0–255.

    Args:
        sixteen_bits: the file's integers have 16 bits, even where Pillow returns them as 32.

    Raises:
        ImageError: the values are negative, too large or not finite, so that their scale can't be known.
    """
    values = np.asarray(image)
    low, high = float(values.min()), float(values.max())
    if image.mode.startswith("I;16") or (sixteen_bits and image.mode == "I"):
        return (values.clip(0, 65535) / 257).astype(np.uint8)
    scales = [(1, 255.0), (255, 1.0)] if image.mode == "F" else [(255, 1.0), (65535, 1 / 257)]
    for largest, factor in scales:
        if low >= 0 and high <= largest:
            return (np.rint(values * factor) if factor >= 1 else values * factor).astype(np.uint8)
    raise ImageError(
        f"{path} has values from {low:g} to {high:g}, whose scale is unknown", "save it with 8 or 16 bits a channel"
    )


def explain(path: object, problem: Exception) -> ImageError:
    """The error for a file that Pillow can't read: what kind of trouble it is, and the way out."""
    name, file = str(path), Path(str(path))
    if re.match(r"[a-z]{2,}:/+\w", name, re.IGNORECASE):
        return ImageError(f"{name} is a web address", "download the image and give the name of its file")
    if isinstance(problem, FileNotFoundError) and any(sign in name for sign in "*?["):
        return ImageError(f"no file matches {name}", "check the folder and the ending (a command line expands *)")
    if isinstance(problem, FileNotFoundError):
        return ImageError(f"there is no image {name}", "check the path")
    if isinstance(problem, Image.DecompressionBombError):
        limit = 2 * (Image.MAX_IMAGE_PIXELS or 0) // 10**6
        return ImageError(f"{name} has more than {limit} megapixels (a decompression bomb?)", "make it smaller")
    if isinstance(problem, MemoryError):
        return ImageError(f"{name} doesn't fit in memory", "make it smaller")
    try:
        if file.is_dir():
            return ImageError(f"{name} is a folder", "give the image files in it")
        with nullcontext(None) if isinstance(path, Image.Image) else file.open("rb") as opened:
            start = opened.read(512) if opened else b""
    except PermissionError:
        return ImageError(f"no permission to read {name}", "change its permissions")
    except (OSError, ValueError) as wrong:  # a name that is too long, or holds a NUL
        reason = getattr(wrong, "strerror", None) or str(wrong)
        return ImageError(f"{name[:200]!r} can't be opened ({reason})", "check the path")
    if not start and not isinstance(path, Image.Image):
        return ImageError(f"{name} is empty", "remove it or save it again")
    if start.lstrip().lower().startswith((b"<!doctype html", b"<html")):
        return ImageError(f"{name} is a web page, not an image", "download the image itself")
    if start[4:8] == b"ftyp" or file.suffix.lower() in (".heic", ".heif"):
        return ImageError(f"{name} has a format that Pillow can't read (HEIC?)", "save it as JPEG or PNG")
    return ImageError(f"{name} is not an image or is damaged", "remove it or save it again")
