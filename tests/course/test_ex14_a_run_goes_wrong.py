"""The checks of 14_a_run_goes_wrong detect wrong answers, and its faulty runs can be told apart."""

import math

import pytest
import torch
from torch.nn import functional as F

from titn_lib.course import ex14_a_run_goes_wrong as exercise


def step_by_hand(network, optimizer, images, labels):
    optimizer.zero_grad(set_to_none=False)
    first, second = network.train()(images)
    loss = torch.stack([F.nll_loss(logits.log_softmax(1), labels) for logits in (first, second)]).mean()
    loss.backward()
    optimizer.step()
    return loss.detach()


def test_a_right_step():
    assert exercise.check_step(step_by_hand).right


@pytest.mark.parametrize("reason", exercise.step_mistakes())
def test_a_wrong_step_is_named(reason):
    assert reason in exercise.check_step(exercise.step_mistakes()[reason]).message


def test_a_step_that_is_not_finished():
    assert exercise.check_step(lambda *given: ...).message.startswith("not written yet")
    assert "no weight has changed" in exercise.check_step(lambda network, optimizer, images, labels: 0.0).message
    assert "return the loss" in exercise.check_step(lambda *given: step_by_hand(*given) and None).message
    assert "is too large" in exercise.check_step(lambda *given: step_by_hand(*given) + 1).message
    assert "ValueError: no" in exercise.check_step(raises).message


def raises(*given):
    raise ValueError("no")


def test_diagnosis():
    right = exercise.hidden_faults()
    assert sorted(right.values()) == sorted(exercise.FAULTS)
    assert exercise.check_diagnosis(right).right
    assert exercise.check_diagnosis(dict.fromkeys(right, ...)).message.startswith("not written yet")
    partly = exercise.check_diagnosis({**dict.fromkeys(right, ...), 4: right[4]})
    assert not partly.right
    assert "1 of 12 are right so far" in partly.message
    wrong = exercise.check_diagnosis({**right, 4: right[5]}).message
    assert "11 of 12" in wrong
    assert exercise.FAULTS[right[4]][1] in wrong
    assert "none of the letters" in exercise.check_diagnosis({**right, 4: "x"}).message
    assert "a dict was asked for" in exercise.check_diagnosis(["a"]).message


def test_losses():
    assert exercise.check_losses(4.61, 4.85, 1.46).right
    assert "base 10" in exercise.check_losses(2, 4.85, 1.46).message
    assert "not over 100 classes" in exercise.check_losses(4.61, 4.61, 1.46).message
    assert "the numerator is e" in exercise.check_losses(4.61, 4.85, math.log(math.e + 9)).message
    assert "not written yet" in exercise.check_losses(4.61, ..., 1.46).message


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
