"""Settings files of experiments, in experiments/.

A settings file is a few lines of TOML; experiments/README.md shows one. Its file name holds its order and its name, as
in `20-cifar10-vgg16_bn-gpu.toml`. Variants are made for comparisons: only their records are kept, not their weights.
"""

import tomllib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from titn_lib.errors import TITNError, unknown
from titn_lib.models.registry import TEACHERS
from titn_lib.training.config import Run, override
from titn_lib.training.recipes import RECIPE_PRESETS, student_recipe, teacher_recipe

ALLOWED_KEYS = (
    "description",
    "data",
    "model",
    "preset",
    "seeds",
    "loss",
    "teacher",
    "init_from",
    "recipe",
    "model_settings",
    "compare",
)


@dataclass(frozen=True)
class Experiment:
    """A settings file, or one of its variants: the same run with several seeds.

    Attributes:
        name: the file's name without its number, and the variant's.
        description: one sentence for tables.
        preset: the machine it is meant for.
        runs: a run for each seed.
        teacher: the run id of the teacher, such as "cifar10-vgg16_bn/seed0".
        init_from: the name of the experiment that trains the initial weights.
        compare: the name of the experiment to compare with.
        file: the settings file's name without its number.
        variant: the variant's name; empty for a file without variants.
    """

    name: str
    description: str
    preset: str
    runs: dict[int, Run]
    teacher: str | None
    init_from: str | None
    compare: str | None
    file: str
    variant: str

    def run_id(self, seed: int) -> str:
        """The path of the run's folder in runs/, and of its record in results/ without ".json"."""
        return f"{self.name}/seed{seed}"


def load_experiments(folder: str | Path = "experiments") -> dict[str, Experiment]:
    """The experiments of all settings files in a folder, by name, in the order of the files' numbers.

    Raises:
        TITNError: there is no settings file in the folder, or one is invalid.
    """
    files = sorted(Path(folder).glob("*.toml"))
    if not files:
        raise TITNError(
            f"there are no settings files in {folder}: run this in the checkout, or choose another --folder"
        )
    found: dict[str, Experiment] = {}
    all_variants: dict[str, dict] = {}
    for file in files:
        name = file.stem.split("-", 1)[-1]
        try:
            settings = tomllib.loads(file.read_text(encoding="utf-8"))
            variants = settings.pop("variants", {"": {}})
            if isinstance(variants, str):
                if variants not in all_variants:
                    raise unknown("file with variants before it", variants, all_variants)
                variants = all_variants[variants]
            if "" not in variants:
                all_variants[name] = variants
            for variant, changes in variants.items():
                experiment = parse_experiment(name, variant, deep_merge(settings, changes), found)
                found[experiment.name] = experiment
        except TITNError as problem:
            raise TITNError(f"{file}: {problem}") from problem
        except (ValueError, KeyError, TypeError, AttributeError) as problem:
            raise TITNError(f"{file} is not a settings file ({problem}): see experiments/README.md") from problem
    return found


def select_experiments(experiments: dict[str, Experiment], names: Iterable[str]) -> dict[str, Experiment]:
    """The experiments with these names. The name of a settings file stands for all of its variants.

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


def deep_merge(settings: dict, changes: dict) -> dict:
    """`settings` with `changes`; where both have a table, the tables are merged in the same way."""
    merged = {
        name: deep_merge(settings[name], value)
        for name, value in changes.items()
        if isinstance(value, dict) and name in settings
    }
    return {**settings, **changes, **merged}


def parse_experiment(file: str, variant: str, settings: dict, earlier: dict[str, Experiment]) -> Experiment:
    """The experiment of a file's (merged) settings.

    Raises:
        TITNError: a setting is unknown or impossible, or names an experiment that isn't defined before this one.
    """
    for key in settings:
        if key not in ALLOWED_KEYS:
            raise unknown("line", key, ALLOWED_KEYS)
    name = f"{file}-{variant}" if variant else file
    seeds = settings.get("seeds", [0])
    if not seeds:
        raise TITNError("there are no seeds: leave the line out, or name one or more")
    if settings["preset"] not in RECIPE_PRESETS:
        raise unknown("preset", settings["preset"], RECIPE_PRESETS)
    data, preset, model = settings["data"], settings["preset"], settings["model"]
    recipe = teacher_recipe(data, preset, model) if model in TEACHERS else student_recipe(data, preset, model)
    recipe = override(recipe, settings.get("recipe", {}))
    teacher = find_earlier("teacher among the experiments before it", settings.get("teacher"), earlier)
    initial = find_earlier("experiment before it to start from", settings.get("init_from"), earlier)
    if initial and not set(seeds) <= set(initial.runs):
        raise TITNError(f"{initial.name} lacks some of the seeds {seeds}: give both the same seeds")
    compare = settings.get("compare")
    if compare == name:
        compare = None  # the variant that the others are compared with
    find_earlier("experiment before it to compare with", compare, earlier)
    runs = {
        seed: Run(
            data=settings["data"],
            model=settings["model"],
            recipe=recipe,
            seed=seed,
            loss=settings.get("loss", "cross_entropy"),
            teacher=next(iter(teacher.runs.values())) if teacher else None,
            model_settings=settings.get("model_settings", {}),
            init_from=initial.runs[seed] if initial else None,
        )
        for seed in seeds
    }
    return Experiment(
        name=name,
        description=settings.get("description", ""),
        preset=settings["preset"],
        runs=runs,
        teacher=teacher.run_id(next(iter(teacher.runs))) if teacher else None,
        init_from=initial.name if initial else None,
        compare=compare,
        file=file,
        variant=variant,
    )


def find_earlier(role: str, name: str | None, earlier: dict[str, Experiment]) -> Experiment | None:
    """The experiment of this name; None without a name. Raises TITNError if it isn't defined."""
    if name is not None and name not in earlier:
        raise unknown(role, name, earlier)
    return earlier[name] if name is not None else None
