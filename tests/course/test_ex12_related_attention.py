"""The checks of 12_related_attention detect wrong answers and say what is wrong."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from titn_lib.course import ex12_related_attention as exercise
from titn_lib.models.layers import TransformerLayer
from titn_lib.models.related.revit import ResidualLayer


def by_loop(scores, alpha, first=1.0, share=None):
    carried = scores[0] * first
    out = [carried]
    for layer in range(1, len(scores)):
        carried = alpha * scores[layer] + (1 - alpha if share is None else share) * carried
        out.append(carried)
    return torch.stack(out)


def unrolled(scores, alpha):
    """Every layer's A as a sum over all layers up to it."""
    layers = range(len(scores))
    weights = torch.tensor([[alpha * (1 - alpha) ** (n - m) if m <= n else 0.0 for m in layers] for n in layers])
    weights[:, 0] /= alpha
    return torch.einsum("nm,mhqk->nhqk", weights, scores)


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (by_loop, "✓"),
        (unrolled, "✓"),
        (lambda s, a: by_loop(s, 1 - a), "α and 1 − α are swapped"),
        (lambda s, a: torch.cat([s[:1], a * s[1:] + (1 - a) * s[:-1]]), "the previous layer's own scores"),
        (lambda s, a: by_loop(s, a, first=a), "it has no previous layer"),
        (lambda s, a: by_loop(s, a, share=0), "scaled down"),
        (lambda s, a: by_loop(s, a, share=1), "added with weight 1"),
        (lambda s, a: by_loop(s.softmax(-1), a), "before mixing"),
        (lambda s, a: by_loop(s, a).softmax(-1), "the softmax is applied"),
        (lambda s, a: s, "nothing is mixed"),
        (lambda s, a: 2 * s, "✗ the shape is right, the values are off"),
        (lambda s, a: torch.cat([s[:1], a * s[1:] + (1 - a) * s[:1]]), "with the first layer's scores"),
        (lambda s, a: by_loop(s, a)[-1], "the shape is"),
        (lambda s, a: list(by_loop(s, a)), "✓"),  # without `stack`
        (lambda s, a: by_loop(s.double(), a), "✓"),
        (lambda s, a: s[9], "it stopped with IndexError"),
        (lambda s, a: ..., "not written yet"),
        (lambda s, a: None, "it returns None"),
    ],
)
def test_carry(answer, says, expect):
    expect(says, exercise.check_carry, answer)


def test_the_library_carries_so():
    """What ReViT's layers pass on, where all have the same tokens."""
    layers = [ResidualLayer(TransformerLayer(8, heads=2), first=index == 0) for index in range(3)]
    tokens = torch.randn(5, 8)
    with torch.no_grad():
        layers[0].alpha.fill_(0.3)
        carried, own = [layers[0](tokens)[0]], []
        for layer in layers[1:]:
            carried.append(layer(carried[-1]._replace(tokens=tokens))[0])
        for layer in layers:
            query, key, _ = layer.attn.qkv(layer.attention_norm(tokens)).view(5, 3, 2, 4).permute(1, 2, 0, 3)
            own.append(query @ key.mT / 2)
    expected = torch.stack([one.scores for one in carried])
    torch.testing.assert_close(exercise.carry(torch.stack(own), 0.3), expected)


@pytest.mark.parametrize(
    ("answers", "says"),
    [
        ((0.125, 16.5, 16, 272), "✓ all four"),
        ((torch.tensor(0.125), 33 / 2, 16.0, 17 * 16), "✓"),
        ((0.5**3, np.float32(16.5), torch.tensor(16), np.int64(272)), "✓"),
        ((0.13, 16.5, 16, 272), "✓"),  # two digits
        ((0.0625, 16.5, 16, 272), "without α: only the three steps"),
        ((0.25, 16.5, 16, 272), "the weight of S_3"),
        ((0.5, 16.5, 16, 272), "the weight of S_4"),
        ((0, 16.5, 16, 272), "A_2 contains S_1"),
        ((12.5, 16.5, 16, 272), "per cent"),
        ((0.125, 16, 16, 272), "The denominator costs"),
        ((0.125, 17, 16, 272), "no integer"),
        ((0.125, 33, 16, 272), "both costs have the factor 2"),
        ((0.125, 256, 16, 272), "divide by N·d"),
        ((0.125, 16.5, 64, 272), "that is softmax's"),
        ((0.125, 16.5, 32, 272), "the smaller number counts"),
        ((0.125, 16.5, 16, 256), "needs the second one"),
        ((0.125, 16.5, 16, 16), "that is the second bracket"),
        ((0.125, 16.5, 16, 512), "a sum of rows"),
        ((0.125, 16.5, 16, 1024), "doesn't depend on their number"),
        ((0.125, 16.5, 16, 2048), "those are keys and values"),
        ((0.125, 16.5, 16, 4096), "never computed"),
        ((0.125, 16.5, 16, 300), "300 is too large"),
        ((0.125, 16.5, 16, ...), "not written yet"),
        ((0.125, "all", 16, 272), "a number was asked for"),
    ],
)
def test_numbers(answers, says):
    assert says in repr(exercise.check_numbers(*answers))


