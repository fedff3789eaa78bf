"""Runs on own images: changed files, one reading for all runs, classes of unequal sizes, splits of one's own."""

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from titn_lib import TITNError, load_model, save_model
from titn_lib.__main__ import main
from titn_lib.data import reading
from titn_lib.data.datasets import load_dataset
from titn_lib.data.images import ImageDataset
from titn_lib.data.mixing import MixedTargets
from titn_lib.data.transforms import Preprocessing
from titn_lib.errors import TrainingInterrupted
from titn_lib.losses.distillation import distillation_loss, mixed_cross_entropy
from titn_lib.losses.objective import Objective
from titn_lib.models.weights import PRETRAINED_DIR
from titn_lib.training.config import Recipe, Run
from titn_lib.training.evaluation import evaluate_classes, images_to_measure, recall
from titn_lib.training.recipes import make_run
from titn_lib.training.records import RECORD, WEIGHTS, load_record, table
from titn_lib.training.run import train, train_comparison

QUICK = Recipe(epochs=1, batch_size=16, lr=1e-3, precision="32-true")
OPTIONS = {"device": "cpu", "progress": False}


def fill(folder, count, gray):
    folder.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(gray).integers(0, 40, (count, 16, 16))
    for i, values in enumerate(noise):
        Image.fromarray((values + gray).astype(np.uint8)).save(folder / f"{i:03}.png")


@pytest.fixture
def pets(tmp_path):
    for gray, kind in ((20, "round"), (160, "square")):
        fill(tmp_path / "pets" / kind, 24, gray)
    return tmp_path / "pets"


@pytest.fixture
def run(pets):
    return Run(str(pets), "titn_nano", QUICK, image_size=(16, 16), model_settings={"depth": 1})


@pytest.fixture
def read(monkeypatch):
    """The files that are read."""
    files, original = [], reading.read_image
    monkeypatch.setattr(reading, "read_image", lambda file, *rest: files.append(file) or original(file, *rest))
    return files


def test_images_that_changed_are_noticed(tmp_path, pets, run):
    record = train(run, tmp_path / "run", **OPTIONS)
    assert record.data["images"] == {"round": 24, "square": 24}
    assert load_record(tmp_path / "run") == record == train(run, tmp_path / "run", **OPTIONS)
    fill(pets / "third", 20, 90)
    (pets / "round" / "000.png").unlink()
    with pytest.raises(
        TITNError, match=r"\(round has 23 images and had 24, third has 20 images and had 0\): choose"
    ) as e:
        train(run, tmp_path / "run", **OPTIONS)
    assert f"or delete {tmp_path / 'run'} to start anew" in str(e.value)
    shutil.rmtree(pets / "third")
    shutil.copy(pets / "round" / "001.png", pets / "round" / "999.png")
    with pytest.raises(TITNError, match="files were renamed or replaced"):
        train(run, tmp_path / "run", **OPTIONS)
    shutil.rmtree(pets)
    assert train(run, tmp_path / "run", **OPTIONS) == record  # the images may be gone


def test_results_do_not_lie_among_the_images(tmp_path, pets, run, capsys):
    comparison = replace(run, loss="hard", teacher=Run(run.data, "vgg7_bn", QUICK, image_size=(16, 16)))
    for work in (lambda: train(run, pets / "out"), lambda: train_comparison(comparison, pets / "runs" / "out")):
        with pytest.raises(TITNError, match=r"would lie among the images of .*pets: choose a place outside"):
            work()
    train(run, tmp_path / "run", **OPTIONS)
    before = (pets / "round" / "000.png").read_bytes()
    table = tmp_path / "table.csv"
    table.write_text(
        "file,label\n" + "".join(f"pets/{kind}/{i:03}.png,{kind}\n" for kind in ("round", "square") for i in range(9))
    )
    cases = [(given, pets / "round" / "000.png") for given in (("--data", pets), (), ("--data", table))]
    for given, target in [*cases, ((), tmp_path / "run" / RECORD)]:
        arguments = (*given, "--confusion", target, "--device", "cpu")
        assert main(["evaluate", str(tmp_path / "run" / WEIGHTS), *map(str, arguments)]) == 1
        error = capsys.readouterr().err
        assert "among the images" in error or "is an input" in error
    assert (pets / "round" / "000.png").read_bytes() == before
    assert sorted(file.name for file in pets.iterdir()) == ["round", "square"]


