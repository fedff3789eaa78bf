"""What a run is made of: data, network, recipe, seed, teacher. A run is reproduced from these alone."""

import dataclasses
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from titn_lib.data.datasets import DATASETS
from titn_lib.data.transforms import PIPELINES
from titn_lib.errors import TITNError, check_choices, unknown
from titn_lib.losses.registry import check_loss
from titn_lib.models.registry import MODELS
from titn_lib.validation import to_2tuple


@dataclass(frozen=True)
class Recipe:
    """How a network is trained.

    Attributes:
        epochs: passes over the training split.
        batch_size: images a step, over all processes together; what is left over at an epoch's end is left out.
        optimizer: "sgd" (momentum 0.9) or "adamw" (`training.make_optimizer` says what decays).
        lr, min_lr: the learning rate's peak and floor; it follows a cosine, step by step, after a linear warm-up.
        warmup_epochs: length of the warm-up.
        weight_decay: as the optimizer defines it.
        clip_norm: longest gradient allowed; 0 for any.
        ema_decay: evaluate an exponential moving average of the weights with this decay a step; 0 for none.
        label_smoothing: share of each label spread over all classes.
        augmentation: a pipeline of `augment.PIPELINES`.
        cutmix, mixup: α of their Beta(α, α); 0 for none. Every batch has one of the two that aren't 0, by a coin.
        temperature: of soft distillation.
        feature_weight: of feature distillation.
        precision: "32-true", "bf16-mixed", "16-mixed", or "auto": the fastest the machine is made for.
        label_noise: share of the training labels that are replaced by another class at random (`datasets.add_label_noise`).
        train_images: learn from so many images only (the same share of each class); 0 for all.
        test_images: validate and test on so many images only; 0 for all.
    """

    epochs: int = 10
    batch_size: int = 128
    optimizer: Literal["sgd", "adamw"] = "adamw"
    lr: float = 1e-3
    min_lr: float = 1e-6
    warmup_epochs: float = 0.0
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
    label_noise: float = 0.0
    train_images: int = 0
    test_images: int = 0

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size"):
            if getattr(self, name) < 1:
                raise TITNError(f"{name} must be 1 or more and is {getattr(self, name)}")
        for setting in dataclasses.fields(self):
            name, value = setting.name, getattr(self, setting.name)
            if isinstance(value, str) != isinstance(setting.default, str):
                raise TITNError(f"{name} must be a {'text' if isinstance(setting.default, str) else 'number'}")
            if isinstance(setting.default, int) and not isinstance(value, int):
                raise TITNError(f"{name} must be a whole number and is {value}")
            if isinstance(value, float) and not math.isfinite(value):
                raise TITNError(f"{name} must be a finite number and is {value}")
            if not isinstance(value, str) and value < 0:
                raise TITNError(f"{name} can't be negative and is {value}")
        if self.temperature == 0:
            raise TITNError("temperature must be more than 0")
        for name in ("ema_decay", "label_smoothing", "label_noise"):
            if getattr(self, name) >= 1:
                raise TITNError(f"{name} must be below 1 and is {getattr(self, name)}")
        check_choices(self)
        if self.augmentation not in PIPELINES:
            raise unknown("augmentation", self.augmentation, PIPELINES)


@dataclass(frozen=True)
class Run:
    """One training run. With the same machine and versions, the same run gives the same weights.

    Attributes:
        data: a name or folder for `datasets.load_dataset`.
        model: a name for `models.create_model`.
        recipe: how it is trained.
        seed: of the initial weights, the order of images, and every draw of augmentation.
        loss: one of `losses.list_losses()`.
        teacher: the run that makes the teacher, or the path of a weights file; None for a loss without a teacher.
        image_size: height and width of the images; None for the data set's own.
        model_settings: settings of the model to change, such as {"depth": 6}.
        init_from: the run that makes the initial weights, or a name or path for `models.load_model`; None to start afresh.
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
        if self.model not in MODELS:
            raise unknown("model", self.model, MODELS)
        if self.seed < 0:
            raise TITNError(f"a seed can't be negative and is {self.seed}")
        if self.image_size is not None:
            object.__setattr__(self, "image_size", to_2tuple(self.image_size))

    @classmethod
    def from_dict(cls, about: dict) -> "Run":
        """The run that `dataclasses.asdict` turned into plain values."""
        size = about.get("image_size")
        others = {
            name: cls.from_dict(run) if isinstance(run, dict) else run
            for name, run in about.items()
            if name in ("teacher", "init_from")
        }
        recipe = Recipe(**about["recipe"])
        return cls(**{**about, **others, "recipe": recipe, "image_size": tuple(size) if size else None})


def resolve_dataset(data: str) -> str:
    """A data set's name as it is; a folder by its whole path, so that it is the same from anywhere."""
    return str(Path(data).resolve()) if data not in DATASETS and Path(data).is_dir() else data


def override(recipe: Recipe, changes: Mapping[str, object]) -> Recipe:
    """The recipe with some settings changed.

    Raises:
        TITNError: there is no such setting, or its value makes no sense.
    """
    known = [f.name for f in dataclasses.fields(Recipe)]
    for name in changes:
        if name not in known:
            raise unknown("setting of a recipe", name, known)
    return replace(recipe, **changes)  # type: ignore[arg-type]


def diff_runs(there: Run, wanted: Run) -> list[str]:
    """The settings in which two runs differ."""
    a, b = (json.loads(json.dumps(dataclasses.asdict(run))) for run in (there, wanted))
    names = [name for name in b if name != "recipe" and a[name] != b[name]]
    return names + [name for name, value in b["recipe"].items() if a["recipe"][name] != value]


def require_same_run(there: Run, wanted: Run, out: Path) -> None:
    """Raises TITNError if the run in a folder isn't the one that is wanted."""
    if names := diff_runs(there, wanted):
        raise TITNError(
            f"{out} holds another run ({', '.join(names)} differ): choose another folder, or delete that one"
        )
