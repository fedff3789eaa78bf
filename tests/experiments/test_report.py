"""Tables from records with known values."""

import json
import math
import os
import re
import statistics
from dataclasses import asdict, replace
from functools import cache
from pathlib import Path

import pytest
import torch

from titn_lib import TITNError, load_model, plots
from titn_lib.__main__ import main
from titn_lib.data.datasets import load_dataset
from titn_lib.experiments.report import (
    comparison,
    difference_from_base,
    marked_pages,
    page_cell,
    render_tables,
    significance_from_base,
    spread_without_outlier,
    validation_table,
)
from titn_lib.experiments.settings import load_experiments
from titn_lib.experiments.shipping import PRETRAINED_CANDIDATES, choose_weights, ship_weights, summary
from titn_lib.experiments.statistics import (
    ExperimentSummary,
    chance_of,
    difference,
    load_rows,
    mean_and_spread,
    pooled_spread,
    recorded_rows,
    select_rows,
)
from titn_lib.models.weights import PRETRAINED_DIR, list_pretrained
from titn_lib.training import records
from titn_lib.training.config import Run
from titn_lib.training.evaluation import evaluate
from titn_lib.training.recipes import student_recipe
from titn_lib.training.records import RunResult, load_record, save_record

TOP = Path(__file__).parents[2]

SETTINGS = """
description = "As it is."
data = "cifar10"
model = "tnt_paper"
preset = "laptop"
seeds = [0, 1, 2]
"""
VARIANTS = """
compare = "base"
[variants.wide]
description = "Wider."
[variants.deep]
description = "Deeper."
"""


@pytest.fixture
def folders(tmp_path):
    """Two experiments and a half: base 50, 52, 54; wide 55, 57; deep has not been run."""
    folder, results = tmp_path / "experiments", tmp_path / "results"
    folder.mkdir()
    (folder / "1-base.toml").write_text(SETTINGS)
    (folder / "2-change.toml").write_text(SETTINGS + VARIANTS)
    for name, tops in (("base", (50, 52, 54)), ("change-wide", (55, 57))):
        (results / name).mkdir(parents=True)
        for seed, top in enumerate(tops):
            run = Run("cifar10", "tnt_paper", student_recipe("cifar10", "laptop"), seed)
            measured = {"loss": 1.0, "top1": float(top), "top5": 90.0, "num_images": 10}
            record = RunResult(run, 1234, 5, [], {**measured, "top1": top + 1.0}, measured, 120.0, 9.0, {}, {}, "today")
            (results / name / f"seed{seed}.json").write_text(json.dumps(asdict(record)))
    return folder, results


@pytest.fixture
def rows(folders):
    return load_rows(load_experiments(folders[0]), folders[1])


def test_mean_spread_and_difference():
    assert mean_and_spread([]) == "pending"
    assert mean_and_spread([50.0]) == "50.00"
    assert mean_and_spread([50.0, 52.0, 54.0]) == "52.00 ± 2.00"
    assert math.isnan(pooled_spread([[50.0], []]))
    # squares: 2 of (55, 57), 8 of (50, 52, 54), with 1 + 2 degrees of freedom; one value has no spread
    spread = pooled_spread([[55.0, 57.0], [50.0, 52.0, 54.0], [70.0]])
    assert spread == pytest.approx((10 / 3) ** 0.5)
    assert difference([], [1.0], spread) == ""
    assert difference([56.0], [50.0, 52.0], math.nan) == "+5.00"
    # √(10/3 · (1/2 + 1/3)) and, of a single run, √(10/3 · (1 + 1/3))
    assert difference([55.0, 57.0], [50.0, 52.0, 54.0], spread) == "+4.00 ± 1.67"
    assert difference([70.0], [50.0, 52.0, 54.0], spread) == "+18.00 ± 2.11"


def compared(example, values):
    """Summaries with these test accuracies, by name; all are compared with "base"."""
    table = {}
    for name, tops in values.items():
        records = [replace(example.records[0], test={**example.records[0].test, "top1": top}) for top in tops]
        compare = None if name == "base" else "base"
        table[name] = ExperimentSummary(replace(example.experiment, name=name, file=name, compare=compare), records)
    return table


