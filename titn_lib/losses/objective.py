"""A network and the loss it is trained with."""

from collections.abc import Iterable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from titn_lib.data.mixing import MixedLabels
from titn_lib.data.transforms import Images
from titn_lib.errors import TITNError, unknown
from titn_lib.losses.distillation import TeacherAnswer, dkd_loss, hard_loss, mixed_cross_entropy, soft_loss
from titn_lib.losses.features import FeatureLoss, ManifoldLoss, PatchLoss
from titn_lib.models.base import Classifier, TokenClassifier
from titn_lib.models.layers import TokenLogits
from titn_lib.models.teachers import Teacher

TOKEN_METHODS, PATCH_METHODS = ("hard", "soft", "dkd"), ("feature", "manifold")
JOINED = tuple(f"{token}+{patch}" for token in TOKEN_METHODS for patch in PATCH_METHODS)
METHODS = ("none", *TOKEN_METHODS, *PATCH_METHODS, *JOINED)
LossAndLogits = tuple[Float[Tensor, ""], Float[Tensor, "batch classes"]]


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
