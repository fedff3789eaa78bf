"""Save and load trained weights as safetensors, with the settings and the preprocessing inside."""

import json
import math
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from itertools import count
from pathlib import Path, PureWindowsPath
from typing import Any, cast

import torch
from einops import rearrange
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor
from torch.nn import functional as F
from torch.nn.modules.module import register_module_parameter_registration_hook

from titn_lib.data.transforms import Preprocessing
from titn_lib.errors import TITNError
from titn_lib.io import write_atomically
from titn_lib.models.base import Classifier, TokenClassifier
from titn_lib.models.external import class_names, from_timm_tnt, is_timm_tnt, read_timm
from titn_lib.models.registry import FAMILIES, TIMM, build_on_meta, head_weights, require_unmodified, shapes
from titn_lib.validation import to_2tuple

PRETRAINED_DIR = Path(__file__).with_name("pretrained")  # trained weights, each with its record


def list_pretrained() -> list[str]:
    """The trained weights that `load_model` knows by name: "model.data", or "model-variant.data"."""
    return sorted(path.stem for path in PRETRAINED_DIR.glob("*.safetensors"))


def save_model(
    model: Classifier, path: str | Path, preprocessing: Preprocessing | None = None, dtype: torch.dtype | None = None
) -> None:
    """Save weights as safetensors, with the model's settings and its preprocessing inside.

    Args:
        preprocessing: by default the model's own, where it has one. Of a folder of images, the file keeps the name and
            not the path, which may hold a user's name.
        dtype: in which floating-point weights are stored; `torch.float16` halves the size. By default, as they are.

    Raises:
        TITNError: the model's class isn't registered; the model was changed, so that its settings no longer describe
            it; the number of class names differs from its number of classes; dtype isn't a floating-point dtype; or
            the file can't be written. No partial file is left behind.
    """
    family = next((name for name, (model_class, _) in FAMILIES.items() if type(model) is model_class), None)
    if family is None:
        raise TITNError(
            f"a {type(model).__name__} is not one of this library's models: save its state_dict with safetensors, or "
            "save the titn_lib model inside it"
        )
    if dtype and not dtype.is_floating_point:
        raise TITNError(f"weights can't be kept as {dtype}: choose torch.float16, bfloat16, float32 or float64")
    require_unmodified(model)
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
    metadata = {"family": family, "config": json.dumps(asdict(cast(Any, model.config)))}
    if preprocessing:
        folder = PureWindowsPath(preprocessing.data).name or preprocessing.data  # it splits at both separators
        metadata["preprocessing"] = json.dumps(asdict(replace(preprocessing, data=folder)))
    write_atomically(path, save(weights, metadata=metadata))


def load_model(
    path: str | Path, image_size: tuple[int, int] | int | None = None, num_classes: int | None = None
) -> Classifier:
    """A trained model in evaluation mode, from the file alone; `model.preprocessing` holds what was saved with it.

    Args:
        path: a file that `save_model` wrote, a name of `list_pretrained()`, such as "titn_nano.digits", or "timm:" and
            the name of pretrained weights of timm. timm's TNT, by name or as a safetensors file, becomes a `tnt_s` or
            `tnt_b`; another timm model a `TimmClassifier`.
        image_size: another height and width (or one number for both). Position embeddings are interpolated to the new
            grid of patches.
        num_classes: another number of classes. The last layer of each head is initialized anew, and the classes are
            called "0", "1" … until you name them (`dataclasses.replace(model.preprocessing, classes=…)`).

    Raises:
        TITNError: the file is missing, damaged or not one of this library's, or the size doesn't fit the model.
    """
    weights, config, preprocessing = read_model(path)
    model_class = next(one for one, config_class in FAMILIES.values() if type(config) is config_class)
    target = replace(config, image_size=to_2tuple(image_size)) if image_size is not None else config
    if num_classes is not None:
        target = replace(target, num_classes=num_classes)
    model = model_class(target)
    if target.num_classes != config.num_classes:
        weights |= {name: model.state_dict()[name] for name in head_weights(model_class, target)}
        if preprocessing:
            preprocessing = replace(preprocessing, classes=tuple(map(str, range(target.num_classes))))
    try:
        model.load_state_dict(fit_positions(weights, model, config))
    except RuntimeError as problem:
        raise TITNError(
            f"the weights of {config.name} belong to images of {'×'.join(map(str, config.image_size))}: resize the "
            "images, or train it for another size"
        ) from problem
    model.preprocessing = preprocessing
    return model.eval()


def read_model(path: str | Path) -> tuple[dict[str, Tensor], Any, Preprocessing | None]:
    """The weights, the settings and the preprocessing that `load_model` makes a model of; its errors.

    Args:
        path: as in `load_model`.
    """
    if str(path).startswith(TIMM):
        return read_timm(str(path))
    path = weights_file(path)
    weights, metadata = read_weights(path)
    if "family" not in metadata and is_timm_tnt(weights):
        weights, config = from_timm_tnt(weights)
        half = (0.5,) * config.in_channels
        return weights, config, Preprocessing(path.stem, class_names(config.num_classes), half, half)
    return weights, *read_settings(path, weights, metadata)


def fit_positions(weights: dict[str, Tensor], model: Classifier, config: Any) -> dict[str, Tensor]:
    """The weights with position embeddings interpolated to the model's image size.

    Args:
        config: the settings that the weights belong to.
    """
    if not isinstance(model, TokenClassifier) or model.config.image_size == config.image_size:
        return weights
    tables = {name: weights[name].float() for name in model.POS_EMBED_KEYS if name in weights}
    return weights | {name: resample_pos_embed(t, config.grid, model.config.grid) for name, t in tables.items()}