@pytest.mark.parametrize(
    ("runs", "base_runs", "freedom", "threshold"),
    [
        ([3], 3, 2, 4.303),  # one comparison: the 97.5 % quantile of Student's t
        ([3], 3, 10, 2.228),
        ([1], 3, 60, 2.000),
        ([3] * 2, 3, 10, 2.568),  # the largest of several: from scipy.stats.multivariate_t with correlations of 0.5
        ([3] * 5, 3, 10, 2.990),
        ([3] * 5, 3, 60, 2.582),
        ([3] * 9, 3, 60, 2.769),
    ],
)
def test_thresholds_are_the_quantiles_of_t(runs, base_runs, freedom, threshold):
    assert chance_of(threshold, runs, base_runs, freedom) == pytest.approx(0.05, abs=0.0002)


def test_unequal_numbers_of_runs_count():
    """Against a simulation under the null hypothesis, as in notebook 08."""
    runs, base_runs, freedom, t = [1, 2, 2, 6], 3, 8, 2.4
    random = torch.Generator().manual_seed(0)
    counts = torch.tensor([base_runs, *runs])
    means = torch.randn(100_000, len(counts), generator=random) / counts.sqrt()
    std = torch.randn(100_000, freedom, generator=random).square().mean(dim=1, keepdim=True).sqrt()
    simulated = (means[:, 1:] - means[:, :1]).abs() / (std * (1 / counts[1:] + 1 / base_runs).sqrt())
    expected = float((simulated.amax(dim=1) > t).float().mean())
    assert chance_of(t, runs, base_runs, freedom) == pytest.approx(expected, abs=0.003)


def test_a_difference_is_significant_alone_or_also_as_the_largest(rows):
    """s = 2 with 22 degrees of freedom, ten differences: thresholds of 3.39 and 4.88 points."""
    like = [50.0, 52.0, 54.0]
    shifted = {"far": 5.0, "low": -5.0, "near": 4.6, "edge": 3.3, "over": 3.5}
    values = {"base": like} | {name: [top + shift for top in like] for name, shift in shifted.items()}
    table = compared(rows["base"], values | dict.fromkeys("abcde", like))
    found = {name: significance_from_base(row, table) for name, row in table.items()}
    assert found == {
        "base": "", "far": "corrected", "low": "corrected", "near": "single", "edge": "no", "over": "single",
        **dict.fromkeys("abcde", "no"),
    }  # fmt: skip


def test_single_runs_have_no_significance(rows):
    table = compared(rows["base"], {"base": [50.0], "far": [70.0], "pending": []})
    assert [significance_from_base(row, table) for row in table.values()] == ["", "–", ""]


def test_equal_runs_have_no_significance(rows):
    """On a few hundred test images, all seeds may have the same accuracy."""
    table = compared(rows["base"], {"base": [50.0, 50.0], "far": [51.0, 51.0]})
    assert [significance_from_base(row, table) for row in table.values()] == ["", "–"]


def test_an_outlier_is_judged_by_its_own_runs(rows):
    """Three runs, two degrees of freedom: beyond the threshold of one, and far from that of seven."""
    like, wild = [50.0, 52.0, 54.0], [0.0, 12.0, 24.0]
    table = compared(rows["base"], {"base": like, "wild": wild} | dict.fromkeys("abcdef", like))
    assert difference_from_base(table["wild"], table) == "-40.00 ± 7.02"
    assert significance_from_base(table["wild"], table) == "single"
    assert significance_from_base(table["a"], table) == "no"


def test_a_row_of_outlying_variance_has_a_spread_of_its_own(rows):
    like, noisy, wild = [50.0, 52.0, 54.0], [40.0, 49.0, 58.0], [30.0, 31.0, 53.0]  # s = 2, 9 and 13
    assert spread_without_outlier([like] * 5 + [wild]) == pytest.approx(2)
    assert spread_without_outlier([wild] + [like] * 5) == pytest.approx(2)
    assert pooled_spread([like] * 5 + [wild]) == pytest.approx(((5 * 8 + 338) / 12) ** 0.5)  # the plain one has it
    # 9 is not five times 2; and four rows (8 degrees of freedom) are too few to call a fifth wild
    assert spread_without_outlier([like] * 5 + [noisy]) == pytest.approx(((5 * 8 + 162) / 12) ** 0.5)
    assert spread_without_outlier([like] * 4 + [wild]) == pytest.approx(((4 * 8 + 338) / 10) ** 0.5)
    assert math.isnan(spread_without_outlier([[50.0], []]))
    # √(169 / 3 + 4 / 3), and with 4 in the place of 169
    assert difference(wild, like, 2.0, 13.0) == "-14.00 ± 7.59"
    assert difference(noisy, like, 2.0) == "-3.00 ± 1.63"

    table = compared(rows["base"], {"base": like, "wild": wild} | dict.fromkeys("abcd", like))
    assert difference_from_base(table["wild"], table) == "-14.00 ± 7.59"
    assert difference_from_base(table["a"], table) == "+0.00 ± 1.63"


