"""Exercises of 16_claims."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from titn_lib.course.checks import ROUNDS, Verdict, all_of, as_tensor, call_answer, compare, describe, number

EXPECTED_BEST_OF_TEN = 1.53875  # standard deviations: the expected largest of ten standard normal values
IMAGES, COPIES = 50, 4  # of exercise 3


def check_honest(answer: Callable[[Tensor, Tensor], Tensor]) -> Verdict:
    """Check the choice of an epoch.

    Args:
        answer: `answer(validation, test)` gets accuracies, "run epoch", and returns the test accuracy of each run at
            the epoch that is best on its validation images.
    """

    def histories() -> tuple[Tensor, Tensor]:
        validation, test = 60 + 30 * torch.rand(2, 5, 12)
        validation[:, -1] = 75  # in the middle: neither the best epoch on average nor the worst
        return validation, test

    def at(values: Tensor, epoch: Tensor) -> Tensor:
        return values.gather(1, epoch.expand(len(values))[:, None])[:, 0]

    return compare(
        answer,
        lambda validation, test: at(test, validation.argmax(dim=1)),
        histories,
        {
            "the epoch is chosen on the test images": lambda validation, test: test.amax(dim=1),
            "the validation accuracy of the chosen epoch is reported": lambda validation, test: validation.amax(dim=1),
            "the last epoch is taken, whatever the validation images say": lambda validation, test: test[:, -1],
            "all runs get the epoch that is best on average": (
                lambda validation, test: at(test, validation.mean(dim=0).argmax())
            ),
            "the worst epoch on the validation images is taken": (
                lambda validation, test: at(test, validation.argmin(dim=1))
            ),
            "the validation accuracy at the epoch that is best on the test images is reported": (
                lambda validation, test: at(validation, test.argmax(dim=1))
            ),
            "the mean over all epochs is taken": lambda validation, test: test.mean(dim=1),
        },
        "right, for three sets of runs. The test images had no say in the choice.",
        tolerance=1e-3,
    )


def check_claim(error: Any, of_difference: Any, spread: Any) -> Verdict:
    """Check three statistics, in percentage points.

    Args:
        error: the standard error of an accuracy of 90 % on 10,000 images.
        of_difference: the standard error of the difference of two such networks, each with its own test images.
        spread: the seeds' standard deviation with which the best of ten would lead their mean by 9.26.
    """
    return all_of(
        standard_error=number(
            error,
            0.3,
            {
                0.003: "that is a share of 1; in points it is a hundred times as much.",
                0.09: "that is the variance, p(1 − p), in shares; take the root of p(1 − p)/n.",
                30: "that is one image's; the mean of 10,000 is a hundred times as precise.",
                0.949: "p(1 − p), not p alone.",
                0.1: "p(1 − p), not (1 − p)² alone.",
                0.588: "that is 1.96 standard errors; one was asked for.",
            },
        ),
        of_the_difference=number(
            of_difference,
            0.3 * 2**0.5,
            {
                0.6: "variances add, not standard errors: the root of 0.3² + 0.3².",
                0.3: "both networks are uncertain, not one.",
                0.18: "that is the sum of the variances; take its root.",
                0.212: "that is for the mean of both: halved. Their difference isn't.",
            },
        ),
        spread_of_seeds=number(
            spread,
            9.26 / EXPECTED_BEST_OF_TEN,
            {
                9.26: "the best of ten lies further out than one standard deviation.",
                9.26 / 1.5: "take two decimals: the best of ten leads by 1.54, not by 1.5.",
                9.26 * EXPECTED_BEST_OF_TEN: "divide: it takes 1.54 of them to make 9.26 points.",
                0.926: "a mean gets more precise with ten seeds; the best of them gets larger.",
                9.26 / 10**0.5: "the root of ten is for means; the best of ten is 1.54 standard deviations out.",
                3.01: "use ten seeds, not a thousand.",
            },
            "all three are right. A network that varies by six points from seed to seed would be of no use.",
        ),
    )


def random_copies() -> tuple[Tensor, Tensor, Tensor]:
    """Images of noise with labels drawn at random, each in four slightly different copies, shuffled.

    Returns:
        The copies, "copy value"; their labels; and for each copy the number of its image.
    """
    image_of = torch.arange(IMAGES).repeat(COPIES)[torch.randperm(IMAGES * COPIES)]
    values, labels = torch.randn(IMAGES, 64), torch.randint(10, (IMAGES,))
    return values[image_of] + 0.2 * torch.randn(len(image_of), 64), labels[image_of], image_of


def nearest_neighbor(copies: Tensor, labels: Tensor, train: Tensor, test: Tensor) -> float:
    """The share of the test part whose nearest neighbor in the training part has the right label."""
    nearest = torch.cdist(copies[test], copies[train]).argmin(dim=1)
    return float((labels[train][nearest] == labels[test]).float().mean())


def as_indices(value: Any, count: int) -> Tensor | None:
    """Indices from 0 to count − 1, from numbers or a mask; None if it is neither."""
    tensor = as_tensor(value)
    if tensor is None or tensor.ndim != 1:
        return None
    if tensor.dtype == torch.bool:
        return tensor.nonzero()[:, 0] if len(tensor) == count else None
    tensor = tensor.detach().double()
    is_index = (tensor == tensor.round()) & (tensor >= 0) & (tensor < count)
    return tensor.long() if bool(is_index.all()) else None


def check_leak(answer: Callable[[Tensor], Any]) -> Verdict:
    """Check a split that makes labels predictable that were drawn at random.

    Args:
        answer: `answer(image_of)` gets the number of each copy's image, and returns the indices of the copies for
            training, and of those for testing.
    """
    smallest = IMAGES * COPIES // 5
    accuracy = 0.0
    for _ in range(ROUNDS):
        copies, labels, image_of = random_copies()
        got = call_answer(answer, image_of)
        if isinstance(got, Verdict):
            return got
        parts = [as_indices(part, len(copies)) for part in got] if isinstance(got, list | tuple) else []
        if len(parts) != 2 or parts[0] is None or parts[1] is None:
            wanted = f"two tensors of indices from 0 to {len(copies) - 1} were asked for"
            return Verdict(False, f"it returns {describe(got)}; {wanted}.")
        train, test = parts[0], parts[1]
        if len(train.unique()) < smallest or len(test.unique()) < smallest:
            return Verdict(False, f"a part is too small: each needs {smallest} of the {len(copies)} copies or more.")
        both = int(torch.isin(test, train).sum())
        if both:
            return Verdict(False, f"{both} of the test part are in the training part, too: each copy in one part only.")
        accuracy = nearest_neighbor(copies, labels, train, test)
        if not torch.isin(image_of[test], image_of[train]).any():
            reason = "no image has copies in both parts, so there is nothing to recognize. That is the honest split"
            return Verdict(False, f"the accuracy is {accuracy:.0%}: {reason}.")
        if accuracy < 0.9:
            missing = int((~torch.isin(image_of[test], image_of[train])).sum())
            reason = f"{missing} of {len(test)} in the test part have no copy in the training part"
            return Verdict(False, f"the accuracy is {accuracy:.0%}; 90 % were asked for. {reason}.")
    return Verdict(True, f"done: {accuracy:.0%} on labels that were drawn at random. No copy was in both parts.")
