"""The training loop: it trains, stops and resumes bit for bit, in one process or two."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import asdict, replace
from itertools import count
from typing import ClassVar

import numpy as np
import pytest
import torch
from lightning_fabric.plugins.environments import MPIEnvironment
from safetensors.torch import load_file

import titn_lib
from titn_lib import TITNError, create_model, load_model, save_model
from titn_lib.data import batches
from titn_lib.data.datasets import add_label_noise, load_dataset, subset
from titn_lib.data.images import ImageDataset
from titn_lib.data.mixing import mix_batch
from titn_lib.data.transforms import Preprocessing, normalize
from titn_lib.errors import RunLocked, TrainingInterrupted
from titn_lib.losses.objective import Objective
from titn_lib.losses.registry import OBJECTIVES
from titn_lib.models.inference import predict
from titn_lib.training import run as run_module
from titn_lib.training import trainer
from titn_lib.training.config import Recipe, Run
from titn_lib.training.distributed import start_fabric
from titn_lib.training.evaluation import evaluate
from titn_lib.training.optim import learning_rate, make_optimizer
from titn_lib.training.recipes import (
    make_run,
)
from titn_lib.training.records import WEIGHTS, load_record, versions
from titn_lib.training.run import train, train_comparison
from titn_lib.training.trainer import CHECKPOINT

QUICK = Recipe(epochs=2, batch_size=16, lr=1e-3, precision="32-true", train_images=128, test_images=64)
STUDENT = Run("digits", "titn_nano", QUICK, model_settings={"depth": 1})
TEACHER = Run("digits", "vgg7_bn", replace(QUICK, optimizer="sgd", lr=0.05, batch_size=32, train_images=256))
DISTILLED = replace(STUDENT, loss="hard", teacher=TEACHER)
STEPS = 8  # an epoch


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Teacher, student alone and distilled student, trained for a few seconds."""
    out = tmp_path_factory.mktemp("finished")
    return out, train_comparison(DISTILLED, out, device="cpu", progress=False)


@pytest.fixture
def steps(monkeypatch):
    """For each step, the objective, its images and its targets."""
    given, forward = [], Objective.forward

    def note(self, images, labels, teacher_output=None):
        given.append((self, images, labels))
        return forward(self, images, labels, teacher_output)

    monkeypatch.setattr(Objective, "forward", note)
    return given


@pytest.fixture
def ticking(monkeypatch):
    """A clock that advances by a second with every call."""
    clock = count()
    monkeypatch.setattr(trainer.time, "monotonic", lambda: float(next(clock)))


def test_three_runs_side_by_side(finished):
    out, records = finished
    assert list(records) == ["teacher", "alone", "distilled"]
    assert records["alone"].run.teacher is None
    assert records["distilled"].run.teacher == records["teacher"].run
    for name, record in records.items():
        assert [point["epoch"] for point in record.history] == [1, 2]
        assert record.test["num_images"] == 64
        assert record == load_record(out / name)
        assert not (out / name / CHECKPOINT).exists()
        model = load_model(out / name / WEIGHTS)
        again = evaluate(model, subset(load_dataset("digits").test, 64, "digits"), model.preprocessing)
        assert again["top1"] == record.test["top1"]
    assert records["teacher"].test["top1"] > 30


def test_what_is_finished_is_loaded_and_not_redone(finished, monkeypatch):
    out, records = finished
    monkeypatch.setattr(run_module, "load_dataset", None)
    assert train_comparison(DISTILLED, out, progress=False) == records


def test_another_run_in_the_same_folder_is_refused(tmp_path, finished):
    """Whether it has finished or was cut off."""
    with pytest.raises(TrainingInterrupted):
        train(STUDENT, tmp_path / "cut", device="cpu", progress=False, max_minutes=0)
    other = replace(STUDENT, seed=1, recipe=replace(QUICK, lr=0.5))
    for folder in (finished[0] / "alone", tmp_path / "cut"):
        with pytest.raises(TITNError, match=rf"{folder.name} holds another run \(seed, lr differ\)"):
            train(other, folder, device="cpu", progress=False)


def test_the_same_run_gives_the_same_weights_and_another_seed_others(tmp_path, finished):
    out, _ = finished
    train(STUDENT, tmp_path / "again", device="cpu", progress=False)
    train(replace(STUDENT, seed=1), tmp_path / "other", device="cpu", progress=False)
    first, again, other = (load_file(f / WEIGHTS) for f in (out / "alone", tmp_path / "again", tmp_path / "other"))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["heads.class_head.1.weight"], other["heads.class_head.1.weight"])


def test_nothing_is_chosen_on_the_test_set(tmp_path, monkeypatch, finished):
    """With every test label wrong, weights, curve and validation stay the same."""
    _, records = finished
    honest = load_dataset("digits")
    wrong = replace(honest, test=ImageDataset(honest.test.images, (honest.test.labels + 1) % 10))
    monkeypatch.setattr(run_module, "load_dataset", lambda *_: wrong)
    record = train(STUDENT, tmp_path, device="cpu", progress=False)
    assert record.test != records["alone"].test
    assert (record.history, record.validation) == (records["alone"].history, records["alone"].validation)


