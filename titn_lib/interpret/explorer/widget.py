"""The explorer as a notebook widget. Only this file imports anywidget."""

import re
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import anywidget
import torch
import traitlets
from torch import Tensor, nn

from titn_lib.data.images import load_image
from titn_lib.errors import TITNError
from titn_lib.interpret.explorer.data import MAX_IMAGES, ExplorerInput, collect, hide_pixels, normalized
from titn_lib.interpret.explorer.page import explorer_script, iframe_html

MAX_TITLE = 100  # characters


class Explorer(anywidget.AnyWidget):
    """The attention of a student in both streams, on images of your choice: hover over a patch, click to open it.

    Drop an image file on it to add the image: it is resized like the data sets' images and passed through the models. A
    saved notebook keeps a page inside the page. It works without a kernel, but takes no new images and hides only one
    patch at a time, and no pixel tokens.

    Args:
        model: a student (TITN, TNT, ViT) in evaluation mode, with its `preprocessing`.
        images: uint8, "image channel height width", at most 50.
        options: labels, teacher, compare, names, titles; see `ExplorerInput`.

    Raises:
        TITNError: as `ExplorerInput`.
    """

    _esm = explorer_script()
    _css = Path(__file__).with_name("explorer.css")
    data = traitlets.Dict().tag(sync=True)  # of `explorer_data`

    def __init__(self, model: nn.Module, images: Tensor, **options: Any):
        self._input = ExplorerInput(model, images, **options)
        self._images = list(images)
        super().__init__(data=collect(self._input))
        self.on_msg(self._receive)

    def add(self, path: str | Path, title: str | None = None) -> None:
        """Add an image file.

        Args:
            title: shown with the image; by default the file's name.

        Raises:
            TITNError: it is missing or not an image, or the explorer is full.
        """
        if len(self.data["images"]) == MAX_IMAGES:
            raise TITNError(f"the explorer shows at most {MAX_IMAGES} images: open a new one")
        config = self._input.students[0].config
        image = load_image(path, config.in_channels, config.image_size)
        added = collect(replace(self._input, images=image[None], labels=None, titles=[title or Path(path).name]))
        self._images.append(image)
        self.data = {**self.data, "images": self.data["images"] + added["images"]}

    def __repr__(self) -> str:
        models = " and ".join(model["name"] for model in self.data["models"])
        return f"Explorer of {models} on {len(self.data['images'])} images"

    def _receive(self, _: object, message: dict[str, Any], buffers: list[Any]) -> None:
        if "hide" in message:
            self._hide(**message["hide"])
        else:
            self._add_file(message, buffers)

    def _hide(self, key: str, image: int, pixels: list[int]) -> None:
        """Answer with the predictions without these pixels, numbered patch by patch, for each model."""
        rows, columns = self.data["grid"]
        hidden = torch.zeros(1, rows * columns, self.data["split"] ** 2, dtype=torch.bool)
        hidden.view(-1)[pixels] = True
        answers = []
        for model in self._input.students:
            classes, shares, _ = hide_pixels(model, normalized(model, self._images[image]), hidden)
            answers.append({"classes": classes, "shares": shares.flatten().tolist()})
        self.send({"hidden": {"key": key, "models": answers}})

    def _add_file(self, message: dict[str, Any], buffers: list[Any]) -> None:
        """Add a dropped file, given by its name and its bytes. An error goes back as its message.

        The name becomes a title, never a path: it may be too long for one, or hold any character.
        """
        title = re.split(r"[/\\]", str(message.get("image")))[-1][:MAX_TITLE] or "image"
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "image"
            path.write_bytes(bytes(buffers[0]) if buffers else b"")
            try:
                self.add(path, title)
            except TITNError as problem:
                self.send({"error": str(problem).replace(str(path), title)})

    def _repr_mimebundle_(self, **options: Any) -> tuple[dict[str, Any], dict[str, Any]] | None:
        """The live widget, and the page for where no kernel runs."""
        bundle = super()._repr_mimebundle_(**options)
        if bundle is None:
            return None
        live, metadata = bundle
        return {**live, "text/html": iframe_html(self.data)}, metadata
