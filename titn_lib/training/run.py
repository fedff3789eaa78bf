"""Entry points: `train` trains one network, `train_comparison` a teacher and two students. Both can be resumed."""

from contextlib import nullcontext, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from titn_lib.data.datasets import DATASETS, DataSplits, data_fingerprint, load_dataset, resize
from titn_lib.errors import TITNError
from titn_lib.io import lock_dir, make_folder, require_outside
from titn_lib.losses.registry import check_loss, needs_teacher
from titn_lib.models.external import OWN_TEACHER, describe_teacher
from titn_lib.models.registry import create_model
from titn_lib.models.weights import load_model, read_model, read_weights
from titn_lib.training.config import Run, require_same_run
from titn_lib.training.distributed import Deadline, is_main_process, start_fabric
from titn_lib.training.networks import check_batch, data_kwargs, make_network
from titn_lib.training.records import (
    RECORD,
    WEIGHTS,
    RunResult,
    hash_files,
    load_record,
    require_same_data,
    require_same_files,
)
from titn_lib.training.trainer import Trainer


def train(
    run: Run,
    out_dir: str | Path,
    *,
    teacher_dir: str | Path | None = None,
    init_from_dir: str | Path | None = None,
    device: str = "auto",
    max_minutes: float | None = None,
    progress: bool = True,
    data: DataSplits | None = None,
    skip_damaged: bool = False,
    teacher: nn.Module | None = None,
) -> RunResult:
    """Train a network and save its weights and record. A finished run is loaded, an interrupted one is resumed.

    Images are read once for the run and its teacher. They stay in memory as bytes, at the run's size.

    Args:
        run: what to train, and how.
        out_dir: the folder for model.safetensors and record.json, and for checkpoint.pt until the run has finished.
        teacher_dir: the folder of the teacher's run, which is trained first if needed; `out_dir`/teacher by default.
        init_from_dir: the folder of the run that trains the initial weights; `out_dir`/init_from by default.
        device: "auto" (a GPU if there is one), "cpu", "cuda" or "mps".
        max_minutes: stop after so many minutes, with a checkpoint.
        progress: show a progress bar.
        data: your own splits (`data.make_splits`), used for the run and its teacher; `run.data` is then only their
            name. By default, `run.data` is read.
        skip_damaged: leave out image files that can't be read, with a warning.
        teacher: a network of your own as the teacher, in place of `run.teacher`: a module that returns logits, or an
            `ExternalTeacher` with its normalization. The record names its class and a hash of its weights.

    Raises:
        TrainingInterrupted: Ctrl-C, SIGTERM or the time limit. The same call resumes from the checkpoint.
        RunLocked: another process is training in `out_dir`.
        TITNError: `out_dir` holds another run, or one on images that have changed since; or data, model, loss and
            teacher don't fit. No partial file is left behind.
    """
    folders = {"teacher": teacher_dir, "init_from": init_from_dir}
    source = DataSource(data, skip_damaged)
    run = source.with_teacher(run, teacher)
    return train_in(run, out_dir, folders, source, device, Deadline.after(max_minutes), progress)


class DataSource:
    """The data of runs that belong together, read when it is first needed and only once.

    Args:
        data: taken for all runs, if given; else each run's `data` is read.
        skip_damaged: leave out image files that can't be read, with a warning.
    """

    def __init__(self, data: DataSplits | None, skip_damaged: bool):
        self.data, self.skip_damaged = data, skip_damaged
        self.known: dict[tuple, DataSplits] = {}
        self.teachers: dict[str, nn.Module] = {}  # those that were passed as modules, by what the record calls them

    def with_teacher(self, run: Run, teacher: nn.Module | None) -> Run:
        """The run with this teacher in place of its own.

        Raises:
            TITNError: its loss needs none.
        """
        if teacher is None:
            return run
        if not needs_teacher(run.loss):
            raise TITNError(f"the loss {run.loss!r} needs no teacher: leave it out, or choose a distillation loss")
        name = describe_teacher(teacher)
        self.teachers[name] = teacher
        return replace(run, teacher=name)

    def read(self, run: Run, progress: bool) -> DataSplits:
        """The splits for a run, with a bar where reading takes long."""
        if self.data is not None:
            data, size = self.data, run.image_size or self.data.image_size
            train, validation, test = (resize(part, size) for part in (data.train, data.validation, data.test))
            return replace(data, train=train, validation=validation, test=test)
        wanted = (run.data, run.image_size, channels(run), self.skip_damaged)
        if wanted not in self.known:
            self.known[wanted] = load_dataset(*wanted, progress)
        return self.known[wanted]

    def require_outside(self, run: Run, out: str | Path) -> None:
        """Raises TITNError if a run's results would lie among the images that are read for it."""
        if self.data is None and run.data not in DATASETS:
            require_outside(Path(out), run.data)

    def fingerprint(self, run: Run) -> dict[str, object] | None:
        """That of a folder's images as they are now, without decoding them; None for other data, or if it is gone."""
        return data_fingerprint(run.data) if self.data is None else self.data.fingerprint


