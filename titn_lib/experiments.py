"""Runs to be made: settings files in experiments/, records in results/, and what lies between in runs/.

A file is a few lines of TOML; its name gives its order and its name (`20-cifar10-titn_paper.toml`):

    about = "The published model on CIFAR-10."
    data = "cifar10"
    model = "titn_paper"
    budget = "gpu"                        # the recipe to start from, and the machine it is meant for
    seeds = [0, 1, 2]
    distillation = "hard"
    teacher = "cifar10-vgg16_bn"          # another experiment (its first seed)
    objective = "classification"          # one of neighbours.OBJECTIVES
    start = "cifar10-titn_nano-gpu"       # another experiment that gives each seed its first weights

    [recipe]                              # settings of the recipe to change
    epochs = 300

    [model_settings]                      # settings of the model to change

    [variants.shallow]                    # an experiment "cifar10-titn_paper-shallow": the lines above, and these.
    about = "Half as deep."               # A file with variants has no experiment without
    model_settings.depth = 6

Instead of tables, `variants = "NAME"` takes those of another file before it. Variants are there to be compared: they
leave records and no weights, and `compare = "NAME"` says with which experiment (it may be one of the variants).
"""

import shutil
import time
import tomllib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from .errors import Busy, Interrupted, TITNError, unknown
from .files import write_atomically
from .models import TEACHERS, load_model, save_model
from .recipes import BUDGETS, Run, change, student_recipe, teacher_recipe
from .records import RECORD, Record, load_record
from .training import CHECKPOINT, TIME_LIMIT, WEIGHTS, differences, leads, start_fabric, train

SETTINGS = ("about", "data", "model", "budget", "seeds", "recipe", "model_settings")
KNOWN = (*SETTINGS, "distillation", "teacher", "objective", "start", "compare")
SHIPPED_BYTES = 16 * 2**20  # larger weights stay in runs/


@dataclass(frozen=True)
class Experiment:
    """A settings file, or one of its variants: one run for each seed.

    Attributes:
        teacher: the teacher's folder below runs/, such as "cifar10-vgg16_bn/seed0".
        start: the name of the experiment that gives the first weights.
        compare: the name of the experiment to compare it with.
        file: the settings file's name, without its number.
        variant: the variant's name; empty where the file has none.
    """

    name: str
    about: str
    budget: str
    runs: dict[int, Run]
    teacher: str | None
    start: str | None
    compare: str | None
    file: str
    variant: str

    def place(self, seed: int) -> str:
        """The run's folder below runs/, and its record's name below results/."""
        return f"{self.name}/seed{seed}"


def load_experiments(folder: str | Path = "experiments") -> dict[str, Experiment]:
    """All settings files of a folder, in their order.

    Raises:
        TITNError: there is no such folder, or a file that makes no sense.
    """
    files = sorted(Path(folder).glob("*.toml"))
    if not files:
        raise TITNError(f"there are no settings files in {folder}: call this from the checkout, or name the --folder")
    found: dict[str, Experiment] = {}
    all_variants: dict[str, dict] = {}
    for file in files:
        name = file.stem.split("-", 1)[-1]
        try:
            about = tomllib.loads(file.read_text(encoding="utf-8"))
            variants = about.pop("variants", {"": {}})
            if isinstance(variants, str):
                if variants not in all_variants:
                    raise unknown("file with variants before it", variants, all_variants)
                variants = all_variants[variants]
            if "" not in variants:
                all_variants[name] = variants
            for variant, lines in variants.items():
                experiment = read_experiment(name, variant, overlay(about, lines), found)
                found[experiment.name] = experiment
        except (ValueError, KeyError, TypeError, AttributeError) as problem:
            raise TITNError(f"{file} is not a settings file ({problem}): see experiments/README.md") from problem
        except TITNError as problem:
            raise TITNError(f"{file}: {problem}") from problem
    return found


def choose_experiments(experiments: dict[str, Experiment], names: Iterable[str]) -> dict[str, Experiment]:
    """Those of these names, or of the settings files of these names.

    Raises:
        TITNError: there is no such experiment or file.
    """
    chosen: dict[str, Experiment] = {}
    for name in names:
        found = {key: experiment for key, experiment in experiments.items() if name in (key, experiment.file)}
        if not found:
            raise unknown("experiment", name, [*experiments, *{one.file for one in experiments.values()}])
        chosen |= found
    return chosen


def overlay(lines: dict, others: dict) -> dict:
    """The lines, with others in their place or beside them, table by table."""
    both = {
        name: overlay(lines[name], value) for name, value in others.items() if isinstance(value, dict) and name in lines
    }
    return {**lines, **others, **both}


