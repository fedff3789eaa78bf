"""Markdown tables of experiments: accuracy as mean and standard deviation over seeds, cost, and what is pending.

A page marks the place of a table, and `titn report --write` fills it in:

    <!-- table summary -->                             published and measured accuracy
    <!-- table weights -->                             the pretrained weights in the package
    <!-- table pretrained -->                          the same in fewer columns
    <!-- table cifar10-students-laptop -->             a settings file's experiments, or experiments by name
    <!-- /table -->
"""

import math
import re
import statistics
import textwrap
from collections.abc import Callable, Iterable
from pathlib import Path

from titn_lib.experiments.shipping import short_weights_table, summary, weights_table
from titn_lib.experiments.statistics import (
    ExperimentSummary,
    active_macs,
    degrees_of_freedom,
    difference,
    groups,
    mean_and_spread,
    pooled_spread,
    recorded_rows,
    select_rows,
    significance,
    standard_error,
    top1,
    top5,
)
from titn_lib.io import markdown_table
from titn_lib.training.records import RunResult

COST = ("parameters", "MACs", "epochs", "images/s training", "images/s inference", "minutes", "seeds")
OUTLIER_FACTOR = 5.0  # times the standard deviation of the other rows
OUTLIER_MIN_FREEDOM = 10  # degrees of freedom of the other rows
TABLE_MARKER = re.compile(r"(<!-- table ([^>]+?) -->\n).*?(<!-- /table -->)", re.S)


def comparison(rows: dict[str, ExperimentSummary], names: Iterable[str], page: bool = False) -> str:
    """Experiments side by side, as a Markdown table; with throughput in place of top-5 where it has been measured.

    Args:
        page: accuracy before cost, a column that says which differences are significant, and pending experiments by
            their names below the table.
    """
    selected = select_rows(rows, names)
    chosen = [row for row in selected if row.records] if page else selected
    compared = any(row.experiment.compare for row in chosen)
    timed = any(row.speeds for row in chosen)
    full_names = len({row.experiment.file for row in selected}) == len(selected)
    pending = [f"`{short_name(row, full_names)}`" for row in selected if row not in chosen]
    lines = []
    for row in chosen:
        experiment, records = row.experiment, row.records
        line = {
            "": short_name(row, full_names),
            "what": experiment.description,
            "parameters": f"{records[0].parameters:,}" if records else "",
            "MACs": macs_cell(records) if records else "",
            "epochs": str(next(iter(experiment.runs.values())).recipe.epochs),
            "validation top-1": row.mean(lambda record: record.validation["top1"]),
            "test top-1": mean_and_spread(row.values(top1)),
            "difference": difference_from_base(row, rows),
            "significant?": significance_from_base(row, rows) if page else "",
            "test top-5": row.mean(top5),
            "images/s training": row.speed("training", chosen[0]),
            "images/s inference": row.speed("inference", chosen[0]),
            "minutes": f"{min(row.values(lambda record: record.seconds / 60)):.1f}" if records else "",
            "seeds": f"{len(records)} of {len(experiment.runs)}",
        }
        hidden = set() if compared else {"difference", "significant?"}
        hidden |= set() if page else {"significant?"}
        hidden |= {"test top-5"} if timed else {"images/s training", "images/s inference"}
        columns = sorted(line, key=lambda name: name in COST) if page else line
        shown = {name: line[name] for name in columns if name not in hidden}
        lines.append({name: page_cell(name, cell) for name, cell in shown.items()} if page else shown)
    parts = [markdown_table(list(lines[0]), [list(line.values()) for line in lines])] if lines else []
    if pending:
        parts.append(textwrap.fill(f"Pending: {', '.join(pending)}.", 120, break_on_hyphens=False))
    return "\n\n".join(parts)


def short_name(row: ExperimentSummary, full: bool = False) -> str:
    """The name of a row: the variant's, if `full` is false and there is one."""
    return row.experiment.name if full else row.experiment.variant or row.experiment.name


def validation_top1(record: RunResult) -> float:
    """Top-1 accuracy on the validation split, in percent."""
    return record.validation["top1"]


def validation_table(*names: str) -> str:
    """Recorded experiments side by side, as a Markdown table: settings are compared on the validation split.

    A difference is from the first row.

    Args:
        names: experiments or settings files.
    """
    recorded, lines = recorded_rows(), []
    rows = [row for row in select_rows(recorded, names) if row.records]
    for row in rows:
        record, name = row.records[0], short_name(row)
        cost = [f"{record.parameters:,}", f"{record.macs / 1e6:.1f} M", str(record.run.recipe.epochs)]
        gap = "" if row is rows[0] else difference_between(row, rows[0], recorded, validation_top1)
        seeds = str(len(row.records))
        lines.append([name, row.experiment.description, *cost, row.mean(validation_top1), gap, seeds])
    head = ["", "what", "parameters", "MACs", "epochs", "validation top-1", "difference", "seeds"]
    return markdown_table(head, lines)


def page_cell(column: str, cell: str) -> str:
    """The cell for a page: a value stays on one line, and a difference has a real minus sign."""
    if column == "what":
        return cell
    return cell.replace(" ", "\N{NO-BREAK SPACE}").replace("-", "−" if column == "difference" else "-")


