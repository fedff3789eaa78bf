"""Every model by name: create it, count it, save it, load it."""

from collections.abc import Callable, Mapping
from dataclasses import fields, replace
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from titn_lib.errors import TITNError, unknown
from titn_lib.models import related as neighbours
from titn_lib.models import teachers, titn, vit
from titn_lib.models.base import Classifier
from titn_lib.validation import to_2tuple

Configs = titn.TITNConfig | vit.ViTConfig | teachers.TeacherConfig
# A model of your own: its class and its settings' class here, the name that files give it; its settings among MODELS.
FAMILIES: dict[str, tuple[type[Classifier], type]] = {
    "titn": (titn.TITN, titn.TITNConfig),
    "vit": (vit.ViT, vit.ViTConfig),
    "teacher": (teachers.Teacher, teachers.TeacherConfig),
    **neighbours.FAMILIES,
}
TEACHERS: dict[str, Configs] = {**teachers.PRESETS}
MODELS: dict[str, Any] = {**titn.PRESETS, **vit.PRESETS, **neighbours.PRESETS, **TEACHERS}


def list_models() -> list[str]:
    """The names that `create_model` knows: students first, then neighbors, then teachers."""
    return list(MODELS)


def create_model(name: str, **settings: object) -> Classifier:
    """A fresh model with random weights, drawn from torch's global generator.

    Args:
        name: one of `list_models()`.
        settings: anything of the model's settings to change, such as `num_classes=100`, `in_channels=1`,
            `image_size=(32, 64)` (or 64, for both), `depth=6`; see the model's settings (`TITNConfig`, `ViTConfig`,
            `TeacherConfig`, or a neighbor's).

    Raises:
        TITNError: an unknown name or setting, or sizes that don't fit each other.
    """
    if name not in MODELS:
        raise unknown("model", name, MODELS)
    config = MODELS[name]
    known = [field.name for field in fields(config) if field.name != "name"]
    for setting in settings:
        if setting not in known:
            raise unknown(f"setting of {name}", setting, known)
    if "image_size" in settings:
        settings["image_size"] = to_2tuple(settings["image_size"])
    plain = {key: value.item() if isinstance(value, np.generic) else value for key, value in settings.items()}
    config = replace(config, **plain)
    classes = [model for model, config_class in FAMILIES.values() if type(config) is config_class]
    if not classes:
        raise TITNError(f"no class is known for {type(config).__name__}: enter it into models.FAMILIES")
    return classes[0](config)


def build_on_meta(model_class: Callable[[Any], Classifier], config: Any) -> Classifier:
    """A model on the meta device: sizes without numbers."""
    with torch.device("meta"):
        return model_class(config)


def shapes(weights: Mapping[str, torch.Tensor]) -> dict[str, torch.Size]:
    """The sizes of a state_dict's tensors."""
    return {name: tensor.shape for name, tensor in weights.items()}


def require_unmodified(model: Classifier) -> Classifier:
    """The model's outline.

    Raises:
        TITNError: the model holds something else than its settings make.
    """
    made = build_on_meta(type(model), model.config)
    if shapes(model.state_dict()) != shapes(made.state_dict()):
        raise TITNError(
            f"this {model.config.name} is no longer what its settings make, and couldn't be loaded again: make it with "
            "the settings it needs (create_model or load_model with num_classes=…), or save its state_dict"
        )
    return made


def count_parameters(model: nn.Module) -> int:
    """Numbers that training changes: none of a model that is frozen."""
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


def count_macs(model: Classifier) -> int:
    """Multiply-accumulate operations for one image, by torch's own counter (matrix products and convolutions). It
    counts a model on the meta device: on a CPU, the counter sees nothing of the kernels in C++.

    Raises:
        TITNError: the model is no longer what its settings make.
    """
    made = require_unmodified(model).eval()
    images = torch.empty(1, model.config.in_channels, *model.config.image_size, device="meta")
    with FlopCounterMode(display=False) as counter, torch.no_grad():  # nothing is computed
        made(images)
    return counter.get_total_flops() // 2
