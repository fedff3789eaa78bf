"""Default recipes: how students and teachers are trained on a data set, by preset.

Three presets: `smoke` (the published pipeline on a small subset, a test that takes seconds), `laptop` (our own recipe,
minutes to two hours on two cores) and `gpu` (the published recipe). Settings that differ between data sets are in their
entries of `data.datasets.DATASETS`, not here.
"""

import os
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from titn_lib.data.datasets import DATASETS, dataset_info
from titn_lib.data.folders import list_images
from titn_lib.errors import TITNError, unknown
from titn_lib.losses.features import no_feature_maps
from titn_lib.losses.registry import check_loss, needs_teacher, reads_feature_maps
from titn_lib.models.external import timm_settings
from titn_lib.models.registry import MODELS, TEACHERS, TIMM, is_teacher
from titn_lib.models.weights import list_pretrained, load_model
from titn_lib.training.config import Recipe, Run, override, resolve_dataset, resolve_weights
from titn_lib.validation import to_2tuple

RECIPE_PRESETS = ("smoke", "laptop", "gpu")
AIRBENCH = {  # ours, after airbench94_muon (Jordan 2024), whose batches and learning rate are larger
    "epochs": 13,
    "batch_size": 512,
    "optimizer": "muon",
    "lr": 0.16,
    "weight_decay": 0.1,
    "warmup_epochs": 0,
    "label_smoothing": 0.2,
}
OPTIMIZERS: dict[str, dict[str, Any]] = {  # the usual settings of each, ours
    "sgd": {"lr": 0.1, "weight_decay": 5e-4},
    "adamw": {"lr": 2e-3, "weight_decay": 0.05},
    "muon": {"lr": 0.08, "weight_decay": 0.00125},  # docs/results/small_student.md
}
FOR_PHOTOGRAPHS = ("titn_mini", "titn_mini_conv")  # students
MINI_CONV = {"optimizer": "muon", **OPTIMIZERS["muon"]}


def published_recipe(data: str) -> Recipe:
    """The published recipe for a student: batch 1024, SGD with cosine decay, no warm-up.

    Batch size, cosine, augmentation, CutMix and loss are those of the published code
    (github.com/tauhiddewan/Transformer-In-Tranformer-Network-TITN, commit 5d60a66; its seed is 3407). Optimizer,
    momentum, lr, min_lr, weight decay and epochs are not in it: they come from a third party's notes on the paper.

    Ours differs from the published code in four ways. The learning rate is updated every step. CutMix's λ is recomputed
    after clipping the box. Precision is the fastest of the machine; the published code uses float32 without autocast
    (precision="32-true"). An epoch on CIFAR has 43 full batches of the 45,000 images outside the validation split. In
    the published code it has 49 steps: all 50,000 training images, the incomplete last batch included.
    """
    info = dataset_info(data)
    return Recipe(
        epochs=info.published_epochs,
        batch_size=1024,
        optimizer="sgd",
        lr=0.1,
        min_lr=1e-6,
        weight_decay=1e-4,
        augmentation="paper_mnist" if info.grayscale else "paper_cifar",
        cutmix=0.0 if info.grayscale else 1.0,
    )


def published_teacher_recipe(data: str) -> Recipe:
    """A teacher's recipe, as close to the paper's as is known.

    The published loop trains teachers on the same batches as students, so batch size, cosine without warm-up,
    augmentation, and cross-entropy without label smoothing are known. So is CutMix on photographs: the loop passes its
    criterion arguments that only the CutMix criterion takes. (The same loop trained ViT and TNT with CutMix.) SGD comes
    from a third party's notes on the paper. The rest is ours: SGD's settings (the students', but with a weight decay of
    5e-4), epochs, training from scratch, and no CutMix on grayscale images, where the distilled students have none
    either.
    """
    epochs = 30 if dataset_info(data).grayscale else 200
    return replace(published_recipe(data), epochs=epochs, weight_decay=5e-4)


def student_recipe(data: str, preset: str, model: str = "titn_mini") -> Recipe:
    """The default recipe of a student.

    Args:
        data: a data set's name or folder. An unknown one gets the settings for photographs.
        preset: "smoke", "laptop" or "gpu".
        model: the student's name: `titn_mini_conv` has an optimizer of its own, except in the preset "gpu".

    Raises:
        TITNError: there is no such preset.
    """
    if preset == "gpu":
        return published_recipe(data)
    own = MINI_CONV if model == "titn_mini_conv" else {}
    if preset == "smoke":
        recipe = replace(published_recipe(data), epochs=1, batch_size=64, lr=0.01, train_images=512, test_images=512)
        return override(recipe, own)
    if preset != "laptop":
        raise unknown("preset", preset, RECIPE_PRESETS)
    info = dataset_info(data)
    recipe = Recipe(
        epochs=14,
        optimizer="adamw",
        **OPTIMIZERS["adamw"],
        warmup_epochs=1,
        clip_norm=1.0,
        augmentation="shift" if info.grayscale else "crop_flip",
    )
    return fit_to_images(override(recipe, {**info.student_recipe, **own}), data)


