"""Exercises of 06_distillation."""

from collections.abc import Callable
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from titn_lib.course.checks import Verdict, all_of, call_answer, compare, describe, max_abs_diff, number
from titn_lib.data.datasets import load_dataset
from titn_lib.data.mixing import MixedTargets, cutmix
from titn_lib.data.transforms import normalize
from titn_lib.losses.distillation import freeze, soft_loss, teacher_forward
from titn_lib.models.teachers import Teacher
from titn_lib.models.weights import load_model

LossFunction = Callable[[Tensor, Tensor, float], Tensor]


def divergence(log_p: Tensor, log_q: Tensor) -> Tensor:
    """KL(p ‖ q) of each image."""
    return (log_p.exp() * (log_p - log_q)).sum(dim=-1)


def softened(student: Tensor, teacher: Tensor, T: float) -> tuple[Tensor, Tensor]:
    """Log-probabilities of student and teacher at temperature T."""
    return (student / T).log_softmax(dim=-1), (teacher / T).log_softmax(dim=-1)


def check_soft_loss(answer: Callable[[Tensor, Tensor, float], Tensor]) -> Verdict:
    """`answer(student_logits, teacher_logits, temperature)`: T²·KL(teacher ‖ student), the mean over images."""
    temperatures = iter([4.0, 2.0, 8.0])

    def inputs() -> tuple[Tensor, Tensor, float]:
        return 2 * torch.randn(6, 10), 2 * torch.randn(6, 10), next(temperatures)

    mistakes = scale_mistakes() | temperature_mistakes() | divergence_mistakes()
    verdict = compare(answer, soft_loss, inputs, mistakes)
    if verdict.right:
        student = torch.randn(6, 10, requires_grad=True)
        if gradient(answer(student, torch.randn(6, 10), 4.0), student) == 0:
            return Verdict(False, "the value is right, but no gradient reaches the student: it would not train.")
    return verdict


def scale_mistakes() -> dict[str, LossFunction]:
    """Wrong factors of the soft loss, by what they do."""

    def without_square(student: Tensor, teacher: Tensor, T: float) -> Tensor:
        return soft_loss(student, teacher, T) / T**2

    def only_once(student: Tensor, teacher: Tensor, T: float) -> Tensor:
        return soft_loss(student, teacher, T) / T

    def over_entries(student: Tensor, teacher: Tensor, T: float) -> Tensor:
        return soft_loss(student, teacher, T) / student.shape[-1]

    def over_entries_without_square(student: Tensor, teacher: Tensor, T: float) -> Tensor:
        return over_entries(student, teacher, T) / T**2

    def summed(student: Tensor, teacher: Tensor, T: float) -> Tensor:
        return soft_loss(student, teacher, T) * len(student)

    def negative(student: Tensor, teacher: Tensor, T: float) -> Tensor:
        return -soft_loss(student, teacher, T)

    return {
        "T² is left out: the gradient then shrinks when T grows": without_square,
        "the loss is multiplied by T and not by T²": only_once,
        "the mean is taken over all entries, so that the loss is too small by a factor of the number of "
        'classes (kl_div\'s reduction="mean" does this; "batchmean" is the mean over images)': over_entries,
        "the mean is taken over all entries and T² is left out": over_entries_without_square,
        "the loss is summed over images; the mean was asked for": summed,
        "the sign is the wrong way round: a KL is never below 0": negative,
    }


def temperature_mistakes() -> dict[str, LossFunction]:
    """Wrong uses of the temperature in the soft loss, by what they do."""

    def hard_teacher(student: Tensor, teacher: Tensor, T: float) -> Tensor:
        return T**2 * divergence(teacher.log_softmax(dim=-1), (student / T).log_softmax(dim=-1)).mean()

    def hard_student(student: Tensor, teacher: Tensor, T: float) -> Tensor:
        return T**2 * divergence((teacher / T).log_softmax(dim=-1), student.log_softmax(dim=-1)).mean()

    def not_softened(student: Tensor, teacher: Tensor, T: float) -> Tensor:
        return T**2 * soft_loss(student, teacher, 1.0)

    def no_temperature(student: Tensor, teacher: Tensor, T: float) -> Tensor:
        return soft_loss(student, teacher, 1.0)

    def multiplied(student: Tensor, teacher: Tensor, T: float) -> Tensor:
        return T**2 * soft_loss(student * T, teacher * T, 1.0)

    return {
        "the teacher is not softened: divide its logits by the temperature, too": hard_teacher,
        "the student is not softened: divide its logits by the temperature, too": hard_student,
        "neither is softened": not_softened,
        "there is no temperature at all": no_temperature,
        "the logits are multiplied by T; they should be divided": multiplied,
    }