def test_a_large_validation_split_is_sampled_after_each_epoch_and_used_whole_at_the_end(tmp_path, monkeypatch):
    monkeypatch.setattr(trainer, "EPOCH_VAL_IMAGES", 20)
    sizes = []
    for name in ("evaluate", "evaluate_classes"):
        measure = getattr(trainer, name)
        monkeypatch.setattr(trainer, name, lambda *a, f=measure, **more: sizes.append(len(a[1])) or f(*a, **more))
    record = train(STUDENT, tmp_path, device="cpu", progress=False)
    assert sizes == [20, 20, 64, 64]
    assert record.validation["num_images"] == 64
    assert all(round(point["validation_top1"], 3) % 5 == 0 for point in record.history)


def test_the_teacher_has_the_students_images_and_is_not_trained(tmp_path, monkeypatch, finished):
    teachers, students = [], []
    run_teacher, step = trainer.teacher_forward, trainer.Trainer.train_step

    def spy(teacher, images):
        assert not teacher.training
        output = run_teacher(teacher, images)
        teachers.append((images.clone(), output.logits.clone()))
        return output

    forward = Objective.forward

    def note(self, images, labels, teacher_output):
        students.append((images.clone(), teacher_output.logits.clone()))
        return forward(self, images, labels, teacher_output)

    def watched(self, order):
        if self.state.step == 0 and self.state.epoch == 0:
            self.before = {name: value.clone() for name, value in self.teacher.state_dict().items()}
        step(self, order)
        trained = {id(p) for group in self.optimizer.param_groups for p in group["params"]}
        assert not trained & {id(p) for p in self.teacher.parameters()}
        assert all(torch.equal(value, self.before[name]) for name, value in self.teacher.state_dict().items())

    monkeypatch.setattr(trainer, "teacher_forward", spy)
    monkeypatch.setattr(Objective, "forward", note)
    monkeypatch.setattr(trainer.Trainer, "train_step", watched)
    run = replace(DISTILLED, recipe=replace(QUICK, epochs=1, augmentation="crop_flip", cutmix=1.0))
    train(run, tmp_path, teacher_dir=finished[0] / "teacher", device="cpu", progress=False)
    assert len(teachers) == len(students) == 8
    for (teacher_images, logits), (student_images, targets) in zip(teachers, students, strict=True):
        assert torch.equal(teacher_images, student_images)
        assert torch.equal(logits, targets)
    alone, distilled = (load_file(finished[0] / name / WEIGHTS) for name in ("alone", "distilled"))
    assert not torch.equal(alone["heads.class_head.1.weight"], distilled["heads.class_head.1.weight"])


# --- step by step


def test_batches_are_normalized_images_in_an_order_of_seed_and_epoch(tmp_path, steps):
    for seed in (0, 1):
        train(replace(STUDENT, seed=seed), tmp_path / str(seed), device="cpu", progress=False)
    data = load_dataset("digits")
    expected = normalize(subset(data.train, 128, "digits").images, data.mean, data.std)
    there = sorted(image.numpy().tobytes() for image in expected)
    starts = range(0, 4 * STEPS, STEPS)
    epochs = [torch.cat([images for _, images, _ in steps[start : start + STEPS]]) for start in starts]
    for images in epochs:
        assert sorted(image.numpy().tobytes() for image in images) == there
    first, second, another_seeds, _ = epochs
    assert not torch.equal(first, second)
    assert not torch.equal(first, another_seeds)


def test_every_step_of_every_epoch_and_seed_has_its_own_augmentation(tmp_path, monkeypatch):
    draws = []
    monkeypatch.setattr(batches, "augment", lambda images, name, rng: draws.append(rng.random()) or images)
    for seed in (0, 1):
        train(replace(STUDENT, seed=seed), tmp_path / str(seed), device="cpu", progress=False)
    assert len(set(draws)) == 2 * 2 * STEPS


@pytest.mark.parametrize(("alphas", "expected"), [({"cutmix": 0.8}, (0.8, 0.0)), ({"mixup": 0.3}, (0.0, 0.3))])
def test_mixing_is_the_one_of_the_recipe(tmp_path, monkeypatch, alphas, expected):
    seen = []
    monkeypatch.setattr(batches, "mix_batch", lambda *given: seen.append(given[3:]) or mix_batch(*given))
    train(replace(STUDENT, recipe=replace(QUICK, epochs=1, **alphas)), tmp_path, device="cpu", progress=False)
    assert set(seen) == {expected}


