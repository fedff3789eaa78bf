"""What the notebooks share: the set-up cell, example images, figures with sliders."""

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
    """Print the versions and the hardware; return the folder in which the notebooks keep their training runs.

    Finished runs are loaded from there and not trained again.

    Returns:
        runs/ in the checkout; outside of one, runs/ in the current folder.
    """
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"{os.cpu_count()} CPU cores, no GPU"
    print(f"titn_lib {__version__}, PyTorch {torch.__version__}, Python {platform.python_version()}, {device}")
    return (repo_root() or Path.cwd()) / "runs"


def example_images(count: int = 8) -> UInt8[Tensor, "image 3 32 32"]:
    """Photographs of 32×32 pixels, without a download: CIFAR-10's first training images if the data set is on this
    machine, otherwise crops of scikit-learn's two sample photographs."""
    if (data_dir() / "cifar-10-batches-py").exists():
        return load_dataset("cifar10").train.images[:count]
    from sklearn.datasets import load_sample_images
    from torch.nn import functional as F

    photographs = [torch.from_numpy(photo.copy()).permute(2, 0, 1) for photo in load_sample_images().images]
    crops = torch.cat(
        [photo[:, :384].unfold(1, 128, 128).unfold(2, 128, 128).flatten(1, 2) for photo in photographs], 1
    )
    small = F.interpolate(crops.transpose(0, 1).float(), size=32, mode="bilinear", antialias=True)
    scattered = torch.arange(count) * 7 % len(small)  # not all from one corner
    return small[scattered].round().to(torch.uint8)


def sliders(draw: Callable[..., "Figure"], **choices: Sequence[Any]) -> "VBox":
    """A figure with a slider for each argument of the function that draws it.

    Args:
        draw: returns the figure; it is called again whenever a slider moves.
        choices: the values of each argument. A slider starts at the function's default if that is one of them, and
            otherwise at the first value.
    """
    import ipywidgets
    import matplotlib.pyplot as plt

    image = ipywidgets.Image(format="png")
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
        image.value = content.getvalue()

    for control in controls.values():
        control.observe(redraw, names="value")
    redraw()
    return ipywidgets.VBox([*controls.values(), image])
