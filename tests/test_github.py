"""What GitHub, packagers and editors read: workflows, templates, versions, extras."""

import importlib.util
import json
import re
import tomllib
from pathlib import Path

import pytest
import yaml

import titn_lib

TOP = Path(__file__).parent.parent
PROJECT = tomllib.loads((TOP / "pyproject.toml").read_text(encoding="utf-8"))
WORKFLOWS = sorted((TOP / ".github" / "workflows").glob("*.yml"))
TEMPLATES = sorted((TOP / ".github" / "ISSUE_TEMPLATE").glob("[!c]*.yml"))


def read(path):
    return (TOP / path).read_text(encoding="utf-8")


def load_colab():
    spec = importlib.util.spec_from_file_location("colab_constraints", TOP / ".github" / "colab_constraints.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    return script


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_workflows_name_files_groups_and_actions_that_there_are(path):
    text = path.read_text(encoding="utf-8")
    workflow = yaml.safe_load(text)
    assert workflow["permissions"] == {"contents": "read"}
    for job in workflow["jobs"].values():
        assert job["timeout-minutes"]
        for step in job["steps"]:
            assert re.fullmatch(r"[\w-]+/[\w-]+@v\d+", step.get("uses", "a/b@v1")), "an action by its major version"
            for group in re.findall(r"--group (\S+)", step.get("run", "")):
                assert group in PROJECT["dependency-groups"]
            for file in re.findall(r"[\w./]*\.(?:py|toml)\b|\.ci/run", step.get("run", "")):
                assert (TOP / file).exists(), file


def test_the_oldest_versions_are_tested_with_the_oldest_python():
    matrix = yaml.safe_load(read(".github/workflows/tests.yml"))["jobs"]["systems"]["strategy"]["matrix"]
    oldest, newest = matrix["include"]
    assert (oldest["versions"], newest["versions"]) == tuple(matrix["versions"])
    assert f">={oldest['python']}" == PROJECT["project"]["requires-python"]
    assert oldest["resolution"] == "lowest-direct"
    assert {system.split("-")[0] for system in matrix["system"]} == {"ubuntu", "macos", "windows"}


def test_contributing_lists_the_workflows_and_says_what_is_untested():
    section = read("CONTRIBUTING.md").split("## What is tested where")[1].split("\n## ")[0]
    assert set(re.findall(r"^\| `([\w.]+)`", section, re.M)) == {path.name for path in WORKFLOWS}
    assert "PyTorch " + next(line for line in PROJECT["project"]["dependencies"] if "torch>" in line)[7:] in section
    for word in ("macOS", "Windows", "untested"):
        assert word in section


def test_colab_constraints():
    listing = """# Do not modify
einops==0.8.2
ipywidgets==7.7.1
torch==2.11.0+cu128
torchvision @ https://download/whl/cu118/torchvision-0.26.0%2Bcu118-cp312-cp312-linux_x86_64.whl#sha256=03
scikit-learn==1.6.1
safetensors_rust==9.0
google-colab @ file:///colabtools/dist/google_colab-1.0.0.tar.gz
"""
    requirements = ["einops>=0.8", "ipywidgets>=8.1", "torch>=2.9", "torchvision>=0.24", "scikit-learn>=1.4", "tqdm>=4"]
    lines, left_out = load_colab().constraints(listing, requirements)
    assert lines == ["einops==0.8.2", "torch==2.11.0", "torchvision==0.26.0", "scikit-learn==1.6.1"]
    assert left_out == [
        "ipywidgets: Colab has 7.7.1, this project needs 8.1 and replaces it",
        "tqdm: not in Colab, will be installed",
    ]
    assert load_colab().numbers("2.10.0rc1") > load_colab().numbers("2.9")


@pytest.mark.parametrize("path", TEMPLATES, ids=lambda path: path.stem)
def test_issue_forms_ask_something(path):
    form = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert form["name"]
    assert form["description"]
    assert any(question.get("validations", {}).get("required") for question in form["body"])
    assert all(question["attributes"]["label"] for question in form["body"])


def test_one_version():
    version = PROJECT["project"]["version"]
    assert titn_lib.__version__ == version
    released = re.findall(r"^## ([\d.]+) \((\d{4}-\d\d-\d\d)\)", read("CHANGELOG.md"), re.M)
    citation = yaml.safe_load(read("CITATION.cff"))
    assert released[0] == (version, str(citation["date-released"]))
    assert citation["version"] == version
    assert released == sorted(released, reverse=True)


def test_extras_have_the_bounds_of_the_tests():
    for extra in PROJECT["project"]["optional-dependencies"].values():
        assert set(extra) <= set(PROJECT["dependency-groups"]["test"])


def test_the_dev_container_and_the_hooks_use_this_environment():
    container = json.loads(read(".devcontainer/devcontainer.json"))
    floor = [int(number) for number in PROJECT["project"]["requires-python"].strip(">=").split(".")]
    assert [int(number) for number in container["image"].split(":")[1].split(".")] >= floor
    assert container["onCreateCommand"].endswith("uv sync")
    tools = {line.split(">")[0] for line in PROJECT["dependency-groups"]["test"]}
    hooks = [hook for repo in yaml.safe_load(read(".pre-commit-config.yaml"))["repos"] for hook in repo["hooks"]]
    assert {hook["entry"].split()[2] for hook in hooks} == {"ruff", "codespell"}
    assert {"ruff", "codespell"} <= tools


def test_the_package_is_typed():
    assert (TOP / "titn_lib" / "py.typed").exists()
    assert "Typing :: Typed" in PROJECT["project"]["classifiers"]
