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
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import titn_lib
from titn_lib import commands
from titn_lib.errors import TITNError, TrainingInterrupted
from titn_lib.io import REASONS, path_of, text_of
from titn_lib.models.inference import DEVICES
from titn_lib.validation import image_size_of

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
        return complain(
            f"the package {problem.name} is missing: reinstall titn-lib and what it needs (uv sync, or pip install .)"
        )
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


def make_parser() -> argparse.ArgumentParser:
    """The parser of all commands."""
    parser = argparse.ArgumentParser(
        prog="titn",
        description="Transformer-in-Transformer with knowledge distillation: train, evaluate, explain.",
        epilog="`titn COMMAND --help` explains a command's options.",
    )
    parser.add_argument("--version", action="version", version=f"titn {titn_lib.__version__}")
    subparsers = parser.add_subparsers(required=True, metavar="COMMAND")
    add_training_commands(subparsers)
    add_model_commands(subparsers)
    add_experiment_commands(subparsers)
    return parser


def add_command(subparsers: Any, name: str, command: Callable[..., None]) -> argparse.ArgumentParser:
    """A command's own parser; its help is the docstring."""
    text = (command.__doc__ or "").strip()
    parser: argparse.ArgumentParser = subparsers.add_parser(name, help=text, description=text)
    parser.set_defaults(command=command)
    return parser


def add_training_commands(subparsers: Any) -> None:
    """distill and train-teacher."""
    from titn_lib.losses.registry import list_losses

    parser = add_command(subparsers, "distill", commands.distill)
    add_run_options(parser)
    parser.add_argument(
        "--teacher",
        type=text_of,
        help="name or weights file of a teacher, or timm:NAME (default: depends on data set and preset)",
    )
    single = ", ".join(name for name in list_losses() if "+" not in name)
    combined = "or a combination such as soft+feature (default: depends on preset and model)"
    parser.add_argument("--loss", help=f"{single}, {combined}")
    add_recipe_options(parser)

    parser = add_command(subparsers, "train-teacher", commands.train_teacher)
    add_run_options(parser)
    add_recipe_options(parser)


def add_model_commands(subparsers: Any) -> None:
    """evaluate, predict, explore and download."""
    parser = add_command(subparsers, "evaluate", commands.evaluate)
    parser.add_argument("weights", type=path_of, metavar="WEIGHTS", help=WEIGHTS_HELP)
    parser.add_argument(
        "--data", type=text_of, help="a data set with the same classes (default: the one it was trained on)"
    )
    parser.add_argument("--confusion", type=path_of, metavar="FILE", help="draw the confusion matrix, as PNG")
    add_device(parser)
    add_skip_damaged(parser)

    parser = add_command(subparsers, "predict", commands.predict)
    parser.add_argument("paths", nargs="+", type=path_of, metavar="IMAGE", help="image files")
    parser.add_argument("--weights", type=path_of, required=True, help=WEIGHTS_HELP)
    add_device(parser)

    parser = add_command(subparsers, "explore", commands.explore)
    parser.add_argument("paths", nargs="+", type=path_of, metavar="IMAGE", help="image files")
    parser.add_argument("--weights", type=path_of, required=True, help=f"a student: {WEIGHTS_HELP}")
    parser.add_argument("--compare", type=path_of, metavar="WEIGHTS", help="a second student, shown next to the first")
    parser.add_argument("--teacher", type=path_of, metavar="WEIGHTS", help="a teacher, whose predictions are shown too")
    parser.add_argument("--labels", nargs="+", metavar="CLASS", help="the true class of each image, in their order")
    parser.add_argument(
        "--heads", type=text_of, metavar="DATA", help="summarize every attention head on 256 images of a data set"
    )
    parser.add_argument(
        "--live",
        type=path_of,
        metavar="FOLDER",
        help="folder of the npm package onnxruntime-web: puts the model itself into the page (adds 8 MB)",
    )
    parser.add_argument("--out", type=path_of, default="attention.html", metavar="FILE", help="default: %(default)s")

    parser = add_command(subparsers, "download", commands.download)
    parser.add_argument("names", nargs="*", metavar="NAME", help="data sets")


def add_experiment_commands(subparsers: Any) -> None:
    """experiments and report."""
    from titn_lib.training.recipes import RECIPE_PRESETS

    parser = add_command(subparsers, "experiments", commands.experiments)
    parser.add_argument(
        "--run", nargs="*", metavar="NAME", help="run the pending runs of these experiments (without a name: of all)"
    )
    parser.add_argument(
        "--rerun", nargs="+", default=[], metavar="NAME", help="also repeat the finished runs of these experiments"
    )
    parser.add_argument("--max-minutes", type=float, help="stop with a checkpoint after this time")
    parser.add_argument(
        "--preset",
        choices=RECIPE_PRESETS,
        help="only experiments of this preset (default with --run: gpu if there is a GPU, else laptop)",
    )
    add_experiment_folders(parser)
    parser.add_argument("--work-dir", type=path_of, default=Path("runs"), help="unfinished runs (default: %(default)s)")
    add_device(parser)

    parser = add_command(subparsers, "report", commands.report)
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
    parser.add_argument("--model", help="the network to train (default: depends on data set and preset)")
    parser.add_argument(
        "--image-size", type=image_size_of, metavar="SIZE", help="such as 64, or 48x64 (height x width)"
    )
    parser.add_argument("--init-from", type=text_of, metavar="WEIGHTS", help=f"fine-tune {WEIGHTS_HELP}; or timm:NAME")
    parser.add_argument("--preset", default="laptop", help="smoke, laptop or gpu (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="default: %(default)s")
    parser.add_argument("--out", type=path_of, help="folder for records and weights (default: a subfolder of runs/)")
    add_device(parser)
    parser.add_argument(
        "--max-minutes", type=float, help="stop with a checkpoint after this time; run the same command to resume"
    )
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    add_skip_damaged(parser)


def add_device(parser: argparse.ArgumentParser) -> None:
    """--device."""
    parser.add_argument("--device", default="auto", choices=DEVICES, help="default: %(default)s")


def add_skip_damaged(parser: argparse.ArgumentParser) -> None:
    """--skip-damaged."""
    parser.add_argument("--skip-damaged", action="store_true", help="leave out image files that can't be read")


def add_recipe_options(parser: argparse.ArgumentParser) -> None:
    """An option for each setting of a recipe, with the help text of `Recipe`'s docstring."""
    from titn_lib.data.transforms import PIPELINES
    from titn_lib.training.config import Recipe, recipe_help

    group = parser.add_argument_group("hyperparameters", "the recipe; defaults depend on data set, preset and model")
    meaning = recipe_help(Recipe.__doc__ or "")
    for field in dataclasses.fields(Recipe):
        kind, flag = type(field.default), f"--{field.name.replace('_', '-')}"
        choices = list(PIPELINES) if field.name == "augmentation" else get_args(field.type)
        metavar = f"{{{','.join(choices)}}}" if choices else kind.__name__.upper()  # Recipe itself checks them
        group.add_argument(flag, type=kind, metavar=metavar, help=meaning.get(field.name))  # -OO: no help


if __name__ == "__main__":
    sys.exit(main())
