"""Exercises of 05_teacher."""

import copy
import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from titn_lib.course.checks import NOT_YET, Verdict, all_of, call_answer, compare, describe, number, unwritten
from titn_lib.data.datasets import DataSplits, load_dataset
from titn_lib.data.transforms import normalize
from titn_lib.losses.distillation import freeze
from titn_lib.models.base import Classifier
from titn_lib.models.registry import create_model
from titn_lib.models.teachers import Teacher
from titn_lib.models.weights import load_model

WHICH = 0  # the test digit that is to be misread
COMPANY = 15


def bins_of(confidence: Tensor, right: Tensor, bins: int) -> tuple[Tensor, Tensor, Tensor]:
    """For each bin: how many images it has, the sums of their confidence and of their right answers."""
    which = (confidence * bins).long().clamp(max=bins - 1)
    empty = torch.zeros(bins, dtype=torch.float64)
    weights = (torch.ones_like(right), confidence, right)
    counts, sure, correct = (empty.index_add(0, which, values.double()) for values in weights)
    return counts, sure, correct


def calibration_error(probabilities: Tensor, labels: Tensor, bins: int = 10) -> Tensor:
    confidence, answer = probabilities.max(dim=-1)
    _, sure, right = bins_of(confidence, (answer == labels).double(), bins)
    return (sure - right).abs().sum() / len(labels)


def check_calibration(answer: Callable[[Tensor, Tensor, int], Any]) -> Verdict:
    """`answer(probabilities, labels, bins)`: "image class", "image" → the expected calibration error."""

    def parts(probabilities: Tensor, labels: Tensor, bins: int) -> tuple[Tensor, Tensor]:
        """The gap of each bin that isn't empty, and its share of the images."""
        confidence, said = probabilities.max(dim=-1)
        counts, sure, right = bins_of(confidence, (said == labels).double(), bins)
        filled = counts > 0
        return ((sure - right) / counts.clamp(min=1))[filled], (counts / len(labels))[filled]

    def unweighted(probabilities: Tensor, labels: Tensor, bins: int) -> Tensor:
        return parts(probabilities, labels, bins)[0].abs().mean()

    def by_count(probabilities: Tensor, labels: Tensor, bins: int) -> Tensor:
        return calibration_error(probabilities, labels, bins) * len(labels)

    def over_all_bins(probabilities: Tensor, labels: Tensor, bins: int) -> Tensor:
        return parts(probabilities, labels, bins)[0].abs().sum() / bins

    def squared(probabilities: Tensor, labels: Tensor, bins: int) -> Tensor:
        gaps, shares = parts(probabilities, labels, bins)
        return (gaps**2 * shares).sum()

    def root(probabilities: Tensor, labels: Tensor, bins: int) -> Tensor:
        return squared(probabilities, labels, bins).sqrt()

    def signed(probabilities: Tensor, labels: Tensor, bins: int) -> Tensor:
        gaps, shares = parts(probabilities, labels, bins)
        return (gaps * shares).sum()

    def signed_other_way(probabilities: Tensor, labels: Tensor, bins: int) -> Tensor:
        return -signed(probabilities, labels, bins)

    def true_class(probabilities: Tensor, labels: Tensor, bins: int) -> Tensor:
        confidence = probabilities.gather(-1, labels[:, None])[:, 0]
        right = (probabilities.argmax(dim=-1) == labels).double()
        _, sure, correct = bins_of(confidence, right, bins)
        return (sure - correct).abs().sum() / len(labels)

    def without_certain(probabilities: Tensor, labels: Tensor, bins: int) -> Tensor:
        confidence, said = probabilities.max(dim=-1)
        kept = confidence < 1
        _, sure, right = bins_of(confidence[kept], (said == labels).double()[kept], bins)
        return (sure - right).abs().sum() / len(labels)

    def ten_bins(probabilities: Tensor, labels: Tensor, bins: int) -> Tensor:
        return calibration_error(probabilities, labels, 10)

    def summed(probabilities: Tensor, labels: Tensor, bins: int) -> Tensor:
        return parts(probabilities, labels, bins)[0].abs().sum()

    def per_cent(probabilities: Tensor, labels: Tensor, bins: int) -> Tensor:
        return 100 * calibration_error(probabilities, labels, bins)

    def softmax_twice(probabilities: Tensor, labels: Tensor, bins: int) -> Tensor:
        return calibration_error(probabilities.softmax(dim=-1), labels, bins)

    cancel = "so that what is too sure makes up for what is too modest (one bin for all does the same)"
    mistakes = {
        "every bin counts the same; it should count by its share of the images": unweighted,
        "the gaps are added up and divided by the number of bins; a bin should count by its share of the "
        "images": over_all_bins,
        "a bin counts by its number of images; divide by the number of all images": by_count,
        "the gaps are squared": squared,
        "the gaps are squared (and the root is taken at the end)": root,
        "every bin counts the same, and the gaps are only added up": summed,
        "it is given in per cent": per_cent,
        "a softmax is taken of what are probabilities already": softmax_twice,
        f"the gaps keep their signs (sure minus right), {cancel}": signed,
        f"the gaps keep their signs (right minus sure), {cancel}": signed_other_way,
        "the confidence is the true class's probability; it should be that of the answer, right or wrong": true_class,
        "images with a confidence of exactly 1 fall out of the last bin": without_certain,
        "there are ten bins, whatever `bins` says": ten_bins,
    }
    bins = iter([12, 5, 20])
    return compare(
        one_number(answer), calibration_error, lambda: (*some_answers(), next(bins)), mistakes, tolerance=1e-5
    )


