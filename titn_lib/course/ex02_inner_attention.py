"""Exercises of 02_inner_attention."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from einops import rearrange
from torch import Tensor

from titn_lib.course.checks import (
    NOTHING_CHANGED,
    OTHER_MODULES,
    ROUNDS,
    Verdict,
    all_of,
    compare,
    from_exception,
    max_abs_diff,
    number,
)
from titn_lib.models.layers import Attention

# The end of a sentence, as in `checks.compare`.
OVER_QUERIES = "the softmax is over the queries, so that columns sum to 1; rows (dim=-1) must sum to 1"


def one_head(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Scaled dot-product attention of one head (Vaswani et al. 2017, eq. 1)."""
    return (query @ key.T / query.shape[-1] ** 0.5).softmax(dim=-1) @ value


def check_one_head(answer: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Verdict:
    """`answer(query, key, value)`: three times "token width" → the weighted mean of the values for every token,
    "token width"."""

    def no_scale(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return (q @ k.T).softmax(-1) @ v

    def no_root(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return (q @ k.T / q.shape[-1]).softmax(-1) @ v

    def root_of_tokens(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return (q @ k.T / len(q) ** 0.5).softmax(-1) @ v

    def multiplied(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return (q @ k.T * q.shape[-1] ** 0.5).softmax(-1) @ v

    def always_3(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return (q @ k.T / 3**0.5).softmax(-1) @ v

    def scale_last(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return (q @ k.T).softmax(-1) / q.shape[-1] ** 0.5 @ v

    def wrong_axis(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return (q @ k.T / q.shape[-1] ** 0.5).softmax(0) @ v

    def no_softmax(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return q @ k.T / q.shape[-1] ** 0.5 @ v

    mistakes = {
        "the scores are not divided by the square root of the width": no_scale,
        "the scores are divided by the width and not by its square root": no_root,
        "the scores are divided by the square root of the number of tokens; it should be the width": root_of_tokens,
        "the scores are multiplied by the square root of the width; divide": multiplied,
        "the scores are divided by √3, whatever the width; take the width from the query's shape": always_3,
        "the attention weights are divided by the square root of the width; divide the scores instead": scale_last,
        OVER_QUERIES: wrong_axis,
        "queries and keys are swapped": lambda q, k, v: one_head(k, q, v),
        "the attention matrix is transposed: row i has the weights of query i": lambda q, k, v: (
            (q @ k.T / q.shape[-1] ** 0.5).softmax(-1).T @ v
        ),
        "the weighted mean is of the keys and not of the values": lambda q, k, v: one_head(q, k, k),
        "the softmax is left out": no_softmax,
    }
    sizes = iter([(16, 3), (5, 8), (9, 4)])
    return compare(answer, one_head, lambda: tuple(1.5 * torch.randn(3, *next(sizes))), mistakes)


def all_heads(
    tokens: Tensor,
    qkv_weight: Tensor,
    qkv_bias: Tensor,
    output_weight: Tensor,
    output_bias: Tensor,
    heads: int,
    *,
    cut: str = "token (three head width) -> three head token width",
    join: str = "head token width -> token (head width)",
    scale: float | None = None,
    axis: int = -1,
    swap: bool = False,
) -> Tensor:
    """Multi-head attention; the keyword arguments are typical mistakes."""
    query, key, value = rearrange(tokens @ qkv_weight.T + qkv_bias, cut, three=3, head=heads)
    query, key = (key, query) if swap else (query, key)
    scores = query @ key.transpose(-2, -1) * (query.shape[-1] ** -0.5 if scale is None else scale)
    mixed = rearrange(scores.softmax(dim=axis) @ value, join).reshape(tokens.shape)
    return mixed @ output_weight.T + output_bias


def wrong_projections() -> dict[str, Callable[..., Tensor]]:
    """Typical mistakes in the projections: before the heads, and of their outputs."""

    def no_proj(tokens: Tensor, weight: Tensor, bias: Tensor, out: Tensor, out_bias: Tensor, heads: int) -> Tensor:
        return all_heads(tokens, weight, bias, torch.eye(len(out)), 0 * out_bias, heads)

    def transposed(tokens: Tensor, weight: Tensor, bias: Tensor, out: Tensor, out_bias: Tensor, heads: int) -> Tensor:
        return all_heads(tokens, weight, bias, out.T, out_bias, heads)

    def biases(first: int, last: int) -> Callable[..., Tensor]:
        def keep(tokens: Tensor, weight: Tensor, bias: Tensor, out: Tensor, out_bias: Tensor, heads: int) -> Tensor:
            return all_heads(tokens, weight, first * bias, out, last * out_bias, heads)

        return keep

    def split_tokens(tokens: Tensor, weight: Tensor, bias: Tensor, out: Tensor, out_bias: Tensor, heads: int) -> Tensor:
        owner = torch.arange(len(out)) * heads // len(out)  # the head of each feature
        return all_heads(tokens, weight * (owner.repeat(3)[:, None] == owner), bias, out, out_bias, heads)

    def values_first(tokens: Tensor, weight: Tensor, bias: Tensor, *rest: Any) -> Tensor:
        flipped = [rows.unflatten(0, (3, -1)).flip(0).flatten(0, 1) for rows in (weight, bias)]
        return all_heads(tokens, *flipped, *rest)

    return {
        "the tokens are split into heads before the projection; project the whole tokens, then split": split_tokens,
        "the rows of `qkv_weight` are taken to be values, keys, queries; they are queries, keys, values": values_first,
        "the tokens are added; the update alone was asked for": lambda *arguments: all_heads(*arguments) + arguments[0],
        "the output projection is left out": no_proj,
        "the matrix of the output projection is not transposed": transposed,
        "the biases are left out": biases(0, 0),
        "the bias of queries, keys and values is left out": biases(0, 1),
        "the bias of the output projection is left out": biases(1, 0),
    }


def wrong_heads() -> dict[str, Callable[..., Tensor]]:
    """Typical mistakes in the attention of the heads, in splitting tokens into heads, and in joining these."""

    def whole_width(tokens: Tensor, *rest: Any) -> Tensor:
        return all_heads(tokens, *rest, scale=tokens.shape[-1] ** -0.5)

    def one(tokens: Tensor, weight: Tensor, bias: Tensor, out: Tensor, out_bias: Tensor, heads: int) -> Tensor:
        return all_heads(tokens, weight, bias, out, out_bias, heads=1)

    def reshaped(tokens: Tensor, weight: Tensor, bias: Tensor, out: Tensor, out_bias: Tensor, heads: int) -> Tensor:
        q, k, v = (part.reshape(heads, len(tokens), -1) for part in (tokens @ weight.T + bias).chunk(3, dim=-1))
        mixed = (q @ k.transpose(-2, -1) / q.shape[-1] ** 0.5).softmax(dim=-1) @ v
        return mixed.reshape(tokens.shape) @ out.T + out_bias

    def among_heads(tokens: Tensor, weight: Tensor, bias: Tensor, out: Tensor, out_bias: Tensor, heads: int) -> Tensor:
        q, k, v = (part.unflatten(-1, (heads, -1)) for part in (tokens @ weight.T + bias).chunk(3, dim=-1))
        mixed = (q @ k.transpose(-2, -1) / q.shape[-1] ** 0.5).softmax(dim=-1) @ v
        return mixed.flatten(1) @ out.T + out_bias

    scattered = "token (three width head) -> three head token width"
    head_first = "token (head three width) -> three head token width"
    interleaved = "head token width -> token (width head)"
    not_joined = "head token width -> head token width"
    return {
        "the scores are not divided by the square root of the head's width": partial(all_heads, scale=1.0),
        "the scores are divided by the square root of the whole width; take that of one head": whole_width,
        OVER_QUERIES: partial(all_heads, axis=-2),
        "the softmax is over the heads; it should be over the keys (dim=-1)": partial(all_heads, axis=-3),
        "queries and keys are swapped": partial(all_heads, swap=True),
        "the scores are divided by the square root of the number of heads; it should be a head's width": (
            lambda *arguments: all_heads(*arguments, scale=arguments[-1] ** -0.5)
        ),
        "there is one head, whatever `heads` says": one,
        "the heads of a token attend to each other: move the head axis to the front, so that tokens do": among_heads,
        "a head takes features far apart; they should be adjacent": partial(all_heads, cut=scattered, join=interleaved),
        "the rows of `qkv_weight` are split by heads first; all queries' rows come first, then all keys', then all "
        "values'": partial(all_heads, cut=head_first),
        "queries, keys and values are split into heads by a reshape alone; split each token's features first, then "
        "move the head axis to the front": reshaped,
        "the heads' outputs are interleaved and not concatenated": partial(all_heads, join=interleaved),
        "the heads' outputs are only reshaped; move the head axis behind the token axis first, then concatenate": (
            partial(all_heads, join=not_joined)
        ),
    }


def check_all_heads(answer: Callable[[Tensor, Tensor, Tensor, Tensor, Tensor, int], Tensor]) -> Verdict:
    """`answer(tokens, qkv_weight, qkv_bias, output_weight, output_bias, heads)`: "token width" → the update of
    every token. `qkv_weight` has the rows of the queries first, then those of the keys, then those of the values."""
    mistakes = wrong_heads() | wrong_projections()
    sizes = iter([(16, 12, 4), (5, 24, 3), (9, 8, 2)])

    def inputs() -> tuple:
        count, width, heads = next(sizes)
        qkv, output = torch.randn(3 * width, width + 1), torch.randn(width, width + 1)  # each with its bias
        return torch.randn(count, width), qkv[:, 1:] / width**0.25, qkv[:, 0], output[:, 1:], output[:, 0], heads

    return compare(answer, all_heads, inputs, mistakes, tolerance=1e-3)


def check_predictions(row_sum: Any, factor: Any, change: Any, scale: Any) -> Verdict:
    """The keys are doubled: the sum of a row of the attention. Queries and keys are doubled: the factor on the scores.
    One vector is added to all keys: the largest change of the attention. Width 48, 6 heads: the scale of the scores."""
    right = 8**-0.5
    wrong = {
        48**-0.5: "that is for the whole width; a head is narrower.",
        8**0.5: "the scores are divided by this: give its inverse.",
        1 / 8: "the square root is missing.",
        1 / 48: "the square root is missing, and a head is narrower than the whole width.",
        8: "that is the width of a head: divide by its square root.",
        6**-0.5: "that is the number of heads.",
    }
    return all_of(
        row_sum=number(
            row_sum,
            1,
            {
                2: "the softmax comes after the scores and divides by the row's sum.",
                0.5: "the softmax comes after the scores and divides by the row's sum.",
                16: "all sixteen rows together sum to that.",
            },
        ),
        factor=number(
            factor,
            4,
            {
                2: "that is the effect of one of the two alone.",
                1: "longer vectors, larger dot products.",
                8: "a dot product has two factors, and each of them doubles.",
                16: "a dot product has two factors, and each of them doubles: 2 · 2.",
            },
        ),
        change=number(
            change, 0, {1: "each score of a row grows by the same number: what does the softmax do with it?"}
        ),
        scale=number(
            scale,
            right,
            wrong,
            "all four are right. (So the bias of the keys has no effect: it adds the same vector to all keys.)",
        ),
    )


def check_query_independent(answer: Callable[[Attention], Any]) -> Verdict:
    """`answer(attention)` changes the weights so that all tokens get the same update, whatever their queries are. The
    update still depends on the sequence."""
    for _ in range(ROUNDS):
        attention = Attention(12, 4)
        before = {name: weight.clone() for name, weight in attention.state_dict().items()}
        scale = attention.scale
        try:
            with torch.no_grad():
                returned = answer(attention)
                attention = returned if isinstance(returned, Attention) else attention
                first, second = (attention(torch.randn(16, 12), return_attention=True)[0] for _ in range(2))
        except Exception as problem:  # whatever the reader's code may do
            return from_exception(problem)
        after = attention.state_dict()
        if after.keys() != before.keys():
            return OTHER_MODULES
        if attention.scale is scale and all(torch.equal(after[name], before[name]) for name in before):
            return NOTHING_CHANGED
        if not (first.shape == second.shape == (16, 12) and first.isfinite().all() and second.isfinite().all()):
            return Verdict(False, "the updates should be 16×12 finite values, and are not.")
        gap = max_abs_diff(first, first.mean(dim=0, keepdim=True).expand_as(first))
        if gap > 1e-5:
            return Verdict(False, f"the 16 tokens still get different updates: they differ by up to {gap:.2g}.")
        if max_abs_diff(first, second) < 1e-5:
            return Verdict(
                False,
                "all tokens get the same update, but it no longer depends on the patch. Leave the values and the "
                "output projection as they are.",
            )
    return Verdict(True, "right: every token gets the same update, and it still depends on the patch.")
