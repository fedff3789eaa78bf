"""The checks of 08_ablations detect wrong answers and say what is wrong."""

import math

import numpy as np
import pytest
import torch

from titn_lib.course import ex08_ablations as exercise


def by_hand(change, base):
    squares = [sum((x - sum(runs) / len(runs)) ** 2 for x in runs) for runs in (change, base)]
    variances = [square / (len(runs) - 1) / len(runs) for square, runs in zip(squares, (change, base), strict=True)]
    return torch.stack([sum(change) / len(change) - sum(base) / len(base), sum(variances) ** 0.5])


def by_numpy(change, base):
    change, base = change.numpy(), base.numpy()
    error = np.sqrt(change.var(ddof=1) / len(change) + base.var(ddof=1) / len(base))
    return np.array([change.mean() - base.mean(), error])


def with_error(error):
    return lambda a, b: (a.mean() - b.mean(), error(a, b))


def standard_error(a, b):
    return (a.var() / len(a) + b.var() / len(b)) ** 0.5


def pooled(a, b):
    squares = sum(((x - x.mean()) ** 2).sum() for x in (a, b))
    return (squares * (1 / len(a) + 1 / len(b)) / (len(a) + len(b) - 2)) ** 0.5


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (by_hand, "✓"),
        (by_numpy, "✓"),
        (with_error(standard_error), "✓"),  # a pair of tensors
        (lambda a, b: [float(value) for value in by_hand(a, b)], "✓"),
        (lambda a, b: by_hand(a.double(), b.double()), "✓"),
        (with_error(lambda a, b: (a.var(correction=0) / len(a) + b.var(correction=0) / len(b)) ** 0.5), "one less"),
        (with_error(lambda a, b: (a.var() + b.var()) ** 0.5), "standard deviation of single runs"),
        (with_error(lambda a, b: a.std() / len(a) ** 0.5 + b.std() / len(b) ** 0.5), "add their squares"),
        (with_error(lambda a, b: a.std() / len(a) ** 0.5), "baseline is a mean of few runs, too"),
        (with_error(lambda a, b: (a.var() / (len(a) - 1) + b.var() / (len(b) - 1)) ** 0.5), "n − 1 twice"),
        (with_error(lambda a, b: ((a.var() + b.var()) / 3) ** 0.5), "always three seeds"),
        (with_error(pooled), "pooled"),
        (with_error(lambda a, b: 1.96 * standard_error(a, b)), "leave the factor of 1.96 out"),
        (with_error(lambda a, b: (a.mean() - b.mean()) / standard_error(a, b)), "the second value is t"),
        (with_error(lambda a, b: (a.std() / len(a) + b.std() / len(b)) ** 0.5), "add variances"),
        (with_error(lambda a, b: standard_error(a, b) ** 2), "the square root is left out"),
        (lambda a, b: by_hand(a, b).flip(0), "in the wrong order"),
        (lambda a, b: by_hand(b, a), "or has lost its sign"),
        (lambda a, b: by_hand(a, b).abs(), "or has lost its sign"),
        (lambda a, b: (a.quantile(0.5) - b.quantile(0.5), standard_error(a, b)), "the medians are compared"),
        (lambda a, b: a.mean() - b.mean(), "it returns Tensor with a single value; a tensor of shape (2,)"),
        (lambda a, b: (a.mean(), b.mean(), 0), "the shape is (3,); it should be (2,)"),
        (lambda a, b: (a, b), "✗"),
        (lambda a, b: a - b, "✗"),
        (lambda a, b: {"difference": a.mean() - b.mean()}, "it returns dict of 1"),
        (lambda a, b: ..., "not written yet"),
        (lambda a, b: None, "it returns None"),
    ],
)
def test_gap(answer, message, expect):
    expect(message, exercise.check_gap, answer)


@pytest.mark.parametrize(
    ("answers", "message"),
    [
        ((0.95**17, 12), "✓"),
        ((torch.tensor(0.95) ** 17, 12.0), "✓"),
        ((0.418, 12), "✓"),
        ((0.42, 12), "✓"),
        ((0.41, 12), "too small"),
        ((1 - 0.95**17, 12), "at least one"),
        ((42, 12), "in percent"),
        ((41.8, 12), "in percent"),
        ((0.15, 12), "multiply those of not passing"),
        ((0.95, 12), "one change alone"),
        ((0.95**17, 6), "by √2 only"),
        ((0.95**17, 9), "but of 2 and not of 3"),
        ((0.95**17, 4), "but of three"),
        ((0.95**17, 12.1), "too large"),
        ((..., 12), "✗ 1 of 2 right; `none`: not written yet"),
        ((None, ...), "✗ not written yet"),
        (("0.418", 12), "a number was asked for"),
    ],
)
def test_probabilities(answers, message):
    assert message in repr(exercise.check_probabilities(*answers))


@pytest.mark.parametrize(
    ("report", "message"),
    [
        (lambda change, base: change.max() - base.min(), "✓ done"),
        (lambda change, base: round(float(change.max() - base.min()), 2), "✓ done"),
        (lambda change, base: change.float().max() - base.float().min(), "✓ done"),
        (lambda change, base: change.numpy().max() - base.numpy().min(), "✓ done"),
        (lambda change, base: max(change) - base.mean(), "✓ done"),
        (lambda change, base: change.sort().values[1:].mean() - base.mean(), "✓ done"),  # the worst is left out
        (lambda change, base: max(change[0], change[1], change[2]) - min(base[0], base[1]), "✓ done"),
        (lambda change, base: change.mean() - base.mean(), "About half: that is what an honest report gives"),
        (lambda change, base: change[0] - base[0], "About half"),
        (lambda change, base: (change.mean() - base.mean()).abs() + 1, "that is invented"),
        (lambda change, base: max(1e-9, change.mean() - base.mean()), "that is invented"),
        (lambda change, base: math.nan, "that is invented"),
        (lambda change, base: math.inf, "that is invented"),
        (lambda change, base: 0.0, "though from a run of the baseline to a run of the change it is between"),
        (lambda change, base: change.min() - base.max(), "% of the tables; make it three of five."),
        (lambda change, base: change - base, "one number was asked for"),
        (lambda change, base: change.max() > base.mean(), "one number was asked for: the improvement in points"),
        (lambda change, base: bool(change.max() > base.mean()), "one number was asked for: the improvement"),
        (lambda change, base: f"{change.max() - base.min():.1f}", "it returns str"),
        (lambda change, base: change.to("meta").max(), "one number was asked for"),
        (lambda change, base: ..., "not written yet"),
        (lambda change, base: None, "it returns None"),
        (lambda change, base: change[7], "it stopped with IndexError"),
    ],
)
def test_report(report, message, expect):
    expect(message, exercise.check_report, report, slow=True)
