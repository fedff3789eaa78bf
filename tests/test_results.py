"""Tables from records whose figures are known."""

import json
from dataclasses import asdict

import pytest

from titn_lib import TITNError
from titn_lib.__main__ import main
from titn_lib.experiments import load_experiments
from titn_lib.recipes import Run, student_recipe
from titn_lib.records import Record
from titn_lib.results import choose_rows, difference, fill_in, load_rows, mean_and_spread, summary

SETTINGS = """
about = "As it is."
data = "cifar10"
model = "tnt_paper"
budget = "laptop"
seeds = [0, 1, 2]
"""
VARIANTS = """
compare = "base"
[variants.wide]
about = "Wider."
[variants.deep]
about = "Deeper."
"""


@pytest.fixture
def places(tmp_path):
    """Two experiments and a half: base 50, 52, 54; wide 55, 57; deep has not been run."""
    folder, results = tmp_path / "experiments", tmp_path / "results"
    folder.mkdir()
    (folder / "1-base.toml").write_text(SETTINGS)
    (folder / "2-change.toml").write_text(SETTINGS + VARIANTS)
    for name, tops in (("base", (50, 52, 54)), ("change-wide", (55, 57))):
        (results / name).mkdir(parents=True)
        for seed, top in enumerate(tops):
            run = Run("cifar10", "tnt_paper", student_recipe("cifar10", "laptop"), seed)
            measured = {"loss": 1.0, "top1": float(top), "top5": 90.0, "pictures": 10}
            record = Record(run, 1234, 5, [], {**measured, "top1": top + 1.0}, measured, 120.0, 9.0, {}, {}, "today")
            (results / name / f"seed{seed}.json").write_text(json.dumps(asdict(record)))
    return folder, results


@pytest.fixture
def rows(places):
    return load_rows(load_experiments(places[0]), places[1])


def test_mean_spread_and_difference():
    assert mean_and_spread([]) == "pending"
    assert mean_and_spread([50.0]) == "50.00"
    assert mean_and_spread([50.0, 52.0, 54.0]) == "52.00 ± 2.00"
    assert difference([], [1.0]) == ""
    assert difference([56.0], [50.0, 52.0]) == "+5.00"
    # variances 2 and 4: √(2/2 + 4/3)
    assert difference([55.0, 57.0], [50.0, 52.0, 54.0]) == "+4.00 ± 1.53"


def test_a_comparison_puts_the_base_first(rows):
    assert [row.experiment.name for row in choose_rows(rows, ["change"])] == ["base", "change-wide", "change-deep"]
    table = fill_in("<!-- table change -->\n<!-- /table -->", rows).splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in table[1:-1]]
    assert cells[0][0:7] == ["", "what", "parameters", "epochs", "validation top-1", "test top-1", "difference"]
    assert cells[2] == [
        "base", "As it is.", "1,234", "14", "53.00 ± 2.00", "52.00 ± 2.00", "", "90.00 ± 0.00", "2.0", "3 of 3"
    ]  # fmt: skip
    assert cells[3][:7] == ["wide", "Wider.", "1,234", "14", "57.00 ± 1.41", "56.00 ± 1.41", "+4.00 ± 1.53"]
    assert cells[4] == ["deep", "Deeper.", "", "14", "", "pending", "", "", "", "0 of 3"]
    with pytest.raises(TITNError, match="unknown experiment 'chang': did you mean 'change'"):
        choose_rows(rows, ["chang"])


def test_the_summary_says_what_is_pending(rows):
    assert "| CIFAR-10 | 92.03 (99.80) | – | – | – |" in summary(rows)


def test_pages_and_figures_are_written(places, capsys):
    folder, results = places
    page = results / "README.md"
    page.write_text("Before.\n<!-- table change -->\nold\n<!-- /table -->\nAfter.\n")
    arguments = ["results", "--folder", str(folder), "--results", str(results)]
    assert main(arguments) == 0
    assert "56.00 ± 1.41" in capsys.readouterr().out
    assert "old" in page.read_text()
    assert main([*arguments, "change", "--write"]) == 0
    text = page.read_text()
    assert "56.00 ± 1.41" in text
    assert "old" not in text
    assert (text[:8], text[-7:]) == ("Before.\n", "After.\n")
    assert (results / "change.png").stat().st_size > 5_000
