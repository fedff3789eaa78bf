"""The checks of 05_teacher see wrong answers and say what is wrong."""

import numpy as np
import pytest
import torch
from torch import nn

from titn_lib.course import ex05_teacher as exercise
from titn_lib.data.datasets import load_dataset
from titn_lib.losses.distillation import freeze


def by_loop(probabilities, labels, bins, weight=None, power=1, sign=abs, confidence_of=None, last=True):
    confidence, predicted = probabilities.max(dim=-1)
    correct = (predicted == labels).double()
    confidence = confidence_of(probabilities, labels) if confidence_of else confidence
    error = 0.0
    for b in range(bins):
        inside = (confidence >= b / bins) & (confidence < (b + 1) / bins)
        if last and b == bins - 1:
            inside |= confidence == 1
        if inside.any():
            share = inside.double().mean().item()
            gap = (correct[inside].mean() - confidence[inside].mean()).item()
            error += (share if weight is None else weight(bins)) * sign(gap) ** power
    return error


def upper_edges(probabilities, labels, bins):
    """The other convention for an image on an edge; without a loop."""
    confidence, predicted = probabilities.max(dim=-1)
    which = ((confidence * bins).ceil().long() - 1).clamp(min=0)
    gaps = (predicted == labels).double() - confidence
    return torch.zeros(bins).double().index_add(0, which, gaps).abs().sum() / len(labels)


def of_the_true_class(probabilities, labels):
    return probabilities.gather(-1, labels[:, None])[:, 0]


def mean_of_bins(probabilities, labels, bins):
    confidence, predicted = probabilities.max(dim=-1)
    which = (confidence * bins).long().clamp(max=bins - 1)
    means = [(predicted == labels).double()[which == b].mean() - confidence[which == b].mean() for b in range(bins)]
    return sum(gap.abs() for gap in means if not gap.isnan()) / sum(not gap.isnan() for gap in means)


def with_empty_bins(probabilities, labels, bins):
    confidence, predicted = probabilities.max(dim=-1)
    which = (confidence * bins).long().clamp(max=bins - 1)
    return sum(
        ((predicted == labels).double()[which == b].mean() - confidence[which == b].mean()).abs() for b in range(bins)
    )


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (by_loop, "✓"),
        (upper_edges, "✓"),
        (lambda p, y, b: torch.tensor([by_loop(p, y, b)]), "✓"),  # one number in a list
        (lambda p, y, b: np.float32(by_loop(p, y, b)), "✓"),
        (lambda p, y, b: np.array(by_loop(p, y, b)), "✓"),
        (mean_of_bins, "every bin has the same weight"),
        (lambda p, y, b: by_loop(p, y, b, weight=lambda bins: 1 / bins), "divided by the number of bins"),
        (lambda p, y, b: len(y) * by_loop(p, y, b), "the weight of a bin is its number of images"),
        (lambda p, y, b: by_loop(p, y, b, power=2), "the gaps are squared."),
        (lambda p, y, b: by_loop(p, y, b, power=2) ** 0.5, "the root is taken"),
        (lambda p, y, b: by_loop(p, y, b, sign=lambda gap: gap), "(accuracy minus confidence)"),
        (lambda p, y, b: by_loop(p, y, b, sign=lambda gap: -gap), "(confidence minus accuracy)"),
        (lambda p, y, b: by_loop(p, y, 1), "one bin for all does the same"),
        (lambda p, y, b: by_loop(p, y, b, confidence_of=of_the_true_class), "the true class's probability"),
        (lambda p, y, b: by_loop(p, y, b, last=False), "exactly 1 are missing"),
        (lambda p, y, b: by_loop(p, y, 10), "ten bins, whatever"),
        (with_empty_bins, "not a number (nan): this is what comes out when the means of empty bins"),
        (lambda p, y, b: 0.5, "✗ the number is off by"),
        (lambda p, y, b: p, "✗ it returns Tensor of shape (400, 10); a number was asked for"),
        (lambda p, y, b: p[:, 77], "it stopped with IndexError"),
        (lambda p, y, b: 100 * by_loop(p, y, b), "in percent"),
        (lambda p, y, b: by_loop(p.softmax(-1), y, b), "probabilities already"),
        (lambda p, y, b: "much", "a number was asked for"),
        (lambda p, y, b: True, "a number was asked for"),
        (lambda p, y, b: ..., "not written yet"),
        (lambda p, y, b: None, "it returns None"),
    ],
)
def test_calibration(answer, message, expect):
    expect(message, exercise.check_calibration, answer)


