"""Share trained models on the Hugging Face Hub. Optional: `pip install huggingface_hub`.

    push_to_hub(model, "user/titn-flowers")
    model = from_pretrained("user/titn-flowers")

A repository there, like the folder that `save_pretrained` writes, has three files: `model.safetensors` as `save_model`
writes it (weights, settings, preprocessing), `config.json` (settings and preprocessing for readers; it is never loaded)
and a model card, `README.md`.
"""

import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from titn_lib.data.transforms import Preprocessing
from titn_lib.errors import TITNError
from titn_lib.io import write_atomically
from titn_lib.models.base import Classifier
from titn_lib.models.registry import count_parameters
from titn_lib.models.weights import load_model, read_weights, save_model

WEIGHTS = "model.safetensors"
CARD = "README.md"
CARD_TEXT = """---
library_name: titn-lib
pipeline_tag: image-classification
tags:
- image-classification
- transformer-in-transformer
- pytorch
---

# {name}

A `{name}` of the Python package `titn_lib`, with {parameters:,} parameters, for images of {height}×{width} with
{channels}. {training}

```python
from titn_lib import load_image, predict
from titn_lib.models.hub import from_pretrained

model = from_pretrained("{repo}")
image = load_image("image.png", {in_channels}, model.config.image_size)
logits = predict(model, image[None])
```

Say here what the model is for, how well it does, and under which license you share it.
"""


def from_pretrained(
    name: str | Path,
    *,
    revision: str | None = None,
    token: str | None = None,
    cache_dir: str | Path | None = None,
    image_size: tuple[int, int] | int | None = None,
    num_classes: int | None = None,
) -> Classifier:
    """A model from the Hub or from a folder of `save_pretrained`, in evaluation mode; see `load_model`.

    Args:
        name: a repository on the Hub, such as "user/titn-flowers", or a local folder.
        revision: a branch, a tag or a commit of the repository.
        token: for a private repository; by default the one of `hf auth login`.
        cache_dir: where downloaded files are kept; by default the Hub's usual cache.
        image_size, num_classes: as in `load_model`.

    Raises:
        TITNError: the repository or the file can't be reached, or isn't one of this library's.
    """
    folder = Path(name)
    if folder.is_dir():
        path = folder / WEIGHTS
    else:
        hub = import_hub()
        with readable_errors(f"can't load {name}"):
            api = hub.HfApi(token=token)
            path = Path(api.hf_hub_download(str(name), WEIGHTS, revision=revision, cache_dir=cache_dir))
    return load_model(path, image_size=image_size, num_classes=num_classes)


def save_pretrained(
    model: Classifier,
    folder: str | Path,
    preprocessing: Preprocessing | None = None,
    dtype: torch.dtype | None = None,
    repo: str = "user/repository",
) -> None:
    """Write weights, settings and a model card into a folder. A model card that is there already stays as it is.

    Args:
        preprocessing, dtype: as in `save_model`.
        repo: the name that the model card's example loads.

    Raises:
        TITNError: as `save_model`.
    """
    folder = Path(folder)
    save_model(model, folder / WEIGHTS, preprocessing, dtype)
    _, metadata = read_weights(folder / WEIGHTS)
    settings: dict[str, Any] = {"library_name": "titn-lib", "family": metadata["family"]}
    settings |= {key: json.loads(metadata[key]) for key in ("config", "preprocessing") if key in metadata}
    write_atomically(folder / "config.json", json.dumps(settings, indent=2, ensure_ascii=False).encode())
    if not (folder / CARD).exists():
        write_atomically(folder / CARD, model_card(model, preprocessing or model.preprocessing, repo).encode())


def push_to_hub(
    model: Classifier,
    repo: str,
    *,
    preprocessing: Preprocessing | None = None,
    dtype: torch.dtype | None = None,
    private: bool | None = None,
    token: str | None = None,
    message: str = "Upload a titn_lib model",
) -> str:
    """Upload a model to the Hub, in one commit. A model card that is there already stays as it is.

    Args:
        repo: "user/name"; it is created if it doesn't exist.
        preprocessing, dtype: as in `save_model`.
        private: whether a new repository is private; by default what the account has as its default.
        token: by default the one of `hf auth login`.
        message: the commit message.

    Returns:
        The address of the commit.

    Raises:
        TITNError: as `save_model`; or the Hub refuses the upload or can't be reached.
    """
    hub = import_hub()
    with tempfile.TemporaryDirectory() as folder:
        save_pretrained(model, folder, preprocessing, dtype, repo)
        with readable_errors(f"can't upload to {repo}"):
            api = hub.HfApi(token=token)
            repo = api.create_repo(repo, private=private, exist_ok=True).repo_id
            kept = [CARD] if api.file_exists(repo, CARD) else []
            commit = api.upload_folder(repo_id=repo, folder_path=folder, commit_message=message, ignore_patterns=kept)
    return str(commit)


def model_card(model: Classifier, preprocessing: Preprocessing | None, repo: str) -> str:
    """The text of a new model card."""
    config = model.config
    training = "It was saved without the preprocessing of its images."
    if preprocessing:
        classes = ", ".join(preprocessing.classes[:20]) + (", …" if len(preprocessing.classes) > 20 else "")
        training = f"It was trained on `{preprocessing.data}`. Its {config.num_classes} classes: {classes}."
    return CARD_TEXT.format(
        name=config.name,
        height=config.image_size[0],
        width=config.image_size[1],
        channels="1 channel" if config.in_channels == 1 else f"{config.in_channels} channels",
        in_channels=config.in_channels,
        parameters=count_parameters(model),
        training=training,
        repo=repo,
    )


def import_hub() -> ModuleType:
    """The package huggingface_hub.

    Raises:
        TITNError: it is not installed.
    """
    try:
        import huggingface_hub
    except ImportError as problem:
        raise TITNError("the Hugging Face Hub needs one more package: pip install huggingface_hub") from problem
    return huggingface_hub


@contextmanager
def readable_errors(what: str) -> Iterator[None]:
    """Context in which an error of the Hub, or of the way there, becomes one sentence."""
    try:
        yield
    except Exception as problem:  # its own classes, and those of the HTTP library below it
        reason = str(problem).strip().splitlines() or [type(problem).__name__]
        raise TITNError(
            f"{what} ({reason[0].rstrip('.')}): check the name, your connection and `hf auth login`"
        ) from problem