def some_answers() -> tuple[Tensor, Tensor]:
    """Probabilities and labels, too modest in some bins and too sure in others. Some bins are empty, and some answers
    are certain."""
    logits = torch.randn(400, 10, dtype=torch.float64)
    labels = torch.distributions.Categorical(logits=2 * logits).sample()
    logits[200:] *= 4  # too sure; the others are too modest
    logits[:40] += 1000 * nn.functional.one_hot(torch.randint(10, (40,)), 10)
    return logits.softmax(dim=-1), labels


def one_number(answer: Callable[..., Any]) -> Callable[..., Any]:
    """The same function, a tensor of one value as that value. Not a number (from the mean of an empty bin) says so."""

    def wrapped(*arguments: Any) -> Any:
        got = answer(*arguments)
        got = got.item() if isinstance(got, Tensor) and got.numel() == 1 else got
        if isinstance(got, float) and math.isnan(got):
            raise ValueError("it is not a number; an empty bin has no mean, so leave it out")
        return got

    return wrapped


def check_temperature(changed: Any, two_classes: Any, limit: Any) -> Verdict:
    """How many of 360 answers change when all logits are divided by 4; what becomes of a probability of 0.9 among two
    classes at T = 2; what the confidence tends to among ten classes when T grows without end."""
    return all_of(
        changed=number(changed, 0, {360: "all probabilities change; the largest stays the largest."}),
        two_classes=number(
            two_classes,
            0.75,
            {
                0.45: "T divides the logits and not the probabilities.",
                0.9: "the answer stays, its probability doesn't.",
                0.5: "that is where it goes when T grows without end.",
                81 / 82: "that is T = 1/2: below 1 it sharpens, above it softens.",
                75: "that is per cent: a probability is at most 1.",
            },
        ),
        limit=number(
            limit,
            0.1,
            {
                0: "ten probabilities still add up to 1.",
                1: "that is where it goes when T shrinks to nothing.",
                0.5: "there are ten classes.",
                10: "that is per cent: a probability is at most 1.",
            },
            "all three are right: a temperature changes how sure a teacher is, and never what it answers.",
        ),
    )


