"""Exercises of 13_related_cost."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from titn_lib.course.checks import ROUNDS, Verdict, all_of, call_answer, compare, describe, number

EXPECTED_BEST_OF_TEN = 1.53875  # standard deviations: the mean of the largest of ten normal numbers


def check_straight_through(answer: Callable[[Tensor], Tensor]) -> Verdict:
    """`answer(soft)`: soft, rounded to quarters, and backwards as if it were soft."""

    def rounded(soft: Tensor) -> Tensor:
        return (4 * soft).round() / 4

    def straight(soft: Tensor) -> Tensor:
        return rounded(soft) + (soft - soft.detach())

    forwards_wrong: dict[str, Callable[[Tensor], Tensor]] = {
        "soft is handed on as it is, and not rounded": lambda soft: soft,
        "soft is added and not taken away again": lambda soft: rounded(soft) + soft,
        "it is rounded to 0 and 1; quarters were asked for": lambda soft: soft.round(),
        "it is rounded down; to the nearest quarter was asked for": lambda soft: (4 * soft).floor() / 4,
        "it is not divided by 4 again": lambda soft: (4 * soft).round(),
        "what is rounded is multiplied by soft": lambda soft: rounded(soft) * soft,
    }
    backwards_wrong: dict[str, Callable[[Tensor], Tensor]] = {
        "no gradient gets through: a step has none, and s - s gives none unless one s is detached": rounded,
        "the wrong soft is detached, and the gradient has the wrong sign": (
            lambda soft: rounded(soft) + (soft.detach() - soft)
        ),
    }

    def backwards(function: Callable[[Tensor], Any]) -> Callable[[Tensor, Tensor], Any]:
        """The gradient of a weighted sum of what it returns."""

        def run(soft: Tensor, weight: Tensor) -> Any:
            soft = soft.requires_grad_()
            gates = function(soft)
            if not gates.requires_grad:
                return torch.zeros_like(soft)
            found = torch.autograd.grad((gates * weight).sum(), soft, allow_unused=True)[0]
            return torch.zeros_like(soft) if found is None else found

        return run

    verdict = compare(lambda soft: answer(soft.requires_grad_()), straight, lambda: (torch.rand(40),), forwards_wrong)
    if not verdict.right:
        return verdict
    return compare(
        backwards(answer),
        backwards(straight),
        lambda: (torch.rand(40), 1 + torch.rand(40)),
        {name: backwards(mistake) for name, mistake in backwards_wrong.items()},
        "right, forwards and backwards, on three random inputs.",
        what="and so is what it returns, but its gradient is",
    )


def check_counts(everything: Any, half_tokens: Any, half_heads: Any, computed: Any) -> Verdict:
    """Multiply-accumulates of an attention sublayer with 64 tokens of width 32 in 4 heads: with all open, with half of
    the tokens closed, with half of the heads closed. And the patches that gathering computes for three images that
    keep 10, 20 and 60."""
    return all_of(
        everything=number(
            everything,
            524_288,
            {
                262_144: "queries, keys, values and output are half of it; scores, and mixing the values, the rest.",
                393_216: "the table of 64×64 is used twice: to make the scores, and to mix the values.",
                458_752: "four maps of 32×32, not three: the output has one, too.",
                1_048_576: "twice too much: a multiplication and its addition count as one, and here is no MLP.",
                2_097_152: "the heads share the width: each has 8 numbers, not 32.",
                1_310_720: "the heads share the width: in each, queries, keys and values have 8 numbers, not 32.",
            },
        ),
        half_of_tokens=number(
            half_tokens,
            196_608,
            {
                262_144: "the table shrinks both ways: fewer tokens ask, and fewer answer.",
                131_072: "a quarter of the table, but half of the four maps: each token needs them once.",
                393_216: "the four maps are for open tokens only, too.",
                327_680: "the four maps are for open tokens only, too.",
                98_304: "each of the four maps turns 32 numbers into 32, whatever the number of tokens.",
                524_288: "closed tokens cost nothing.",
            },
        ),
        half_of_heads=number(
            half_heads,
            262_144,
            {
                524_288: "a closed head needs no queries, keys, values, scores, and none of the output's weights.",
                393_216: "a head's share of queries, keys, values and output goes, too.",
                196_608: "a head more or less doesn't change the number of tokens: nothing shrinks twice.",
                131_072: "two of four heads are left: everything is halved once.",
                294_912: "the output's weights for a closed head go, too.",
                327_680: "a head's share of the width is 8; with half of the heads everything is halved.",
            },
        ),
        patches_computed=number(
            computed,
            180,
            {
                90: "that is what they keep. A batch is one block of numbers, as long for each as for the longest.",
                60: "all three images are computed.",
                30: "the mean is no help: all are computed with as many as any of them keeps.",
                192: "64 for each is the price without gathering.",
            },
            "all four are right.",
        ),
    )


def check_claim(error: Any, of_difference: Any, spread: Any) -> Verdict:
    """In points: the standard error of 90 % on 10,000 images; that of the difference of two such networks, each with
    its own test images; the seeds' standard deviation that would make the best of ten lead their mean by 9.26."""
    return all_of(
        standard_error=number(
            error,
            0.3,
            {
                0.003: "that is a share of 1; in points it is a hundred times as much.",
                0.09: "that is the variance, p(1 − p), in shares; take the root of p(1 − p)/n.",
                30: "that is one image's; the mean of 10,000 is a hundred times as sure.",
                0.949: "p(1 − p), not p alone.",
                0.1: "p(1 − p), not (1 − p)² alone.",
                0.588: "that is 1.96 standard errors; one was asked for.",
            },
            within=0.02,
        ),
        of_the_difference=number(
            of_difference,
            0.3 * 2**0.5,
            {
                0.6: "variances add, not standard errors: the root of 0.3² + 0.3².",
                0.3: "both networks are uncertain, not one.",
                0.18: "that is the sum of the variances; take its root.",
                0.212: "that is for the mean of both: halved. Their difference isn't.",
            },
            within=0.02,
        ),
        spread_of_seeds=number(
            spread,
            9.26 / EXPECTED_BEST_OF_TEN,
            {
                9.26: "the best of ten lies further out than one standard deviation.",
                9.26 / 1.5: "take two decimals: the best of ten leads by 1.54, not by 1.5.",
                9.26 * EXPECTED_BEST_OF_TEN: "divide: it takes 1.54 of them to make 9.26 points.",
                0.926: "a mean gets surer with ten seeds; the best of them gets larger.",
                9.26 / 10**0.5: "the root of ten is for means; the best of ten is 1.54 standard deviations out.",
                3.01: "look up ten seeds, not a thousand.",
            },
            "all three are right. Six points from seed to seed would be a network that nobody could use.",
            within=0.02,
        ),
    )


