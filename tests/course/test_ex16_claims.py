"""The checks of 16_claims detect wrong answers and say what is wrong."""

import pytest
import torch

from titn_lib.course import ex16_claims as exercise


def at_best(validation, test):
    return test[torch.arange(len(test)), validation.argmax(dim=1)]


def in_a_loop(validation, test):
    found = []
    for mine, theirs in zip(validation, test, strict=True):
        best = max(range(len(mine)), key=lambda epoch: mine[epoch])
        found.append(float(theirs[best]))
    return found


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (at_best, "✓"),
        (in_a_loop, "✓"),
        (lambda v, t: t.gather(1, v.argmax(dim=1, keepdim=True)).squeeze(1), "✓"),
        (lambda v, t: t[v == v.amax(dim=1, keepdim=True)], "✓"),
        (lambda v, t: torch.stack([b[a.argmax()] for a, b in zip(v, t, strict=True)]), "✓"),
        (lambda v, t: t.numpy()[range(len(t)), v.numpy().argmax(axis=1)], "✓"),
        (lambda v, t: t.max(dim=1).values, "chosen on the test images"),
        (lambda v, t: t[torch.arange(len(t)), t.argmax(dim=1)], "chosen on the test images"),
        (lambda v, t: v.amax(dim=1), "the validation accuracy of the chosen epoch"),
        (lambda v, t: t[:, -1], "the last epoch"),
        (lambda v, t: t[:, v.mean(dim=0).argmax()], "best on average"),
        (lambda v, t: t[torch.arange(len(t)), v.argmin(dim=1)], "the worst epoch"),
        (lambda v, t: at_best(t, v), "at the epoch that is best on the test images"),
        (lambda v, t: t.mean(dim=1), "the mean over all epochs"),
        (lambda v, t: (at_best(v, t) + v.amax(dim=1)) / 2, "the values are off by up to"),
        (lambda v, t: v.argmax(dim=1), "the values are off by up to"),
        (lambda v, t: t[:, v.argmax(dim=1)], "the shape is (5, 5); it should be (5,)"),
        (lambda v, t: t.amax(dim=0), "the shape is (12,)"),
        (lambda v, t: at_best(v, t).mean(), "a tensor of shape (5,) was asked for"),
        (lambda v, t: 1 / 0, "it stopped with ZeroDivisionError"),
        (lambda v, t: ..., "not written yet"),
        (lambda v, t: None, "it returns None"),
    ],
)
def test_honest(answer, says, expect):
    expect(says, exercise.check_honest, answer)


def test_the_best_of_ten():
    torch.manual_seed(0)
    assert torch.randn(400_000, 10).amax(dim=1).mean().item() == pytest.approx(exercise.EXPECTED_BEST_OF_TEN, abs=5e-3)


@pytest.mark.parametrize(
    ("answers", "says"),
    [
        ((0.3, 0.424, 6.018), "✓"), ((0.3, 0.42, 6.0), "✓"), ((torch.tensor(0.3), 0.3 * 2**0.5, 9.26 / 1.54), "✓"),
        ((0.003, 0.42, 6), "a share of 1"), ((0.09, 0.42, 6), "the variance"), ((30, 0.42, 6), "a hundred times"),
        ((0.949, 0.42, 6), "not p alone"), ((0.1, 0.42, 6), "alone"), ((0.59, 0.42, 6), "1.96"),
        ((0.3, 0.6, 6), "variances add"), ((0.3, 0.3, 6), "both networks"), ((0.3, 0.18, 6), "take its root"),
        ((0.3, 0.212, 6), "Their difference isn't"), ((0.3, 0.42, 9.26), "further out"), ((0.3, 0.42, 14.2), "divide"),
        ((0.3, 0.42, 6.17), "two decimals"), ((0.3, 0.42, 6.01), "✓"),
        ((0.3, 0.42, 0.926), "the best of them gets larger"), ((0.3, 0.42, 2.93), "root of ten"),
        ((0.3, 0.42, 3.03), "ten seeds, not a thousand"), ((0.3, 0.42, 20), "too large"), ((0.2, 0.42, 6), "too small"),
        (("small", 0.42, 6), "a number was asked for"), ((0.3, 0.42, ...), "not written yet"),
        ((..., ..., ...), "not written yet"),
    ],
)  # fmt: skip
def test_claim(answers, says):
    assert says in repr(exercise.check_claim(*answers))


