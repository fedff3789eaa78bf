"""Every model by name: create it, count it, save it, load it."""

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from . import neighbours, teachers, titn, vit
from .classifier import Classifier, Preprocessing, height_and_width
from .errors import TITNError, unknown
from .files import write_atomically
from .transformer import TokenClassifier, interpolate_table

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
SHIPPED = Path(__file__).with_name("weights")  # trained weights, each with its record; weights/README.md tells of them


def list_models() -> list[str]:
    """The names that `create_model` knows: students first, then neighbours, then teachers."""
    return list(MODELS)


def list_weights() -> list[str]:
    """The trained weights that `load_model` knows by name: "model.data", or "model-variant.data"."""
    return sorted(path.stem for path in SHIPPED.glob("*.safetensors"))


def create_model(name: str, **settings: object) -> Classifier:
    """A fresh model with random weights, drawn from torch's global generator.

    Args:
        name: one of `list_models()`.
        settings: anything of the model's settings to change, such as `num_classes=100`, `in_channels=1`,
            `image_size=(32, 64)` (or 64, for both), `depth=6`; see the model's settings (`TITNConfig`, `ViTConfig`,
            `TeacherConfig`, or a neighbour's).

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
        settings["image_size"] = height_and_width(settings["image_size"])
    plain = {key: value.item() if isinstance(value, np.generic) else value for key, value in settings.items()}
    config = replace(config, **plain)
    classes = [model for model, config_class in FAMILIES.values() if type(config) is config_class]
    if not classes:
        raise TITNError(f"no class is known for {type(config).__name__}: enter it into models.FAMILIES")
    return classes[0](config)


def outline(model_class: Callable[[Any], Classifier], config: Any) -> Classifier:
    """A model on the meta device: sizes without numbers."""
    with torch.device("meta"):
        return model_class(config)


def shapes(weights: Mapping[str, torch.Tensor]) -> dict[str, torch.Size]:
    """The sizes of a state_dict's tensors."""
    return {name: tensor.shape for name, tensor in weights.items()}


def outline_unchanged(model: Classifier) -> Classifier:
    """The model's outline.

    Raises:
        TITNError: the model holds something else than its settings make.
    """
    made = outline(type(model), model.config)
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
    """Multiply-accumulate operations for one picture, by torch's own counter (matrix products and convolutions). It
    counts a model on the meta device: on a CPU, the counter sees nothing of the kernels in C++.

    Raises:
        TITNError: the model is no longer what its settings make.
    """
    made = outline_unchanged(model).eval()
    images = torch.empty(1, model.config.in_channels, *model.config.image_size, device="meta")
    with FlopCounterMode(display=False) as counter, torch.no_grad():  # nothing is computed
        made(images)
    return counter.get_total_flops() // 2


def save_model(
    model: Classifier, path: str | Path, preprocessing: Preprocessing | None = None, dtype: torch.dtype | None = None
) -> None:
    """Save weights as safetensors, with the model's settings and its preprocessing inside.

    Args:
        preprocessing: by default the model's own, where it has one.
        dtype: store floating-point weights so, `torch.float16` for half the size; as they are by default.

    Raises:
        TITNError: the model is of no class of this library, or has been changed, so that no file could say how to
            make it again; the classes' names are more or fewer than its classes; dtype is no kind of floating-point
            number; or the file can't be written: nothing half-written is left behind.
    """
    family = next((name for name, (model_class, _) in FAMILIES.items() if type(model) is model_class), None)
    if family is None:
        raise TITNError(
            f"a {type(model).__name__} is not one of this library's models: save its state_dict with safetensors, or "
            "the model of this library that is in it"
        )
    if dtype and not dtype.is_floating_point:
        raise TITNError(f"weights can't be kept as {dtype}: choose torch.float16, bfloat16, float32 or float64")
    outline_unchanged(model)
    preprocessing = preprocessing or model.preprocessing
    if preprocessing and len(preprocessing.classes) != model.config.num_classes:
        raise TITNError(
            f"a model of {model.config.num_classes} classes can't be saved with {len(preprocessing.classes)} names: "
            "give Preprocessing a name for each class"
        )
    weights = {
        name: tensor.detach().cpu().to(dtype if dtype and tensor.is_floating_point() else tensor.dtype).contiguous()
        for name, tensor in model.state_dict().items()
    }
    about = {"family": family, "config": json.dumps(asdict(cast(Configs, model.config)))}
    if preprocessing:
        about["preprocessing"] = json.dumps(asdict(preprocessing))
    write_atomically(path, save(weights, metadata=about))