def test_the_recipes_settings_reach_the_objective(tmp_path, steps):
    recipe = replace(QUICK, epochs=1, temperature=3.0, feature_weight=0.7, label_smoothing=0.2)
    run = replace(STUDENT, model_settings={"depth": 3}, recipe=recipe)
    run = replace(run, loss="soft+feature", teacher="vgg7_bn.digits")
    train(run, tmp_path, device="cpu", progress=False)
    objective, *_ = steps[0]
    assert (objective.temperature, objective.feature_weight, objective.label_smoothing) == (3.0, 0.7, 0.2)


def test_each_step_has_the_scheduled_learning_rate_and_a_clipped_gradient(tmp_path, monkeypatch):
    rates, lengths = [], []

    def make(*given, **options):
        optimizer = make_optimizer(*given, **options)
        step = optimizer.step

        def watched(*rest, **more):
            weights = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
            rates.append({group["lr"] for group in optimizer.param_groups})
            lengths.append(torch.cat([p.grad.flatten() for p in weights]).norm().item())
            return step(*rest, **more)

        optimizer.step = watched
        return optimizer

    monkeypatch.setattr(trainer, "make_optimizer", make)
    recipe = replace(QUICK, warmup_epochs=0.5, clip_norm=0.01)
    record = train(replace(STUDENT, recipe=recipe), tmp_path, device="cpu", progress=False)
    planned = [learning_rate(recipe, step, STEPS) for step in range(2 * STEPS)]
    assert rates == [{rate} for rate in planned]
    assert [point["lr"] for point in record.history] == [planned[STEPS - 1], planned[-1]]
    assert max(lengths) == pytest.approx(0.01, rel=1e-3)


def test_the_moving_average_is_measured_and_kept(tmp_path, monkeypatch):
    """By hand beside the run: weights and batch normalization's means, a step at a time."""
    decay, average, measured = 0.7, {}, []
    step, measure = trainer.Trainer.train_step, trainer.evaluate

    def watched(self, order):
        step(self, order)
        for name, value in self.network.state_dict().items():
            if value.is_floating_point():
                average[name] = decay * average[name] + (1 - decay) * value if name in average else value.clone()

    def note(network, *rest, **more):
        measured.append({name: value.clone() for name, value in network.state_dict().items()})
        return measure(network, *rest, **more)

    monkeypatch.setattr(trainer.Trainer, "train_step", watched)
    monkeypatch.setattr(trainer, "evaluate", note)
    recipe = replace(QUICK, epochs=1, ema_decay=decay)
    run = replace(STUDENT, model_settings={"depth": 1, "pixel_embedding": "stem"}, recipe=recipe)
    train(run, tmp_path, device="cpu", progress=False)
    for state in (load_file(tmp_path / WEIGHTS), *measured):
        for name, value in average.items():
            torch.testing.assert_close(state[name], value, atol=1e-5, rtol=1e-4, msg=name)


def test_what_is_recorded_can_be_measured_again_whatever_the_precision(tmp_path):
    run = replace(STUDENT, recipe=replace(QUICK, precision="bf16-mixed"))
    record = train(run, tmp_path, device="cpu", progress=False)
    model = load_model(tmp_path / WEIGHTS)
    again = evaluate(model, subset(load_dataset("digits").test, 64, "digits"), model.preprocessing)
    assert again["loss"] == pytest.approx(record.test["loss"], rel=1e-5)


# --- initial weights, objectives, label noise


def test_a_run_starts_from_anothers_weights(tmp_path, finished):
    """With a learning rate of 0 it ends where it started, at the weights of the run before."""
    still = replace(QUICK, epochs=1, lr=0.0, min_lr=0.0)
    train(
        replace(STUDENT, recipe=still, init_from=STUDENT), tmp_path, init_from_dir=finished[0] / "alone", progress=False
    )
    there, here = load_file(finished[0] / "alone" / WEIGHTS), load_file(tmp_path / WEIGHTS)
    assert all(torch.equal(there[name], here[name]) for name in there)
    assert not (tmp_path / "init_from").exists()
    assert Run.from_dict(json.loads(json.dumps(asdict(load_record(tmp_path).run)))).init_from == STUDENT


def test_initial_weights_that_do_not_fit(tmp_path, finished):
    weights = str(finished[0] / "alone" / WEIGHTS)
    wider = replace(STUDENT, model_settings={"depth": 1, "outer_width": 64}, init_from=weights)
    with pytest.raises(TITNError, match=r"the initial weights, of titn_nano, don't fit titn_nano \(.* differs\)"):
        train(wider, tmp_path, device="cpu", progress=False)


class TwoViews(Objective):
    VIEWS = 2
    seen: ClassVar[list] = []

    def forward(self, images, labels, teacher_output=None):
        self.seen.append((images.detach(), labels.a, self.progress))
        return super().forward(images, labels, teacher_output)


