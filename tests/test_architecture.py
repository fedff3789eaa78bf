"""Imports run one way, files stay short enough to be read in class, PyTorch's private names stand in one place."""

import ast
import re
from pathlib import Path

import pytest

LIBRARY = Path(__file__).parent.parent / "titn_lib"
FILES = sorted(LIBRARY.rglob("*.py"))
ORDER = ["errors", "torch_compat", "validation", "io", "kernels", "data", "models", "losses", "training", "experiments"]
# Beside that order: each of these may import what stands here.
BESIDE = {
    "interpret": [*ORDER[: ORDER.index("training")], "plots"],
    "plots": [*ORDER[: ORDER.index("losses")], "fonts"],
    "fonts": ["errors"],
    "course": [*ORDER, "interpret", "plots"],
    "commands": [*ORDER, "interpret", "plots"],
    "__main__": [*ORDER, "commands"],
    "__init__": ORDER,
}
PRIVATE = re.compile(r"torch\._[A-Za-z]\w+|_dynamo|_functorch|_current_level|_has_any_global_hook")


def part(file: Path) -> str:
    """The part of the library that a file belongs to: its folder, or its own name."""
    top = file.relative_to(LIBRARY).parts[0]
    return top.removesuffix(".py")


def imports(source: str) -> set[str]:
    """The parts that a file imports, anywhere in it but under `if TYPE_CHECKING`."""
    tree = ast.parse(source)
    typing_only = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for inner in ast.walk(node)
    }
    found = set()
    for node in ast.walk(tree):
        if id(node) in typing_only:
            continue
        if isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            continue
        found |= {name.split(".")[1] for name in names if name.startswith("titn_lib.")}
    return found


def wrong_imports(name: str, source: str) -> set[str]:
    """What a part imports and must not."""
    allowed = BESIDE.get(name) or ORDER[: ORDER.index(name)]
    parts = {*ORDER, *BESIDE} - {"__init__"}
    return (imports(source) & parts) - {*allowed, name}


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(LIBRARY)))
def test_imports_run_one_way(file):
    assert not wrong_imports(part(file), file.read_text(encoding="utf-8"))


def test_a_wrong_import_is_noticed():
    assert wrong_imports("data", "from titn_lib.models import base") == {"models"}
    assert wrong_imports("models", "def f():\n    from titn_lib import training") == {"training"}
    assert wrong_imports("training", "import titn_lib.course.setup") == {"course"}
    assert wrong_imports("plots", "from titn_lib.training.records import RunResult") == {"training"}
    assert not wrong_imports("losses", "from titn_lib.models.base import Classifier")
    assert not wrong_imports("plots", "if TYPE_CHECKING:\n    from titn_lib.training.records import RunResult")


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(LIBRARY)))
def test_files_and_functions_are_short(file):
    source = file.read_text(encoding="utf-8")
    assert len(source.splitlines()) <= (285 if file.name == "titn.py" else 400)
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef):
            assert node.end_lineno - node.lineno < 60, node.name


def test_private_names_of_pytorch_stand_in_one_place():
    users = {
        str(file.relative_to(LIBRARY))
        for file in FILES
        if PRIVATE.search(re.sub(r"#.*", "", file.read_text(encoding="utf-8")))
    }
    assert users == {"torch_compat.py"}