def test_the_numbers_are_what_tensors_say():
    tokens, width = 64, 16
    query, key = (F.elu(torch.randn(tokens, width, dtype=torch.float64)) + 1 for _ in range(2))
    rank = torch.linalg.matrix_rank(query @ key.T)
    even = next(n / 2 for n in range(1, 200) if 2 * (n / 2) ** 2 * width >= 2 * (n / 2) * width**2 + (n / 2) * width)
    one = torch.zeros(4, 1, 1, 1)
    one[0] = 1
    summary, total = key.T @ torch.randn(tokens, width, dtype=torch.float64), key.sum(dim=0)
    values = summary.numel() + total.numel()
    assert exercise.check_numbers(by_loop(one, 0.5)[3], even, int(rank), values).right


@pytest.mark.parametrize(
    ("phi", "says"),
    [
        (lambda x: x, "✓"),
        (torch.tanh, "✓"),
        (F.elu, "✓"),
        (lambda x: F.elu(x) + 1, "no weight is negative"),
        (torch.exp, "no weight is negative"),
        (lambda x: -torch.exp(x), "no weight is negative"),  # minus times minus
        (torch.relu, "no weight is negative"),
        (torch.ones_like, "no weight is negative"),
        (lambda x: 1 - 1.001 * (x[:, :1] > 1).float(), "some weights are negative, but too small"),
        (lambda x: torch.exp(1000 * x), "infinite or not a number"),
        (torch.log, "infinite or not a number"),
        (lambda x: x.sum(), "φ returns Tensor with a single value; a row for each token"),
        (lambda x: x.sum(-1), "(64, 4) became (64,)"),
        (lambda x: x.double(), "✓"),
        (lambda x: x.sign().long(), "✓"),
        (lambda x: x.numpy(), "✓"),
        (lambda x: x.tolist(), "✓"),
        (lambda x: x + 1j, "φ returns complex Tensor"),
        (lambda x: 1 / 0, "it stopped with ZeroDivisionError"),
        (lambda x: x[:5], "(64, 4) became (5, 4)"),
        (lambda x: torch.cat([x, -x], dim=-1), "✓"),  # as wide as it likes
        (lambda x: 3, "φ returns int"),
        (lambda x: ..., "not written yet"),
        (lambda x: None, "it returns None"),
    ],
)
def test_feature_map(phi, says, expect):
    expect(says, exercise.check_feature_map, phi)


@pytest.mark.parametrize("phi", [F.gelu, F.silu, lambda x: x + 1, lambda x: F.elu(x) + 0.5])
def test_a_feature_map_is_judged_alike_every_time(phi):
    assert len({repr(exercise.check_feature_map(phi)) for _ in range(3)}) == 1
    assert exercise.check_feature_map(phi).right


@pytest.mark.parametrize(("sign", "says"), [(1, "above all values"), (-1, "below all values")])
def test_feature_map_says_on_which_side(monkeypatch, sign, says):
    """Values 1 and 0: every token weights them with 2 and −1, or with −1 and 2."""
    drawn = torch.zeros(3, 64, 4)
    drawn[2, 0] = 1
    table = torch.zeros(64, 64)
    table[:, 0] = 2 if sign > 0 else -1
    table[:, 1] = 1 - table[0, 0]
    monkeypatch.setattr(exercise.torch, "randn", lambda *_, **__: drawn.clone())
    features = iter([table, torch.eye(64)] * exercise.DRAWS)
    verdict = exercise.check_feature_map(lambda x: next(features))
    assert verdict.right
    assert says in repr(verdict)
