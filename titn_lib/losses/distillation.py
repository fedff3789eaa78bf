"""What a student minimises: labels, and what it can learn from a teacher.

What the distillation token learns:

    hard      the published TITN (and DeiT) loss: the class that the teacher would answer
    soft      all of the teacher's probabilities (Hinton et al. 2015)
    dkd       the same in two parts, what it says of the right class and how it ranks the others (Zhao et al. 2022)

What patch tokens learn from the teacher's feature maps:

    feature   the maps themselves ("distillation within the feature extraction layer", says the TITN abstract; its
              published code has no such term, so the form is ours, after Li et al. 2022)
    manifold  how alike the maps' places are to each other (Hao et al. 2022)

A token's and a patch's method can be joined: "hard+feature".

The teacher is frozen, in evaluation mode, sees the very pictures the student sees, and receives no gradient.
"""

from typing import NamedTuple, TypeVar

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from titn_lib.data.mixing import MixedLabels
from titn_lib.data.transforms import Images
from titn_lib.errors import TITNError
from titn_lib.models.teachers import Teacher

Network = TypeVar("Network", bound=nn.Module)


class TeacherAnswer(NamedTuple):
    """What a teacher says of a batch: its logits, and a feature map for each of its stages."""

    logits: Float[Tensor, "batch classes"]
    maps: list[Float[Tensor, "batch _channel _height _width"]]


def freeze(teacher: Network) -> Network:
    """Put the teacher in evaluation mode and stop its gradients, for good."""
    return teacher.eval().requires_grad_(False)


@torch.no_grad()
def ask_teacher(teacher: nn.Module, images: Images) -> TeacherAnswer:
    """The teacher's answer to a batch, without gradient. A teacher that is none of `teachers` gives logits and no maps.

    Raises:
        TITNError: the teacher, or a part of it, is in training mode: batch normalisation would change with every
            question.
    """
    if any(part.training for part in teacher.modules()):
        raise TITNError("the teacher is in training mode: call titn_lib.distillation.freeze(teacher) first")
    if not isinstance(teacher, Teacher):
        return TeacherAnswer(teacher(images), [])
    maps = teacher.encode(images)
    return TeacherAnswer(teacher.head(maps[-1]), maps)


def mixed_cross_entropy(
    logits: Float[Tensor, "batch classes"], labels: MixedLabels, smoothing: float = 0.0
) -> Float[Tensor, ""]:
    """λ·CE(first label) + (1 − λ)·CE(second label) (Yun et al. 2019, CutMix)."""
    first = F.cross_entropy(logits, labels.first, label_smoothing=smoothing)
    if labels.weight == 1:
        return first
    second = F.cross_entropy(logits, labels.second, label_smoothing=smoothing)
    return labels.weight * first + (1 - labels.weight) * second


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
    """T²·KL(softmax(teacher / T) ‖ softmax(student / T)), the mean over pictures (Hinton et al. 2015).

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
    """T²·(α·TCKD + β·NCKD), the mean over pictures (Zhao et al. 2022): the right class against all others, and
    the others among themselves. `soft_loss` is the same with α = 1 and β = what the teacher leaves to the others.

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
