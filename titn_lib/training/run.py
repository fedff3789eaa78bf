"""Make a run, or a comparison of three: what is finished is loaded, what was cut off goes on."""

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
from titn_lib.training.records import RECORD, RunResult, load_record
from titn_lib.training.trainer import WEIGHTS, Trainer, data_kwargs


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
    """Make a run: its weights, its record. What is finished is loaded, what was cut off goes on where it was.

    Args:
        out_dir: the folder for model.safetensors and record.json, and for checkpoint.pt until the run has finished.
        teacher_dir: where the teacher's run is, or will be made; `out_dir`/teacher by default.
        init_from_dir: the same for the run that makes the initial weights; `out_dir`/init_from by default.
        device: "auto" (a GPU where there is one), "cpu" or "cuda".
        max_minutes: stop after so long, with a checkpoint.
        progress: show a progress bar.

    Raises:
        Interrupted: Ctrl-C, SIGTERM or the time limit; the same call goes on from the checkpoint.
        Busy: another process is making a run in `out_dir`.
        TITNError: `out_dir` holds another run, or something in the run doesn't fit; nothing half-written is left behind.
    """
    out = make_folder(out_dir)
    deadline = Deadline.after(max_minutes)

    def ready(needed: Run | str | None, folder: Path) -> Classifier | None:
        if isinstance(needed, Run):
            train(needed, folder, device=device, max_minutes=deadline.minutes_left, progress=progress)
            return load_model(folder / WEIGHTS)
        return load_model(needed) if needed else None

    with lock_dir(out) if is_main_process() else nullcontext():
        if (out / RECORD).exists():
            record = load_record(out)
            require_same_run(record.run, run, out)
            return record
        fabric = start_fabric(run.recipe.precision, device)
        with fabric.rank_zero_first():  # one process downloads
            data = load_dataset(run.data, run.image_size)
        with torch.device("meta"):  # what doesn't fit shows before a teacher is trained
            check_loss(run.loss, create_model(run.model, **{**data_kwargs(data), **run.model_settings}))
        teacher = ready(run.teacher, Path(teacher_dir or out / "teacher"))
        initial = ready(run.init_from, Path(init_from_dir or out / "init_from"))
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
    """The teacher, the student alone (on labels only) and the distilled student: three runs below one folder.

    Args and errors as in `train`.
    """
    out = make_folder(out_dir)
    deadline = Deadline.after(max_minutes)
    parts: dict[str, Run] = {}
    if needs_teacher(run.loss):
        parts["distilled"] = run  # first, with its teacher: what doesn't fit shows at once
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
