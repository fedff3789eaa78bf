"""The command line: the library's functions by name.

titn distill --data cifar10 --preset laptop --out runs/cifar10
titn train-teacher --data cifar10 --model resnet18
titn evaluate runs/cifar10/distilled/model.safetensors
titn predict cat.jpg --weights runs/cifar10/distilled/model.safetensors
titn explore cat.jpg --weights titn_mini.cifar10 --out cat.html
titn download
titn experiments
titn report
"""

import argparse
import dataclasses
import os
import sys
from collections.abc import Callable
from pathlib import Path

from titn_lib.errors import TITNError
from titn_lib.io import REASONS


def main(arguments: list[str] | None = None) -> int:
    """Run a command; 0 if it did what was asked. A problem is one sentence on standard error, without a traceback."""
    try:
        options = vars(make_parser().parse_args(arguments))
        command: Callable[..., None] = options.pop("command")
        command(**options)
    except TITNError as problem:
        return complain(str(problem))
    except ModuleNotFoundError as problem:
        return complain(f"the package {problem.name} is missing: install it (pip install {problem.name})")
    except BrokenPipeError:  # whoever read the output has had enough
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115  so that Python's own last flush has somewhere to go
    except OSError as problem:
        reason = REASONS.get(problem.errno or 0, problem.strerror or str(problem))
        return complain(f"{problem.filename}: {reason}" if problem.filename else reason)
    except KeyboardInterrupt:
        return complain("stopped; the same command goes on from the last checkpoint, where there is one")
    return 0


def complain(sentence: str) -> int:
    print(f"titn: {sentence}", file=sys.stderr)
    return 1


# --- the commands: what only they need is imported when one is called


def distill(out: Path | None, device: str, max_minutes: float | None, quiet: bool, **options: object) -> None:
    """Train a teacher, a student alone and a distilled student; print them side by side."""
    from titn_lib.io import write_atomically
    from titn_lib.plots import plot_curves, save_figure
    from titn_lib.training.distributed import is_main_process
    from titn_lib.training.recipes import make_run
    from titn_lib.training.records import table, to_json
    from titn_lib.training.run import train_comparison

    run = make_run(**{name: value for name, value in options.items() if value is not None})  # type: ignore[arg-type]
    out = out or Path("runs") / f"{Path(run.data).name}-{run.model}-{run.loss}-{options['preset']}-seed{run.seed}"
    records = train_comparison(run, out, device=device, max_minutes=max_minutes, progress=not quiet)
    if is_main_process():
        write_atomically(out / "records.json", to_json(records))
        save_figure(plot_curves(records), out / "curves.png")
        print(f"{table(records)}\n\nrecords: {out / 'records.json'}\ncurves: {out / 'curves.png'}")
        for name in records:
            print(f"weights: {out / name / 'model.safetensors'}")


def train_teacher(
    data: str, model: str, preset: str, seed: int, out: Path | None, device: str, max_minutes: float | None, quiet: bool,
    image_size: tuple[int, int] | None, **changes: object,
) -> None:  # fmt: skip
    """Train a teacher."""
    from titn_lib.errors import unknown
    from titn_lib.models.registry import TEACHERS
    from titn_lib.training.config import Run, override, resolve_dataset
    from titn_lib.training.distributed import is_main_process
    from titn_lib.training.recipes import teacher_recipe
    from titn_lib.training.records import table
    from titn_lib.training.run import train

    given = {name: value for name, value in changes.items() if value is not None}
    if model not in TEACHERS:
        raise unknown("teacher", model, TEACHERS)
    run = Run(resolve_dataset(data), model, override(teacher_recipe(data, preset), given), seed, image_size=image_size)
    out = out or Path("runs") / f"{Path(run.data).name}-{model}-{preset}-seed{seed}"
    record = train(run, out, device=device, max_minutes=max_minutes, progress=not quiet)
    if is_main_process():
        print(f"{table({'teacher': record})}\n\nweights: {out / 'model.safetensors'}")


def evaluate(weights: Path, data: str | None) -> None:
    """Measure trained weights on the validation and test splits."""
    from titn_lib.data.datasets import load_dataset
    from titn_lib.models.weights import load_model
    from titn_lib.training.evaluation import evaluate as measure

    model = load_model(weights)
    if model.preprocessing is None:
        raise TITNError(f"{weights} doesn't say how its images were normalized: save it with its preprocessing")
    splits = load_dataset(data or model.preprocessing.data, model.config.image_size)
    if splits.classes != model.preprocessing.classes:
        raise TITNError(f"{weights} knows the classes of {model.preprocessing.data}, not those of {splits.name}")
    for name in ("validation", "test"):
        result = measure(model, getattr(splits, name), model.preprocessing)
        print(
            f"{name:10}  top-1 {result['top1']:6.2f} %  top-5 {result['top5']:6.2f} %  loss {result['loss']:.4f}  "
            f"({result['num_images']:,} images)"
        )


