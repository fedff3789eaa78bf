"""What a run is made of: data, network, recipe, seed, teacher. All that is needed to make it again.

Three budgets: `smoke` (the published pipeline on a sliver of the data, to see in seconds that all works), `laptop`
(minutes to an hour on two cores; ours) and `gpu` (the published recipe).
"""

import dataclasses
import math
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from .augment import PIPELINES
from .classifier import height_and_width
from .datasets import SOURCES
from .distillation import METHODS
from .errors import TITNError, check_choices, unknown
from .models import MODELS, TEACHERS, list_weights
from .neighbours import OBJECTIVES

BUDGETS = ("smoke", "laptop", "gpu")
GREY = ("digits", "mnist", "fashion_mnist")  # the paper's pipeline for MNIST suits these


@dataclass(frozen=True)
class Recipe:
    """How a network is trained.

    Attributes:
        epochs: passes over the training split.
        batch_size: pictures a step, over all processes together; what is left over at an epoch's end is left out.
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
        label_noise: share of the training labels that are replaced by another class at random (`datasets.mislabel`).
        train_images: learn from so many pictures only (the same share of each class); 0 for all.
        test_images: validate and test on so many pictures only; 0 for all.
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
        data: a name or folder for `datasets.load_data`.
        model: a name for `models.create_model`.
        recipe: how it is trained.
        seed: of the first weights, the order of pictures, and every draw of augmentation.
        distillation: one of `distillation.METHODS`.
        teacher: the run that makes the teacher, or the path of a weights file; None where distillation is "none".
        image_size: height and width of the pictures; None for the data set's own.
        model_settings: settings of the model to change, such as {"depth": 6}.
        objective: one of `neighbours.OBJECTIVES`; "classification" is `distillation.Objective`.
        start: the run that makes the first weights, or a name or path for `models.load_model`; None to start afresh.
    """

    data: str
    model: str
    recipe: Recipe
    seed: int = 0
    distillation: str = "none"
    teacher: "Run | str | None" = None
    image_size: tuple[int, int] | None = None
    model_settings: dict[str, object] = field(default_factory=dict)
    objective: str = "classification"
    start: "Run | str | None" = None

    def __post_init__(self) -> None:
        if self.distillation not in METHODS:
            raise unknown("distillation", self.distillation, METHODS)
        if self.model not in MODELS:
            raise unknown("model", self.model, MODELS)
        if self.objective not in OBJECTIVES:
            raise unknown("objective", self.objective, OBJECTIVES)
        if self.seed < 0:
            raise TITNError(f"a seed can't be negative and is {self.seed}")
        if self.image_size is not None:
            object.__setattr__(self, "image_size", height_and_width(self.image_size))

    @classmethod
    def from_dict(cls, about: dict) -> "Run":
        """The run that `dataclasses.asdict` turned into plain values."""
        size = about.get("image_size")
        others = {
            name: cls.from_dict(run) if isinstance(run, dict) else run
            for name, run in about.items()
            if name in ("teacher", "start")
        }
        recipe = Recipe(**about["recipe"])
        return cls(**{**about, **others, "recipe": recipe, "image_size": tuple(size) if size else None})


def published_recipe(data: str) -> Recipe:
    """The paper's recipe for a student: batch 1024, SGD with a cosine, no warm-up.

    Batch size, cosine, augmentation, CutMix and loss are those of the published code
    (github.com/tauhiddewan/Transformer-In-Tranformer-Network-TITN, commit 5d60a66). Optimizer, momentum, lr, its floor,
    weight decay and epochs are not in it: they come from a third party's reading of the paper. Seed there: 3407.

    Ours are: the cosine moves every step, CutMix's λ is recomputed after clipping, and precision is the fastest of the
    machine (there float32, without autocast: precision="32-true"). On CIFAR an epoch there has all 50,000 training
    images and 49 steps, the incomplete last batch among them; here 45,000 and 43 full ones, 12 % fewer, since 10 % of
    the images are the validation split.
    """
    grey = data in GREY
    return Recipe(
        epochs=600 if data == "cifar100" else 350,
        batch_size=1024,
        optimizer="sgd",
        lr=0.1,
        min_lr=1e-6,
        weight_decay=1e-4,
        augmentation="paper_mnist" if grey else "paper_cifar",
        cutmix=0.0 if grey else 1.0,
    )


def published_teacher_recipe(data: str) -> Recipe:
    """A teacher's recipe as near to the paper's as is known.

    The published loop trains teachers, too, on the students' batches: batch size, cosine without warm-up, augmentation,
    and cross-entropy without label smoothing are known. So is CutMix on photographs: the loop calls its criterion in a
    way that only CutMix's can be called (ViT and TNT, trained by the same loop, saw it as well). SGD comes from a third
    party's reading of the paper. Ours are: its settings (those of the students, but a weight decay of 5e-4), epochs,
    fresh first weights, and no CutMix on grey images, where the distilled students see none.
    """
    return replace(published_recipe(data), epochs=30 if data in GREY else 200, weight_decay=5e-4)