def test_on_a_page_a_value_stays_on_one_line():
    assert page_cell("difference", "-1.07 ± 0.60") == "−1.07\N{NO-BREAK SPACE}±\N{NO-BREAK SPACE}0.60"
    assert page_cell("", "cifar10-titn_mini-laptop") == "cifar10-titn_mini-laptop"
    assert page_cell("what", "A few - perhaps many - words.") == "A few - perhaps many - words."


def test_a_comparison_puts_the_base_first(rows):
    assert [row.experiment.name for row in select_rows(rows, ["change"])] == ["base", "change-wide", "change-deep"]
    table = render_tables("<!-- table change -->\n<!-- /table -->", rows).splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in table[1:-1]]
    assert cells[0] == [
        "", "what", "validation top-1", "test top-1", "difference", "significant?", "test top-5", "parameters", "MACs",
        "epochs", "minutes", "seeds",
    ]  # fmt: skip
    cells = [[cell.replace("\N{NO-BREAK SPACE}", " ") for cell in line] for line in cells]
    assert cells[2] == [
        "base", "As it is.", "53.00 ± 2.00", "52.00 ± 2.00", "", "", "90.00 ± 0.00", "1,234", "0.0 M", "14", "2.0",
        "3 of 3",
    ]  # fmt: skip
    assert cells[3][2:6] == ["57.00 ± 1.41", "56.00 ± 1.41", "+4.00 ± 1.67", "no"]
    assert table[5:-1] == ["", "Pending: `deep`."]
    plain = comparison(rows, ["change"]).splitlines()[0]
    assert [cell.strip() for cell in plain.strip("|").split("|")] == [
        "", "what", "parameters", "MACs", "epochs", "validation top-1", "test top-1", "difference", "test top-5",
        "minutes", "seeds",
    ]  # fmt: skip
    with pytest.raises(TITNError, match="unknown experiment 'chang': did you mean 'change'"):
        select_rows(rows, ["chang"])


def test_measured_speeds_are_in_the_table(folders):
    folder, results = folders
    rounds = {"training": [400, 100, 1000], "inference": [5000, 5000, 5000]}
    wide = {"training": [200, 80, 100], "inference": [5000, 5000, 10_000]}  # round by round: 0.5, 0.8, 0.1
    both = {"base": rounds, "change-wide": wide}
    speeds = {f"{name} {job}": values for name, jobs in both.items() for job, values in jobs.items()}
    (results / "related-speed-cpu.json").write_text(json.dumps({"rounds": speeds}))
    table = comparison(load_rows(load_experiments(folder), results), ["change"]).splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in table]
    assert cells[0][2:] == [
        "parameters", "MACs", "epochs", "validation top-1", "test top-1", "difference", "images/s training",
        "images/s inference", "minutes", "seeds",
    ]  # fmt: skip
    assert cells[2][7:] == ["", "400 (1.00)", "5,000 (1.00)", "2.0", "3 of 3"]
    assert cells[3][8:10] == ["100 (0.50)", "5,000 (1.00)"]
    assert cells[4][8:10] == ["", ""]


def test_macs_in_use_are_given_with_all_macs(folders):
    folder, results = folders
    for seed, used in enumerate((20_000_000, 30_000_000)):
        path = results / "change-wide" / f"seed{seed}.json"
        record = json.loads(path.read_text())
        path.write_text(json.dumps({**record, "macs": 55_400_000, "test": {**record["test"], "macs": used}}))
    table = comparison(load_rows(load_experiments(folder), results), ["change"])
    assert "| 55.4 M (25.0 M in use) |" in table


def test_an_experiment_is_not_compared_with_itself(folders):
    folder, _ = folders
    (folder / "3-own.toml").write_text(SETTINGS + VARIANTS.replace('"base"', '"own-wide"'))
    own = load_experiments(folder)
    assert (own["own-wide"].compare, own["own-deep"].compare) == (None, "own-wide")


