"""What the notebooks share: the set-up cell, example images, sliders under an image."""

import inspect
import io
import os
import platform
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import UInt8
from torch import Tensor

from titn_lib import __version__
from titn_lib.data.datasets import data_dir, load_dataset
from titn_lib.io import repo_root

if TYPE_CHECKING:
    from ipywidgets import VBox
    from matplotlib.figure import Figure


def setup() -> Path:
    """Say what this machine is, and return the folder where the notebooks' runs are kept.

    It is runs/ of the checkout, else runs/ where you are. What is finished there is loaded, not trained again.
    """
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"{os.cpu_count()} CPU cores, no GPU"
    print(f"titn_lib {__version__}, PyTorch {torch.__version__}, Python {platform.python_version()}, {device}")
    return (repo_root() or Path.cwd()) / "runs"


def example_images(count: int = 8) -> UInt8[Tensor, "image 3 32 32"]:
    """Photographs of 32×32 points: CIFAR-10's first training images where they are on this machine, else pieces of
    scikit-learn's two sample photographs. Nothing is downloaded."""
    if (data_dir() / "cifar-10-batches-py").exists():
        return load_dataset("cifar10").train.images[:count]
    from sklearn.datasets import load_sample_images
    from torch.nn import functional as F

    photographs = [torch.from_numpy(photo.copy()).permute(2, 0, 1) for photo in load_sample_images().images]
    pieces = torch.cat(
        [photo[:, :384].unfold(1, 128, 128).unfold(2, 128, 128).flatten(1, 2) for photo in photographs], 1
    )
    small = F.interpolate(pieces.transpose(0, 1).float(), size=32, mode="bilinear", antialias=True)
    spread = torch.arange(count) * 7 % len(small)  # from here and there
    return small[spread].round().to(torch.uint8)


def sliders(draw: Callable[..., "Figure"], **choices: Sequence[Any]) -> "VBox":
    """An image with a slider for each argument of the function that draws it.

    Args:
        choices: for each argument the values it can take; the image starts with the function's default, or else
            with the first.
    """
    import ipywidgets
    import matplotlib.pyplot as plt

    picture = ipywidgets.Image(format="png")
    defaults = {name: argument.default for name, argument in inspect.signature(draw).parameters.items()}
    controls = {
        name: ipywidgets.SelectionSlider(
            options=list(values),
            value=defaults[name] if defaults[name] in values else values[0],
            description=name.replace("_", " "),
        )
        for name, values in choices.items()
    }

    def redraw(_: object = None) -> None:
        figure = draw(**{name: control.value for name, control in controls.items()})
        content = io.BytesIO()
        figure.savefig(content, format="png", dpi=90, bbox_inches="tight")
        plt.close(figure)
        picture.value = content.getvalue()

    for control in controls.values():
        control.observe(redraw, names="value")
    redraw()
    return ipywidgets.VBox([*controls.values(), picture])
