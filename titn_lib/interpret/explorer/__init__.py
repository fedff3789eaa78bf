"""The attention explorer: both streams of a student, interactive, in a notebook or on a page of its own.

    Explorer(model, images)                       in a notebook; needs the package anywidget
    write_page("attention.html", model, images)   one file for any browser, without Python and without a network

Both show what `explorer_data` returns. All maps are computed once, so that switching block, head or method is instant.
"""

from typing import TYPE_CHECKING, Any

from titn_lib.errors import TITNError
from titn_lib.interpret.explorer.data import ExplorerInput, attention_maps, explorer_data, pack, unpack
from titn_lib.interpret.explorer.page import iframe_html, page_html, write_page

if TYPE_CHECKING:
    from titn_lib.interpret.explorer.widget import Explorer

__all__ = [
    "Explorer",
    "ExplorerInput",
    "attention_maps",
    "explorer_data",
    "iframe_html",
    "pack",
    "page_html",
    "unpack",
    "write_page",
]


def __getattr__(name: str) -> Any:
    """Import `Explorer` on first use, so that the rest works without anywidget."""
    if name != "Explorer":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        from titn_lib.interpret.explorer.widget import Explorer
    except ModuleNotFoundError as problem:
        if problem.name != "anywidget":
            raise
        raise TITNError(
            "the explorer in a notebook needs the package anywidget: install it (pip install anywidget), or write a "
            "page with titn_lib.interpret.explorer.write_page"
        ) from problem
    return Explorer