def test_an_objective_may_need_two_views(tmp_path, monkeypatch):
    monkeypatch.setitem(OBJECTIVES, "twice", TwoViews)
    run = replace(STUDENT, loss="twice", recipe=replace(QUICK, epochs=1, augmentation="shift"))
    train(run, tmp_path, device="cpu", progress=False)
    assert [progress for *_, progress in TwoViews.seen] == [step / 8 for step in range(8)]
    for images, labels, _ in TwoViews.seen:
        assert len(images) == len(labels) == 32
        assert torch.equal(labels[:16], labels[16:])
        assert not torch.equal(images[:16], images[16:])
    with pytest.raises(TITNError, match="the loss 'twice' can't use mixed images"):
        train(replace(run, recipe=replace(run.recipe, cutmix=1.0)), tmp_path / "mixed", device="cpu", progress=False)


def test_training_accuracy_of_mixed_images_counts_the_dominant_class(tmp_path, monkeypatch):
    weights = []
    forward = Objective.forward

    def always_right(self, images, labels, teacher_output=None):
        loss, logits = forward(self, images, labels, teacher_output)
        weights.append(labels.lam)
        right = labels.a if labels.lam > 0.5 else labels.b
        return loss, torch.nn.functional.one_hot(right, logits.shape[1]).float()

    monkeypatch.setattr(Objective, "forward", always_right)
    run = replace(STUDENT, recipe=replace(QUICK, epochs=1, cutmix=1.0))
    record = train(run, tmp_path, device="cpu", progress=False)
    assert min(weights) < 0.5 < max(weights)
    assert record.history[0]["train_top1"] == 100


def test_label_noise_is_in_the_training_labels_and_nowhere_else(tmp_path, steps):
    clean = subset(load_dataset("digits").train, 128, "digits")
    noisy = add_label_noise(clean, 0.4, 10, seed=0)
    assert int((noisy.labels != clean.labels).sum()) == round(0.4 * 128)
    assert not torch.equal(add_label_noise(clean, 0.4, 10, seed=1).labels, noisy.labels)
    recipe = replace(QUICK, epochs=1, label_noise=0.4)
    record = train(replace(STUDENT, recipe=recipe), tmp_path, device="cpu", progress=False)
    assert torch.equal(torch.cat([labels.a for *_, labels in steps]).bincount(), noisy.labels.bincount())
    model = load_model(tmp_path / WEIGHTS)
    honest = evaluate(model, subset(load_dataset("digits").test, 64, "digits"), model.preprocessing)
    assert honest["top1"] == record.test["top1"]


# --- stopping and resuming

EVERYTHING = replace(
    DISTILLED,
    loss="hard+feature",
    recipe=replace(
        QUICK,
        epochs=5,
        batch_size=32,
        train_images=256,
        ema_decay=0.9,
        cutmix=1.0,
        clip_norm=1.0,
        warmup_epochs=0.5,
        augmentation="crop_flip",
    ),
)
CHILD = """
from titn_lib.training import Recipe, Run, train, trainer
trainer.CHECKPOINT_SECONDS = 0.1
train({run!r}, {out!r}, teacher_dir={teacher!r}, device="cpu", progress=False)
"""


def test_killed_at_a_random_moment_and_resumed_bit_for_bit(tmp_path, monkeypatch, finished):
    """SIGKILL leaves no time to clean up. EMA, feature projections, CutMix and warm-up are all in progress."""
    teacher = finished[0] / "teacher"
    train(EVERYTHING, tmp_path / "whole", teacher_dir=teacher, device="cpu", progress=False)
    out, deadline = tmp_path / "killed", time.monotonic() + 240
    code = CHILD.format(run=EVERYTHING, out=str(out), teacher=str(teacher))
    with subprocess.Popen([sys.executable, "-c", code]) as child:
        while not (out / CHECKPOINT).exists() and child.poll() is None and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(random.uniform(0, 0.1))
        child.kill()
    assert child.returncode != 0, "it ended before"
    resume, began = trainer.Trainer.resume, []

    def note(self):
        resume(self)
        began.append(self.state.epoch * self.steps + self.state.step)

    monkeypatch.setattr(trainer.Trainer, "resume", note)
    train(EVERYTHING, out, teacher_dir=teacher, device="cpu", progress=False)
    assert len(began) == 1
    assert 0 < began[0] < EVERYTHING.recipe.epochs * STEPS, "it resumes where the child was killed"
    whole, resumed = (load_file(folder / WEIGHTS) for folder in (tmp_path / "whole", out))
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    assert load_record(tmp_path / "whole").history == load_record(out).history


def test_a_time_limit_leaves_a_checkpoint(tmp_path):
    with pytest.raises(
        TrainingInterrupted, match="stopped by the time limit in epoch 1 of 2; run the same command to resume from"
    ):
        train(STUDENT, tmp_path, device="cpu", progress=False, max_minutes=0)
    assert [file.name for file in tmp_path.iterdir() if file.name != ".lock"] == [CHECKPOINT]
    train(STUDENT, tmp_path, device="cpu", progress=False)
    assert sorted(file.name for file in tmp_path.iterdir() if file.name != ".lock") == [WEIGHTS, "record.json"]