def test_a_folder_with_the_name_of_the_data_is_no_folder_of_images(tmp_path, pets, monkeypatch):
    monkeypatch.chdir(tmp_path)
    digits = Run("digits", "titn_nano", replace(QUICK, train_images=32, test_images=32), model_settings={"depth": 1})
    data = load_dataset(str(pets), 16)
    mine = Run("mine", "titn_nano", QUICK, image_size=(16, 16), model_settings={"depth": 1})
    for _ in range(2):
        train(digits, "digits", **OPTIONS)
        train(mine, "mine", **OPTIONS, data=data)


def test_a_teacher_file_that_changed_is_noticed(tmp_path, pets, run, monkeypatch):
    """In a finished run, in an interrupted one, and from another folder."""
    teacher = Run(run.data, "vgg7_bn", QUICK, image_size=(16, 16))
    for seed in (0, 1):
        train(replace(teacher, seed=seed), tmp_path / f"teacher{seed}", **OPTIONS)
    shutil.copy(tmp_path / "teacher0" / WEIGHTS, tmp_path / "mine.safetensors")
    monkeypatch.chdir(tmp_path)
    settings = {"model": "titn_nano", "loss": "hard", "image_size": 16, "model_settings": {"depth": 1}, "epochs": 1}
    taught = make_run(run.data, teacher="mine.safetensors", batch_size=16, **settings)
    monkeypatch.chdir(pets)
    assert taught == make_run(run.data, teacher="../mine.safetensors", batch_size=16, **settings)
    record = train(taught, tmp_path / "run", **OPTIONS)
    with pytest.raises(TrainingInterrupted):
        train(taught, tmp_path / "begun", **OPTIONS, max_minutes=0)
    assert train(taught, tmp_path / "run", **OPTIONS) == record
    shutil.copy(tmp_path / "teacher1" / WEIGHTS, tmp_path / "mine.safetensors")
    for out in ("run", "begun"):
        with pytest.raises(TITNError, match=r"the weights file .*mine.safetensors has changed since the run in"):
            train(taught, tmp_path / out, **OPTIONS)
    (tmp_path / "mine.safetensors").unlink()
    assert train(taught, tmp_path / "run", **OPTIONS) == record  # it may be gone


@pytest.mark.parametrize("left", [None, b"x", 1000])
def test_a_finished_run_without_its_weights_says_so(tmp_path, pets, run, left):
    train(run, tmp_path / "run", **OPTIONS)
    weights = tmp_path / "run" / WEIGHTS
    whole = weights.read_bytes()
    weights.unlink()
    if left:
        weights.write_bytes(left if isinstance(left, bytes) else whole[:left])
    with pytest.raises(
        TITNError, match=r"its model.safetensors is missing or can't be read: delete .*record.json to train"
    ):
        train(run, tmp_path / "run", **OPTIONS)


@pytest.mark.parametrize(
    "changes", [{"test": {}}, {"test": None}, {"recall": [1, 2]}, {"seconds": "fast"}, {"data": {"x": 1}}], ids=str
)
def test_an_edited_record_is_refused_in_one_sentence(tmp_path, pets, run, changes):
    train(run, tmp_path / "run", **OPTIONS)
    record = tmp_path / "run" / RECORD
    record.write_text(json.dumps(json.loads(record.read_text()) | changes))
    with pytest.raises(TITNError, match=r"record.json is not a record of titn_lib or is damaged"):
        train(run, tmp_path / "run", **OPTIONS)


