"""Tables and figures made from records: published beside measured, mean and spread over seeds, what is pending.

A page says where a table goes, and `titn results --write` fills it in:

    <!-- table summary -->                             published figures, and ours
    <!-- table weights -->                             the weights that the package brings along
    <!-- table cifar10-students-laptop -->             a settings file's experiments, or experiments by name
    <!-- /table -->
"""

import json
import math
import re
import statistics
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

from .experiments import Experiment, choose_experiments, load_experiments, record_path
from .files import recorded, write_atomically
from .records import Record, load_record

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
CANDIDATES = {  # of the weights that the package brings along: the best on the validation split
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
BROKEN = 5.0  # times the others' standard deviation
SPEEDS = "neighbours-speed-cpu.json"  # benchmarks/neighbours.py measures experiments' networks side by side
PLACE = re.compile(r"(<!-- table ([^>]+?) -->\n).*?(<!-- /table -->)", re.S)


@dataclass(frozen=True)
class Row:
    """An experiment, the records of those of its seeds that have been run, and its images per second, round by round,
    where they have been measured beside others'."""

    experiment: Experiment
    records: list[Record]
    speeds: dict[str, list[float]] = field(default_factory=dict)

    def values(self, measure: Callable[[Record], float]) -> list[float]:
        return [measure(record) for record in self.records]

    def mean(self, measure: Callable[[Record], float]) -> str:
        """With its spread; empty where nothing has been run."""
        return mean_and_spread(self.values(measure)) if self.records else ""

    def speed(self, job: str, base: "Row") -> str:
        """ "466 (1.19)": the median, and that of the ratios to another row's in the same round, which move less."""
        if job not in self.speeds or job not in base.speeds:
            return ""
        ratios = [mine / theirs for mine, theirs in zip(self.speeds[job], base.speeds[job], strict=True)]
        return f"{statistics.median(self.speeds[job]):,.0f} ({statistics.median(ratios):.2f})"


def top1(record: Record) -> float:
    """On the test set."""
    return record.test["top1"]


def top5(record: Record) -> float:
    """The same for the right class among the first five answers."""
    return record.test["top5"]


def load_rows(experiments: dict[str, Experiment], results: str | Path) -> dict[str, Row]:
    """Every experiment with its records."""
    rows, file = {}, Path(results) / SPEEDS
    measured = json.loads(file.read_text(encoding="utf-8"))["rounds"] if file.exists() else {}
    for name, experiment in experiments.items():
        paths = [record_path(Path(results), experiment, seed) for seed in experiment.runs]
        records = [load_record(path) for path in paths if path.exists()]
        speeds = {job: measured[f"{name} {job}"] for job in ("training", "inference") if f"{name} {job}" in measured}
        rows[name] = Row(experiment, records, speeds)
    return rows


def recorded_rows() -> dict[str, Row]:
    """Those of this project: from the checkout, else from the installed package."""
    return load_rows(load_experiments(recorded() / "experiments"), recorded() / "results")


def choose_rows(rows: dict[str, Row], names: Iterable[str]) -> list[Row]:
    """Those of these experiments, or settings files, in their order, what they are compared with first.

    Raises:
        TITNError: there is no such experiment or file.
    """
    experiments = {key: row.experiment for key, row in rows.items()}
    chosen: dict[str, Row] = {}
    for name in names:
        found = choose_experiments(experiments, [name])
        bases = [experiment.compare for experiment in found.values() if experiment.compare]
        chosen |= {key: rows[key] for key in (*bases, *found)}
    return list(chosen.values())


def mean_and_spread(values: list[float]) -> str:
    """ "52.31 ± 0.40": the mean and the sample's standard deviation, where there are two or more."""
    if not values:
        return "pending"
    mean = f"{statistics.mean(values):.2f}"
    return f"{mean} ± {statistics.stdev(values):.2f}" if len(values) > 1 else mean


def pooled_spread(groups: Iterable[list[float]]) -> float:
    """The standard deviation within groups, all together: two or three seeds can't tell their own. Not a number where
    no group has two values. A group that is `broken` beside the others (with ten degrees of freedom or more) is left
    out: one like that would make every error longer."""
    parts = sorted((values for values in groups if len(values) > 1), key=statistics.variance)
    if not parts:
        return math.nan
    *others, noisiest = parts
    if sum(len(values) - 1 for values in others) >= 10 and broken(noisiest, spread := pooled_spread(others)):
        return spread
    freedom = sum(len(values) - 1 for values in parts)
    return (sum(statistics.variance(v) * (len(v) - 1) for v in parts) / freedom) ** 0.5


def broken(values: list[float], spread: float) -> bool:
    """Whether values lie more than `BROKEN` times as far apart as others: training went wrong, and differently each
    time. By chance, three values of one row do so in less than one table of a thousand."""
    return len(values) > 1 and statistics.stdev(values) > BROKEN * spread


def difference(values: list[float], base: list[float], spread: float) -> str:
    """ "+1.20 ± 0.35": the difference of the means and, with a known standard deviation, its standard error. `broken`
    values have a standard deviation of their own."""
    if not values or not base:
        return ""
    gap = f"{statistics.mean(values) - statistics.mean(base):+.2f}"
    own = statistics.stdev(values) if broken(values, spread) else spread
    return gap if math.isnan(spread) else f"{gap} ± {(own**2 / len(values) + spread**2 / len(base)) ** 0.5:.2f}"


def difference_from_base(row: Row, rows: dict[str, Row]) -> str:
    """Its error comes from the spread of all that is compared with the same experiment, and of that one's file."""
    if not row.experiment.compare:
        return ""
    base = rows[row.experiment.compare].experiment
    kin = [one for one in rows.values() if base.name == one.experiment.compare or base.file == one.experiment.file]
    spread = pooled_spread(one.values(top1) for one in kin)
    return difference(row.values(top1), rows[base.name].values(top1), spread)


def comparison(rows: dict[str, Row], names: Iterable[str]) -> str:
    """Experiments side by side, as a Markdown table; cost in more detail where speed has been measured."""
    chosen = choose_rows(rows, names)
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
    return markdown(list(lines[0]), [list(line.values()) for line in lines])


def in_use(records: list[Record]) -> str:
    """What is computed for a test picture, where it is less than all; older records don't say."""
    used = [record.test["macs"] for record in records if "macs" in record.test]
    return f" ({statistics.mean(used) / 1e6:.1f} M in use)" if used else ""


def summary(rows: dict[str, Row]) -> str:
    """The paper's figures beside ours: test top-1, in brackets top-5 where it is published."""
    lines = []
    for data, (title, first, five) in PUBLISHED.items():
        line = [title, f"{first:.2f}" + (f" ({five:.2f})" if five else "")]
        for template in SUMMARY.values():
            row = rows.get(template.format(data=data, small=SMALL[data], best=BEST[data]))
            cell = mean_and_spread(row.values(top1)) if row else "–"
            line.append(f"{cell} ({statistics.mean(row.values(top5)):.2f})" if five and row and row.records else cell)
        lines.append(line)
    return markdown(["data set", "published TITN", *SUMMARY], lines)


def choose_weights(rows: dict[str, Row]) -> dict[str, tuple[Experiment, Record]]:
    """For each name among the shipped weights, the run that did best on the validation split."""
    chosen = {}
    for name, candidates in CANDIDATES.items():
        runs = [(rows[key].experiment, record) for key in candidates for record in rows[key].records]
        if runs:
            chosen[name] = max(runs, key=lambda run: run[1].validation["top1"])
    return chosen


def weights_table(rows: dict[str, Row]) -> str:
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
    return markdown(head, lines)


def ship_weights(rows: dict[str, Row], results: Path, folder: Path) -> None:
    """Copy the chosen weights and their records into the package."""
    for name, (experiment, record) in choose_weights(rows).items():
        path = record_path(results, experiment, record.run.seed)
        write_atomically(folder / f"{name}.json", path.read_bytes())
        write_atomically(folder / f"{name}.safetensors", path.with_suffix(".safetensors").read_bytes())


def markdown(head: list[str], lines: list[list[str]]) -> str:
    return "\n".join("| " + " | ".join(line) + " |" for line in [head, ["---"] * len(head), *lines])


def make_table(rows: dict[str, Row], names: str) -> str:
    makers = {"summary": summary, "weights": weights_table}
    return makers[names](rows) if names in makers else comparison(rows, names.split())


def fill_in(page: str, rows: dict[str, Row]) -> str:
    """The page with its tables as they are now."""
    return PLACE.sub(lambda place: f"{place[1]}{make_table(rows, place[2])}\n{place[3]}", page)


def groups(rows: dict[str, Row]) -> dict[str, list[Row]]:
    """The settings files with variants, each with its rows."""
    files = dict.fromkeys(row.experiment.file for row in rows.values() if row.experiment.variant)
    return {file: choose_rows(rows, [file]) for file in files}


def write_results(rows: dict[str, Row], pages: Iterable[Path], folder: Path) -> None:
    """Fill in the pages' tables, and draw a figure for each settings file with variants that has records."""
    from .figures import plot_seeds, save_figure

    for page in pages:
        write_atomically(page, fill_in(page.read_text(encoding="utf-8"), rows).encode())
    for file, chosen in groups(rows).items():
        points = {row.experiment.variant or row.experiment.name: row.values(top1) for row in chosen if row.records}
        if len(points) > 1:
            save_figure(plot_seeds(points), folder / f"{file}.png")
