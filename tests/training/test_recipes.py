"""Default recipes: for every data set and preset exactly these, and a new data set is one entry."""

import dataclasses
from pathlib import Path

import pytest
import torch

from titn_lib import TITNError
from titn_lib.data.datasets import DATASETS, DatasetInfo, dataset_info, load_dataset
from titn_lib.data.images import ImageDataset
from titn_lib.experiments.settings import load_experiments
from titn_lib.training.config import Recipe
from titn_lib.training.recipes import (
    default_student,
    default_teacher,
    make_run,
    student_recipe,
    teacher_recipe,
    teacher_run,
)

GRAY, COLOR = ("digits", "mnist", "fashion_mnist"), ("cifar10", "cifar100", "a/folder", "unknown")
ADAMW = {"optimizer": "adamw", "lr": 2e-3, "weight_decay": 0.05, "warmup_epochs": 1, "clip_norm": 1.0}
SGD = {"optimizer": "sgd", "lr": 0.1, "weight_decay": 5e-4, "warmup_epochs": 1, "label_smoothing": 0.1}
PAPER = {"optimizer": "sgd", "lr": 0.1, "batch_size": 1024, "weight_decay": 1e-4}
PAPER_GRAY, PAPER_COLOR = {"augmentation": "paper_mnist"}, {"augmentation": "paper_cifar", "cutmix": 1.0}
SMOKE = {"epochs": 1, "batch_size": 64, "train_images": 512, "test_images": 512}
MNIST = {"epochs": 9, "batch_size": 64, "lr": 1e-3, "warmup_epochs": 0.2, "augmentation": "shift"}
STUDENTS = {
    **{(data, "gpu"): {**PAPER, **PAPER_GRAY, "epochs": 350} for data in GRAY},
    **{(data, "gpu"): {**PAPER, **PAPER_COLOR, "epochs": 600 if data == "cifar100" else 350} for data in COLOR},
    **{(data, "smoke"): {**PAPER, **PAPER_GRAY, **SMOKE, "lr": 0.01} for data in GRAY},
    **{(data, "smoke"): {**PAPER, **PAPER_COLOR, **SMOKE, "lr": 0.01} for data in COLOR},
    ("digits", "laptop"): {**ADAMW, "epochs": 48, "augmentation": "shift"},
    ("mnist", "laptop"): {**ADAMW, **MNIST},
    ("fashion_mnist", "laptop"): {**ADAMW, **MNIST},
    **{(data, "laptop"): {**ADAMW, "epochs": 14, "augmentation": "crop_flip"} for data in COLOR},
}
TEACHERS = {
    **{(data, "gpu"): {**PAPER, **PAPER_GRAY, "epochs": 30, "weight_decay": 5e-4} for data in GRAY},
    **{(data, "gpu"): {**PAPER, **PAPER_COLOR, "epochs": 200, "weight_decay": 5e-4} for data in COLOR},
    **{(data, "smoke"): {**SGD, **SMOKE, "lr": 0.02, "augmentation": "shift"} for data in GRAY},
    **{(data, "smoke"): {**SGD, **SMOKE, "lr": 0.02, "augmentation": "crop_flip"} for data in COLOR},
    ("digits", "laptop"): {**SGD, "epochs": 15, "batch_size": 64, "augmentation": "shift"},
    ("mnist", "laptop"): {**SGD, "epochs": 3, "augmentation": "shift"},
    ("fashion_mnist", "laptop"): {**SGD, "epochs": 3, "augmentation": "shift"},
    **{(data, "laptop"): {**SGD, "epochs": 24, "augmentation": "crop_flip"} for data in COLOR},
}


def test_the_pairs_are_all_there():
    assert {data for data, _ in STUDENTS} == {data for data, _ in TEACHERS} == {*DATASETS, "a/folder", "unknown"}
    assert len(STUDENTS) == len(TEACHERS) == 3 * (len(DATASETS) + 2)


@pytest.mark.parametrize(("data", "preset"), STUDENTS)
def test_every_recipe(data, preset):
    assert student_recipe(data, preset) == Recipe(**STUDENTS[data, preset])
    assert teacher_recipe(data, preset) == Recipe(**TEACHERS[data, preset])
    small = {"digits": "titn_nano", "mnist": "titn_pico", "fashion_mnist": "titn_pico"}.get(data, "titn_mini")
    small = "titn_mini_conv" if data.startswith("cifar") else small
    assert default_student(data, preset) == ("titn_paper" if preset == "gpu" else small)


def test_defaults_are_those_of_the_table():
    """What the table leaves out, so that a changed default is noticed."""
    rest = dataclasses.asdict(student_recipe("cifar10", "laptop"))
    assert {name: value for name, value in rest.items() if name not in {**ADAMW, "epochs": 0, "augmentation": ""}} == {
        "batch_size": 128, "min_lr": 1e-6, "layer_decay": 1.0, "ema_decay": 0.0, "label_smoothing": 0.0,
            "cutmix": 0.0, "mixup": 0.0,
        "temperature": 4.0, "feature_weight": 2.5, "precision": "auto", "class_weights": "none", "label_noise": 0.0,
        "train_images": 0, "test_images": 0,
    }  # fmt: skip