def predict(paths: list[Path], weights: Path) -> None:
    """The five most likely classes of images, whatever their size."""
    import torch

    from titn_lib.data.images import load_image
    from titn_lib.models.inference import predict as logits_of
    from titn_lib.models.weights import load_model

    model = load_model(weights)
    about = model.preprocessing
    if about is None:
        raise TITNError(f"{weights} doesn't say which classes it knows: save it with its preprocessing")
    read = [load_image(path, model.config.in_channels, model.config.image_size) for path in paths]
    shares = logits_of(model, torch.stack(read), about).softmax(dim=-1)
    for path, row in zip(paths, shares, strict=True):
        best = row.topk(min(5, len(row)))
        print(path)
        for share, label in zip(best.values.tolist(), best.indices.tolist(), strict=True):
            print(f"  {100 * share:5.1f} %  {about.classes[label]}")


def explore(paths: list[Path], weights: Path, compare: Path | None, teacher: Path | None, out: Path) -> None:
    """Write a page that shows where a student looks: one file, for any browser, to hover and click."""
    import torch

    from titn_lib.data.images import load_image
    from titn_lib.interpret.attribution import require_attention
    from titn_lib.interpret.explorer import write_page
    from titn_lib.models.weights import load_model

    model = require_attention(load_model(weights))
    other, master = (load_model(path) if path else None for path in (compare, teacher))
    config = model.config
    images = torch.stack([load_image(path, config.in_channels, config.image_size) for path in paths])
    names = [str(path).removesuffix(".safetensors") for path in (weights, compare) if path]
    write_page(out, model, images, compare=other, teacher=master, names=names, titles=[path.name for path in paths])
    print(f"open it in a browser: {out}")


def download(names: list[str]) -> None:
    """Fetch data sets and say how they are split; without a name, list them."""
    from titn_lib.data.datasets import DATASETS, data_dir, load_dataset

    if not names:
        print(f"kept in {data_dir()} (set TITN_DATA to choose another folder)\n")
        for name, info in DATASETS.items():
            print(f"{name:14} {info.description}")
        print("\nor the path of a folder with a subfolder of images for each class")
    for name in names:
        splits = load_dataset(name)
        sizes = ", ".join(f"{part} {len(getattr(splits, part)):,}" for part in ("train", "validation", "test"))
        height, width = splits.image_size
        print(f"{name}: {sizes}; {len(splits.classes)} classes; {splits.in_channels}×{height}×{width}")


def experiments(
    folder: Path, runs: Path, results: Path, run: list[str] | None, max_minutes: float | None, preset: str | None,
    rerun: list[str], device: str,
) -> None:  # fmt: skip
    """List the runs in experiments/: done, under way, pending. With --run or --max-minutes, make the pending ones."""
    import torch

    from titn_lib.experiments.runner import list_experiments, reset, run_pending
    from titn_lib.experiments.settings import load_experiments, select_experiments
    from titn_lib.training.distributed import is_main_process

    found = load_experiments(folder)
    chosen = select_experiments(found, [*rerun, *(run or [])])
    if rerun and int(os.environ.get("WORLD_SIZE", 1)) > 1:
        raise TITNError(
            "--rerun works with one process: call it with --max-minutes 0.01 first, then torchrun without it"
        )
    for experiment in select_experiments(found, rerun).values():
        reset(experiment, runs, results)
    if run is not None or max_minutes is not None or rerun:
        if not chosen:
            here = "gpu" if torch.cuda.is_available() and device != "cpu" else "laptop"
            chosen = {name: one for name, one in found.items() if one.preset == (preset or here)}
        run_pending(chosen, runs, results, max_minutes, device)
    if is_main_process():
        print(list_experiments(found, runs, results))


def report(names: list[str], write: bool, folder: Path, results: Path) -> None:
    """Print tables of what has been measured; with --write, bring pages, figures and shipped weights up to date."""
    from titn_lib.experiments.report import comparison, ship_weights, summary, write_results
    from titn_lib.experiments.settings import load_experiments
    from titn_lib.experiments.statistics import groups, load_rows
    from titn_lib.models.weights import PRETRAINED_DIR

    rows = load_rows(load_experiments(folder), results)
    if names:
        print(comparison(rows, names))
    else:
        single = [name for name, row in rows.items() if not row.experiment.variant]
        tables = {"published and measured": summary(rows), "single runs": comparison(rows, single)}
        tables |= {file: comparison(rows, [file]) for file in groups(rows)}
        print("\n\n".join(f"{title}\n\n{table}" for title, table in tables.items()))
    if write:
        top = results.parent
        pages = (results / "README.md", top / "README.md", PRETRAINED_DIR / "README.md")
        write_results(rows, [page for page in pages if page.exists()], results)
        if PRETRAINED_DIR.parents[2] == top.resolve():  # in a checkout
            ship_weights(rows, results, PRETRAINED_DIR)