def macs_cell(records: list[RunResult]) -> str:
    """ "55.4 M (25.0 M in use)": MACs for an image, and the mean of a network that skips some."""
    active = active_macs(records)
    return f"{records[0].macs / 1e6:.1f} M" + (f" ({active / 1e6:.1f} M in use)" if active is not None else "")


# One row, `mvt` in cifar10-related-laptop, collapses to another accuracy with each seed. In the pooled standard
# deviation it would widen the error of every other row, so an outlier like it keeps a standard deviation of its own. By
# chance, fewer than one table in a thousand has a row of three values that is called an outlier.


def is_outlier_variance(values: list[float], spread: float) -> bool:
    """Whether the standard deviation of `values` is more than `OUTLIER_FACTOR` times `spread`."""
    return len(values) > 1 and statistics.stdev(values) > OUTLIER_FACTOR * spread


def spread_without_outlier(groups: Iterable[list[float]]) -> float:
    """The pooled standard deviation, without groups whose variance is an outlier.

    A group is one only if the others have `OUTLIER_MIN_FREEDOM` degrees of freedom or more.
    """
    kept = sorted((values for values in groups if len(values) > 1), key=statistics.variance)
    others = kept[:-1]
    if degrees_of_freedom(others) >= OUTLIER_MIN_FREEDOM:
        spread = spread_without_outlier(others)
        if is_outlier_variance(kept[-1], spread):
            return spread
    return pooled_spread(kept)


def compared_values(
    base: ExperimentSummary, rows: dict[str, ExperimentSummary], measure: Callable[[RunResult], float] = top1
) -> list[list[float]]:
    """A metric of all experiments that are compared with this one, and of the others in its settings file."""
    name, file = base.experiment.name, base.experiment.file
    related = [one for one in rows.values() if name == one.experiment.compare or file == one.experiment.file]
    return [one.values(measure) for one in related if one.experiment.name != name and one.records]


def difference_from_base(row: ExperimentSummary, rows: dict[str, ExperimentSummary]) -> str:
    """The difference of test top-1 from the experiment that this one is compared with; empty if there is none."""
    return difference_between(row, rows[row.experiment.compare], rows) if row.experiment.compare else ""


def difference_between(
    row: ExperimentSummary,
    base: ExperimentSummary,
    rows: dict[str, ExperimentSummary],
    measure: Callable[[RunResult], float] = top1,
) -> str:
    """The difference of a metric between two experiments.

    Its standard error pools all experiments that are compared with `base`, and those of its settings file.
    """
    values, reference = row.values(measure), base.values(measure)
    spread = spread_without_outlier([reference, *compared_values(base, rows, measure)])
    own_spread = statistics.stdev(values) if is_outlier_variance(values, spread) else spread
    return difference(values, reference, spread, own_spread)


def significance_from_base(row: ExperimentSummary, rows: dict[str, ExperimentSummary]) -> str:
    """Whether that difference is significant: "no", "single", "corrected", or "–" for a standard error unknown."""
    values = row.values(top1)
    if not row.experiment.compare or not values:
        return ""
    experiment = rows[row.experiment.compare]
    base, others = experiment.values(top1), compared_values(experiment, rows)
    spread = spread_without_outlier([base, *others])
    if not base:
        return ""
    if math.isnan(spread):
        return "–"
    outlier = is_outlier_variance(values, spread)
    error = standard_error(values, base, spread, statistics.stdev(values) if outlier else spread)
    pooled = [values] if outlier else [one for one in (base, *others) if not is_outlier_variance(one, spread)]
    if not error:
        return "–"
    t = (statistics.mean(values) - statistics.mean(base)) / error
    runs = [len(one) for one in others]
    return significance(t, runs, len(values), len(base), degrees_of_freedom(pooled), shared=not outlier)


def seed_values(rows: dict[str, ExperimentSummary]) -> dict[str, dict[str, list[float]]]:
    """What the figure of each settings file shows: test top-1 of every seed, by variant. Files need two variants."""
    found = {}
    for file, chosen in groups(rows).items():
        values = {short_name(row): row.values(top1) for row in chosen if row.records}
        if len(values) > 1:
            found[file] = values
    return found


def make_table(names: str, rows: dict[str, ExperimentSummary]) -> str:
    """The table of a marker: one of `makers`, or the names of experiments and settings files."""
    makers = {"summary": summary, "weights": weights_table, "pretrained": short_weights_table}
    return makers[names](rows) if names in makers else comparison(rows, names.split(), page=True)


def render_tables(page: str, rows: dict[str, ExperimentSummary]) -> str:
    """The page with every marked table made anew from the records."""
    return TABLE_MARKER.sub(lambda match: f"{match[1]}{make_table(match[2], rows)}\n{match[3]}", page)


def marked_pages(results: Path) -> list[Path]:
    """The pages with marked tables: those of the folder of records, and of the checkout around it."""
    checkout = results.parent
    pages = [checkout / "README.md", checkout / "titn_lib" / "models" / "pretrained" / "README.md"]
    for folder in (results, checkout / "docs", checkout / "docs" / "results"):
        pages += sorted(folder.glob("*.md"))
    return [page for page in pages if page.exists() and TABLE_MARKER.search(page.read_text(encoding="utf-8"))]
