"""The checks of 07_distillation see wrong answers and say what is wrong."""

import copy
from math import log

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from titn_lib.course import ex07_distillation as exercise
from titn_lib.data.mixing import MixedTargets, cutmix
from titn_lib.losses.distillation import soft_loss, teacher_forward


def by_hand(s, t, T):
    p, q = (t / T).softmax(-1), (s / T).softmax(-1)
    return T**2 * (p * (p / q).log()).sum(-1).mean()


def by_numpy(s, t, T):
    p, q = (np.exp(z.numpy() / T) for z in (t, s))
    p, q = (z / z.sum(-1, keepdims=True) for z in (p, q))
    return T**2 * (p * np.log(p / q)).sum(-1).mean()


def in_place(s, t, T):
    s /= T
    t /= T
    return T**2 * F.kl_div(s.log_softmax(-1), t.softmax(-1), reduction="batchmean")


def with_kl_div(s, t, T, reduction="batchmean", student_T=None, teacher_T=None):
    log_q, p = (s / (student_T or T)).log_softmax(-1), (t / (teacher_T or T)).softmax(-1)
    return T**2 * F.kl_div(log_q, p, reduction=reduction)


@pytest.mark.filterwarnings("ignore:reduction")
@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (by_hand, "✓"),
        (with_kl_div, "✓"),
        (in_place, "✓"),
        (lambda s, t, T: by_hand(s, t, T)[None], "✓"),
        (lambda s, t, T: by_hand(s.double(), t.double(), T), "✓"),
        (by_numpy, "✗ the value is right, but no gradient can flow through NumPy"),
        (lambda s, t, T: by_numpy(s.detach(), t, T), "no gradient reaches the student"),
        (lambda s, t, T: by_hand(s, torch.tensor(t.numpy()), T), "✓"),  # the teacher needs no gradient
        (lambda s, t, T: s.dot(t) if s.requires_grad else by_hand(s, t, T), "but with gradients it stopped"),
        (lambda s, t, T: by_hand(s, t, T) / 2, "the loss is halved"),
        (lambda s, t, T: by_hand(s, t, T) / log(2), "base 2"),
        (lambda s, t, T: ((s - t) ** 2).mean(), "squared difference of the logits"),
        (lambda s, t, T: by_hand(s, t, T) / T**2, "T² is left out"),
        (lambda s, t, T: by_hand(s, t, T) / T, "multiplied by T and not by T²"),
        (lambda s, t, T: by_hand(t, s, T), "the wrong way round"),
        (lambda s, t, T: with_kl_div(s, t, T, "mean"), "over all entries, so that"),
        (lambda s, t, T: with_kl_div(s, t, T, "mean") / T**2, "over all entries and T² is left out"),
        (lambda s, t, T: with_kl_div(s, t, T, "sum"), "summed over images"),
        (lambda s, t, T: with_kl_div(s, t, T, teacher_T=1), "the teacher is not softened"),
        (lambda s, t, T: with_kl_div(s, t, T, student_T=1), "the student is not softened"),
        (lambda s, t, T: with_kl_div(s, t, T, student_T=1, teacher_T=1), "neither is softened"),
        (lambda s, t, T: T**2 * F.cross_entropy(s / T, (t / T).softmax(-1)), "entropy is left in"),
        (
            lambda s, t, T: T**2 * F.kl_div((s / T).softmax(-1), (t / T).softmax(-1), reduction="batchmean"),
            "it expects their logarithms",
        ),
        (
            lambda s, t, T: T**2 * F.kl_div((s / T).log_softmax(-1), (t / T).log_softmax(-1), reduction="batchmean"),
            "not a number (nan): this is what comes out when kl_div takes the teacher's log-probabilities",
        ),
        (lambda s, t, T: by_hand(s, t, 1.0), "there is no temperature at all"),
        (lambda s, t, T: T**2 * by_hand(s * T, t * T, 1.0), "the logits are multiplied by T"),
        (lambda s, t, T: -by_hand(s, t, T), "a KL is never below 0"),
        (
            lambda s, t, T: (
                T**2 * ((t / T).softmax(0) * ((t / T).log_softmax(0) - (s / T).log_softmax(0))).sum(-1).mean()
            ),
            "it should run over classes",
        ),
        (lambda s, t, T: by_hand(s.detach(), t, T), "no gradient reaches the student"),
        (lambda s, t, T: by_hand(s, t, 3.0), "✗ the number is off"),
        (lambda s, t, T: by_hand(s, t, T).item(), "no gradient reaches the student"),
        (lambda s, t, T: "low", "a number was asked for"),
        (lambda s, t, T: s[99], "it stopped with IndexError"),
        (lambda s, t, T: s * torch.nan, "✗ it returns Tensor of shape (6, 10); a number was asked for"),
        (lambda s, t, T: ..., "not written yet"),
        (lambda s, t, T: None, "it returns None"),
    ],
)
def test_soft_loss(answer, message, expect):
    expect(message, exercise.check_soft_loss, answer)


