"""Exercises of 01_patches_and_pixels."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from einops import rearrange
from torch import Tensor

from titn_lib.course.checks import NOT_YET, Verdict, all_of, as_tensor, compare, describe, number, unwritten


def cut(image: Tensor, size: int, pattern: str = "c (row y) (column x) -> (row column) c y x") -> Tensor:
    """Cut an image into patches; other patterns are typical mistakes."""
    return rearrange(image, pattern, y=size, x=size)


def check_cut(answer: Callable[[Tensor, int], Tensor]) -> Verdict:
    """`answer(image, size)`: "channel height width" → "patch channel size size", row by row."""

    def plain_reshape(image: Tensor, size: int) -> Tensor:
        return image.reshape(-1, image.shape[0], size, size)

    mistakes: dict[str, Callable[..., Tensor]] = {
        "the patches are numbered down the columns and not along the rows": partial(
            cut, pattern="c (row y) (column x) -> (column row) c y x"
        ),
        "the values are only reshaped: a patch gets pixels adjacent in memory, not in the image": plain_reshape,
        "rows and columns are swapped inside every patch": partial(
            cut, pattern="c (row y) (column x) -> (row column) c x y"
        ),
        "a patch takes pixels from all over the image, at equal distances, and not adjacent ones": partial(
            cut, pattern="c (y row) (x column) -> (row column) c y x"
        ),
    }
    sizes = iter([4, 8, 2])
    return compare(answer, cut, lambda: (torch.rand(3, 16, 24), next(sizes)), mistakes)


def check_sizes(patches: Any, pixels: Any, values: Any) -> Verdict:
    """A color image of 48×64 pixels, patches of 16×16, pixel tokens of 4×4: how many patches, how many pixel tokens in
    each, how many values in a pixel token."""
    return all_of(
        patch_count=number(
            patches,
            12,
            {7: "patches lie in rows and columns; multiply.", 192: "those are all pixel tokens."},
        ),
        pixel_count=number(
            pixels,
            16,
            {4: "4 along a side; a patch has rows and columns.", 192: "those are in all patches."},
        ),
        value_count=number(
            values,
            48,
            {16: "an image pixel has three colors.", 12: "that is for 2×2."},
            "all three are right.",
        ),
    )


def join(
    tokens: Tensor,
    patch_size: int,
    pixel_size: int,
    pattern: str = "(row column) (y x) (c p q) -> c (row y p) (column x q)",
) -> Tensor:
    """Put a square image together from its tokens; other patterns are typical mistakes."""
    rows, inside = round(tokens.shape[0] ** 0.5), patch_size // pixel_size
    return rearrange(tokens, pattern, row=rows, y=inside, p=pixel_size, q=pixel_size)


def check_join(answer: Callable[[Tensor, int, int], Tensor]) -> Verdict:
    """`answer(tokens, patch_size, pixel_size)`: from "patch pixel value" back to "channel height width", for a
    square image."""
    mistakes = {
        "rows and columns are swapped inside every pixel token": partial(
            join, pattern="(row column) (y x) (c q p) -> c (row y p) (column x q)"
        ),
        "rows and columns of pixel tokens are swapped inside every patch": partial(
            join, pattern="(row column) (x y) (c p q) -> c (row y p) (column x q)"
        ),
        "patches and their pixel tokens are swapped along the height": partial(
            join, pattern="(row column) (y x) (c p q) -> c (y row p) (column x q)"
        ),
        "rows and columns of patches are swapped": partial(
            join, pattern="(column row) (y x) (c p q) -> c (row y p) (column x q)"
        ),
        "the color axis is taken to be last inside a token; it is first": partial(
            join, pattern="(row column) (y x) (p q c) -> c (row y p) (column x q)"
        ),
    }
    sizes = iter([(16, 16, 12, 8, 2), (9, 4, 48, 8, 4), (4, 16, 3, 4, 1)])

    def inputs() -> tuple[Tensor, int, int]:
        patches, pixels, values, patch_size, pixel_size = next(sizes)
        return torch.rand(patches, pixels, values), patch_size, pixel_size

    return compare(answer, join, inputs, mistakes, tolerance=0)


def check_symmetric(image: Any) -> Verdict:
    """An image whose tokens stay the same if p and q are swapped in the pattern, though no pixel token is of a single
    color."""
    if unwritten(image):
        return NOT_YET
    values = as_tensor(image)
    if values is None or values.shape != (3, 32, 32):
        return Verdict(False, f"it is {describe(image)}; a tensor of 3×32×32 was asked for.")
    pixels = rearrange(values.double(), "c (y p) (x q) -> (y x) c p q", p=2, q=2)
    if (pixels != pixels.transpose(-1, -2)).any():
        wrong = int((pixels != pixels.transpose(-1, -2)).flatten(1).any(dim=1).sum())
        return Verdict(False, f"in {wrong} of the 256 pixel tokens, upper right and lower left image pixel differ.")
    flat = int((pixels.flatten(2).amax(-1) == pixels.flatten(2).amin(-1)).all(dim=1).sum())
    if flat:
        return Verdict(False, f"{flat} of the 256 pixel tokens have a single color: those never change.")
    return Verdict(True, "right: every pixel token is its own mirror image along the diagonal.")
