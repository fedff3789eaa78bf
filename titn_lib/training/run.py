"""Entry points: `train` trains one network, `train_comparison` a teacher and two students. Both can be resumed."""

import dataclasses
from contextlib import nullcontext
from pathlib import Path

import torch

from titn_lib.data.datasets import load_dataset
from titn_lib.errors import TITNError
from titn_lib.io import lock_dir, make_folder
from titn_lib.losses.registry import check_loss, needs_teacher
from titn_lib.models.base import Classifier
from titn_lib.models.registry import create_model
from titn_lib.models.weights import load_model
from titn_lib.training.config import Run, require_same_run
from titn_lib.training.distributed import Deadline, is_main_process, start_fabric
from titn_lib.training.networks import data_kwargs
from titn_lib.training.records import RECORD, RunResult, load_record
from titn_lib.training.trainer import WEIGHTS, Trainer


def train(
    run: Run,
    out_dir: str | Path,
    *,
    teacher_dir: str | Path | None = None,
    init_from_dir: str | Path | None = None,
    device: str = "auto",
    max_minutes: float | None = None,
    progress: bool = True,
) -> RunResult:
    """Train a network and save its weights and record. A finished run is loaded, an interrupted one is resumed.

    Args:
        run: what to train, and how.
        out_dir: the folder for model.safetensors and record.json, and for checkpoint.pt until the run has finished.
        teacher_dir: the folder of the teacher's run, which is trained first if needed; `out_dir`/teacher by default.
        init_from_dir: the folder of the run that trains the initial weights; `out_dir`/init_from by default.
        device: "auto" (a GPU if there is one), "cpu" or "cuda".
        max_minutes: stop after so many minutes, with a checkpoint.
        progress: show a progress bar.

    Raises:
        Interrupted: Ctrl-C, SIGTERM or the time limit. The same call resumes from the checkpoint.
        Busy: another process is training in `out_dir`.
        TITNError: `out_dir` holds another run, or data, model, loss and teacher don't fit. No partial file is left
            behind.
    """
    out = make_folder(out_dir)
    deadline = Deadline.after(max_minutes)

    def trained(source: Run | str | None, folder: Path) -> Classifier | None:
        if isinstance(source, Run):
            train(source, folder, device=device, max_minutes=deadline.minutes_left, progress=progress)
            return load_model(folder / WEIGHTS)
        return load_model(source) if source else None

    with lock_dir(out) if is_main_process() else nullcontext():
        if (out / RECORD).exists():
            record = load_record(out)
            require_same_run(record.run, run, out)
            return record
        fabric = start_fabric(run.recipe.precision, device)
        with fabric.rank_zero_first():  # one process downloads
            data = load_dataset(run.data, run.image_size)
        with torch.device("meta"):  # a student that doesn't fit is found before its teacher is trained
            check_loss(run.loss, create_model(run.model, **{**data_kwargs(data), **run.model_settings}))
        teacher = trained(run.teacher, Path(teacher_dir or out / "teacher"))
        initial = trained(run.init_from, Path(init_from_dir or out / "init_from"))
        try:
            return Trainer(run, out, data, teacher, fabric, initial).fit(deadline, progress)
        except RuntimeError as problem:
            if isinstance(problem, torch.OutOfMemoryError) or "allocate memory" in str(problem):
                raise TITNError(
                    f"a batch of {run.recipe.batch_size} images doesn't fit in memory with {run.model}: choose a "
                    "smaller batch_size (--batch-size)"
                ) from problem
            raise


def train_comparison(
    run: Run, out_dir: str | Path, *, device: str = "auto", max_minutes: float | None = None, progress: bool = True
) -> dict[str, RunResult]:
    """Train the teacher, the student alone (with the labels only) and the distilled student, in three subfolders.

    Arguments and errors are those of `train`.

    Returns:
        The records of "teacher", "alone" and "distilled", in this order. A run whose teacher is a weights file has no
        record of a teacher, and a loss without a teacher has only "alone".
    """
    out = make_folder(out_dir)
    deadline = Deadline.after(max_minutes)
    parts: dict[str, Run] = {}
    if needs_teacher(run.loss):
        parts["distilled"] = run  # first, with its teacher, so that settings that don't fit are found at once
    parts["alone"] = dataclasses.replace(run, loss="cross_entropy", teacher=None)
    if isinstance(run.teacher, Run):
        parts["teacher"] = run.teacher
    records = {}
    for name, part in parts.items():
        records[name] = train(
            part,
            out / name,
            teacher_dir=out / "teacher",
            device=device,
            max_minutes=deadline.minutes_left,
            progress=progress,
        )
    return {name: records[name] for name in ("teacher", "alone", "distilled") if name in records}
