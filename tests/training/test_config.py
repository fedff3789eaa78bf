"""Settings of runs and recipes: what the presets give, and what is refused."""

import math
from dataclasses import asdict

import pytest

from titn_lib import TITNError
from titn_lib.training.config import Recipe, Run
from titn_lib.training.recipes import (
    RECIPE_PRESETS,
    make_run,
    published_recipe,
    published_teacher_recipe,
    teacher_recipe,
)


def test_a_recipe_from_the_preset():
    run = make_run(data="cifar100", model="titn_paper", preset="gpu")
    assert (run.recipe.epochs, run.recipe.batch_size, run.recipe.lr, run.recipe.cutmix) == (600, 1024, 0.1, 1.0)
    assert run.teacher.model == "vgg16_bn"
    assert make_run(seed=3).seed == make_run(seed=3).teacher.seed == 3
    assert Run.from_dict(asdict(run)) == run
    assert make_run("digits", teacher="vgg7_bn.digits").teacher == "vgg7_bn.digits"
    assert make_run("digits", model_settings={"depth": 2}).model_settings == {"depth": 2}
    with pytest.raises(TITNError, match="unknown preset 'huge'"):
        make_run(preset="huge")
    with pytest.raises(TITNError, match="did you mean 'epochs'"):
        make_run(epoch=3)
    with pytest.raises(
        TITNError, match=r"vgg7_bn is a teacher: choose a student, or use teacher_run \(titn train-teacher\)"
    ):
        make_run(model="vgg7_bn")
    for changes, says in [
        ({"batch_size": 0}, "batch_size must be at least 1"),
        ({"lr": -1.0}, "lr must be at least 0"),
        ({"ema_decay": 1.5}, "ema_decay must be below 1"),
        ({"seed": -1}, "seed must be at least 0"),
        ({"image_size": (0, 8)}, "image_size must be a height and a width, or one number for both, of 1 or more"),
        ({"lr": math.nan}, "lr must be finite, not nan"),
        ({"temperature": 0.0}, "temperature must be greater than 0"),
        ({"loss": "cross_entropy", "teacher": "vgg7_bn"}, "the loss 'cross_entropy' needs no teacher"),
    ]:
        with pytest.raises(TITNError, match=says):
            make_run(**changes)
    with pytest.raises(TITNError, match=r"image_size must be a height and a width, .* not \(0, 8\)"):
        Run("digits", "titn_nano", recipe=Recipe(), image_size=(0, 8))


@pytest.mark.parametrize("data", ["mnist", "cifar10", "cifar100"])
def test_the_published_recipe(data):
    recipe = published_recipe(data)
    assert (recipe.epochs, recipe.batch_size, recipe.optimizer) == (600 if data == "cifar100" else 350, 1024, "sgd")
    assert (recipe.lr, recipe.min_lr, recipe.weight_decay, recipe.warmup_epochs) == (0.1, 1e-6, 1e-4, 0)
    assert (recipe.augmentation, recipe.cutmix) == (("paper_mnist", 0) if data == "mnist" else ("paper_cifar", 1))


@pytest.mark.parametrize("data", ["mnist", "cifar10", "cifar100"])
def test_the_gpu_teacher_has_the_batches_of_the_published_students(data):
    recipe, students = teacher_recipe(data, "gpu"), published_recipe(data)
    assert recipe == published_teacher_recipe(data)
    for name in ("batch_size", "optimizer", "lr", "warmup_epochs", "label_smoothing", "augmentation", "cutmix"):
        assert getattr(recipe, name) == getattr(students, name), name
    assert recipe.cutmix == (0 if data == "mnist" else 1)


def test_our_own_teachers_have_label_smoothing():
    for data in ("digits", "mnist", "cifar10"):
        assert {teacher_recipe(data, preset).label_smoothing for preset in RECIPE_PRESETS if preset != "gpu"} == {0.1}


def test_a_number_that_is_a_text():
    for name, value in (("epochs", "3"), ("batch_size", None), ("cutmix", None)):
        recipe = Recipe()
        object.__setattr__(recipe, name, value)
        with pytest.raises(TITNError, match=f"{name} must be a number, not {value!r}"):
            recipe.__post_init__()
    recipe = Recipe()
    object.__setattr__(recipe, "lr", "fast")  # the tests' type checker would refuse it in the constructor
    with pytest.raises(TITNError, match="lr must be a number"):
        recipe.__post_init__()
    recipe = Recipe()
    object.__setattr__(recipe, "epochs", 2.5)
    with pytest.raises(TITNError, match=r"epochs must be a whole number, not 2\.5"):
        recipe.__post_init__()


def test_a_smaller_batch_is_smaller_for_the_teacher_too():
    run = make_run(batch_size=8)
    assert (run.recipe.batch_size, run.teacher.recipe.batch_size) == (8, 8)
    run = make_run("cifar10", batch_size=32)  # by the same factor
    assert (run.recipe.batch_size, run.teacher.recipe.batch_size) == (32, 128)
    run = make_run("cifar10", batch_size=256)
    assert (run.recipe.batch_size, run.teacher.recipe.batch_size) == (256, 512)
    run = make_run("mnist")
    assert (run.model, run.recipe.batch_size, run.teacher.recipe.batch_size) == ("titn_pico", 64, 128)


def test_a_model_for_large_images_has_large_images():
    assert make_run(data="cifar10", model="titn_paper_224").teacher.image_size == (224, 224)
    assert make_run(data="cifar10").image_size is None


def test_a_folder_is_the_same_from_anywhere(tmp_path, monkeypatch):
    (tmp_path / "images").mkdir()
    monkeypatch.chdir(tmp_path)
    assert make_run("images") == make_run("images/") == make_run(str(tmp_path / "images"))