@pytest.mark.parametrize(
    ("answers", "message"),
    [((0, 0, -log(0.8)), "✓"), ((0, 0, 0.22), "✓"), ((0, 0.0, torch.tensor(0.223)), "✓"),
     ((100, 0, 0.22), "the largest logit only"), ((0, -log(0.8), 0.22), "these are the same"),
     ((0, 0, 0.11), "with the ½ in front"), ((0, 0, -log(0.8) / 2), "with the ½ in front"),
     ((0, 0, 0), "a faithful copy gives that class 0.8"), ((0, 0, 0.8), "its logarithm with a minus"),
     ((0, 0, 0.2), "−ln of the probability"), ((0, 0, log(0.8)), "a minus before"), ((0, 0, 0.0969), "base 10"),
     ((0, 0, "small"), "a number was asked for"), ((0, 0, 3), "too large"), ((0, 0, ...), "not written yet")],
)  # fmt: skip
def test_losses(answers, message):
    assert message in repr(exercise.check_losses(*answers))


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (lambda s, t, T: soft_loss(s.detach(), t, T), "✓ right"),
        (lambda s, t, T: by_hand(s.clone().detach(), t, T), "✓ right"),
        (lambda s, t, T: by_numpy(s, t, T), "✗ the value is right, but no gradient can flow through NumPy"),
        (lambda s, t, T: with_kl_div(s.detach(), t, T), "✓ right"),
        (lambda s, t, T: soft_loss(s.data, t, T)[None], "✓ right"),
        (lambda s, t, T: soft_loss(s.detach(), t, T) / T**2, "T² is left out"),
        (lambda s, t, T: soft_loss(s.detach(), t, T) * len(s), "summed over images"),
        (soft_loss, "still reaches the student"),
        (lambda s, t, T: soft_loss(s, t.detach(), T), "still reaches the student"),
        (lambda s, t, T: soft_loss(s, t, T).detach(), "reaches neither network"),
        (lambda s, t, T: soft_loss(s, t, T).item(), "reaches neither network"),
        (lambda s, t, T: soft_loss(t, s.detach(), T), "KL is not symmetric"),
        (lambda s, t, T: soft_loss(s.detach(), t, T + 1), "the number is off by"),
        (lambda s, t, T: 1 / 0, "it stopped with ZeroDivisionError"),
        (lambda s, t, T: ..., "not written yet"),
    ],
)
def test_wrong_student(answer, message, expect):
    expect(message, exercise.check_wrong_student, answer)


def with_targets(change):
    """Prepared as it should be, but for the targets."""

    def answer(teacher, images, labels, rng):
        mixed, targets = cutmix(images, labels, rng)
        return mixed, change(*targets, images, labels, rng), teacher_forward(teacher, mixed).logits

    return answer


