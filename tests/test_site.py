"""The site: every page in its lists, every figure described, no broken link, nothing from another server."""

import html
import importlib.util
import os
import re
import sys
from html.parser import HTMLParser
from pathlib import Path

import nbformat
import pytest

TOP = Path(__file__).parent.parent
CHAPTERS = sorted((TOP / "notebooks").glob("[0-9]*.ipynb"))
NOTEBOOKS = [*CHAPTERS, *sorted((TOP / "notebooks" / "solutions").glob("[0-9]*.ipynb"))]
EXTENSION = TOP / "docs" / "_ext" / "repository_site.py"
HAS_SPHINX = importlib.util.find_spec("myst_nb") and importlib.util.find_spec("sphinx_book_theme")
needs_sphinx = pytest.mark.skipif(not HAS_SPHINX, reason="needs the dependency group docs")
builds_site = pytest.mark.skipif(
    not (HAS_SPHINX and os.environ.get("TITN_SITE")), reason="builds the whole site: set TITN_SITE=1, as .github does"
)
COUNTS = {"five": 5, "ten": 10, "fifteen": 15}


def notebook_name(path):
    return path.relative_to(TOP / "notebooks").with_suffix("").as_posix()


@pytest.fixture(scope="module")
def extension():
    pytest.importorskip("sphinx")
    spec = importlib.util.spec_from_file_location("repository_site", EXTENSION)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@needs_sphinx
@pytest.mark.parametrize("path", NOTEBOOKS, ids=notebook_name)
def test_every_figure_has_an_alt_text(extension, path):
    book = nbformat.read(path, as_version=4)
    texts = [text for _, text in extension.alt_texts(notebook_name(path), book)]
    assert len(texts) == len(extension.figures(book))
    assert all(len(text) > 40 and text.endswith(".") for text in texts)
    assert len(set(texts)) == len(texts)


@needs_sphinx
def test_a_figure_without_an_alt_text_is_noticed(extension):
    book = nbformat.read(CHAPTERS[0], as_version=4)
    book.cells.append(book.cells[extension.figures(book)[-1][0]])
    with pytest.raises(ValueError, match=r"1 figures, but 0 alt texts in docs/alt_texts.toml"):
        extension.alt_texts(notebook_name(CHAPTERS[0]), book)


@needs_sphinx
def test_outputs_that_answer_a_prediction_are_folded(extension):
    cells = [
        nbformat.v4.new_markdown_cell("**Predict:** how many?"),
        nbformat.v4.new_code_cell("x = 1"),
        nbformat.v4.new_code_cell("x", outputs=[nbformat.v4.new_output("stream", text="1")]),
        nbformat.v4.new_markdown_cell("One."),
        nbformat.v4.new_code_cell("x", outputs=[nbformat.v4.new_output("stream", text="1")]),
    ]
    assert extension.predicted_cells(nbformat.v4.new_notebook(cells=cells)) == [2]


@needs_sphinx
def test_launch_buttons_come_with_an_address(extension):
    assert extension.html_theme_links("https://github.com/your_name/titn") == {}
    options = extension.html_theme_links("https://github.com/another/course")
    assert options["repository_url"] == "https://github.com/another/course"
    assert options["launch_buttons"]["colab_url"]


@needs_sphinx
def test_docstrings_become_rst(extension):
    lines = ["A |b| of `c`s.", "", "    hard    its class", "    soft    all", "", "After that `d*`."]
    extension.docstring_to_rst(None, "module", "", None, None, lines)
    assert lines[0] == r"A \|b\| of `c`\ s."
    assert lines[2] == "::"
    assert "        hard    its class" in lines
    assert lines[-2] == "After that `d*`."


LINK = re.compile(r"\]\((?![a-z]+:)([^)#\s]*)(?:#([^)\s]+))?\)")
PAGES = [
    *sorted(path for path in (TOP / "docs").rglob("*.md")),
    *(TOP / name for name in ("README.md", "CONTRIBUTING.md", "results/README.md", "data/README.md")),
    *(TOP / name for name in ("experiments/README.md", "benchmarks/README.md", "titn_lib/models/pretrained/README.md")),
    *NOTEBOOKS,
]


