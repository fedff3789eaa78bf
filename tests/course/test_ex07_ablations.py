import re

import pytest
import torch

from titn_lib.course.ex07_ablations import check_gap, check_probabilities, check_report


def test_a_right_gap():
    def by_hand(change, base):
        squares = [sum((x - sum(runs) / len(runs)) ** 2 for x in runs) for runs in (change, base)]
        variances = [square / (len(runs) - 1) / len(runs) for square, runs in zip(squares, (change, base), strict=True)]
        return torch.stack([sum(change) / len(change) - sum(base) / len(base), sum(variances) ** 0.5])

    assert check_gap(by_hand).right
    assert not check_gap(lambda change, base: change.mean() - base.mean()).right
    assert "not written yet" in check_gap(lambda change, base: ...).message


@pytest.mark.parametrize(
    ("answer", "sentence"),
    [
        (lambda a, b: (a.var(correction=0) / len(a) + b.var(correction=0) / len(b)) ** 0.5, "one less"),
        (lambda a, b: (a.var() + b.var()) ** 0.5, "standard deviation of single runs"),
        (lambda a, b: a.std() / len(a) ** 0.5 + b.std() / len(b) ** 0.5, "add their squares"),
        (lambda a, b: a.std() / len(a) ** 0.5, "baseline is a mean of few runs, too"),
        (lambda a, b: (a.var() / (len(a) - 1) + b.var() / (len(b) - 1)) ** 0.5, "n − 1 twice"),
        (lambda a, b: ((a.var() + b.var()) / 3) ** 0.5, "always three seeds"),
        (
            lambda a, b: (
                (sum(((x - x.mean()) ** 2).sum() for x in (a, b)) * (1 / len(a) + 1 / len(b)) / (len(a) + len(b) - 2))
                ** 0.5
            ),
            "pooled",
        ),
    ],
)
def test_a_wrong_error_is_named(answer, sentence):
    verdict = check_gap(lambda a, b: torch.stack([a.mean() - b.mean(), answer(a, b)]))
    assert not verdict.right
    assert sentence in verdict.message


def test_a_lost_sign_is_seen_every_time():
    for _ in range(20):
        verdict = check_gap(
            lambda a, b: torch.stack([(a.mean() - b.mean()).abs(), (a.var() / len(a) + b.var() / len(b)) ** 0.5])
        )
        assert "or has lost its sign" in verdict.message


def test_probabilities():
    assert check_probabilities(0.95**17, 12).right
    assert "at least one" in check_probabilities(1 - 0.95**17, 12).message
    assert "by √2 only" in check_probabilities(0.95**17, 6).message
    assert "but of three" in check_probabilities(0.95**17, 4).message
    assert all("rounded" in check_probabilities(rounded, 12).message for rounded in (0.42, 0.418, 0.4181))
    assert all("in percent" in check_probabilities(share, 12).message for share in (42, 41.8, 100 * 0.95**17))
    assert "too small" in check_probabilities(0.41, 12).message
    assert "not written yet" in check_probabilities(..., 12).message


@pytest.mark.parametrize(
    "report",
    [
        lambda change, base: change.max() - base.min(),
        lambda change, base: change.max() - base.mean(),
        lambda change, base: change.sort().values[1:].mean() - base.mean(),  # the worst is left out
        lambda change, base: max(change[0], change[1], change[2]) - min(base[0], base[1]),
    ],
)
def test_a_dishonest_report(report):
    assert all(check_report(report).right for _ in range(4))


@pytest.mark.parametrize(
    ("report", "sentence"),
    [
        (lambda change, base: change.mean() - base.mean(), "About half: that is what an honest report gives"),
        (lambda change, base: change[0] - base[0], "About half"),
        (lambda change, base: (change.mean() - base.mean()).abs() + 1, "that is invented"),
        (lambda change, base: torch.tensor(float("nan")), "that is invented"),
        (lambda change, base: 0.0, "though from a run of the baseline to a run of the change it is between"),
        (lambda change, base: change.min() - base.max(), "in [0-9]% of the tables"),
        (lambda change, base: change - base, "one number was asked for"),
        (lambda change, base: change.max() > base.mean(), "one number was asked for: the improvement in points"),
        (lambda change, base: bool(change.max() > base.mean()), "one number was asked for: the improvement"),
        (lambda change, base: ..., "not written yet"),
        (lambda change, base: change[7], "it stopped with IndexError"),
    ],
)
def test_a_report_that_does_not_do(report, sentence):
    verdict = check_report(report)
    assert not verdict.right
    assert re.search(sentence, verdict.message), verdict.message