def labels_first(teacher, images, labels, rng):
    targets = cutmix(images, labels, rng)[1]
    mixed = cutmix(images, labels, rng)[0]
    return mixed, targets, teacher_forward(teacher, mixed).logits


def prepared(teacher, images, labels, rng, shown=None, asked=None):
    mixed, mixed_labels = cutmix(images, labels, rng)
    logits = teacher_forward(teacher, asked(images, labels, rng) if asked else mixed).logits
    return images if shown else mixed, mixed_labels, logits


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (prepared, "✓ right"),
        (lambda *a: list(prepared(*a)), "✓ right"),
        (lambda *a: with_targets(lambda own, pasted, lam, *_: (own, pasted, lam))(*a), "✓ right"),  # no MixedTargets
        (lambda *a: with_targets(lambda own, pasted, lam, *_: MixedTargets(pasted, own, 1 - lam))(*a), "✓ right"),
        (lambda *a: with_targets(lambda own, pasted, lam, *_: MixedTargets(pasted, own, lam))(*a), "are swapped"),
        (lambda *a: with_targets(lambda own, *_: MixedTargets(own, own))(*a), "each image has one label"),
        (lambda *a: with_targets(lambda *rest: cutmix(*rest[3:])[1])(*a), "targets of another mixture"),
        (
            lambda *a: with_targets(lambda own, pasted, lam, *_: MixedTargets(own + 10, pasted, lam))(*a),
            "MixedTargets, as",
        ),
        (
            lambda *a: with_targets(lambda own, pasted, lam, *_: MixedTargets(own[:3], pasted, lam))(*a),
            "MixedTargets, as",
        ),
        (labels_first, "targets of another mixture"),
        (lambda t, x, y, rng: prepared(t, x.flip(0), y.flip(0), rng), "not what one call of cutmix makes"),
        (lambda *a: prepared(*a, asked=lambda images, labels, rng: images), "before they were mixed"),
        (lambda *a: prepared(*a, asked=lambda images, labels, rng: cutmix(images, labels, rng)[0]), "mixed twice?"),
        (lambda *a: prepared(*a, shown="clean"), "nothing is mixed"),
        (lambda t, x, y, rng: prepared(t, x, y, np.random.default_rng(0)), "another rng mixes in the same way"),
        (lambda t, x, y, rng: prepared(t, 2 * x, y, rng), "values that weren't in them"),
        (
            lambda t, x, y, rng: (
                *cutmix(x, y, copy.deepcopy(rng)),
                teacher_forward(t, cutmix(x, y, rng)[0]).logits.softmax(-1),
            ),
            "its logits were asked for",
        ),
        (lambda t, x, y, rng: prepared(t, x, y, rng)[:2], "three things were asked for"),
        (lambda t, x, y, rng: prepared(t, x, y, rng)[1], "three things were asked for"),
        (lambda t, x, y, rng: (*cutmix(x, y, rng), teacher_forward(t, x)), "take .logits"),
        (lambda t, x, y, rng: (cutmix(x, y, rng)[0], y, teacher_forward(t, x).logits), "MixedTargets, as cutmix"),
        (lambda t, x, y, rng: (x[:1], MixedTargets(y, y), teacher_forward(t, x).logits), "32×1×16×16 was asked for"),
        (lambda t, x, y, rng: (*cutmix(x, y, rng), teacher_forward(t, x).logits[:3]), "32×10 was asked for"),
        (lambda t, x, y, rng: (*cutmix(x, y, rng), t(x).requires_grad_()), "carry a gradient"),
        (lambda t, x, y, rng: 1 / 0, "it stopped with ZeroDivisionError"),
        (lambda t, x, y, rng: ..., "not written yet"),
        (lambda t, x, y, rng: None, "it returns None"),
    ],
)
def test_prepare(answer, message, expect):
    expect(message, exercise.check_prepare, answer, slow=True)