@pytest.mark.parametrize("data", [*DATASETS, "a/folder"])
def test_the_default_teacher(data):
    assert default_teacher(data, "gpu") == "vgg16_bn"
    small = "airbench" if data.startswith("cifar") else "vgg7_bn"
    for preset in ("smoke", "laptop"):
        assert default_teacher(data, preset) == small
        assert make_run(data, preset=preset, loss="hard").teacher == teacher_run(data, None, preset, 0)
        assert teacher_run(data, None, preset, 0).model == small


def test_airbench_has_a_recipe_of_its_own():
    """Only in the preset "laptop". A data set's entry comes last."""
    muon = {"optimizer": "muon", "lr": 0.16, "weight_decay": 0.1, "label_smoothing": 0.2}
    color = Recipe(**muon, epochs=13, batch_size=512, augmentation="small_crop_flip")
    assert teacher_run("cifar10", "airbench", "laptop", 0).recipe == color
    assert teacher_run("digits", "airbench", "laptop", 0).recipe == Recipe(
        **muon, epochs=15, batch_size=64, augmentation="shift"
    )
    for preset in ("smoke", "gpu"):
        assert teacher_recipe("cifar10", preset, "airbench") == teacher_recipe("cifar10", preset)


@pytest.mark.parametrize("model", ["vgg7_bn", "airbench"])
@pytest.mark.parametrize("optimizer", ["sgd", "adamw", "muon"])
def test_another_optimizer_brings_its_own_learning_rate(optimizer, model):
    """AdamW with the learning rate of SGD or Muon would learn nothing."""
    usual = {"sgd": (0.1, 5e-4), "adamw": (2e-3, 0.05), "muon": (0.08, 0.00125)}
    default = teacher_recipe("cifar10", "laptop", model)
    recipe = teacher_run("cifar10", model, "laptop", 0, optimizer=optimizer).recipe
    assert recipe.optimizer == optimizer
    if optimizer == default.optimizer:
        assert recipe == default
    else:
        assert (recipe.lr, recipe.weight_decay) == usual[optimizer]
        assert (recipe.epochs, recipe.batch_size) == (default.epochs, default.batch_size)
    assert teacher_run("cifar10", model, "laptop", 0, optimizer=optimizer, lr=0.5).recipe.lr == 0.5
    student = make_run("cifar10", "titn_nano", optimizer=optimizer, preset="gpu").recipe
    assert student.lr == (0.1 if optimizer == "sgd" else usual[optimizer][0])


def test_students_for_photographs_have_an_optimizer_and_a_loss_of_their_own(tmp_path):
    """Except on a GPU, where students are compared with the published recipe."""
    muon = {"optimizer": "muon", "lr": 0.08, "weight_decay": 0.00125}
    for data in ("cifar10", "mnist"):
        for preset in ("smoke", "laptop"):
            run = make_run(data, "titn_mini_conv", preset)
            assert run.recipe == dataclasses.replace(student_recipe(data, preset), **muon)
            assert run.loss == "soft+feature"
            assert make_run(data, "titn_mini", preset).loss == "soft+feature"
            assert make_run(data, "titn_nano", preset).loss == "hard"
    assert make_run(str(tmp_path)).loss == "soft+feature"
    assert make_run("cifar10").model == "titn_mini_conv"
    assert make_run("cifar10", teacher="timm:resnet18.a1_in1k").loss == "hard"  # it has no feature maps
    assert make_run("cifar10", optimizer="adamw").recipe == student_recipe("cifar10", "laptop")  # not with Muon's lr
    assert make_run("cifar10", optimizer="muon").recipe == make_run("cifar10").recipe
    gpu = make_run("cifar10", "titn_mini_conv", "gpu")
    assert (gpu.recipe, gpu.loss) == (student_recipe("cifar10", "gpu"), "hard")
    settings = 'data = "cifar10"\nmodel = "titn_mini_conv"\npreset = "laptop"'
    (tmp_path / "1-a.toml").write_text(settings)
    assert load_experiments(tmp_path)["a"].runs[0].recipe == make_run("cifar10").recipe


@pytest.mark.parametrize(
    ("images", "batch_size", "epochs", "teacher_epochs"),
    [(6000, 128, 14, 24), (2840, 64, 14, 24), (1000, 32, 28, 24), (60, 8, 112, 96), (4, 8, 448, 768)],
)
def test_few_own_images_get_small_batches_and_more_epochs(images, batch_size, epochs, teacher_epochs, tmp_path):
    """Of 2,840 images, 2,044 are for training: too few for 16 batches of 128. With a test split, 2,840 are enough."""
    for i in range(images):
        file = tmp_path / "train" / "ab"[i % 2] / f"{i}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
    run = make_run(str(tmp_path / "train"))
    assert (run.recipe.batch_size, run.recipe.epochs) == (batch_size, epochs)
    assert (run.teacher.recipe.batch_size, run.teacher.recipe.epochs) == (batch_size, teacher_epochs)
    (tmp_path / "test").symlink_to("train")
    assert student_recipe(str(tmp_path), "laptop").batch_size == (128 if images == 2840 else batch_size)
    for preset in ("smoke", "gpu"):
        assert student_recipe(str(tmp_path), preset) == student_recipe("a/folder", preset)