@pytest.mark.parametrize("run", [STUDENT, TEACHER], ids=["adamw", "sgd, batch normalization"])
def test_stopped_after_every_single_step(tmp_path, run):
    run = replace(run, recipe=replace(run.recipe, batch_size=16, train_images=48, cutmix=1.0, augmentation="shift"))
    train(run, tmp_path / "whole", device="cpu", progress=False)
    sessions = 0
    while sessions < 10:
        sessions += 1
        try:
            train(run, tmp_path / "stopped", device="cpu", progress=False, max_minutes=0)
            break
        except TrainingInterrupted:
            continue
    assert sessions == 7  # two epochs of three steps, and one that finds nothing left to do
    whole, stopped = (load_file(tmp_path / name / WEIGHTS) for name in ("whole", "stopped"))
    assert all(torch.equal(whole[name], stopped[name]) for name in whole)


@pytest.fixture
def ctrl_c():
    """SIGINT as in a terminal, also where the tests run in the background (`nohup … &`) and ignore it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("ctrl_c")
def test_ctrl_c_during_the_last_evaluation_does_not_get_lost(tmp_path, monkeypatch):
    measure = trainer.evaluate

    def interrupted(*arguments, **options):
        os.kill(os.getpid(), signal.SIGINT)
        return measure(*arguments, **options)

    monkeypatch.setattr(trainer, "evaluate", interrupted)
    once = replace(STUDENT, recipe=replace(QUICK, epochs=1))
    with pytest.raises((TrainingInterrupted, KeyboardInterrupt)):
        train(once, tmp_path, device="cpu", progress=False)


@pytest.mark.usefixtures("ctrl_c")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_ends_between_two_steps(tmp_path, monkeypatch, number):
    step, before = trainer.Trainer.train_step, signal.getsignal(number)

    def interrupted(self, order):
        step(self, order)
        if self.state.step == 2:
            os.kill(os.getpid(), number)

    monkeypatch.setattr(trainer.Trainer, "train_step", interrupted)
    with pytest.raises(TrainingInterrupted, match=f"stopped by {number.name}"):
        train(STUDENT, tmp_path, device="cpu", progress=False)
    assert (tmp_path / CHECKPOINT).exists()
    assert signal.getsignal(number) is before


@pytest.mark.usefixtures("ctrl_c")
def test_a_second_ctrl_c_interrupts_at_once(tmp_path, monkeypatch):
    step = trainer.Trainer.train_step

    def interrupted(self, order):
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGINT)
        step(self, order)

    monkeypatch.setattr(trainer.Trainer, "train_step", interrupted)
    with pytest.raises(KeyboardInterrupt) as caught:
        train(STUDENT, tmp_path, device="cpu", progress=False)
    assert caught.type is KeyboardInterrupt  # not TrainingInterrupted, which comes between two steps


@pytest.mark.usefixtures("ctrl_c")
def test_an_ignored_ctrl_c_stays_ignored(tmp_path, monkeypatch):
    """Training in the background of a script goes on when the script is interrupted."""
    step = trainer.Trainer.train_step

    def interrupted(self, order):
        step(self, order)
        os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(trainer.Trainer, "train_step", interrupted)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    train(replace(STUDENT, recipe=replace(QUICK, epochs=1, train_images=32)), tmp_path, device="cpu", progress=False)
    assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN


def test_no_record_without_weights(tmp_path, monkeypatch):
    """A record says that the run has finished: whatever cuts off the end, the weights must be there before it."""

    def cut_off(*_, **__):
        raise KeyboardInterrupt

    short = replace(STUDENT, recipe=replace(QUICK, epochs=1, train_images=32))
    for name in ("save_model", "save_record"):
        with monkeypatch.context() as patch:
            patch.setattr(trainer, name, cut_off)
            with pytest.raises(KeyboardInterrupt):
                train(short, tmp_path, device="cpu", progress=False)
        assert not (tmp_path / "record.json").exists()
    train(short, tmp_path, device="cpu", progress=False)
    assert (tmp_path / WEIGHTS).exists()


def test_a_time_limit_is_for_all_that_the_run_needs(tmp_path, monkeypatch, ticking):
    left, fit = [], trainer.Trainer.fit

    def note(self, deadline, progress):
        left.append(deadline.minutes_left)
        return fit(self, deadline, progress)

    monkeypatch.setattr(trainer.Trainer, "fit", note)
    short = replace(QUICK, epochs=1, train_images=32)
    run = replace(DISTILLED, recipe=short, teacher=replace(TEACHER, recipe=short))
    train_comparison(run, tmp_path, device="cpu", progress=False, max_minutes=1000)
    teacher, distilled, alone = left
    assert 1000 > teacher > distilled > alone


def test_seconds_add_up_over_sessions(tmp_path, ticking):
    whole = train(STUDENT, tmp_path / "whole", device="cpu", progress=False)
    with pytest.raises(TrainingInterrupted):
        train(STUDENT, tmp_path / "cut", device="cpu", progress=False, max_minutes=0.5)
    assert torch.load(tmp_path / "cut" / CHECKPOINT)["progress"]["seconds"] > 10
    done = train(STUDENT, tmp_path / "cut", device="cpu", progress=False)
    assert done.seconds == pytest.approx(whole.seconds, abs=6)
    assert done.images_per_second == whole.images_per_second == 16  # a second per step: evaluation does not count


def test_two_processes_follow_one(tmp_path):
    """Twenty steps with the same global batch; gloo, on the CPU."""
    recipe = replace(
        QUICK, optimizer="sgd", lr=0.05, augmentation="shift", cutmix=1.0, train_images=160, test_images=50
    )
    run = replace(STUDENT, recipe=recipe)
    script = tmp_path / "go.py"
    script.write_text(
        "from titn_lib.training import Recipe, Run, train\n"
        f"train({run!r}, {str(tmp_path / 'two')!r}, device='cpu', progress=False)\n"
    )
    # Over the loopback, whatever the machine's name resolves to; a lost connection starts them anew.
    two = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--local-addr=127.0.0.1"]
    two += ["--nproc-per-node=2", "--max-restarts=2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    if sys.platform == "linux":
        environment["GLOO_SOCKET_IFNAME"] = "lo"
    train(run, tmp_path / "one", device="cpu", progress=False)
    subprocess.run([*two, script], check=True, env=environment)
    one, both = load_file(tmp_path / "one" / WEIGHTS), load_file(tmp_path / "two" / WEIGHTS)
    assert max((one[name] - both[name]).abs().max().item() for name in one) <= 1e-5
    records = [load_record(tmp_path / name) for name in ("one", "two")]
    assert [record.hardware["processes"] for record in records] == [1, 2]
    assert records[0].test["top1"] == records[1].test["top1"]


def test_a_broken_mpi_does_not_matter_to_one_process(monkeypatch):
    """mpi4py without its library raises RuntimeError when Fabric looks for other processes."""

    def detect():
        raise RuntimeError("cannot load MPI library")

    monkeypatch.setattr(MPIEnvironment, "detect", staticmethod(detect))
    assert start_fabric("32-true", "cpu").world_size == 1


def test_a_record_names_the_code_that_made_it(monkeypatch, tmp_path):
    def git(*words):
        return subprocess.run(
            ["git", "-C", tmp_path, *words], check=True, capture_output=True, text=True
        ).stdout.strip()

    git("init")
    git("-c", "user.name=a", "-c", "user.email=a@b", "commit", "--allow-empty", "--message", "first")
    monkeypatch.setattr("titn_lib.training.records.repo_root", lambda: tmp_path)
    assert versions()["titn-lib"].endswith("+" + git("rev-parse", "--short", "HEAD"))
    monkeypatch.setattr("titn_lib.training.records.repo_root", lambda: None)  # installed: the version says it all
    assert versions()["titn-lib"] == titn_lib.__version__  # also where it was copied and not installed


def test_two_processes_do_not_make_one_run(tmp_path):
    """The other one holds the folder until its standard input ends."""
    code = (
        f"import sys; from titn_lib.io import lock_dir\nwith lock_dir(__import__('pathlib').Path({str(tmp_path)!r})):"
    )
    code += " print('in', flush=True); sys.stdin.read()"
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout.readline() == b"in\n"
        with pytest.raises(RunLocked, match="another process is training in"):
            train(STUDENT, tmp_path, device="cpu", progress=False, max_minutes=0)
        assert not (tmp_path / CHECKPOINT).exists()
        other.communicate()
    with pytest.raises(TrainingInterrupted):
        train(STUDENT, tmp_path, device="cpu", progress=False, max_minutes=0)


def test_a_disk_without_locks(tmp_path, monkeypatch):
    def none(*_, **__):
        raise NotImplementedError("no flock here")

    monkeypatch.setattr("filelock.FileLock.acquire", none)
    with pytest.raises(TrainingInterrupted):
        train(STUDENT, tmp_path, device="cpu", progress=False, max_minutes=0)


# --- what doesn't fit


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"batch_size": 300}, "can't train with a batch of 300 on the 128 training images of digits"),
        ({"lr": 1e30, "optimizer": "sgd"}, "training diverged in epoch 1"),
    ],
)
def test_recipes_that_do_not_work(tmp_path, change, says):
    with pytest.raises(TITNError, match=says):
        train(replace(STUDENT, recipe=replace(QUICK, **change)), tmp_path, device="cpu", progress=False)


def test_a_batch_that_does_not_fit_in_memory(tmp_path, monkeypatch):
    def full(*_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(trainer.Trainer, "train_step", full)
    with pytest.raises(TITNError, match=r"a batch of 16 images doesn't fit in memory .*--batch-size"):
        train(STUDENT, tmp_path, device="cpu", progress=False)


def test_teachers_that_do_not_fit(tmp_path, finished):
    student = replace(STUDENT, loss="hard", teacher=str(finished[0] / "alone" / WEIGHTS))
    with pytest.raises(TITNError, match="titn_nano is a student, not a teacher"):
        train(student, tmp_path, device="cpu", progress=False)
    save_model(create_model("vgg7_bn", num_classes=3), tmp_path / "t.safetensors")
    with pytest.raises(TITNError, match="the teacher was made for num_classes=3, and digits needs num_classes=10"):
        train(replace(student, teacher=str(tmp_path / "t.safetensors")), tmp_path, device="cpu", progress=False)


def test_a_teacher_of_other_classes_is_refused(tmp_path):
    teacher, path = load_model("vgg7_bn.digits"), tmp_path / "t.safetensors"
    save_model(teacher, path, replace(teacher.preprocessing, classes=tuple("abcdefghij")))
    with pytest.raises(TITNError, match="the teacher was trained on digits, with other classes than digits"):
        train(replace(STUDENT, loss="hard", teacher=str(path)), tmp_path, device="cpu", progress=False)


def test_a_damaged_checkpoint(tmp_path):
    with pytest.raises(TrainingInterrupted):
        train(STUDENT, tmp_path, device="cpu", progress=False, max_minutes=0)
    whole = (tmp_path / CHECKPOINT).read_bytes()
    for content in (b"", b"nonsense", whole[: len(whole) // 2]):
        (tmp_path / CHECKPOINT).write_bytes(content)
        with pytest.raises(TITNError, match=r"checkpoint .*checkpoint\.pt is damaged: delete it"):
            train(STUDENT, tmp_path, device="cpu", progress=False)
    (tmp_path / CHECKPOINT).write_bytes(whole)
    state = torch.load(tmp_path / CHECKPOINT)
    state["objective"].popitem()
    torch.save(state, tmp_path / CHECKPOINT)
    with pytest.raises(TITNError, match=r"checkpoint .*checkpoint\.pt doesn't fit this run"):
        train(STUDENT, tmp_path, device="cpu", progress=False)


def test_a_disk_that_fills_up_keeps_the_last_checkpoint(tmp_path, monkeypatch):
    with pytest.raises(TrainingInterrupted):
        train(STUDENT, tmp_path, device="cpu", progress=False, max_minutes=0)
    before = (tmp_path / CHECKPOINT).read_bytes()
    (tmp_path / f"{CHECKPOINT}.{os.getpid()}.part").symlink_to("/dev/full")
    monkeypatch.setattr(trainer, "CHECKPOINT_SECONDS", 0)
    with pytest.raises(TITNError, match=r"cannot write .*checkpoint.pt: the disk is full"):
        train(STUDENT, tmp_path, device="cpu", progress=False)
    assert [file.name for file in tmp_path.iterdir() if file.name != ".lock"] == [CHECKPOINT]
    assert (tmp_path / CHECKPOINT).read_bytes() == before


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(TITNError, match="part of that path is a file"):
        train(STUDENT, tmp_path / "file" / "out")


def test_a_folder_without_permission(tmp_path, monkeypatch):
    """Root may write anywhere, so the system's reply is simulated."""
    monkeypatch.setattr("os.access", lambda *_: False)
    with pytest.raises(TITNError, match="no permission: choose another folder"):
        train(STUDENT, tmp_path / "out")


