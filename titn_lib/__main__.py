"""The command line.

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
import io
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import titn_lib
from titn_lib.errors import TITNError, TrainingInterrupted
from titn_lib.io import REASONS, path_of, text_of
from titn_lib.validation import image_size_of

if TYPE_CHECKING:
    from titn_lib.experiments.statistics import ExperimentSummary

WEIGHTS_HELP = "a weights file, or the name of pretrained weights such as titn_mini.cifar10"


def main(arguments: list[str] | None = None) -> int:
    """Run a command and return its exit status. An error is one sentence on standard error, without a traceback."""
    for stream in filter(lambda one: isinstance(one, io.TextIOWrapper), (sys.stdout, sys.stderr)):
        stream.reconfigure(errors="replace")  # type: ignore[union-attr]  # a terminal that lacks a character shows "?"
    try:
        options = vars(make_parser().parse_args(arguments))
        command: Callable[..., None] = options.pop("command")
        command(**options)
    except (TITNError, TrainingInterrupted) as problem:
        return complain(str(problem))
    except ModuleNotFoundError as problem:
        return complain(f"the package {problem.name} is missing: install it (pip install {problem.name})")
    except MemoryError:
        return complain("there is not enough memory for this: choose a smaller image size, model or batch")
    except BrokenPipeError:  # the reader of the output has closed it
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115  for Python's last flush
    except OSError as problem:
        reason = REASONS.get(problem.errno or 0, problem.strerror or str(problem))
        return complain(f"{problem.filename}: {reason}" if problem.filename else reason)
    except KeyboardInterrupt:
        return complain("stopped: run the same command to resume from the last checkpoint, if there is one")
    return 0


def complain(sentence: str) -> int:
    """Print an error and return the exit status."""
    print(f"titn: {sentence}", file=sys.stderr)
    return 1


# --- the commands; each imports what it needs when it is called


def distill(
    out: Path | None, device: str, max_minutes: float | None, quiet: bool, skip_damaged: bool, **options: object
) -> None:
    """Train a teacher, a student alone and a distilled student, and compare them."""
    from titn_lib.io import write_atomically
    from titn_lib.plots import plot_curves, save_figure
    from titn_lib.training.distributed import is_main_process
    from titn_lib.training.recipes import make_run
    from titn_lib.training.records import table, to_json
    from titn_lib.training.run import train_comparison

    run = make_run(**{name: value for name, value in options.items() if value is not None})  # type: ignore[arg-type]
    out = out or Path("runs") / f"{Path(run.data).name}-{run.model}-{run.loss}-{options['preset']}-seed{run.seed}"
    where: dict[str, Any] = {"device": device, "max_minutes": max_minutes, "progress": not quiet}
    records = train_comparison(run, out, **where, skip_damaged=skip_damaged)
    if is_main_process():
        write_atomically(out / "records.json", to_json(records))
        save_figure(plot_curves(records), out / "curves.png")
        print(f"{table(records)}\n\nrecords: {out / 'records.json'}\ncurves: {out / 'curves.png'}")
        for name in records:
            print(f"weights: {out / name / 'model.safetensors'}")


def train_teacher(
    data: str, model: str | None, preset: str, seed: int, out: Path | None, device: str, max_minutes: float | None,
    quiet: bool, skip_damaged: bool, image_size: tuple[int, int] | None, init_from: str | None, **changes: object,
) -> None:  # fmt: skip
    """Train a teacher."""
    from titn_lib.training.distributed import is_main_process
    from titn_lib.training.recipes import teacher_run
    from titn_lib.training.records import table
    from titn_lib.training.run import train

    given = {name: value for name, value in changes.items() if value is not None}
    run = teacher_run(data, model, preset, seed, image_size, init_from, **given)
    out = out or Path("runs") / f"{Path(run.data).name}-{re.sub('[:/]', '_', run.model)}-{preset}-seed{seed}"
    where: dict[str, Any] = {"device": device, "max_minutes": max_minutes, "progress": not quiet}
    record = train(run, out, **where, skip_damaged=skip_damaged)
    if is_main_process():
        print(f"{table({'teacher': record})}\n\nweights: {out / 'model.safetensors'}")


def evaluate(weights: Path, data: str | None, skip_damaged: bool, confusion: Path | None) -> None:
    """Evaluate trained weights on the validation and test splits, or on all of a folder of other images."""
    from titn_lib.models.weights import load_model
    from titn_lib.training.evaluation import evaluate_classes, images_to_measure, recall_by_class

    model = load_model(weights)
    parts, about = images_to_measure(model, weights, data, skip_damaged)
    for name, part in parts.items():
        result, counts = evaluate_classes(model, part, about)
        print(
            f"{name:10}  top-1 {result['top1']:6.2f} %  top-5 {result['top5']:6.2f} %  balanced "
            f"{result['balanced_accuracy']:6.2f} %  loss {result['loss']:.4f}  ({result['num_images']:,} images)"
        )
    print(f"\n{recall_by_class(counts, about.classes)}")
    if confusion:
        from titn_lib.io import require_no_input
        from titn_lib.models.weights import weights_file
        from titn_lib.plots import plot_confusion, save_figure

        labels, predicted = counts.nonzero().repeat_interleave(counts[counts > 0], dim=0).T
        require_no_input(confusion, [weights_file(weights)])
        save_figure(plot_confusion(labels, predicted, about.classes, f"{name}, {len(labels):,} images"), confusion)


def predict(paths: list[Path], weights: Path) -> None:
    """Print the five most likely classes of images of any size."""
    from titn_lib.data.images import load_images
    from titn_lib.models.inference import predict as logits_of
    from titn_lib.models.weights import load_model

    model = load_model(weights)
    preprocessing = model.preprocessing
    if preprocessing is None:
        raise TITNError(f"{weights} doesn't name its classes: save it with save_model(…, preprocessing)")
    images = load_images(paths, model.config.in_channels, model.config.image_size)
    probabilities = logits_of(model, images, preprocessing).softmax(dim=-1)
    for path, row in zip(paths, probabilities, strict=True):
        best = row.topk(min(5, len(row)))
        print(path)
        for probability, label in zip(best.values.tolist(), best.indices.tolist(), strict=True):
            print(f"  {100 * probability:5.1f} %  {preprocessing.classes[label]}")


def explore(
    paths: list[Path], weights: Path, compare: Path | None, teacher: Path | None, labels: list[str] | None,
    heads: str | None, live: Path | None, out: Path,
) -> None:  # fmt: skip
    """Write an interactive page of a student's attention maps, one HTML file for any browser."""
    from titn_lib.data.images import load_images
    from titn_lib.interpret.attribution import require_attention
    from titn_lib.interpret.explorer import write_page
    from titn_lib.io import require_no_input
    from titn_lib.models.weights import load_model, weights_file

    model = require_attention(load_model(weights))
    other, teacher_model = (load_model(name) if name else None for name in (compare, teacher))
    require_no_input(out, [*paths, *(weights_file(name) for name in (weights, compare, teacher) if name)])
    images = load_images(paths, model.config.in_channels, model.config.image_size)
    names = [path.parent.name if path.name == "model.safetensors" else path.name for path in (weights, compare) if path]
    titles = [path.name for path in paths]
    shown = {"labels": labels, "compare": other, "teacher": teacher_model, "names": names, "titles": titles}
    write_page(out, model, images, live=live, heads=heads, **shown)
    print(f"open it in a browser: {out}")