def test_a_student_that_does_not_fit_is_found_before_its_teacher_is_trained(tmp_path, pets, run):
    comparison = replace(run, loss="hard", teacher=Run(run.data, "vgg7_bn", QUICK, image_size=(16, 16)))
    large = replace(comparison, recipe=replace(QUICK, batch_size=1000))
    other = replace(comparison, init_from="titn_mini.cifar10")
    for wrong, says in ((large, "titn_nano can't train with a batch of 1000 on the"), (other, "the initial weights")):
        with pytest.raises(TITNError, match=says):
            train_comparison(wrong, tmp_path / "out", **OPTIONS)
        assert not (tmp_path / "out" / "teacher").exists()


def test_images_that_changed_are_noticed_when_resuming(tmp_path, pets, run):
    with pytest.raises(TrainingInterrupted):
        train(run, tmp_path / "run", **OPTIONS, max_minutes=0)
    fill(pets / "round", 25, 20)
    with pytest.raises(TITNError, match="round has 25 images and had 24"):
        train(run, tmp_path / "run", **OPTIONS)
    (pets / "round" / "024.png").unlink()
    assert train(run, tmp_path / "run", **OPTIONS).test["num_images"] == 10


def test_all_runs_of_a_comparison_are_named_at_once_when_images_changed(tmp_path, pets, run):
    comparison = replace(run, loss="hard", teacher=Run(run.data, "vgg7_bn", QUICK, image_size=(16, 16)))
    train_comparison(comparison, tmp_path / "out", **OPTIONS)
    fill(pets / "round", 25, 20)
    with pytest.raises(TITNError, match="round has 25 images and had 24") as problem:
        train_comparison(comparison, tmp_path / "out", **OPTIONS)
    assert str(problem.value).endswith(f"or delete {tmp_path / 'out'} to start anew there")
    elsewhere = str(shutil.copytree(pets, tmp_path / "other"))
    other = replace(comparison, data=elsewhere, teacher=replace(comparison.teacher, data=elsewhere))
    with pytest.raises(TITNError, match=r"holds another run \(data, .*differ"):
        train_comparison(other, tmp_path / "out", **OPTIONS)
    with pytest.raises(TITNError, match=r"is a folder: name .* such as \S*alone\S*model.safetensors or \S*distilled"):
        load_model(tmp_path / "out")


def test_images_that_changed_are_named_before_the_recipe_that_follows_from_them(tmp_path, pets):
    small = make_run(str(pets), "titn_pico", loss="cross_entropy", image_size=16)
    with pytest.raises(TrainingInterrupted):
        train(small, tmp_path / "run", **OPTIONS, max_minutes=0)
    fill(pets / "round", 200, 20)
    more = make_run(str(pets), "titn_pico", loss="cross_entropy", image_size=16)
    assert more.recipe.epochs < small.recipe.epochs
    with pytest.raises(TITNError, match="round has 200 images and had 24"):
        train(more, tmp_path / "run", **OPTIONS)
    elsewhere = replace(small, data=str(shutil.copytree(pets, tmp_path / "other")))
    with pytest.raises(TITNError, match=r"holds another run \(data differ"):
        train(elsewhere, tmp_path / "run", **OPTIONS)


def test_records_and_checkpoints_from_before_have_no_fingerprint(tmp_path, pets, run):
    with pytest.raises(TrainingInterrupted):
        train(run, tmp_path / "run", **OPTIONS, max_minutes=0)
    state = torch.load(tmp_path / "run" / "checkpoint.pt", weights_only=True)
    del state["data"]
    torch.save(state, tmp_path / "run" / "checkpoint.pt")
    fill(pets / "round", 25, 20)
    train(run, tmp_path / "run", **OPTIONS)
    text = (tmp_path / "run" / "record.json").read_text()
    assert '"data": {' in text
    values = json.loads(text)
    del values["data"], values["recall"]
    (tmp_path / "run" / "record.json").write_text(json.dumps(values))
    fill(pets / "round", 26, 20)
    assert train(run, tmp_path / "run", **OPTIONS).data is None


def test_three_runs_read_every_image_once(tmp_path, run, read):
    teacher = Run(run.data, "vgg7_bn", QUICK, image_size=(16, 16))
    records = train_comparison(replace(run, loss="hard", teacher=teacher), tmp_path / "out", **OPTIONS)
    assert len(records) == 3
    assert len(read) == len(set(read)) == 48
    train_comparison(replace(run, loss="hard", teacher=teacher), tmp_path / "out", **OPTIONS)
    assert len(read) == 48  # finished: not one


