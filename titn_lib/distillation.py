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

from collections.abc import Iterable
from typing import NamedTuple, TypeVar

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from .classifier import Classifier, Images, evaluating
from .errors import TITNError, unknown
from .teachers import Teacher
from .transformer import TokenClassifier, TokenLogits

TOKEN_METHODS, PATCH_METHODS = ("hard", "soft", "dkd"), ("feature", "manifold")
JOINED = tuple(f"{token}+{patch}" for token in TOKEN_METHODS for patch in PATCH_METHODS)
METHODS = ("none", *TOKEN_METHODS, *PATCH_METHODS, *JOINED)
Network = TypeVar("Network", bound=nn.Module)
LossAndLogits = tuple[Float[Tensor, ""], Float[Tensor, "batch classes"]]


class MixedLabels(NamedTuple):
    """The labels of pictures that may be mixtures of two: `weight` of the first class, the rest of the second. Of
    pictures that aren't, both are the label: `MixedLabels(labels, labels)`."""

    first: Int[Tensor, " batch"]
    second: Int[Tensor, " batch"]
    weight: float = 1.0

    @property
    def greater(self) -> Int[Tensor, " batch"]:
        """Of each picture the class with the greater share."""
        return self.first if self.weight >= 0.5 else self.second


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


class PatchLoss(nn.Module):
    """Pairs a student's patch tokens with a teacher's feature maps.

    Three blocks (a third, two thirds and all of the way) are paired with the teacher's last three stages; a map is
    averaged or repeated to the grid of patches.
    """

    def __init__(self, student: TokenClassifier, teacher: Teacher):
        super().__init__()
        size = (teacher.config.in_channels, *teacher.config.image_size)
        with torch.no_grad(), evaluating(teacher):
            example = next(teacher.parameters()).new_zeros(1, *size)
            channels = [feature_map.shape[1] for feature_map in teacher.encode(example)]
        depth, stages = student.config.depth, len(channels)
        self.pairs = [(max(0, round(depth * part / 3) - 1), stages - 4 + part) for part in (1, 2, 3)]
        self.channels = [channels[stage] for _, stage in self.pairs]
        self.grid, self.patches = student.config.grid, student.config.patches

    def paired(
        self,
        blocks: list[Float[Tensor, "batch token width"]],
        maps: list[Float[Tensor, "batch _channel _height _width"]],
    ) -> list[tuple[Float[Tensor, "batch patch width"], Float[Tensor, "batch patch _channel"]]]:
        return [
            (
                blocks[block][:, 1 : 1 + self.patches],
                rearrange(F.adaptive_avg_pool2d(maps[stage], self.grid), "batch channel y x -> batch (y x) channel"),
            )
            for block, stage in self.pairs
        ]

    def between(
        self,
        place: int,
        student: Float[Tensor, "batch patch width"],
        teacher: Float[Tensor, "batch patch _channel"],
    ) -> Float[Tensor, ""]:
        """The loss of the pair in this place."""
        raise NotImplementedError

    def forward(
        self,
        blocks: list[Float[Tensor, "batch token width"]],
        maps: list[Float[Tensor, "batch _channel _height _width"]],
    ) -> Float[Tensor, ""]:
        """The mean over pairs."""
        pairs = enumerate(self.paired(blocks, maps))
        return torch.stack([self.between(place, *pair) for place, pair in pairs]).mean()


class FeatureLoss(PatchLoss):
    """Pulls patch tokens towards the teacher's feature maps.

    A Linear projects each token to the map's channels, both are standardised over channels (LayerNorm without
    parameters), and the mean squared difference is averaged over pairs. Standardizing and averaging are ours: Li et al.
    (2022, locality guidance) project as we do, but sum the mean squared differences of three pairs as they are, with a
    weight of 2.5. Standardized, the loss is blind to the teacher's scale: an independent pair starts near 2, a perfect
    one ends at 0.
    """

    def __init__(self, student: TokenClassifier, teacher: Teacher):
        super().__init__(student, teacher)
        self.projections = nn.ModuleList(nn.Linear(student.token_width, channels) for channels in self.channels)

    def between(
        self,
        place: int,
        student: Float[Tensor, "batch patch width"],
        teacher: Float[Tensor, "batch patch _channel"],
    ) -> Float[Tensor, ""]:
        projected, channels = self.projections[place](student), teacher.shape[-1:]
        return F.mse_loss(F.layer_norm(projected, channels), F.layer_norm(teacher, channels))


class ManifoldLoss(PatchLoss):
    """Pulls the likeness (cosine) between patch tokens towards that between places of the teacher's maps
    (Hao et al. 2022): within a picture, between pictures at one place, and among `SAMPLE` tokens drawn from
    all. Widths need not agree. Their teacher is a transformer too; pairing with a CNN's maps is ours.
    """

    WITHIN, BETWEEN, SAMPLED = 4.0, 0.1, 0.2  # weights, as published
    SAMPLE = 192

    def between(
        self,
        place: int,
        student: Float[Tensor, "batch patch width"],
        teacher: Float[Tensor, "batch patch _channel"],
    ) -> Float[Tensor, ""]:
        chosen = torch.randperm(student.shape[0] * student.shape[1], device=student.device)[: self.SAMPLE]
        return (
            self.WITHIN * likeness_gap(student, teacher)
            + self.BETWEEN * likeness_gap(student.transpose(0, 1), teacher.transpose(0, 1))
            + self.SAMPLED * likeness_gap(student.flatten(0, 1)[chosen], teacher.flatten(0, 1)[chosen])
        )


