"""The field's words: those that the project once coined for itself don't come back."""

import ast
import io
import re
import tokenize
from pathlib import Path

import nbformat
import pytest

TOP = Path(__file__).parent.parent
CODE = sorted(
    [*(TOP / "titn_lib").rglob("*.py"), *(TOP / "benchmarks").glob("*.py"), *(TOP / "notebooks").glob("*.py")]
)
NOTEBOOKS = sorted([*(TOP / "notebooks").glob("[0-9]*.ipynb"), *(TOP / "notebooks" / "solutions").glob("[0-9]*.ipynb")])
PAGES = [
    page
    for page in sorted(TOP.rglob("*.md"))
    if not any(name.startswith(".") for name in page.relative_to(TOP).parts)
    and page.relative_to(TOP).parts[0] not in ("runs", "site", "data")
]

# Words of an identifier, between underscores and capitals.
OLD_NAMES = {
    "picture", "pictures", "beside", "news", "heard", "glimpse", "likeness", "admit", "conclude", "distil", "pupil",
    "grey", "colour", "centre", "neighbour", "neighbours", "sitting", "budgets",
}  # fmt: skip
ISE = "normal|initial|optim|standard|random|regular|quant|general|recogn|summar|visual|local|emphas"
OLD_WORDS = re.compile(
    r"\b(?:pictures?|picture elements|first weights|news|hears?|heard|likeness(?:es)?|glimpse|learn\w* by heart|"
    r"colours?|grey|centred?|neighbours?|behaviours?|distils?|pupils?|relabell\w+|labell(?:ed|ing)|"
    rf"(?:{ISE})is(?:e|es|ed|ing|ation|ations))\b|\breads \d+(?:\.\d+)? %",
    re.IGNORECASE,
)
TERMS = (
    "overfitting", "generalization", "hyperparameter", "throughput", "latency", "inductive bias", "receptive field",
    "baseline", "ablation", "memory-bound", "pretrained", "calibration", "initialization", "data augmentation",
    "regularization",
)  # fmt: skip


def words(identifier: str) -> set[str]:
    return {word.lower() for word in re.findall(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])", identifier)}


def old_names(source: str) -> set[str]:
    """Names in a piece of code, whole, of which a word is an old one."""
    source = re.sub(r"^(\s*)[%!]", r"\1# ", source, flags=re.M)
    names = {token.string for token in tokenize.generate_tokens(io.StringIO(source).readline) if token.type == 1}
    return {name for name in names if words(name) & OLD_NAMES}


def old_words(text: str) -> list[str]:
    """Old words in prose; addresses and quoted names of files are left alone."""
    return OLD_WORDS.findall(re.sub(r"https?://\S+|\]\([^)]*\)", "", text))


def prose_of(source: str) -> str:
    """Comments, docstrings and other texts of a piece of code."""
    source = re.sub(r"^(\s*)[%!]", r"\1# ", source, flags=re.M)
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    return "\n".join(token.string for token in tokens if token.type in (tokenize.COMMENT, tokenize.STRING))


def relative(path: Path) -> str:
    return str(path.relative_to(TOP))


@pytest.mark.parametrize("path", CODE, ids=relative)
def test_code_uses_the_fields_words(path):
    source = path.read_text(encoding="utf-8")
    ast.parse(source)
    assert not old_names(source)
    assert not old_words(prose_of(source))


@pytest.mark.parametrize("path", PAGES, ids=relative)
def test_pages_use_the_fields_words(path):
    assert not old_words(path.read_text(encoding="utf-8"))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=relative)
def test_notebooks_use_the_fields_words(path):
    for cell in nbformat.read(path, as_version=4).cells:
        if cell.cell_type == "code":
            assert not old_names(cell.source)
            assert not old_words(prose_of(cell.source))
        else:
            assert not old_words(cell.source)


def test_settings_files_use_the_fields_words():
    for path in [*(TOP / "experiments").glob("*.toml"), *(TOP / "titn_lib").rglob("*.toml")]:
        assert not old_words(path.read_text(encoding="utf-8")), path.name


@pytest.mark.parametrize("term", TERMS)
def test_the_course_teaches_the_term(term):
    """In bold, once or more, somewhere in the course, and in the glossary."""
    cells = [
        c.source for path in NOTEBOOKS for c in nbformat.read(path, as_version=4).cells if c.cell_type == "markdown"
    ]
    assert re.search(rf"\*\*[^*\n]*{term}[^*\n]*\*\*", "\n".join(cells), re.IGNORECASE)
    assert term in (TOP / "docs" / "glossary.md").read_text(encoding="utf-8").lower()


def test_an_old_word_is_noticed():
    assert old_names("show_pictures(images)\nnews = 1") == {"show_pictures", "news"}
    assert old_names("class PictureSet: pass") == {"PictureSet"}
    assert not old_names("show_images(beginners)")
    assert old_words("The picture's first weights are normalised.") == ["picture", "first weights", "normalised"]
    assert old_words("TITN reads 92 % on grey images") == ["reads 92 %", "grey"]
    assert not old_words("See [it](pictures/tokens.png), an image.")
    assert old_words(prose_of('f("a picture")  # grey')) == ["picture", "grey"]