def test_damaged_images_are_skipped_on_request(tmp_path, pets, run):
    (pets / "round" / "x.png").write_bytes(b"nonsense")
    with pytest.raises(TITNError, match="--skip-damaged"):
        train(run, tmp_path / "run", **OPTIONS)
    assert train(run, tmp_path / "run", **OPTIONS, skip_damaged=True).data["images"]["round"] == 25
    assert train(run, tmp_path / "run", **OPTIONS).finished  # only loaded


def test_a_one_channel_model_reads_the_folder_in_grayscale(tmp_path, run):
    gray = replace(run, model_settings={"depth": 1, "in_channels": 1})
    train(gray, tmp_path / "gray", **OPTIONS)
    model = load_model(tmp_path / "gray" / WEIGHTS)
    assert model.config.in_channels == len(model.preprocessing.mean) == 1
    save_model(model, tmp_path / "start.safetensors")
    start = replace(run, init_from=str(tmp_path / "start.safetensors"))
    train(start, tmp_path / "from", **OPTIONS)
    assert load_model(tmp_path / "from" / WEIGHTS).config.in_channels == 1


# --- evaluation of own images


def evaluated(capsys, *arguments):
    """What `titn evaluate` prints, or its error."""
    status = main(["evaluate", *map(str, arguments)])
    said = capsys.readouterr()
    return said.out if status == 0 else said.err


def test_other_images_are_measured_whole_and_those_of_training_by_split(tmp_path, pets, run, capsys):
    train(run, tmp_path / "run", **OPTIONS)
    weights = tmp_path / "run" / WEIGHTS
    split = evaluated(capsys, weights)
    assert "(4 images)" in split
    assert "test        top-1" in split
    assert "(10 images)" in split
    shutil.copytree(pets, tmp_path / "copy")
    assert evaluated(capsys, weights, "--data", pets) == split
    assert evaluated(capsys, weights, "--data", tmp_path / "copy") == split  # the same images in another place
    for gray, kind in ((20, "round"), (160, "square")):
        fill(tmp_path / "new" / "train" / kind, 5, gray + 1)
        fill(tmp_path / "new" / "test" / kind, 2, gray + 2)
    assert "(14 images)" in evaluated(capsys, weights, "--data", tmp_path / "new")
    fill(tmp_path / "other" / "square", 3, 160)  # two of three classes, and another order
    fill(tmp_path / "other" / "a", 3, 160)
    assert "not for those of other: choose another --data" in evaluated(capsys, weights, "--data", tmp_path / "other")
    fill(pets / "round", 25, 20)
    assert "have changed since" in evaluated(capsys, weights, "--data", pets)


def test_some_of_the_classes_keep_their_labels(tmp_path, run, pets):
    fill(pets / "cross", 24, 90)
    train(run, tmp_path / "run", **OPTIONS)
    for gray, kind in ((20, "round"), (160, "square")):
        fill(tmp_path / "new" / kind, 5, gray)
    weights = tmp_path / "run" / WEIGHTS
    parts, _ = images_to_measure(load_model(weights), weights, str(tmp_path / "new"))
    assert parts["all"].labels.tolist() == [1] * 5 + [2] * 5  # cross, round, square


