"""Exercises of 02_inner_attention."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from einops import rearrange
from torch import Tensor

from titn_lib.course.checks import (
    NOTHING_CHANGED,
    ROUNDS,
    Verdict,
    all_of,
    compare,
    from_exception,
    max_abs_diff,
    number,
)
from titn_lib.models.layers import Attention


def one_head(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    return (query @ key.T / query.shape[-1] ** 0.5).softmax(dim=-1) @ value


def check_one_head(answer: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Verdict:
    """`answer(query, key, value)`: three times "token width" → what every token reads, "token width"."""

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
        "the scores are not divided by the root of the width": no_scale,
        "the scores are divided by the width and not by its root": no_root,
        "the scores are divided by the root of the number of tokens; it is the width that counts": root_of_tokens,
        "the scores are multiplied by the root of the width; divide": multiplied,
        "the scores are divided by √3, whatever the width; take the width from the query's shape": always_3,
        "the shares are divided by the root of the width; it is the scores, before the softmax": scale_last,
        "the softmax goes over the queries, so that columns sum to 1; it is the rows (dim=-1) that must": wrong_axis,
        "queries and keys are swapped": lambda q, k, v: one_head(k, q, v),
        "the attention is transposed: row i has the shares that query i reads": lambda q, k, v: (
            (q @ k.T / q.shape[-1] ** 0.5).softmax(-1).T @ v
        ),
        "the keys are mixed and not the values": lambda q, k, v: one_head(q, k, k),
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
    """Attention as it should be; the last five arguments are ways to get it wrong."""
    query, key, value = rearrange(tokens @ qkv_weight.T + qkv_bias, cut, three=3, head=heads)
    query, key = (key, query) if swap else (query, key)
    scores = query @ key.transpose(-2, -1) * (query.shape[-1] ** -0.5 if scale is None else scale)
    answers = rearrange(scores.softmax(dim=axis) @ value, join).reshape(tokens.shape)
    return answers @ output_weight.T + output_bias


def check_all_heads(answer: Callable[[Tensor, Tensor, Tensor, Tensor, Tensor, int], Tensor]) -> Verdict:
    """`answer(tokens, qkv_weight, qkv_bias, output_weight, output_bias, heads)`: "token width" → its update, with
    queries, keys and values in one matrix, one below the other."""

    def whole_width(tokens: Tensor, *rest: Any) -> Tensor:
        return all_heads(tokens, *rest, scale=tokens.shape[-1] ** -0.5)

    def one(tokens: Tensor, weight: Tensor, bias: Tensor, out: Tensor, out_bias: Tensor, heads: int) -> Tensor:
        return all_heads(tokens, weight, bias, out, out_bias, heads=1)

    def no_output(tokens: Tensor, weight: Tensor, bias: Tensor, out: Tensor, out_bias: Tensor, heads: int) -> Tensor:
        return all_heads(tokens, weight, bias, torch.eye(len(out)), 0 * out_bias, heads)

    def reshaped(tokens: Tensor, weight: Tensor, bias: Tensor, out: Tensor, out_bias: Tensor, heads: int) -> Tensor:
        q, k, v = (part.reshape(heads, len(tokens), -1) for part in (tokens @ weight.T + bias).chunk(3, dim=-1))
        answers = (q @ k.transpose(-2, -1) / q.shape[-1] ** 0.5).softmax(dim=-1) @ v
        return answers.reshape(tokens.shape) @ out.T + out_bias

    def transposed(tokens: Tensor, weight: Tensor, bias: Tensor, out: Tensor, out_bias: Tensor, heads: int) -> Tensor:
        return all_heads(tokens, weight, bias, out.T, out_bias, heads)

    def biases(first: int, last: int) -> Callable[..., Tensor]:
        def keep(tokens: Tensor, weight: Tensor, bias: Tensor, out: Tensor, out_bias: Tensor, heads: int) -> Tensor:
            return all_heads(tokens, weight, first * bias, out, last * out_bias, heads)

        return keep

    def among_heads(tokens: Tensor, weight: Tensor, bias: Tensor, out: Tensor, out_bias: Tensor, heads: int) -> Tensor:
        q, k, v = (part.unflatten(-1, (heads, -1)) for part in (tokens @ weight.T + bias).chunk(3, dim=-1))
        answers = (q @ k.transpose(-2, -1) / q.shape[-1] ** 0.5).softmax(dim=-1) @ v
        return answers.flatten(1) @ out.T + out_bias

    columns = "the softmax goes over the queries, so that columns sum to 1; it is the rows (dim=-1) that must"
    scattered = "token (three width head) -> three head token width"
    head_first = "token (head three width) -> three head token width"
    interleaved = "head token width -> token (width head)"
    as_they_lie = "head token width -> head token width"
    mistakes: dict[str, Callable[..., Any]] = {
        "the scores are not divided by the root of the head's width": partial(all_heads, scale=1.0),
        "the scores are divided by the root of the whole width; each head has fewer numbers": whole_width,
        columns: partial(all_heads, axis=-2),
        "the softmax goes over the heads; it is the keys (dim=-1) that must compete": partial(all_heads, axis=-3),
        "queries and keys are swapped": partial(all_heads, swap=True),
        "there is one head, whatever `heads` says": one,
        "the heads of a token attend to each other: bring the heads to the front, so that tokens do": among_heads,
        "a head takes numbers that lie apart and not neighbors": partial(all_heads, cut=scattered, join=interleaved),
        "each head's rows of `qkv_weight` are taken to lie together; all queries' rows come first, then all keys', "
        "then all values'": partial(all_heads, cut=head_first),
        "queries, keys and values are cut into heads by a reshape alone; split each token's numbers first, then bring "
        "the heads to the front": reshaped,
        "the heads' answers are interleaved and not put side by side": partial(all_heads, join=interleaved),
        "the heads' answers are only reshaped; a token's answers must first come together, then lie side by side": (
            partial(all_heads, join=as_they_lie)
        ),
        "the output matrix is left out": no_output,
        "the output matrix is not transposed": transposed,
        "the biases are left out": biases(0, 0),
        "the bias of queries, keys and values is left out": biases(0, 1),
        "the output's bias is left out": biases(1, 0),
    }
    sizes = iter([(16, 12, 4), (5, 24, 3), (9, 8, 2)])

    def inputs() -> tuple:
        count, width, heads = next(sizes)
        qkv, output = torch.randn(3 * width, width + 1), torch.randn(width, width + 1)  # each with its bias
        return torch.randn(count, width), qkv[:, 1:] / width**0.25, qkv[:, 0], output[:, 1:], output[:, 0], heads

    return compare(answer, all_heads, inputs, mistakes, tolerance=1e-3)


def check_predictions(row_sum: Any, factor: Any, change: Any, scale: Any) -> Verdict:
    """The keys are doubled: a row's sum. Queries and keys are doubled: the factor on the scores. One vector is added to
    all keys: the largest change of the attention. Width 48, 6 heads: what the scores are multiplied by."""
    right = 8**-0.5
    wrong = {
        48**-0.5: "that is the whole width's; a head has fewer numbers.",
        0.14: "that is the whole width's; a head has fewer numbers.",
        8**0.5: "the scores are divided by this: give its inverse.",
        1 / 8: "the root is missing.",
        6**-0.5: "that is the number of heads.",
    }
    return all_of(
        row_sum=number(row_sum, 1, {2: "the softmax comes after the scores, and divides by the row's sum."}),
        factor=number(
            factor, 4, {2: "that is what one of the two does alone.", 1: "longer arrows, larger dot products."}
        ),
        change=number(
            change, 0, {1: "each row of scores gets the same number everywhere: what does the softmax do with it?"}
        ),
        scale=number(
            scale,
            right,
            wrong,
            "all four are right. (So the bias of the keys does nothing at all: it adds one vector to all keys.)",
            within=0.02,  # two digits will do
        ),
    )


def check_deaf(answer: Callable[[Attention], Any]) -> Verdict:
    """`answer(attention)` changes the weights so that all tokens get the same update, whatever they ask, though other
    tokens in the sequence still make a difference."""
    for _ in range(ROUNDS):
        attention = Attention(12, 4)
        before = {name: weight.clone() for name, weight in attention.state_dict().items()}
        try:
            with torch.no_grad():
                returned = answer(attention)
                attention = returned if isinstance(returned, Attention) else attention
                one, other = (attention(torch.randn(16, 12), return_attention=True)[0] for _ in range(2))
        except Exception as problem:  # whatever the reader's code may do
            return from_exception(problem)
        after = attention.state_dict()
        if attention.scale == 3**-0.5 and all(torch.equal(after[name], before[name]) for name in before):
            return NOTHING_CHANGED
        if one.shape != other.shape or one.shape != (16, 12) or not (one.isfinite().all() and other.isfinite().all()):
            return Verdict(False, "the updates should be 16×12 finite numbers, and are not.")
        gap = max_abs_diff(one, one.mean(dim=0, keepdim=True).expand_as(one))
        if gap > 1e-5:
            return Verdict(False, f"the 16 pixels still get different updates: they differ by up to {gap:.2g}.")
        if max_abs_diff(one, other) < 1e-5:
            return Verdict(
                False,
                "all pixels get the same, but it is the same for every patch too: nothing is heard at all. Leave the "
                "values and the output matrix alone.",
            )
    return Verdict(True, "right: every pixel gets the same answer, and it still depends on what the pixels are.")
