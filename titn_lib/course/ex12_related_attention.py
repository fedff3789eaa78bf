"""Exercises of 12_related_attention."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from titn_lib.course.checks import Verdict, all_of, as_tensor, call_answer, compare, describe, from_exception, number

DRAWS = 100  # of queries, keys and values, for check_feature_map


def carry(scores: Tensor, alpha: float, first: float = 1.0) -> Tensor:
    """ReViT's residual attention scores: A_1 = S_1 (times `first`), A_l = α S_l + (1 − α) A_{l−1}."""
    carried = [first * scores[0]]
    for own in scores[1:]:
        carried.append(alpha * own + (1 - alpha) * carried[-1])
    return torch.stack(carried)


def check_carry(answer: Callable[[Tensor, float], Tensor]) -> Verdict:
    """Check residual attention scores.

    Args:
        answer: `answer(scores, alpha)` turns every layer's own scores S, "layer head query key", into every layer's A,
            of the same shape.
    """

    def previous_only(scores: Tensor, alpha: float) -> Tensor:
        return torch.cat([scores[:1], alpha * scores[1:] + (1 - alpha) * scores[:-1]])

    def added(scores: Tensor, alpha: float) -> Tensor:
        carried = [scores[0]]
        for own in scores[1:]:
            carried.append(alpha * own + carried[-1])
        return torch.stack(carried)

    mistakes: dict[str, Callable[[Tensor, float], Tensor]] = {
        "α and 1 − α are swapped: α weights a layer's own scores": lambda s, a: carry(s, 1 - a),
        "a layer mixes in the previous layer's own scores, S; it should be the scores it used, A": previous_only,
        "the first layer's scores are multiplied by α: it has no previous layer, A_1 = S_1": (
            lambda s, a: carry(s, a, first=a)
        ),
        "nothing is carried, and the scores are scaled down": lambda s, a: torch.cat([s[:1], a * s[1:]]),
        "what is carried is added with weight 1; its weight is 1 − α": added,
        "the softmax is taken before mixing; scores are mixed, and the softmax comes after": (
            lambda s, a: carry(s.softmax(dim=-1), a)
        ),
        "every layer is mixed with the first layer's scores; it should be with the previous layer's A": (
            lambda s, a: torch.cat([s[:1], a * s[1:] + (1 - a) * s[:1]])
        ),
        "nothing is mixed: the scores are returned unchanged": lambda s, a: s,
        "the softmax is applied: right, but the scores before it were asked for": lambda s, a: carry(s, a).softmax(
            dim=-1
        ),
    }

    def inputs() -> tuple[Tensor, float]:
        return torch.randn(4, 2, 5, 5), float(0.2 + 0.2 * torch.rand(()))

    return compare(answer, carry, inputs, mistakes)


def check_numbers(first_weight: Any, tokens: Any, rank: Any, values: Any) -> Verdict:
    """Check four numbers.

    Args:
        first_weight: of S_1 in A_4, with α = ½.
        tokens: the number of tokens at which linear and softmax attention cost the same, with a head width of 16.
        rank: the highest rank of linear attention's 64×64 attention matrix, with a head width of 16.
        values: how many values the two brackets of linear attention hold, with a head width of 16.
    """
    return all_of(
        first_weight=number(
            first_weight,
            1 / 8,
            {
                1 / 16: "A_1 is S_1 itself, without α: only the three steps after it halve its weight.",
                1 / 4: "that is the weight of S_3. From A_1 to A_4 there are three steps.",
                1 / 2: "that is the weight of S_4, the block's own scores.",
                0: "A_2 contains S_1, A_3 contains A_2, and so on.",
                1: "all four weights sum to 1.",
                12.5: "that is per cent; a share was asked for.",
            },
        ),
        tokens=number(
            tokens,
            16.5,
            {
                16: "nearly. The denominator costs N·d more.",
                17: "nearly, and it is no integer: set both costs equal.",
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
                64: "that is softmax's. Here the attention matrix is a product of a 64×16 matrix and a 16×64 one.",
                8: "φ(q) has 16 columns.",
                16.5: "that is the number of tokens.",
                32: "φ(q) has 16 columns, and φ(k) has 16: the smaller number counts, not the sum.",
                256: "a 64×64 matrix has at most rank 64.",
            },
        ),
        values=number(
            values,
            16 * 16 + 16,
            {
                256: "that is the first bracket. The denominator needs the second one, too.",
                16: "that is the second bracket. The first one is a matrix.",
                32: "the first bracket is a matrix: a column times a row, summed over the tokens.",
                512: "the second bracket is a sum of rows, not a matrix.",
                64 * 16: "a bracket is a sum over the tokens: its size doesn't depend on their number.",
                2 * 64 * 16: "those are keys and values. A bracket is a sum over them.",
                64**2: "that is the attention matrix, which is never computed.",
            },
            "all four are right.",
        ),
    )


def check_feature_map(phi: Callable[[Tensor], Tensor]) -> Verdict:
    """Check a feature map with negative weights.

    Args:
        phi: a φ with which linear attention's output exceeds the largest value, or falls below the smallest, for some
            token. One such token in `DRAWS` sequences is enough. Every call draws the same sequences.
    """
    generator = torch.Generator().manual_seed(0)
    positive, beyond, side = True, 0.0, ""
    for _ in range(DRAWS):
        query, key, value = torch.randn(3, 64, 4, generator=generator)
        value[:2] = torch.tensor([[1.0], [-1.0]]) * value[:2].abs()  # 0, an output without any update, lies in between
        try:
            features = []
            for tokens in (query, key):
                got = call_answer(phi, tokens)
                if isinstance(got, Verdict):
                    return got
                made = as_tensor(got)
                if made is None or made.ndim == 0:
                    return Verdict(False, f"φ returns {describe(got)}; a row for each token was asked for.")
                if made.shape[:-1] != tokens.shape[:-1]:
                    sizes = f"{tuple(tokens.shape)} became {tuple(made.shape)}"
                    return Verdict(False, f"φ must keep the tokens apart: {sizes}.")
                features.append(made.to(value))
            weights = features[0] @ features[1].mT
            output = weights @ value / (weights.sum(dim=-1, keepdim=True) + 1e-6)
        except Exception as problem:  # whatever the reader's code may do
            return from_exception(problem, query)
        if not output.isfinite().all():
            return Verdict(False, "the output is infinite or not a number: φ is too large, or isn't defined somewhere.")
        low, high = value.amin(dim=0), value.amax(dim=0)
        above, below = (output - high).max().item(), (low - output).max().item()
        beyond, side = max((above, "above"), (below, "below"), (beyond, side))
        positive = positive and bool((weights >= 0).all())
    if beyond < 0.01:
        reason = "no weight is negative" if positive else "some weights are negative, but too small to matter"
        return Verdict(
            False,
            f"in {DRAWS} sequences of 64 tokens every output lies between the smallest and the largest value: "
            f"{reason}.",
        )
    return Verdict(
        True,
        f"done: with negative weights, an output lies {side} all values, though each row still sums to 1. "
        "ELU + 1 is positive everywhere; that is what the 1 is for.",
    )
