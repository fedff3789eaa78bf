"""Own images that are in memory, as arrays, tensors or a PyTorch data set, as splits for training."""

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image
from torch import Tensor

from titn_lib.data.datasets import DATASETS, DataSplits, complete_splits
from titn_lib.data.folders import ALL
from titn_lib.data.images import ImageDataset, load_image, require_memory
from titn_lib.errors import TITNError
from titn_lib.validation import to_2tuple


def make_splits(
    name: str,
    train: Any,
    validation: Any = None,
    test: Any = None,
    classes: Sequence[str] | None = None,
    image_size: tuple[int, int] | int | None = None,
) -> DataSplits:
    """Own images in memory as splits, for `train(run, folder, data=…)`.

    Args:
        name: what to call them, as in `Run.data`; not one of `DATASETS`.
        train: images and labels: a pair of arrays or tensors, a `torch.utils.data.Dataset` of (image, label), or an
            `ImageDataset`. Arrays are "image height width", "image height width channel" or "image channel height
            width", uint8 or floats from 0 to 1, not normalized. A data set's images may also be Pillow's, of any size.
            Labels are integers from 0.
        validation, test: the same; what is missing is split off from `train`, as from a folder.
        classes: a name for each label; by default `train.classes`, or "0", "1" …
        image_size: height and width that images are resized to; by default that of the arrays, or 32×32 for Pillow's.

    Raises:
        TITNError: images or labels of another kind, or that don't go together; or too few to split.
    """
    if name in DATASETS:
        raise TITNError(f"{name} is a data set of the library: give your own images another name")
    size = None if image_size is None else to_2tuple(image_size)
    given = {"train": train} | {k: v for k, v in {"validation": validation, "test": test}.items() if v is not None}
    parts = {split: to_images(data, size, f"{split} of {name}") for split, data in given.items()}
    if len({part.images.shape[1] for part in parts.values()}) > 1:
        raise TITNError(f"the splits of {name} have different numbers of channels: give all the same")
    count = 1 + max(int(part.labels.max()) for part in parts.values())
    names = tuple(map(str, classes or getattr(train, "classes", None) or range(count)))
    if len(set(names)) < len(names):
        raise TITNError(f"{name} has two classes of the same name: give each its own")
    if len(names) < max(count, 2):
        raise TITNError(
            f"{name} has {count} classes and {len(names)} names of classes: give a name for each, 2 or more"
        )
    absent = set(range(len(names))) - set(parts["train"].labels.tolist())
    if absent:
        raise TITNError(f"no training image of {name} is of the class {names[min(absent)]}: add some or leave it out")
    height, width = size or parts["train"].images.shape[2:]
    marked = fingerprint(parts, names)
    if len(parts) == 1:
        parts = {ALL: parts["train"]}
    return complete_splits(parts, name, names, (height, width), marked)


def fingerprint(parts: dict[str, ImageDataset], classes: tuple[str, ...]) -> dict[str, object]:
    """What `ImageList.fingerprint` is for files."""
    digest, counts = hashlib.sha256(), {}
    for split, part in parts.items():
        digest.update(f"{split} {tuple(part.images.shape)}".encode())
        digest.update(part.images.contiguous().numpy().tobytes())
        digest.update(part.labels.numpy().tobytes())
        for label, count in enumerate(part.labels.bincount().tolist()):
            counts[f"{split}/{classes[label]}"] = count
    return {"images": counts, "sha256": digest.hexdigest()}


def to_images(data: Any, size: tuple[int, int] | None, what: str) -> ImageDataset:
    """Images and labels of any kind that `make_splits` takes. `what` names them in errors."""
    if isinstance(data, ImageDataset):
        return data
    if isinstance(data, tuple) and len(data) == 2:
        images, labels = to_uint8(data[0], what), data[1]
    elif hasattr(data, "__len__") and hasattr(data, "__getitem__") and not isinstance(data, np.ndarray | Tensor | str):
        images, labels = from_dataset(data, size, what)
    else:
        raise TITNError(
            f"{what} is a {type(data).__name__}: give a pair of images and labels, or a torch.utils.data.Dataset"
        )
    numbers = labels.detach().cpu() if isinstance(labels, Tensor) else torch.as_tensor(to_array(labels, what))
    if numbers.is_floating_point() or numbers.dtype == torch.bool or numbers.ndim != 1 or not len(numbers):
        raise TITNError(f"the labels of {what} must be a list of integers from 0, one for each image")
    if len(numbers) != len(images) or int(numbers.min()) < 0:
        raise TITNError(
            f"{what} has {len(images)} images and {len(numbers)} labels from {int(numbers.min())}: give each image one "
            "label, from 0"
        )
    return ImageDataset(images, numbers.long())


def to_array(values: Any, what: str) -> np.ndarray:
    """Numbers as an array.

    Raises:
        TITNError: they aren't numbers, or of rows of different lengths.
    """
    try:
        array = np.asarray(values)
    except ValueError:
        array = np.asarray(None)
    if array.dtype.kind not in "buif":
        raise TITNError(f"{what} has images or labels that are no numbers: give arrays, and classes= for their names")
    return array.astype(np.int64) if array.dtype.kind == "u" and array.itemsize > 1 else array


def to_uint8(values: Any, what: str) -> UInt8[Tensor, "image channel height width"]:
    """Arrays or tensors of images as bytes, with their channels before height and width."""
    images = values.detach().cpu() if isinstance(values, Tensor) else torch.as_tensor(to_array(values, what))
    if images.ndim == 3:
        images = images[:, None]
    if images.ndim != 4 or 0 in images.shape:
        raise TITNError(f"the images of {what} have the shape {tuple(images.shape)}: give images of one size")
    if images.shape[-1] <= 4 < images.shape[1]:
        images = images.permute(0, 3, 1, 2)
    if images.dtype == torch.uint8:
        return images.contiguous()
    low, high = float(images.min()), float(images.max())
    if images.is_floating_point() and low >= 0 and high <= 1:
        return (images * 255).round().to(torch.uint8).contiguous()
    if not images.is_floating_point() and low >= 0 and high <= 255:
        return images.to(torch.uint8).contiguous()
    raise TITNError(
        f"the images of {what} have values from {low:g} to {high:g}: give bytes (0 to 255) or floats from 0 to 1, "
        "before normalization"
    )


def from_dataset(
    data: Any, size: tuple[int, int] | None, what: str
) -> tuple[UInt8[Tensor, "image channel height width"], list[int]]:
    """The images and labels of a `torch.utils.data.Dataset`."""
    images, labels = [], []
    require_memory(len(data), 3, size or (1, 1), what)
    for i in range(len(data)):
        try:
            image, label = data[i]
            labels.append(int(label))
        except (TypeError, ValueError) as problem:
            raise TITNError(
                f"item {i} of {what} is not an (image, label) with an integer label: return that"
            ) from problem
        if isinstance(image, Image.Image):
            images.append(load_image(image, 1 if image.mode in ("1", "L") else 3, size or 32))
        else:
            images.append(image if isinstance(image, Tensor) else torch.as_tensor(to_array(image, what)))
    if len({(image.shape, image.dtype) for image in images}) != 1:
        raise TITNError(f"the images of {what} differ in size or channels, or there are none: make them the same")
    return to_uint8(torch.stack(images), what), labels