# --- small parts


def test_learning_rate_warms_up_and_follows_a_cosine():
    recipe = Recipe(epochs=10, lr=0.1, min_lr=0.001, warmup_epochs=2)
    rates = [learning_rate(recipe, step, 10) for step in range(100)]
    np.testing.assert_allclose(rates[:20], np.linspace(0.005, 0.1, 20))
    theirs = torch.optim.lr_scheduler.CosineAnnealingLR(
        torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1), T_max=79, eta_min=0.001
    )
    for rate in rates[20:]:
        assert rate == pytest.approx(theirs.get_last_lr()[0], rel=1e-6)
        theirs.optimizer.step()
        theirs.step()


def test_sgd_has_momentum_and_decays_all():
    model = torch.nn.Linear(2, 1)
    optimizer = make_optimizer(model, Recipe(optimizer="sgd", lr=1.0, weight_decay=0.5))
    weights = [p.detach().clone() for p in model.parameters()]
    moved = [torch.zeros_like(weight) for weight in weights]
    for _ in range(3):
        optimizer.zero_grad()
        model(torch.ones(1, 2)).sum().backward()  # a slope of 1
        optimizer.step()
        moved = [0.9 * m + 1 + 0.5 * w for m, w in zip(moved, weights, strict=True)]
        weights = [w - m for m, w in zip(moved, weights, strict=True)]
    torch.testing.assert_close([p.detach() for p in model.parameters()], weights)