def test_a_record_of_another_model_is_not_taken_for_ours(tmp_path, monkeypatch):
    """A record belongs to the model.safetensors beside it, and not to pretrained weights or to another file."""
    weights = "titn_nano.digits"
    record = json.loads((PRETRAINED_DIR / f"{weights}.json").read_text(encoding="utf-8"))
    record["run"]["data"] = "mnist"
    (tmp_path / RECORD).write_text(json.dumps(record), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    parts, _ = images_to_measure(load_model(weights), Path(weights), None)
    assert [len(part) for part in parts.values()] == [144, 360]  # the digits


def test_recall_and_balanced_accuracy_by_hand(tmp_path, pets, run, capsys):
    class Bright(torch.nn.Module):
        """Class 1 for a bright image, class 0 for a dark one; never class 2."""

        def __init__(self):
            super().__init__()
            self.unused = torch.nn.Parameter(torch.zeros(1))

        def forward(self, images):
            bright = (images.mean(dim=(1, 2, 3)) > 0.5).float()
            return torch.stack([1 - bright, bright, torch.full_like(bright, -9)], dim=-1)

    gray = torch.tensor([0] * 8 + [255] * 2 + [255] * 2, dtype=torch.uint8)
    labels = torch.tensor([0] * 10 + [1] * 2)
    about = Preprocessing("x", ("a", "b", "c"), (0.0,), (1.0,))
    part = ImageDataset(gray[:, None, None, None].expand(12, 1, 2, 2), labels)
    result, confusion = evaluate_classes(Bright(), part, about)
    assert confusion.tolist() == [[8, 2, 0], [0, 2, 0], [0, 0, 0]]
    assert recall(confusion, about.classes) == pytest.approx({"a": 80, "b": 100})  # no image of c
    assert (result["top1"], result["balanced_accuracy"]) == pytest.approx((1000 / 12, 90))


def test_the_record_and_the_command_line_name_the_recall_of_each_class(tmp_path, pets, run, capsys):
    fill(pets / "square", 60, 160)
    record = train(run, tmp_path / "run", **OPTIONS)
    assert set(record.recall) == {"round", "square"}
    assert record.test["balanced_accuracy"] == pytest.approx(sum(record.recall.values()) / 2)
    out = evaluated(capsys, tmp_path / "run" / WEIGHTS, "--confusion", tmp_path / "confusion.png")
    for name, count in (("round", 5), ("square", 12)):
        assert re.search(rf"\| {name} +\| +{record.recall[name]:.2f} % +\| {count} ", out)
    with Image.open(tmp_path / "confusion.png") as figure:
        assert figure.width > 200


def test_the_table_of_own_images_has_the_recall_of_each_class(tmp_path, pets, run):
    record = train(run, tmp_path / "run", **OPTIONS)
    text = table({"alone": record, "distilled": replace(record, recall={"round": 12.5, "square": 75.0})})
    assert re.search(rf"\| all \(balanced accuracy\) \| {record.test['balanced_accuracy']:.2f} % +\|", text)
    assert re.search(rf"\| round +\| {record.recall['round']:.2f} % +\| 12.50 %", text)
    assert "balanced" not in table({"alone": replace(record, data=None)})


def test_class_weights_by_hand(tmp_path, pets, run, monkeypatch):
    """Each class weighs N / (K · its images), in the cross-entropy with the labels, of mixed images, too."""
    fill(pets / "square", 60, 160)
    weighted = replace(run, recipe=replace(QUICK, class_weights="balanced"))
    seen = []
    forward = Objective.forward
    monkeypatch.setattr(Objective, "forward", lambda self, *a: seen.append(self.class_weights) or forward(self, *a))
    records = [train(one, tmp_path / one.recipe.class_weights, **OPTIONS) for one in (run, weighted)]
    assert seen[0] is None
    counts = load_dataset(run.data).train.labels.bincount()
    torch.testing.assert_close(seen[-1], counts.sum() / (2 * counts))
    assert records[0].history[0]["train_loss"] != records[1].history[0]["train_loss"]

    logits, a, b, weights = torch.randn(4, 3), torch.tensor([0, 0, 1, 2]), torch.tensor([1, 1, 0, 0]), torch.rand(3)
    terms = -logits.log_softmax(dim=-1)
    expected = sum(
        share * (weights[y] * terms[range(4), y]).sum() / weights[y].sum() for y, share in ((a, 0.3), (b, 0.7))
    )
    torch.testing.assert_close(mixed_cross_entropy(logits, MixedTargets(a, b, 0.3), 0.0, weights), expected)
    torch.testing.assert_close(
        distillation_loss(logits, None, MixedTargets(a, b, 0.3), "cross_entropy", class_weights=weights), expected
    )
