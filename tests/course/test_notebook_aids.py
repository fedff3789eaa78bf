"""What helps a reader of a notebook: marks, hints and solutions that fold out, a checklist with links."""

import ast
import builtins
import re
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

TOP = Path(__file__).parents[2]
sys.path.insert(0, str(TOP / "notebooks"))
import stamp  # noqa: E402

CHAPTERS = sorted((TOP / "notebooks").glob("[0-9]*.ipynb"))[1:]  # 00 has no exercises
EXERCISE = re.compile(r"^\*\*(\d) · (Write|Predict|Break|Diagnose|A run)\b[^*]*\*\* \((.*?)\)\.", re.M)
MARKS = re.compile(r"\d+ minutes, (easy|medium|hard), (core|deeper)")
DEEPER = "*Deeper: nothing later needs this section.*"

every_chapter = pytest.mark.parametrize("path", CHAPTERS, ids=lambda path: path.stem)


def read(path):
    return nbformat.read(path, as_version=4)


def texts(path):
    """The Markdown cells that a person wrote."""
    return [
        cell.source
        for cell in read(path).cells
        if cell.cell_type == "markdown" and stamp.TAG not in cell.metadata.get("tags", [])
    ]


def headings(path):
    return re.findall(r"^#+ (.+)$", "\n".join(texts(path)), re.M)


# --- marks


@every_chapter
def test_exercises_say_how_hard_they_are_and_whether_they_are_needed(path):
    found = EXERCISE.findall("\n\n".join(texts(path)))
    assert [number for number, *_ in found] == [str(n + 1) for n in range(len(found))]
    assert len(found) >= len([cell for cell in read(path).cells if stamp.is_check(cell)]) >= 3
    marks = [MARKS.fullmatch(inside) for *_, inside in found]
    assert all(marks), found
    assert "core" in [mark[2] for mark in marks]


@every_chapter
def test_sections_that_nothing_needs_say_so_below_their_heading(path):
    text = "\n\n".join(texts(path))
    marked = re.findall(rf"^#{{2,3}} .+\n\n{re.escape(DEEPER)}$", text, re.M)
    assert len(marked) == len(re.findall(r"^\*Deeper", text, re.M))


def test_some_sections_are_deeper():
    assert sum(DEEPER in text for path in CHAPTERS for text in texts(path)) >= 10


# --- hints and solutions


@every_chapter
def test_hints_are_folded(path):
    for text in texts(path):
        assert not re.search(r"\*Hint", text)
        blocks = re.findall(r"<details><summary>Hint</summary>\n\n[^\n].*?[^\n]\n\n</details>", text, re.S)
        assert len(blocks) == text.count("<details") == text.count("</details>")
        assert not blocks or text.split("## What we saw")[0].rstrip().endswith("</details>")


@every_chapter
def test_solutions_are_those_of_the_solutions_notebook(path):
    """If not: run `notebooks/stamp.py`."""
    book, solutions = read(path), read(path.parent / "solutions" / path.name)
    stamp.fold_solutions(book, solutions, f"solutions/{path.name}")
    assert book == read(path)
    nbformat.validate(book)


@every_chapter
def test_each_check_has_its_solution_below_it(path):
    cells = read(path).cells
    checks = [index for index, cell in enumerate(cells) if stamp.is_check(cell)]
    assert [cells[index + 1].id for index in checks] == [f"solution-{n + 1}" for n in range(len(checks))]
    for index in checks:
        solution = cells[index + 1].source
        assert re.search(r"\.(check_\w+)", cells[index].source)[1] in solution
        assert solution.startswith("<details><summary>Solution</summary>\n\n")
        assert solution.endswith("\n\n</details>")
    assert f"](solutions/{path.name})" in cells[checks[-1] + 1].source


def names_in(tree, kind):
    return {node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and isinstance(node.ctx, kind)}


def bound(tree):
    """All names that some code defines, in whatever scope."""
    found = names_in(tree, ast.Store) | {node.arg for node in ast.walk(tree) if isinstance(node, ast.arg)}
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found.add(node.name)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            found |= {(alias.asname or alias.name).split(".")[0] for alias in node.names}
    return found


@every_chapter
def test_a_solution_can_be_pasted_where_it_stands(path):
    """Every name that it uses is defined in it, or above it in the notebook."""
    above = set(dir(builtins))
    for cell in read(path).cells:
        if cell.cell_type == "code":
            above |= bound(ast.parse(re.sub(r"^(\s*)%.*$", r"\1pass", cell.source, flags=re.M)))
        elif stamp.TAG in cell.metadata.get("tags", []):
            code = ast.parse("\n\n".join(re.findall(r"^```python\n(.*?)^```$", cell.source, re.M | re.S)))
            assert code.body
            assert names_in(code, ast.Load) - bound(code) - above == set()


