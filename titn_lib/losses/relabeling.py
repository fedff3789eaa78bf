"""MVT's dynamic relabeling of noisy labels."""

from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from titn_lib.data.mixing import MixedTargets
from titn_lib.data.transforms import Images
from titn_lib.errors import TITNError
from titn_lib.losses.distillation import TeacherOutput
from titn_lib.losses.objective import LossAndLogits, Objective
from titn_lib.models.base import Classifier


def relabel(
    logits: Float[Tensor, "image classes"], labels: Int[Tensor, " image"], delta: float = 0.2
) -> Int[Tensor, " image"]:
    """The likeliest class where it is likelier than the label by more than `delta`, the label elsewhere."""
    chances = logits.float().softmax(dim=-1)
    highest, likeliest = chances.max(dim=-1)
    return torch.where(highest - chances.gather(-1, labels[:, None])[:, 0] > delta, likeliest, labels)


class Relabeling(Objective):
    """CE with labels that the network may doubt, from `WARM_UP` of the run on: every head learns `relabel` of the
    mean of their logits. Begun before the network knows more than its labels, it agrees with itself ever more, up to
    one class for all images and a loss of 0.

    Raises:
        TITNError: there is something to distill, or images are mixed (of which no one class is the true one).
    """

    WARM_UP = 0.8
    DELTA = 0.2

    def __init__(self, network: Classifier, loss: str = "cross_entropy", *settings: Any):
        if loss != "cross_entropy":
            raise TITNError(f"relabeling needs no teacher: choose the loss 'cross_entropy', not {loss!r}")
        super().__init__(network, loss, *settings)

    def forward(
        self, images: Images, targets: MixedTargets, teacher_output: TeacherOutput | None = None
    ) -> LossAndLogits:
        """Returns the loss, and the network's logits (the mean of both heads)."""
        if targets.lam != 1:
            raise TITNError("relabeling can't tell one true class of mixed images: leave cutmix and mixup out")
        _, heads = self.forward_heads(images)
        logits = (heads[0] + heads[1]) / 2
        labels = targets.a
        if self.progress >= self.WARM_UP:
            labels = relabel(logits.detach(), labels, self.DELTA)
        return self.label_loss(heads, MixedTargets(labels, labels)), logits


class RelabelingQuality(NamedTuple):
    """Shares in 0–1; nan where there is nothing to share."""

    precision: float  # of the changed labels, those that are right now
    recall: float  # of the wrong labels, those that are right now


def relabeling_quality(
    relabeled: Int[Tensor, " image"], given: Int[Tensor, " image"], true: Int[Tensor, " image"]
) -> RelabelingQuality:
    """How far wrong labels were set right, and right ones left alone; `true` are the labels before `add_label_noise`."""
    wrong = given != true
    changed = relabeled != given
    set_right = (wrong & (relabeled == true)).sum()
    return RelabelingQuality((set_right / changed.sum()).item(), (set_right / wrong.sum()).item())
