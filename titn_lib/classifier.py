"""What every network here is: pictures of one size in, logits out, and what must be known to use it."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from typing import Any, Protocol

from jaxtyping import Float
from torch import Tensor, nn

from .errors import TITNError, check_choices

Images = Float[Tensor, "batch channel height width"]  # normalised


@dataclass(frozen=True)
class Preprocessing:
    """What a trained network must be told about pictures: how they were normalised, and what its answers are called.

    Attributes:
        data: the data set it was trained on.
        classes: a name for each logit.
        mean, std: one value a channel, for channels scaled to 0–1.
    """

    data: str
    classes: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]


class Config(Protocol):
    """The settings that all networks have: their name, and the pictures and classes they are made for."""

    @property
    def name(self) -> str: ...
    @property
    def num_classes(self) -> int: ...
    @property
    def in_channels(self) -> int: ...
    @property
    def image_size(self) -> tuple[int, int]: ...


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
    """Raises TITNError unless the number divides both sides of the pictures."""
    if any(side % shrink for side in config.image_size):
        raise TITNError(f"{shrink} must divide the sides of {config.image_size} for {config.name}: choose others")


def height_and_width(size: Any) -> tuple[int, int]:
    """A picture's size as a pair: of a pair as it is, of one number twice.

    Raises:
        TITNError: it is neither.
    """
    sides = tuple(size) if isinstance(size, list | tuple) else (size, size)
    if len(sides) != 2 or not all(isinstance(side, int) and side > 0 for side in sides):
        raise TITNError(f"image_size is a height and a width, or one number for both, 1 or more, and not {size!r}")
    return sides


@contextmanager
def evaluating(network: nn.Module) -> Iterator[None]:
    """In evaluation mode; afterwards each part is in its own mode again: some may have been left in evaluation."""
    modes = [(module, module.training) for module in network.modules()]
    network.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


class Classifier(nn.Module):
    """The base of students and teachers.

    Attributes:
        config: its settings; the class and these make the network again.
        preprocessing: set when it is loaded from a file that has it.
    """

    config: Config
    preprocessing: Preprocessing | None = None

    def check_images(self, images: Tensor) -> None:
        """Raises TITNError unless the images are numbers, "batch channel height width", of the size the network
        takes."""
        wanted = (self.config.in_channels, *self.config.image_size)
        if images.ndim == 3 and tuple(images.shape) == wanted:
            raise TITNError("a model takes a batch of pictures and got a single one: make it one, with images[None]")
        if images.ndim != 4 or tuple(images.shape[1:]) != wanted:
            raise TITNError(
                f"{self.config.name} takes batches of {'×'.join(map(str, wanted))} pictures (channels × height × width)"
                f" and got {'×'.join(map(str, images.shape))}: resize the pictures, or make a model for them with "
                "image_size=… and in_channels=… (load_model(path, image_size=…) adapts trained weights to another size)"
            )
        if not images.is_floating_point():
            raise TITNError(
                "a model takes normalised pictures and got bytes or whole numbers: call titn_lib.augment.normalise "
                "first, or titn_lib.training.predict"
            )
