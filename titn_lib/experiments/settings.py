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

import tomllib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from titn_lib.errors import TITNError, unknown
from titn_lib.models.registry import TEACHERS
from titn_lib.training.config import Run, change
from titn_lib.training.recipes import BUDGETS, student_recipe, teacher_recipe

SETTINGS = ("about", "data", "model", "budget", "seeds", "recipe", "model_settings")
KNOWN = (*SETTINGS, "distillation", "teacher", "objective", "start", "compare")


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
