"""Exercises of 13_related_convolutions."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from titn_lib.course.checks import ROUNDS, Verdict, all_of, as_shaped, call_answer, compare, number

FEWEST = 150  # pixels to change in check_unseen
STRIDE, DILATION, KERNEL, PADDING = 4, 2, 7, 5  # of the second kernel of ViTAEv2's first cell, with r = 4


def dilated(x: Tensor, kernel: Tensor, dilation: int) -> Tensor:
    """A depthwise convolution with dilation; outside the map is zero."""
    return F.conv2d(x, kernel, padding=dilation, dilation=dilation, groups=x.shape[1])


def check_dilated(answer: Callable[[Tensor, Tensor, int], Tensor]) -> Verdict:
    """Check a depthwise convolution with dilation.

    Args:
        answer: `answer(x, kernel, dilation)` convolves x, "image channel row column", with a kernel, "channel 1 3 3".
    """

    def padded(x: Tensor, kernel: Tensor, s: int, sides: tuple[int, int, int, int], mode: str = "constant") -> Tensor:
        return F.conv2d(F.pad(x, sides, mode), kernel, dilation=s, groups=x.shape[1])

    mistakes: dict[str, Callable[[Tensor, Tensor, int], Tensor]] = {
        "the taps are adjacent: the dilation is ignored": lambda x, k, s: dilated(x, k, 1),
        "the taps are dilation + 1 pixels apart; a dilation of 1 means that they are adjacent": (
            lambda x, k, s: dilated(x, k, s + 1)
        ),
        "the kernel is flipped; a convolution layer doesn't flip it": lambda x, k, s: dilated(x, k.flip(2, 3), s),
        "rows and columns of the kernel are swapped": lambda x, k, s: dilated(x, k.mT, s),
        "the map wraps around; outside it is zero": lambda x, k, s: padded(x, k, s, (s, s, s, s), "circular"),
        "the pixels at the edge are repeated; outside the map is zero": (
            lambda x, k, s: padded(x, k, s, (s, s, s, s), "replicate")
        ),
        "x is added, as in local perception; the convolution alone was asked for": lambda x, k, s: x + dilated(x, k, s),
        "all channels have the kernel of channel 0": lambda x, k, s: dilated(x, k[:1].expand_as(k), s),
        "the channels are summed; a depthwise convolution keeps them apart": (
            lambda x, k, s: dilated(x, k, s).sum(dim=1, keepdim=True).expand_as(x)
        ),
        "the first tap is on the pixel itself; the middle one should be": (
            lambda x, k, s: padded(x, k, s, (0, 2 * s, 0, 2 * s))
        ),
        "the last tap is on the pixel itself; the middle one should be": (
            lambda x, k, s: padded(x, k, s, (2 * s, 0, 2 * s, 0))
        ),
    }

    def inputs() -> tuple[Tensor, Tensor, int]:
        return torch.randn(2, 3, 9, 11), torch.randn(3, 1, 3, 3), 2 + int(torch.randint(2, ()))

    return compare(answer, dilated, inputs, mistakes)


def check_counts(scores: Any, weights: Any, span: Any, chance: Any) -> Verdict:
    """Check four numbers.

    Args:
        scores: of one head in CMT's attention on a map of 8×8, k = 2.
        weights: of a depthwise 3×3 convolution on 48 channels, without its bias.
        span: the pixels that a 7×7 kernel with dilation 3 spans in one direction.
        chance: the probability that one of two equally good networks is ahead in all of five draws.
    """
    return all_of(
        scores_of_a_head=number(
            scores,
            64 * 16,
            {
                64**2: "that is full attention: here K and V come from a map downsampled by k in each direction.",
                64 * 32: "downsampled by k in each direction: k² times fewer positions.",
                16**2: "every position of the full map is a query; only the keys are fewer.",
                64: "every position is a query, and each has a score for every key.",
                16: "those are the keys. How many queries does each of them have?",
            },
        ),
        weights=number(
            weights,
            9 * 48,
            {
                9 * 48 * 48: "that is an ordinary convolution. Here each output channel has one input channel.",
                9: "every channel has a kernel of its own.",
                48: "a kernel has nine weights.",
                10 * 48: "without its bias.",
                3 * 48: "a 3×3 kernel has nine weights.",
            },
        ),
        span=number(
            span,
            19,
            {
                21: "the last pixel has no gap behind it.",
                18: "there are six steps of 3 from the first pixel to the last: count both ends.",
                7: "that is dilation 1: the pixels are adjacent.",
                13: "that is dilation 2.",
                25: "dilation 3 means that the taps are three pixels apart, not that three lie between them.",
                49: "in one direction, not both.",
                361: "in one direction, not both.",
            },
        ),
        chance=number(
            chance,
            2 / 2**5,
            {
                1 / 2**5: "that is for one of them, named beforehand. The other could have been ahead, too.",
                1 / 2: "that is for a single draw.",
                1 / 10: "the draws are independent: multiply.",
                0.05: "that is a usual threshold, not this probability.",
                6.25: "that is per cent; a share was asked for.",
            },
            "all four are right.",
        ),
    )


def seen_pixels() -> Tensor:
    """Which of 16×16 pixels the kernel sees at some position, "row column"."""
    image = torch.zeros(1, 1, 16, 16, requires_grad=True)
    ones = torch.ones(1, 1, KERNEL, KERNEL)
    F.conv2d(image, ones, stride=STRIDE, padding=PADDING, dilation=DILATION).sum().backward()
    assert image.grad is not None
    return image.grad[0, 0] > 0


def check_unseen(answer: Callable[[Tensor], Tensor]) -> Verdict:
    """Check changes that a dilated kernel can't see.

    Args:
        answer: `answer(image)` changes at least `FEWEST` pixels of an image, "1 16 16", none of which the kernel sees.
    """
    seen, count = seen_pixels(), 0
    for _ in range(ROUNDS):
        image = torch.rand(1, 16, 16)
        got = call_answer(answer, image)
        got = got if isinstance(got, Verdict) else as_shaped(got, image)
        if isinstance(got, Verdict):
            return got
        if not got.isfinite().all():
            return Verdict(False, "not all pixels are finite.")
        changed = ((got.detach().double() - image.double()).abs() > 1e-6)[0]
        count = int(changed.sum())
        if (changed & seen).any():
            row, column = (changed & seen).nonzero()[0].tolist()
            return Verdict(
                False, f"the map changes: the pixel in row {row}, column {column} (counted from 0) is below a tap."
            )
        if count < FEWEST:
            reason = " Rows alone aren't enough: the columns have gaps, too." if count == 128 else ""
            return Verdict(False, f"the map stays the same, but only {count} pixels are changed.{reason}")
    return Verdict(
        True,
        f"done: {count} of 256 pixels are changed, and the kernel sees none of them, because its stride and its "
        "dilation are both even. The kernels with dilation 1 and 3 fill the gaps.",
    )
