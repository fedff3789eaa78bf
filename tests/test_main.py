"""The command line: what it prints, and that every error is one sentence."""

import json
import os
import shutil
import sys
import time
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from titn_lib import TITNError, TrainingInterrupted, create_model, save_model
from titn_lib.__main__ import main
from titn_lib.data.transforms import Preprocessing
from titn_lib.errors import RunLocked
from titn_lib.experiments import runner
from titn_lib.experiments.settings import load_experiments
from titn_lib.io import lock_dir
from titn_lib.training import recipes
from titn_lib.training.records import load_record

SMALL = ["--epochs", "1", "--train-images", "128", "--test-images", "64", "--batch-size", "32"]
SMALL += ["--device", "cpu", "--quiet"]


@pytest.fixture
def small_teacher(monkeypatch):
    """A teacher that takes a second."""
    quick = replace(recipes.teacher_recipe("digits", "smoke"), train_images=128, test_images=64)
    monkeypatch.setattr(recipes, "teacher_recipe", lambda *_: quick)


def fails(capsys, *arguments):
    """Runs a command that must fail, and returns its one sentence."""
    assert main([str(argument) for argument in arguments]) == 1
    out, err = capsys.readouterr()
    assert err.startswith("titn: ")
    assert err.count("\n") == 1
    assert "Traceback" not in out + err
    return err


def test_distill_leaves_a_table_a_record_and_a_figure(tmp_path, capsys, small_teacher):
    assert main(["distill", "--data", "digits", "--out", str(tmp_path), *SMALL]) == 0
    out = capsys.readouterr().out
    for row in ("teacher", "alone", "distilled"):
        assert f"| {row}" in out
    assert sorted(file.name for file in tmp_path.iterdir()) == [
        "alone",
        "curves.png",
        "distilled",
        "records.json",
        "teacher",
    ]
    with Image.open(tmp_path / "curves.png") as figure:
        assert figure.size[0] > 1000
    together = json.loads((tmp_path / "records.json").read_text())
    record = load_record(tmp_path / "distilled")
    assert together["distilled"]["test"] == record.test
    assert f"{record.test['top1']:.2f} %" in out

    assert main(["evaluate", str(tmp_path / "distilled" / "model.safetensors")]) == 0
    assert "test        top-1" in capsys.readouterr().out


def test_teacher(tmp_path, capsys):
    assert main(["train-teacher", "--data", "digits", "--out", str(tmp_path), *SMALL]) == 0
    assert "| teacher | vgg7_bn" in capsys.readouterr().out


