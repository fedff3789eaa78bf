"""The explorer as one HTML page that works in any browser, without Python and without a network."""

import base64
import html
import io
import json
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import torch
from torch import Tensor, nn

from titn_lib.interpret.explorer.data import ExplorerInput, attention_maps, collect
from titn_lib.interpret.explorer.live import live_data
from titn_lib.interpret.explorer.overview import overview_data
from titn_lib.io import write_atomically
from titn_lib.plots import plot_attention

HERE = Path(__file__).parent
SCRIPTS = (
    "helpers.js",
    "words.js",
    "predictions.js",
    "arithmetic.js",
    "board.js",
    "hide.js",
    "heads.js",
    "tiles.js",
    "stage.js",
    "share.js",
    "figure.js",
    "tour.js",
    "explorer.js",
)

PAGE = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>{title}</title>
<style>
{css}
</style></head><body class="titn-page">
<main id="explorer" class="{theme}"><h1>{title}</h1>
<noscript>The explorer needs JavaScript: allow it for this page.</noscript></main>
<script type="application/json" id="data">{data}</script>{live}
<script type="module">
{script}
const element = document.getElementById("explorer"), data = JSON.parse(document.getElementById("data").textContent);
const explorer = explore(element, data, {backend});
explorer.rememberIn(window);
document.body.addEventListener("keydown", (event) => explorer.key(event)); // keys work before the first click, too
new ResizeObserver(() => parent.postMessage(element.scrollHeight, "*")).observe(element); // for `FRAME_HEIGHT`
</script></body></html>
"""

# Makes a notebook's frame as high as its page, which says its height: a scrollbar inside another is hard to use.
FRAME_HEIGHT = """<script>
addEventListener("message", ({ data, source }) => {
  for (const frame of document.querySelectorAll("iframe[title='Attention explorer']"))
    if (frame.contentWindow === source) frame.style.height = `${data}px`;
});
</script>"""


def explorer_script(*more: str) -> str:
    """The explorer's JavaScript, one module, with more files at its end."""
    return "\n".join((HERE / name).read_text(encoding="utf-8") for name in (*SCRIPTS, *more))


def page_html(data: dict[str, Any], title: str = "", theme: str = "", live: dict[str, Any] | None = None) -> str:
    """One HTML page that contains data, script and style.

    Args:
        data: what `explorer_data` returns.
        title: by default "Attention of" the models.
        theme: "light", "dark", or "" for the system's preference.
        live: of `live_data`: the page computes, too.
    """

    def to_base64(value: bytes) -> str:
        return base64.b64encode(value).decode()

    return PAGE.format(
        title=html.escape(title or "Attention of " + " and ".join(model["name"] for model in data["models"])),
        theme=theme,
        css=(HERE / "explorer.css").read_text(encoding="utf-8"),
        script=explorer_script(*([] if live is None else ["live.js", "camera.js"])),
        live="" if live is None else f'\n<script type="application/json" id="live">{json.dumps(live)}</script>',
        backend="null" if live is None else "liveIn(element, data)",
        data=json.dumps(data, default=to_base64, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c"),
    )


def iframe_html(data: dict[str, Any]) -> str:
    """The page inside an <iframe>, for a saved notebook: it works without a kernel and without a network.

    JupyterLab, until the notebook is trusted, and GitHub drop <iframe>, <script> and <style>. A figure and a sentence
    are left.
    """
    page = html.escape(page_html(data, theme="light"), quote=True)
    return (
        f"{FRAME_HEIGHT}<style>iframe[title='Attention explorer'] + figure {{display: none}}</style>"
        f'<iframe srcdoc="{page}" sandbox="allow-scripts allow-downloads" title="Attention explorer" '
        f'style="width: 100%; height: 60rem; border: 0"></iframe>{still_html(data)}'
    )


def still_html(data: dict[str, Any]) -> str:
    """The attention of the first image in the last block, as a figure, and how to see the rest."""
    height, width = data["size"]
    rgb = np.frombuffer(data["images"][0]["rgb"], np.uint8).reshape(height, width, 3)
    content = io.BytesIO()
    with plt.rc_context():
        figure = plot_attention(torch.tensor(rgb).permute(2, 0, 1), attention_maps(data), tuple(data["grid"]))
        figure.savefig(content, format="png", dpi=55, bbox_inches="tight")
        plt.close(figure)
    return (
        f'<figure><img src="data:image/png;base64,{base64.b64encode(content.getvalue()).decode()}" '
        'alt="An image, and beside it its attention in the last block."><figcaption>The interactive explorer belongs '
        "here. To see it, run this cell, or trust the notebook (in JupyterLab: View, Activate Command Palette, “Trust "
        "Notebook”).</figcaption></figure>"
    )


def write_page(
    path: str | Path,
    model: nn.Module,
    images: Tensor,
    live: str | Path | None = None,
    heads: str | None = None,
    **options: Any,
) -> None:
    """Write the explorer as one HTML file that works anywhere.

    Args:
        model: a student in evaluation mode.
        images: uint8, "image channel height width", at most 50.
        live: the folder of the npm package onnxruntime-web, to put the models into the page, too: it then takes images
            and a camera's frames and hides any pixels without Python. Some 8 MB; needs the package onnx.
        heads: a data set's name or folder: the page gets an overview of every head on 256 of its validation images.
        options: labels, teacher, compare, names, titles; see `ExplorerInput`.

    Raises:
        TITNError: as `ExplorerInput`, `live_data` and `overview_data`; or the file can't be written.
    """
    shown = ExplorerInput(model, images, **options)
    models = None if live is None else live_data(shown.students, images[0], live)
    overview = {} if heads is None else {"heads": overview_data(shown.students, heads)}
    write_atomically(path, page_html(collect(shown) | overview, live=models).encode())
