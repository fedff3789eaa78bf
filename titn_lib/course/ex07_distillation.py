"""Exercises of 07_distillation."""

import math
from collections.abc import Callable
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from titn_lib.course.checks import (
    ROUNDS,
    Verdict,
    all_of,
    as_number,
    as_tensor,
    call_answer,
    compare,
    describe,
    max_abs_diff,
    number,
)
from titn_lib.data.datasets import load_dataset
from titn_lib.data.mixing import MixedTargets, cutmix
from titn_lib.data.transforms import normalize
from titn_lib.losses.distillation import freeze, soft_loss, teacher_forward
from titn_lib.models.teachers import Teacher
from titn_lib.models.weights import load_model

NO_NUMPY = Verdict(False, "the value is right, but no gradient can flow through NumPy: use PyTorch's functions.")

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
    if not verdict.right:
        return verdict
    reached = gradients(answer, frozen_teacher=True)
    if isinstance(reached, Verdict):
        return reached
    if not reached[0] > 0:
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

    def halved(student: Tensor, teacher: Tensor, T: float) -> Tensor:
        return soft_loss(student, teacher, T) / 2

    def in_bits(student: Tensor, teacher: Tensor, T: float) -> Tensor:
        return soft_loss(student, teacher, T) / math.log(2)

    return {
        "the loss is halved: its weight in the sum of both losses is no part of it": halved,
        "the logarithm has base 2; it should be the natural one": in_bits,
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

    def logits_apart(student: Tensor, teacher: Tensor, T: float) -> Tensor:
        return F.mse_loss(student, teacher)

    return {
        "it is the mean squared difference of the logits, and no KL": logits_apart,
        "the KL goes the wrong way round: the teacher's probabilities are the weights": wrong_way,
        "this is the cross-entropy with the teacher's probabilities: its gradient is right, but the teacher's own "
        "entropy is left in, so that a perfect student does not reach 0": cross_entropy,
        "kl_div is given the student's probabilities; it expects their logarithms": no_logarithm,
        "kl_div takes the teacher's log-probabilities for probabilities: pass exp() of them, or "
        "log_target=True": no_log_target,
        "the softmax runs over images; it should run over classes": over_images,
    }


def gradients(answer: LossFunction, frozen_teacher: bool) -> list[float] | Verdict:
    """The largest absolute entry of the gradient that reaches the student, and the teacher unless it is frozen."""
    student, teacher = torch.randn(6, 10, requires_grad=True), torch.randn(6, 10, requires_grad=not frozen_teacher)

    def largest(student: Tensor, teacher: Tensor) -> list[float]:
        loss = as_tensor(answer(student, teacher, 4.0))
        logits = [one for one in (student, teacher) if one.requires_grad]
        if loss is None or not loss.requires_grad:
            return [0.0 for _ in logits]
        found = torch.autograd.grad(loss.sum(), logits, allow_unused=True)
        return [0.0 if one is None else one.abs().max().item() for one in found]

    got = call_answer(largest, student, teacher)
    if isinstance(got, Verdict):
        through_numpy = "numpy() on Tensor" in got.message
        return NO_NUMPY if through_numpy else Verdict(False, f"the value is right, but with gradients {got.message}")
    return got


COPY = -math.log(0.8)


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
    reached = gradients(answer, frozen_teacher=False)
    if isinstance(reached, Verdict):
        return reached
    to_student, to_teacher = reached
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
    step = parse_step(call_answer(answer, teacher, images, labels, rng_of(seed)))
    if isinstance(step, Verdict):
        return step
    mixed, targets, logits = step
    if max_abs_diff(mixed, images) == 0:
        return Verdict(False, "nothing is mixed: these are the images that were passed in.")
    if not torch.isin(mixed, images).all():
        return Verdict(
            False, "the images have values that weren't in them: cutmix pastes, and they are normalized already."
        )
    once_more = parse_step(call_answer(answer, teacher, images, labels, rng_of(seed + 1)))
    if isinstance(once_more, Verdict):
        return once_more
    if torch.equal(once_more[0], mixed):
        return Verdict(False, "another rng mixes in the same way: draw from the rng that is passed in.")
    if logits.requires_grad:
        return Verdict(False, "the teacher's logits carry a gradient: use teacher_forward, or no_grad.")
    rng = rng_of(seed)
    if wrong := find_wrong_targets(targets, mixed, [cutmix(images, labels, rng) for _ in range(ROUNDS)]):
        return Verdict(False, wrong)
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


def parse_step(got: Any) -> tuple[Tensor, MixedTargets, Tensor] | Verdict:
    """The images, targets and logits of a prepared step, or the verdict on what is wrong with their form."""
    if isinstance(got, Verdict):
        return got
    if not isinstance(got, tuple | list) or len(got) != 3 or isinstance(got, MixedTargets):
        return Verdict(False, f"it returns {describe(got)}; three things were asked for: images, targets, logits.")
    mixed, given, logits = got
    images = as_tensor(mixed)
    if images is None or images.shape != (32, 1, 16, 16):
        return Verdict(False, f"the images are {describe(mixed)}; 32×1×16×16 was asked for.")
    targets = parse_targets(given)
    if targets is None:
        return Verdict(False, f"the targets are {describe(given)}; MixedTargets, as cutmix returns them, are needed.")
    predicted = as_tensor(logits)
    if predicted is None or predicted.shape != (32, 10):
        wanted = " (teacher_forward returns logits and maps: take .logits)" if isinstance(logits, tuple) else ""
        return Verdict(False, f"the logits are {describe(logits)}; 32×10 was asked for{wanted}.")
    return images.float(), targets, predicted


def parse_targets(given: Any) -> MixedTargets | None:
    """The targets of 32 images, from MixedTargets or a plain triple; None if they are something else."""
    if not isinstance(given, tuple | list) or len(given) != 3:
        return None
    own, pasted, lam = as_tensor(given[0]), as_tensor(given[1]), as_number(given[2])
    if own is None or pasted is None or lam is None or not own.shape == pasted.shape == (32,):
        return None
    inside = all(bool(((labels >= 0) & (labels < 10)).all()) for labels in (own, pasted))
    return MixedTargets(own.long(), pasted.long(), lam) if inside else None


def find_wrong_targets(targets: MixedTargets, mixed: Tensor, draws: list[tuple[Tensor, MixedTargets]]) -> str:
    """What is wrong with the targets of the mixed images, which should be one of these draws of cutmix."""

    def shares(targets: MixedTargets) -> Tensor:
        return targets.lam * F.one_hot(targets.a, 10) + (1 - targets.lam) * F.one_hot(targets.b, 10)

    drawn = [theirs for images, theirs in draws if torch.equal(images, mixed)]
    if not drawn:
        return "these images are not what one call of cutmix makes of the images, labels and rng that were passed in."
    right, given = drawn[0], shares(targets)
    if torch.allclose(given, shares(right), atol=1e-3):
        return ""
    if torch.allclose(given, shares(right._replace(a=right.b, b=right.a)), atol=1e-3):
        return "the two labels are swapped: λ is the share of an image's own label, 1 − λ that of the pasted one's."
    if torch.equal(targets.a, targets.b):
        return "each image has one label: a mixed image has two, with the shares λ and 1 − λ."
    return "these are the targets of another mixture than the images': take both from one call of cutmix."


def rng_of(seed: int) -> np.random.Generator:
    return np.random.default_rng(seed)
