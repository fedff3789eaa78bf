"""The checks of 02_inner_attention notice wrong answers and explain them."""

import math
from functools import partial

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from titn_lib.course import ex02_inner_attention as exercise
from titn_lib.models.layers import Attention


def loops(q, k, v):
    """One head, one query and one key at a time."""
    rows = []
    for query in q:
        scores = [math.exp(float(query @ key) / len(query) ** 0.5) for key in k]
        rows.append(sum(score / sum(scores) * value for score, value in zip(scores, v, strict=True)))
    return torch.stack(rows)


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (loops, "✓"),
        (F.scaled_dot_product_attention, "✓"),
        (lambda q, k, v: (q / q.shape[-1] ** 0.5 @ k.T).softmax(1) @ v, "✓"),
        (lambda q, k, v: F.scaled_dot_product_attention(q, k, v, scale=1.0), "square root of the width"),
        (lambda q, k, v: F.scaled_dot_product_attention(q, k, v, scale=1 / q.shape[1]), "not by its square root"),
        (lambda q, k, v: F.scaled_dot_product_attention(q, k, v, scale=q.shape[1] ** 0.5), "divide"),
        (lambda q, k, v: F.scaled_dot_product_attention(q, k, v, scale=len(q) ** -0.5), "number of tokens"),
        (lambda q, k, v: F.scaled_dot_product_attention(q, k, v, scale=3**-0.5), "divided by √3, whatever"),
        (
            lambda q, k, v: F.scaled_dot_product_attention(q, k, v, scale=1.0) / q.shape[1] ** 0.5,
            "weights are divided",
        ),
        (lambda q, k, v: (q @ k.T / q.shape[1] ** 0.5).softmax(0) @ v, "columns sum to 1"),
        (lambda q, k, v: F.scaled_dot_product_attention(k, q, v), "swapped"),
        (lambda q, k, v: F.scaled_dot_product_attention(q, k, k), "not of the values"),
        (lambda q, k, v: q @ k.T / q.shape[1] ** 0.5 @ v, "left out"),
        (lambda q, k, v: (q @ k.T).softmax(-1), "the shape is"),
        (lambda q, k, v: q @ k, "it stopped with RuntimeError"),
        (lambda q, k, v: torch.full_like(v, torch.nan), "not a number (nan)"),
        (lambda q, k, v: ..., "not written yet"),
    ],
)
def test_one_head(answer, message, expect):
    expect(message, exercise.check_one_head, answer)


def by_torch(tokens, weight, bias, out, out_bias, heads):
    layer = nn.MultiheadAttention(tokens.shape[1], heads)
    layer.load_state_dict(
        {"in_proj_weight": weight, "in_proj_bias": bias, "out_proj.weight": out, "out_proj.bias": out_bias}
    )
    return layer(tokens, tokens, tokens)[0]


def slices(tokens, weight, bias, out, out_bias, heads, scale=None, axis=-1, swap=False, join=torch.cat):
    q, k, v = (tokens @ weight.T + bias).chunk(3, dim=-1)
    q, k = (k, q) if swap else (q, k)
    width = tokens.shape[1] // heads
    outputs = []
    for head in range(heads):
        part = slice(head * width, (head + 1) * width)
        scores = q[:, part] @ k[:, part].T * (scale or width**-0.5)
        outputs.append(scores.softmax(axis) @ v[:, part])
    return join(outputs, dim=-1).reshape(tokens.shape) @ out.T + out_bias


def by_reshape(tokens, weight, bias, out, out_bias, heads):
    q, k, v = (x.reshape(heads, len(tokens), -1) for x in F.linear(tokens, weight, bias).chunk(3, 1))
    return F.linear(F.scaled_dot_product_attention(q, k, v).reshape(tokens.shape), out, out_bias)


