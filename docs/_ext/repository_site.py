"""What Sphinx doesn't do by itself for this repository: alt texts, links to code, launch buttons, the explorer's page.

- A notebook's figures get their alt texts from docs/alt_texts.toml. A figure without one is a warning.
- The Colab badge below a notebook's title is left out: its image is on another server. The launch button replaces it.
- A link to a section of the same notebook, in JupyterLab's form (`#Its-title`), leads to it here, too.
- A link to a Python file leads to its highlighted source; one to README.md or to a folder, to the page on its subject.
- Outputs that answer a "Predict" question are folded.
- Parts of a notebook that are titles of their own ("# 2 · …") become sections of it, so that the sidebar has it once.
- `<!-- explorer -->` on a page becomes the attention explorer, computed from the shipped weights.
"""

import html
import posixpath
import re
import tomllib
from pathlib import Path
from typing import Any

import nbformat
from docutils import nodes
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.util import logging

DOCS = Path(__file__).resolve().parent.parent
TOP = DOCS.parent
ALT_TEXTS = DOCS / "alt_texts.toml"
PLACEHOLDER = "your_name"  # in pyproject.toml, until the repository has an address
BADGE = "colab.research.google.com/assets/colab-badge.svg"
EXPLORER = "<!-- explorer -->"
PREDICTED = "Your prediction first. Then show the output"
FRAME = """
```{{raw}} html
<iframe id="titn-explorer" title="Attention explorer" srcdoc="{page}"></iframe>
<script src="../_static/explorer_frame.js"></script>
```
"""
PAGES = {  # what a link on GitHub leads to → the site's page on the same subject
    "README": "docs/index",
    "README.md": "docs/index",
    "notebooks": "docs/index",
    "notebooks/solutions": "docs/teaching",
    "docs": "docs/index",
    "docs/api": "docs/api/index",
    "experiments": "experiments/README",
    "results": "results/README",
    "benchmarks": "benchmarks/README",
    "data": "data/README",
    "titn_lib/models/pretrained": "titn_lib/models/pretrained/README",
    "titn_lib/models/related": "docs/api/models",
    "titn_lib": "docs/architecture",
    "tests": "CONTRIBUTING",
}
log = logging.getLogger(__name__)


def html_theme_links(address: str) -> dict[str, Any]:
    """The theme's options that need the repository's address: none of them as long as it has no address."""
    if PLACEHOLDER in address:
        return {}
    return {
        "repository_url": address,
        "repository_branch": "main",
        "use_repository_button": True,
        "use_source_button": True,
        "use_issues_button": True,
        "launch_buttons": {"colab_url": "https://colab.research.google.com"},
    }


def figures(book: nbformat.NotebookNode) -> list[tuple[int, str]]:
    """Index of its cell, and heading, for each figure in a notebook's outputs, in order."""
    heading, found = "", []
    for index, cell in enumerate(book.cells):
        if cell.cell_type == "markdown" and "solution" not in cell.metadata.get("tags", []):  # there, # is a comment
            heading = [heading, *re.findall(r"^#+ (.*)$", cell.source, re.M)][-1]
        elif cell.cell_type == "code":
            found += [(index, heading) for output in cell.outputs if "image/png" in output.get("data", {})]
    return found


def alt_texts(name: str, book: nbformat.NotebookNode) -> list[tuple[int, str]]:
    """Index of its cell, and alt text, for each figure of a notebook, in order.

    Args:
        name: the notebook's path below notebooks/, without suffix.

    Raises:
        ValueError: the figures under a heading are more or fewer than their texts.
    """
    texts = tomllib.loads(ALT_TEXTS.read_text(encoding="utf-8")).get(name, {})
    there = figures(book)
    headings = [heading for _, heading in there]
    for heading in {*headings, *texts}:
        if headings.count(heading) != len(texts.get(heading, [])):
            raise ValueError(
                f"{name}, {heading!r}: {headings.count(heading)} figures, but {len(texts.get(heading, []))} alt texts "
                f"in {ALT_TEXTS.relative_to(TOP)}"
            )
    remaining = {heading: iter(lines) for heading, lines in texts.items()}
    return [(index, next(remaining[heading])) for index, heading in there]


