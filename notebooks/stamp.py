"""Write into every notebook what is the same in all: Colab badge and set-up cell, and the folded solutions.

    uv run python notebooks/stamp.py
    uv run python notebooks/stamp.py --without-solutions     # to hand out the course

The repository's address is that in pyproject.toml (Repository). The solutions are those of notebooks/solutions.
"""

import argparse
import re
import tomllib
from pathlib import Path

import nbformat

HERE = Path(__file__).parent
PLACEHOLDER = "your_name"  # in pyproject.toml, until the repository has an address; a badge would lead nowhere
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
TAG = "solution"
EXERCISE = re.compile(r"^(?:\*\*|### )(\d) · (?:Write|Predict|Break|Diagnose) it", re.M)
SOLUTION = re.compile(r"(?:\*\*(\d) · .*?\*\*|## (\d) · .*)\s*")  # the title of a solution
CHECK = re.compile(r"\.check_\w+\(")


def read_address() -> str:
    return tomllib.loads((HERE.parent / "pyproject.toml").read_text(encoding="utf-8"))["project"]["urls"]["Repository"]


def stamp(book: nbformat.NotebookNode, path: str, address: str) -> nbformat.NotebookNode:
    """Put the address into the notebook: a badge below its title, if there is one, and into its set-up cell.

    Args:
        path: the notebook's path in the repository.
    """
    opening = book.cells[0]
    title, rest = OLD_BADGE.sub("", opening.source).split("\n\n", 1)
    link = (
        f"https://colab.research.google.com/{address.removeprefix('https://').replace('.com', '', 1)}/blob/main/{path}"
    )
    badge = "" if PLACEHOLDER in address else f"[![Open in Colab]({BADGE})]({link})\n\n"
    opening.source = f"{title}\n\n{badge}{rest}"
    next(cell for cell in book.cells if cell.cell_type == "code").source = SETUP.format(address=address)
    return book


def is_check(cell: nbformat.NotebookNode) -> bool:
    return cell.cell_type == "code" and bool(CHECK.search(cell.source))


def folded_solutions(book: nbformat.NotebookNode, link: str) -> dict[str, nbformat.NotebookNode]:
    """A folded cell for each exercise, by its number: its text and code up to the cell that calls the check.

    Args:
        book: the notebook with the solutions.
        link: from the exercises' notebook to this one. It stands where there is more, and below the last solution.
    """
    parts: dict[str, list[str]] = {}
    more, number, is_done = set(), "", False
    for cell in book.cells:
        title = SOLUTION.match(cell.source) if cell.cell_type == "markdown" else None
        if title:
            number, is_done = title[1] or title[2], False
            parts[number] = []
        if number and is_done:
            more.add(number)
        elif number:
            is_code = cell.cell_type == "code"
            text = f"```python\n{cell.source}\n```" if is_code else cell.source[title.end() if title else 0 :]
            parts[number] += [text] if text else []
            is_done = is_check(cell)
    for number, texts in parts.items():
        if number in more:
            texts.append(f"[More on this exercise]({link})")
        elif number == max(parts):
            texts.append(f"[All solutions in one notebook]({link})")
    return {
        number: nbformat.v4.new_markdown_cell(
            "\n\n".join(["<details><summary>Solution</summary>", *texts, "</details>"]),
            id=f"solution-{number}",
            metadata={"tags": [TAG]},
        )
        for number, texts in parts.items()
    }


def fold_solutions(book: nbformat.NotebookNode, solutions: nbformat.NotebookNode | None, link: str) -> None:
    """Put each solution below the check of its exercise, in place of those that stand there; with None, remove them."""
    folded = folded_solutions(solutions, link) if solutions else {}
    cells, number = [], ""
    for cell in book.cells:
        if TAG in cell.metadata.get("tags", []):
            continue
        if cell.cell_type == "markdown":
            number = (EXERCISE.findall(cell.source) or [number])[-1]
        cells.append(cell)
        if is_check(cell) and number in folded:
            cells.append(folded.pop(number))
    book.cells = cells


def main() -> None:
    parser = argparse.ArgumentParser(description="Write badges, set-up cells and folded solutions into the notebooks.")
    parser.add_argument("--without-solutions", action="store_true", help="remove the solutions from the notebooks")
    without = parser.parse_args().without_solutions
    for path in [*sorted(HERE.glob("[0-9]*.ipynb")), *sorted(HERE.glob("solutions/*.ipynb"))]:
        text = path.read_text(encoding="utf-8")
        book = stamp(nbformat.reads(text, as_version=4), path.relative_to(HERE.parent).as_posix(), read_address())
        solutions = path.parent / "solutions" / path.name
        has_solutions = solutions.exists() and not without
        fold_solutions(
            book, nbformat.read(solutions, as_version=4) if has_solutions else None, f"solutions/{path.name}"
        )
        if nbformat.writes(book) + "\n" != text:
            nbformat.write(book, path)


if __name__ == "__main__":
    main()
