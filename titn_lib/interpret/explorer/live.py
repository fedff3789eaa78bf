"""The student inside the page, so that dropped images, hidden pixels and a camera's frames are computed in the browser.

It is exported to ONNX and runs in ONNX Runtime Web (WebAssembly), which the page contains, too: one file of some 8 MB.
"""

import base64
import gzip
import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from titn_lib.errors import TITNError
from titn_lib.interpret.explorer.data import normalized
from titn_lib.interpret.explorer.forward import ExplorerForward
from titn_lib.models.base import TokenClassifier

SCRIPT, BINARY = "ort.wasm.bundle.min.mjs", "ort-wasm-simd-threaded.wasm"  # of onnxruntime-web


def live_data(students: Sequence[TokenClassifier], image: torch.Tensor, runtime: str | Path) -> dict[str, object]:
    """What `live.js` needs: the runtime's script and binary, and each student's graph.

    Args:
        image: uint8, "channel height width".
        runtime: the folder of the npm package onnxruntime-web.

    Raises:
        TITNError: the runtime isn't there, or the package onnx isn't.
    """
    folder = Path(runtime)
    parts = [folder / "dist" / name for name in (SCRIPT, BINARY)]
    if not all(part.is_file() for part in parts):
        raise TITNError(
            f"{folder} is not the package onnxruntime-web, which runs the model in the browser: get it with npm "
            "(npm install onnxruntime-web), and give its folder, node_modules/onnxruntime-web"
        )
    return {
        "script": compressed(parts[0].read_bytes()),
        "binary": compressed(parts[1].read_bytes()),
        "graphs": [compressed(export(student, image)) for student in students],
    }


def compressed(content: bytes) -> str:
    return base64.b64encode(gzip.compress(content, mtime=0)).decode()


def export(student: TokenClassifier, image: torch.Tensor) -> bytes:
    """The ONNX graph of `ExplorerForward`, from normalized images to its tensors by name."""
    network, example = ExplorerForward(student).eval(), normalized(student, image)
    with torch.no_grad():
        outputs = list(network(example))
    names: dict[str, Any] = {"input_names": ["images"], "output_names": outputs}
    try:
        with warnings.catch_warnings(), tempfile.TemporaryDirectory() as place:
            warnings.simplefilter("ignore")  # the tracer's, of sizes that don't change
            torch.onnx.export(network, (example,), f"{place}/graph.onnx", dynamo=False, verbose=False, **names)
            return Path(place, "graph.onnx").read_bytes()
    except (ModuleNotFoundError, torch.onnx.errors.OnnxExporterError) as problem:
        if "onnx" not in str(problem):
            raise
        raise TITNError(
            "a page that computes needs the package onnx: install it (pip install onnx), or leave out --live"
        ) from problem
