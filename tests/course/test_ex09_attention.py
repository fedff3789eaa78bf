"""The checks of 09_attention see wrong answers and say what is wrong."""

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr
from torch.nn import functional as F

from titn_lib import create_model
from titn_lib.course import ex09_attention as exercise
from titn_lib.interpret.attribution import rollout
from titn_lib.interpret.faithfulness import randomize_weights, rank_correlation, sum_cells


def by_loops(attention):
    tokens = attention.shape[-1]
    rolled = torch.eye(tokens)
    for block in attention:
        step = torch.zeros(tokens, tokens)
        for head in block:
            step += head / len(block)
        step += torch.eye(tokens)
        step /= step.sum(dim=1, keepdim=True)
        rolled = step @ rolled
    return rolled


def chain(steps, first=None):
    rolled = torch.eye(6) if first is None else first
    for step in steps:
        rolled = step @ rolled
    return rolled


I = torch.eye(6)  # noqa: E741


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (by_loops, "✓"),
        (lambda a: rollout(list(a)), "✓"),
        (lambda a: torch.linalg.multi_dot([(step.mean(0) + I) / 2 for step in a.flip(0)]), "✓"),
        (lambda a: chain(a.mean(1)), "the residual is left out: a token also keeps"),
        (lambda a: chain(a.mean(1) + I), "not normalized to sum to 1"),
        (lambda a: chain((a.mean(1) + I).flip(0) / 2), "wrong order: the last one stands on the left"),
        (lambda a: chain(a.mean(1).flip(0)), "left out, and the blocks are multiplied in the wrong order"),
        (lambda a: chain([(s + I) / (s + I).sum(0) for s in a.mean(1)]), "columns are normalized to sum to 1"),
        (lambda a: chain([(s + I) / (s + I).sum(1, keepdim=True) for s in a.amax(1)]), "the maximum over heads"),
        (lambda a: torch.stack([chain((a[:, h] + I) / 2) for h in range(3)]).mean(0), "rolled out alone"),
        (lambda a: (chain(a.mean(1)) + I) / 2, "once at the end"),
        (lambda a: (a[-1].mean(0) + I) / 2, "only the last block"),
        (lambda a: ((a.mean(1) + I) / 2).prod(0), "element by element"),
        (lambda a: ((a.mean(1) + I) / 2).mean(0), "the blocks are averaged"),
        (lambda a: a.mean(1), "the shape is"),
        (lambda a: chain(a.mean(1)) ** 2, "✗ the shape is right, the values are off"),
        (lambda a: ..., "not written yet"),
        (lambda a: a[9], "it stopped with IndexError"),
    ],
)
def test_rollout(answer, message, expect):
    expect(message, exercise.check_rollout, answer)


@pytest.mark.parametrize(
    ("answers", "message"),
    [
        ((31 / 32 / 18, 1 / 32 + 31 / 32 / 18), "✓"),
        ((torch.tensor((1 - 0.5**5) / 18), 0.5**5 + (1 - 0.5**5) / 18), "✓"),
        ((1 / 18, 0.1), "attention alone"),
        ((1 / 18**5, 0.1), "still sum to 1"),
        ((1 / 36, 0.1), "a single block; there are five"),
        ((31 / 32 / 17, 0.1), "all 18 tokens"),
        ((31 / 32 / 18, 1 / 32), "it also attends to itself"),
        ((31 / 32 / 18, 31 / 32 / 18), "the token itself also keeps"),
        ((31 / 32 / 18, 0.5 + 1 / 36), "a single block; there are five"),
        ((0.0538, 0.0851), "✓"),
        ((0.054, 0.085), "✓"),
        ((0.05, 0.085), "too small"),
        ((5.38, 0.085), "in percent"),
        ((0.9, 0.9), "too large"),
        ((..., 0.1), "not written yet"),
        (("a lot", 0.1), "a number was asked for"),
    ],
)
def test_uniform(answers, message):
    assert message in repr(exercise.check_uniform(*answers))


def test_the_check_agrees_with_the_rollout_of_uniform_attention():
    rolled = rollout([torch.full((1, 18, 18), 1 / 18, dtype=torch.float64)] * 5)
    assert exercise.check_uniform(rolled[0, 3], rolled[0, 0]).right


def moved(function, model, images, blocks=None, mean=True):
    other = randomize_weights(model, model.config.depth + 1 if blocks is None else blocks, seed=3)
    correlation = rank_correlation(sum_cells(function(model, images), 2), sum_cells(function(other, images), 2))
    return correlation.mean() if mean else correlation


def one_by_one(function, model, images):
    return torch.stack([moved(function, model, image[None]) for image in images]).mean()


def by_cosine(function, model, images):
    other = randomize_weights(model, model.config.depth + 1, seed=3)
    return F.cosine_similarity(*(sum_cells(function(m, images), 2).flatten(1) for m in (model, other))).mean()