def test_the_short_table_of_weights_has_the_students_with_their_losses(rows, monkeypatch):
    monkeypatch.setattr("titn_lib.experiments.shipping.PRETRAINED_CANDIDATES", {"a": ("base",), "b": ("change-wide",)})
    last = rows["base"].records[-1]
    taught = replace(last, run=replace(last.run, loss="hard", teacher="vgg7_bn.cifar10"))
    teacher = replace(last, run=replace(last.run, model="vgg7_bn"))
    for record, line in ((last, "labels only"), (taught, "distillation, `hard`"), (teacher, None)):
        changed = {**rows, "base": replace(rows["base"], records=[record])}
        table = render_tables("<!-- table pretrained -->\n<!-- /table -->", changed).splitlines()
        assert table[1:3] == ["| student | trained with | parameters | test top-1 (%) |", "| --- | --- | --- | --- |"]
        assert table[3:-1] == [
            *([f"| `a` | {line} | 0.00 M | 54.00 |"] if line else []),
            "| `b` | labels only | 0.00 M | 57.00 |",
        ]


def test_a_page_without_records_names_what_is_pending(rows):
    pending = {name: replace(row, records=[]) for name, row in rows.items()}
    table = render_tables("<!-- table change -->\n<!-- /table -->", pending).splitlines()
    assert table[1:-1] == ["Pending: `base`, `wide`, `deep`."]


def test_the_summary_says_what_is_pending(rows):
    *lines, _, pending = summary(rows).splitlines()
    assert "| CIFAR-10 | 92.03 (99.80) |" in lines
    assert pending.startswith("Pending: `titn_paper`, published recipe¹, small student² alone,")
    measured = {"cifar10-titn_nano-alone-laptop": rows["base"], "mnist-titn_pico-alone-laptop": rows["base"]}
    gpu = {"cifar10-students-gpu-titn": rows["change-deep"], "mnist-students-gpu-titn": rows["base"]}
    lines = summary(measured | gpu).splitlines()
    assert "| CIFAR-10 | 92.03 (99.80) | pending | 52.00 ± 2.00 (90.00) |" in lines
    assert "| CIFAR-100 | 74.71 (92.28) | – | – |" in lines
    assert "| MNIST | 99.56 | 52.00 ± 2.00 | 52.00 ± 2.00 |" in lines


def test_pages_and_figures_are_written(folders, capsys):
    folder, results = folders
    page, other = results / "README.md", results.parent / "docs" / "results" / "change.md"
    other.parent.mkdir(parents=True)
    for file in (page, other):
        file.write_text("Before.\n<!-- table change -->\nold\n<!-- /table -->\nAfter.\n")
    (results.parent / "docs" / "plain.md").write_text("No table.")
    arguments = ["report", "--folder", str(folder), "--results", str(results)]
    assert main(arguments) == 0
    assert "56.00 ± 1.41" in capsys.readouterr().out
    assert "old" in page.read_text()
    assert main([*arguments, "change", "--write"]) == 0
    text = page.read_text()
    assert "56.00\N{NO-BREAK SPACE}±\N{NO-BREAK SPACE}1.41" in text
    assert "old" not in text
    assert (text[:8], text[-7:]) == ("Before.\n", "After.\n")
    assert other.read_text() == text
    assert marked_pages(results) == [page, other]
    assert (results / "change.png").stat().st_size > 5_000


def test_the_figure_draws_the_test_split(folders, monkeypatch):
    folder, results = folders
    drawn, draw = [], plots.plot_seeds
    monkeypatch.setattr(plots, "plot_seeds", lambda points: drawn.append(points) or draw(points))
    assert main(["report", "--folder", str(folder), "--results", str(results), "--write"]) == 0
    assert drawn == [{"base": [50, 52, 54], "wide": [55, 57]}]


# --- records


def test_a_record_is_whole_or_not_there(rows, tmp_path):
    """A full disk: /dev/full takes the place of the unfinished file."""
    (tmp_path / f"record.json.{os.getpid()}.part").symlink_to("/dev/full")
    with pytest.raises(TITNError, match="the disk is full"):
        save_record(rows["base"].records[0], tmp_path / "record.json")
    assert not list(tmp_path.glob("record.json*"))


def test_records_are_side_by_side_with_each_value_in_its_column(rows):
    lines = records.table({"x": rows["base"].records[0]}).splitlines()
    head, _, line = ([cell.strip() for cell in row.strip("|").split("|")] for row in lines)
    assert dict(zip(head, line, strict=True)) == {
        "": "x", "model": "tnt_paper", "parameters": "1,234", "epochs": "14", "validation top-1": "51.00 %",
        "test top-1": "50.00 %", "test top-5": "90.00 %", "minutes": "2.0", "images/s": "9",
    }  # fmt: skip


