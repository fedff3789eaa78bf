"""The checks of 10_your_images detect wrong answers and say what is wrong."""

import numpy as np
import pytest
import torch
from sklearn.model_selection import train_test_split

from titn_lib.course import ex10_your_images as exercise


def class_by_class(labels, fraction, seed):
    draw = torch.Generator().manual_seed(seed)
    kept, aside = [], []
    for label in labels.unique():
        indices = (labels == label).nonzero().flatten()
        indices = indices[torch.randperm(len(indices), generator=draw)]
        count = round(fraction * len(indices))
        aside.append(indices[:count])
        kept.append(indices[count:])
    return torch.cat(kept), torch.cat(aside)


def by_scikit(labels, fraction, seed):
    indices = np.arange(len(labels))
    return train_test_split(indices, test_size=fraction, stratify=labels.numpy(), random_state=seed)


def unstratified(labels, fraction, seed):
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    count = round(fraction * len(labels))
    return order[count:], order[:count]


def last_of_all(labels, fraction, seed):
    count = round(fraction * len(labels))
    return torch.arange(len(labels))[:-count], torch.arange(len(labels))[-count:]


def in_order(choose):
    """Images of each class by their position in it."""

    def answer(labels, fraction, seed):
        members = [(labels == label).nonzero().flatten() for label in labels.unique()]
        aside = torch.cat([choose(part, fraction) for part in members])
        return torch.tensor(sorted(set(range(len(labels))) - set(aside.tolist()))), aside

    return answer


def same_number(labels, fraction, seed):
    return in_order(lambda part, fraction: part[torch.randperm(len(part))[:10]])(labels, fraction, seed)


def overlapping(labels, fraction, seed):
    kept, aside = class_by_class(labels, fraction, seed)
    return torch.cat([kept, aside[:3]]), aside


def with_repeats(labels, fraction, seed):
    kept, aside = class_by_class(labels, fraction, seed)
    return kept, torch.cat([aside[:1], aside[:-1]])


def without_seed(labels, fraction, seed):
    return class_by_class(labels, fraction, int(torch.randint(10**6, ())))


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (class_by_class, "✓"),
        (by_scikit, "✓"),
        (lambda *a: [part.tolist() for part in class_by_class(*a)], "✓"),
        (lambda *a: ..., "not written yet"),
        (lambda *a: (..., ...), "not written yet"),
        (lambda *a: (class_by_class(*a)[0], ...), "not written yet"),
        (lambda *a: None, "it returns None"),
        (same_number, "10 images of each class are set aside; the same share"),
        (lambda y, f, s: [y[part] for part in class_by_class(y, f, s)], "these are labels"),
        (overlapping, "3 images are in both parts"),
        (with_repeats, "1 indices occur more than once"),
        (lambda y, f, s: (class_by_class(y, f, s)[0][5:], class_by_class(y, f, s)[1]), "5 of"),
        (lambda *a: class_by_class(*a)[::-1], "are swapped"),
        (unstratified, "gives each its share only roughly"),
        (last_of_all, "the last images of the list"),
        (lambda y, f, s: class_by_class(y, 0.5, s), "50 % of each class are set aside, and 20 % were asked for"),
        (in_order(lambda members, f: members[: round(f * len(members))]), "the first images are set aside"),
        (in_order(lambda members, f: members[-round(f * len(members)) :]), "the last images are set aside"),
        (in_order(lambda members, f: members[:: round(1 / f)]), "every k-th images are set aside"),
        (without_seed, "called twice with the same seed"),
        (lambda y, f, s: class_by_class(y, f, 0), "the seed isn't used"),
        (lambda y, f, s: (torch.ones(len(y), dtype=torch.bool), torch.zeros(len(y), dtype=torch.bool)), "boolean mask"),
        (lambda y, f, s: y, "a pair was asked for"),
        (lambda y, f, s: ("a", "b"), "integer tensor of indices"),
        (lambda y, f, s: (torch.rand(3), torch.rand(3)), "one-dimensional integer"),
        (lambda y, f, s: (torch.arange(len(y)), torch.tensor([-1])), "it names image -1"),
        (lambda y, f, s: (torch.arange(len(y)), torch.tensor([])), "0 % of each class"),
        (lambda y, f, s: y[10**6], "it stopped with IndexError"),
    ],
)  # fmt: skip
def test_split(answer, says):
    assert says in repr(exercise.check_split(answer))


@pytest.mark.parametrize(
    ("answer", "says"),
    [(1.5, "✓"), (100 * (0.9 * 0.1 / 400) ** 0.5, "✓"), (torch.tensor(1.5), "✓"), (0.015, "that is a share"),
     (0.0225, "variance"), (30, "a single image"), (0.075, "not by its square root"), (2.94, "95 % interval"),
     (5, "p (1 − p) is missing"), (2, "too large"), (1, "too small"), (..., "not written yet"),
     ("some", "a number was asked for")],
)  # fmt: skip
def test_error(answer, says):
    assert says in repr(exercise.check_error(answer))


@pytest.mark.parametrize(
    ("answer", "says"),
    [(1572, "✓"), (1571.2, "✓"), (torch.tensor(1574), "✓"), (865, "one model with 90 %"), (707, "one model with 92 %"),
     (409, "one standard error"), (802, "squared"), (3143, "both models together"), (393, "4 points"),
     (6285, "1 point"), (3210, "power of 80 %"), (1000, "too small"), (2000, "too large"), (..., "not written yet"),
     (np.int64(1571), "in half of all cases"), (np.int64(865), "one model with 90 %"),
     (None, "not written yet"), ("many", "a number was asked for"), (float("nan"), "✗")],
)  # fmt: skip
def test_needed(answer, says):
    assert says in repr(exercise.check_needed(answer))


@pytest.mark.parametrize(
    ("roles", "says"),
    [("BAC", "✓"), ("bac", "✓"), ("BCA", "are swapped"), ("ABC", "A is broken: it differs from `normalize` by"),
     ("CAB", "That is a lot"), ("BBC", "each letter has one role"), ((..., ..., ...), "not written yet"),
     (("B", ..., "C"), "not written yet"),
     ("ACB", "by up to 0.018. That is little"), ((1, 2, 3), "one of the letters")],
)  # fmt: skip
def test_suspects(roles, says):
    assert says in repr(exercise.check_suspects(*roles))


def test_suspects_are_what_they_are_said_to_be():
    from titn_lib.data.transforms import normalize

    images = torch.randint(0, 256, (5, 3, 6, 4), dtype=torch.uint8)
    mean, std = (0.5, 0.48, 0.45), (0.2, 0.19, 0.21)
    gaps = {
        letter: float((suspect(images, mean, std) - normalize(images, mean, std)).abs().max())
        for letter, suspect in exercise.suspects.items()
    }
    assert gaps["B"] < 1e-5 < 0.1 < gaps["A"] < 1 < 5 < gaps["C"]
