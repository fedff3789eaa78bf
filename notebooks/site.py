"""The course as web pages: every notebook as HTML, with a table of contents.

    uv run python notebooks/site.py --out site

Links between notebooks become links between pages, and each link is checked. Linked files elsewhere in the project are
copied. Pages are self-contained, except that they load MathJax for their formulas.
"""

import argparse
import html
import os
import re
import sys
from pathlib import Path

import nbformat
from nbconvert import HTMLExporter
from nbconvert.filters import markdown2html

HERE = Path(__file__).resolve().parent
TOP = HERE.parent
LINK = re.compile(r'(href|src)="(?!https?:|data:|mailto:|#)([^"#]+)(#[^"]*)?"')
TEXT = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>{title}</title>
<style>
body {{ font: 18px/1.5 system-ui, sans-serif; max-width: 46em; margin: 2em auto; padding: 0 1em; }}
.anchor-link {{ display: none; }}
img {{ max-width: 100%; }}
li {{ margin: 0.5em 0; }}
table {{ border-collapse: collapse; font-size: 0.8em; }}
td, th {{ padding: 0.2em 0.6em; text-align: left; border-bottom: 1px solid #888; }}
@media (prefers-color-scheme: dark) {{
  body {{ background: #111; color: #ddd; }} a {{ color: #8bf; }} img {{ background: #fff; }}
}}
</style></head><body>
{body}
</body></html>
"""
CONTENTS = """<h1>TITN: Transformer-in-Transformer with knowledge distillation</h1>
<p><img src="images/tokens.png" alt="Patches for the outer stream, pixel tokens inside them for the inner one."></p>
<ul style="list-style: none; padding: 0">
{chapters}
</ul>
"""


def title_of(book: nbformat.NotebookNode) -> str:
    return book.cells[0].source.splitlines()[0].lstrip("# ")


def render(source: Path) -> str:
    """A notebook or a Markdown page as HTML."""
    if source.suffix == ".md":
        return TEXT.format(title=source.parent.name, body=markdown2html(source.read_text(encoding="utf-8")))
    book = nbformat.read(source, as_version=4)
    exporter = HTMLExporter(template_name="lab")
    return exporter.from_notebook_node(book, resources={"metadata": {"name": title_of(book)}})[0]


def page_path(source: Path) -> Path:
    """Path of a project file's page within the site."""
    path = source.relative_to(HERE if source.is_relative_to(HERE) else TOP)
    return path.with_suffix(".html") if source.suffix in (".ipynb", ".md") else path


def make_site(out: Path) -> list[str]:
    """Write the pages and all project files that they link to; returns the broken links."""
    chapters = sorted(HERE.glob("[0-9]*.ipynb"))
    pending, broken = [*chapters, *sorted(HERE.glob("solutions/*.ipynb")), HERE / "images" / "tokens.png"], []
    seen = set(pending)

    def follow(source: Path, link: re.Match) -> str:
        target = Path(os.path.normpath(source.parent / link[2]))
        if not target.is_file() or not target.is_relative_to(TOP):
            broken.append(f"{source.relative_to(TOP)}: {link[2]}")
            return link[0]
        if target not in seen:
            seen.add(target)
            pending.append(target)
        return f'{link[1]}="{os.path.relpath(page_path(target), page_path(source).parent)}{link[3] or ""}"'

    while pending:
        source = pending.pop()
        page = out / page_path(source)
        page.parent.mkdir(parents=True, exist_ok=True)
        if page.suffix == ".html":
            page.write_text(LINK.sub(lambda link, source=source: follow(source, link), render(source)))
        else:
            page.write_bytes(source.read_bytes())
    titles = {path: title_of(nbformat.read(path, as_version=4)) for path in chapters}
    lines = [f'<li><a href="{page_path(path)}">{html.escape(title)}</a></li>' for path, title in titles.items()]
    (out / "index.html").write_text(
        TEXT.format(title="TITN: the course", body=CONTENTS.format(chapters="\n".join(lines)))
    )
    return broken


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("site"))
    out = parser.parse_args().out
    broken = make_site(out)
    for link in broken:
        print(f"broken link: {link}", file=sys.stderr)
    print(out / "index.html")
    return bool(broken)


if __name__ == "__main__":
    sys.exit(main())