def check_idle(answer: Callable[[int, int], Tensor]) -> Verdict:
    """`answer(images, patches)`: gates of 0 and 1, half of them open, with which gathering a batch saves nothing."""
    for _ in range(ROUNDS):
        pictures, patches = 2 * int(torch.randint(2, 9, ())), 4 * int(torch.randint(2, 17, ()))
        gates = call_answer(answer, pictures, patches)
        if isinstance(gates, Verdict):
            return gates
        if not isinstance(gates, Tensor):
            return Verdict(False, f"it returns {describe(gates)}; a tensor was asked for.")
        if gates.shape != (pictures, patches):
            shape = tuple(gates.shape)
            return Verdict(False, f'"image patch" was asked for, here {(pictures, patches)}, and not {shape}.')
        gates = gates.double()
        if not ((gates == 0) | (gates == 1)).all():
            return Verdict(False, "a gate is 0 or 1, nothing else.")
        if abs(gates.mean().item() - 0.5) > 1e-9:
            return Verdict(False, f"{gates.mean():.0%} of the gates are open; the budget is a half.")
        most = int(gates.sum(dim=1).max())
        if most < patches:
            told = f"none of the {pictures} images keeps more than {most} of {patches} patches"
            return Verdict(False, f"the budget is kept, but {told}: so many are computed, and the rest is saved.")
    return Verdict(True, "done: half of all gates are closed, the loss is content, and the clock has nothing to gain.")