def book_of(*cells):
    new = {"text": nbformat.v4.new_markdown_cell, "code": nbformat.v4.new_code_cell}
    return nbformat.v4.new_notebook(cells=[new[kind](source) for kind, source in cells])


SOLVED = book_of(
    ("text", "**1 · A sum.** Add them."),
    ("code", "total = 1 + 2\nexercise.check_sum(total)"),
    ("text", "How the check answers a mistake:"),
    ("code", "exercise.check_sum(4)"),
    ("text", "## 2 · A product"),
    ("code", "from math import prod"),
    ("text", "Then:"),
    ("code", "exercise.check_product(prod([2, 3]))"),
)
ASKED = book_of(
    ("text", "## Exercises\n\n**1 · Write it** (5 minutes, easy, core). Add."),
    ("code", "total = ..."),
    ("code", "exercise.check_sum(total)"),
    ("text", "**2 · Predict it** (5 minutes, easy, deeper). Multiply."),
    ("code", "exercise.check_product(...)"),
    ("text", "## What we saw"),
)


def test_a_solution_ends_with_its_check():
    stamp.fold_solutions(ASKED, SOLVED, "solutions/a.ipynb")
    first, second = (cell for cell in ASKED.cells if stamp.TAG in cell.metadata.get("tags", []))
    assert [ASKED.cells.index(cell) for cell in (first, second)] == [3, 6]
    assert first.source == (
        "<details><summary>Solution</summary>\n\nAdd them.\n\n"
        "```python\ntotal = 1 + 2\nexercise.check_sum(total)\n```\n\n"
        "[More on this exercise](solutions/a.ipynb)\n\n</details>"
    )
    assert "A product" not in second.source
    assert second.source.count("```python") == 2
    assert "[All solutions in one notebook](solutions/a.ipynb)" in second.source
    stamped = nbformat.writes(ASKED)
    stamp.fold_solutions(ASKED, SOLVED, "solutions/a.ipynb")
    assert nbformat.writes(ASKED) == stamped


def test_the_course_can_be_handed_out_without_solutions(tmp_path):
    """Nothing of a solution is left, and everything comes back."""
    shutil.copy(TOP / "pyproject.toml", tmp_path)
    copy = shutil.copytree(
        TOP / "notebooks", tmp_path / "notebooks", ignore=shutil.ignore_patterns("images", ".*", "__pycache__")
    )
    command = [sys.executable, str(copy / "stamp.py")]
    whole = {path: path.read_text(encoding="utf-8") for path in sorted(copy.rglob("*.ipynb"))}
    subprocess.run([*command, "--without-solutions"], check=True)
    for path in CHAPTERS:
        bare = (copy / path.name).read_text(encoding="utf-8")
        assert not re.search(r"[Ss]olutions?/|<summary>Solution|solution-\d|\"solution\"", bare), path.name
        answers = [cell for cell in read(path.parent / "solutions" / path.name).cells if stamp.is_check(cell)]
        cells = [cell.source for cell in nbformat.reads(bare, as_version=4).cells]
        assert not [cell.source for cell in answers if any(cell.source in source for source in cells)]
        assert len(cells) == len(read(path).cells) - len([cell for cell in read(path).cells if stamp.is_check(cell)])
    subprocess.run(command, check=True)
    assert {path: path.read_text(encoding="utf-8") for path in whole} == whole


# --- checklist


@every_chapter
def test_a_checklist_leads_back_to_the_sections(path):
    closing = next(text for text in texts(path) if "## What we saw" in text).split("## What we saw")[1]
    summary, rest = closing.split("**Can you …?**\n\n")
    items, rest = rest.split("\n\n", 1)
    assert len(summary.strip()) > 100
    assert rest.startswith("**Next:**")
    lines = items.splitlines()
    assert 4 <= len(lines) <= 6
    links = [re.fullmatch(r"- [a-z].+: \[([^]]+)\]\(#([^)\s]+)\)", line) for line in lines]
    assert all(links), items
    titles = headings(path)
    for link in links:
        there = [title for title in titles if title.replace(" ", "-") == link[2]]
        assert len(there) == 1, link[2]
        assert link[2].isascii(), f"JupyterLab doesn't find {link[2]}"
    assert len({link[2] for link in links}) == len(links)
