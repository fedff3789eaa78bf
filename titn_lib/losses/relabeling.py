"""MViT's dynamic relabeling of noisy labels."""

from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from titn_lib.data.mixing import MixedLabels
from titn_lib.data.transforms import Images
from titn_lib.errors import TITNError
from titn_lib.losses.distillation import TeacherAnswer
from titn_lib.losses.objective import LossAndLogits, Objective
from titn_lib.models.base import Classifier


def relabel(
    logits: Float[Tensor, "picture classes"], labels: Int[Tensor, " picture"], delta: float = 0.2
) -> Int[Tensor, " picture"]:
    """The likeliest class where it is likelier than the label by more than `delta`, the label elsewhere."""
    chances = logits.float().softmax(dim=-1)
    highest, likeliest = chances.max(dim=-1)
    return torch.where(highest - chances.gather(-1, labels[:, None])[:, 0] > delta, likeliest, labels)


class Relabelling(Objective):
    """CE with labels that the network may doubt, from `WARM_UP` of the run on: every head learns `relabel` of the
    mean of their logits. Begun before the network knows more than its labels, it agrees with itself ever more, up to
    one class for all pictures and a loss of 0.

    Raises:
        TITNError: there is something to distil, or pictures are mixed (of which no one class is the true one).
    """

    WARM_UP = 0.8
    DELTA = 0.2

    def __init__(self, network: Classifier, method: str = "none", *settings: Any):
        if method != "none":
            raise TITNError(f"relabelling asks no teacher: choose distillation 'none', not {method!r}")
        super().__init__(network, method, *settings)

    def forward(self, images: Images, labels: MixedLabels, answer: TeacherAnswer | None = None) -> LossAndLogits:
        """Returns the loss, and the network's logits (the mean of both heads)."""
        if labels.weight != 1:
            raise TITNError("relabelling can't tell one true class of mixed pictures: leave cutmix and mixup out")
        _, heads = self.look(images)
        logits = (heads[0] + heads[1]) / 2
        targets = labels.first
        if self.progress >= self.WARM_UP:
            targets = relabel(logits.detach(), targets, self.DELTA)
        return self.label_loss(heads, MixedLabels(targets, targets)), logits


class RelabellingQuality(NamedTuple):
    """Shares in 0–1; nan where there is nothing to share."""

    precision: float  # of the changed labels, those that are right now
    recall: float  # of the wrong labels, those that are right now


def relabelling_quality(
    relabelled: Int[Tensor, " picture"], given: Int[Tensor, " picture"], true: Int[Tensor, " picture"]
) -> RelabellingQuality:
    """How far wrong labels were set right, and right ones left alone; `true` are the labels before `mislabel`."""
    wrong = given != true
    changed = relabelled != given
    set_right = (wrong & (relabelled == true)).sum()
    return RelabellingQuality((set_right / changed.sum()).item(), (set_right / wrong.sum()).item())
