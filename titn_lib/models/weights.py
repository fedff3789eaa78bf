"""Save and load trained weights as safetensors, with the settings and the preprocessing inside."""

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, cast

import torch
from einops import rearrange
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor
from torch.nn import functional as F

from titn_lib.data.transforms import Preprocessing
from titn_lib.errors import TITNError
from titn_lib.io import write_atomically
from titn_lib.models.base import Classifier, TokenClassifier
from titn_lib.models.registry import FAMILIES, build_on_meta, require_unmodified, shapes
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
        preprocessing: by default the model's own, where it has one.
        dtype: of the stored floating-point weights; `torch.float16` halves the size. By default, as they are.

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
        metadata["preprocessing"] = json.dumps(asdict(preprocessing))
    write_atomically(path, save(weights, metadata=metadata))


def load_model(
    path: str | Path, image_size: tuple[int, int] | int | None = None, num_classes: int | None = None
) -> Classifier:
    """A trained model in evaluation mode, from the file alone; `model.preprocessing` holds what was saved with it.

    Args:
        path: a file that `save_model` wrote, or a name of `list_pretrained()`, such as "titn_nano.digits".
        image_size: another height and width (or one number for both). Position embeddings are interpolated to the new
            grid of patches.
        num_classes: another number of classes. The last layer of each head is initialized anew, and the classes are
            called "0", "1" … until you name them (`dataclasses.replace(model.preprocessing, classes=…)`).

    Raises:
        TITNError: the file is missing, damaged or not one of this library's, or the size doesn't fit the model.
    """
    if str(path) in list_pretrained() and not Path(path).exists():
        path = PRETRAINED_DIR / f"{path}.safetensors"
    path = Path(path)
    weights, metadata = read_weights(path)
    try:
        model_class, config_class = FAMILIES[metadata["family"]]
        saved = json.loads(metadata["config"])
        config = config_class(**{**saved, "image_size": tuple(saved["image_size"])})
        lists = json.loads(metadata.get("preprocessing", "{}"))
        preprocessing = Preprocessing(lists.pop("data"), **{k: tuple(v) for k, v in lists.items()}) if lists else None
    except TITNError:
        raise
    except (AttributeError, KeyError, TypeError, ValueError) as problem:
        raise TITNError(
            f"{path} holds weights but not the settings of a titn_lib model: save it with titn_lib.save_model"
        ) from problem
    if shapes(weights) != shapes(build_on_meta(model_class, config).state_dict()):
        raise TITNError(
            f"the weights in {path} don't fit the settings beside them: the file is damaged or was edited; train or "
            "copy it again"
        )
    target = replace(config, image_size=to_2tuple(image_size)) if image_size is not None else config
    if num_classes is not None:
        target = replace(target, num_classes=num_classes)
    model = model_class(target)
    if target.num_classes != config.num_classes:
        new = shapes(build_on_meta(model_class, replace(config, num_classes=target.num_classes)).state_dict())
        weights |= {name: drawn for name, drawn in model.state_dict().items() if new[name] != weights[name].shape}
        if preprocessing:
            preprocessing = replace(preprocessing, classes=tuple(map(str, range(target.num_classes))))
    if isinstance(model, TokenClassifier) and target.image_size != config.image_size:
        for name in model.POS_EMBED_KEYS:
            if name in weights:
                weights[name] = resample_pos_embed(weights[name].float(), config.grid, target.grid)
    try:
        model.load_state_dict(weights)
    except RuntimeError as problem:
        raise TITNError(
            f"the weights of {config.name} belong to images of {'×'.join(map(str, config.image_size))}: resize the "
            "images, or train it for another size"
        ) from problem
    model.preprocessing = preprocessing
    return model.eval()


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
        raise TITNError(f"{path} is a folder: name the weights file in it, such as {path / 'model.safetensors'}")
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except FileNotFoundError as problem:
        raise TITNError(
            f"there is no weights file {path}: check the path, train one with `titn distill`, or take one of "
            f"{', '.join(list_pretrained())}"
        ) from problem
    except PermissionError as problem:
        raise TITNError(f"no permission to read {path}: change its permissions") from problem
    except (SafetensorError, OSError) as problem:
        raise TITNError(f"{path} is not a whole safetensors file ({problem}): train or copy it again") from problem
