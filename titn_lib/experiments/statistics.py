"""Mean, spread and significance over seeds."""

import json
import math
import statistics
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

from titn_lib.experiments.runner import record_path
from titn_lib.experiments.settings import Experiment, load_experiments, select_experiments
from titn_lib.io import records_dir
from titn_lib.training.records import RunResult, load_record

BROKEN = 5.0  # times the others' standard deviation
SPEEDS = "related-speed-cpu.json"  # benchmarks/related.py measures experiments' networks side by side


@dataclass(frozen=True)
class ExperimentSummary:
    """An experiment, the records of those of its seeds that have been run, and its images per second, round by round,
    where they have been measured beside others'."""

    experiment: Experiment
    records: list[RunResult]
    speeds: dict[str, list[float]] = field(default_factory=dict)

    def values(self, measure: Callable[[RunResult], float]) -> list[float]:
        return [measure(record) for record in self.records]

    def mean(self, measure: Callable[[RunResult], float]) -> str:
        """With its spread; empty where nothing has been run."""
        return mean_and_spread(self.values(measure)) if self.records else ""

    def speed(self, job: str, base: "ExperimentSummary") -> str:
        """ "466 (1.19)": the median, and that of the ratios to another row's in the same round, which move less."""
        if job not in self.speeds or job not in base.speeds:
            return ""
        ratios = [mine / theirs for mine, theirs in zip(self.speeds[job], base.speeds[job], strict=True)]
        return f"{statistics.median(self.speeds[job]):,.0f} ({statistics.median(ratios):.2f})"


def top1(record: RunResult) -> float:
    """On the test set."""
    return record.test["top1"]


def top5(record: RunResult) -> float:
    """The same for the right class among the first five answers."""
    return record.test["top5"]


def load_rows(experiments: dict[str, Experiment], results: str | Path) -> dict[str, ExperimentSummary]:
    """Every experiment with its records."""
    rows, file = {}, Path(results) / SPEEDS
    measured = json.loads(file.read_text(encoding="utf-8"))["rounds"] if file.exists() else {}
    for name, experiment in experiments.items():
        paths = [record_path(Path(results), experiment, seed) for seed in experiment.runs]
        records = [load_record(path) for path in paths if path.exists()]
        speeds = {job: measured[f"{name} {job}"] for job in ("training", "inference") if f"{name} {job}" in measured}
        rows[name] = ExperimentSummary(experiment, records, speeds)
    return rows


def recorded_rows() -> dict[str, ExperimentSummary]:
    """Those of this project: from the checkout, else from the installed package."""
    return load_rows(load_experiments(records_dir() / "experiments"), records_dir() / "results")


def select_rows(rows: dict[str, ExperimentSummary], names: Iterable[str]) -> list[ExperimentSummary]:
    """Those of these experiments, or settings files, in their order, what they are compared with first.

    Raises:
        TITNError: there is no such experiment or file.
    """
    experiments = {key: row.experiment for key, row in rows.items()}
    chosen: dict[str, ExperimentSummary] = {}
    for name in names:
        found = select_experiments(experiments, [name])
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


def difference_from_base(row: ExperimentSummary, rows: dict[str, ExperimentSummary]) -> str:
    """Its error comes from the spread of all that is compared with the same experiment, and of that one's file."""
    if not row.experiment.compare:
        return ""
    base = rows[row.experiment.compare].experiment
    kin = [one for one in rows.values() if base.name == one.experiment.compare or base.file == one.experiment.file]
    spread = pooled_spread(one.values(top1) for one in kin)
    return difference(row.values(top1), rows[base.name].values(top1), spread)


def in_use(records: list[RunResult]) -> str:
    """What is computed for a test image, where it is less than all; older records don't say."""
    used = [record.test["macs"] for record in records if "macs" in record.test]
    return f" ({statistics.mean(used) / 1e6:.1f} M in use)" if used else ""


def groups(rows: dict[str, ExperimentSummary]) -> dict[str, list[ExperimentSummary]]:
    """The settings files with variants, each with its rows."""
    files = dict.fromkeys(row.experiment.file for row in rows.values() if row.experiment.variant)
    return {file: select_rows(rows, [file]) for file in files}
