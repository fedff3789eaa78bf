"""Runs to be made: settings files in experiments/, records in results/, and what lies between in runs/.

A file is a few lines of TOML; its name gives its order and its name (`20-cifar10-titn_paper.toml`):

    about = "The published model on CIFAR-10."
    data = "cifar10"
    model = "titn_paper"
    preset = "gpu"                        # the recipe to start from, and the machine it is meant for
    seeds = [0, 1, 2]
    loss = "hard"                         # one of losses.list_losses()
    teacher = "cifar10-vgg16_bn"          # another experiment (its first seed)
    init_from = "cifar10-titn_nano-gpu"   # another experiment that gives each seed its initial weights

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
from titn_lib.training.config import Run, override
from titn_lib.training.recipes import RECIPE_PRESETS, student_recipe, teacher_recipe

SETTINGS = ("about", "data", "model", "preset", "seeds", "recipe", "model_settings")
ALLOWED_KEYS = (*SETTINGS, "loss", "teacher", "init_from", "compare")


@dataclass(frozen=True)
class Experiment:
    """A settings file, or one of its variants: one run for each seed.

    Attributes:
        teacher: the teacher's folder below runs/, such as "cifar10-vgg16_bn/seed0".
        init_from: the name of the experiment that gives the initial weights.
        compare: the name of the experiment to compare it with.
        file: the settings file's name, without its number.
        variant: the variant's name; empty where the file has none.
    """

    name: str
    about: str
    preset: str
    runs: dict[int, Run]
    teacher: str | None
    init_from: str | None
    compare: str | None
    file: str
    variant: str

    def run_id(self, seed: int) -> str:
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
                experiment = parse_experiment(name, variant, deep_merge(about, lines), found)
                found[experiment.name] = experiment
        except (ValueError, KeyError, TypeError, AttributeError) as problem:
            raise TITNError(f"{file} is not a settings file ({problem}): see experiments/README.md") from problem
        except TITNError as problem:
            raise TITNError(f"{file}: {problem}") from problem
    return found


def select_experiments(experiments: dict[str, Experiment], names: Iterable[str]) -> dict[str, Experiment]:
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


def deep_merge(lines: dict, others: dict) -> dict:
    """The lines, with others in their place or beside them, table by table."""
    both = {
        name: deep_merge(lines[name], value)
        for name, value in others.items()
        if isinstance(value, dict) and name in lines
    }
    return {**lines, **others, **both}


def parse_experiment(file: str, variant: str, about: dict, earlier: dict[str, Experiment]) -> Experiment:
    for key in about:
        if key not in ALLOWED_KEYS:
            raise unknown("line", key, ALLOWED_KEYS)
    seeds = about.get("seeds", [0])
    if not seeds:
        raise TITNError("there are no seeds: leave the line out, or name one or more")
    if about["preset"] not in RECIPE_PRESETS:
        raise unknown("preset", about["preset"], RECIPE_PRESETS)
    recipe = (teacher_recipe if about["model"] in TEACHERS else student_recipe)(about["data"], about["preset"])
    teacher = None
    if "teacher" in about:
        if about["teacher"] not in earlier:
            raise unknown("teacher among the experiments before it", about["teacher"], earlier)
        teacher = earlier[about["teacher"]]
    name = f"{file}-{variant}" if variant else file
    init_from = about.get("init_from")
    if init_from is not None and init_from not in earlier:
        raise unknown("experiment before it to start from", init_from, earlier)
    if init_from is not None and not set(seeds) <= set(earlier[init_from].runs):
        raise TITNError(f"{init_from} has not all the seeds {seeds}: give it the same")
    compare = about.get("compare") if about.get("compare") != name else None  # no one is compared with itself
    if compare is not None and compare not in earlier:
        raise unknown("experiment before it to compare with", compare, earlier)
    runs = {
        seed: Run(
            data=about["data"],
            model=about["model"],
            recipe=override(recipe, about.get("recipe", {})),
            seed=seed,
            loss=about.get("loss", "cross_entropy"),
            teacher=next(iter(teacher.runs.values())) if teacher else None,
            model_settings=about.get("model_settings", {}),
            init_from=earlier[init_from].runs[seed] if init_from else None,
        )
        for seed in seeds
    }
    return Experiment(
        name=name,
        about=about.get("about", ""),
        preset=about["preset"],
        runs=runs,
        teacher=teacher.run_id(next(iter(teacher.runs))) if teacher else None,
        init_from=init_from,
        compare=compare,
        file=file,
        variant=variant,
    )