def student_recipe(data: str, budget: str) -> Recipe:
    """A student's recipe for a data set within a budget.

    Raises:
        TITNError: there is no such budget.
    """
    if budget == "gpu":
        return published_recipe(data)
    if budget == "smoke":
        return replace(published_recipe(data), epochs=1, batch_size=64, lr=0.01, train_images=512, test_images=512)
    if budget != "laptop":
        raise unknown("budget", budget, BUDGETS)
    ours = Recipe(optimizer="adamw", lr=2e-3, weight_decay=0.05, warmup_epochs=1, clip_norm=1.0)
    if data == "digits":
        return replace(ours, epochs=48, augmentation="shift")
    if data in GREY:
        return replace(ours, epochs=9, batch_size=64, lr=1e-3, warmup_epochs=0.2, augmentation="shift")
    return replace(ours, epochs=14, augmentation="crop_flip")


def teacher_recipe(data: str, budget: str) -> Recipe:
    """A teacher's recipe: on a GPU `published_teacher_recipe`; the smaller budgets are ours.

    Raises:
        TITNError: there is no such budget.
    """
    if budget == "gpu":
        return published_teacher_recipe(data)
    ours = Recipe(optimizer="sgd", lr=0.1, weight_decay=5e-4, warmup_epochs=1, label_smoothing=0.1)
    grey = data in GREY
    if budget == "smoke":
        sliver = replace(ours, epochs=1, batch_size=64, lr=0.02, train_images=512, test_images=512)
        return replace(sliver, augmentation="shift" if grey else "crop_flip")
    if budget != "laptop":
        raise unknown("budget", budget, BUDGETS)
    if data == "digits":
        return replace(ours, epochs=15, batch_size=64, augmentation="shift")
    if grey:
        return replace(ours, epochs=3, augmentation="shift")
    return replace(ours, epochs=24, augmentation="crop_flip")


def student_for(data: str, budget: str) -> str:
    """The default student: the paper's on a GPU; elsewhere one of ours that is small enough."""
    if budget == "gpu":
        return "titn_paper"
    return {"digits": "titn_nano", "mnist": "titn_pico", "fashion_mnist": "titn_pico"}.get(data, "titn_mini")


def teacher_for(budget: str) -> str:
    """The default teacher: the paper's VGG16-BN on a GPU, our small VGG elsewhere."""
    return "vgg16_bn" if budget == "gpu" else "vgg7_bn"


def plan_run(
    data: str = "digits",
    model: str | None = None,
    budget: str = "laptop",
    seed: int = 0,
    distillation: str = "hard",
    teacher: str | None = None,
    image_size: tuple[int, int] | int | None = None,
    **changes: object,
) -> Run:
    """A student's run, its teacher's inside.

    Args:
        model: a student's or neighbour's name; by default the budget's (`student_for`).
        teacher: a teacher's name, a name of `models.list_weights()`, or the path of its weights; by default the
            budget's (`teacher_for`).
        image_size: height and width of the pictures (or one number for both), for teacher and student; by default the
            data set's own.
        changes: settings of the student's `Recipe` to change, such as `epochs=5`.

    Raises:
        TITNError: an unknown name or setting, a bad image_size, or a teacher with nothing to learn from it.
    """
    if teacher and distillation == "none":
        raise TITNError("distillation 'none' asks no teacher: leave the teacher out, or choose what to learn from it")
    model = model or student_for(data, budget)
    if model not in MODELS or model in TEACHERS:
        raise unknown("student", model, set(MODELS) - set(TEACHERS))
    size = None if image_size is None else height_and_width(image_size)
    if size is None and MODELS[model].image_size != (32, 32):
        size = MODELS[model].image_size
    data = name_data(data)
    recipe = change(student_recipe(data, budget), changes)
    taught: Run | str | None = None
    if distillation != "none":
        name = teacher or teacher_for(budget)
        if name in TEACHERS:
            # A batch that was made smaller, to fit the memory or the data, is made smaller for both.
            its = teacher_recipe(data, budget)
            if recipe.batch_size < student_recipe(data, budget).batch_size:
                its = replace(its, batch_size=min(its.batch_size, recipe.batch_size))
            taught = Run(data, name, its, seed, image_size=size)
        elif name.endswith(".safetensors") or name in list_weights():
            taught = name
        else:
            raise unknown("teacher", name, TEACHERS)
    return Run(data, model, recipe, seed, distillation, taught, size)


def name_data(data: str) -> str:
    """A data set's name as it is; a folder by its whole path, so that it is the same from anywhere."""
    return str(Path(data).resolve()) if data not in SOURCES and Path(data).is_dir() else data


def change(recipe: Recipe, changes: dict[str, object]) -> Recipe:
    """The recipe with some settings changed.

    Raises:
        TITNError: there is no such setting, or its value makes no sense.
    """
    known = [f.name for f in dataclasses.fields(Recipe)]
    for name in changes:
        if name not in known:
            raise unknown("setting of a recipe", name, known)
    return replace(recipe, **changes)  # type: ignore[arg-type]
