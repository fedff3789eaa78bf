"""The explorer as one HTML page that works in any browser, without Python and without a network."""

import base64
import html
import json
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from titn_lib.interpret.explorer.data import explorer_data
from titn_lib.io import write_atomically

HERE = Path(__file__).parent

PAGE = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>{title}</title>
<style>
{css}
</style></head><body class="titn-page">
<main id="explorer" class="{theme}"></main>
<script type="application/json" id="data">{data}</script>
<script type="module">
{script}
explore(document.getElementById("explorer"), JSON.parse(document.getElementById("data").textContent));
</script></body></html>
"""


def page_html(data: dict[str, Any], title: str = "Attention", theme: str = "") -> str:
    """One HTML page that contains data, script and style.

    Args:
        data: of `explorer_data`.
        theme: "light", "dark", or "" for the system's preference.
    """

    def to_base64(value: bytes) -> str:
        return base64.b64encode(value).decode()

    return PAGE.format(
        title=html.escape(title),
        theme=theme,
        css=(HERE / "explorer.css").read_text(encoding="utf-8"),
        script=(HERE / "explorer.js").read_text(encoding="utf-8"),
        data=json.dumps(data, default=to_base64, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c"),
    )


def iframe_html(data: dict[str, Any]) -> str:
    """The page inside an <iframe>, for a saved notebook: it works without a kernel and without a network."""
    page = html.escape(page_html(data, theme="light"), quote=True)
    return (
        f'<iframe srcdoc="{page}" sandbox="allow-scripts" title="Attention explorer" '
        'style="width: 100%; height: 60rem; border: 0"></iframe>'
    )


def write_page(path: str | Path, model: nn.Module, images: Tensor, **options: Any) -> None:
    """Write the explorer as one HTML file that works anywhere.

    Args:
        model: a student in evaluation mode.
        images: uint8, "image channel height width", at most 24.
        options: labels, teacher, compare, names, titles; see `ExplorerInput`.

    Raises:
        TITNError: as `ExplorerInput`; or the file can't be written.
    """
    data = explorer_data(model, images, **options)
    title = "Attention of " + " and ".join(shown["name"] for shown in data["models"])
    write_atomically(path, page_html(data, title).encode())