def change_notebook(app: Sphinx, doctree: nodes.document) -> None:
    """Describe a notebook's figures, and fold the outputs that a reader is asked to predict."""
    source = Path(app.env.doc2path(app.env.docname))
    if source.suffix == ".ipynb":
        book = nbformat.read(source, as_version=4)
        describe_figures(app, doctree, source.relative_to(TOP / "notebooks").with_suffix("").as_posix(), book)
        fold_predictions(doctree, book)


def describe_figures(app: Sphinx, doctree: nodes.document, name: str, book: nbformat.NotebookNode) -> None:
    """Put the alt texts into a notebook's page."""
    try:
        texts = alt_texts(name, book)
    except ValueError as problem:
        log.warning(str(problem), location=app.env.docname)
        return
    images = [image for output in doctree.findall(is_png_output) for image in output.findall(nodes.image)]
    if len(images) != len(texts):
        log.warning(f"{len(images)} images for {len(texts)} alt texts", location=app.env.docname)
    for image, (_, text) in zip(images, texts, strict=False):
        image["alt"] = text


def predicted_cells(book: nbformat.NotebookNode) -> list[int]:
    """Indices of the code cells that follow a text with a "Predict" question, up to the next text."""
    found, asked = [], False
    for index, cell in enumerate(book.cells):
        if cell.cell_type == "markdown":
            asked = "**Predict:**" in cell.source
        elif asked and cell.outputs:
            found.append(index)
    return found


def fold_predictions(doctree: nodes.document, book: nbformat.NotebookNode) -> None:
    folded = predicted_cells(book)
    for node in doctree.findall(nodes.container):
        if node.get("nb_element") == "cell_code" and node["cell_index"] in folded:
            node.attributes |= {"hide_mode": "output", "prompt_show": PREDICTED, "prompt_hide": "Fold the output"}


def is_png_output(node: nodes.Node) -> bool:
    return isinstance(node, nodes.container) and node.get("mime_type") == "image/png"


def remove_badge(app: Sphinx, doctree: nodes.document) -> None:
    for image in list(doctree.findall(nodes.image)):
        if BADGE in image["uri"]:
            link = image.parent
            paragraph = link.parent
            paragraph.remove(link)
            if not paragraph.children:
                paragraph.parent.remove(paragraph)


def join_sections(app: Sphinx, doctree: nodes.document) -> None:
    sections = [node for node in doctree.children if isinstance(node, nodes.section)]
    for section in sections[1:]:
        doctree.remove(section)
        sections[0].append(section)


def link_to_sections(app: Sphinx, doctree: nodes.document) -> None:
    """Point links to a notebook's own sections, which are named as in JupyterLab, at their ids on the site."""
    sections = app.env.metadata[app.env.docname].get("myst_slugs", {}).values()
    ids = {title.replace(" ", "-"): section_id for _, section_id, title in sections}
    for link in list(doctree.findall(addnodes.pending_xref)):
        if link.get("reftype") == "myst" and link.get("reftarget") in ids:
            link.replace_self(nodes.reference("", "", *link.children, internal=True, refid=ids[link["reftarget"]]))


def redirect_links(app: Sphinx, doctree: nodes.document) -> None:
    """Point links that only GitHub can follow, to README.md and to folders, at the site's pages."""
    here = Path(app.env.docname).parent
    for link in doctree.findall(addnodes.pending_xref):
        target = link.get("reftarget", "").rstrip("/")
        path = target if link.get("refdomain") == "doc" else posixpath.normpath((here / target).as_posix())
        if path in PAGES and link.get("reftype") == "myst" and (TOP / path).exists() | (path == "README"):
            link.attributes |= {"refdomain": "doc", "reftarget": PAGES[path], "reftargetid": None}