def divergence_mistakes() -> dict[str, LossFunction]:
    """Something else than KL(teacher ‖ student) over classes, by what it is."""

    def wrong_way(student: Tensor, teacher: Tensor, T: float) -> Tensor:
        return T**2 * divergence(*softened(student, teacher, T)).mean()

    def cross_entropy(student: Tensor, teacher: Tensor, T: float) -> Tensor:
        return T**2 * F.cross_entropy(student / T, (teacher / T).softmax(dim=-1))

    def no_logarithm(student: Tensor, teacher: Tensor, T: float) -> Tensor:
        q, p = (log_probabilities.exp() for log_probabilities in softened(student, teacher, T))
        return T**2 * F.kl_div(q, p, reduction="batchmean")

    def no_log_target(student: Tensor, teacher: Tensor, T: float) -> Tensor:
        log_q, log_p = softened(student, teacher, T)
        return T**2 * F.kl_div(log_q, log_p, reduction="batchmean")

    def over_images(student: Tensor, teacher: Tensor, T: float) -> Tensor:
        log_q, log_p = (student / T).log_softmax(dim=0), (teacher / T).log_softmax(dim=0)
        return T**2 * divergence(log_p, log_q).mean()

    return {
        "the KL goes the wrong way round: the teacher's probabilities are the weights": wrong_way,
        "this is the cross-entropy with the teacher's probabilities: its gradient is right, but the teacher's own "
        "entropy is left in, so that a perfect student does not reach 0": cross_entropy,
        "kl_div is given the student's probabilities; it expects their logarithms": no_logarithm,
        "kl_div takes the teacher's log-probabilities for probabilities: pass exp() of them, or "
        "log_target=True": no_log_target,
        "the softmax runs over images; it should run over classes": over_images,
    }


def gradient(loss: Tensor | float, logits: Tensor) -> float:
    """The largest absolute entry of the loss's gradient; 0 for a plain number."""
    if not isinstance(loss, Tensor) or not loss.requires_grad:
        return 0.0
    found = torch.autograd.grad(loss, logits, retain_graph=True, allow_unused=True)[0]
    return 0.0 if found is None else found.abs().max().item()


COPY = -float(np.log(0.8))


def check_losses(scaled: Any, soft_copy: Any, hard_copy: Any) -> Verdict:
    """By how much the hard loss changes when the teacher's logits are multiplied by 100; the soft loss and the hard
    loss of a student with exactly its teacher's probabilities: 0.8, 0.1 and 0.1."""
    return all_of(
        scaled=number(scaled, 0, {100: "hard labels depend on the largest logit only, and it stays the largest."}),
        soft_copy=number(
            soft_copy, 0, {COPY: "that is the hard loss; KL compares two distributions, and these are the same."}
        ),
        hard_copy=number(
            hard_copy,
            COPY,
            {
                0: "a hard label is a one-hot target; a faithful copy gives that class 0.8.",
                COPY / 2: "that is with the ½ in front; leave it out.",
                0.8: "that is the probability; the loss is its logarithm with a minus.",
                0.2: "the loss is a logarithm: −ln of the probability of the teacher's class.",
                -COPY: "a loss has a minus before the logarithm.",
                0.0969: "that is the logarithm to the base 10; the loss takes the natural one.",
            },
            "all three are right: hard labels penalize a faithful copy for not being more confident than its teacher.",
            within=0.02,
        ),
    )


