"""Distillation losses on logits, and the teacher's forward pass.

    hard    cross-entropy with the teacher's predicted class: the published TITN (and DeiT) loss
    soft    KL divergence between the teacher's and the student's probabilities (Hinton et al. 2015)
    dkd     decoupled knowledge distillation: separate terms for the target class and for the distribution over the
            other classes (Zhao et al. 2022)

The teacher is frozen and in evaluation mode. It gets the same augmented images as the student and no gradient.
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
from titn_lib.models.external import logits_of
from titn_lib.models.layers import TokenLogits
from titn_lib.models.teachers import Teacher

Network = TypeVar("Network", bound=nn.Module)


class TeacherOutput(NamedTuple):
    """A teacher's output for a batch.

    Attributes:
        logits: the logits of its classifier.
        maps: the feature map after each of its stages; none for a teacher that is not one of `models.teachers`.
    """

    logits: Float[Tensor, "batch classes"]
    maps: list[Float[Tensor, "batch _channel _height _width"]]


def freeze(teacher: Network) -> Network:
    """Put a teacher in evaluation mode and turn off the gradients of its parameters, in place."""
    return teacher.eval().requires_grad_(False)


@torch.no_grad()
def teacher_forward(teacher: nn.Module, images: Images) -> TeacherOutput:
    """The teacher's logits and feature maps for a batch, without gradient.

    Args:
        teacher: it returns logits, or an object that has them in its `logits`. Only one of `models.teachers` has maps.

    Raises:
        TITNError: the teacher, or a part of it, is in training mode, so that its batch normalization statistics would
            change with every batch.
    """
    if any(part.training for part in teacher.modules()):
        raise TITNError("the teacher is in training mode: call titn_lib.losses.freeze(teacher) first")
    if not isinstance(teacher, Teacher):
        return TeacherOutput(logits_of(teacher(images)), [])
    maps = teacher.forward_features(images)
    return TeacherOutput(teacher.head(maps[-1]), maps)


def mixed_cross_entropy(
    logits: Float[Tensor, "batch classes"],
    targets: MixedTargets,
    smoothing: float = 0.0,
    class_weights: Float[Tensor, " classes"] | None = None,
) -> Float[Tensor, ""]:
    """λ·CE(logits, a) + (1 − λ)·CE(logits, b), as in CutMix (Yun et al. 2019). `smoothing` is label smoothing."""
    first = F.cross_entropy(logits, targets.a, class_weights, label_smoothing=smoothing)
    if not isinstance(targets.lam, Tensor) and targets.lam == 1:
        return first
    second = F.cross_entropy(logits, targets.b, class_weights, label_smoothing=smoothing)
    lam, rest = (share.to(first) if isinstance(share, Tensor) else share for share in (targets.lam, 1 - targets.lam))
    return lam * first + rest * second


def hard_loss(
    student_logits: Float[Tensor, "batch classes"], teacher_logits: Float[Tensor, "batch classes"]
) -> Float[Tensor, ""]:
    """CE(student, argmax of the teacher), without temperature or KL divergence (Touvron et al. 2021, eq. 3)."""
    return F.cross_entropy(student_logits, teacher_logits.argmax(dim=-1))


def soft_loss(
    student_logits: Float[Tensor, "batch classes"],
    teacher_logits: Float[Tensor, "batch classes"],
    temperature: float = 4.0,
) -> Float[Tensor, ""]:
    """T²·KL(softmax(teacher / T) ‖ softmax(student / T)), the mean over images (Hinton et al. 2015).

    The factor T² keeps the size of the gradient when T changes.
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
    """Decoupled knowledge distillation: T²·(α·TCKD + β·NCKD), the mean over images (Zhao et al. 2022).

    TCKD compares the probability of the target class against that of all others. NCKD compares the distributions over
    the other classes. `soft_loss` is the same with α = 1 and β = 1 − p, where p is the teacher's probability of the
    target class at temperature T.

    The authors increase the weight of this loss over the first 20 of 240 epochs. Here it is constant.
    """
    is_target = F.one_hot(labels, student_logits.shape[-1]).bool()
    binary, non_target = [], []
    for logits in (student_logits / temperature, teacher_logits / temperature):
        rest = logits.masked_fill(is_target, -1e4)
        pair = torch.stack([logits.gather(-1, labels[:, None])[:, 0], rest.logsumexp(dim=-1)], dim=-1)
        binary.append(F.log_softmax(pair, dim=-1))
        non_target.append(F.log_softmax(rest, dim=-1))
    tckd, nckd = (
        F.kl_div(student, teacher, log_target=True, reduction="batchmean") for student, teacher in (binary, non_target)
    )
    return temperature**2 * (alpha * tckd + beta * nckd)


# Student logits, teacher logits, labels (of a mixed image the dominant class), temperature → loss.
LogitLoss = Callable[[Tensor, Tensor, Tensor, float], Tensor]
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
    class_weights: Float[Tensor, " classes"] | None = None,
) -> Float[Tensor, ""]:
    """TITN's training loss: ½·CE(class head, labels) + ½·loss(distillation head, teacher).

    Args:
        logits: `TokenLogits` of both heads, as a model with a distillation token returns in training mode, or the
            logits of a model with one head, which are then used in both terms.
        teacher_logits: the teacher's, for the same images and classes; None for "cross_entropy".
        targets: labels, or the `MixedTargets` of CutMix or MixUp.
        loss: "hard", "soft", "dkd", a logit loss of your own (`register_loss`), or "cross_entropy", which trains both
            heads with the labels. A loss of feature maps needs `make_objective`.
        temperature: the temperature of "soft" and "dkd".
        label_smoothing: share of each label that is spread over all classes, in the cross-entropy with the labels.
        class_weights: the weight of each class in the cross-entropy with the labels.

    Raises:
        TITNError: the loss is unknown, or the teacher's logits are missing or have another shape.
    """
    if loss != "cross_entropy" and loss not in LOGIT_LOSSES:
        raise unknown("loss of logits", loss, ["cross_entropy", *LOGIT_LOSSES])
    if isinstance(targets, Tensor):
        targets = MixedTargets(targets, targets)
    class_logits, distillation_logits = logits if isinstance(logits, TokenLogits) else (logits, logits)
    if teacher_logits is not None and teacher_logits.shape != class_logits.shape:
        raise TITNError(
            f"the teacher's logits have the shape {tuple(teacher_logits.shape)} and the student's "
            f"{tuple(class_logits.shape)}: pass the same images to both, and a teacher for the student's classes"
        )
    class_loss = mixed_cross_entropy(class_logits, targets, label_smoothing, class_weights)
    if loss == "cross_entropy":
        return class_loss / 2 + mixed_cross_entropy(distillation_logits, targets, label_smoothing, class_weights) / 2
    if teacher_logits is None:
        raise TITNError(f"the loss {loss!r} needs the teacher's logits: pass them, or choose 'cross_entropy'")
    teacher_loss = LOGIT_LOSSES[loss](distillation_logits, teacher_logits.float(), targets.dominant, temperature)
    return class_loss / 2 + teacher_loss / 2
