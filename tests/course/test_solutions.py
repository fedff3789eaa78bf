"""The solutions, each in a namespace of its own, print what is saved in them.

All run in this process: the sixteen kernels that nbval would start take a minute for their imports alone.
"""

from pathlib import Path

import matplotlib.pyplot as plt
import nbformat
import pytest
from IPython.core.displayhook import DisplayHook
from IPython.core.interactiveshell import InteractiveShell
from traitlets.config import Config

SOLUTIONS = sorted((Path(__file__).parents[2] / "notebooks" / "solutions").glob("[0-9]*.ipynb"))


class Shell(InteractiveShell):
    class displayhook_class(DisplayHook):
        def write_output_prompt(self):
            """None: a notebook shows results without one."""


@pytest.fixture
def shell():
    yield Shell.instance(config=Config({"HistoryManager": {"enabled": False}}))
    Shell.clear_instance()


def saved_text(cell: nbformat.NotebookNode) -> str:
    """What a cell has printed and returned, without its figures."""
    outputs = [output for output in cell.outputs if output.output_type in ("stream", "execute_result")]
    return "".join(output.get("text") or output.data["text/plain"] + "\n" for output in outputs)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("path", SOLUTIONS, ids=lambda path: path.stem)
def test_a_solution_prints_what_is_saved(path, shell, monkeypatch, capsys):
    monkeypatch.chdir(path.parent)
    monkeypatch.setattr(plt, "show", lambda: plt.close("all"))
    cells = [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]
    with plt.rc_context():
        for cell in cells:
            shell.run_cell(cell.source).raise_error()
            printed = capsys.readouterr().out
            assert "nbval-ignore-output" in cell.metadata.get("tags", []) or printed == saved_text(cell), cell.source
