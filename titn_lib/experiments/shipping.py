"""This repository's own numbers: the experiments in its summary, and the weights that its package ships.

Nothing here is needed for experiments of your own.
"""

import statistics
from pathlib import Path

from titn_lib.data.datasets import DATASETS
from titn_lib.experiments.runner import record_path
from titn_lib.experiments.settings import Experiment
from titn_lib.experiments.statistics import ExperimentSummary, mean_and_spread, top1, top5
from titn_lib.io import markdown_table, write_atomically
from titn_lib.models.registry import is_teacher
from titn_lib.training.records import RunResult

SUMMARY = {  # column: experiment
    "`titn_paper`, published recipe¹": "{data}-students-gpu-titn",
    "small student² alone": "{data}-{small}-alone-laptop",
    "small student², `hard` distillation": "{data}-{small}-hard-laptop",
    "our best³": "{data}-{best}-laptop",
}
SMALL_STUDENT = {"cifar10": "titn_nano", "cifar100": "titn_nano", "mnist": "titn_pico"}
BEST = {"cifar10": "titn_mini_conv", "cifar100": "titn_mini", "mnist": "titn_mini_conv"}
PRETRAINED_CANDIDATES = {  # shipped weights: the run with the best validation accuracy among these experiments
    "titn_nano.digits": ("digits-titn_nano-alone-laptop", "digits-titn_nano-hard-laptop"),
    "titn_nano.cifar10": ("cifar10-titn_nano-alone-laptop", "cifar10-titn_nano-hard-laptop"),
    "titn_mini.cifar10": ("cifar10-titn_mini-laptop",),
    "titn_mini-local.cifar10": ("cifar10-titn_mini-local-laptop",),
    "titn_mini-local.cifar100": ("cifar100-titn_mini-laptop",),
    "titn_mini_conv.cifar10": ("cifar10-titn_mini_conv-laptop",),
    "titn_mini_conv.mnist": ("mnist-titn_mini_conv-laptop",),
    "airbench.cifar10": ("cifar10-airbench-laptop",),
    "airbench.cifar100": ("cifar100-airbench-laptop",),
    "vgg7_bn.digits": ("digits-vgg7_bn-laptop",),
    "vgg7_bn.cifar10": ("cifar10-vgg7_bn-laptop",),
    "vgg7_bn.cifar100": ("cifar100-vgg7_bn-laptop",),
    "vgg7_bn.mnist": ("mnist-vgg7_bn-laptop",),
    "titn_pico.mnist": ("mnist-titn_pico-alone-laptop", "mnist-titn_pico-hard-laptop"),
}


def summary(rows: dict[str, ExperimentSummary]) -> str:
    """The paper's accuracies beside ours: test top-1, with top-5 in parentheses where the paper reports it.

    A column without any record yet stands below the table, as pending.
    """
    lines, measured = [], set[str]()
    for data, best in BEST.items():
        published = DATASETS[data].published
        if published is None:
            continue
        line = [published.title, f"{published.top1:.2f}" + (f" ({published.top5:.2f})" if published.top5 else "")]
        for title, template in SUMMARY.items():
            row = rows.get(template.format(data=data, small=SMALL_STUDENT[data], best=best))
            cell = mean_and_spread(row.values(top1)) if row else "–"
            if row and row.records:
                measured.add(title)
                cell += f" ({statistics.mean(row.values(top5)):.2f})" if published.top5 else ""
            line.append(cell)
        lines.append(line)
    head = ["data set", "published TITN", *SUMMARY]
    shown = [i for i, title in enumerate(head) if title in measured or title not in SUMMARY]
    table = markdown_table([head[i] for i in shown], [[line[i] for i in shown] for line in lines])
    pending = [title for title in SUMMARY if title not in measured]
    return f"{table}\n\nPending: {', '.join(pending)}." if pending else table


def choose_weights(rows: dict[str, ExperimentSummary]) -> dict[str, tuple[Experiment, RunResult]]:
    """For each name among the shipped weights, the run with the best validation accuracy."""
    chosen = {}
    for name, candidates in PRETRAINED_CANDIDATES.items():
        runs = [(rows[key].experiment, record) for key in candidates for record in rows[key].records]
        if runs:
            chosen[name] = max(runs, key=lambda run: run[1].validation["top1"])
    return chosen


def weights_table(rows: dict[str, ExperimentSummary]) -> str:
    """The pretrained weights in the package, as a Markdown table."""
    lines = [
        [
            f"`{name}`",
            f"{record.parameters:,}",
            f"{record.validation['top1']:.2f}",
            f"{record.test['top1']:.2f}",
            experiment.name,
            f"{record.run.recipe.epochs} epochs, {record.seconds / 60:.1f} minutes",
        ]
        for name, (experiment, record) in choose_weights(rows).items()
    ]
    head = ["name", "parameters", "validation top-1", "test top-1", "experiment", "training"]
    return markdown_table(head, lines)


def short_weights_table(rows: dict[str, ExperimentSummary]) -> str:
    """The pretrained students in the package, as a Markdown table of four columns."""
    lines = [
        [
            f"`{name}`",
            "labels only" if record.run.loss == "cross_entropy" else f"distillation, `{record.run.loss}`",
            f"{record.parameters / 1e6:.2f} M",
            f"{record.test['top1']:.2f}",
        ]
        for name, (_, record) in choose_weights(rows).items()
        if not is_teacher(record.run.model)
    ]
    return markdown_table(["student", "trained with", "parameters", "test top-1 (%)"], lines)


def ship_weights(rows: dict[str, ExperimentSummary], results: Path, folder: Path) -> None:
    """Copy the chosen weights and their records from `results` into the package's `folder`."""
    for name, (experiment, record) in choose_weights(rows).items():
        path = record_path(results, experiment, record.run.seed)
        write_atomically(folder / f"{name}.json", path.read_bytes())
        write_atomically(folder / f"{name}.safetensors", path.with_suffix(".safetensors").read_bytes())