def check_wrong_student(answer: Callable[[Tensor, Tensor, float], Tensor]) -> Verdict:
    """`answer(student_logits, teacher_logits, temperature)`: the soft loss by value, its gradient at the teacher."""

    def swapped(student: Tensor, teacher: Tensor, T: float) -> Tensor:
        return soft_loss(teacher, student, T)

    mistakes: dict[str, Callable[[Tensor, Tensor, float], Tensor]] = {
        "student and teacher are swapped: KL is not symmetric": swapped,
        "T² is left out": lambda student, teacher, T: soft_loss(student, teacher, T) / T**2,
        "the loss is summed over images": lambda student, teacher, T: soft_loss(student, teacher, T) * len(student),
    }
    verdict = compare(answer, soft_loss, lambda: (2 * torch.randn(6, 10), 2 * torch.randn(6, 10), 4.0), mistakes)
    if not verdict.right:
        return verdict
    student, teacher = (torch.randn(6, 10, requires_grad=True) for _ in range(2))
    loss = answer(student, teacher, 4.0)
    to_student, to_teacher = gradient(loss, student), gradient(loss, teacher)
    if to_student:
        return Verdict(False, f"the value is right, but a gradient of {to_student:.2g} still reaches the student.")
    if not to_teacher:
        return Verdict(False, "the value is right, but the gradient reaches neither network.")
    return Verdict(True, "right: the value is that of soft_loss, and only the teacher would be trained.")


def check_prepare(answer: Callable[..., Any]) -> Verdict:
    """`answer(teacher, images, labels, rng)`: mixed images, their labels, and the teacher's logits on them."""
    teacher = freeze(cast(Teacher, load_model("vgg7_bn.digits")))
    data = load_dataset("digits")
    first = int(torch.randint(len(data.train) - 32, ()))
    labels = data.train.labels[first : first + 32]
    images = normalize(data.train.images[first : first + 32], data.mean, data.std)
    seed = next(seed for seed in range(first, first + 1000) if 0.3 < cutmix(images, labels, rng_of(seed))[1].lam < 0.7)
    got = call_answer(answer, teacher, images.clone(), labels.clone(), rng_of(seed))
    if isinstance(got, Verdict):
        return got
    if not isinstance(got, tuple | list) or len(got) != 3 or isinstance(got, MixedTargets):
        return Verdict(False, f"it returns {describe(got)}; three things were asked for: images, labels, logits.")
    mixed, mixed_labels, logits = got
    if not isinstance(mixed, Tensor) or mixed.shape != images.shape:
        return Verdict(False, f"the images are {describe(getattr(mixed, 'shape', mixed))}; 32×1×16×16 was asked for.")
    if not isinstance(mixed_labels, MixedTargets):
        return Verdict(
            False, f"the labels are {describe(mixed_labels)}; MixedTargets, as cutmix returns them, are needed."
        )
    if not isinstance(logits, Tensor) or logits.shape != (32, 10):
        wanted = " (teacher_forward returns logits and maps: take .logits)" if isinstance(logits, tuple) else ""
        return Verdict(
            False, f"the logits are {describe(getattr(logits, 'shape', logits))}; 32×10 was asked for{wanted}."
        )
    if max_abs_diff(mixed, images) == 0:
        return Verdict(False, "nothing is mixed: these are the images that were passed in.")
    if not torch.isin(mixed, images).all():
        return Verdict(
            False, "the images have values that weren't in them: cutmix pastes, and they are normalized already."
        )
    once_more = call_answer(answer, teacher, images.clone(), labels.clone(), rng_of(seed + 1))
    if isinstance(once_more, tuple | list) and max_abs_diff(once_more[0], mixed) == 0:
        return Verdict(False, "another rng mixes in the same way: draw from the rng that is passed in.")
    if logits.requires_grad:
        return Verdict(False, "the teacher's logits carry a gradient: use teacher_forward, or no_grad.")
    of_mixed, of_whole = (teacher_forward(teacher, batch).logits for batch in (mixed, images))
    if max_abs_diff(logits, of_mixed) <= 1e-3:
        return Verdict(True, "right: teacher and student get the very same images.")
    changed = (of_mixed.argmax(dim=-1) != logits.argmax(dim=-1)).sum()
    effect = f"its prediction differs on {changed} of 32 images."
    if max_abs_diff(logits, of_mixed.softmax(dim=-1)) <= 1e-3:
        return Verdict(False, "these are the teacher's probabilities; its logits were asked for.")
    if max_abs_diff(logits, of_whole) <= 1e-3:
        return Verdict(False, f"the teacher gets the images before they were mixed: {effect}")
    return Verdict(False, f"the teacher gets other images than those you return (mixed twice?): {effect}")


def rng_of(seed: int) -> np.random.Generator:
    return np.random.default_rng(seed)
