"""The explorer as a widget. A file of its own, so that all else works without anywidget."""

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import anywidget
import traitlets
from torch import Tensor, nn

from titn_lib.data.images import load_image
from titn_lib.errors import TITNError
from titn_lib.interpret.explorer import PICTURES, check, frame, look


class Explorer(anywidget.AnyWidget):
    """Where a student looks, in both streams, on pictures that you choose: hover a patch, click to open it.

    A picture file that is dropped on it is resized as the data sets' pictures are, shown to the models, and added. A
    notebook keeps it as a page inside the page, which works without a kernel, but takes no pictures.

    Args:
        model: a student (TITN, TNT, ViT) in evaluation mode, with its `preprocessing`.
        images: uint8, "picture channel height width", at most 24.
        labels: the number of each picture's true class.
        teacher: any network with the same classes; its answers are shown beside the student's.
        compare: a second student, shown beside the first.
        names: of the student or students.
        titles: of the pictures.

    Raises:
        TITNError: as `look`.
    """

    _esm = Path(__file__).with_name("explorer.js")
    _css = Path(__file__).with_name("explorer.css")
    data = traitlets.Dict().tag(sync=True)  # what `look` returns

    def __init__(
        self,
        model: nn.Module,
        images: Tensor,
        *,
        labels: Sequence[int] | Tensor | None = None,
        teacher: nn.Module | None = None,
        compare: nn.Module | None = None,
        names: Sequence[str] | None = None,
        titles: Sequence[str] | None = None,
    ):
        self._models = check([model] if compare is None else [model, compare], images, teacher)
        self._teacher = teacher
        super().__init__(data=look(self._models, images, labels=labels, teacher=teacher, names=names, titles=titles))
        self.on_msg(self._receive)

    def add(self, path: str | Path) -> None:
        """Show one more picture file.

        Raises:
            TITNError: it is missing or no picture, or there are as many as can be shown.
        """
        if len(self.data["pictures"]) == PICTURES:
            raise TITNError(f"the explorer shows {PICTURES} pictures at most: open a new one")
        config = self._models[0].config
        image = load_image(path, config.in_channels, config.image_size)
        found = look(self._models, image[None], teacher=self._teacher, titles=[Path(path).name])
        self.data = {**self.data, "pictures": self.data["pictures"] + found["pictures"]}

    def __repr__(self) -> str:
        models = " and ".join(about["name"] for about in self.data["models"])
        return f"Explorer of {models} on {len(self.data['pictures'])} pictures"

    def _receive(self, _: object, message: dict[str, Any], buffers: list[Any]) -> None:
        """A file was dropped: its name and its bytes. A problem goes back as a sentence."""
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / f"{Path(str(message.get('picture'))).name.strip('.') or 'picture'}"
            path.write_bytes(bytes(buffers[0]))
            try:
                self.add(path)
            except TITNError as problem:
                self.send({"problem": str(problem).replace(f"{folder}/", "")})

    def _repr_mimebundle_(self, **options: Any) -> tuple[dict[str, Any], dict[str, Any]] | None:
        """The live widget, and beside it the page for where no kernel runs."""
        bundle = super()._repr_mimebundle_(**options)
        if bundle is None:
            return None
        live, about = bundle
        return {**live, "text/html": frame(self.data)}, about
