"""Other systems: files and terminals of another encoding, commands for any shell."""

import ast
import io
import re
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from titn_lib import create_model, save_model
from titn_lib.__main__ import main
from titn_lib.data.transforms import Preprocessing

TOP = Path(__file__).parent.parent
SOURCES = sorted(
    [TOP / "hubconf.py", *(TOP / "titn_lib").rglob("*.py")]
    + [file for folder in ("benchmarks", "docs", "notebooks") for file in (TOP / folder).glob("*.py")]
)
PAGES = [TOP / "README.md", TOP / "CONTRIBUTING.md", *sorted((TOP / "docs").rglob("*.md"))]


def without_encoding(source):
    """Lines that read or write text in whatever encoding the system has: on Windows often cp1252."""
    for call in ast.walk(ast.parse(source)):
        if not isinstance(call, ast.Call):
            continue
        name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
        owner = getattr(call.func.value, "id", "") if isinstance(call.func, ast.Attribute) else ""
        words = {word.arg for word in call.keywords}
        modes = [a.value for a in (*call.args, *(w.value for w in call.keywords)) if isinstance(a, ast.Constant)]
        opens = name in ("open", "fdopen") and owner not in ("os", "Image")
        binary = any(isinstance(mode, str) and re.fullmatch("[rwax+]*b[rwax+]*", mode) for mode in modes)
        if "encoding" not in words and (
            name in ("read_text", "write_text") or (opens and not binary) or "text" in words
        ):
            yield call.lineno


def test_calls_without_an_encoding_are_found():
    wrong = ["p.read_text()", "p.write_text(x)", "open(p)", "open(p, 'w')", "run(c, text=True)", "p.open()"]
    right = ["open(p, 'rb')", "p.open(mode='wb')", "Image.open(p)", "os.open(p, 0)", "p.read_text(encoding='utf-8')"]
    assert list(without_encoding("\n".join(wrong + right))) == [1, 2, 3, 4, 5, 6]


def test_every_file_is_read_and_written_with_an_encoding():
    assert len(SOURCES) > 80
    assert {str(file): lines for file in SOURCES if (lines := [*without_encoding(file.read_text("utf-8"))])} == {}


def test_commands_work_in_every_shell():
    """Windows' PowerShell 5 knows no "&&"."""
    assert not [page.name for page in PAGES if re.search(r"^ {4}.*&&|`[^`]*&&", page.read_text("utf-8"), re.M)]


@pytest.fixture
def animals(tmp_path, monkeypatch):
    """A folder of images and weights for it, with class names in other scripts."""
    rng = np.random.default_rng(0)
    for name in ("кот", "собака"):
        (tmp_path / "тест" / name).mkdir(parents=True)
        for i in range(15):
            Image.fromarray(rng.integers(0, 255, (16, 16, 3), np.uint8)).save(tmp_path / "тест" / name / f"{i}é.png")
    names = Preprocessing("тест", ("кот", "собака"), (0.5,) * 3, (0.5,) * 3)
    save_model(
        create_model("titn_nano", depth=1, num_classes=2, image_size=(16, 16)), tmp_path / "m.safetensors", names
    )
    monkeypatch.chdir(tmp_path)


QUICK = "--epochs 1 --batch-size 8 --image-size 16 --quiet --device cpu"
COMMANDS = {
    "predict тест/кот/0é.png --weights m.safetensors": b"%  ???\n",
    "evaluate m.safetensors --data тест": b"| ??????",
    "evaluate m.safetensors --data тест --confusion т.png": b"| ??????",
    "explore тест/кот/0é.png --weights m.safetensors --out é.html": b"?.html",
    f"distill --data тест --model titn_nano --loss cross_entropy {QUICK} --out é": b"?/records.json",
    f"train-teacher --data тест {QUICK} --out è": b"?/model.safetensors",
    "download": "8×8".encode("ascii", "replace"),
    "download digits": b"1?16?16",
    f"report --folder {TOP / 'experiments'} --results {TOP / 'results'}": b"?",
    f"experiments --folder {TOP / 'experiments'} --results {TOP / 'results'}": b"done, test",
    "predict ё.png --weights m.safetensors": b"there is no image ?.png",
    **{f"{command} --help": b"usage" for command in ("distill", "train-teacher", "evaluate", "predict", "explore")},
}


@pytest.mark.parametrize("command", COMMANDS)
def test_a_terminal_that_lacks_characters_shows_question_marks(command, animals):
    """The least that a terminal can show is ASCII."""
    terminal = io.TextIOWrapper(io.BytesIO(), encoding="ascii", write_through=True)
    with redirect_stdout(terminal), redirect_stderr(terminal):
        try:
            status = main(command.split())
        except SystemExit as stopped:  # --help
            status = stopped.code
    assert COMMANDS[command] in terminal.buffer.getvalue()
    assert status == int("ё" in command)