@pytest.mark.parametrize(
    ("answers", "message"),
    [((0, 0.75, 0.1), "✓"), ((torch.tensor(0), 3 / 4, np.float32(0.1)), "✓"),
     ((360, 0.75, 0.1), "the largest stays the largest"),
     ((0, 0.9**0.5, 0.1), "the ratio of the two prob"), ((0, 0.81, 0.1), "this is a square"), ((0, 75, 0.1), "percent"),
     ((0, 0.45, 0.1), "and not the probabilities"), ((0, 0.9, 0.1), "its probability doesn't"),
     ((0, 81 / 82, 0.1), "that is T = 1/2"), ((0, 0.75, 0.5), "there are ten classes"), ((0, 0.75, 1), "tends to 0"),
     ((0, 0.75, 0), "add up to 1"), ((0, 0.5, 0.1), "tends to infinity"), ((0, ..., 0.1), "not written yet")],
)  # fmt: skip
def test_temperature(answers, message):
    assert message in repr(exercise.check_temperature(*answers))


def companions(digit):
    labels = load_dataset("digits").test.labels
    return [i for i in range(1, len(labels)) if labels[i] == digit][:15]


@pytest.mark.parametrize(
    ("company", "message"),
    [
        (companions(1), "✓ right: frozen, the teacher predicts 1"),
        (torch.tensor(companions(1)), "✓"),
        (np.array(companions(1)), "✓"),
        (set(companions(1)), "✓"),
        (list(torch.tensor(companions(1))), "✓"),
        (torch.tensor(companions(1)).double(), "indices (integers) was asked for"),
        ([str(one) for one in companions(1)], "indices (integers) was asked for"),
        (torch.arange(15, device="meta"), "on the device meta; a list of 15 indices"),
        (torch.arange(15)[:, None].expand(15, 2), "indices (integers) was asked for"),
        (load_dataset("digits").test.labels == 1, "it is a boolean mask"),
        ((load_dataset("digits").test.labels == 1).numpy(), "it is a boolean mask"),
        (companions(0), "it is still classified as 1"),
        (range(1, 16), "it is still classified as 1"),
        (companions(1)[:9], "these are 9, 9 of them different"),
        ([7] * 15, "1 of them different"),
        ([True] * 15, "it is a boolean mask"),
        ([*range(15)], "index 0 is in the batch already"),
        ([0, *companions(1)[:14]], "index 0 is in the batch already"),
        ([*companions(1)[:14], 360], "have the indices 0 to 359"),
        ("the ones", "indices (integers) was asked for"),
        (7, "indices (integers) was asked for"),
        (..., "not written yet"),
        (None, "not written yet"),
    ],
)
def test_company(company, message):
    assert message in repr(exercise.check_company(company))


def in_evaluation_mode(teacher):
    return not any(module.training for module in teacher.modules())


def without_gradient(teacher):
    return not any(weight.requires_grad for weight in teacher.parameters())


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (lambda t: in_evaluation_mode(t) and without_gradient(t), "✓"),
        (lambda t: torch.tensor(in_evaluation_mode(t) and without_gradient(t)), "✓"),
        (lambda t: np.all([in_evaluation_mode(t), without_gradient(t)]), "✓"),
        (lambda t: int(in_evaluation_mode(t) and without_gradient(t)), "✓"),
        (lambda t: [in_evaluation_mode(t), without_gradient(t)], "it returns list of 2; True or False"),
        (lambda t: 2, "it returns int 2; True or False"),
        (lambda t: not t.training and without_gradient(t), "the outermost module only"),
        (in_evaluation_mode, "returns True though the weights require gradients"),
        (lambda t: in_evaluation_mode(t) and not next(t.parameters()).requires_grad, "one of the weights, the last"),
        (without_gradient, "returns True for a teacher in training mode"),
        (lambda t: t.training, "returns False for a frozen teacher"),
        (lambda t: freeze(t) is t, "it should only inspect it"),
        (lambda t: t.stages[0][1].running_mean.zero_().sum() == 0 and in_evaluation_mode(t), "✗"),
        (lambda t: "yes", "True or False was asked for"),
        (lambda t: 1 / 0, "it stopped with ZeroDivisionError"),
        (lambda t: ..., "not written yet"),
        (lambda t: None, "it returns None"),
    ],
)
def test_detector(answer, message, expect):
    expect(message, exercise.check_detector, answer, slow=True)


def test_a_forward_pass_in_training_mode_counts_as_a_change():
    def by_forward_pass(teacher):
        with torch.no_grad():
            teacher(torch.rand(4, 1, 16, 16))
        return not any(isinstance(m, nn.BatchNorm2d) and m.training for m in teacher.modules())

    assert "it should only inspect it" in repr(exercise.check_detector(by_forward_pass))
