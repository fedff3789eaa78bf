"""Distillation losses on logits, and the teacher they learn from.

    hard    cross-entropy with the teacher's predicted class: the published TITN (and DeiT) loss
    soft    KL divergence to all of the teacher's probabilities (Hinton et al. 2015)
    dkd     decoupled knowledge distillation: the target class and the ranking of the others (Zhao et al. 2022)

The teacher is frozen, in evaluation mode, sees the same augmented images as the student, and receives no gradient.
"""

from collections.abc import Callable
from typing import NamedTuple, TypeVar

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from titn_lib.data.mixing import MixedTargets
from titn_lib.data.transforms import Images
from titn_lib.errors import TITNError, unknown
from titn_lib.models.layers import TokenLogits
from titn_lib.models.teachers import Teacher

Network = TypeVar("Network", bound=nn.Module)


class TeacherOutput(NamedTuple):
    """A teacher's logits for a batch, and a feature map for each of its stages."""

    logits: Float[Tensor, "batch classes"]
    maps: list[Float[Tensor, "batch _channel _height _width"]]


def freeze(teacher: Network) -> Network:
    """Put the teacher in evaluation mode and stop its gradients, for good."""
    return teacher.eval().requires_grad_(False)


@torch.no_grad()
def teacher_forward(teacher: nn.Module, images: Images) -> TeacherOutput:
    """The teacher's output for a batch, without gradient. A teacher that is not one of `models.teachers` gives logits and
    no feature maps.

    Raises:
        TITNError: the teacher, or a part of it, is in training mode: its batch normalization statistics would
            change with every batch.
    """
    if any(part.training for part in teacher.modules()):
        raise TITNError("the teacher is in training mode: call titn_lib.losses.freeze(teacher) first")
    if not isinstance(teacher, Teacher):
        return TeacherOutput(teacher(images), [])
    maps = teacher.forward_features(images)
    return TeacherOutput(teacher.head(maps[-1]), maps)


def mixed_cross_entropy(
    logits: Float[Tensor, "batch classes"], targets: MixedTargets, smoothing: float = 0.0
) -> Float[Tensor, ""]:
    """λ·CE(a) + (1 − λ)·CE(b) (Yun et al. 2019, CutMix)."""
    first = F.cross_entropy(logits, targets.a, label_smoothing=smoothing)
    if targets.lam == 1:
        return first
    second = F.cross_entropy(logits, targets.b, label_smoothing=smoothing)
    return targets.lam * first + (1 - targets.lam) * second


def hard_loss(
    student_logits: Float[Tensor, "batch classes"], teacher_logits: Float[Tensor, "batch classes"]
) -> Float[Tensor, ""]:
    """CE(student, argmax of the teacher) (Touvron et al. 2021, eq. 3): no temperature, no KL."""
    return F.cross_entropy(student_logits, teacher_logits.argmax(dim=-1))


def soft_loss(
    student_logits: Float[Tensor, "batch classes"],
    teacher_logits: Float[Tensor, "batch classes"],
    temperature: float = 4.0,
) -> Float[Tensor, ""]:
    """T²·KL(softmax(teacher / T) ‖ softmax(student / T)), the mean over images (Hinton et al. 2015).

    T² keeps the gradient's size when T changes.
    """
    student = F.log_softmax(student_logits / temperature, dim=-1)
    teacher = F.log_softmax(teacher_logits / temperature, dim=-1)
    return temperature**2 * F.kl_div(student, teacher, log_target=True, reduction="batchmean")


def dkd_loss(
    student_logits: Float[Tensor, "batch classes"],
    teacher_logits: Float[Tensor, "batch classes"],
    labels: Int[Tensor, " batch"],
    temperature: float = 4.0,
    alpha: float = 1.0,
    beta: float = 8.0,
) -> Float[Tensor, ""]:
    """T²·(α·TCKD + β·NCKD), the mean over images (Zhao et al. 2022): the right class against all others, and
    the others among themselves. `soft_loss` is the same with α = 1 and β = 1 − p_target of the teacher.

    The authors let it grow over the first 20 of 240 epochs; here it has its full weight from the start.
    """
    right = F.one_hot(labels, student_logits.shape[-1]).bool()
    pairs, others = [], []
    for logits in (student_logits / temperature, teacher_logits / temperature):
        rest = logits.masked_fill(right, -1e4)
        against = torch.stack([logits.gather(-1, labels[:, None])[:, 0], rest.logsumexp(dim=-1)], dim=-1)
        pairs.append(F.log_softmax(against, dim=-1))
        others.append(F.log_softmax(rest, dim=-1))
    target, ranking = (
        F.kl_div(student, teacher, log_target=True, reduction="batchmean") for student, teacher in (pairs, others)
    )
    return temperature**2 * (alpha * target + beta * ranking)


LogitLoss = Callable[[Tensor, Tensor, Tensor, float], Tensor]
# Student logits, teacher logits, labels (of a mixed image the dominant class), temperature → loss. Add yours here.
LOGIT_LOSSES: dict[str, LogitLoss] = {
    "hard": lambda student, teacher, labels, temperature: hard_loss(student, teacher),
    "soft": lambda student, teacher, labels, temperature: soft_loss(student, teacher, temperature),
    "dkd": lambda student, teacher, labels, temperature: dkd_loss(student, teacher, labels, temperature),
}


def distillation_loss(
    logits: Float[Tensor, "batch classes"] | TokenLogits,
    teacher_logits: Float[Tensor, "batch classes"] | None,
    targets: Int[Tensor, " batch"] | MixedTargets,
    loss: str = "hard",
    temperature: float = 4.0,
    label_smoothing: float = 0.0,
) -> Float[Tensor, ""]:
    """½·CE(class head, labels) + ½·loss(distillation head, teacher): what TITN is trained with.

    Args:
        logits: of both heads, as a model with a distillation token returns them in training; of a model with one head,
            its logits.
        teacher_logits: of the same images, for the same classes.
        targets: labels, or `MixedTargets` of CutMix or MixUp.
        loss: one of `LOGIT_LOSSES`, or "cross_entropy": both halves use the labels.

    Raises:
        TITNError: an unknown loss, or a teacher that is missing or has other classes.
    """
    if loss != "cross_entropy" and loss not in LOGIT_LOSSES:
        raise unknown("loss", loss, ["cross_entropy", *LOGIT_LOSSES])
    if isinstance(targets, Tensor):
        targets = MixedTargets(targets, targets)
    class_logits, distillation_logits = logits if isinstance(logits, TokenLogits) else (logits, logits)
    if teacher_logits is not None and teacher_logits.shape != class_logits.shape:
        raise TITNError(
            f"the teacher knows {teacher_logits.shape[-1]} classes and the student {class_logits.shape[-1]}: train a "
            "teacher on the student's"
        )
    label_half = mixed_cross_entropy(class_logits, targets, label_smoothing)
    if loss == "cross_entropy":
        return label_half / 2 + mixed_cross_entropy(distillation_logits, targets, label_smoothing) / 2
    if teacher_logits is None:
        raise TITNError(f"the loss {loss!r} needs the teacher's logits: pass them, or choose 'cross_entropy'")
    teacher_half = LOGIT_LOSSES[loss](distillation_logits, teacher_logits.float(), targets.dominant, temperature)
    return label_half / 2 + teacher_half / 2