def download(names: list[str]) -> None:
    """Download data sets and print the sizes of their splits. Without a name, list them."""
    from titn_lib.data.datasets import DATASETS, data_dir, load_dataset

    if not names:
        print(f"data sets are kept in {data_dir()} (set TITN_DATA to choose another folder)\n")
        for name, info in DATASETS.items():
            print(f"{name:14} {info.description}")
        print("\nor the path of a folder that has a subfolder of images for each class")
    for name in names:
        splits = load_dataset(name)
        sizes = ", ".join(f"{part} {len(getattr(splits, part)):,}" for part in ("train", "validation", "test"))
        height, width = splits.image_size
        print(f"{name}: {sizes}; {len(splits.classes)} classes; {splits.in_channels}×{height}×{width}")


def experiments(
    folder: Path, work_dir: Path, results: Path, run: list[str] | None, max_minutes: float | None, preset: str | None,
    rerun: list[str], device: str,
) -> None:  # fmt: skip
    """List the runs in experiments/: done, under way or pending. With --run, run the pending ones."""
    import torch

    from titn_lib.experiments.runner import list_experiments, run_experiments
    from titn_lib.experiments.settings import load_experiments, select_experiments
    from titn_lib.training.distributed import is_main_process

    found = load_experiments(folder)
    repeated = select_experiments(found, rerun)
    chosen = repeated | select_experiments(found, run or [])
    listed = {name: one for name, one in found.items() if preset in (None, one.preset)}
    if run == []:
        here = "gpu" if torch.cuda.is_available() and device != "cpu" else "laptop"
        chosen |= {name: one for name, one in listed.items() if one.preset == (preset or here)}
    if run is not None or rerun:
        chosen = {name: one for name, one in chosen.items() if name in listed}
        again = [one for name, one in repeated.items() if name in chosen]
        run_experiments(chosen, work_dir, results, max_minutes, device, again)
    elif max_minutes is not None:
        raise TITNError("--max-minutes limits a run: add --run, for all pending runs, or --run NAME")
    if is_main_process():
        print(list_experiments(listed, work_dir, results))


