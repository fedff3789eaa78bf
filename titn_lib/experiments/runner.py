"""Run experiments, and list which runs are done, under way or pending."""

import os
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from titn_lib.errors import RunLocked, TrainingInterrupted
from titn_lib.experiments.settings import Experiment
from titn_lib.io import write_atomically
from titn_lib.models.weights import load_model, save_model
from titn_lib.training.config import diff_runs
from titn_lib.training.distributed import TIME_LIMIT, Deadline, is_main_process, start_fabric
from titn_lib.training.records import RECORD, WEIGHTS, RunResult, load_record
from titn_lib.training.run import train
from titn_lib.training.trainer import CHECKPOINT

MAX_WEIGHTS_BYTES = 16 * 2**20  # larger weights stay in runs/


def record_path(results: Path, experiment: Experiment, seed: int) -> Path:
    """The file of a run's record below the folder `results`."""
    return results / f"{experiment.run_id(seed)}.json"


def run_experiment(
    experiment: Experiment, seed: int, runs: Path, results: Path, again: bool = False, **options: Any
) -> RunResult:
    """Train one run and copy its record to `results`.

    The teacher and the initial weights come from `runs` or `results`, or are trained first. The weights are saved next
    to the record as float16, except for those of variants and those over 16 MiB.

    Args:
        runs: the folder of work in progress.
        results: the folder of records.
        again: the run has finished before. Its record and weights are replaced when the new run has finished.
        options: `device`, `max_minutes` and `progress`, as in `train`.
    """
    folder, target = runs / experiment.run_id(seed), record_path(results, experiment, seed)
    work = rerun_dir(folder) if again else folder
    initial = f"{experiment.init_from}/seed{seed}" if experiment.init_from else None
    fabric = start_fabric(experiment.runs[seed].recipe.precision, options.get("device", "auto"))
    with fabric.rank_zero_first():  # one process copies for all
        for run_id in filter(None, (experiment.teacher, initial)):
            restore(run_id, runs, results)
    record = train(
        experiment.runs[seed],
        work,
        teacher_dir=runs / experiment.teacher if experiment.teacher else None,
        init_from_dir=runs / initial if initial else None,
        **options,
    )
    if not is_main_process():
        return record
    model = load_model(work / WEIGHTS)
    small = 2 * sum(tensor.numel() for tensor in model.state_dict().values()) < MAX_WEIGHTS_BYTES
    if small and not experiment.variant:
        save_model(model, target.with_suffix(".safetensors"), model.preprocessing, torch.float16)
    write_atomically(target, (work / RECORD).read_bytes())
    if again:
        shutil.rmtree(folder, ignore_errors=True)
        work.rename(folder)
    return record


def rerun_dir(folder: Path) -> Path:
    """Where a finished run is trained once more. The folder exists from the request to the end of that run."""
    return folder.with_name(f"{folder.name}-rerun")


def request_reruns(experiments: Iterable[Experiment], runs: Path, results: Path) -> None:
    """Create the `rerun_dir` of every finished run, unless some are left from an interrupted rerun to resume."""
    finished = [(one, seed) for one in experiments for seed in one.runs if record_path(results, one, seed).exists()]
    folders = [rerun_dir(runs / one.run_id(seed)) for one, seed in finished]
    if not any(folder.exists() for folder in folders):
        for folder in folders:
            folder.mkdir(parents=True, exist_ok=True)


def restore(run_id: str, runs: Path, results: Path) -> None:
    """Copy a run that `results` holds with its weights (as float16) back to `runs`, unless it is there."""
    folder, weights = runs / run_id, results / f"{run_id}.safetensors"
    if weights.exists() and not (folder / RECORD).exists() and not (folder / CHECKPOINT).exists():
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(folder / WEIGHTS, weights.read_bytes())
        write_atomically(folder / RECORD, weights.with_suffix(".json").read_bytes())


def run_experiments(
    experiments: dict[str, Experiment],
    runs: Path,
    results: Path,
    max_minutes: float | None,
    device: str = "auto",
    rerun: Iterable[Experiment] = (),
) -> None:
    """Run what is pending, in order, until none is left or the time is up. Interrupted runs are resumed.

    Several processes may share the list: a run that another process is training is skipped. A job of several processes
    (torchrun) can't share it: its processes would go on to different runs.

    Args:
        rerun: the experiments whose finished runs are repeated, too.

    Raises:
        TrainingInterrupted: the time is up, or Ctrl-C.
        RunLocked: in a job of several processes, another process is training one of these runs.
    """
    deadline = Deadline.after(max_minutes)
    begun = False
    rerun = list(rerun)
    request_reruns(rerun, runs, results)
    for experiment in experiments.values():
        for seed in experiment.runs:
            again = experiment in rerun and rerun_dir(runs / experiment.run_id(seed)).exists()
            if again or not record_path(results, experiment, seed).exists():
                if begun and deadline.passed:
                    raise TrainingInterrupted(
                        f"stopped by {TIME_LIMIT} before {experiment.name}: run the same command to resume"
                    )
                begun = True
                if is_main_process():
                    print(f"{experiment.name}, seed {seed}: {experiment.description}", flush=True)
                options: dict[str, Any] = {"max_minutes": deadline.minutes_left, "device": device}
                try:
                    run_experiment(experiment, seed, runs, results, again, **options)
                except RunLocked as problem:
                    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
                        raise
                    print(f"  skipped: {problem}", flush=True)


def list_experiments(experiments: dict[str, Experiment], runs: Path, results: Path) -> str:
    """A line for each run: done (with its accuracy), under way, or pending."""
    width = max(map(len, experiments), default=0)
    lines = []
    for experiment in experiments.values():
        for seed, run in experiment.runs.items():
            path, folder = record_path(results, experiment, seed), runs / experiment.run_id(seed)
            if path.exists():
                record = load_record(path)
                state = f"done, test top-1 {record.test['top1']:.2f} %, {record.seconds / 60:.0f} min"
                state += ", but with other settings than the file has now" if diff_runs(record.run, run) else ""
                state += ", rerun under way" if (rerun_dir(folder) / CHECKPOINT).exists() else ""
            else:
                state = "under way" if (folder / CHECKPOINT).exists() else "pending"
            lines.append(f"{experiment.name:{width}}  seed {seed}  {experiment.preset:6}  {state}")
    return "\n".join(lines)
