"""Exercises of 11_related_attention."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from titn_lib.course.checks import Verdict, all_of, call_answer, compare, describe, from_exception, number

DRAWS = 100  # of queries, keys and values, for check_feature_map


def carry(scores: Tensor, alpha: float, first: float = 1.0) -> Tensor:
    """A_1 = S_1 (times `first`), A_l = α S_l + (1 − α) A_{l−1}."""
    carried = [first * scores[0]]
    for own in scores[1:]:
        carried.append(alpha * own + (1 - alpha) * carried[-1])
    return torch.stack(carried)


def check_carry(answer: Callable[[Tensor, float], Tensor]) -> Verdict:
    """`answer(scores, alpha)`: every layer's own scores S, "layer head query key" → every layer's A, as many."""

    def neighbours_only(scores: Tensor, alpha: float) -> Tensor:
        return torch.cat([scores[:1], alpha * scores[1:] + (1 - alpha) * scores[:-1]])

    def added(scores: Tensor, alpha: float) -> Tensor:
        carried = [scores[0]]
        for own in scores[1:]:
            carried.append(alpha * own + carried[-1])
        return torch.stack(carried)

    mistakes: dict[str, Callable[[Tensor, float], Tensor]] = {
        "α and 1 − α change places: α is the share of a layer's own scores": lambda s, a: carry(s, 1 - a),
        "a layer gets the own scores of the one before; it should get what that one carried, A": neighbours_only,
        "the first layer's scores are multiplied by α: it has nothing to mix with, A_1 = S_1": (
            lambda s, a: carry(s, a, first=a)
        ),
        "nothing is carried, and the scores are made weaker": lambda s, a: torch.cat([s[:1], a * s[1:]]),
        "what is carried is added whole; its share is 1 − α": added,
        "the softmax is taken before mixing; scores are mixed, and the softmax comes after": (
            lambda s, a: carry(s.softmax(dim=-1), a)
        ),
        "every layer is mixed with the first one's scores; it should be with what the one before carried": (
            lambda s, a: torch.cat([s[:1], a * s[1:] + (1 - a) * s[:1]])
        ),
        "nothing is mixed: the scores come back as they were": lambda s, a: s,
        "the softmax is in it: right, but the scores before it were asked for": lambda s, a: carry(s, a).softmax(
            dim=-1
        ),
    }

    def inputs() -> tuple[Tensor, float]:
        return torch.randn(4, 2, 5, 5), float(0.2 + 0.2 * torch.rand(()))

    return compare(answer, carry, inputs, mistakes)


def check_counts(even: Any, rank: Any, scores: Any, span: Any) -> Verdict:
    """The number of tokens at which linear attention and softmax attention cost the same, for heads 16 wide; the
    highest rank that its 64×64 table can have, for heads 16 wide; scores of one head in CMT's attention on a map of
    8×8, k = 2; the points that a 7×7 kernel with dilation 3 spans, one way."""
    return all_of(
        tokens=number(
            even,
            16.5,
            {
                16: "nearly. The denominator costs N·d more.",
                17: "nearly, and no whole number: set both costs equal.",
                32: "both costs have the factor 2.",
                33: "both costs have the factor 2.",
                256: "one is N·N·d, the other N·d·d: what is left when you divide by N·d?",
                32.5: "softmax attention has two products, too: 2·N²·d.",
            },
        ),
        rank=number(
            rank,
            16,
            {
                64: "that is softmax's. Here the table is a product of a 64×16 matrix and a 16×64 one.",
                8: "φ(q) has 16 columns.",
                16.5: "that is the number of tokens.",
                32: "φ(q) has 16 columns, and φ(k) has 16: the smaller number counts, not the sum.",
                256: "a 64×64 table has at most rank 64.",
            },
        ),
        scores_of_a_head=number(
            scores,
            64 * 16,
            {
                64**2: "that is attention in full: here K and V come from a map k times smaller each way.",
                64 * 32: "k times smaller each way: k² times fewer places.",
                16**2: "every place of the whole map asks; only the keys are fewer.",
                64: "every place asks, and each has more than one answer to weigh.",
                16: "those are the keys. How many places ask each of them?",
            },
        ),
        span=number(
            span,
            19,
            {
                21: "the last point has no gap behind it.",
                18: "six gaps of 3 lie between the first point and the last: count both ends.",
                7: "that is dilation 1: the points lie side by side.",
                13: "that is dilation 2.",
                49: "one way, not both.",
                361: "one way, not both.",
            },
            "all four are right.",
        ),
    )


def check_feature_map(phi: Callable[[Tensor], Tensor]) -> Verdict:
    """A φ with which linear attention tells some token more than the largest value, or less than the smallest: one such
    token in `DRAWS` sequences will do, the same ones in every call."""
    generator = torch.Generator().manual_seed(0)
    positive, beyond, side = True, 0.0, ""
    for _ in range(DRAWS):
        query, key, value = torch.randn(3, 64, 4, generator=generator)
        value[:2] = torch.tensor([[1.0], [-1.0]]) * value[:2].abs()  # nobody heard, nothing told: 0 is in between
        try:
            wide_query, wide_key = call_answer(phi, query.clone()), call_answer(phi, key.clone())
            if isinstance(wide_query, Verdict):
                return wide_query
            if not isinstance(wide_query, Tensor):
                return Verdict(False, f"φ returns {describe(wide_query)}; a tensor was asked for.")
            if wide_query.shape[:-1] != query.shape[:-1]:
                sizes = f"{tuple(query.shape)} became {tuple(wide_query.shape)}"
                return Verdict(False, f"φ must keep the tokens apart: {sizes}.")
            weights = wide_query @ wide_key.mT
            told = weights @ value / (weights.sum(dim=-1, keepdim=True) + 1e-6)
        except Exception as problem:  # whatever the reader's code may do
            return from_exception(problem, query)
        if not told.isfinite().all():
            return Verdict(
                False, "that gives infinity, or no number at all: φ is too large, or isn't defined somewhere."
            )
        low, high = value.amin(dim=0), value.amax(dim=0)
        above, below = (told - high).max().item(), (low - told).max().item()
        beyond, side = max((above, "above"), (below, "below"), (beyond, side))
        positive = positive and bool((weights >= 0).all())
    if beyond < 0.01:
        reason = "no weight is negative" if positive else "some weights are negative, but too small to show"
        return Verdict(
            False,
            f"in {DRAWS} sequences of 64 tokens every token is told something between the smallest and the largest "
            f"value: {reason}.",
        )
    return Verdict(
        True,
        f"done: with weights below zero, a token is told something {side} all values, though each row still "
        "sums to 1. ELU + 1 is positive everywhere; that is what the 1 is for.",
    )
