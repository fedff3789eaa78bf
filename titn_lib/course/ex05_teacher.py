"""Exercises of 05_teacher."""

import copy
import operator
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from titn_lib.course.checks import NOT_YET, Verdict, all_of, as_bool, call_answer, compare, describe, number, unwritten
from titn_lib.data.datasets import DataSplits, load_dataset
from titn_lib.data.transforms import normalize
from titn_lib.losses.distillation import freeze
from titn_lib.models.base import Classifier
from titn_lib.models.registry import create_model
from titn_lib.models.teachers import Teacher
from titn_lib.models.weights import load_model

CalibrationFunction = Callable[[Tensor, Tensor, int], Tensor]

TARGET_INDEX = 0  # the test digit that is to be misclassified
COMPANY_SIZE = 15


def bins_of(confidence: Tensor, correct: Tensor, bins: int) -> tuple[Tensor, Tensor, Tensor]:
    """For each bin: the number of images, the sum of their confidences, and the number classified correctly."""
    bin_index = (confidence * bins).long().clamp(max=bins - 1)
    empty = torch.zeros(bins, dtype=torch.float64)
    weights = (torch.ones_like(correct), confidence, correct)
    counts, confidence_sums, correct_sums = (empty.index_add(0, bin_index, values.double()) for values in weights)
    return counts, confidence_sums, correct_sums


def calibration_error(probabilities: Tensor, labels: Tensor, bins: int = 10) -> Tensor:
    """The expected calibration error (Guo et al. 2017), of probabilities "image class" and labels "image"."""
    confidence, predicted = probabilities.max(dim=-1)
    _, confidence_sums, correct_sums = bins_of(confidence, (predicted == labels).double(), bins)
    return (confidence_sums - correct_sums).abs().sum() / len(labels)


def bin_gaps(probabilities: Tensor, labels: Tensor, bins: int) -> tuple[Tensor, Tensor]:
    """For each bin that is not empty: confidence minus accuracy, and its share of the images."""
    confidence, predicted = probabilities.max(dim=-1)
    counts, confidence_sums, correct_sums = bins_of(confidence, (predicted == labels).double(), bins)
    filled = counts > 0
    return ((confidence_sums - correct_sums) / counts.clamp(min=1))[filled], (counts / len(labels))[filled]


def check_calibration(answer: Callable[[Tensor, Tensor, int], Any]) -> Verdict:
    """`answer(probabilities, labels, bins)`: "image class", "image" → the expected calibration error."""
    sizes = iter([12, 5, 20])

    def inputs() -> tuple[Tensor, Tensor, int]:
        bins = next(sizes)
        while True:  # until the number of bins makes a difference: it doesn't where all gaps have the same sign
            probabilities, labels = random_predictions()
            error, with_ten = (calibration_error(probabilities, labels, count) for count in (bins, 10))
            if abs(error - with_ten) > 1e-3:
                return probabilities, labels, bins

    return compare(answer, calibration_error, inputs, gap_mistakes() | confidence_mistakes(), tolerance=1e-5)


def gap_mistakes() -> dict[str, CalibrationFunction]:
    """Mistakes in how the bins' gaps are weighted and summed, by what they do."""

    def unweighted(probabilities: Tensor, labels: Tensor, bins: int) -> Tensor:
        return bin_gaps(probabilities, labels, bins)[0].abs().mean()

    def over_all_bins(probabilities: Tensor, labels: Tensor, bins: int) -> Tensor:
        return summed(probabilities, labels, bins) / bins

    def by_count(probabilities: Tensor, labels: Tensor, bins: int) -> Tensor:
        return calibration_error(probabilities, labels, bins) * len(labels)

    def squared(probabilities: Tensor, labels: Tensor, bins: int) -> Tensor:
        gaps, shares = bin_gaps(probabilities, labels, bins)
        return (gaps**2 * shares).sum()

    def root(probabilities: Tensor, labels: Tensor, bins: int) -> Tensor:
        return squared(probabilities, labels, bins).sqrt()

    def summed(probabilities: Tensor, labels: Tensor, bins: int) -> Tensor:
        return bin_gaps(probabilities, labels, bins)[0].abs().sum()

    def signed(probabilities: Tensor, labels: Tensor, bins: int) -> Tensor:
        gaps, shares = bin_gaps(probabilities, labels, bins)
        return (gaps * shares).sum()

    def signed_other_way(probabilities: Tensor, labels: Tensor, bins: int) -> Tensor:
        return -signed(probabilities, labels, bins)

    cancel = "so that overconfident bins cancel underconfident ones (one bin for all does the same)"
    return {
        "every bin has the same weight; the weight should be its share of the images": unweighted,
        "the gaps are summed and divided by the number of bins; the weight of a bin should be its share of the "
        "images": over_all_bins,
        "the weight of a bin is its number of images; divide by the number of all images": by_count,
        "the gaps are squared": squared,
        "the gaps are squared (and the root is taken at the end)": root,
        "every bin has the same weight, and the gaps are only summed": summed,
        f"the gaps keep their signs (confidence minus accuracy), {cancel}": signed,
        f"the gaps keep their signs (accuracy minus confidence), {cancel}": signed_other_way,
    }


