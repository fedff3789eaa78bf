"""What a run is made of: data, network, recipe, seed, teacher. All that is needed to make it again.

Three presets: `smoke` (the published pipeline on a sliver of the data, to see in seconds that all works), `laptop`
(minutes to an hour on two cores; ours) and `gpu` (the published recipe).
"""

from dataclasses import replace

from titn_lib.errors import TITNError, unknown
from titn_lib.losses.registry import check_loss, needs_teacher
from titn_lib.models.registry import MODELS, TEACHERS
from titn_lib.models.weights import list_pretrained
from titn_lib.training.config import Recipe, Run, override, resolve_dataset
from titn_lib.validation import to_2tuple

RECIPE_PRESETS = ("smoke", "laptop", "gpu")
GREY = ("digits", "mnist", "fashion_mnist")  # the paper's pipeline for MNIST suits these


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
    fresh initial weights, and no CutMix on gray images, where the distilled students see none.
    """
    return replace(published_recipe(data), epochs=30 if data in GREY else 200, weight_decay=5e-4)


def student_recipe(data: str, preset: str) -> Recipe:
    """A student's recipe for a data set within a preset.

    Raises:
        TITNError: there is no such preset.
    """
    if preset == "gpu":
        return published_recipe(data)
    if preset == "smoke":
        return replace(published_recipe(data), epochs=1, batch_size=64, lr=0.01, train_images=512, test_images=512)
    if preset != "laptop":
        raise unknown("preset", preset, RECIPE_PRESETS)
    ours = Recipe(optimizer="adamw", lr=2e-3, weight_decay=0.05, warmup_epochs=1, clip_norm=1.0)
    if data == "digits":
        return replace(ours, epochs=48, augmentation="shift")
    if data in GREY:
        return replace(ours, epochs=9, batch_size=64, lr=1e-3, warmup_epochs=0.2, augmentation="shift")
    return replace(ours, epochs=14, augmentation="crop_flip")


def teacher_recipe(data: str, preset: str) -> Recipe:
    """A teacher's recipe: on a GPU `published_teacher_recipe`; the smaller presets are ours.

    Raises:
        TITNError: there is no such preset.
    """
    if preset == "gpu":
        return published_teacher_recipe(data)
    ours = Recipe(optimizer="sgd", lr=0.1, weight_decay=5e-4, warmup_epochs=1, label_smoothing=0.1)
    grey = data in GREY
    if preset == "smoke":
        sliver = replace(ours, epochs=1, batch_size=64, lr=0.02, train_images=512, test_images=512)
        return replace(sliver, augmentation="shift" if grey else "crop_flip")
    if preset != "laptop":
        raise unknown("preset", preset, RECIPE_PRESETS)
    if data == "digits":
        return replace(ours, epochs=15, batch_size=64, augmentation="shift")
    if grey:
        return replace(ours, epochs=3, augmentation="shift")
    return replace(ours, epochs=24, augmentation="crop_flip")


def default_student(data: str, preset: str) -> str:
    """The default student: the paper's on a GPU; elsewhere one of ours that is small enough."""
    if preset == "gpu":
        return "titn_paper"
    return {"digits": "titn_nano", "mnist": "titn_pico", "fashion_mnist": "titn_pico"}.get(data, "titn_mini")


def default_teacher(preset: str) -> str:
    """The default teacher: the paper's VGG16-BN on a GPU, our small VGG elsewhere."""
    return "vgg16_bn" if preset == "gpu" else "vgg7_bn"


def make_run(
    data: str = "digits",
    model: str | None = None,
    preset: str = "laptop",
    seed: int = 0,
    loss: str = "hard",
    teacher: str | None = None,
    image_size: tuple[int, int] | int | None = None,
    **changes: object,
) -> Run:
    """A student's run, its teacher's inside.

    Args:
        model: a student's or neighbor's name; by default the preset's (`default_student`).
        teacher: a teacher's name, a name of `models.list_pretrained()`, or the path of its weights; by default the
            preset's (`default_teacher`).
        image_size: height and width of the images (or one number for both), for teacher and student; by default the
            data set's own.
        changes: settings of the student's `Recipe` to change, such as `epochs=5`.

    Raises:
        TITNError: an unknown name or setting, a bad image_size, or a teacher with nothing to learn from it.
    """
    check_loss(loss)
    if teacher and not needs_teacher(loss):
        raise TITNError(f"the loss {loss!r} needs no teacher: leave the teacher out, or choose a distillation loss")
    model = model or default_student(data, preset)
    if model not in MODELS or model in TEACHERS:
        raise unknown("student", model, set(MODELS) - set(TEACHERS))
    size = None if image_size is None else to_2tuple(image_size)
    if size is None and MODELS[model].image_size != (32, 32):
        size = MODELS[model].image_size
    data = resolve_dataset(data)
    recipe = override(student_recipe(data, preset), changes)
    taught: Run | str | None = None
    if needs_teacher(loss):
        name = teacher or default_teacher(preset)
        if name in TEACHERS:
            # A batch that was made smaller, to fit the memory or the data, is made smaller for both.
            its = teacher_recipe(data, preset)
            if recipe.batch_size < student_recipe(data, preset).batch_size:
                its = replace(its, batch_size=min(its.batch_size, recipe.batch_size))
            taught = Run(data, name, its, seed, image_size=size)
        elif name.endswith(".safetensors") or name in list_pretrained():
            taught = name
        else:
            raise unknown("teacher", name, TEACHERS)
    return Run(data, model, recipe, seed, loss, taught, size)
