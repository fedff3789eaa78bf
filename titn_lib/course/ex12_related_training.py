"""Exercises of 12_related_training."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from titn_lib.course.checks import ROUNDS, Verdict, all_of, call_answer, compare, describe, max_abs_diff, number
from titn_lib.losses.features import similarity_mse
from titn_lib.losses.relabeling import relabel


def check_relabel(answer: Callable[[Tensor, Tensor, float], Tensor]) -> Verdict:
    """`answer(logits, labels, delta)`: the likeliest class where its lead is more than delta, else the label."""

    def where(surer: Callable[[Tensor, Tensor, float], Tensor]) -> Callable[[Tensor, Tensor, float], Tensor]:
        """Relabeling of the rows that `surer(table, labels, delta)` marks."""
        return lambda z, y, d: torch.where(surer(z, y, d), z.argmax(dim=-1), y)

    def lead(table: Tensor, labels: Tensor) -> Tensor:
        return table.amax(dim=-1) - table.gather(-1, labels[:, None])[:, 0]

    def over_second(z: Tensor, y: Tensor, d: float) -> Tensor:
        first, second = z.softmax(dim=-1).topk(2).values.unbind(dim=-1)
        return first - second > d

    mistakes: dict[str, Callable[[Tensor, Tensor, float], Tensor]] = {
        "logits are compared, not probabilities": where(lambda z, y, d: lead(z, y) > d),
        "the largest probability alone is compared with δ; its lead over the label's counts": where(
            lambda z, y, d: z.softmax(dim=-1).amax(dim=-1) > d
        ),
        "the lead is taken over the second likeliest class; it should be over the label's": where(over_second),
        "every label gives way to the likeliest class, however small its lead": lambda z, y, d: z.argmax(dim=-1),
        "the labels give way where the network is not sure: the sign is the wrong way round": where(
            lambda z, y, d: lead(z.softmax(dim=-1), y) <= d
        ),
        "the softmax runs over images; it should run over classes": where(
            lambda z, y, d: lead(z.softmax(dim=0), y) > d
        ),
        "no label is changed": lambda z, y, d: y,
        "δ is taken to be 0.2, whatever it is": lambda z, y, d: relabel(z, y, 0.2),
        "the label's own probability is compared with δ; it should be the likeliest class's lead over it": where(
            lambda z, y, d: z.softmax(dim=-1).gather(-1, y[:, None])[:, 0] < d
        ),
        "each class has a sigmoid of its own; the classes share one softmax": where(
            lambda z, y, d: lead(z.sigmoid(), y) > d
        ),
        "it is the mask that is returned; the labels were asked for": lambda z, y, d: (
            lead(z.softmax(dim=-1), y) > d
        ).long(),
    }

    def inputs() -> tuple[Tensor, Tensor, float]:
        strength = 6 * torch.rand(300, 1)  # some rows are sure, some are not
        return strength * torch.randn(300, 6), torch.randint(6, (300,)), 0.3

    return compare(answer, relabel, inputs, mistakes)


def check_counts(positives: Any, negatives: Any, in_parts: Any, collapsed: Any) -> Verdict:
    """Two views of 50 images, 5 of each of ten classes. An anchor's positives and negatives; its negatives when the
    batch is cut into 5 parts of 10 images, one of each class; the loss of the whole batch if all z are the same."""
    return all_of(
        positives=number(
            positives,
            9,
            {
                10: "an anchor is not its own positive.",
                8: "the other view of the same image is a positive, too.",
                4: "every image has two views.",
                1: "the other view is one of them; the labels add more.",
            },
        ),
        negatives=number(
            negatives,
            90,
            {
                45: "every image has two views.",
                99: "of these 99 some are of the anchor's class.",
                100: "some are of the anchor's class.",
                49: "every image has two views, and some are of the anchor's class.",
            },
        ),
        negatives_in_parts=number(
            in_parts,
            18,
            {
                90: "a part is compared with itself only: its gradient knows nothing of the other parts.",
                9: "every image has two views.",
                19: "one of these 19 is the anchor's other view.",
                20: "two of these 20 are views of the anchor's own image.",
            },
        ),
        collapsed_loss=number(
            collapsed,
            math.log(99),
            {
                0: "a collapsed network can't tell its positives from the rest: each gets an even share.",
                math.log(100): "the anchor itself is left out of the sum.",
                math.log(90): "the sum runs over all others, positives as well.",
                math.log(10): "each of the others gets an even share. How many are they?",
                math.log(11): "the mean over positives is outside the logarithm: each has a share of 1 in 99.",
            },
            "all four are right.",
            within=0.001,
        ),
    )


def check_repair(precision: Any, recall: Any, right: Any) -> Verdict:
    """1,000 labels, 400 of them wrong. 360 are changed: 300 wrong ones to the true class, 20 wrong ones to another
    wrong class, 40 right ones. Precision, recall, and how many labels are right now."""
    return all_of(
        precision=number(
            precision,
            300 / 360,
            {
                320 / 360: "found wrong is not set right: 20 have got another wrong class.",
                300 / 320: "the right ones that were changed count, too.",
                300 / 400: "that is the recall.",
                860 / 1000: "that is the share of all labels that are right now; precision is about the changed ones.",
                100 * 300 / 360: "that is per cent; a share was asked for.",
            },
            within=0.01,
        ),
        recall=number(
            recall,
            300 / 400,
            {
                320 / 400: "20 of these have got another wrong class.",
                300 / 360: "that is the precision.",
                360 / 400: "not all changes are right.",
                75: "that is per cent; a share was asked for.",
            },
            within=0.01,
        ),
        right_now=number(
            right,
            860,
            {
                900: "forty that were right are wrong now.",
                880: "a label that goes from one wrong class to another is not right.",
                300: "600 were right before.",
                840: "20 wrong ones stay wrong: they were never counted as right.",
                0.86: "that is a share; a number of labels was asked for.",
            },
            "all three are right.",
        ),
    )


def check_stranger(answer: Callable[[Tensor], Tensor]) -> Verdict:
    """`answer(teacher)`: rows of another width than the teacher's, and yet a similarity gap of 0."""
    for _ in range(ROUNDS):
        teacher = torch.randn(6, 8)
        student = call_answer(answer, teacher.clone())
        if isinstance(student, Verdict):
            return student
        if not isinstance(student, Tensor):
            return Verdict(False, f"it returns {describe(student)}; a tensor was asked for.")
        if student.ndim != 2 or len(student) != 6:
            shape = tuple(student.shape)
            return Verdict(False, f"six rows were asked for, one for each of the teacher's, and not {shape}.")
        if not student.isfinite().all():
            return Verdict(False, "not all of its numbers are finite.")
        gap = similarity_mse(student, teacher).item()
        if not gap < 1e-6:
            return Verdict(
                False, f"the gap is {gap:.2g}: some pair of rows is more alike, or less, than the teacher's."
            )
        if student.shape == teacher.shape:
            same = max_abs_diff(student, teacher) < 1e-4
            told = "it is the teacher" if same else "its numbers are others, but as many"
            return Verdict(False, f"the gap is 0, and {told}: give its rows another width than 8.")
    return Verdict(True, "done: not even the width is the teacher's, and the loss can't tell the two apart.")