# --- shipped weights


def test_shipped_weights_are_those_chosen_from_the_records(tmp_path):
    rows = load_rows(load_experiments(TOP / "experiments"), TOP / "results")
    ship_weights(rows, TOP / "results", tmp_path)
    assert list_pretrained() == sorted(PRETRAINED_CANDIDATES)
    for fresh in tmp_path.iterdir():
        assert fresh.read_bytes() == (PRETRAINED_DIR / fresh.name).read_bytes(), "run `titn report --write`"


def test_weights_are_chosen_on_the_validation_split(rows, monkeypatch):
    """`wide` is ahead of `base` there: 58 against 55 at best. On the test set, its order is turned around here."""
    monkeypatch.setattr(
        "titn_lib.experiments.shipping.PRETRAINED_CANDIDATES", {"a": ("base", "change-wide", "change-deep")}
    )
    for row in rows.values():
        for record in row.records:
            record.test["top1"] = 100 - record.test["top1"]
    experiment, record = choose_weights(rows)["a"]
    assert (experiment.name, record.run.seed, record.validation["top1"]) == ("change-wide", 1, 58)


def test_a_notebooks_table_compares_on_the_validation_split():
    rows = recorded_rows()
    base, other = (rows[f"cifar10-{name}"].records for name in ("students-laptop-titn", "ablations-laptop-stem"))
    means = [statistics.mean(record.validation["top1"] for record in records) for records in (base, other)]
    head, _, first, last = validation_table("cifar10-ablations-laptop-stem").splitlines()
    assert "validation" in head
    assert "test" not in head
    assert [f"{means[0]:.2f} ±" in first, f"{means[1]:.2f} ±" in last] == [True, True]
    assert f"| {means[1] - means[0]:+.2f} ±" in last
    assert first.split("|")[-3].strip() == ""


def test_an_outlier_has_an_error_of_its_own():
    lines = validation_table("cifar10-related-laptop").splitlines()[3:]
    errors = {line.split("|")[1].strip(): line.split("±")[-1].split()[0] for line in lines}
    assert float(errors["mvt"]) > 3 * float(errors["mask"])
    assert errors["mask"] == errors["cmt"]


LOSS_OF_500 = {  # the loss on some 500 validation images, measured once: no other run's weights have the same
    "airbench.cifar10": 0.41893,
    "airbench.cifar100": 1.26133,
    "titn_nano.digits": 0.04225,
    "titn_nano.cifar10": 0.80544,
    "titn_mini.cifar10": 0.38060,
    "titn_mini_conv.cifar10": 0.35521,
    "titn_mini_conv.mnist": 0.01771,
    "titn_mini-local.cifar10": 0.33504,
    "titn_mini-local.cifar100": 1.05734,
    "titn_pico.mnist": 0.02063,
    "vgg7_bn.digits": 0.14046,
    "vgg7_bn.cifar10": 0.41439,
    "vgg7_bn.cifar100": 1.28357,
    "vgg7_bn.mnist": 0.11567,
}


@cache
def some_validation_images(name):
    """About 500, and how many there are."""
    validation = load_dataset(name).validation
    return validation[:: max(1, len(validation) // 500)], len(validation)


@pytest.mark.parametrize("name", sorted(PRETRAINED_CANDIDATES))
def test_shipped_weights_have_the_accuracy_of_their_record(name, request):
    """On some 500 validation images, within three standard deviations. `titn evaluate` measures all of them."""
    record = load_record(PRETRAINED_DIR / f"{name}.json")
    if record.run.data != "digits":
        request.getfixturevalue("real_data")
    model = load_model(name)
    assert (model.preprocessing.data, model.config.name) == (record.run.data, re.split("[-.]", name)[0])
    assert getattr(model.config, "local_perception", False) == ("-local." in name or "_conv." in name)
    assert (PRETRAINED_DIR / f"{name}.safetensors").stat().st_size < 16 * 2**20
    some, num_images = some_validation_images(record.run.data)
    assert num_images == record.validation["num_images"]
    measured = evaluate(model, some, model.preprocessing)
    share = record.validation["top1"] / 100
    assert measured["top1"] / 100 == pytest.approx(share, abs=3 * (share * (1 - share) / len(some)) ** 0.5)
    assert measured["loss"] == pytest.approx(LOSS_OF_500[name], rel=0.005)
