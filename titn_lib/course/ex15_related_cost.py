"""Exercises of 15_related_cost."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from titn_lib.course.checks import ROUNDS, Verdict, all_of, as_tensor, call_answer, compare, describe, number


def check_straight_through(answer: Callable[[Tensor], Tensor]) -> Verdict:
    """Check a straight-through estimator.

    Args:
        answer: `answer(soft)` returns soft rounded to quarters, with the gradient of soft itself.
    """

    def rounded(soft: Tensor) -> Tensor:
        return (4 * soft).round() / 4

    def straight(soft: Tensor) -> Tensor:
        return rounded(soft) + (soft - soft.detach())

    forwards_wrong: dict[str, Callable[[Tensor], Tensor]] = {
        "soft is returned as it is, and not rounded": lambda soft: soft,
        "soft is added and not subtracted again": lambda soft: rounded(soft) + soft,
        "it is rounded to 0 and 1; quarters were asked for": lambda soft: soft.round(),
        "it is rounded down; to the nearest quarter was asked for": lambda soft: (4 * soft).floor() / 4,
        "it is not divided by 4 again": lambda soft: (4 * soft).round(),
        "it is rounded up; to the nearest quarter was asked for": lambda soft: (4 * soft).ceil() / 4,
        "it is rounded to eighths; quarters were asked for": lambda soft: (8 * soft).round() / 8,
        "the rounded value is multiplied by soft": lambda soft: rounded(soft) * soft,
    }
    backwards_wrong: dict[str, Callable[[Tensor], Tensor]] = {
        "no gradient gets through: rounding has none, and s - s has none unless one s is detached": rounded,
        "the wrong soft is detached, and the gradient has the wrong sign": (
            lambda soft: rounded(soft) + (soft.detach() - soft)
        ),
    }

    def backwards(function: Callable[[Tensor], Any]) -> Callable[[Tensor, Tensor], Any]:
        """The gradient of a weighted sum of the function's output."""

        def run(soft: Tensor, weight: Tensor) -> Any:
            soft = soft.requires_grad_()
            gates = as_tensor(function(soft.clone()))  # a copy: a leaf can't change in place
            if gates is None or not gates.requires_grad:
                return torch.zeros_like(soft)
            found = torch.autograd.grad((gates * weight).sum(), soft, allow_unused=True)[0]
            return torch.zeros_like(soft) if found is None else found

        return run

    forward = compare(
        lambda soft: answer(soft.requires_grad_().clone()), straight, lambda: (torch.rand(40),), forwards_wrong
    )
    if not forward.right:
        return forward
    return compare(
        backwards(answer),
        backwards(straight),
        lambda: (torch.rand(40), 1 + torch.rand(40)),
        {name: backwards(mistake) for name, mistake in backwards_wrong.items()},
        "right, forward and backward, on three random inputs.",
        what="and so are the values, but the gradient is",
    )


def check_counts(everything: Any, half_tokens: Any, half_heads: Any, computed: Any) -> Verdict:
    """Check four counts for an attention sublayer with 64 tokens of width 32 in 4 heads.

    Args:
        everything, half_tokens, half_heads: its MACs with all gates open, with half of the tokens closed, and with half
            of the heads closed.
        computed: the patches that gathering computes for three images that keep 10, 20 and 60.
    """
    return all_of(
        everything=number(
            everything,
            524_288,
            {
                262_144: "queries, keys, values and output are half of it; the scores and the mixing are the rest.",
                393_216: "the 64×64 matrix counts twice: to compute the scores, and to mix the values.",
                458_752: "four projections of 32×32, not three: the output has one, too.",
                1_048_576: "twice too much: a multiplication and its addition count as one, and here is no MLP.",
                2_097_152: "the heads share the width: each has 8 dimensions, not 32.",
                1_310_720: "the heads share the width: in each, queries, keys and values have 8 dimensions, not 32.",
            },
        ),
        half_of_tokens=number(
            half_tokens,
            196_608,
            {
                262_144: "the matrix shrinks in both directions: fewer queries, and fewer keys.",
                131_072: "a quarter of the matrix, but half of the four projections: each token needs them once.",
                393_216: "the four projections are for open tokens only, too.",
                327_680: "the four projections are for open tokens only, too.",
                98_304: "each of the four projections maps 32 dimensions to 32, whatever the number of tokens.",
                524_288: "closed tokens cost nothing.",
            },
        ),
        half_of_heads=number(
            half_heads,
            262_144,
            {
                524_288: "a closed head needs no queries, keys, values, scores, and none of the output's weights.",
                393_216: "a head's share of queries, keys, values and output goes, too.",
                196_608: "closing heads doesn't change the number of tokens: nothing is quartered.",
                131_072: "two of four heads are left: everything is halved once.",
                294_912: "the output's weights for a closed head go, too.",
                327_680: "a head's share of the width is 8; with half of the heads everything is halved.",
            },
        ),
        patches_computed=number(
            computed,
            180,
            {
                90: "that is what they keep. A batch is one tensor, padded to the longest image.",
                60: "all three images are computed.",
                30: "the mean doesn't matter: all are padded to the largest number that any image keeps.",
                192: "64 for each is the cost without gathering.",
            },
            "all four are right.",
        ),
    )


def check_idle(answer: Callable[[int, int], Tensor]) -> Verdict:
    """Check gates that keep a budget of a half, and with which gathering a batch saves nothing.

    Args:
        answer: `answer(images, patches)` returns gates of 0 and 1 of shape "image patch", half of them 1.
    """
    for _ in range(ROUNDS):
        images, patches = 2 * int(torch.randint(2, 9, ())), 4 * int(torch.randint(2, 17, ()))
        got = call_answer(answer, images, patches)
        if isinstance(got, Verdict):
            return got
        gates = as_tensor(got)
        if gates is None or gates.shape != (images, patches):
            wanted = f'"image patch", here {(images, patches)}, was asked for'
            return Verdict(False, f"it returns {describe(got)}; {wanted}.")
        gates = gates.double()
        if not ((gates == 0) | (gates == 1)).all():
            return Verdict(False, "a gate is 0 or 1, nothing else.")
        if abs(gates.mean().item() - 0.5) > 1e-9:
            return Verdict(False, f"{gates.mean():.0%} of the gates are open; the budget is a half.")
        most = int(gates.sum(dim=1).max())
        if most < patches:
            detail = f"none of the {images} images keeps more than {most} of {patches} patches"
            return Verdict(False, f"the budget is kept, but {detail}: so many are computed, and the rest is saved.")
    return Verdict(True, "done: half of all gates are closed, the loss is minimal, and no time is saved.")
