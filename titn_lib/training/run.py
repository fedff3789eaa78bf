"""Make a run, or a comparison of three: what is finished is loaded, what was cut off goes on."""

import dataclasses
import time
from contextlib import nullcontext
from pathlib import Path

import torch

from titn_lib.data.datasets import load_data
from titn_lib.errors import TITNError
from titn_lib.io import claim, make_folder
from titn_lib.losses.objective import check_method
from titn_lib.models.base import Classifier
from titn_lib.models.registry import create_model
from titn_lib.models.weights import load_model
from titn_lib.training.config import Run, check_same
from titn_lib.training.distributed import leads, start_fabric
from titn_lib.training.records import RECORD, Record, load_record
from titn_lib.training.trainer import WEIGHTS, Training, settings_for


def train(
    run: Run,
    out: str | Path,
    *,
    teacher_folder: str | Path | None = None,
    start_folder: str | Path | None = None,
    device: str = "auto",
    minutes: float | None = None,
    quiet: bool = False,
) -> Record:
    """Make a run: its weights, its record. What is finished is loaded, what was cut off goes on where it was.

    Args:
        out: the folder for model.safetensors and record.json, and for checkpoint.pt until the run has finished.
        teacher_folder: where the teacher's run is, or will be made; `out`/teacher by default.
        start_folder: the same for the run that makes the first weights; `out`/start by default.
        device: "auto" (a GPU where there is one), "cpu" or "cuda".
        minutes: stop after so long, with a checkpoint.
        quiet: no progress bar.

    Raises:
        Interrupted: Ctrl-C, SIGTERM or the time limit; the same call goes on from the checkpoint.
        Busy: another process is making a run in `out`.
        TITNError: `out` holds another run, or something in the run doesn't fit; nothing half-written is left behind.
    """
    out = make_folder(out)
    started = time.monotonic()

    def left() -> float | None:
        return None if minutes is None else minutes - (time.monotonic() - started) / 60

    def ready(needed: Run | str | None, folder: Path) -> Classifier | None:
        if isinstance(needed, Run):
            train(needed, folder, device=device, minutes=left(), quiet=quiet)
            return load_model(folder / WEIGHTS)
        return load_model(needed) if needed else None

    with claim(out) if leads() else nullcontext():
        if (out / RECORD).exists():
            record = load_record(out)
            check_same(record.run, run, out)
            return record
        fabric = start_fabric(run.recipe.precision, device)
        with fabric.rank_zero_first():  # one process downloads
            data = load_data(run.data, run.image_size)
        with torch.device("meta"):  # what doesn't fit shows before a teacher is trained
            check_method(create_model(run.model, **{**settings_for(data), **run.model_settings}), run.distillation)
        teacher = ready(run.teacher, Path(teacher_folder or out / "teacher"))
        start = ready(run.start, Path(start_folder or out / "start"))
        try:
            return Training(run, out, data, teacher, fabric, start).finish(left(), quiet)
        except RuntimeError as problem:
            if isinstance(problem, torch.OutOfMemoryError) or "allocate memory" in str(problem):
                raise TITNError(
                    f"a batch of {run.recipe.batch_size} pictures doesn't fit in memory with {run.model}: choose a "
                    "smaller batch_size (--batch-size)"
                ) from problem
            raise


def compare(
    run: Run, out: str | Path, *, device: str = "auto", minutes: float | None = None, quiet: bool = False
) -> dict[str, Record]:
    """The teacher, the student alone (on labels only) and the distilled student: three runs below one folder.

    Args and errors as in `train`.
    """
    out = make_folder(out)
    started = time.monotonic()
    parts: dict[str, Run] = {}
    if run.distillation != "none":
        parts["distilled"] = run  # first, with its teacher: what doesn't fit shows at once
    parts["alone"] = dataclasses.replace(run, distillation="none", teacher=None)
    if isinstance(run.teacher, Run):
        parts["teacher"] = run.teacher
    records = {}
    for name, part in parts.items():
        left = None if minutes is None else minutes - (time.monotonic() - started) / 60
        records[name] = train(
            part, out / name, teacher_folder=out / "teacher", device=device, minutes=left, quiet=quiet
        )
    return {name: records[name] for name in ("teacher", "alone", "distilled") if name in records}
