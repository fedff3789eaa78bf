"""This library's students in timm. Optional: `pip install timm`.

    import timm
    import titn_lib.models.timm_models  # registers them

    model = timm.create_model("titn_paper", num_classes=100)
    model = timm.create_model("titn_mini-local.cifar10", pretrained=True)
    timm.list_pretrained("titn*")

The models are those of `titn_lib.create_model` and `load_model`; three settings also have timm's names (`in_chans`,
`img_size`, `drop_path_rate`). `num_classes` and `pretrained_cfg` (image size, mean, standard deviation) are there for
timm's data loaders and scripts. timm's methods for features (`features_only`, `forward_head`, `reset_classifier`) are
not. In training mode a student with a distillation token returns the logits of both heads.
"""

from collections.abc import Callable
from typing import Any, cast

from titn_lib.data.transforms import Preprocessing
from titn_lib.errors import TITNError
from titn_lib.models.base import Classifier
from titn_lib.models.registry import MODELS, TEACHERS, create_model
from titn_lib.models.weights import PRETRAINED_DIR, list_pretrained, load_model

try:
    from timm.models import generate_default_cfgs, register_model
except ImportError as problem:
    raise TITNError("models in timm need one more package: pip install timm") from problem

TIMM_NAMES = {"in_chans": "in_channels", "img_size": "image_size", "drop_path_rate": "drop_path"}
# Shipped weights of a model with other settings, by the name before the dot.
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {"titn_mini-local": ("titn_mini", {"local_perception": True})}
STUDENTS = [*(name for name in MODELS if name not in TEACHERS), *VARIANTS]  # timm has teachers of its own


def pretrained_config(config: Any, preprocessing: Preprocessing | None) -> dict[str, Any]:
    """What timm knows of a model's images and classes, by timm's names."""
    known: dict[str, Any] = {
        "architecture": config.name,
        "num_classes": config.num_classes,
        "input_size": (config.in_channels, *config.image_size),
        "fixed_input_size": True,
        "interpolation": "bilinear",  # like load_image
        "crop_pct": 1.0,
    }
    if preprocessing:
        known |= {"mean": preprocessing.mean, "std": preprocessing.std, "label_names": preprocessing.classes}
    return known


def all_pretrained_configs() -> dict[str, Any]:
    """Those of all students, by timm's "name" or "name.tag"; the tag is the data set."""
    configs: dict[str, Any] = {}
    for name in STUDENTS:
        base, _ = VARIANTS.get(name, (name, {}))
        configs[name] = pretrained_config(MODELS[base], None)
    for weights in list_pretrained():
        name = weights.split(".")[0]
        if name in STUDENTS:
            model = load_model(weights)
            configs.pop(name, None)
            configs[weights] = pretrained_config(model.config, model.preprocessing)
            configs[weights]["file"] = str(PRETRAINED_DIR / f"{weights}.safetensors")
    return configs


def load_shipped(name: str, source: Any, settings: dict[str, Any]) -> Classifier:
    """The shipped weights that timm asks for.

    Args:
        source: the tag, or timm's configuration, of the weights.
    """
    tag = source if isinstance(source, str) or source is None else cast(dict, source).get("tag")
    tags = [weights.split(".")[1] for weights in list_pretrained() if weights.split(".")[0] == name]
    tag = tags[0] if tag is None and len(tags) == 1 else tag
    if not tags:
        raise TITNError(f"no weights of {name} are shipped: choose one of {', '.join(timm_pretrained())}")
    if tag not in tags:
        choices = ", ".join(f"{name}.{tag}" for tag in tags)
        raise TITNError(f"name the weights of {name} with their data set: the choices are {choices}")
    weights = f"{name}.{tag}"
    saved = load_model(weights).config
    others = [key for key in settings if key not in ("num_classes", "image_size", "in_channels")]
    if others or settings.pop("in_channels", saved.in_channels) != saved.in_channels:
        raise TITNError(
            f"{weights} can be loaded with another num_classes or img_size, and with no other setting: leave out "
            f"{', '.join(others) or 'in_chans'}, or use pretrained=False"
        )
    return load_model(weights, **settings)


def timm_pretrained() -> list[str]:
    """The shipped weights that are registered in timm."""
    return [weights for weights in list_pretrained() if weights.split(".")[0] in STUDENTS]


def entry_point(name: str) -> Callable[..., Classifier]:
    """The function that timm calls to create a model."""

    def create(
        pretrained: bool = False,
        pretrained_cfg: Any = None,
        pretrained_cfg_overlay: Any = None,
        cache_dir: Any = None,
        **settings: Any,
    ) -> Classifier:
        settings = {TIMM_NAMES.get(key, key): value for key, value in settings.items()}
        if pretrained:
            model = load_shipped(name, pretrained_cfg, settings)
        else:
            base, changed = VARIANTS.get(name, (name, {}))
            model = create_model(base, **{**changed, **settings})
        known = {**pretrained_config(model.config, model.preprocessing), **(pretrained_cfg_overlay or {})}
        for attribute, value in (("num_classes", model.config.num_classes), ("pretrained_cfg", known)):
            setattr(model, attribute, value)
        return model

    create.__name__ = name  # timm registers it under this name
    create.__doc__ = f"{name} of titn_lib."
    return create


default_cfgs = generate_default_cfgs(all_pretrained_configs())  # timm looks for this name
for student in STUDENTS:
    register_model(entry_point(student))
__all__ = ["STUDENTS", "pretrained_config"]  # timm has put names here that this module doesn't define