def same_heads(function, model, images):
    other = randomize_weights(model, model.config.depth + 1, seed=3)
    other.heads.load_state_dict(model.heads.state_dict())
    return rank_correlation(sum_cells(function(model, images), 2), sum_cells(function(other, images), 2)).mean()


def with_correlation(correlation):
    """`moved` with another measure than the rank correlation of each image, averaged."""

    def answer(function, model, images):
        other = randomize_weights(model, model.config.depth + 1, seed=3)
        return correlation(*(sum_cells(function(one, images), 2) for one in (model, other)))

    return answer


def pearson(a, b):
    return torch.stack([torch.corrcoef(torch.stack(pair))[0, 1] for pair in zip(a, b, strict=True)]).mean()


def by_scipy(a, b):
    return np.mean([spearmanr(x, y).statistic for x, y in zip(a, b, strict=True)])


def spoil(function, model, images):
    before = function(model, images)
    for parameter in model.parameters():
        parameter.data.normal_()
    return rank_correlation(sum_cells(before, 2), sum_cells(function(model, images), 2)).mean()


@pytest.mark.parametrize(
    ("answer", "suspect", "message"),
    [
        (moved, "b", "✓"),
        (lambda f, m, x: float(moved(f, m, x)), "map_b", "✓"),
        (moved, "B ", "✓"),
        (moved, "a", "map_a changes with the weights"),
        (moved, "c", "map_c changes with the weights"),
        (moved, "d", "none of a, b, c"),
        (moved, 7, "none of a, b, c"),
        (moved, ..., "moved is right. Now use it"),
        (lambda f, m, x: moved(f, m, x, blocks=0), "b", "the blocks kept their weights"),
        (lambda f, m, x: moved(f, m, x, blocks=2), "b", "the pixel embedding isn't"),
        (lambda f, m, x: moved(f, m, x, blocks=5), "b", "the pixel embedding isn't"),  # the notebook's own depth
        (lambda f, m, x: rank_correlation(*[sum_cells(f(m, x), 2)] * 2).mean(), "b", "the same weights"),
        (lambda f, m, x: 1 - moved(f, m, x), "b", "it should be 1"),
        (lambda f, m, x: -moved(f, m, x), "b", "it should be 1"),
        (lambda f, m, x: moved(f, m, x, mean=False), "b", "one number was asked for"),
        (lambda f, m, x: "little", "b", "one number was asked for"),
        (lambda f, m, x: f(m), "b", "it stopped with TypeError"),
        (lambda f, m, x: ..., "b", "not written yet"),
        (lambda f, m, x: None, "b", "it returns None"),
        (spoil, "b", "have changed: use the copy"),
        (one_by_one, "b", "✓"),
        (lambda f, m, x: moved(f, m, x, mean=False).sum(), "b", "moved gives 4.00; it should be 1"),
        (lambda f, m, x: 100 * moved(f, m, x), "b", "moved gives 100.00; it should be 1"),
        (lambda f, m, x: moved(f, randomize_weights(m, m.config.depth + 1, seed=8), x), "b", "is never used"),
        (same_heads, "b", "the heads kept their weights"),
        (by_cosine, "b", "Is it the *rank* correlation?"),
        (with_correlation(pearson), "b", "Is it the *rank* correlation?"),
        (with_correlation(lambda a, b: rank_correlation(a.flatten()[None], b.flatten()[None])), "b", "each one's own"),
        (with_correlation(lambda a, b: rank_correlation(a, b).abs().mean()), "b", "each one's own correlation"),
        (with_correlation(lambda a, b: rank_correlation(a, b).median()), "b", "each one's own correlation"),
        (with_correlation(lambda a, b: rank_correlation(a.mean(0, True), b.mean(0, True))), "b", "each one's own"),
        (with_correlation(by_scipy), "b", "✓"),
        (lambda f, m, x: torch.zeros(()), "b", "moved gives 0.00; it should be 1"),
        (moved, torch.tensor(1), "none of a, b, c"),
        (lambda f, m, x: moved(lambda *a: f(*a).mean(dim=0, keepdim=True), m, x), "b", "each one's own correlation"),
        (lambda f, m, x: moved(f, m, x[:1]), "b", "each one's own correlation"),
    ],
)
def test_suspect(answer, suspect, message, expect):
    expect(message, exercise.check_suspect, answer, suspect, slow=True)


def test_only_map_b_ignores_the_weights():
    model = create_model("titn_nano", in_channels=1, image_size=(16, 16), depth=2).eval()
    images = torch.randn(3, 1, 16, 16)
    still = {name: float(moved(getattr(exercise, f"map_{name}"), model, images)) for name in "abc"}
    assert still["b"] > 0.999
    assert max(still["a"], still["c"]) < 0.9