def three_of_four(image_of):
    """Of each image, the last copy is for testing."""
    last = torch.tensor([bool((image_of[i + 1 :] != image).all()) for i, image in enumerate(image_of)])
    return (~last).nonzero()[:, 0], last.nonzero()[:, 0]


def half_of_each(image_of):
    order = image_of.argsort()
    return order[::2], order[1::2]


def by_image(image_of):
    return (image_of < 25).nonzero()[:, 0], (image_of >= 25).nonzero()[:, 0]


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (three_of_four, "✓"),
        (half_of_each, "✓"),
        (lambda image_of: list(half_of_each(image_of)), "✓"),
        (lambda image_of: tuple(part.tolist() for part in half_of_each(image_of)), "✓"),
        (lambda image_of: tuple(part.numpy() for part in half_of_each(image_of)), "✓"),
        (lambda image_of: tuple(part.double() for part in half_of_each(image_of)), "✓"),
        (
            lambda image_of: tuple(torch.arange(200).unsqueeze(1).eq(part).any(1) for part in half_of_each(image_of)),
            "✓",
        ),
        (lambda image_of: torch.randperm(200).split((150, 50)), "✓"),  # the usual way to leak
        (by_image, "That is the honest split"),
        (lambda image_of: (torch.arange(100), torch.arange(100, 200)[image_of[100:] < 8]), "a part is too small"),
        (lambda image_of: (torch.arange(200), torch.arange(0, 200, 4)), "50 of the test part are in the training part"),
        (lambda image_of: (torch.arange(101), torch.arange(100, 200)), "1 of the test part are in the training part"),
        (lambda image_of: (torch.arange(190), torch.arange(190, 200)), "each needs 40 of the 200 copies or more"),
        (lambda image_of: (torch.zeros(99).long(), torch.arange(1, 200)), "a part is too small"),
        (lambda image_of: (torch.arange(150), torch.arange(150, 201)), "two tensors of indices from 0 to 199"),
        (lambda image_of: (torch.arange(150), -torch.arange(1, 51)), "two tensors of indices"),
        (lambda image_of: (torch.arange(150) / 2, torch.arange(150, 200)), "two tensors of indices"),
        (lambda image_of: half_of_each(image_of)[0], "it returns Tensor of shape (100,)"),
        (lambda image_of: (*half_of_each(image_of), image_of), "it returns tuple of 3"),
        (lambda image_of: image_of.split(50)[:2][:1], "it returns tuple of 1"),
        (lambda image_of: 1 / 0, "it stopped with ZeroDivisionError"),
        (lambda image_of: (..., ...), "two tensors of indices"),
        (lambda image_of: ..., "not written yet"),
        (lambda image_of: None, "it returns None"),
    ],
)
def test_leak(answer, says, expect):
    expect(says, exercise.check_leak, answer)


def test_a_split_that_leaks_too_little(expect):
    """Half of the test part has no copy in the training part."""

    def half_honest(image_of):
        honest = (image_of < 20).nonzero()[:, 0]
        first, second = (image_of >= 20).nonzero()[:, 0].split((80, 40))
        return first, torch.cat([honest, second])

    expect("of 120 in the test part have no copy in the training part", exercise.check_leak, half_honest)


def test_an_honest_split_is_at_chance_and_a_leaky_one_isn_t():
    honest, leaky = [], []
    for seed in range(50):
        torch.manual_seed(seed)
        copies, labels, image_of = exercise.random_copies()
        honest.append(exercise.nearest_neighbor(copies, labels, *by_image(image_of)))
        leaky.append(exercise.nearest_neighbor(copies, labels, *half_of_each(image_of)))
    assert 0.07 < sum(honest) / 50 < 0.13
    assert min(leaky) > 0.97