# --- the options


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="titn", description="Transformer-in-transformer networks with knowledge distillation."
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def add(name: str, command: Callable[..., None]) -> argparse.ArgumentParser:
        text = (command.__doc__ or "").strip()
        sub = commands.add_parser(name, help=text, description=text)
        sub.set_defaults(command=command)
        return sub

    sub = add("distill", distill)
    add_run_options(sub, model=None)
    sub.add_argument("--teacher", help="a teacher's name, or the path of its weights (default: the preset's)")
    sub.add_argument(
        "--loss",
        help="none, hard, soft, dkd, feature, manifold, or one of each kind: hard+feature (default: hard)",
    )
    add_recipe_options(sub)

    sub = add("train-teacher", train_teacher)
    add_run_options(sub, model="vgg7_bn")
    add_recipe_options(sub)

    sub = add("evaluate", evaluate)
    sub.add_argument("weights", type=Path)
    sub.add_argument("--data", help="a data set with the same classes (default: the one it was trained on)")

    sub = add("predict", predict)
    sub.add_argument("paths", nargs="+", type=Path, metavar="IMAGE")
    sub.add_argument("--weights", type=Path, required=True)

    sub = add("explore", explore)
    sub.add_argument("paths", nargs="+", type=Path, metavar="IMAGE")
    sub.add_argument(
        "--weights", type=Path, required=True, help="a student's file, or a name such as titn_mini.cifar10"
    )
    sub.add_argument("--compare", type=Path, metavar="WEIGHTS", help="a second student, shown beside the first")
    sub.add_argument("--teacher", type=Path, metavar="WEIGHTS", help="a teacher whose answers are shown too")
    sub.add_argument("--out", type=Path, default=Path("attention.html"), metavar="FILE", help="default: %(default)s")

    sub = add("download", download)
    sub.add_argument("names", nargs="*", metavar="NAME")

    sub = add("experiments", experiments)
    sub.add_argument(
        "--run", nargs="*", metavar="NAME", help="make the pending runs in order (of these experiments or settings "
        "files; without a name, all), resuming what was cut off"
    )  # fmt: skip
    sub.add_argument("--max-minutes", type=float, help="make runs, and stop with a checkpoint after so long")
    sub.add_argument(
        "--preset",
        choices=["smoke", "laptop", "gpu"],
        help="which runs to make (default: gpu where there is one, else laptop)",
    )
    sub.add_argument("--rerun", nargs="+", default=[], metavar="NAME", help="make these again, if they were finished")
    sub.add_argument("--folder", type=Path, default=Path("experiments"))
    sub.add_argument("--runs", type=Path, default=Path("runs"))
    sub.add_argument("--results", type=Path, default=Path("results"))
    sub.add_argument("--device", default="auto", choices=["auto", "cpu", "cuda"])

    sub = add("report", report)
    sub.add_argument("names", nargs="*", metavar="NAME", help="of experiments or settings files (default: all)")
    sub.add_argument("--write", action="store_true", help="bring the pages, figures and shipped weights up to date")
    sub.add_argument("--folder", type=Path, default=Path("experiments"))
    sub.add_argument("--results", type=Path, default=Path("results"))
    return parser


def add_run_options(parser: argparse.ArgumentParser, model: str | None) -> None:
    parser.add_argument("--data", default="digits", help="a data set's name, or a folder of images by class")
    parser.add_argument("--model", default=model, help=f"default: {model or 'one of its size for the data and preset'}")
    parser.add_argument("--image-size", type=image_size_of, metavar="SIZE", help="64, or 48x64 (height × width)")
    parser.add_argument("--preset", default="laptop", help="smoke, laptop or gpu (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="folder for records and weights (default: one below runs/)")
    parser.add_argument("--device", default="auto", choices=["auto", "cpu", "cuda"])
    parser.add_argument(
        "--max-minutes", type=float, help="stop with a checkpoint after so long; the same command goes on"
    )
    parser.add_argument("--quiet", action="store_true", help="no progress bar")


def image_size_of(text: str) -> tuple[int, int]:
    """ "64" or "48x64" as height and width."""
    height, _, width = text.partition("x")
    return int(height), int(width or height)


def add_recipe_options(parser: argparse.ArgumentParser) -> None:
    """An option for each setting of a recipe."""
    from titn_lib.training.config import Recipe

    group = parser.add_argument_group(
        "settings of the recipe", "by default the preset's; what they mean: recipes.Recipe"
    )
    for field in dataclasses.fields(Recipe):
        kind = type(field.default)
        group.add_argument(f"--{field.name.replace('_', '-')}", type=kind, metavar=kind.__name__)


if __name__ == "__main__":
    sys.exit(main())
