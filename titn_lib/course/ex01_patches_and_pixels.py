"""Exercises of 01_patches_and_pixels."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from einops import rearrange
from torch import Tensor

from titn_lib.course.checks import NOT_YET, Verdict, all_of, compare, describe, number, unwritten


def cut(image: Tensor, size: int, pattern: str = "c (row y) (column x) -> (row column) c y x") -> Tensor:
    """An image as patches; another pattern is a way to get it wrong."""
    return rearrange(image, pattern, y=size, x=size)


def check_cut(answer: Callable[[Tensor, int], Tensor]) -> Verdict:
    """`answer(image, size)`: "channel height width" → "patch channel size size", row by row."""

    def plain_reshape(image: Tensor, size: int) -> Tensor:
        return image.reshape(-1, image.shape[0], size, size)

    mistakes: dict[str, Callable[..., Tensor]] = {
        "the patches are numbered down the columns and not along the rows": partial(
            cut, pattern="c (row y) (column x) -> (column row) c y x"
        ),
        "the numbers are only reshaped: a patch then gets points that are next to each other in memory, not in the "
        "image": plain_reshape,
        "rows and columns change places inside every patch": partial(
            cut, pattern="c (row y) (column x) -> (row column) c x y"
        ),
        "a patch takes every so-manieth point of the image and not neighbors": partial(
            cut, pattern="c (y row) (x column) -> (row column) c y x"
        ),
    }
    sizes = iter([4, 8, 2])
    return compare(answer, cut, lambda: (torch.rand(3, 16, 24), next(sizes)), mistakes)


def check_sizes(patches: Any, pixels: Any, numbers: Any) -> Verdict:
    """A color image of 48×64 points, patches of 16, pixels of 4: how many patches, how many pixels in each, how many
    numbers in a pixel."""
    return all_of(
        patch_count=number(
            patches, 12, {7: "patches lie in rows and columns; multiply.", 192: "those are all pixels at once."}
        ),
        pixel_count=number(
            pixels, 16, {4: "4 along a side; the patch has two sides.", 192: "that is all patches together."}
        ),
        number_count=number(
            numbers, 48, {16: "a point has three colors.", 12: "that was a pixel of 2×2."}, "all three are right."
        ),
    )


def join(
    tokens: Tensor,
    patch_size: int,
    pixel_size: int,
    pattern: str = "(row column) (y x) (c p q) -> c (row y p) (column x q)",
) -> Tensor:
    """Tokens as a square image; another pattern is a way to get it wrong."""
    rows, inside = round(tokens.shape[0] ** 0.5), patch_size // pixel_size
    return rearrange(tokens, pattern, row=rows, y=inside, p=pixel_size, q=pixel_size)


def check_join(answer: Callable[[Tensor, int, int], Tensor]) -> Verdict:
    """`answer(tokens, patch_size, pixel_size)`: the way back from "patch pixel number" to "channel height width" for a
    square image."""
    mistakes = {
        "rows and columns change places inside every pixel": partial(
            join, pattern="(row column) (y x) (c q p) -> c (row y p) (column x q)"
        ),
        "rows and columns of pixels change places inside every patch": partial(
            join, pattern="(row column) (x y) (c p q) -> c (row y p) (column x q)"
        ),
        "patches and their pixels change places along the height": partial(
            join, pattern="(row column) (y x) (c p q) -> c (y row p) (column x q)"
        ),
        "rows and columns of patches change places": partial(
            join, pattern="(column row) (y x) (c p q) -> c (row y p) (column x q)"
        ),
        "the colors are taken to be last inside a token; they are first": partial(
            join, pattern="(row column) (y x) (p q c) -> c (row y p) (column x q)"
        ),
    }
    sizes = iter([(16, 16, 12, 8, 2), (9, 4, 48, 8, 4), (4, 16, 3, 4, 1)])

    def inputs() -> tuple[Tensor, int, int]:
        patches, pixels, numbers, patch_size, pixel_size = next(sizes)
        return torch.rand(patches, pixels, numbers), patch_size, pixel_size

    return compare(answer, join, inputs, mistakes, tolerance=0)


def check_symmetric(picture: Any) -> Verdict:
    """An image whose tokens don't change when p and q change places in the pattern, though it isn't of one color in
    any of its pixels."""
    if unwritten(picture):
        return NOT_YET
    if not isinstance(picture, Tensor) or picture.shape != (3, 32, 32):
        return Verdict(False, f"it is {describe(picture)}; a tensor of 3×32×32 was asked for.")
    pixels = rearrange(picture.float(), "c (y p) (x q) -> (y x) c p q", p=2, q=2)
    if (pixels != pixels.transpose(-1, -2)).any():
        wrong = int((pixels != pixels.transpose(-1, -2)).flatten(1).any(dim=1).sum())
        return Verdict(False, f"in {wrong} of the 256 pixels the upper right point differs from the lower left one.")
    flat = int((pixels.flatten(2).amax(-1) == pixels.flatten(2).amin(-1)).all(dim=1).sum())
    if flat:
        return Verdict(False, f"{flat} of the 256 pixels have one color all over: those never change.")
    return Verdict(True, "right: every pixel is its own mirror image along the diagonal.")
