"""The settings of a run: data, network, recipe, seed, loss and teacher. They are enough to reproduce it."""

import dataclasses
import json
import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from titn_lib.data.datasets import DATASETS
from titn_lib.data.transforms import PIPELINES
from titn_lib.errors import TITNError, check_choices, unknown
from titn_lib.losses.registry import check_loss
from titn_lib.models.registry import model_config
from titn_lib.validation import to_2tuple


@dataclass(frozen=True)
class Recipe:
    """How a network is trained.

    Attributes:
        epochs: passes over the training split.
        batch_size: images per step, over all processes together. An epoch's last, incomplete batch is dropped.
        optimizer: "sgd" (momentum 0.9), "adamw", or "muon" for matrices with "adamw" for the rest.
        lr: the peak learning rate. The learning rate changes every step: linear warm-up, then cosine decay.
        min_lr: the final learning rate.
        warmup_epochs: length of the warm-up; fractions are allowed.
        layer_decay: for a run that starts from other weights: the learning rate of each block (or stage) is that of the
            next one times this; the heads use the full learning rate. 1: the same everywhere; 0: only the heads learn.
        weight_decay: "sgd" applies it to all parameters, the other optimizers only to matrices.
        clip_norm: maximum norm of the gradient; 0 for no clipping.
        ema_decay: evaluate and save an exponential moving average of the weights, with this decay per step; 0 for none.
        label_smoothing: share of each label that is spread over all classes.
        augmentation: a pipeline of data augmentation, by its name in `data.transforms.PIPELINES`.
        cutmix: α of CutMix's Beta(α, α); 0 for none. With both CutMix and MixUp, each batch uses one of them at random.
        mixup: α of MixUp's Beta(α, α); 0 for none.
        temperature: the temperature of the distillation losses "soft" and "dkd".
        feature_weight: the weight of the distillation loss "feature".
        precision: "32-true", "bf16-mixed", "16-mixed", or "auto": "bf16-mixed" on hardware with bfloat16
            instructions, else "16-mixed" on an NVIDIA GPU and "32-true" elsewhere.
        class_weights: "none", or "balanced" to weight each image's cross-entropy with its label by the inverse of its
            class's share of the training images.
        label_noise: share of the training labels that are replaced by another class at random.
        train_images: train on a stratified subset of this size; 0 for all images.
        test_images: validate and test on subsets of this size; 0 for all images.
    """

    epochs: int = 10
    batch_size: int = 128
    optimizer: Literal["sgd", "adamw", "muon"] = "adamw"
    lr: float = 1e-3
    min_lr: float = 1e-6
    warmup_epochs: float = 0.0
    layer_decay: float = 1.0
    weight_decay: float = 0.05
    clip_norm: float = 0.0
    ema_decay: float = 0.0
    label_smoothing: float = 0.0
    augmentation: str = "none"
    cutmix: float = 0.0
    mixup: float = 0.0
    temperature: float = 4.0
    feature_weight: float = 2.5
    precision: Literal["auto", "32-true", "bf16-mixed", "16-mixed"] = "auto"
    class_weights: Literal["none", "balanced"] = "none"
    label_noise: float = 0.0
    train_images: int = 0
    test_images: int = 0

    def __post_init__(self) -> None:
        for setting in dataclasses.fields(self):
            name, value = setting.name, getattr(self, setting.name)
            kind, what = (str, "string") if isinstance(setting.default, str) else (int | float, "number")
            if not isinstance(value, kind):
                raise TITNError(f"{name} must be a {what}, not {value!r}")
            if isinstance(setting.default, int) and not isinstance(value, int):
                raise TITNError(f"{name} must be a whole number, not {value}")
            if isinstance(value, float) and not math.isfinite(value):
                raise TITNError(f"{name} must be finite, not {value}")
            if not isinstance(value, str) and value < 0:
                raise TITNError(f"{name} must be at least 0, not {value}")
        for name in ("epochs", "batch_size"):
            if getattr(self, name) < 1:
                raise TITNError(f"{name} must be at least 1, not {getattr(self, name)}")
        if self.layer_decay > 1:
            raise TITNError(f"layer_decay must be between 0 and 1, not {self.layer_decay}")
        if self.temperature == 0:
            raise TITNError("temperature must be greater than 0")
        for name in ("ema_decay", "label_smoothing", "label_noise"):
            if getattr(self, name) >= 1:
                raise TITNError(f"{name} must be below 1, not {getattr(self, name)}")
        check_choices(self)
        if self.augmentation not in PIPELINES:
            raise unknown("augmentation", self.augmentation, PIPELINES)