def channels(run: Run) -> int:
    """The channels in which a folder's images are read: those of the given weights, or the model's settings, or 3."""
    given = [source for source in (run.teacher, run.init_from) if isinstance(source, str)]
    given = [source for source in given if not source.startswith(OWN_TEACHER)]
    if given and run.data not in DATASETS:
        with suppress(TITNError):  # other than weights of this library
            return int(read_model(given[0])[1].in_channels)
    named = run.model_settings.get("in_channels", 3)
    return named if isinstance(named, int) else 3


def train_in(
    run: Run,
    out_dir: str | Path,
    folders: dict[str, str | Path | None],
    source: DataSource,
    device: str,
    deadline: Deadline,
    progress: bool,
) -> RunResult:
    """`train` with what several runs share: the data and the deadline.

    Args:
        folders: those of the runs "teacher" and "init_from", below `out_dir` by default.
    """
    source.require_outside(run, out_dir)
    out = make_folder(out_dir)

    def trained(name: str) -> Any:
        origin, folder = getattr(run, name), Path(folders.get(name) or out / name)
        if name == "teacher" and isinstance(origin, str) and origin.startswith(OWN_TEACHER):
            if origin not in source.teachers:
                raise TITNError(f"the teacher of this run was {origin}: pass it again (train(…, teacher=…))")
            return source.teachers[origin]
        if isinstance(origin, Run):
            train_in(origin, folder, {}, source, device, deadline, progress)
            return load_model(folder / WEIGHTS)
        return load_model(origin) if origin else None

    with lock_dir(out) if is_main_process() else nullcontext():
        if (out / RECORD).exists():
            record = load_record(out)
            if record.data and record.run.data == run.data:  # first: the recipe follows from the number of images
                require_same_data(record.data, source.fingerprint(run), out)
            require_same_run(record.run, run, out)
            require_same_files(record.files, hash_files(run), run, out)
            require_weights(out)
            return record
        fabric = start_fabric(run.recipe.precision, device)
        with fabric.rank_zero_first():  # one process downloads
            data = source.read(run, progress and is_main_process())
        check_batch(run, data, fabric.world_size)  # a student that doesn't fit is found before its teacher is trained
        with torch.device("meta"):
            check_loss(run.loss, create_model(run.model, **{**data_kwargs(data), **run.model_settings}))
        if initial := trained("init_from"):
            make_network(run, data, initial)
        teacher = trained("teacher")
        try:
            return Trainer(run, out, data, teacher, fabric, initial).fit(deadline, progress)
        except RuntimeError as problem:
            if isinstance(problem, torch.OutOfMemoryError) or "allocate memory" in str(problem):
                raise TITNError(
                    f"a batch of {run.recipe.batch_size} images doesn't fit in memory with {run.model}: choose a "
                    "smaller batch_size (--batch-size)"
                ) from problem
            raise


def require_weights(out: Path) -> None:
    """Raises TITNError if the weights of a finished run can't be read."""
    try:
        read_weights(out / WEIGHTS)
    except TITNError as problem:
        raise TITNError(
            f"the run in {out} has finished, but its {WEIGHTS} is missing or can't be read: delete {out / RECORD} to "
            "train again, or copy the file back"
        ) from problem


def train_comparison(
    run: Run,
    out_dir: str | Path,
    *,
    device: str = "auto",
    max_minutes: float | None = None,
    progress: bool = True,
    data: DataSplits | None = None,
    skip_damaged: bool = False,
    teacher: nn.Module | None = None,
) -> dict[str, RunResult]:
    """Train the teacher, the student alone (with the labels only) and the distilled student, in three subfolders.

    Arguments and errors are those of `train`. The images are read once for all three.

    Returns:
        The records of "teacher", "alone" and "distilled", in this order. A run whose teacher is a weights file has no
        record of a teacher, and a loss without a teacher has only "alone".
    """
    deadline, source = Deadline.after(max_minutes), DataSource(data, skip_damaged)
    source.require_outside(run, out_dir)
    out = make_folder(out_dir)
    run = source.with_teacher(run, teacher)
    parts: dict[str, Run] = {}
    if needs_teacher(run.loss):
        parts["distilled"] = run  # first, with its teacher, so that settings that don't fit are found at once
    parts["alone"] = replace(run, loss="cross_entropy", teacher=None)
    if isinstance(run.teacher, Run):
        parts["teacher"] = run.teacher
    for record in (load_record(out / name) for name in parts if (out / name / RECORD).exists()):
        if record.data and record.run.data == run.data:  # before the first run, so that all folders are named at once
            require_same_data(record.data, source.fingerprint(run), out)
    folders: dict[str, str | Path | None] = {"teacher": out / "teacher"}
    records = {
        name: train_in(part, out / name, folders, source, device, deadline, progress) for name, part in parts.items()
    }
    return {name: records[name] for name in ("teacher", "alone", "distilled") if name in records}