def prose_of(path):
    """A page's Markdown without code."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".ipynb":
        cells = nbformat.reads(text, as_version=4).cells
        text = "\n\n".join(cell.source for cell in cells if cell.cell_type == "markdown")
    return re.sub(r"```.*?```|`[^`\n]*`", lambda code: "" if "\n" in code[0] else code[0].strip("`"), text, flags=re.S)


def anchors(path):
    """The anchors of a page's headings, as GitHub makes them; of a notebook's, as JupyterLab does."""
    headings = re.findall(r"^#+ +(.*)$", prose_of(path), re.M)
    if path.suffix == ".ipynb":
        return {heading.strip().replace(" ", "-") for heading in headings}
    return {re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.relative_to(TOP).as_posix())
def test_links_lead_somewhere(path):
    for target, anchor in LINK.findall(prose_of(path)):
        there = (path.parent / target).resolve() if target else path
        assert there.exists(), target
        assert not anchor or anchor in anchors(there), f"{target}#{anchor}"


def test_every_page_is_in_the_lists_of_the_index():
    index = (TOP / "docs" / "index.md").read_text()
    for page in (TOP / "docs").glob("*.md"):
        assert page.stem == "index" or re.search(rf"^{page.stem}$", index, re.M), page.name
    listed = (TOP / "docs" / "api" / "index.md").read_text()
    for page in (TOP / "docs" / "api").glob("*.md"):
        assert page.stem == "index" or re.search(rf"^{page.stem}$", listed, re.M), page.name


def test_the_api_pages_have_every_module():
    """Except the exercises, the scripts and what only Triton understands."""
    text = "\n".join(page.read_text() for page in (TOP / "docs" / "api").glob("*.md"))
    documented = set(re.findall(r"automodule:: (\S+)", text))
    modules = {
        ".".join(path.relative_to(TOP).with_suffix("").parts)
        for path in (TOP / "titn_lib").rglob("*.py")
        if not re.match(r"__|ex\d\d_", path.name) and not path.stem.endswith(("_triton", "_gpu"))
    }
    assert modules - documented == set()


def opening_of(path):
    return nbformat.read(path, as_version=4).cells[0].source


def exercise_minutes(path):
    cells = [cell.source for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "markdown"]
    pattern = r"^(?:\*\*|### )\d · (?:Write|Predict|Break|Diagnose) it[^(\n]*\((\w+) minutes[,)]"
    return [COUNTS.get(found) or int(found) for found in re.findall(pattern, "\n".join(cells), re.M)]


@pytest.mark.parametrize("path", CHAPTERS, ids=notebook_name)
def test_the_teachers_table_is_the_notebooks(path):
    row = next(
        line
        for line in (TOP / "docs" / "teaching.md").read_text().splitlines()
        if f"/{path.name})" in line and "|" in line
    )
    title, needs, read, count, minutes, _ = (cell.strip() for cell in row.strip("|").split("|"))
    opening = opening_of(path)
    assert re.search(r"\[(.*)\]", title)[1].replace(" ", " · ", 1) in opening.splitlines()[0]
    if path == CHAPTERS[0]:
        return
    before = re.search(r"\*\*It builds on\*\*(.*?)\n\n", opening, re.S)[1]
    links = re.findall(r"\((\d\d)_\w+\.ipynb\)", before)
    assert needs.split(", ") == links
    in_readme = re.search(rf"/{path.name}\) \| [^|]*\| (\d+) \|", (TOP / "README.md").read_text())[1]
    assert read == in_readme  # test_pages compares it with the notebook
    there = exercise_minutes(path)
    assert (int(count), int(minutes)) == (len(there), sum(there))


class Links(HTMLParser):
    """Addresses, ids and alt texts of a page."""

    def __init__(self, text):
        super().__init__()
        self.links, self.loaded, self.ids, self.missing_alt = [], [], set(), []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        values = dict(attrs)
        self.ids.add(values.get("id") or values.get("name"))
        if tag == "a" and values.get("href"):
            self.links.append(values["href"])
        is_loaded = tag == "link" and values.get("rel") in ("stylesheet", "preload", "icon", "shortcut icon")
        self.loaded += [values.get("href")] if is_loaded else [values["src"]] if values.get("src") else []
        if tag == "img" and not values.get("alt"):
            self.missing_alt.append(values.get("src"))


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    """The whole site, built as CONTRIBUTING.md says."""
    pytest.importorskip("myst_nb")
    pytest.importorskip("sphinx_book_theme")
    from sphinx.application import Sphinx

    out = tmp_path_factory.mktemp("site")
    path = list(sys.path)
    app = Sphinx(
        TOP, TOP / "docs", out / "html", out / "doctrees", "html", status=None, warning=sys.stderr, keep_going=True
    )
    app.build()
    sys.path[:] = path
    assert app._warncount == 0
    return out / "html"


@pytest.mark.filterwarnings("default")
@builds_site
def test_the_site_is_whole(site):
    pages = {page: Links(page.read_text(encoding="utf-8")) for page in site.rglob("*.html")}
    there = {page.relative_to(site).as_posix() for page in pages}
    assert {path.relative_to(TOP).with_suffix(".html").as_posix() for path in NOTEBOOKS} <= there
    assert {path.relative_to(TOP).with_suffix(".html").as_posix() for path in (TOP / "docs").rglob("*.md")} <= there
    for page, content in pages.items():
        assert "| ——" not in page.read_text(encoding="utf-8"), f"{page} shows a table as text"
        assert not [link for link in content.loaded if link and re.match(r"(https?:)?//", link)], page
        assert content.missing_alt == [], page
        for link in content.links:
            if re.match(r"[a-z]+:|#$", link):
                continue
            file, _, anchor = link.partition("#")
            target = (page.parent / file.split("?")[0]).resolve() if file else page
            assert target.exists(), (page, link)
            if "_modules" in page.parts:  # viewcode links back to names that have no entry, such as class variables
                continue
            assert not anchor or target not in pages or anchor in pages[target].ids, (page, link)


@pytest.mark.filterwarnings("default")
@builds_site
@pytest.mark.parametrize("path", CHAPTERS, ids=notebook_name)
def test_a_checklist_leads_to_its_sections_on_the_site(site, path):
    wanted = re.findall(r"\]\(#([^)\s]+)\)", prose_of(path))
    page = (site / "notebooks" / f"{path.stem}.html").read_text(encoding="utf-8")
    there = re.findall(r'<a class="reference internal" href="#([\w-]+)"><span class="xref myst">', page)
    assert len(there) == len(wanted)
    for anchor, heading in zip(there, wanted, strict=True):
        title = re.search(rf'<section id="{anchor}">.*?<h\d>(.*?)<a class="headerlink"', page, re.S)[1]
        assert re.sub(r"\W|<[^>]*>", "", html.unescape(title)) == re.sub(r"\W", "", heading)


@pytest.mark.filterwarnings("default")
@builds_site
def test_the_site_shows_what_only_it_has(site, extension):
    explorer = (site / "docs" / "explorer.html").read_text()
    assert "titn_nano.digits" in explorer
    assert "srcdoc" in explorer
    notebook = (site / "notebooks" / "02_inner_attention.html").read_text()
    assert "colab-badge" not in notebook
    book = nbformat.read(TOP / "notebooks" / "02_inner_attention.ipynb", as_version=4)
    folded = re.findall(r'<details class="[^"]*hide below-input">', notebook)
    assert len(folded) == len(extension.predicted_cells(book)) > 10
    assert "tex-svg.js" in notebook
    assert (site / "_static" / "tex-svg.js").exists()
    model = re.sub("<[^>]*>", "", (site / "docs" / "api" / "models.html").read_text())
    assert "batch patch pixel inner_width" in model
    sidebar = re.search(r'<nav class="bd-links.*?</nav>', notebook, re.S)[0]
    assert sidebar.count("/solutions/") == 0
    assert len(re.findall(r'href="(?:#|\d\d_\w+\.html)"', sidebar)) == len(CHAPTERS)