def check_company(company: Any) -> Verdict:
    """Fifteen test digits (their numbers) in whose company a teacher in training mode misreads the first one."""
    if unwritten(company):
        return NOT_YET
    data = load_dataset("digits")
    try:
        numbers = [int(one) for one in company]
    except (TypeError, ValueError):
        return Verdict(False, f"it is {describe(company)}; a list of {COMPANY} whole numbers was asked for.")
    if getattr(company, "dtype", None) in (bool, torch.bool) or any(isinstance(one, bool) for one in company):
        return Verdict(False, "it is a mask of true and false; the digits' numbers were asked for (nonzero).")
    if len(numbers) != COMPANY or len(set(numbers)) != COMPANY:
        return Verdict(
            False,
            f"{COMPANY} different digits were asked for; these are {len(numbers)}, {len(set(numbers))} of them "
            "different.",
        )
    if min(numbers) < 0 or max(numbers) >= len(data.test):
        return Verdict(False, f"the test images have the numbers 0 to {len(data.test) - 1}.")
    if WHICH in numbers:
        return Verdict(False, f"number {WHICH} is in already: choose {COMPANY} others.")
    alone, among = asked_both_ways(data, numbers)
    frozen, moved = int(alone.argmax()), int(among.argmax())
    share = f"{alone[frozen]:.2f} to {among[frozen]:.2f}"
    if frozen == moved:
        return Verdict(
            False,
            f"in this company it still reads a {frozen}, with a probability that went from {share}. In training mode "
            "each channel's mean over the batch is taken away: in which company does nothing of this digit stand out?",
        )
    return Verdict(
        True, f"right: frozen it reads a {frozen}, in this company a {moved}; the {frozen} went from {share}."
    )


def asked_both_ways(data: DataSplits, company: list[int]) -> tuple[Tensor, Tensor]:
    """What the shipped teacher says of the digit when it is frozen, and when it is in training mode in company."""
    teacher = load_model("vgg7_bn.digits")
    batch = normalize(data.test.images[[WHICH, *company]], data.mean, data.std)
    with torch.no_grad():
        return teacher.eval()(batch)[0].softmax(dim=-1), teacher.train()(batch)[0].softmax(dim=-1)


def check_detector(answer: Callable[[Classifier], Any]) -> Verdict:
    """`answer(teacher)`: whether it is frozen: every layer in evaluation mode, and no weight that takes a gradient."""

    def fresh() -> Teacher:
        teacher = create_model("vgg7_bn", in_channels=1, image_size=(16, 16))
        assert isinstance(teacher, Teacher)
        return freeze(teacher)

    one_layer = fresh()
    next(layer for layer in reversed(list(one_layer.modules())) if isinstance(layer, nn.BatchNorm2d)).train()
    dropping = fresh()
    dropping.head.append(nn.Dropout())
    thawed = fresh()
    list(thawed.parameters())[-1].requires_grad_(True)
    cases = (
        (fresh(), True, "it calls a frozen teacher not frozen."),
        (fresh().train(), False, "it does not see a teacher in training mode."),
        (
            one_layer,
            False,
            "it does not see a single batch normalization left in training mode: `teacher.training` speaks for the "
            "outermost module only.",
        ),
        (
            dropping,
            False,
            "it does not see a dropout left in training mode: every layer counts, not batch normalization alone.",
        ),
        (fresh().requires_grad_(True), False, "it does not see that the weights take gradients."),
        (thawed, False, "it does not see that one of the weights, the last, takes a gradient."),
    )
    for teacher, truth, missed in cases:
        before = state_of(teacher.modules()), [weight.requires_grad for weight in teacher.parameters()]
        weights = copy.deepcopy(teacher.state_dict())
        got = call_answer(answer, teacher)
        if isinstance(got, Verdict):
            return got
        if not isinstance(got, bool) and not (isinstance(got, Tensor) and got.dtype == torch.bool and got.numel() == 1):
            return Verdict(False, f"it returns {describe(got)}; True or False was asked for.")
        after = state_of(teacher.modules()), [weight.requires_grad for weight in teacher.parameters()]
        if before != after or any(not torch.equal(weights[name], now) for name, now in teacher.state_dict().items()):
            return Verdict(False, "it changes the teacher that it is asked about; it should only look.")
        if bool(got) is not truth:
            return Verdict(False, missed)
    return Verdict(True, "right, on six teachers, frozen, half frozen and not.")


def state_of(modules: Iterable[nn.Module]) -> list[bool]:
    return [module.training for module in modules]
