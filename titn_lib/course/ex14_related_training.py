"""Exercises of 14_related_training."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from titn_lib.course.checks import (
    ROUNDS,
    Verdict,
    all_of,
    as_tensor,
    call_answer,
    compare,
    describe,
    max_abs_diff,
    number,
)
from titn_lib.losses.features import similarity_mse
from titn_lib.losses.relabeling import relabel


def check_relabel(answer: Callable[[Tensor, Tensor, float], Tensor]) -> Verdict:
    """Check dynamic relabeling.

    Args:
        answer: `answer(logits, labels, delta)` returns the most likely class where its probability exceeds the
            label's by more than delta, else the label.
    """

    def where(condition: Callable[[Tensor, Tensor, float], Tensor]) -> Callable[[Tensor, Tensor, float], Tensor]:
        """Relabeling of the rows where `condition(logits, labels, delta)` holds."""
        return lambda z, y, d: torch.where(condition(z, y, d), z.argmax(dim=-1), y)

    def lead(table: Tensor, labels: Tensor) -> Tensor:
        return table.amax(dim=-1) - table.gather(-1, labels[:, None])[:, 0]

    def over_second(z: Tensor, y: Tensor, d: float) -> Tensor:
        first, second = z.softmax(dim=-1).topk(2).values.unbind(dim=-1)
        return first - second > d

    mistakes: dict[str, Callable[[Tensor, Tensor, float], Tensor]] = {
        "logits are compared, not probabilities": where(lambda z, y, d: lead(z, y) > d),
        "the largest probability alone is compared with δ; it should be its lead over the label's": where(
            lambda z, y, d: z.softmax(dim=-1).amax(dim=-1) > d
        ),
        "the lead is taken over the second most likely class; it should be over the label's": where(over_second),
        "every label is replaced by the most likely class, however small its lead": lambda z, y, d: z.argmax(dim=-1),
        "the labels are replaced where the lead is small: the inequality is the wrong way round": where(
            lambda z, y, d: lead(z.softmax(dim=-1), y) <= d
        ),
        "the softmax runs over images; it should run over classes": where(
            lambda z, y, d: lead(z.softmax(dim=0), y) > d
        ),
        "no label is changed": lambda z, y, d: y,
        "δ is taken to be 0.2, whatever it is": lambda z, y, d: relabel(z, y, 0.2),
        "the label's own probability is compared with δ; it should be the most likely class's lead over it": where(
            lambda z, y, d: z.softmax(dim=-1).gather(-1, y[:, None])[:, 0] < d
        ),
        "each class has a sigmoid of its own; the classes share one softmax": where(
            lambda z, y, d: lead(z.sigmoid(), y) > d
        ),
        "the mask is returned; the labels were asked for": lambda z, y, d: (lead(z.softmax(dim=-1), y) > d).long(),
    }

    def inputs() -> tuple[Tensor, Tensor, float]:
        scale = 6 * torch.rand(300, 1)  # some rows are confident, some are not
        return scale * torch.randn(300, 6), torch.randint(6, (300,)), 0.3

    return compare(answer, relabel, inputs, mistakes)


def check_counts(positives: Any, negatives: Any, in_parts: Any, collapsed: Any) -> Verdict:
    """Check four numbers about two views of 50 images, 5 of each of ten classes.

    Args:
        positives, negatives: of an anchor.
        in_parts: its negatives when the batch is split into 5 parts of 10 images, one of each class.
        collapsed: the loss of the whole batch if all z are the same.
    """
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
                90: "a part is compared with itself only: its gradient does not depend on the other parts.",
                9: "every image has two views.",
                19: "one of these 19 is the anchor's other view.",
                20: "two of these 20 are views of the anchor's own image.",
            },
        ),
        collapsed_loss=number(
            collapsed,
            math.log(99),
            {
                0: "a collapsed network can't separate its positives from the rest: each gets an even share.",
                4.6: "the logarithms of 99 and of 100 both round to that: give three decimals.",
                math.log(100): "the anchor itself is left out of the sum.",
                math.log(90): "the sum runs over all others, positives as well.",
                math.log(10): "each of the others gets an even share. How many are there?",
                math.log(11): "the mean over positives is outside the logarithm: each has a share of 1 in 99.",
            },
            "all four are right.",
        ),
    )


def check_repair(precision: Any, recall: Any, right: Any) -> Verdict:
    """Check the quality of a relabeling.

    Of 1,000 labels 400 are wrong. 360 are changed: 300 wrong ones to the true class, 20 wrong ones to another wrong
    class, 40 correct ones.

    Args:
        precision, recall: as shares.
        right: the number of labels that are correct afterwards.
    """
    return all_of(
        precision=number(
            precision,
            300 / 360,
            {
                320 / 360: "finding a wrong label is not correcting it: 20 were given another wrong class.",
                300 / 340: "the 20 that were given another wrong class were changed, too.",
                300 / 320: "the correct ones that were changed count, too.",
                300 / 400: "that is the recall.",
                860 / 1000: "that is the share of all labels that are correct; precision is about the changed ones.",
                100 * 300 / 360: "that is per cent; a share was asked for.",
            },
        ),
        recall=number(
            recall,
            300 / 400,
            {
                320 / 400: "20 of these were given another wrong class.",
                300 / 360: "that is the precision.",
                360 / 400: "not all changes are correct.",
                75: "that is per cent; a share was asked for.",
            },
        ),
        right_now=number(
            right,
            860,
            {
                900: "forty that were correct are wrong now.",
                880: "a label that changes from one wrong class to another is not correct.",
                300: "600 were correct before.",
                840: "20 wrong ones stay wrong: they were never counted as correct.",
                0.86: "that is a share; a number of labels was asked for.",
            },
            "all three are right.",
        ),
    )


def check_stranger(answer: Callable[[Tensor], Tensor]) -> Verdict:
    """Check features that the similarity loss can't distinguish from the teacher's.

    Args:
        answer: `answer(teacher)` returns rows of another width than the teacher's, with a `similarity_mse` of 0.
    """
    for _ in range(ROUNDS):
        teacher = torch.randn(6, 8)
        got = call_answer(answer, teacher)
        if isinstance(got, Verdict):
            return got
        student = as_tensor(got)
        if student is None or student.ndim != 2 or len(student) != 6:
            wanted = "six rows were asked for, one for each of the teacher's"
            return Verdict(False, f"it returns {describe(got)}; {wanted}.")
        if not student.isfinite().all():
            return Verdict(False, "not all of its values are finite.")
        gap = similarity_mse(student.to(teacher), teacher).item()
        if not gap < 1e-6:
            return Verdict(
                False, f"the gap is {gap:.2g}: some pair of rows has another cosine similarity than the teacher's."
            )
        if student.shape == teacher.shape:
            same = max_abs_diff(student, teacher) < 1e-4
            what = "it is the teacher" if same else "its values differ, but its width is the same"
            return Verdict(False, f"the gap is 0, and {what}: give its rows another width than 8.")
    return Verdict(True, "done: not even the width is the teacher's, and the loss can't distinguish the two.")