def test_predict_takes_any_image(tmp_path, capsys):
    model = create_model("titn_nano", num_classes=7)
    preprocessing = Preprocessing("x", tuple("abcdefg"), (0.5,) * 3, (0.25,) * 3)
    save_model(model, tmp_path / "m.safetensors", preprocessing)
    Image.fromarray(np.zeros((40, 50), np.uint8)).save(tmp_path / "gray.png")
    Image.fromarray(np.zeros((9, 20, 4), np.uint8)).save(tmp_path / "clear.png")
    images = [str(tmp_path / name) for name in ("gray.png", "clear.png")]
    assert main(["predict", *images, "--weights", str(tmp_path / "m.safetensors")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [lines[0], lines[6]] == images
    probabilities = [float(line.split("%")[0]) for line in lines[1:6]]
    assert probabilities == sorted(probabilities, reverse=True)


def test_data_and_experiments_list(capsys):
    assert main(["download"]) == 0
    assert "cifar100" in capsys.readouterr().out
    assert main(["download", "digits"]) == 0
    assert "digits: train 1,293, validation 144, test 360; 10 classes; 1×16×16" in capsys.readouterr().out


def test_help_explains_every_setting(capsys):
    for command in ("distill", "train-teacher"):
        with pytest.raises(SystemExit):
            main([command, "--help"])
        text = " ".join(capsys.readouterr().out.split())
        assert "--min-lr FLOAT the final learning rate" in text
        assert "with this decay per step; 0 for none" in text  # the second line of a meaning


def test_problems_are_one_sentence(tmp_path, capsys, monkeypatch):
    def refuse(*_, **__):
        raise OSError("Network is unreachable")

    monkeypatch.setattr("urllib.request.urlopen", refuse)
    monkeypatch.setenv("TITN_DATA", str(tmp_path / "nothing"))
    out = ["--out", tmp_path / "out", "--device", "cpu"]
    bad = tmp_path / "bad.safetensors"
    bad.write_bytes(b"bad")
    (tmp_path / "file").write_text("x")
    (tmp_path / "images" / "cat").mkdir(parents=True)
    (tmp_path / "images" / "dog").mkdir()
    (tmp_path / "cifar").mkdir()
    good = tmp_path / "good.safetensors"
    save_model(create_model("titn_nano", depth=1), good)

    assert "unknown data set 'digit': did you mean 'digits'" in fails(capsys, "distill", "--data", "digit", *out)
    assert "unknown student 'titn_micro'" in fails(capsys, "distill", "--model", "titn_micro", *out)
    assert "unknown preset 'big'" in fails(capsys, "distill", "--preset", "big", *out)
    assert "unknown teacher 'vgg'" in fails(capsys, "distill", "--teacher", "vgg", *out)
    assert "titn_nano is a student: choose a teacher, or use make_run" in fails(
        capsys, "train-teacher", "--model", "titn_nano", *out
    )
    assert "there is no weights file" in fails(capsys, "distill", "--teacher", tmp_path / "t.safetensors", *out)
    assert "is a student, not a teacher" in fails(capsys, "distill", "--teacher", good, *out)
    assert "seed must be at least 0" in fails(capsys, "distill", "--seed", -1, *out)
    assert "can't take 4×4" in fails(capsys, "distill", "--image-size", 4, *out)
    assert "is a folder" in fails(capsys, "evaluate", tmp_path)
    assert "unknown augmentation 'flop'" in fails(capsys, "distill", "--augmentation", "flop", *out)
    assert "set TITN_DATA" in fails(capsys, "distill", "--data", "cifar10", *out)
    assert "cat holds no image" in fails(capsys, "distill", "--data", tmp_path / "images", *out)
    batch = ["--batch-size", 9999, "--loss", "cross_entropy"]
    assert "can't train with a batch of 9999 on the" in fails(capsys, "distill", *batch, *out)
    assert "part of that path is a file" in fails(capsys, "distill", "--out", tmp_path / "file" / "x")
    assert "is not a whole safetensors file" in fails(capsys, "evaluate", bad)
    assert "there is no weights file" in fails(capsys, "evaluate", tmp_path / "none.safetensors")
    assert "how its images were normalized" in fails(capsys, "evaluate", good)
    assert "doesn't name its classes" in fails(capsys, "predict", tmp_path / "file", "--weights", good)
    assert "there are no settings files" in fails(capsys, "experiments", "--folder", tmp_path)


def test_a_file_that_is_no_image(tmp_path, capsys):
    preprocessing = Preprocessing("x", tuple("abcdefghij"), (0.5,) * 3, (0.25,) * 3)
    save_model(create_model("titn_nano"), tmp_path / "m.safetensors", preprocessing)
    (tmp_path / "bad.png").write_bytes(b"bad")
    weights = ["--weights", tmp_path / "m.safetensors"]
    assert "bad.png is not an image or is damaged" in fails(capsys, "predict", tmp_path / "bad.png", *weights)
    assert "there is no image" in fails(capsys, "predict", tmp_path / "none.png", *weights)
    good, page = tmp_path / "good.png", tmp_path / "page.html"
    Image.new("RGB", (8, 8)).save(good)
    for command in (["predict"], ["explore", "--out", page]):
        message = fails(capsys, *command, tmp_path / "bad.png", good, tmp_path / "none.png", *weights)
        assert "2 of 3 images can't be read" in message
        assert "bad.png" in message
        assert "none.png" in message


def test_a_full_disk_and_a_damaged_checkpoint(tmp_path, capsys):
    for part in ("alone", "alone/model.safetensors"):
        (tmp_path / part).parent.mkdir(exist_ok=True, parents=True)
    out = ["--out", tmp_path, "--loss", "cross_entropy", *SMALL]
    (tmp_path / "alone" / f"model.safetensors.{os.getpid()}.part").symlink_to("/dev/full")
    assert "the disk is full: free some space" in fails(capsys, "distill", *out)
    assert [file.name for file in (tmp_path / "alone").iterdir() if file.name != ".lock"] == []
    (tmp_path / "alone" / "checkpoint.pt").write_bytes(b"cut short")
    assert "checkpoint.pt is damaged: delete it" in fails(capsys, "distill", *out)


def test_a_missing_package_is_named(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "titn_lib.plots", None)
    assert "the package titn_lib.plots is missing" in fails(capsys, "distill")


# --- experiments

TEACHER = """
description = "A quick teacher."
data = "digits"
model = "vgg7_bn"
preset = "laptop"
recipe = { epochs = 1, train_images = 128, test_images = 64, batch_size = 32 }
"""
STUDENT = """
description = "A quick student."
data = "digits"
model = "titn_nano"
preset = "laptop"
seeds = [0, 1]
loss = "hard"
teacher = "teach"
recipe = { epochs = 1, train_images = 128, test_images = 64, batch_size = 32 }
model_settings = { depth = 1 }
"""


@pytest.fixture
def settings(tmp_path):
    folder = tmp_path / "experiments"
    folder.mkdir()
    (folder / "1-teach.toml").write_text(TEACHER)
    (folder / "2-learn.toml").write_text(STUDENT)
    options = [
        ("--folder", folder),
        ("--work-dir", tmp_path / "runs"),
        ("--results", tmp_path / "results"),
        ("--device", "cpu"),
    ]
    return folder, [str(word) for pair in options for word in pair]


def test_experiments_are_listed_made_resumed_and_rerun(settings, tmp_path, capsys):
    folder, options = settings

    def states(*arguments):
        code = main(["experiments", *options, *arguments])
        out = capsys.readouterr()
        return (
            code,
            [line.split("laptop")[1].split(",")[0].strip() for line in out.out.splitlines() if " laptop " in line],
            out,
        )

    assert states()[:2] == (0, ["pending", "pending", "pending"])
    code, _, out = states("--run", "--max-minutes", "0.0001")
    assert (code, "run the same command to resume" in out.err) == (1, True)
    assert states()[1] == ["under way", "pending", "pending"]
    assert states("--run")[:2] == (0, ["done"] * 3)
    record = load_record(tmp_path / "results" / "learn" / "seed1.json")
    assert record.run.seed == 1
    assert record.run.teacher == load_record(tmp_path / "results" / "teach" / "seed0.json").run
    assert (tmp_path / "results" / "learn" / "seed1.safetensors").stat().st_size < 2**20

    written = (tmp_path / "results" / "teach" / "seed0.json").stat().st_mtime_ns
    states("--run")
    assert (tmp_path / "results" / "teach" / "seed0.json").stat().st_mtime_ns == written
    assert states("--rerun", "teach", "--max-minutes", "0.0001")[0] == 1  # cut off: the old record and weights stay
    assert (tmp_path / "results" / "teach" / "seed0.json").stat().st_mtime_ns == written
    assert (tmp_path / "runs" / "teach" / "seed0" / "model.safetensors").exists()
    assert states()[1] == ["done"] * 3
    assert states()[2].out.count("rerun under way") == 1
    assert states("--rerun", "teach")[0] == 0  # resumed, and replaced at the end
    assert (tmp_path / "results" / "teach" / "seed0.json").stat().st_mtime_ns != written
    assert [path.name for path in (tmp_path / "runs" / "teach").iterdir()] == ["seed0"]
    assert "rerun" not in states()[2].out

    shutil.rmtree(tmp_path / "runs")  # as in a fresh clone: the teacher comes from results/
    assert states("--rerun", "learn")[0] == 0
    assert load_record(tmp_path / "runs" / "teach" / "seed0") == load_record(
        tmp_path / "results" / "teach" / "seed0.json"
    )

    (folder / "1-teach.toml").write_text(TEACHER.replace("epochs = 1", "epochs = 2"))
    assert "with other settings" in states()[2].out


def test_an_interrupted_rerun_of_several_seeds_is_resumed(settings, monkeypatch):
    command, train, seeds = ["experiments", *settings[1], "--rerun", "learn"], runner.train, []

    def interrupted_once(run, folder, **options):
        seeds.append((run.seed, folder.name))
        if len(seeds) == 2:
            raise TrainingInterrupted("stopped by Ctrl-C")
        return train(run, folder, **options)

    assert main(["experiments", *settings[1], "--run"]) == 0
    monkeypatch.setattr(runner, "train", interrupted_once)
    assert main(command) == 1
    assert main(command) == 0
    assert seeds == [(0, "seed0-rerun"), (1, "seed1-rerun"), (1, "seed1-rerun")]
    assert main(command) == 0  # once more from the start
    assert [seed for seed, _ in seeds[3:]] == [0, 1]


def test_a_rerun_besides_what_is_pending(settings, tmp_path, capsys):
    _, options = settings
    assert main(["experiments", *options, "--run", "teach"]) == 0
    written = (tmp_path / "results" / "teach" / "seed0.json").stat().st_mtime_ns
    assert main(["experiments", *options, "--run", "--rerun", "teach", "--preset", "smoke"]) == 0  # it is a laptop's
    assert (tmp_path / "results" / "teach" / "seed0.json").stat().st_mtime_ns == written
    capsys.readouterr()
    assert main(["experiments", *options, "--run", "--rerun", "teach"]) == 0
    assert capsys.readouterr().out.count(" done, ") == 3
    assert (tmp_path / "results" / "teach" / "seed0.json").stat().st_mtime_ns != written


def test_some_of_the_pending_experiments_are_made(settings, tmp_path, capsys):
    _, options = settings
    assert main(["experiments", *options, "--run", "teach"]) == 0
    assert capsys.readouterr().out.count("pending") == 2
    assert [path.name for path in (tmp_path / "results").iterdir()] == ["teach"]
    assert main(["experiments", *options, "--run", "taech"]) == 1
    assert "taech" in capsys.readouterr().err


def test_a_preset_lists_its_own_experiments(settings, capsys):
    assert main(["experiments", *settings[1], "--preset", "gpu"]) == 0
    assert capsys.readouterr().out == "\n"


def test_a_time_limit_alone_runs_nothing(settings, tmp_path, capsys):
    assert main(["experiments", *settings[1], "--max-minutes", "9"]) == 1
    assert "add --run" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


def test_no_run_begins_when_the_time_is_up(settings, monkeypatch, capsys):
    begun = []
    monkeypatch.setattr("titn_lib.experiments.runner.run_experiment", lambda *_, **__: begun.append(time.sleep(0.05)))
    assert main(["experiments", *settings[1], "--run", "--max-minutes", "0.0005"]) == 1
    assert len(begun) == 1
    assert "stopped by the time limit before learn: run the same command to resume" in capsys.readouterr().err


def test_what_another_process_makes_is_skipped(settings, tmp_path, capsys):
    _, options = settings
    folder = tmp_path / "runs" / "teach" / "seed0"
    folder.mkdir(parents=True)
    with lock_dir(folder):
        assert main(["experiments", *options, "--run"]) == 0
    printed = capsys.readouterr().out
    assert printed.count("skipped: another process is training in") == 3  # the teacher, and both students who need it
    assert printed.count("pending") == 3


def test_a_job_of_several_processes_ends_at_a_run_of_another(settings, tmp_path, monkeypatch):
    """Only one of its processes sees the lock: the others would train while it goes on to the next run."""

    def locked(*_, **__):
        raise RunLocked("another process is training in runs")

    monkeypatch.setattr(runner, "run_experiment", locked)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(RunLocked):
        runner.run_experiments(load_experiments(settings[0]), tmp_path / "runs", tmp_path / "results", None)


def test_variants_share_what_they_do_not_change(settings):
    folder, _ = settings
    variants = """
[variants.deep]
model_settings.depth = 2

[variants.long]
description = "A long student."
recipe.epochs = 9
loss = "soft"
"""
    (folder / "2-learn.toml").write_text(STUDENT + variants)
    found = load_experiments(folder)
    assert list(found) == ["teach", "learn-deep", "learn-long"]
    deep, long = found["learn-deep"].runs[1], found["learn-long"].runs[1]
    assert (deep.model_settings, long.model_settings) == ({"depth": 2}, {"depth": 1})
    assert (deep.recipe.epochs, long.recipe.epochs, long.recipe.train_images) == (1, 9, 128)
    assert (deep.loss, long.loss) == ("hard", "soft")
    assert (found["learn-deep"].description, found["learn-long"].description) == ("A quick student.", "A long student.")


def test_variants_of_another_file(settings):
    folder, _ = settings
    (folder / "2-learn.toml").write_text(STUDENT + "[variants.deep]\nmodel_settings.depth = 2\n")
    again = STUDENT.replace("model_settings", 'compare = "learn-deep"\nvariants = "learn"\nmodel_settings')
    (folder / "3-again.toml").write_text(again.replace("titn_nano", "titn_pico"))
    found = load_experiments(folder)
    assert list(found) == ["teach", "learn-deep", "again-deep"]
    deep = found["again-deep"]
    assert (deep.runs[0].model, deep.runs[0].model_settings) == ("titn_pico", {"depth": 2})
    assert (deep.file, deep.variant, deep.compare) == ("again", "deep", "learn-deep")
    for line, says in ((('"learn"', '"lern"'), "unknown file with variants before it 'lern'"),
                       (('"learn-deep"', '"learn-dep"'), "unknown experiment before it to compare with")):  # fmt: skip
        (folder / "3-again.toml").write_text(again.replace(*line))
        with pytest.raises(TITNError, match=says):
            load_experiments(folder)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (("model", "modle"), "unknown line 'modle'"),
        (('"teach"', '"preach"'), "unknown teacher among the experiments before it 'preach'"),
        (("seeds", "[[["), "is not a settings file"),
        (("epochs", "epoch"), "unknown setting of a recipe 'epoch'"),
        (("[0, 1]", "[]"), "there are no seeds"),
    ],
)
def test_settings_files_that_make_no_sense(settings, change, says):
    folder, _ = settings
    (folder / "2-learn.toml").write_text(STUDENT.replace(*change))
    with pytest.raises(TITNError, match=says) as problem:
        load_experiments(folder)
    assert "2-learn.toml" in str(problem.value)
