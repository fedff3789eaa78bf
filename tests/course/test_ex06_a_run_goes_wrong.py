"""The checks of 06_a_run_goes_wrong detect wrong answers, and its faulty runs can be told apart."""

import math

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from titn_lib.course import ex06_a_run_goes_wrong as exercise


def step_by_hand(network, optimizer, images, labels):
    optimizer.zero_grad(set_to_none=False)
    first, second = network.train()(images)
    loss = torch.stack([F.nll_loss(logits.log_softmax(1), labels) for logits in (first, second)]).mean()
    loss.backward()
    optimizer.step()
    return loss.detach()


def with_loss(loss_of):
    """A training step with the loss `loss_of(class_logits, distillation_logits, labels)`."""

    def answer(network, optimizer, images, labels):
        loss = loss_of(*network.train()(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss.item()

    return answer


def mean_loss(a, b, y):
    return 0.5 * F.cross_entropy(a, y) + 0.5 * F.cross_entropy(b, y)


def both_heads_at_once(a, b, y):
    return F.cross_entropy(torch.cat([a, b]), torch.cat([y, y]))


def gradients_cleared_at_the_end(network, optimizer, images, labels):
    loss = mean_loss(*network.train()(images), labels)
    loss.backward()
    optimizer.step()
    network.zero_grad()
    return loss


def gradients_by_autograd(network, optimizer, images, labels):
    weights = list(network.parameters())
    loss = mean_loss(*network.train()(images), labels)
    for weight, gradient in zip(weights, torch.autograd.grad(loss, weights), strict=True):
        weight.grad = gradient
    optimizer.step()
    return loss.detach().numpy()


def cleared_too_late(network, optimizer, images, labels):
    loss = mean_loss(*network.train()(images), labels)
    loss.backward()
    optimizer.zero_grad()
    optimizer.step()
    return loss.item()


def in_evaluation_mode(network, optimizer, images, labels):
    class_logits, distillation_logits = network(images)
    return mean_loss(class_logits, distillation_logits, labels)


def two_steps(*given):
    with_loss(mean_loss)(*given)
    return with_loss(mean_loss)(*given)


def fails(*given):
    raise ValueError("no")


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (step_by_hand, "✓"),
        (with_loss(mean_loss), "✓"),
        (with_loss(both_heads_at_once), "✓"),
        (gradients_cleared_at_the_end, "✓"),
        (gradients_by_autograd, "✓"),
        (with_loss(lambda a, b, y: mean_loss(a, b, y) * len(y)), "aren't what they should be"),
        (two_steps, "aren't what they should be"),
        (cleared_too_late, "no weight has changed"),
        (lambda *_: 0.0, "no weight has changed"),
        (in_evaluation_mode, "it stopped at `class_logits, distillation_logits = network(images)`"),
        (lambda *given: step_by_hand(*given) and None, "now return the loss"),
        (lambda *given: step_by_hand(*given) + 1, "is too large"),
        (lambda *given: f"{step_by_hand(*given):.2f}", "a number was asked for"),
        (fails, "ValueError: no"),
        (lambda *_: ..., "not written yet"),
        *((mistake, f"{reason}.") for reason, mistake in exercise.step_mistakes().items()),
    ],
)
def test_step(answer, says, expect):
    expect(says, exercise.check_step, answer, slow=True)


RIGHT = exercise.hidden_faults()
NONE_YET = dict.fromkeys(RIGHT, ...)


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (RIGHT, "✓"),
        (dict(reversed(RIGHT.items())), "✓"),
        ({run: f" {letter.upper()}" for run, letter in RIGHT.items()}, "✓"),
        ({np.int64(run): np.str_(letter) for run, letter in RIGHT.items()}, "✓"),
        ({**RIGHT, 4: RIGHT[5]}, f"11 of 12 are right. Run 4 isn't '{RIGHT[5]}': {exercise.FAULTS[RIGHT[4]][1]}"),
        (dict.fromkeys(RIGHT, "a"), "1 of 12 are right. Run 1 isn't 'a'"),
        ({**NONE_YET, 4: RIGHT[4]}, "✗ 1 of 12 are right so far, and none is wrong"),
        ({**RIGHT, 12: None}, "✗ 11 of 12 are right so far"),
        ({run - 1: letter for run, letter in RIGHT.items()}, "there is no run 0: the runs have the numbers 1 to 12"),
        ({str(run): letter for run, letter in RIGHT.items()}, "there is no run '1'"),
        ({letter: run for run, letter in RIGHT.items()}, "there is no run"),
        ({**RIGHT, 4: "x"}, "str 'x' is none of the letters"),
        ({**RIGHT, 4: [RIGHT[4]]}, "list of 1 is none of the letters"),
        ({**RIGHT, 4: 4}, "int 4 is none of the letters"),
        (list(RIGHT.values()), "a dict was asked for"),
        (NONE_YET, "not written yet"),
        ({}, "not written yet"),
    ],
)
def test_diagnosis(answer, says):
    assert says in repr(exercise.check_diagnosis(answer))


