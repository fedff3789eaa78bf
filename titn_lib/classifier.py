"""What every network here is: pictures of one size in, logits out, and what must be known to use it."""

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor, nn

from .errors import TITNError


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