def test_with_pretrained_weights_the_default_teacher_is_pretrained_too(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "1.png").touch()
    teacher = make_run(str(tmp_path), init_from="titn_mini.cifar10").teacher
    assert (teacher.init_from, teacher.model) == ("vgg7_bn.cifar10", "vgg7_bn")
    assert teacher.recipe.lr == pytest.approx(teacher_recipe(str(tmp_path), "laptop").lr / 10)
    named = make_run(str(tmp_path), init_from="titn_mini.cifar10", teacher="vgg7_bn").teacher
    assert (named.init_from, named.recipe.lr) == (None, teacher_recipe(str(tmp_path), "laptop").lr)
    assert make_run(str(tmp_path), init_from="titn_mini.cifar10", preset="gpu").teacher.init_from is None
    assert make_run(str(tmp_path)).teacher.init_from is None


def test_fine_tuning_has_a_tenth_of_the_learning_rate_unless_only_heads_are_trained():
    lr = student_recipe("a/folder", "laptop").lr
    rates = {
        decay: make_run("a/folder", init_from="titn_mini.cifar10", layer_decay=decay).recipe.lr for decay in (0, 0.5, 1)
    }
    assert rates == {0: lr, 0.5: lr / 10, 1: lr / 10}
    assert make_run("a/folder", init_from="titn_mini.cifar10", layer_decay=0, lr=0.5).recipe.lr == 0.5


def test_a_teacher_that_starts_from_weights_is_their_network():
    assert teacher_run("cifar10", None, "laptop", 0, init_from="vgg7_bn.cifar100").model == "vgg7_bn"


@pytest.mark.parametrize("recipe", [student_recipe, teacher_recipe])
def test_an_unknown_preset(recipe):
    with pytest.raises(TITNError, match="unknown preset 'lapto': did you mean 'laptop'"):
        recipe("digits", "lapto")


def test_what_the_paper_reports():
    published = {name: info.published for name, info in DATASETS.items() if info.published}
    assert published == {
        "cifar10": ("CIFAR-10", 92.03, 99.80),
        "cifar100": ("CIFAR-100", 74.71, 92.28),
        "mnist": ("MNIST", 99.56, None),
    }


def test_a_new_data_set_is_one_entry(monkeypatch):
    """Loaded, split, normalized and trained with recipes of its own, by code outside the library."""

    def read_stripes(_: Path) -> tuple[ImageDataset, ImageDataset | None, tuple[str, ...]]:
        labels = torch.arange(200) % 2
        images = torch.zeros(200, 1, 12, 12, dtype=torch.uint8)
        images[labels == 0, :, ::2] = 200
        images[labels == 1, :, :, ::2] = 200
        return ImageDataset(images, labels), None, ("horizontal", "vertical")

    entry = DatasetInfo(
        read_stripes, "stripes", image_size=(16, 16), grayscale=True, small_student="titn_pico",
        student_recipe={"epochs": 2},
    )  # fmt: skip
    monkeypatch.setitem(DATASETS, "stripes", entry)
    data = load_dataset("stripes")
    assert [len(part) for part in (data.train, data.validation, data.test)] == [144, 16, 40]
    assert (data.image_size, data.in_channels, data.classes) == ((16, 16), 1, ("horizontal", "vertical"))
    assert data.mean[0] == pytest.approx(100 / 255, abs=0.01)
    run = make_run("stripes", loss="hard")
    assert (run.data, run.model, run.recipe.epochs, run.recipe.augmentation) == ("stripes", "titn_pico", 2, "shift")
    assert (run.teacher.recipe.epochs, run.teacher.recipe.augmentation) == (24, "shift")
    assert (student_recipe("stripes", "gpu").augmentation, student_recipe("stripes", "gpu").cutmix) == (
        "paper_mnist",
        0,
    )
    assert teacher_recipe("stripes", "gpu").epochs == 30
    with pytest.raises(TITNError, match="did you mean 'stripes'"):
        load_dataset("stripe")


def test_a_mistyped_setting_of_an_entry_is_named(monkeypatch):
    entry = dataclasses.replace(dataset_info("digits"), student_recipe={"epoch": 2})
    monkeypatch.setitem(DATASETS, "mine", entry)
    with pytest.raises(TITNError, match="unknown setting of a recipe 'epoch': did you mean 'epochs'"):
        student_recipe("mine", "laptop")