def report(names: list[str], write: bool, folder: Path, results: Path) -> None:
    """Print tables of the records in results/. With --write, update pages, figures and shipped weights."""
    from titn_lib.experiments.report import comparison
    from titn_lib.experiments.settings import load_experiments
    from titn_lib.experiments.shipping import summary
    from titn_lib.experiments.statistics import groups, load_rows

    rows = load_rows(load_experiments(folder), results)
    if names:
        print(comparison(rows, names))
    else:
        single = [name for name, row in rows.items() if not row.experiment.variant]
        tables = {"published and measured": summary(rows), "single runs": comparison(rows, single)}
        tables |= {file: comparison(rows, [file]) for file in groups(rows)}
        print("\n\n".join(f"{title}\n\n{table}" for title, table in tables.items()))
    if write:
        write_report(rows, results)


def write_report(rows: dict[str, "ExperimentSummary"], results: Path) -> None:
    """Update the tables in the pages, a figure for each settings file with variants, and the shipped weights."""
    from titn_lib.experiments.report import marked_pages, render_tables, seed_values
    from titn_lib.experiments.shipping import ship_weights
    from titn_lib.io import write_atomically
    from titn_lib.models.weights import PRETRAINED_DIR
    from titn_lib.plots import plot_seeds, save_figure

    for page in marked_pages(results):
        write_atomically(page, render_tables(page.read_text(encoding="utf-8"), rows).encode())
    for file, values in seed_values(rows).items():
        save_figure(plot_seeds(values), results / f"{file}.png")
    if (results.parent / "titn_lib/models/pretrained").resolve() == PRETRAINED_DIR:  # not in an installed package
        ship_weights(rows, results, PRETRAINED_DIR)


# --- the options


