"""Checks of settings, each with one clear sentence."""

import math
from dataclasses import fields
from typing import Any

from titn_lib.errors import TITNError, check_choices


def check_settings(config: Any) -> None:
    """Raises TITNError where a network's settings have a mistyped word, a size below 1, no stages, or something else
    in the place of a number."""
    check_choices(config)
    for field in fields(config):
        value, wanted = getattr(config, field.name), ""
        if value is None and field.type == int | None:
            continue
        numbers = value if isinstance(value, tuple) else (value,)
        whole = field.type in (int, tuple[int, int], int | None)
        if whole and not all(type(number) is int for number in numbers):
            wanted = "a whole number"
        elif whole and min(numbers) < 1:
            wanted = "1 or more"
        elif field.type is bool and not isinstance(value, bool):
            wanted = "True or False"
        elif field.type is float and not (isinstance(value, int | float) and math.isfinite(value)):
            wanted = "a number"
        elif value == ():
            wanted = "one or more"
        if wanted:
            raise TITNError(f"{field.name} must be {wanted} and is {value!r}")


def check_division(config: Any, shrink: int) -> None:
    """Raises TITNError unless the number divides both sides of the images."""
    if any(side % shrink for side in config.image_size):
        raise TITNError(f"{shrink} must divide the sides of {config.image_size} for {config.name}: choose others")


def to_2tuple(size: Any) -> tuple[int, int]:
    """An image's size as a pair: of a pair as it is, of one number twice.

    Raises:
        TITNError: it is neither.
    """
    sides = tuple(size) if isinstance(size, list | tuple) else (size, size)
    if len(sides) != 2 or not all(isinstance(side, int) and side > 0 for side in sides):
        raise TITNError(f"image_size is a height and a width, or one number for both, 1 or more, and not {size!r}")
    return sides