def confidence_mistakes() -> dict[str, CalibrationFunction]:
    """Mistakes in confidence, bins and unit, by what they do."""

    def percent(probabilities: Tensor, labels: Tensor, bins: int) -> Tensor:
        return 100 * calibration_error(probabilities, labels, bins)

    def softmax_twice(probabilities: Tensor, labels: Tensor, bins: int) -> Tensor:
        return calibration_error(probabilities.softmax(dim=-1), labels, bins)

    def true_class(probabilities: Tensor, labels: Tensor, bins: int) -> Tensor:
        confidence = probabilities.gather(-1, labels[:, None])[:, 0]
        correct = (probabilities.argmax(dim=-1) == labels).double()
        _, confidence_sums, correct_sums = bins_of(confidence, correct, bins)
        return (confidence_sums - correct_sums).abs().sum() / len(labels)

    def without_certain(probabilities: Tensor, labels: Tensor, bins: int) -> Tensor:
        confidence, predicted = probabilities.max(dim=-1)
        kept = confidence < 1
        _, confidence_sums, correct_sums = bins_of(confidence[kept], (predicted == labels).double()[kept], bins)
        return (confidence_sums - correct_sums).abs().sum() / len(labels)

    def with_empty_bins(probabilities: Tensor, labels: Tensor, bins: int) -> Tensor:
        confidence, predicted = probabilities.max(dim=-1)
        counts, _, _ = bins_of(confidence, (predicted == labels).double(), bins)
        return calibration_error(probabilities, labels, bins) + (0 / counts).sum()  # 0 / 0 in an empty bin

    def ten_bins(probabilities: Tensor, labels: Tensor, bins: int) -> Tensor:
        return calibration_error(probabilities, labels, 10)

    return {
        "it is given in percent": percent,
        "softmax is applied to what are probabilities already": softmax_twice,
        "the confidence is the true class's probability; use the predicted class's, right or wrong": true_class,
        "images with a confidence of exactly 1 are missing from the last bin": without_certain,
        "the means of empty bins are taken; they have none, so leave them out": with_empty_bins,
        "there are ten bins, whatever `bins` says": ten_bins,
    }


def random_predictions() -> tuple[Tensor, Tensor]:
    """Probabilities and labels, underconfident in some bins and overconfident in others. Some bins are empty, and some
    predictions have a confidence of 1."""
    logits = torch.randn(400, 10, dtype=torch.float64)
    labels = torch.distributions.Categorical(logits=2 * logits).sample()
    logits[200:] *= 4  # overconfident; the others are underconfident
    logits[:40] += 1000 * nn.functional.one_hot(torch.randint(10, (40,)), 10)
    return logits.softmax(dim=-1), labels


def check_temperature(changed: Any, two_classes: Any, limit: Any) -> Verdict:
    """How many of 360 predictions change when all logits are divided by 4; what a probability of 0.9 of two classes
    becomes at T = 2; the limit of the confidence over ten classes when T tends to infinity."""
    return all_of(
        changed=number(changed, 0, {360: "all probabilities change; the largest stays the largest."}),
        two_classes=number(
            two_classes,
            0.75,
            {
                0.45: "T divides the logits and not the probabilities.",
                0.9**0.5: "the root is that of the ratio of the two probabilities, not of one.",
                0.81: "halving the logits takes a root; this is a square. And it is that of the ratio of the two.",
                0.9: "the prediction stays the same, its probability doesn't.",
                0.5: "that is the limit when T tends to infinity.",
                81 / 82: "that is T = 1/2: below 1 it sharpens, above it softens.",
                75: "that is in percent: a probability is at most 1.",
            },
        ),
        limit=number(
            limit,
            0.1,
            {
                0: "ten probabilities still add up to 1.",
                1: "that is the limit when T tends to 0.",
                0.5: "there are ten classes.",
                10: "that is in percent: a probability is at most 1.",
            },
            "all three are right: a temperature changes a teacher's confidence and never its prediction.",
        ),
    )


