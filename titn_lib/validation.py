"""Checks of settings, each with one clear sentence."""

import math
import re
from argparse import ArgumentTypeError
from dataclasses import fields
from numbers import Integral
from typing import Any

import torch

from titn_lib.errors import TITNError, check_choices

MAX_SIDE = 16_384  # pixels of an image's height or width


def require(condition: bool, message: str) -> None:
    """Raises TITNError with this message unless the condition holds."""
    if not condition:
        raise TITNError(message)


def check_settings(config: Any) -> None:
    """Check the types and ranges of a model's settings.

    Raises:
        TITNError: an unknown choice, a size below 1, an empty tuple, or a value of another type.
    """
    check_choices(config)
    for field in fields(config):
        value, wanted = getattr(config, field.name), ""
        if value is None and field.type == int | None:
            continue
        numbers = value if isinstance(value, tuple) else (value,)
        integer = field.type in (int, tuple[int, int], int | None)
        if integer and not all(type(number) is int for number in numbers):
            wanted = "an integer"
        elif integer and min(numbers) < 1:
            wanted = "at least 1"
        elif field.type is bool and not isinstance(value, bool):
            wanted = "True or False"
        elif field.type is float and not (isinstance(value, int | float) and math.isfinite(value)):
            wanted = "a number"
        elif value == ():
            wanted = "one or more"
        require(not wanted, f"{field.name} must be {wanted}, not {value!r}")


def require_tensor(images: Any) -> None:
    """Raises TITNError unless the images are a tensor."""
    if not isinstance(images, torch.Tensor):
        raise TITNError(
            f"images must be a tensor, not {type(images).__name__}: convert arrays with torch.from_numpy, "
            "lists of tensors with torch.stack, and read files with titn_lib.load_image"
        )


def check_division(config: Any, factor: int) -> None:
    """Raises TITNError unless the factor divides the height and the width of the images."""
    require(
        not any(side % factor for side in config.image_size),
        f"{config.name} needs an image_size that {factor} divides, not {config.image_size}",
    )


def to_2tuple(size: Any) -> tuple[int, int]:
    """Height and width: a pair as it is, one number twice.

    Raises:
        TITNError: it is neither.
    """
    sides = tuple(size) if isinstance(size, list | tuple) else (size, size)
    sides = tuple(int(side) if isinstance(side, Integral) else side for side in sides)  # NumPy's, too
    if len(sides) != 2 or not all(isinstance(side, int) and side > 0 for side in sides):
        raise TITNError(f"image_size must be a height and a width, or one number for both, of 1 or more, not {size!r}")
    if max(sides) > MAX_SIDE:
        raise TITNError(f"image_size must be at most {MAX_SIDE:,}, not {max(sides):,}")
    return sides


def image_size_of(text: str) -> tuple[int, int]:
    """ "64" or "48x64" as height and width, for argparse."""
    sides = re.fullmatch(r"(\d+)(?:[x×](\d+))?", text)
    if not sides:
        raise ArgumentTypeError(f"must be such as 64, or 48x64 (height x width), not {text!r}")
    return int(sides[1]), int(sides[2] or sides[1])
