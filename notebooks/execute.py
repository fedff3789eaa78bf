"""Run notebooks from top to bottom and save their outputs.

    uv run python notebooks/execute.py                    # all of them, solutions too
    uv run python notebooks/execute.py 01 02              # those whose names begin like this

Widget state and cell times are not saved, because they change with every run. A widget's HTML fallback is saved, for
readers without a kernel.
"""

import sys
from pathlib import Path

import nbformat
from nbclient import NotebookClient

HERE = Path(__file__).parent
WIDGET = "application/vnd.jupyter.widget-view+json"


def without_widget(output: nbformat.NotebookNode) -> nbformat.NotebookNode | None:
    """The output without its live widget; None if nothing visible is left."""
    data = output.get("data", {})
    if WIDGET not in data:
        return output
    del data[WIDGET]
    return output if "text/html" in data else None


def execute(path: Path) -> None:
    book = nbformat.read(path, as_version=4)
    resources = {"metadata": {"path": str(path.parent)}}
    NotebookClient(book, timeout=3600, resources=resources, store_widget_state=False, coalesce_streams=True).execute()
    for cell in book.cells:
        if cell.cell_type == "code":
            cell.outputs = [output for output in map(without_widget, cell.outputs) if output]
            cell.metadata.pop("execution", None)
    book.metadata.pop("widgets", None)
    nbformat.write(book, path)


def main() -> None:
    wanted = sys.argv[1:] or [""]
    for path in [*sorted(HERE.glob("[0-9]*.ipynb")), *sorted(HERE.glob("solutions/*.ipynb"))]:
        if path.name.startswith(tuple(wanted)):
            print(path.relative_to(HERE), flush=True)
            execute(path)


if __name__ == "__main__":
    main()