def fit_to_images(recipe: Recipe, data: str) -> Recipe:
    """The recipe for few images of one's own: smaller batches and more epochs.

    Halves the batch until an epoch has 16 steps (or a batch 8 images), and doubles the epochs until the run has 400
    steps. Both numbers are our choice, from trials with 50 to 600 images. Data sets with a name are left as they are.
    """
    if data in DATASETS or not os.path.exists(data):
        return recipe
    try:
        images = list_images(Path(data)).num_training_images
    except TITNError:  # loading the images will say what is wrong
        return recipe
    batch_size, epochs = recipe.batch_size, recipe.epochs
    while batch_size > 8 and images < 16 * batch_size:
        batch_size //= 2
    while epochs * max(images // batch_size, 1) < 400:
        epochs *= 2
    return replace(recipe, batch_size=batch_size, epochs=epochs)


def teacher_recipe(data: str, preset: str, model: str = "vgg7_bn") -> Recipe:
    """The default recipe of a teacher: `published_teacher_recipe` on a GPU, our own in the smaller presets.

    Args:
        data: a data set's name or folder. An unknown one gets the settings for photographs.
        preset: "smoke", "laptop" or "gpu".
        model: the teacher's name: in the preset "laptop", `airbench` has a recipe of its own.

    Raises:
        TITNError: there is no such preset.
    """
    if preset == "gpu":
        return published_teacher_recipe(data)
    if preset not in RECIPE_PRESETS:
        raise unknown("preset", preset, RECIPE_PRESETS)
    info = dataset_info(data)
    recipe = Recipe(
        epochs=24,
        optimizer="sgd",
        **OPTIMIZERS["sgd"],
        warmup_epochs=1,
        label_smoothing=0.1,
        augmentation="shift" if info.grayscale else "crop_flip",
    )
    if preset == "smoke":
        return replace(recipe, epochs=1, batch_size=64, lr=0.02, train_images=512, test_images=512)
    if model == "airbench":
        recipe = override(recipe, AIRBENCH)
        if not info.grayscale:
            recipe = replace(recipe, augmentation="small_crop_flip")
    return fit_to_images(override(recipe, info.teacher_recipe), data)


def default_student(data: str, preset: str) -> str:
    """The default student: the published one in the preset "gpu", otherwise the data set's small one."""
    return "titn_paper" if preset == "gpu" else dataset_info(data).small_student


def default_teacher(data: str, preset: str) -> str:
    """The default teacher: the published VGG16-BN in the preset "gpu", otherwise the data set's small one."""
    return "vgg16_bn" if preset == "gpu" else dataset_info(data).small_teacher


def default_loss(model: str, preset: str, teacher: str | None) -> str:
    """The default loss: the published "hard", or "soft+feature" for `FOR_PHOTOGRAPHS` unless the preset is "gpu".

    In short training feature maps help far more (docs/results/small_student.md). A teacher from timm has none: "hard".
    """
    maps = not (teacher or "").startswith(TIMM)
    return "soft+feature" if model in FOR_PHOTOGRAPHS and preset != "gpu" and maps else "hard"


def make_run(
    data: str = "digits",
    model: str | None = None,
    preset: str = "laptop",
    seed: int = 0,
    loss: str | None = None,
    teacher: str | None = None,
    image_size: tuple[int, int] | int | None = None,
    init_from: str | None = None,
    model_settings: Mapping[str, object] | None = None,
    **changes: object,
) -> Run:
    """The run of a student with the default recipe, and the run of its teacher inside it.

    Args:
        data: a data set's name, or the path of a folder of images.
        model: the name of a student or a related system; by default that of `init_from`, or `default_student`.
        preset: "smoke", "laptop" or "gpu".
        seed: the random seed of student and teacher.
        loss: one of `losses.list_losses()`; by default `default_loss`.
        teacher: a teacher's name, a name of `models.list_pretrained()`, the path of its weights, or "timm:" and the
            name of pretrained weights of timm, which are trained further on the data; by default `default_teacher`.
            With `init_from`, that one starts from weights for the same data set, if the library has some.
        image_size: height and width of the images (or one number for both), for teacher and student; by default the
            data set's own, or those of `init_from`.
        init_from: fine-tune these weights (`load_model`): a name of `models.list_pretrained()`, a path, or "timm:" and
            a name of timm's TNT. The heads are new if the classes are, and the learning rate is a tenth of the
            recipe's, unless `changes` has it, or a layer_decay of 0, which trains the heads only.
        model_settings: settings of the student to change, such as {"depth": 6} (`create_model`).
        changes: settings of the student's `Recipe` to change, such as `epochs=5`. Another `optimizer` comes with its
            usual learning rate and weight decay.

    Raises:
        TITNError: an unknown name or setting, a bad image_size, or a teacher for a loss that needs none.
    """
    source = load_model(init_from) if init_from else None
    start = source.config if source else None
    model = model or (start.name if start else default_student(data, preset))
    if model in TEACHERS:
        raise TITNError(f"{model} is a teacher: choose a student, or use teacher_run (titn train-teacher)")
    if model not in MODELS:
        raise unknown("student", model, set(MODELS) - set(TEACHERS))
    loss = loss or default_loss(model, preset, teacher)
    check_loss(loss)
    if teacher and not needs_teacher(loss):
        raise TITNError(f"the loss {loss!r} needs no teacher: leave the teacher out, or choose a distillation loss")
    size = None if image_size is None else to_2tuple(image_size)
    if size is None and (start or MODELS[model].image_size != (32, 32)):
        size = (start or MODELS[model]).image_size
    data = resolve_dataset(data)
    default = student_recipe(data, preset, model)
    recipe = override(start_recipe(default, init_from, changes), changes)
    settings = changed_settings(start) if start and start.name == model else {}
    settings |= model_settings or {}
    pretrained_on = source.preprocessing.data if source and source.preprocessing else ""
    trained = make_teacher(data, preset, seed, loss, teacher, size, pretrained_on)
    if isinstance(trained, Run) and recipe.batch_size < default.batch_size:
        trained = shrink_batch(trained, recipe.batch_size, default.batch_size)
    return Run(data, model, recipe, seed, loss, trained, size, settings, resolve_weights(init_from))


def start_recipe(recipe: Recipe, init_from: str | None, changes: Mapping[str, object]) -> Recipe:
    """The recipe to which the changes are made.

    Another optimizer than the recipe's brings its usual learning rate and weight decay. For fine-tuning, when the run
    starts from other weights, the learning rate is a tenth. New heads alone (a `layer_decay` of 0) have nothing to
    preserve, and keep the whole learning rate.
    """
    optimizer = str(changes.get("optimizer", recipe.optimizer))
    if optimizer != recipe.optimizer:
        recipe = override(recipe, OPTIMIZERS.get(optimizer, {}))  # an unknown one is refused with the changes
    if not init_from or changes.get("layer_decay") == 0:
        return recipe
    return replace(recipe, lr=recipe.lr / 10)


def changed_settings(config: Any) -> dict[str, object]:
    """The settings of a model in which it differs from its preset, but for those that follow from the data."""
    preset = asdict(MODELS[config.name])
    given = {"num_classes", "in_channels", "image_size"}
    values = asdict(config)
    return {name: value for name, value in values.items() if name not in given and value != preset[name]}


def make_teacher(
    data: str,
    preset: str,
    seed: int,
    loss: str,
    teacher: str | None,
    image_size: tuple[int, int] | None,
    pretrained_on: str,
) -> Run | str | None:
    """The run that trains the teacher, or the name or path of its weights; None if the loss needs no teacher.

    Args:
        pretrained_on: the data set of the weights from which the student starts.
    """
    if not needs_teacher(loss):
        return None
    name = teacher or default_teacher(data, preset)
    if name.startswith(TIMM) and reads_feature_maps(loss):
        raise no_feature_maps(loss)
    if name.endswith(".safetensors") or name in list_pretrained() or (name not in TEACHERS and Path(name).exists()):
        return resolve_weights(name)
    weights = f"{name}.{pretrained_on}"
    start = weights if teacher is None and weights in list_pretrained() else None
    return teacher_run(data, name, preset, seed, image_size, start)


def shrink_batch(teacher: Run, student_batch: int, default_batch: int) -> Run:
    """The teacher with a batch that is smaller by the same factor as the student's, but not smaller than that.

    A batch that was made smaller to fit the memory or the data has to be so for both.
    """
    batch = teacher.recipe.batch_size
    batch = min(batch, max(student_batch, batch * student_batch // default_batch))
    return replace(teacher, recipe=replace(teacher.recipe, batch_size=batch))


def teacher_run(
    data: str = "digits",
    model: str | None = None,
    preset: str = "laptop",
    seed: int = 0,
    image_size: tuple[int, int] | int | None = None,
    init_from: str | None = None,
    **changes: object,
) -> Run:
    """The run that trains a teacher. The arguments are those of `make_run`; a timm model starts pretrained.

    Without `model`, it is the network of `init_from`, or `default_teacher`.

    Raises:
        TITNError: an unknown name or setting, or a bad image_size.
    """
    model = model or (load_model(init_from).config.name if init_from else default_teacher(data, preset))
    if model in MODELS and not is_teacher(model):
        raise TITNError(f"{model} is a student: choose a teacher, or use make_run (titn distill)")
    if not is_teacher(model):
        raise unknown("teacher", model, TEACHERS)
    if model.startswith(TIMM):
        timm_settings(model)
        init_from = init_from or model
    recipe = override(start_recipe(teacher_recipe(data, preset, model), init_from, changes), changes)
    size = None if image_size is None else to_2tuple(image_size)
    start = resolve_weights(init_from)
    return Run(resolve_dataset(data), model, recipe, seed, image_size=size, init_from=start)