def test_adamw_decays_matrices_and_no_embedding():
    model = create_model("titn_nano", depth=1)
    decayed, others = make_optimizer(model, Recipe(weight_decay=0.05)).param_groups
    matrices = {id(m.weight) for m in model.modules() if isinstance(m, (torch.nn.Linear, torch.nn.Conv2d))}
    matrices.add(id(model.patch_embedding.projection.norm.weight))  # over all pixels of a patch
    assert {id(p) for p in decayed["params"]} == matrices
    assert (decayed["weight_decay"], others["weight_decay"]) == (0.05, 0.0)


def test_evaluate_counts_by_hand():
    class Echo(torch.nn.Module):
        """Ranks class k first for an image of gray level k, then k + 1, k + 2 …"""

        def __init__(self):
            super().__init__()
            self.unused = torch.nn.Parameter(torch.zeros(1))

        def forward(self, images):
            k = (images[:, 0, 0, 0] * 255).round().long()
            return torch.stack([-((torch.arange(10) - i) % 10).float() for i in k])

    images = torch.arange(10, dtype=torch.uint8)[:, None, None, None].expand(10, 1, 2, 2)
    labels = (torch.arange(10) + torch.tensor([0, 0, 0, 1, 1, 4, 4, 5, 6, 9])) % 10  # the rank of the true class
    network, about = Echo(), Preprocessing("x", tuple("0123456789"), (0.0,), (1.0,))
    result = evaluate(network, ImageDataset(images, labels), about)
    assert (result["top1"], result["top5"], result["num_images"]) == (pytest.approx(30), pytest.approx(70), 10)
    expected = torch.nn.functional.cross_entropy(predict(network, images, about), labels).item()
    assert result["loss"] == pytest.approx(expected)