def before_projection(tokens, weight, bias, out, out_bias, heads):
    """Each head projects its own slice of the tokens."""
    width = tokens.shape[1] // heads
    outputs = []
    for head in range(heads):
        part = slice(head * width, (head + 1) * width)
        q, k, v = (
            tokens[:, part] @ w[part, part].T + b[part] for w, b in zip(weight.chunk(3), bias.chunk(3), strict=True)
        )
        outputs.append(F.scaled_dot_product_attention(q, k, v))
    return torch.cat(outputs, dim=-1) @ out.T + out_bias


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (by_torch, "✓"),
        (slices, "✓"),
        (lambda *a: slices(*a, scale=1.0), "not divided by the square root of the head's width"),
        (lambda *a: slices(*a, scale=a[0].shape[1] ** -0.5), "whole width"),
        (lambda *a: slices(*a, axis=0), "columns sum to 1"),
        (lambda *a: slices(*a, swap=True), "swapped"),
        (lambda *a: slices(*a[:-1], 1), "there is one head"),
        (lambda *a: slices(*a, join=torch.stack), "interleaved"),
        (lambda *a: slices(*a, join=lambda outputs, dim: torch.stack(outputs)), "only reshaped"),
        (lambda t, w, b, o, p, h: slices(t, w, b, torch.eye(len(o)), 0 * p, h), "output projection is left out"),
        (lambda t, w, b, o, p, h: slices(t, w, b, o.T, p, h), "not transposed"),
        (lambda t, w, b, o, p, h: slices(t, w, 0 * b, o, 0 * p, h), "the biases are left out"),
        (lambda t, w, b, o, p, h: slices(t, w, 0 * b, o, p, h), "queries, keys and values is left out"),
        (lambda t, w, b, o, p, h: slices(t, w, b, o, 0 * p, h), "bias of the output projection is left out"),
        (by_reshape, "by a reshape alone"),
        (lambda *a: slices(*a) + a[0], "the tokens are added"),
        (before_projection, "split into heads before the projection"),
        (lambda *a: slices(a[0], *(torch.cat(x.chunk(3)[::-1]) for x in a[1:3]), *a[3:]), "values, keys, queries"),
        (lambda *a: slices(*a, scale=a[-1] ** -0.5), "square root of the number of heads"),
        (lambda *a: slices(*a) + 1, "the values are off by up to 1"),
        (lambda t, w, *_: t @ w, "it stopped with RuntimeError"),
        (lambda *a: None, "it returns None"),
    ],
)
def test_all_heads(answer, message, expect):
    expect(message, exercise.check_all_heads, answer)


def test_heads_that_are_cut_or_compared_wrongly():
    cut = {"cut": "t (three w head) -> three head t w", "join": "head t w -> t (w head)"}
    head_first = {"cut": "t (head three w) -> three head t w"}
    assert "split by heads first" in repr(exercise.check_all_heads(partial(exercise.all_heads, **head_first)))
    assert "far apart" in repr(exercise.check_all_heads(partial(exercise.all_heads, **cut)))
    assert "over the heads" in repr(exercise.check_all_heads(partial(exercise.all_heads, axis=0)))


@pytest.mark.parametrize(
    ("answers", "message"),
    [
        ((1, 4, 0, 8**-0.5), "✓"),
        ((torch.tensor(1.0), 4.0, 0.0, torch.tensor(1 / math.sqrt(8))), "✓"),
        ((2, 4, 0, 8**-0.5), "divides by the row's sum"),
        ((16, 4, 0, 8**-0.5), "all sixteen rows"),
        ((1, 16, 0, 8**-0.5), "2 · 2"),
        ((1, 4, 0, 8), "the width of a head"),
        ((1, 4, 0, 1 / 48), "the square root is missing, and"),
        ((1, 2, 1, 0.35), "✗ 2 of 4 right; `factor`"),
        ((1, 2, 0, 8**-0.5), "alone"),
        ((1, 4, 1, 8**-0.5), "grows by the same number"),
        ((1, 4, 0, 48**-0.5), "whole width"),
        ((1, 4, 0, 8**0.5), "inverse"),
        ((1, 4, 0, 0.354), "✓"),  # rounded
        ((1, 4, 0, 0.35), "✓"),
        ((1, 4, 0, 0.34), "too small"),
        ((1, 4, 0, 2.83), "inverse"),
        ((1, 4, 0, "an eighth"), "a number was asked for"),
        ((1, 4, 0, 0.125), "square root is missing"),
        ((1, 4, 0, 6**-0.5), "number of heads"),
        ((..., 4, 0, 8**-0.5), "not written yet"),
        ((1, "four", 0, 8**-0.5), "a number was asked for"),
    ],
)
def test_predictions(answers, message):
    assert message in repr(exercise.check_predictions(*answers))


def zero(rows, bias=True):
    def change(attention):
        attention.qkv.weight[rows] = 0
        if bias:
            attention.qkv.bias[rows] = 0

    return change


def no_scale(attention):
    attention.scale = 0.0


def mute(attention):
    attention.proj.weight.zero_()


def spoil(attention):
    attention.proj.weight.fill_(torch.nan)


def scale_for_each_head(attention):
    attention.scale = torch.zeros(4, 1, 1)


def without_bias(attention):
    attention.qkv = nn.Linear(12, 36, bias=False)


def another(attention):
    other = Attention(12, 4)
    zero(slice(12, 24))(other)
    return other


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (zero(slice(0, 12)), "✓"),
        (zero(slice(12, 24)), "✓"),
        (zero(slice(0, 12), bias=False), "✓"),  # all queries are the same: right, too
        (no_scale, "✓"),
        (another, "✓"),
        (scale_for_each_head, "✓"),
        (without_bias, "other modules than before"),
        (zero(slice(0, 6)), "still get different updates"),
        (zero(slice(24, 36)), "no longer depends on the patch"),
        (mute, "no longer depends on the patch"),
        (spoil, "finite"),
        (lambda attention: ..., "no weight has changed"),
        (lambda attention: None, "no weight has changed"),
        (lambda attention: attention.keys, "it stopped with AttributeError"),
    ],
)
def test_query_independent(answer, message, expect):
    expect(message, exercise.check_query_independent, answer)
