"""The project around the library: environments, notebooks, records. test_pages.py has the pages."""

import importlib.util
import json
import os
import re
import subprocess
import sys
import tomllib
import zipfile
from dataclasses import fields
from pathlib import Path

import jaxtyping
import nbformat
import pytest
import torch
import yaml

from titn_lib import TITNError
from titn_lib.data.transforms import normalize
from titn_lib.experiments.settings import load_experiments
from titn_lib.experiments.statistics import load_rows
from titn_lib.models.titn import TITNConfig

TOP = Path(__file__).parent.parent
PROJECT = tomllib.loads((TOP / "pyproject.toml").read_text())
CHAPTERS = sorted((TOP / "notebooks").glob("[0-9]*.ipynb"))  # not a reader's own, nor JupyterLab's checkpoints
NOTEBOOKS = [*CHAPTERS, *sorted((TOP / "notebooks" / "solutions").glob("[0-9]*.ipynb"))]


def load_script(path):
    """A script that belongs to no package, as a module."""
    spec = importlib.util.spec_from_file_location(f"{path.stem}_script", path)
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    return script


def requirements():
    groups = PROJECT["dependency-groups"]
    return {*PROJECT["project"]["dependencies"], *groups["lab"], *groups["test"]}


def test_conda_and_pip_agree():
    lines = yaml.safe_load((TOP / "environment.yml").read_text())["dependencies"]
    conda = [line for line in lines if isinstance(line, str)]
    pip = next(line["pip"] for line in lines if isinstance(line, dict))
    named = {re.sub("^pytorch>", "torch>", line) for line in conda} | set(pip)
    assert named == requirements() | {f"python{PROJECT['project']['requires-python']}", "pip", "-e ."}


def test_constraints_cover_every_requirement():
    pinned = dict(line.split("==") for line in (TOP / "constraints.txt").read_text().splitlines() if "==" in line)
    assert {re.split("[>=]", line)[0] for line in requirements()} <= set(pinned)
    for line in requirements():
        name, floor = line.split(">=")
        assert [int(n) for n in re.findall(r"\d+", pinned[name])] >= [int(n) for n in floor.split(".")]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_were_run_from_top_to_bottom(path):
    """nbval compares nothing where outputs were stripped: so they must be there."""
    book = json.loads(path.read_text())
    code = [cell for cell in book["cells"] if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1))
    compared = [cell for cell in code if "nbval-ignore-output" not in cell["metadata"].get("tags", [])]
    assert sum(bool(cell["outputs"]) for cell in compared) >= 3
    outputs = [output for cell in code for output in cell["outputs"]]
    assert not any(output["output_type"] == "error" for output in outputs)
    assert path.parent.name == "solutions" or any("image/png" in output.get("data", {}) for output in outputs)
    assert not any("application/vnd.jupyter.widget-view+json" in output.get("data", {}) for output in outputs)
    assert "widgets" not in book["metadata"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_code_fits_on_a_projector(path):
    code = [cell["source"] for cell in nbformat.read(path, as_version=4)["cells"] if cell["cell_type"] == "code"]
    assert not [line for source in code for line in source.splitlines() if len(line) > 120]


def test_notebooks_carry_the_address_that_pyproject_names(tmp_path):
    stamp = load_script(TOP / "notebooks" / "stamp.py")
    for path in NOTEBOOKS:
        name, book = path.relative_to(TOP).as_posix(), nbformat.read(path, as_version=4)
        assert stamp.stamp(nbformat.read(path, as_version=4), name, stamp.read_address()) == book, name
        moved = nbformat.writes(stamp.stamp(book, name, "https://github.com/another/course"))
        assert f"colab.research.google.com/github/another/course/blob/main/{name}" in moved
        assert "git+https://github.com/another/course" in moved
        assert "your_name" not in moved


def test_the_wheel_serves_notebooks_without_a_checkout(tmp_path):
    """What they read beside code: kernels, weights, records."""
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(build, cwd=TOP, check=True, capture_output=True)
    zipfile.ZipFile(next(tmp_path.glob("*.whl"))).extractall(tmp_path / "site")
    code = """
from titn_lib.kernels import build
from titn_lib.experiments import statistics
from titn_lib import load_model
from titn_lib.io import records_dir
assert build.LAYER_SOURCE.exists() and build.IMAGE_SOURCE.exists()
assert load_model("titn_nano.digits").preprocessing.data == "digits"
assert statistics.recorded_rows()["digits-vgg7_bn-laptop"].records
print(records_dir())
"""
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "site")}
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(str(tmp_path / "site"))


def test_every_record_belongs_to_an_experiment_that_asks_for_it():
    rows = load_rows(load_experiments(TOP / "experiments"), TOP / "results")
    known = [record for row in rows.values() for record in row.records]
    assert len(known) == len(list((TOP / "results").glob("*/*.json")))


def test_settings_are_documented():
    listed = re.findall(r"^ {8}(\w+(?:, \w+)*): ", TITNConfig.__doc__, re.M)
    documented = {name for names in listed for name in names.split(", ")}
    plain = {"name", "num_classes", "in_channels"}
    assert documented == {field.name for field in fields(TITNConfig)} - plain


def test_experiments_refer_to_each_other():
    experiments = load_experiments(TOP / "experiments")
    assert experiments["cifar10-students-gpu-titn"].runs[0].teacher == experiments["cifar10-vgg16_bn-gpu"].runs[0]
    with pytest.raises(TITNError, match="there are no settings files"):
        load_experiments(TOP / "titn_lib")


def all_epochs(run):
    """Its own, and those of the run that gave its initial weights."""
    return run.recipe.epochs + (all_epochs(run.init_from) if run.init_from else 0)


def test_what_is_compared_has_the_same_data_seeds_and_epochs():
    experiments = load_experiments(TOP / "experiments")
    for experiment in experiments.values():
        base = experiments.get(experiment.compare or "")
        others = [other for other in experiments.values() if experiment.variant and other.file == experiment.file]
        for other in [base, *others] if base else others:
            assert (experiment.preset, list(experiment.runs)) == (other.preset, list(other.runs)), experiment.name
            mine, its = experiment.runs[0], other.runs[0]
            assert (mine.data, all_epochs(mine)) == (its.data, all_epochs(its)), experiment.name
            sizes = [(run.recipe.train_images, run.recipe.test_images) for run in (mine, its)]
            assert sizes[0] == sizes[1], experiment.name


def test_shapes_are_checked_here():
    """The shape checker that conftest installs is active."""
    with pytest.raises(jaxtyping.TypeCheckError):
        normalize(torch.zeros(2, 3, dtype=torch.uint8), (0.5,), (0.5,))
