"""The checks of 14_related_training detect wrong answers and say what is wrong."""

from math import log

import pytest
import torch
from torch.nn import functional as F

from titn_lib.course import ex14_related_training as exercise
from titn_lib.losses.contrastive import contrastive_loss
from titn_lib.losses.relabeling import relabeling_quality


def by_hand(z, y, d):
    p = z.exp() / z.exp().sum(-1, keepdim=True)
    new = y.clone()
    for i in range(len(y)):
        if p[i].max() - p[i, y[i]] > d:
            new[i] = p[i].argmax()
    return new


def changed_where(condition):
    return lambda z, y, d: torch.where(condition(z, z.softmax(-1), y, d), z.argmax(-1), y)


def of_label(table, y):
    return table[torch.arange(len(y)), y]


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (by_hand, "✓"),
        (changed_where(lambda z, p, y, d: p.amax(-1) - of_label(p, y) > d), "✓"),
        (changed_where(lambda z, p, y, d: z.amax(-1) - of_label(z, y) > d), "logits are compared"),
        (changed_where(lambda z, p, y, d: p.amax(-1) > d), "largest probability alone"),
        (changed_where(lambda z, p, y, d: p.topk(2).values.diff()[:, 0] < -d), "second most likely"),
        (lambda z, y, d: z.argmax(-1), "however small its lead"),
        (changed_where(lambda z, p, y, d: p.amax(-1) - of_label(p, y) < d), "the wrong way round"),
        (changed_where(lambda z, p, y, d: z.softmax(0).amax(-1) - of_label(z.softmax(0), y) > d), "over images"),
        (lambda z, y, d: y, "no label is changed"),
        (lambda z, y, d: by_hand(z.double(), y, d), "✓"),
        (lambda z, y, d: by_hand(z, y, d).tolist(), "✓"),
        (lambda z, y, d: by_hand(z, y, d).numpy(), "✓"),
        (lambda z, y, d: y + 1, "✗ the shape is right"),
        (lambda z, y, d: z, "✗ the shape is"),
        (lambda z, y, d: y[1000], "it stopped with IndexError"),
        (lambda z, y, d: ..., "not written yet"),
        (lambda z, y, d: None, "it returns None"),
    ],
)
def test_relabel(answer, says, expect):
    expect(says, exercise.check_relabel, answer)


def test_the_counts_are_those_of_the_library_s_loss():
    labels = torch.arange(10).repeat_interleave(5).repeat(2)
    same = (labels[:, None] == labels).sum(dim=1)
    collapsed = contrastive_loss(F.normalize(torch.ones(100, 4)), labels).item()
    assert exercise.check_counts(same[0] - 1, 100 - same[0], 20 - 2, collapsed).right


@pytest.mark.parametrize(
    ("answers", "says"),
    [
        ((9, 90, 18, log(99)), "✓"), ((9, 90, 18, 4.6), "give three decimals"), ((9, 90, 18, 4.595), "✓"),
        ((9, 90, 18, torch.tensor(4.595)), "✓"),
        ((10, 90, 18, 4.6), "not its own positive"), ((8, 90, 18, 4.6), "the other view of the same"),
        ((4, 90, 18, 4.6), "two views"), ((1, 90, 18, 4.6), "the labels add more"), ((9, 45, 18, 4.6), "two views"),
        ((9, 99, 18, 4.6), "of the anchor's class"), ((9, 100, 18, 4.6), "of the anchor's class"),
        ((9, 49, 18, 4.6), "and some are of"), ((9, 90, 90, 4.6), "on the other parts"), ((9, 90, 9, 4.6), "two views"),
        ((9, 90, 19, 4.6), "the anchor's other view"), ((9, 90, 20, 4.6), "the anchor's own image"),
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
    new[:300], new[300:320], new[400:440] = 0, 2, 1
    found = relabeling_quality(new, given, true)
    assert exercise.check_repair(found.precision, found.recall, (new == true).sum()).right


@pytest.mark.parametrize(
    ("answers", "says"),
    [
        ((300 / 360, 300 / 400, 860), "✓"), ((0.83, 0.75, 860), "✓"), ((300 / 340, 0.75, 860), "were changed, too"),
        ((0.8, 0.75, 860), "too small"),
        ((0.833, 0.75, 860.0), "✓"), ((320 / 360, 0.75, 860), "is not correcting it"),
        ((300 / 320, 0.75, 860), "count, too"), ((0.75, 0.83, 860), "`precision`: 0.75 is not it: that is the recall"),
        ((0.86, 0.75, 860), "of all labels"), ((83.3, 0.75, 860), "per cent"), ((0.833, 75, 860), "per cent"),
        ((0.833, 320 / 400, 860), "20 of these"), ((0.833, 300 / 360, 860), "`recall`: 0.833333 is not it: that is"),
        ((0.833, 0.9, 860), "not all changes"), ((0.833, 0.75, 900), "forty that were correct"),
        ((0.833, 0.75, 880), "to another is not correct"), ((0.833, 0.75, 300), "600 were correct"),
        ((0.833, 0.75, 840), "never counted"), ((0.833, 0.75, 400), "`right_now`: 400 is too small"),
        ((0.833, 0.75, 0.86), "a number of labels"),
        ((0.833, 0.75, ...), "not written yet"), ((..., ..., ...), "not written yet"),
        (("high", 0.75, 860), "a number was asked for"),
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
        (lambda t: torch.cat([t, torch.zeros(6, 4)], dim=-1).double(), "✓"),
        (lambda t: torch.cat([t, torch.zeros(6, 4)], dim=-1).numpy(), "✓"),
        (lambda t: torch.cat([t, torch.zeros(6, 4)], dim=-1).tolist(), "✓"),
        (lambda t: F.normalize(t, dim=-1) @ F.normalize(t, dim=-1).T, "✗ the gap is"),
        (lambda t: torch.cat([t, torch.ones(6, 4)], dim=-1), "✗ the gap is"),
        (lambda t: torch.full_like(t, torch.nan), "not all of its values are finite"),
        (lambda t: t, "it is the teacher"),
        (lambda t: -2 * t, "its width is the same"),
        (lambda t: torch.ones(6, 3).long(), "✗ the gap is"),
        (lambda t: t[:3], "six rows were asked for"),
        (lambda t: 3, "it returns int 3; six rows were asked for"),
        (lambda t: 1 / 0, "it stopped with ZeroDivisionError"),
        (lambda t: ..., "not written yet"),
        (lambda t: None, "it returns None"),
    ],
)
def test_stranger(answer, says, expect):
    expect(says, exercise.check_stranger, answer)
