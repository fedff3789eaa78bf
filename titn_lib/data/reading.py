"""Read the images of a folder or table: all of them once, in parallel, at the size that they are needed in.

They stay in memory as bytes; nothing is cached on disk.
"""

import logging
import os
import warnings
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import torch
from torch import Tensor
from tqdm.auto import tqdm

from titn_lib.data.folders import ImageList, kinds, list_images
from titn_lib.data.images import ImageDataset, ImageError, read_image, require_memory
from titn_lib.errors import TITNError

log = logging.getLogger(__name__)

SHOWN = 20  # damaged files named in one message


def load_class_folders(
    folder: Path, size: tuple[int, int], in_channels: int = 3, skip_damaged: bool = False, progress: bool = True
) -> tuple[ImageDataset, tuple[str, ...]]:
    """All images of a folder or table, whatever their split, and the class names (`list_images`, `read_images`)."""
    listed = list_images(folder)
    parts = read_images(listed, size, in_channels, skip_damaged, progress).values()
    images, labels = (torch.cat([getattr(part, name) for part in parts]) for name in ("images", "labels"))
    return ImageDataset(images, labels), listed.classes


def read_images(
    listed: ImageList, size: tuple[int, int], in_channels: int = 3, skip_damaged: bool = False, progress: bool = True
) -> dict[str, ImageDataset]:
    """Read all images of a list once, in parallel, and say what was skipped.

    Args:
        size: height and width.
        in_channels: 1 for grayscale, 3 for color.
        skip_damaged: leave out images that can't be read, with a warning, instead of refusing all.
        progress: show a bar where it takes more than two seconds.

    Returns:
        The images of each split of the list.

    Raises:
        TITNError: images can't be read: all are named in one message; or a class has none left.
    """
    report_skipped(listed)
    every = [(split, file, label) for split, files in listed.files.items() for file, label in files]
    require_memory(len(every), in_channels, size, str(listed.path))
    threads = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    executor = ThreadPoolExecutor(min(threads, 16))
    read = partial(try_to_read, size=size, in_channels=in_channels)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's, of odd metadata and of photographs with 90 megapixels or more
        bar = tqdm(
            executor.map(read, (file for _, file, _ in every)),
            total=len(every), desc=f"reading {listed.path.name}", unit=" images", delay=2, disable=not progress,
        )  # fmt: skip
        try:
            results = list(bar)
        finally:
            executor.shutdown(cancel_futures=True)
    damaged = [result.reason for result in results if isinstance(result, ImageError)]
    if damaged and not skip_damaged:
        raise damaged_error(results, damaged)
    if damaged:
        log.warning("%s: skipped %s", listed.path, some(damaged))
    parts = {}
    for split, files in listed.files.items():
        whole = [(r, label) for (part, _, label), r in zip(every, results, strict=True)
                 if part == split and isinstance(r, Tensor)]  # fmt: skip
        labels = torch.tensor([label for _, label in whole], dtype=torch.long)
        missing = {label for _, label in files} - set(labels.tolist())
        if missing:
            raise TITNError(f"{listed.path}: no image of {listed.classes[min(missing)]} can be read: add some")
        parts[split] = ImageDataset(torch.stack([image for image, _ in whole]), labels)
    return parts


def try_to_read(file: Path, size: tuple[int, int], in_channels: int) -> Tensor | ImageError:
    """The image, or what is wrong with it."""
    try:
        return read_image(file, in_channels, size)
    except ImageError as problem:
        return problem


def damaged_error(results: list[Tensor | ImageError], damaged: list[str]) -> TITNError:
    """One message for all images that can't be read."""
    choice = "or leave such files out with skip_damaged=True (--skip-damaged)"
    if len(damaged) == 1:
        return TITNError(f"{next(r for r in results if isinstance(r, ImageError))}, {choice}")
    return TITNError(f"{len(damaged)} images can't be read ({some(damaged)}): remove them or save them again, {choice}")


def some(reasons: list[str]) -> str:
    """The first `SHOWN` of them, and how many more there are."""
    more = f"; and {len(reasons) - SHOWN} more" if len(reasons) > SHOWN else ""
    return "; ".join(reasons[:SHOWN]) + more


def report_skipped(listed: ImageList) -> None:
    """Log once what lies in the folder and was not read."""
    if listed.skipped and int(os.environ.get("RANK", 0)) == 0:
        first = listed.skipped[0]
        log.warning("%s: not read as images: %s (%s first)", listed.path, kinds(listed.skipped), first.name)