def read_experiment(file: str, variant: str, about: dict, earlier: dict[str, Experiment]) -> Experiment:
    for key in about:
        if key not in KNOWN:
            raise unknown("line", key, KNOWN)
    seeds = about.get("seeds", [0])
    if not seeds:
        raise TITNError("there are no seeds: leave the line out, or name one or more")
    if about["budget"] not in BUDGETS:
        raise unknown("budget", about["budget"], BUDGETS)
    recipe = (teacher_recipe if about["model"] in TEACHERS else student_recipe)(about["data"], about["budget"])
    teacher = None
    if "teacher" in about:
        if about["teacher"] not in earlier:
            raise unknown("teacher among the experiments before it", about["teacher"], earlier)
        teacher = earlier[about["teacher"]]
    name = f"{file}-{variant}" if variant else file
    start = about.get("start")
    if start is not None and start not in earlier:
        raise unknown("experiment before it to start from", start, earlier)
    if start is not None and not set(seeds) <= set(earlier[start].runs):
        raise TITNError(f"{start} has not all the seeds {seeds}: give it the same")
    compare = about.get("compare") if about.get("compare") != name else None  # no one is compared with itself
    if compare is not None and compare not in earlier:
        raise unknown("experiment before it to compare with", compare, earlier)
    runs = {
        seed: Run(
            data=about["data"],
            model=about["model"],
            recipe=change(recipe, about.get("recipe", {})),
            seed=seed,
            distillation=about.get("distillation", "none"),
            teacher=next(iter(teacher.runs.values())) if teacher else None,
            model_settings=about.get("model_settings", {}),
            objective=about.get("objective", "classification"),
            start=earlier[start].runs[seed] if start else None,
        )
        for seed in seeds
    }
    return Experiment(
        name=name,
        about=about.get("about", ""),
        budget=about["budget"],
        runs=runs,
        teacher=teacher.place(next(iter(teacher.runs))) if teacher else None,
        start=start,
        compare=compare,
        file=file,
        variant=variant,
    )


def record_path(results: Path, experiment: Experiment, seed: int) -> Path:
    return results / f"{experiment.place(seed)}.json"


def run_experiment(experiment: Experiment, seed: int, runs: Path, results: Path, **options: Any) -> Record:
    """Make one run, what it needs first where that is in neither `runs` nor `results`; leave the record in `results`.

    The weights go beside the record as float16, unless it is a variant's or they are too large to keep (16 MiB).

    Args:
        options: `device`, `minutes` and `quiet`, as in `training.train`.
    """
    folder, target = runs / experiment.place(seed), record_path(results, experiment, seed)
    start = f"{experiment.start}/seed{seed}" if experiment.start else None
    fabric = start_fabric(experiment.runs[seed].recipe.precision, options.get("device", "auto"))
    with fabric.rank_zero_first():  # one process copies, the others find it done
        for needed in filter(None, (experiment.teacher, start)):
            bring_back(needed, runs, results)
    record = train(
        experiment.runs[seed],
        folder,
        teacher_folder=runs / experiment.teacher if experiment.teacher else None,
        start_folder=runs / start if start else None,
        **options,
    )
    if not leads():
        return record
    model = load_model(folder / WEIGHTS)
    small = 2 * sum(tensor.numel() for tensor in model.state_dict().values()) < SHIPPED_BYTES
    if small and not experiment.variant:
        save_model(model, target.with_suffix(".safetensors"), model.preprocessing, torch.float16)
    write_atomically(target, (folder / RECORD).read_bytes())
    return record


def bring_back(place: str, runs: Path, results: Path) -> None:
    """A run that `results` keeps with its weights (as float16) need not be made again where its folder is gone."""
    folder, weights = runs / place, results / f"{place}.safetensors"
    if weights.exists() and not (folder / RECORD).exists() and not (folder / CHECKPOINT).exists():
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(folder / WEIGHTS, weights.read_bytes())
        write_atomically(folder / RECORD, weights.with_suffix(".json").read_bytes())


def run_pending(
    experiments: dict[str, Experiment], runs: Path, results: Path, minutes: float | None, device: str = "auto"
) -> None:
    """Make the pending runs in order, until none is left or the time is up; what was cut off goes on the next time.
    What another process is making is left to it: several at once share the list.

    Raises:
        Interrupted: the time is up, or Ctrl-C.
    """
    started, begun = time.monotonic(), False
    for experiment in experiments.values():
        for seed in experiment.runs:
            if not record_path(results, experiment, seed).exists():
                left = None if minutes is None else minutes - (time.monotonic() - started) / 60
                if begun and left is not None and left <= 0:
                    raise Interrupted(f"stopped by {TIME_LIMIT} before {experiment.name}; the same command goes on")
                begun = True
                if leads():
                    print(f"{experiment.name}, seed {seed}: {experiment.about}", flush=True)
                try:
                    run_experiment(experiment, seed, runs, results, minutes=left, device=device)
                except Busy as problem:
                    print(f"  left out: {problem}", flush=True)


def forget(experiment: Experiment, runs: Path, results: Path) -> None:
    """Make a finished experiment pending again. One that is under way is left to go on."""
    if not all(record_path(results, experiment, seed).exists() for seed in experiment.runs):
        return
    shutil.rmtree(runs / experiment.name, ignore_errors=True)
    shutil.rmtree(results / experiment.name, ignore_errors=True)


def list_experiments(experiments: dict[str, Experiment], runs: Path, results: Path) -> str:
    """A line for each run: done with its figure, under way, or pending."""
    width = max(map(len, experiments))
    lines = []
    for experiment in experiments.values():
        for seed, run in experiment.runs.items():
            path = record_path(results, experiment, seed)
            if path.exists():
                record = load_record(path)
                state = f"done, test top-1 {record.test['top1']:.2f} %, {record.seconds / 60:.0f} min"
                state += ", but by other settings than the file's now" if differences(record.run, run) else ""
            else:
                state = "under way" if (runs / experiment.place(seed) / CHECKPOINT).exists() else "pending"
            lines.append(f"{experiment.name:{width}}  seed {seed}  {experiment.budget:6}  {state}")
    return "\n".join(lines)