def test_every_fault_is_in_one_run():
    assert sorted(RIGHT.values()) == sorted(exercise.FAULTS)


@pytest.mark.parametrize(
    ("answers", "says"),
    [
        ((math.log(100), math.log(128), math.log(math.e + 9) - 1), "✓"),
        ((4.61, 4.85, 1.46), "✓"),
        ((-math.log(0.01), torch.tensor(128.0).log(), np.log(1 + 9 / math.e)), "✓"),
        ((2, 4.85, 1.46), "base 10"),
        ((2.30, 4.85, 1.46), "that is for ten classes"),
        ((0.01, 4.85, 1.46), "that is the probability"),
        ((4.61, 4.61, 1.46), "not over 100 classes"),
        ((4.61, 2.11, 1.46), "base 10"),
        ((4.61, 4.85, 0), "one 1 and nine 0s"),
        ((4.61, 4.85, 1.54), "nine other classes, not ten"),
        ((4.61, 4.85, math.log(math.e + 9)), "the numerator is e"),
        ((4.61, 4.85, 2.3), "2.3 is too large"),
        ((-4.61, 4.85, 1.46), "✗ 2 of 3 right; `initial`: -4.61 is too small"),
        ((4.61, ..., 1.46), "not written yet"),
        ((4.61, "ln 128", 1.46), "a number was asked for"),
    ],
)
def test_losses(answers, says):
    assert says in repr(exercise.check_losses(*answers))


def test_every_faulty_run_shows_its_fault(unchecked, monkeypatch):
    """What the hints say of the runs."""
    healthy = exercise.faulty_run()
    runs = {letter: exercise.faulty_run(letter) for letter in exercise.FAULTS if letter not in "dhl"}
    monkeypatch.setattr(exercise, "EPOCHS", 1)  # their first steps are enough
    runs |= {letter: exercise.faulty_run(letter) for letter in "dhl"}
    ln10 = math.log(10)
    assert healthy.train_loss[-1] < 1
    assert healthy.val_accuracy[-1] > 0.6
    assert all(abs(loss - ln10) < 0.15 for loss in runs["a"].train_loss)
    assert runs["a"].weight_norm > 10
    assert runs["b"].train_loss == healthy.train_loss
    assert runs["b"].val_loss[-1] > 2 * healthy.val_loss[-1]
    assert min(runs["c"].train_loss) > math.log(math.e + 9) - 1
    assert runs["c"].val_accuracy[-1] > 0.5
    assert max(runs["d"].train_loss[:5]) > 2 * ln10
    assert ln10 > runs["e"].train_loss[30] > runs["e"].train_loss[-1] > 1.5
    assert runs["f"].weight_norm < 1
    assert abs(runs["f"].train_loss[-1] - ln10) < 0.05
    assert runs["g"].gradient_norm[-1] > 4 * healthy.gradient_norm[-1]
    assert abs(runs["h"].train_loss[0] - math.log(64)) < 0.1
    assert runs["i"].changed < 0.1 < healthy.changed
    jumps = torch.tensor(runs["j"].train_loss).diff().abs().mean()
    assert jumps > 1.5 * torch.tensor(healthy.train_loss).diff().abs().mean()
    assert runs["k"].train_loss[-1] < 0.1 < 1 < runs["k"].val_loss[-1]
    assert math.isnan(runs["l"].train_loss[0])
