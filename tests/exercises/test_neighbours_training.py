"""The checks of 12_neighbours_training see wrong answers and say what is wrong."""

from math import log

import pytest
import torch
from torch.nn import functional as F

from titn_lib.exercises import neighbours_training as exercise
from titn_lib.neighbours.lacvit import contrastive_loss
from titn_lib.neighbours.mvit import relabelling_quality


def by_hand(z, y, d):
    p = z.exp() / z.exp().sum(-1, keepdim=True)
    new = y.clone()
    for i in range(len(y)):
        if p[i].max() - p[i, y[i]] > d:
            new[i] = p[i].argmax()
    return new


def changed_where(surer):
    return lambda z, y, d: torch.where(surer(z, z.softmax(-1), y, d), z.argmax(-1), y)


def of_label(table, y):
    return table[torch.arange(len(y)), y]


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (by_hand, "✓"),
        (changed_where(lambda z, p, y, d: p.amax(-1) - of_label(p, y) > d), "✓"),
        (changed_where(lambda z, p, y, d: z.amax(-1) - of_label(z, y) > d), "logits are compared"),
        (changed_where(lambda z, p, y, d: p.amax(-1) > d), "largest probability alone"),
        (changed_where(lambda z, p, y, d: p.topk(2).values.diff()[:, 0] < -d), "second likeliest"),
        (lambda z, y, d: z.argmax(-1), "however small its lead"),
        (changed_where(lambda z, p, y, d: p.amax(-1) - of_label(p, y) < d), "the wrong way round"),
        (changed_where(lambda z, p, y, d: z.softmax(0).amax(-1) - of_label(z.softmax(0), y) > d), "over pictures"),
        (lambda z, y, d: y, "no label is changed"),
        (lambda z, y, d: y + 1, "✗ the shape is right"),
        (lambda z, y, d: z, "✗ the shape is"),
        (lambda z, y, d: y[1000], "it stopped with IndexError"),
        (lambda z, y, d: ..., "not written yet"),
        (lambda z, y, d: None, "not written yet"),
    ],
)
def test_relabel(answer, says):
    assert says in repr(exercise.check_relabel(answer))


def test_the_counts_are_those_of_the_library_s_loss():
    labels = torch.arange(10).repeat_interleave(5).repeat(2)
    same = (labels[:, None] == labels).sum(dim=1)
    collapsed = contrastive_loss(F.normalize(torch.ones(100, 4)), labels).item()
    assert exercise.check_counts(same[0] - 1, 100 - same[0], 20 - 2, collapsed).right


@pytest.mark.parametrize(
    ("answers", "says"),
    [
        ((9, 90, 18, log(99)), "✓"), ((9, 90, 18, 4.6), "too large"), ((9, 90, 18, 4.595), "✓"),
        ((9, 90, 18, torch.tensor(4.595)), "✓"),
        ((10, 90, 18, 4.6), "not its own positive"), ((8, 90, 18, 4.6), "the other view of the same"),
        ((4, 90, 18, 4.6), "two views"), ((1, 90, 18, 4.6), "the labels add more"), ((9, 45, 18, 4.6), "two views"),
        ((9, 99, 18, 4.6), "of the anchor's class"), ((9, 100, 18, 4.6), "of the anchor's class"),
        ((9, 49, 18, 4.6), "and some are of"), ((9, 90, 90, 4.6), "of the other parts"), ((9, 90, 9, 4.6), "two views"),
        ((9, 90, 19, 4.6), "the anchor's other view"), ((9, 90, 20, 4.6), "the anchor's own picture"),
        ((9, 90, 18, 0), "an even share"), ((9, 90, 18, log(100)), "is left out"), ((9, 90, 18, log(90)), "as well"),
        ((9, 90, 18, log(10)), "How many"), ((9, 90, 18, log(11)), "outside the logarithm"),
        ((9, 90, 18, "low"), "a number was asked for"), ((9, 90, 18, 7), "too large"),
        ((9, 90, 18, ...), "not written"), ((..., 90, 18, 4.6), "not written yet"),
    ],
)  # fmt: skip
def test_counts(answers, says):
    assert says in repr(exercise.check_counts(*answers))


def test_the_repair_is_what_the_library_counts():
    true, given = torch.zeros(1000, dtype=torch.long), torch.zeros(1000, dtype=torch.long)
    given[:400] = 1
    new = given.clone()
    new[:330], new[330:350], new[400:410] = 0, 2, 1
    found = relabelling_quality(new, given, true)
    assert exercise.check_repair(found.precision, found.recall, (new == true).sum()).right


@pytest.mark.parametrize(
    ("answers", "says"),
    [
        ((330 / 360, 330 / 400, 920), "✓"), ((0.92, 0.825, 920), "✓"), ((350 / 360, 0.825, 920), "is not set right"),
        ((330 / 350, 0.825, 920), "count, too"), ((0.825, 0.92, 920), "that is the recall"),
        ((0.917, 350 / 400, 920), "20 of these"), ((0.917, 330 / 360, 920), "that is the precision"),
        ((0.917, 0.9, 920), "not all changes"), ((0.917, 0.825, 930), "ten that were right"),
        ((0.917, 0.825, 940), "to another is not right"), ((0.917, 0.825, 330), "600 were right"),
        ((0.917, 0.825, 910), "never counted"), ((0.917, 0.825, 400), "too small"),
        ((0.917, 0.825, ...), "not written yet"), ((..., ..., ...), "not written yet"),
        (("high", 0.825, 920), "a number was asked for"),
    ],
)  # fmt: skip
def test_repair(answers, says):
    assert says in repr(exercise.check_repair(*answers))


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (lambda t: torch.cat([t, torch.zeros(6, 4)], dim=-1), "✓"),
        (lambda t: torch.cat([t, -3 * t], dim=-1), "✓"),
        (lambda t: t @ torch.linalg.qr(torch.randn(12, 8)).Q.T, "✓"),
        (lambda t: F.normalize(t, dim=-1) @ F.normalize(t, dim=-1).T, "✗ the gap is"),
        (lambda t: torch.cat([t, torch.ones(6, 4)], dim=-1), "✗ the gap is"),
        (lambda t: torch.full_like(t, torch.nan), "✗ the gap is nan"),
        (lambda t: t, "it is the teacher"),
        (lambda t: -2 * t, "but as many"),
        (lambda t: t[:3], "six rows were asked for"),
        (lambda t: 3, "six rows were asked for"),
        (lambda t: 1 / 0, "it stopped with ZeroDivisionError"),
        (lambda t: ..., "not written yet"),
        (lambda t: None, "not written yet"),
    ],
)
def test_stranger(answer, says):
    assert says in repr(exercise.check_stranger(answer))
