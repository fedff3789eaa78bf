"""Write the repository's address (pyproject.toml, Repository) into every notebook's Colab badge and set-up cell.

uv run python notebooks/stamp.py
"""

import re
import tomllib
from pathlib import Path

import nbformat

HERE = Path(__file__).parent
BADGE = "https://colab.research.google.com/assets/colab-badge.svg"
OLD_BADGE = re.compile(rf"\[!\[[^]]*\]\({re.escape(BADGE)}\)\]\([^)]*\)\n\n")
SETUP = """try:
    from titn_lib.course.setup import setup
except ModuleNotFoundError:  # in Colab, or with a kernel from elsewhere
    from pathlib import Path
    here = Path.cwd()
    above = [str(folder) for folder in (here, *here.parents) if (folder / "titn_lib").is_dir()]
    source = above[0] if above else "titn-lib @ git+{address}"
    %pip install --quiet "{{source}}"
    from titn_lib.course.setup import setup
runs = setup()"""


def read_address() -> str:
    return tomllib.loads((HERE.parent / "pyproject.toml").read_text(encoding="utf-8"))["project"]["urls"]["Repository"]


def stamp(book: nbformat.NotebookNode, path: str, address: str) -> nbformat.NotebookNode:
    """Put the address into the notebook: a badge below its title, and the set-up cell as its first code cell.

    Args:
        path: the notebook's path in the repository.
    """
    opening = book.cells[0]
    title, rest = OLD_BADGE.sub("", opening.source).split("\n\n", 1)
    link = (
        f"https://colab.research.google.com/{address.removeprefix('https://').replace('.com', '', 1)}/blob/main/{path}"
    )
    opening.source = f"{title}\n\n[![Open in Colab]({BADGE})]({link})\n\n{rest}"
    next(cell for cell in book.cells if cell.cell_type == "code").source = SETUP.format(address=address)
    return book


def main() -> None:
    for path in [*sorted(HERE.glob("[0-9]*.ipynb")), *sorted(HERE.glob("solutions/*.ipynb"))]:
        book = nbformat.read(path, as_version=4)
        nbformat.write(stamp(book, path.relative_to(HERE.parent).as_posix(), read_address()), path)


if __name__ == "__main__":
    main()