def load_model(
    path: str | Path, image_size: tuple[int, int] | int | None = None, num_classes: int | None = None
) -> Classifier:
    """A trained model in evaluation mode, from the file alone; `model.preprocessing` holds what was saved with it.

    Args:
        path: a file that `save_model` wrote, or a name of `list_weights()`, such as "titn_nano.digits".
        image_size: use the model at another height and width (or one number for both): positions are interpolated to
            the new grid of patches.
        num_classes: use it for other classes: the last layer of each head is drawn afresh, and the classes are called
            "0", "1" … until you name them (`dataclasses.replace(model.preprocessing, classes=…)`).

    Raises:
        TITNError: the file is missing or damaged, isn't one of ours, or the size doesn't fit.
    """
    path = SHIPPED / f"{path}.safetensors" if str(path) in list_weights() and not Path(path).exists() else Path(path)
    weights, about = read_weights(path)
    try:
        model_class, config_class = FAMILIES[about["family"]]
        saved = json.loads(about["config"])
        config = config_class(**{**saved, "image_size": tuple(saved["image_size"])})
        lists = json.loads(about.get("preprocessing", "{}"))
        preprocessing = Preprocessing(lists.pop("data"), **{k: tuple(v) for k, v in lists.items()}) if lists else None
    except (AttributeError, KeyError, TypeError, ValueError) as problem:
        raise TITNError(
            f"{path} holds weights but not the settings of a titn_lib model: save it with titn_lib.save_model"
        ) from problem
    if shapes(weights) != shapes(outline(model_class, config).state_dict()):
        raise TITNError(
            f"the weights in {path} don't fit the settings beside them: the file is damaged or was edited; train or "
            "copy it again"
        )
    target = replace(config, image_size=height_and_width(image_size)) if image_size is not None else config
    if num_classes is not None:
        target = replace(target, num_classes=num_classes)
    model = model_class(target)
    if target.num_classes != config.num_classes:
        new = shapes(outline(model_class, replace(config, num_classes=target.num_classes)).state_dict())
        weights |= {name: drawn for name, drawn in model.state_dict().items() if new[name] != weights[name].shape}
        if preprocessing:
            preprocessing = replace(preprocessing, classes=tuple(map(str, range(target.num_classes))))
    if isinstance(model, TokenClassifier) and target.image_size != config.image_size:
        for name in model.GRID_TABLES:
            if name in weights:
                weights[name] = interpolate_table(weights[name].float(), config.grid, target.grid)
    try:
        model.load_state_dict(weights)
    except RuntimeError as problem:
        raise TITNError(
            f"the weights of {config.name} belong to pictures of {'×'.join(map(str, config.image_size))}: resize the "
            "pictures, or train it for another size"
        ) from problem
    model.preprocessing = preprocessing
    return model.eval()


def read_weights(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """The tensors and the texts of a safetensors file.

    Raises:
        TITNError: it is missing or damaged.
    """
    if path.is_dir():
        raise TITNError(f"{path} is a folder: name the weights file in it, such as {path / 'model.safetensors'}")
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except FileNotFoundError as problem:
        raise TITNError(
            f"there is no weights file {path}: check the path, train one with `titn distil`, or take one of "
            f"{', '.join(list_weights())}"
        ) from problem
    except PermissionError as problem:
        raise TITNError(f"no permission to read {path}: change its permissions") from problem
    except (SafetensorError, OSError) as problem:
        raise TITNError(f"{path} is not a whole safetensors file ({problem}): train or copy it again") from problem