def check_company(company: Any) -> Verdict:
    """`company`: indices of fifteen test digits; among them a teacher in training mode misclassifies digit 0."""
    if unwritten(company):
        return NOT_YET
    try:
        members = [one.item() if hasattr(one, "item") else one for one in company]
        if any(isinstance(one, bool) for one in members):
            return Verdict(False, "it is a boolean mask; the digits' indices were asked for (`nonzero`).")
        indices = [operator.index(one) for one in members]
    except Exception:  # whatever the answer may be
        return Verdict(False, f"it is {describe(company)}; a list of {COMPANY_SIZE} indices (integers) was asked for.")
    if len(indices) != COMPANY_SIZE or len(set(indices)) != COMPANY_SIZE:
        return Verdict(
            False,
            f"{COMPANY_SIZE} different digits were asked for; these are {len(indices)}, {len(set(indices))} of them "
            "different.",
        )
    data = load_dataset("digits")
    if min(indices) < 0 or max(indices) >= len(data.test):
        return Verdict(False, f"the test images have the indices 0 to {len(data.test) - 1}.")
    if TARGET_INDEX in indices:
        return Verdict(False, f"index {TARGET_INDEX} is in the batch already: choose {COMPANY_SIZE} others.")
    in_eval, in_train = probabilities_in_both_modes(data, indices)
    frozen, moved = int(in_eval.argmax()), int(in_train.argmax())
    change = f"from {in_eval[frozen]:.2f} to {in_train[frozen]:.2f}"
    if frozen == moved:
        return Verdict(
            False,
            f"in this batch it is still classified as {frozen}; the probability went {change}. Training mode subtracts "
            "each channel's mean over the batch: in which batch does nothing of this digit stand out?",
        )
    return Verdict(
        True,
        f"right: frozen, the teacher predicts {frozen}, in this batch {moved}; the probability of {frozen} went "
        f"{change}.",
    )


def probabilities_in_both_modes(data: DataSplits, company: list[int]) -> tuple[Tensor, Tensor]:
    """The pretrained teacher's probabilities for the target digit, in a batch with these test digits.

    Returns:
        "class" in evaluation mode, and "class" in training mode.
    """
    teacher = load_model("vgg7_bn.digits")
    batch = normalize(data.test.images[[TARGET_INDEX, *company]], data.mean, data.std)
    with torch.no_grad():
        return teacher.eval()(batch)[0].softmax(dim=-1), teacher.train()(batch)[0].softmax(dim=-1)


def teachers_to_judge() -> Iterator[tuple[Teacher, bool, str]]:
    """Teachers, whether each is frozen, and what to say where an answer is wrong about it."""

    def fresh() -> Teacher:
        teacher = create_model("vgg7_bn", in_channels=1, image_size=(16, 16))
        assert isinstance(teacher, Teacher)
        return freeze(teacher)

    yield fresh(), True, "it returns False for a frozen teacher."
    yield fresh().train(), False, "it returns True for a teacher in training mode."
    one_layer = fresh()
    next(layer for layer in reversed(list(one_layer.modules())) if isinstance(layer, nn.BatchNorm2d)).train()
    yield (
        one_layer,
        False,
        "it returns True though one batch normalization is in training mode: `teacher.training` is the flag of the "
        "outermost module only.",
    )
    dropping = fresh()
    dropping.head.append(nn.Dropout())
    yield (
        dropping,
        False,
        "it returns True though a dropout is in training mode: check every layer, not only batch normalization.",
    )
    yield fresh().requires_grad_(True), False, "it returns True though the weights require gradients."
    thawed = fresh()
    list(thawed.parameters())[-1].requires_grad_(True)
    yield thawed, False, "it returns True though one of the weights, the last, requires a gradient."


def check_detector(answer: Callable[[Classifier], Any]) -> Verdict:
    """`answer(teacher)`: whether every layer is in evaluation mode and no weight requires a gradient."""
    for teacher, expected, message in teachers_to_judge():
        before, weights = state_of(teacher), copy.deepcopy(teacher.state_dict())
        got = call_answer(answer, teacher)
        if isinstance(got, Verdict):
            return got
        frozen = as_bool(got)
        if frozen is None:
            return Verdict(False, f"it returns {describe(got)}; True or False was asked for.")
        after = teacher.state_dict()
        if state_of(teacher) != before or any(not torch.equal(value, after[name]) for name, value in weights.items()):
            return Verdict(False, "it changes the teacher; it should only inspect it.")
        if frozen is not expected:
            return Verdict(False, message)
    return Verdict(True, "right, on six teachers, frozen, half frozen and not.")


def state_of(teacher: nn.Module) -> tuple[list[bool], dict[str, bool]]:
    """Which layers are in training mode, and which weights require a gradient."""
    weights = dict(teacher.named_parameters())
    return [module.training for module in teacher.modules()], {name: w.requires_grad for name, w in weights.items()}
