"""Mean, standard deviation and differences over seeds."""

import json
import math
import statistics
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

import torch

from titn_lib.experiments.runner import record_path
from titn_lib.experiments.settings import Experiment, load_experiments, select_experiments
from titn_lib.io import records_dir
from titn_lib.training.records import RunResult, load_record

LEVEL = 0.05  # a difference is significant if chance alone gives one as large less often
SPEEDS = "related-speed-cpu.json"  # throughput of the experiments' networks, from benchmarks/related.py


@dataclass(frozen=True)
class ExperimentSummary:
    """An experiment with its results.

    Attributes:
        records: the records of the seeds that have been run.
        speeds: throughput in images per second, round by round, for "training" and "inference"; empty if not measured.
    """

    experiment: Experiment
    records: list[RunResult]
    speeds: dict[str, list[float]] = field(default_factory=dict)

    def values(self, measure: Callable[[RunResult], float]) -> list[float]:
        """A metric of every record."""
        return [measure(record) for record in self.records]

    def mean(self, measure: Callable[[RunResult], float]) -> str:
        """The metric's mean and standard deviation; empty if nothing has been run."""
        return mean_and_spread(self.values(measure)) if self.records else ""

    def speed(self, job: str, base: "ExperimentSummary") -> str:
        """ "466 (1.19)": the median throughput, and the median ratio to that of `base` in the same round.

        Ratios within a round vary less than throughput itself.
        """
        if job not in self.speeds or job not in base.speeds:
            return ""
        ratios = [mine / theirs for mine, theirs in zip(self.speeds[job], base.speeds[job], strict=True)]
        return f"{statistics.median(self.speeds[job]):,.0f} ({statistics.median(ratios):.2f})"


def top1(record: RunResult) -> float:
    """Top-1 accuracy on the test set, in percent."""
    return record.test["top1"]


def top5(record: RunResult) -> float:
    """Top-5 accuracy on the test set, in percent."""
    return record.test["top5"]


def load_rows(experiments: dict[str, Experiment], results: str | Path) -> dict[str, ExperimentSummary]:
    """A summary of every experiment, by name."""
    rows, file = {}, Path(results) / SPEEDS
    measured = json.loads(file.read_text(encoding="utf-8"))["rounds"] if file.exists() else {}
    for name, experiment in experiments.items():
        paths = [record_path(Path(results), experiment, seed) for seed in experiment.runs]
        records = [load_record(path) for path in paths if path.exists()]
        speeds = {job: measured[f"{name} {job}"] for job in ("training", "inference") if f"{name} {job}" in measured}
        rows[name] = ExperimentSummary(experiment, records, speeds)
    return rows


def recorded_rows() -> dict[str, ExperimentSummary]:
    """The summaries of this project's experiments, from the checkout or else from the installed package."""
    return load_rows(load_experiments(records_dir() / "experiments"), records_dir() / "results")


def select_rows(rows: dict[str, ExperimentSummary], names: Iterable[str]) -> list[ExperimentSummary]:
    """The summaries of these experiments or settings files, in order, each after the one it is compared with.

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
    """ "52.31 ± 0.40": the mean, and the sample standard deviation of two or more values."""
    if not values:
        return "pending"
    mean = f"{statistics.mean(values):.2f}"
    return f"{mean} ± {statistics.stdev(values):.2f}" if len(values) > 1 else mean


def pooled_spread(groups: Iterable[list[float]]) -> float:
    """The pooled standard deviation within groups; nan if no group has two values.

    Two or three seeds are too few to estimate the standard deviation of one experiment.
    """
    groups = [values for values in groups if len(values) > 1]
    if not groups:
        return math.nan
    squares = sum(statistics.variance(values) * (len(values) - 1) for values in groups)
    return (squares / degrees_of_freedom(groups)) ** 0.5


def degrees_of_freedom(groups: Iterable[list[float]]) -> int:
    """Of the pooled standard deviation."""
    return sum(len(values) - 1 for values in groups if values)


def difference(values: list[float], base: list[float], spread: float, own_spread: float | None = None) -> str:
    """ "+1.20 ± 0.35": the difference of the means, and its standard error where the standard deviation is known.

    Args:
        spread: standard deviation within groups; nan where it isn't known.
        own_spread: that of `values`, if another.
    """
    if not values or not base:
        return ""
    gap = f"{statistics.mean(values) - statistics.mean(base):+.2f}"
    own = spread if own_spread is None else own_spread
    return gap if math.isnan(spread) else f"{gap} ± {standard_error(values, base, spread, own):.2f}"


def standard_error(values: list[float], base: list[float], spread: float, own_spread: float) -> float:
    """Of the difference of the means; `own_spread` is the standard deviation of `values`, `spread` that of `base`."""
    return (own_spread**2 / len(values) + spread**2 / len(base)) ** 0.5


def chance_of(t: float, runs: list[int], base_runs: int, freedom: int) -> float:
    """The probability that the largest |t| of several differences from one baseline exceeds `t`, if all are zero.

    t is a difference in standard errors. The differences share the baseline and the standard deviation s, so they are
    not independent (Dunnett 1955). For known errors of both they are: the integral is over these two, on a grid.

    Args:
        runs: number of runs of each setting that is compared with the baseline.
        freedom: degrees of freedom of s.
    """
    s = torch.linspace(1e-3, 5, 200, dtype=torch.float64)[:, None]  # in units of the true standard deviation
    density = ((freedom - 1) * s.log() - freedom * s.square() / 2).exp()
    z = torch.linspace(-8, 8, 65, dtype=torch.float64)  # the baseline's error, in units of its own
    weight = density * (-z.square() / 2).exp()
    below = torch.ones_like(weight)
    for count in set(runs):
        share = count / (count + base_runs)  # of a difference's variance that comes from the baseline
        own, common = (1 - share) ** 0.5, share**0.5 * z
        inside = torch.special.ndtr((t * s - common) / own) - torch.special.ndtr((-t * s - common) / own)
        below *= inside ** runs.count(count)
    return 1 - float((weight * below).sum() / weight.sum())


def significance(t: float, runs: list[int], own_runs: int, base_runs: int, freedom: int, shared: bool = True) -> str:
    """ "no", "single" (as one planned comparison) or "corrected" (as the largest of all from this baseline).

    Args:
        runs: numbers of runs of all settings that are compared with the baseline, this one included.
        own_runs: number of runs of this setting.
        shared: whether all have the same standard deviation. If not, Bonferroni's correction applies.
    """
    one = chance_of(abs(t), [own_runs], base_runs, freedom)
    if one >= LEVEL:
        return "no"
    largest = chance_of(abs(t), runs, base_runs, freedom) if shared else len(runs) * one
    return "single" if largest >= LEVEL else "corrected"


def active_macs(records: list[RunResult]) -> float | None:
    """Mean MACs for a test image, of a network that skips some (AdaViT); None for other networks and old records."""
    used = [record.test["macs"] for record in records if "macs" in record.test]
    return statistics.mean(used) if used else None


def groups(rows: dict[str, ExperimentSummary]) -> dict[str, list[ExperimentSummary]]:
    """The summaries of each settings file with variants, by the file's name."""
    files = dict.fromkeys(row.experiment.file for row in rows.values() if row.experiment.variant)
    return {file: select_rows(rows, [file]) for file in files}
