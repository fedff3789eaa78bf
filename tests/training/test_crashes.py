"""Killed while a file is being written, a full disk, a clock that jumps: the same call goes on, and nothing is lost."""

import errno
import os
import time
from itertools import count
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from titn_lib import TITNError, TrainingInterrupted
from titn_lib.io import write_atomically
from titn_lib.training import trainer
from titn_lib.training.config import Recipe, Run
from titn_lib.training.records import RECORD, WEIGHTS, load_record
from titn_lib.training.run import train
from titn_lib.training.trainer import CHECKPOINT

RECIPE = Recipe(
    epochs=2, batch_size=32, precision="32-true", train_images=96, test_images=64, ema_decay=0.9, cutmix=1.0
)
RUN = Run("digits", "titn_nano", RECIPE, model_settings={"depth": 1})
OPTIONS = {"device": "cpu", "progress": False}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    out = tmp_path_factory.mktemp("whole")
    train(RUN, out, **OPTIONS)
    return load_file(out / WEIGHTS), load_record(out).history


@pytest.fixture(autouse=True)
def a_checkpoint_after_every_step(monkeypatch):
    monkeypatch.setattr(trainer, "CHECKPOINT_SECONDS", -1.0)


def require_whole(out, whole):
    weights, history = whole
    resumed = load_file(out / WEIGHTS)
    assert all(torch.equal(weights[name], resumed[name]) for name in weights)
    assert load_record(out).history == history
    assert sorted(file.name for file in out.iterdir() if file.name != ".lock") == [WEIGHTS, RECORD]


class Killed(BaseException):
    """SIGKILL, imitated: nothing cleans up behind it."""


@pytest.mark.parametrize(
    ("file", "number", "renamed"),
    [(CHECKPOINT, 1, False), (CHECKPOINT, 4, False), (CHECKPOINT, 4, True), (WEIGHTS, 1, True), (RECORD, 1, False)],
)
def test_killed_while_a_file_is_written(tmp_path, monkeypatch, whole, file, number, renamed):
    written, replace = count(1), os.replace

    def kill(source, target):
        last = Path(target).name == file and next(written) == number
        if renamed or not last:
            replace(source, target)
        if last:
            monkeypatch.setattr(Path, "unlink", lambda *_, **__: None)
            raise Killed

    monkeypatch.setattr("titn_lib.io.os.replace", kill)
    with pytest.raises(Killed):
        train(RUN, tmp_path, **OPTIONS)
    monkeypatch.undo()
    for left in tmp_path.glob("*.part"):
        left.rename(left.with_name(f"{left.name.rsplit('.', 2)[0]}.1.part"))  # of a process that is no more
    monkeypatch.setattr(trainer, "CHECKPOINT_SECONDS", -1.0)
    train(RUN, tmp_path, **OPTIONS)
    require_whole(tmp_path, whole)


def test_a_disk_that_is_full_every_other_time(tmp_path, monkeypatch, whole):
    writes, sync = count(1), os.fsync

    def full(handle):
        if next(writes) % 4 > 1:  # so that two succeed in a row now and then
            raise OSError(errno.ENOSPC, "No space left on device")
        sync(handle)

    monkeypatch.setattr("titn_lib.io.os.fsync", full)
    monkeypatch.setattr("titn_lib.io.sync_folder", lambda _: None)
    refused: list[str] = []
    while not (tmp_path / RECORD).exists():
        assert len(refused) < 12
        try:
            train(RUN, tmp_path, **OPTIONS)
        except TITNError as problem:
            refused.append(str(problem))
    assert len(refused) > 5
    assert all("the disk is full: free some space" in said for said in refused)
    require_whole(tmp_path, whole)


def test_a_clock_that_jumps_back(tmp_path, monkeypatch, whole):
    now = count(time.time(), -3600.0)
    monkeypatch.setattr("time.time", lambda: next(now))
    train(RUN, tmp_path, **OPTIONS, max_minutes=5)
    assert 0 < load_record(tmp_path).seconds < 300
    require_whole(tmp_path, whole)


def test_what_a_killed_process_left_is_deleted_and_nothing_else(tmp_path):
    mine = {"mine.part", "1.parts", "movie.2024.part", "movie.2024.mkv.part"}
    for name in ("checkpoint.pt.1.part", f"checkpoint.pt.{os.getpid()}.part", *mine):
        write_atomically(tmp_path / "run" / name, b"x")
    with pytest.raises(TrainingInterrupted):
        train(RUN, tmp_path / "run", **OPTIONS, max_minutes=0)
    left = {file.name for file in (tmp_path / "run").iterdir()} - {".lock", CHECKPOINT}
    assert left == mine
