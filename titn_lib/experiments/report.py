"""Tables and figures made from records: published beside measured, mean and spread over seeds, what is pending.

A page says where a table goes, and `titn results --write` fills it in:

    <!-- table summary -->                             published figures, and ours
    <!-- table weights -->                             the weights that the package brings along
    <!-- table cifar10-students-laptop -->             a settings file's experiments, or experiments by name
    <!-- /table -->
"""

import re
import statistics
from collections.abc import Iterable
from pathlib import Path

from titn_lib.experiments.runner import record_path
from titn_lib.experiments.settings import Experiment
from titn_lib.experiments.statistics import (
    ExperimentSummary,
    difference_from_base,
    groups,
    in_use,
    mean_and_spread,
    select_rows,
    top1,
    top5,
)
from titn_lib.io import write_atomically
from titn_lib.training.records import RunResult

PUBLISHED = {  # top-1, top-5 on the test set, which also chose the checkpoint: arXiv 2502.16762, abstract
    "cifar10": ("CIFAR-10", 92.03, 99.80),
    "cifar100": ("CIFAR-100", 74.71, 92.28),
    "mnist": ("MNIST", 99.56, None),
}
SUMMARY = {  # column: experiment
    "`titn_paper`, published recipe¹": "{data}-students-gpu-titn",
    "small student² alone, laptop": "{data}-{small}-alone-laptop",
    "small student² distilled, laptop": "{data}-{small}-hard-laptop",
    "our best³, laptop": "{data}-{best}-laptop",
}
SMALL = {"cifar10": "titn_nano", "cifar100": "titn_nano", "mnist": "titn_pico"}
BEST = {"cifar10": "titn_mini-local", "cifar100": "titn_mini", "mnist": "titn_pico-long"}
PRETRAINED_CANDIDATES = {  # of the weights that the package brings along: the best on the validation split
    "titn_nano.digits": ("digits-titn_nano-alone-laptop", "digits-titn_nano-hard-laptop"),
    "titn_nano.cifar10": ("cifar10-titn_nano-alone-laptop", "cifar10-titn_nano-hard-laptop"),
    "titn_mini.cifar10": ("cifar10-titn_mini-laptop",),
    "titn_mini-local.cifar10": ("cifar10-titn_mini-local-laptop",),
    "titn_mini-local.cifar100": ("cifar100-titn_mini-laptop",),
    "vgg7_bn.digits": ("digits-vgg7_bn-laptop",),
    "vgg7_bn.cifar10": ("cifar10-vgg7_bn-laptop",),
    "vgg7_bn.cifar100": ("cifar100-vgg7_bn-laptop",),
    "vgg7_bn.mnist": ("mnist-vgg7_bn-laptop",),
    "titn_pico.mnist": ("mnist-titn_pico-alone-laptop", "mnist-titn_pico-hard-laptop"),
}
PLACE = re.compile(r"(<!-- table ([^>]+?) -->\n).*?(<!-- /table -->)", re.S)


def comparison(rows: dict[str, ExperimentSummary], names: Iterable[str]) -> str:
    """Experiments side by side, as a Markdown table; cost in more detail where speed has been measured."""
    chosen = select_rows(rows, names)
    compared = any(row.experiment.compare for row in chosen)
    timed = any(row.speeds for row in chosen)
    alone = len({row.experiment.file for row in chosen}) == len(chosen)
    lines = []
    for row in chosen:
        experiment, records = row.experiment, row.records
        line = {
            "": experiment.name if alone else experiment.variant or experiment.name,
            "what": experiment.about,
            "parameters": f"{records[0].parameters:,}" if records else "",
            "MACs": f"{records[0].macs / 1e6:.1f} M{in_use(records)}" if records else "",
            "epochs": str(next(iter(experiment.runs.values())).recipe.epochs),
            "validation top-1": row.mean(lambda record: record.validation["top1"]),
            "test top-1": mean_and_spread(row.values(top1)),
            "difference": difference_from_base(row, rows),
            "test top-5": row.mean(top5),
            "images/s training": row.speed("training", chosen[0]),
            "images/s inference": row.speed("inference", chosen[0]),
            "minutes": f"{min(row.values(lambda record: record.seconds / 60)):.1f}" if records else "",
            "seeds": f"{len(records)} of {len(experiment.runs)}",
        }
        left_out = set() if compared else {"difference"}
        left_out |= {"test top-5"} if timed else {"images/s training", "images/s inference"}
        lines.append({name: cell for name, cell in line.items() if name not in left_out})
    return markdown_table(list(lines[0]), [list(line.values()) for line in lines])


def summary(rows: dict[str, ExperimentSummary]) -> str:
    """The paper's figures beside ours: test top-1, in brackets top-5 where it is published."""
    lines = []
    for data, (title, first, five) in PUBLISHED.items():
        line = [title, f"{first:.2f}" + (f" ({five:.2f})" if five else "")]
        for template in SUMMARY.values():
            row = rows.get(template.format(data=data, small=SMALL[data], best=BEST[data]))
            cell = mean_and_spread(row.values(top1)) if row else "–"
            line.append(f"{cell} ({statistics.mean(row.values(top5)):.2f})" if five and row and row.records else cell)
        lines.append(line)
    return markdown_table(["data set", "published TITN", *SUMMARY], lines)


def choose_weights(rows: dict[str, ExperimentSummary]) -> dict[str, tuple[Experiment, RunResult]]:
    """For each name among the shipped weights, the run that did best on the validation split."""
    chosen = {}
    for name, candidates in PRETRAINED_CANDIDATES.items():
        runs = [(rows[key].experiment, record) for key in candidates for record in rows[key].records]
        if runs:
            chosen[name] = max(runs, key=lambda run: run[1].validation["top1"])
    return chosen


def weights_table(rows: dict[str, ExperimentSummary]) -> str:
    """What the package brings along."""
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


def ship_weights(rows: dict[str, ExperimentSummary], results: Path, folder: Path) -> None:
    """Copy the chosen weights and their records into the package."""
    for name, (experiment, record) in choose_weights(rows).items():
        path = record_path(results, experiment, record.run.seed)
        write_atomically(folder / f"{name}.json", path.read_bytes())
        write_atomically(folder / f"{name}.safetensors", path.with_suffix(".safetensors").read_bytes())


def markdown_table(head: list[str], lines: list[list[str]]) -> str:
    return "\n".join("| " + " | ".join(line) + " |" for line in [head, ["---"] * len(head), *lines])


def make_table(rows: dict[str, ExperimentSummary], names: str) -> str:
    makers = {"summary": summary, "weights": weights_table}
    return makers[names](rows) if names in makers else comparison(rows, names.split())


def fill_in(page: str, rows: dict[str, ExperimentSummary]) -> str:
    """The page with its tables as they are now."""
    return PLACE.sub(lambda place: f"{place[1]}{make_table(rows, place[2])}\n{place[3]}", page)


def write_results(rows: dict[str, ExperimentSummary], pages: Iterable[Path], folder: Path) -> None:
    """Fill in the pages' tables, and draw a figure for each settings file with variants that has records."""
    from titn_lib.plots import plot_seeds, save_figure

    for page in pages:
        write_atomically(page, fill_in(page.read_text(encoding="utf-8"), rows).encode())
    for file, chosen in groups(rows).items():
        points = {row.experiment.variant or row.experiment.name: row.values(top1) for row in chosen if row.records}
        if len(points) > 1:
            save_figure(plot_seeds(points), folder / f"{file}.png")