def recipe_help(docstring: str) -> dict[str, str]:
    """The attributes in a docstring with their meanings."""
    text = re.sub(r"\n {12}", " ", docstring.partition("Attributes:")[2])  # one line for each
    return {name: line.rstrip(".").replace("%", "%%") for name, line in re.findall(r"^ {8}(\w+): (.*)", text, re.M)}


@dataclass(frozen=True)
class Run:
    """The settings of one training run. On the same machine with the same versions, they give the same weights.

    Attributes:
        data: a name or a folder for `load_dataset`.
        model: a name for `create_model`.
        recipe: the hyperparameters of training.
        seed: determines initialization, order of images, data augmentation and label noise.
        loss: one of `losses.list_losses()`.
        teacher: the run that trains the teacher, or a name or path for `load_model`; None for a loss without a teacher.
        image_size: height and width of the images; None for the data set's own.
        model_settings: settings of the model that differ from its preset, such as {"depth": 6}.
        init_from: the run that trains the initial weights, or a name or path for `load_model`; None for random
            initialization. Images are normalized as they were for these weights, and the heads stay random where the
            classes are others.
    """

    data: str
    model: str
    recipe: Recipe
    seed: int = 0
    loss: str = "cross_entropy"
    teacher: "Run | str | None" = None
    image_size: tuple[int, int] | None = None
    model_settings: dict[str, object] = field(default_factory=dict)
    init_from: "Run | str | None" = None

    def __post_init__(self) -> None:
        check_loss(self.loss)
        model_config(self.model)
        if self.recipe.layer_decay != 1 and not self.init_from:
            raise TITNError("layer_decay is for a run that starts from other weights: give init_from, or leave it out")
        if self.seed < 0:
            raise TITNError(f"seed must be at least 0, not {self.seed}")
        if self.seed >= 2**64:
            raise TITNError(f"seed must be below 2**64, not {self.seed}")
        if self.image_size is not None:
            object.__setattr__(self, "image_size", to_2tuple(self.image_size))

    @classmethod
    def from_dict(cls, values: dict) -> "Run":
        """The inverse of `dataclasses.asdict`; `values` may come from JSON."""
        size = values.get("image_size")
        others = {
            name: cls.from_dict(run) if isinstance(run, dict) else run
            for name, run in values.items()
            if name in ("teacher", "init_from")
        }
        recipe = Recipe(**values["recipe"])
        return cls(**{**values, **others, "recipe": recipe, "image_size": tuple(size) if size else None})


def resolve_dataset(data: str) -> str:
    """A data set's name unchanged, or an absolute path, so that a run is the same from anywhere."""
    return str(Path(data).resolve()) if data not in DATASETS and os.path.exists(data) else data


def resolve_weights(name: str | None) -> str | None:
    """The absolute path of a weights file, so that a run is the same from anywhere; another name unchanged."""
    return os.path.abspath(name) if name and os.path.isfile(name) else name


def override(recipe: Recipe, changes: Mapping[str, object]) -> Recipe:
    """The recipe with some settings changed.

    Raises:
        TITNError: a setting is unknown, or its value is out of range.
    """
    known = [f.name for f in dataclasses.fields(Recipe)]
    for name in changes:
        if name not in known:
            raise unknown("setting of a recipe", name, known)
    return replace(recipe, **changes)  # type: ignore[arg-type]


def diff_runs(a: Run, b: Run) -> list[str]:
    """The names of the settings in which two runs differ, those of the recipe last."""
    first, second = (json.loads(json.dumps(dataclasses.asdict(run))) for run in (a, b))
    names = [name for name in second if name != "recipe" and first[name] != second[name]]
    return names + [name for name, value in second["recipe"].items() if first["recipe"][name] != value]


def require_same_run(saved: Run, wanted: Run, out: Path) -> None:
    """Raises TITNError if the run saved in a folder differs from the wanted one."""
    if names := diff_runs(saved, wanted):
        raise TITNError(
            f"{out} holds another run ({', '.join(names)} differ): choose another folder, or delete that one"
        )