def likeness_gap(student: Float[Tensor, "*group row width"], teacher: Float[Tensor, "*group row _width"]) -> Tensor:
    """Mean squared difference between the cosines of all pairs of rows."""
    student, teacher = (F.normalize(rows.float(), dim=-1) for rows in (student, teacher))
    return F.mse_loss(student @ student.mT, teacher @ teacher.mT)


def check_method(network: Classifier, method: str) -> None:
    """Raises TITNError for an unknown method, or one that the network has no tokens for."""
    if method not in METHODS:
        raise unknown("distillation", method, METHODS)
    if method != "none" and not isinstance(network, TokenClassifier):
        raise TITNError(
            f"{network.config.name} has no tokens to learn by {method!r} distillation: choose a TITN, TNT or ViT"
        )


class Objective(nn.Module):
    """A network and the loss it is trained with.

        none       CE of both heads with the labels, half each (a network with one head: CE)
        hard       ½·CE(class head, labels) + ½·CE(distillation head, argmax of the teacher)         [TITN, published]
        soft       ½·CE(class head, labels) + ½·T²·KL(teacher ‖ distillation head)
        dkd        ½·CE(class head, labels) + ½·`dkd_loss`; of a mixed picture, the class with the greater share counts
        +feature   adds `feature_weight` times `FeatureLoss`; alone, on top of "none"
        +manifold  adds `ManifoldLoss`; alone, on top of "none"

    A network without a distillation token learns both halves with its one head.

    Raises:
        TITNError: an unknown method, a method that needs a teacher without one (or its maps, where it is none of
            `teachers`), or distillation for a network without tokens.

    Attributes:
        progress: how much of the run is over, from 0 to 1; training sets it before every step.
    """

    VIEWS = 1  # of each picture in a batch, one after the other: "(view batch) channel height width"

    def __init__(
        self,
        network: Classifier,
        method: str = "none",
        teacher: nn.Module | None = None,
        temperature: float = 4.0,
        feature_weight: float = 2.5,
        label_smoothing: float = 0.0,
    ):
        super().__init__()
        check_method(network, method)
        if method != "none" and teacher is None:
            raise TITNError(f"distillation {method!r} needs a teacher: name one, or choose 'none'")
        self.network = network
        self.progress = 0.0
        self.method = method
        self.token_method = next((name for name in TOKEN_METHODS if name in method.split("+")), "none")
        self.temperature = temperature
        self.label_smoothing = label_smoothing
        self.patch_loss: PatchLoss | None = None
        self.patch_weight = 1.0
        if isinstance(network, TokenClassifier) and any(name in method for name in PATCH_METHODS):
            if not isinstance(teacher, Teacher):
                raise TITNError(f"{method!r} distillation asks for feature maps: choose a teacher of create_model")
            if "feature" in method:
                self.patch_loss, self.patch_weight = FeatureLoss(network, teacher), feature_weight
            else:
                self.patch_loss = ManifoldLoss(network, teacher)

    def forward(self, images: Images, labels: MixedLabels, answer: TeacherAnswer | None = None) -> LossAndLogits:
        """Returns the loss, and the network's logits (the mean of both heads).

        Raises:
            TITNError: the method needs a teacher's answer and there is none, or one about other classes.
        """
        if answer is None and self.method != "none":
            raise TITNError(f"{self.method!r} distillation needs the teacher's answer: pass it (ask_teacher)")
        blocks, (class_logits, last_logits) = self.look(images)
        if answer is not None and answer.logits.shape != class_logits.shape:
            raise TITNError(
                f"the teacher knows {answer.logits.shape[-1]} classes and the student {class_logits.shape[-1]}: train "
                "a teacher on the student's"
            )
        loss = mixed_cross_entropy(class_logits, labels, self.label_smoothing) / 2
        loss = loss + self.last_head_loss(last_logits, labels, answer) / 2
        if self.patch_loss is not None and answer is not None:
            loss = loss + self.patch_weight * self.patch_loss(blocks, answer.maps)
        return loss, (class_logits + last_logits) / 2

    def look(self, images: Images) -> tuple[list[Float[Tensor, "batch token outer_width"]], TokenLogits]:
        """The tokens after every block (none of a network without), and each head's logits in float32, whatever the
        mode; the same twice where there is one head."""
        if isinstance(self.network, TokenClassifier):
            blocks = self.network.encode(images).blocks
            both = self.network.heads.both(blocks[-1])
        else:
            logits = self.network(images)
            blocks, both = [], TokenLogits(logits, logits)
        return blocks, TokenLogits(*(logits.float() for logits in both))

    def label_loss(self, heads: Iterable[Float[Tensor, "batch classes"]], labels: MixedLabels) -> Float[Tensor, ""]:
        """The mean of the heads' CE with the labels."""
        return torch.stack([mixed_cross_entropy(logits, labels, self.label_smoothing) for logits in heads]).mean()

    def last_head_loss(
        self, logits: Float[Tensor, "batch classes"], labels: MixedLabels, answer: TeacherAnswer | None
    ) -> Float[Tensor, ""]:
        """What the distillation head learns: the teacher's class, its probabilities, or the labels."""
        if answer is None or self.token_method == "none":
            return mixed_cross_entropy(logits, labels, self.label_smoothing)
        teacher_logits = answer.logits.float()
        if self.token_method == "hard":
            return hard_loss(logits, teacher_logits)
        if self.token_method == "soft":
            return soft_loss(logits, teacher_logits, self.temperature)
        return dkd_loss(logits, teacher_logits, labels.greater, self.temperature)