def weights_file(path: str | Path) -> Path:
    """The file that `load_model` reads: the path itself, or that of pretrained weights by their name."""
    named = str(path) in list_pretrained() and not Path(path).exists()
    return PRETRAINED_DIR / f"{path}.safetensors" if named else Path(path)


def read_settings(path: Path, weights: dict[str, Tensor], metadata: dict[str, str]) -> tuple[Any, Preprocessing | None]:
    """A file's settings and preprocessing, checked against its tensors before anything is built.

    Raises:
        TITNError: they are missing, or don't fit the tensors or each other.
    """
    misfit = TITNError(
        f"the weights in {path} don't fit the settings beside them: the file is damaged or was edited; train or copy "
        "it again"
    )
    try:
        model_class, config_class = FAMILIES[metadata["family"]]
        saved = json.loads(metadata["config"])
        lists = json.loads(metadata.get("preprocessing", "{}"))
        preprocessing = Preprocessing(lists.pop("data"), **{k: tuple(v) for k, v in lists.items()}) if lists else None
        if not could_fit(saved, weights):
            raise misfit
        config = config_class(**{**saved, "image_size": tuple(saved["image_size"])})
    except TITNError:
        raise
    except (AttributeError, KeyError, TypeError, ValueError, RecursionError) as problem:
        raise TITNError(
            f"{path} holds weights but not the settings of a titn_lib model: save it with titn_lib.save_model"
        ) from problem
    try:
        with limit_parameters(100 + 2 * len(weights)):  # a builder may drop some of torchvision's
            made = shapes(build_on_meta(model_class, config).state_dict())
    except (ArithmeticError, MemoryError, RuntimeError, TypeError, ValueError) as problem:
        raise misfit from problem
    if shapes(weights) != made:
        raise misfit
    if not all(tensor.isfinite().all() for tensor in weights.values()):
        raise TITNError(
            f"{path} has weights that aren't finite numbers: its training diverged, or its dtype is too small; "
            "train or save it again"
        )
    if preprocessing and not is_valid(preprocessing, config.num_classes):
        raise TITNError(
            f"the class names or the normalization in {path} don't fit its model of {config.num_classes} classes: the "
            "file is damaged or was edited; train or copy it again"
        )
    return config, preprocessing


def could_fit(settings: dict[str, Any], weights: dict[str, Tensor]) -> bool:
    """Whether no size in a model's settings is larger than all its tensors together, so that it can be built to
    compare."""
    most = sum(tensor.numel() for tensor in weights.values())
    for setting in settings.values():
        numbers = setting if isinstance(setting, list) else [setting]
        if any(isinstance(number, int | float) and not -most <= number <= most for number in numbers):
            return False
    return True


@contextmanager
def limit_parameters(most: int) -> Iterator[None]:
    """Context in which no more parameters can be made, so that settings of a million blocks fail at once.

    Raises:
        ValueError: one more is made.
    """
    made, thread = count(), threading.get_ident()

    def limit(*_: object) -> None:
        if threading.get_ident() == thread and next(made) >= most:
            raise ValueError("too many parameters")

    with register_module_parameter_registration_hook(limit):
        yield


def is_valid(preprocessing: Preprocessing, num_classes: int) -> bool:
    """Whether the class names and the normalization are of the right types and number."""
    names = (preprocessing.data, *preprocessing.classes)
    numbers = (*preprocessing.mean, *preprocessing.std)
    return (
        all(isinstance(name, str) for name in names)
        and all(isinstance(number, int | float) and math.isfinite(number) for number in numbers)
        and all(number > 0 for number in preprocessing.std)
        and len(preprocessing.classes) == num_classes
        and len(preprocessing.mean) == len(preprocessing.std)
    )


def resample_pos_embed(
    table: Float[Tensor, "rows width"], old_grid: tuple[int, int], new_grid: tuple[int, int]
) -> Float[Tensor, "new_rows width"]:
    """Interpolate position embeddings to another grid of patches (bicubic, as DeiT does).

    The first row (class token) and any rows after the grid (distillation token) stay as they are.
    """
    patches = old_grid[0] * old_grid[1]
    first, grid, last = table[:1], table[1 : 1 + patches], table[1 + patches :]
    grid = rearrange(grid, "(row column) width -> 1 width row column", row=old_grid[0])
    grid = F.interpolate(grid, size=new_grid, mode="bicubic", align_corners=False)
    return torch.cat([first, rearrange(grid, "1 width row column -> (row column) width"), last])


def read_weights(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors and the metadata of a safetensors file.

    Raises:
        TITNError: it is missing or damaged.
    """
    if path.is_dir():
        found = sorted([*path.glob("*.safetensors"), *path.glob("*/*.safetensors")])[:3]  # of a run, or of a comparison
        names = " or ".join(map(str, found or [path / "model.safetensors"]))
        raise TITNError(f"{path} is a folder: name the weights file in it, such as {names}")
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except FileNotFoundError as problem:
        if path.exists():  # safetensors says the same of a file that it may not read
            raise TITNError(f"no permission to read {path}: change its permissions") from problem
        raise TITNError(
            f"there is no weights file {path}: check the path, train one with `titn distill`, or choose one of "
            f"{', '.join(list_pretrained())}"
        ) from problem
    except PermissionError as problem:
        raise TITNError(f"no permission to read {path}: change its permissions") from problem
    except (SafetensorError, OSError, ValueError) as problem:  # ValueError: a NUL in the name
        raise TITNError(f"{path} is not a whole safetensors file ({problem}): train or copy it again") from problem