def link_to_source(app: Sphinx, doctree: nodes.document, docname: str) -> None:
    """A link to a Python file: to its page in _modules, where there is one."""
    documented = getattr(app.env, "_viewcode_modules", {})
    for link in list(doctree.findall(addnodes.download_reference)):
        path = Path(posixpath.normpath((Path(docname).parent / link.get("reftarget", "")).as_posix()))
        module = ".".join(path.with_suffix("").parts).removesuffix(".__init__")
        if path.suffix == ".py" and documented.get(module):
            page = app.builder.get_relative_uri(docname, "_modules/" + module.replace(".", "/"))
            link.replace_self(nodes.reference("", "", *link.children, internal=True, refuri=page))


def hide_solutions(app: Sphinx, doctree: nodes.document) -> None:
    """Solutions are reached from their notebooks, not from the sidebar."""
    if app.env.docname.startswith("notebooks/solutions/"):
        app.env.metadata[app.env.docname]["orphan"] = ""


def explorer_page() -> str:
    """The explorer of a distilled digits student, its teacher beside it, on eight test images."""
    from titn_lib import load_dataset, load_model
    from titn_lib.interpret.explorer import explorer_data, page_html

    model, teacher = load_model("titn_nano.digits"), load_model("vgg7_bn.digits")
    test = load_dataset("digits", model.config.image_size).test
    data = explorer_data(model, test.images[:8], labels=test.labels[:8], teacher=teacher, names=["titn_nano.digits"])
    return page_html(data, "Attention of titn_nano.digits")


def embed_explorer(app: Sphinx, docname: str, source: list[str]) -> None:
    if EXPLORER in source[0] and docname.startswith("docs/"):
        source[0] = source[0].replace(EXPLORER, FRAME.format(page=html.escape(explorer_page(), quote=True)))


def docstring_to_rst(app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """The project's docstrings are plain text with `code`: show a module's tables and examples as they stand, and
    escape elsewhere what RST would read."""
    paragraphs = [paragraph.splitlines() for paragraph in re.split(r"\n{2,}", "\n".join(lines))]
    result: list[str] = []
    was_literal = False
    for paragraph in paragraphs:
        literal = what == "module" and is_layout(paragraph)
        if literal and not was_literal:
            result += ["::", ""]
        result += [f"    {line}" if literal else escape_rst(line) for line in paragraph] + [""]
        was_literal = literal
    lines[:] = result


def is_layout(paragraph: list[str]) -> bool:
    """A table or code: every line is indented, or one has a gap in it."""
    return all(line.startswith("    ") for line in paragraph) or any(
        re.search(r"\S {3,}\S", line) for line in paragraph
    )


def escape_rst(line: str) -> str:
    """Escape *, | and a final _ outside of `code`."""
    parts = line.split("`")
    for outside in range(2, len(parts), 2):
        parts[outside] = re.sub(r"^(?=\w)", r"\\ ", parts[outside])  # RST wants an end of word after `code`
    for outside in range(0, len(parts), 2):
        parts[outside] = re.sub(r"([*|]|(?<=\w)_(?=\W|$))", r"\\\1", parts[outside])
    return "`".join(parts)


def keep_forward(app: Sphinx, what: str, name: str, obj: Any, skip: bool, options: Any) -> bool | None:
    """Show `forward` also without a docstring: its signature says the shapes."""
    return False if name == "forward" else None


def setup(app: Sphinx) -> dict[str, Any]:
    app.connect("source-read", embed_explorer)
    app.connect("autodoc-process-docstring", docstring_to_rst, priority=400)  # before napoleon
    app.connect("autodoc-skip-member", keep_forward)
    # before Sphinx collects titles and links, at priority 500
    app.connect("doctree-read", change_notebook, priority=400)
    app.connect("doctree-read", remove_badge, priority=400)
    app.connect("doctree-read", join_sections, priority=400)
    app.connect("doctree-read", link_to_sections, priority=400)
    app.connect("doctree-read", redirect_links, priority=400)
    app.connect("doctree-read", hide_solutions, priority=400)
    app.connect("doctree-resolved", link_to_source)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