def test_predict_checks_its_images_and_leaves_the_network_as_it_was():
    network = create_model("titn_mini", depth=1)
    about = Preprocessing("x", tuple("0123456789"), (0.5,) * 3, (0.25,) * 3)
    images = torch.randint(0, 256, (5, 3, 32, 32), dtype=torch.uint8)
    for wrong, says in [
        (images / 255, "expects uint8 images"),
        (images[0], "a batch with images"),
        (images[:, :1], "expects images × 3 channels"),
        (images[:, :, :8], "titn_mini expects batches of 3×32×32"),
    ]:
        with pytest.raises(TITNError, match=says):
            predict(network, wrong, about)
    with pytest.raises(TITNError, match="pass a Preprocessing"):
        predict(network, images)
    network.train().pixel_embedding.eval()  # frozen batch normalization
    with pytest.raises(TITNError):
        predict(network, images[:, :, :8], about)
    assert [network.training, network.pixel_embedding.training] == [True, False]
    logits = predict(network, images, about)
    assert [network.training, network.pixel_embedding.training] == [True, False]
    torch.testing.assert_close(predict(network, images, about, batch_size=2), logits, atol=1e-5, rtol=1e-4)
    assert predict(network, images[:0], about).shape == (0, 10)
    half = predict(network.bfloat16(), images, about)
    assert (half.dtype, half.shape) == (torch.float32, logits.shape)


def test_predict_leaves_a_compiled_network_compiled():
    calls, linear = [], torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, 2))
    linear.compile(backend=lambda graph, _: lambda *inputs: calls.append(1) or graph(*inputs))
    images, about = torch.zeros(1, 3, 2, 2, dtype=torch.uint8), Preprocessing("x", ("a", "b"), (0.5,) * 3, (0.25,) * 3)
    predict(linear, images, about)
    assert calls == [1]
    evaluate(linear, ImageDataset(images, torch.tensor([0])), about)
    assert calls == [1], "an evaluation doesn't compile for its own sizes"


def test_large_images_are_evaluated_in_small_batches():
    network, sizes = create_model("titn_nano", depth=1, image_size=64), []
    network.register_forward_pre_hook(lambda _, inputs: sizes.append(len(inputs[0])))
    about = Preprocessing("x", tuple("0123456789"), (0.5,) * 3, (0.25,) * 3)
    predict(network, torch.zeros(130, 3, 64, 64, dtype=torch.uint8), about)
    assert sizes == [125, 5]


def test_a_student_that_does_not_fit_is_noticed_before_its_teacher_is_trained(tmp_path):
    for changes, says in [
        ({"image_size": (18, 18)}, "can't be cut into patches of 4"),
        ({"model": "cmt_nano", "loss": "feature"}, "cmt_nano has no patch tokens for the loss 'feature'"),
    ]:
        run = make_run("digits", **{"preset": "smoke", **changes})
        with pytest.raises(TITNError, match=says):
            train_comparison(run, tmp_path, device="cpu", progress=False)
        assert not (tmp_path / "teacher").exists()
