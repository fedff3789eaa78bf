"""Settings of the site (Sphinx). Sources are the whole repository, so that links which work on GitHub work here.

uv run --group docs sphinx-build -M html . site -c docs -W

The site needs no network, neither to be built nor to be read: mathematics, fonts and search come from installed
packages, and the explorer's page is computed from the shipped weights.
"""

import sys
import tomllib
from importlib.util import find_spec
from pathlib import Path

DOCS = Path(__file__).parent
TOP = DOCS.parent
sys.path[:0] = [str(TOP), str(DOCS / "_ext")]

from repository_site import html_theme_links  # noqa: E402

PROJECT = tomllib.loads((TOP / "pyproject.toml").read_text(encoding="utf-8"))["project"]

project = "TITN"
author = "the TITN authors"
project_copyright = "MIT license"
release = PROJECT["version"]
language = "en"

root_doc = "docs/index"
include_patterns = [
    "docs/**.md",
    "notebooks/[0-9]*.ipynb",
    "notebooks/solutions/[0-9]*.ipynb",
    "results/README.md",
    "experiments/README.md",
    "benchmarks/README.md",
    "data/README.md",
    "titn_lib/models/pretrained/README.md",
    "CONTRIBUTING.md",
    "CHANGELOG.md",
    "CODE_OF_CONDUCT.md",
]
exclude_patterns = ["docs/_*", "site", ".*", "runs", "tests", "**/.ipynb_checkpoints"]

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx.ext.mathjax",
    "sphinx_copybutton",
    "repository_site",
]

# Notebooks are shown with their saved outputs: nothing is run.
nb_execution_mode = "off"
nb_merge_streams = True
nb_render_markdown_format = "myst"  # of cells' outputs: with tables, as in the text
myst_enable_extensions = ["dollarmath", "amsmath", "colon_fence"]
myst_heading_anchors = 4
myst_dmath_double_inline = True

autodoc_mock_imports = [] if find_spec("timm") else ["timm"]
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_preserve_defaults = True
autodoc_inherit_docstrings = False  # a network has its own, not those of nn.Module
maximum_signature_line_length = 88
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_rtype = False
napoleon_use_ivar = True
default_role = "literal"  # in docstrings, `name` is code
python_use_unqualified_type_names = True
add_module_names = False
toc_object_entries_show_parents = "hide"

MATHJAX = Path(find_spec("sphinx-mathjax-offline").origin).parent / "static" / "mathjax"
mathjax_path = "tex-svg.js"

html_theme = "sphinx_book_theme"
html_title = "TITN"
html_static_path = ["_static", str(MATHJAX / "tex-svg.js")]
html_extra_path = ["_extra"]  # index.html at the top leads to docs/index.html
html_context = {"default_mode": "auto"}  # light or dark, as the system prefers
html_css_files = ["site.css"]
html_show_sourcelink = False
html_show_sphinx = False
html_copy_source = True  # the download button of a notebook
html_theme_options = {
    "show_toc_level": 2,
    "home_page_in_toc": True,
    "use_download_button": True,
    "use_fullscreen_button": False,
    "navbar_persistent": [],
    "pygments_light_style": "a11y-high-contrast-light",
    "pygments_dark_style": "a11y-high-contrast-dark",
    **html_theme_links(PROJECT["urls"]["Repository"]),
}
copybutton_exclude = ".linenos, .gp, .go"
