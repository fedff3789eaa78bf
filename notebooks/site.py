"""The course as web pages: every notebook as HTML, with a table of contents.

    uv run python notebooks/site.py --out site

Links between notebooks become links between pages, and each is checked. Formulas need MathJax, which a page fetches
when it is read; all else is inside.
"""

import argparse
import html
import re
import sys
from pathlib import Path

import nbformat
from nbconvert import HTMLExporter

HERE = Path(__file__).parent
LINK = re.compile(r'(href|src)="(?!https?:|data:|mailto:|#)([^"#]+)(#[^"]*)?"')
PAGE = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>TITN: the course</title>
<style>
body {{ font: 18px/1.5 system-ui, sans-serif; max-width: 46em; margin: 2em auto; padding: 0 1em; }}
img {{ max-width: 100%; }} li {{ margin: 0.5em 0; }}
@media (prefers-color-scheme: dark) {{
  body {{ background: #111; color: #ddd; }} a {{ color: #8bf; }} img {{ background: #fff; }}
}}
</style></head><body>
<h1>TITN: a transformer in a transformer, with a teacher at its side</h1>
<p><img src="pictures/tokens.png" alt="Patches for the outer stream, pixels inside every patch for the inner one."></p>
<ol start="0">
{chapters}
</ol></body></html>
"""


def title_of(book: nbformat.NotebookNode) -> str:
    return book.cells[0].source.splitlines()[0].lstrip("# ")


def make_site(out: Path) -> list[str]:
    """Write the pages; returns the links that lead nowhere."""
    exporter = HTMLExporter(template_name="lab")
    chapters, pages = [], {}
    for path in [*sorted(HERE.glob("[0-9]*.ipynb")), *sorted(HERE.glob("solutions/*.ipynb"))]:
        place = path.relative_to(HERE).with_suffix(".html")
        book = nbformat.read(path, as_version=4)
        body, _ = exporter.from_notebook_node(book, resources={"metadata": {"name": title_of(book)}})
        pages[place] = LINK.sub(lambda link: link[0].replace(".ipynb", ".html"), body)
        if len(place.parts) == 1:
            chapters.append(f'<li><a href="{place}">{html.escape(title_of(book).split("·")[-1].strip())}</a></li>')
    pages[Path("index.html")] = PAGE.format(chapters="\n".join(chapters))
    for picture in HERE.glob("pictures/*"):
        (out / "pictures").mkdir(parents=True, exist_ok=True)
        (out / "pictures" / picture.name).write_bytes(picture.read_bytes())
    for place, body in pages.items():
        (out / place).parent.mkdir(parents=True, exist_ok=True)
        (out / place).write_text(body)
    return [
        f"{place}: {link[2]}"
        for place, body in pages.items()
        for link in LINK.finditer(body)
        if not (out / place).parent.joinpath(link[2]).exists()
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("site"))
    out = parser.parse_args().out
    broken = make_site(out)
    for link in broken:
        print(f"leads nowhere: {link}", file=sys.stderr)
    print(out / "index.html")
    return bool(broken)


if __name__ == "__main__":
    sys.exit(main())
