"""Every model by name: register it, create it, count its parameters and MACs.

A model of your own is one file that ends with `register_model(...)`. Files in `models/related/` are imported
automatically.
"""

from collections.abc import Callable, Mapping
from dataclasses import fields, replace
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from titn_lib.errors import TITNError, unknown
from titn_lib.models.base import Classifier
from titn_lib.validation import to_2tuple

FAMILIES: dict[str, tuple[type[Classifier], type]] = {}  # by the name that weight files store
MODELS: dict[str, Any] = {}  # the settings of every model, by the model's name
TEACHERS: dict[str, Any] = {}  # those of the teachers
TIMM = "timm:"  # begins the name of a timm model (external.py)


def register_model(
    family: str, model_class: type[Classifier], config_class: type, presets: Mapping[str, Any], teacher: bool = False
) -> None:
    """Make models known to `create_model`, `load_model`, the training and the command line.

    Args:
        family: name that weight files store for the class. It must not change afterwards.
        model_class: takes the settings as its only argument.
        config_class: a frozen dataclass with the fields of `base.Config`.
        presets: settings by model name.
        teacher: whether they are teachers rather than students.
    """
    FAMILIES[family] = (model_class, config_class)
    MODELS.update(presets)
    if teacher:
        TEACHERS.update(presets)


def list_models() -> list[str]:
    """The names that `create_model` knows: students first, then related systems, then teachers."""
    return [*(name for name in MODELS if name not in TEACHERS), *TEACHERS]


def model_config(name: str) -> Any:
    """The settings of a model by its name, or of a timm model, such as "timm:resnet18.a1_in1k".

    Raises:
        TITNError: an unknown name.
    """
    if name.startswith(TIMM):
        return FAMILIES["timm"][1](name=name)
    if name not in MODELS:
        raise unknown("model", name, MODELS)
    return MODELS[name]


def is_teacher(name: str) -> bool:
    """Whether a model's name is that of a teacher. All timm models are teachers."""
    return name in TEACHERS or name.startswith(TIMM)


def create_model(name: str, **settings: object) -> Classifier:
    """A new model with random initial weights, drawn from torch's global generator.

    Args:
        name: one of `list_models()`, or "timm:" and a name of timm (whose pretrained weights `load_model` loads).
        settings: settings to change, such as `num_classes=100`, `in_channels=1`, `image_size=(32, 64)` (or 64, for
            both) or `depth=6`. The model's settings class lists them all (`TITNConfig`, `ViTConfig`, `TeacherConfig`,
            or a related system's).

    Raises:
        TITNError: an unknown name or setting, or sizes that don't fit each other.
    """
    config = model_config(name)
    known = [field.name for field in fields(config) if field.name != "name"]
    for setting in settings:
        if setting not in known:
            raise unknown(f"setting of {name}", setting, known)
    if "image_size" in settings:
        settings["image_size"] = to_2tuple(settings["image_size"])
    plain = {key: value.item() if isinstance(value, np.generic) else value for key, value in settings.items()}
    config = replace(config, **plain)
    for model_class, config_class in FAMILIES.values():
        if type(config) is config_class:
            return model_class(config)
    raise TITNError(f"no class is known for {type(config).__name__}: call register_model with it")


def build_on_meta(model_class: Callable[[Any], Classifier], config: Any) -> Classifier:
    """A model on the meta device: shapes without values."""
    with torch.device("meta"):
        return model_class(config)


def shapes(weights: Mapping[str, torch.Tensor]) -> dict[str, torch.Size]:
    """The sizes of a state_dict's tensors."""
    return {name: tensor.shape for name, tensor in weights.items()}


def head_weights(model_class: Callable[[Any], Classifier], config: Any) -> set[str]:
    """The names of the weights whose shape depends on the number of classes: the last layer of each head."""
    made, other = (
        shapes(build_on_meta(model_class, replace(config, num_classes=config.num_classes + more)).state_dict())
        for more in (0, 1)
    )
    return {name for name, size in made.items() if size != other[name]}


def require_unmodified(model: Classifier) -> Classifier:
    """The model that the settings make, on the meta device.

    Raises:
        TITNError: the model has other parameters than its settings make.
    """
    made = build_on_meta(type(model), model.config)
    if shapes(model.state_dict()) != shapes(made.state_dict()):
        raise TITNError(
            f"this {model.config.name} was modified after create_model, so its settings no longer describe it: pass "
            "what differs to create_model or load_model (num_classes=…), or use its state_dict"
        )
    return made


def count_parameters(model: nn.Module) -> int:
    """Number of trainable parameters; frozen ones don't count."""
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


def count_macs(model: Classifier) -> int:
    """Multiply-accumulate operations (MACs) for one image, in matrix products and convolutions.

    PyTorch's counter runs on the meta device, because it can't see into the C++ kernels.

    Raises:
        TITNError: the model was modified after `create_model`.
    """
    made = require_unmodified(model).eval()
    images = torch.empty(1, model.config.in_channels, *model.config.image_size, device="meta")
    with FlopCounterMode(display=False) as counter, torch.no_grad():  # nothing is computed
        made(images)
    return counter.get_total_flops() // 2
