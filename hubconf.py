"""The models for torch.hub, which reads this file from a clone or from the repository's address.

    torch.hub.load("your_name/titn", "titn_mini_conv", weights="cifar10")
    torch.hub.load("your_name/titn", "titn_paper", num_classes=100)
    torch.hub.load("path/to/clone", "create_model", "cmt_nano", source="local")

Without `weights`, a model has random ones. The weights are part of the repository.
"""

from titn_lib import create_model, list_models, list_pretrained, load_model
from titn_lib.models.base import Classifier as _Classifier  # torch.hub.list shows every other name

__all__ = [
    "airbench",
    "create_model",
    "list_models",
    "list_pretrained",
    "load_model",
    "titn_mini",
    "titn_mini_conv",
    "titn_mini_local",
    "titn_nano",
    "titn_paper",
    "titn_pico",
    "vgg7_bn",
]
# What the models need; torch.hub says which of them is missing.
dependencies = [
    "PIL",
    "einops",
    "filelock",
    "jaxtyping",
    "numpy",
    "safetensors",
    "sklearn",
    "torch",
    "torchvision",
    "tqdm",
]


def titn_paper(**settings: object) -> _Classifier:
    """The published TITN for 32×32 images, with random weights. Settings: those of `create_model`."""
    return create_model("titn_paper", **settings)


def titn_nano(weights: str | None = None, **settings: object) -> _Classifier:
    """The small student. Weights: "cifar10" or "digits"."""
    return _make("titn_nano", weights, settings)


def titn_mini(weights: str | None = None, **settings: object) -> _Classifier:
    """The student for photographs. Weights: "cifar10"."""
    return _make("titn_mini", weights, settings)


def titn_mini_local(weights: str | None = None, **settings: object) -> _Classifier:
    """`titn_mini` with local perception. Weights: "cifar10" or "cifar100"."""
    if weights is None:
        settings = {"local_perception": True, **settings}
    return _make("titn_mini" if weights is None else "titn_mini-local", weights, settings)


def titn_mini_conv(weights: str | None = None, **settings: object) -> _Classifier:
    """`titn_mini` with depthwise convolutions, our most accurate student. Weights: "cifar10" or "mnist"."""
    return _make("titn_mini_conv", weights, settings)


def titn_pico(weights: str | None = None, **settings: object) -> _Classifier:
    """The student for small grayscale images. Weights: "mnist"."""
    return _make("titn_pico", weights, settings)


def airbench(weights: str | None = None, **settings: object) -> _Classifier:
    """The teacher for photographs. Weights: "cifar10", "cifar100"."""
    return _make("airbench", weights, settings)


def vgg7_bn(weights: str | None = None, **settings: object) -> _Classifier:
    """The small teacher. Weights: "cifar10", "cifar100", "digits" or "mnist"."""
    return _make("vgg7_bn", weights, settings)


def _make(name: str, weights: str | None, settings: dict[str, object]) -> _Classifier:
    """Random weights with any settings of `create_model`, or shipped ones with those of `load_model`."""
    if weights is None:
        return create_model(name, **settings)
    return load_model(f"{name}.{weights}", **settings)  # type: ignore[arg-type]