def make_parser() -> argparse.ArgumentParser:
    """The parser of all commands."""
    parser = argparse.ArgumentParser(
        prog="titn",
        description="Transformer-in-Transformer with knowledge distillation: train, evaluate, explain.",
        epilog="`titn COMMAND --help` explains a command's options.",
    )
    parser.add_argument("--version", action="version", version=f"titn {titn_lib.__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    add_training_commands(commands)
    add_model_commands(commands)
    add_experiment_commands(commands)
    return parser


def add_command(commands: Any, name: str, command: Callable[..., None]) -> argparse.ArgumentParser:
    """A command's own parser; its help is the docstring."""
    text = (command.__doc__ or "").strip()
    parser: argparse.ArgumentParser = commands.add_parser(name, help=text, description=text)
    parser.set_defaults(command=command)
    return parser


def add_training_commands(commands: Any) -> None:
    """distill and train-teacher."""
    from titn_lib.losses.registry import list_losses

    parser = add_command(commands, "distill", distill)
    add_run_options(parser)
    parser.add_argument(
        "--teacher", type=text_of, help="name or weights file of a teacher, or timm:NAME (default: the preset's)"
    )
    single = ", ".join(name for name in list_losses() if "+" not in name)
    parser.add_argument("--loss", help=f"{single}, or a combination such as soft+feature (default: the student's)")
    add_recipe_options(parser)

    parser = add_command(commands, "train-teacher", train_teacher)
    add_run_options(parser)
    add_recipe_options(parser)


def add_model_commands(commands: Any) -> None:
    """evaluate, predict, explore and download."""
    parser = add_command(commands, "evaluate", evaluate)
    parser.add_argument("weights", type=path_of, metavar="WEIGHTS", help=WEIGHTS_HELP)
    parser.add_argument(
        "--data", type=text_of, help="a data set with the same classes (default: the one it was trained on)"
    )
    parser.add_argument("--confusion", type=path_of, metavar="FILE", help="draw the confusion matrix, as PNG")
    add_skip_damaged(parser)

    parser = add_command(commands, "predict", predict)
    parser.add_argument("paths", nargs="+", type=path_of, metavar="IMAGE", help="image files")
    parser.add_argument("--weights", type=path_of, required=True, help=WEIGHTS_HELP)

    parser = add_command(commands, "explore", explore)
    parser.add_argument("paths", nargs="+", type=path_of, metavar="IMAGE", help="image files")
    parser.add_argument("--weights", type=path_of, required=True, help=f"a student: {WEIGHTS_HELP}")
    parser.add_argument("--compare", type=path_of, metavar="WEIGHTS", help="a second student, shown next to the first")
    parser.add_argument("--teacher", type=path_of, metavar="WEIGHTS", help="a teacher, whose predictions are shown too")
    parser.add_argument("--labels", nargs="+", metavar="CLASS", help="the true class of each image, in their order")
    parser.add_argument("--heads", type=text_of, metavar="DATA", help="summarize every head on images of a data set")
    parser.add_argument(
        "--live", type=path_of, metavar="FOLDER", help="of onnxruntime-web: the page runs the model itself (8 MB more)"
    )
    parser.add_argument("--out", type=path_of, default="attention.html", metavar="FILE", help="default: %(default)s")

    parser = add_command(commands, "download", download)
    parser.add_argument("names", nargs="*", metavar="NAME", help="data sets")


def add_experiment_commands(commands: Any) -> None:
    """experiments and report."""
    from titn_lib.training.recipes import RECIPE_PRESETS

    parser = add_command(commands, "experiments", experiments)
    parser.add_argument("--run", nargs="*", metavar="NAME", help="run what is pending of these (without a name: all)")
    parser.add_argument("--rerun", nargs="+", default=[], metavar="NAME", help="also repeat finished runs of these")
    parser.add_argument("--max-minutes", type=float, help="stop with a checkpoint after this time")
    parser.add_argument("--preset", choices=RECIPE_PRESETS, help="its experiments only (with --run: gpu or laptop)")
    add_experiment_folders(parser)
    parser.add_argument("--work-dir", type=path_of, default=Path("runs"), help="unfinished runs (default: %(default)s)")
    parser.add_argument("--device", default="auto", choices=["auto", "cpu", "cuda", "mps"])

    parser = add_command(commands, "report", report)
    parser.add_argument("names", nargs="*", metavar="NAME", help="experiments or settings files (default: all)")
    parser.add_argument("--write", action="store_true", help="update the pages, figures and shipped weights")
    add_experiment_folders(parser)


def add_experiment_folders(parser: argparse.ArgumentParser) -> None:
    """--folder and --results."""
    parser.add_argument(
        "--folder", type=path_of, default=Path("experiments"), help="settings files (default: %(default)s)"
    )
    parser.add_argument("--results", type=path_of, default=Path("results"), help="records (default: %(default)s)")


def add_run_options(parser: argparse.ArgumentParser) -> None:
    """The options of a training run, but for its recipe."""
    parser.add_argument(
        "--data", type=text_of, default="digits", help="a data set, a folder of images, or a .csv of file,label"
    )
    parser.add_argument("--model", help="the network to train (default: the data set's and preset's)")
    parser.add_argument(
        "--image-size", type=image_size_of, metavar="SIZE", help="such as 64, or 48x64 (height x width)"
    )
    parser.add_argument("--init-from", type=text_of, metavar="WEIGHTS", help=f"fine-tune {WEIGHTS_HELP}; or timm:NAME")
    parser.add_argument("--preset", default="laptop", help="smoke, laptop or gpu (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="default: %(default)s")
    parser.add_argument("--out", type=path_of, help="folder for records and weights (default: a subfolder of runs/)")
    parser.add_argument("--device", default="auto", choices=["auto", "cpu", "cuda", "mps"], help="default: %(default)s")
    parser.add_argument(
        "--max-minutes", type=float, help="stop with a checkpoint after this time; run the same command to resume"
    )
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    add_skip_damaged(parser)


def add_skip_damaged(parser: argparse.ArgumentParser) -> None:
    """--skip-damaged."""
    parser.add_argument("--skip-damaged", action="store_true", help="leave out image files that can't be read")


def add_recipe_options(parser: argparse.ArgumentParser) -> None:
    """An option for each setting of a recipe, with the help text of `Recipe`'s docstring."""
    from titn_lib.data.transforms import PIPELINES
    from titn_lib.training.config import Recipe, recipe_help

    group = parser.add_argument_group("hyperparameters", "the recipe; the default of each is the preset's")
    meaning = recipe_help(Recipe.__doc__ or "")
    for field in dataclasses.fields(Recipe):
        kind, flag = type(field.default), f"--{field.name.replace('_', '-')}"
        choices = list(PIPELINES) if field.name == "augmentation" else get_args(field.type)
        metavar = f"{{{','.join(choices)}}}" if choices else kind.__name__.upper()  # Recipe itself checks them
        group.add_argument(flag, type=kind, metavar=metavar, help=meaning[field.name])


if __name__ == "__main__":
    sys.exit(main())
