"""Every head of the explorer's students over many images, see `summarize_heads`."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

from titn_lib.data.datasets import load_dataset
from titn_lib.data.transforms import Preprocessing, normalize
from titn_lib.errors import TITNError
from titn_lib.interpret.explorer.data import pack
from titn_lib.interpret.heads import HeadSummary, summarize_heads
from titn_lib.models.base import TokenClassifier

MAX_IMAGES = 256  # one pass over them for each head


def overview_data(students: Sequence[TokenClassifier], data: str) -> dict[str, Any]:
    """`summarize_heads` of each student on validation images of a data set, packed.

    Args:
        data: a data set's name or folder, as for `load_dataset`; at most MAX_IMAGES of its validation images are used.

    Raises:
        TITNError: as `load_dataset` and `summarize_heads`; or the data set has other classes than the students.
    """
    config, preprocessing = students[0].config, cast(Preprocessing, students[0].preprocessing)
    splits = load_dataset(data, config.image_size, config.in_channels)
    if tuple(splits.classes) != tuple(preprocessing.classes):
        raise TITNError(f"{data} has other classes than {config.name}, which knows {preprocessing.data}: choose that")
    images, labels = splits.validation.images[:MAX_IMAGES], splits.validation.labels[:MAX_IMAGES]
    accuracies, views = [], []
    for model in students:
        own = cast(Preprocessing, model.preprocessing)
        inputs = normalize(images, own.mean, own.std)
        summaries = summarize_heads(model, inputs, labels)
        accuracies.append(summaries["outer"].accuracy)
        views.append({name: stream_view(summary) for name, summary in summaries.items()})
    return {"data": Path(data).name, "images": len(images), "accuracy": accuracies, "models": views}


def stream_view(summary: HeadSummary) -> dict[str, Any]:
    """Numbers as lists, "block head"; maps packed."""
    numbers = {name: getattr(summary, name).tolist() for name in ("distance", "tokens", "effect", "error")}
    return {**numbers, "maps": pack(summary.maps)}
