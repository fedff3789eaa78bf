"""MVT's dynamic relabeling of noisy labels."""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from titn_lib.data.mixing import MixedTargets
from titn_lib.data.transforms import Images
from titn_lib.errors import TITNError
from titn_lib.losses.distillation import TeacherOutput
from titn_lib.losses.objective import LossAndLogits, Objective


def relabel(
    logits: Float[Tensor, "image classes"], labels: Int[Tensor, " image"], delta: float = 0.2
) -> Int[Tensor, " image"]:
    """Replace a label by the predicted class if its probability exceeds the label's by more than `delta`."""
    probabilities = logits.float().softmax(dim=-1)
    highest, predicted = probabilities.max(dim=-1)
    of_label = probabilities.gather(-1, labels[:, None])[:, 0]
    return torch.where(highest - of_label > delta, predicted, labels)


class Relabeling(Objective):
    """Cross-entropy with labels that the network may replace.

    During the last fifth of the run, the target of both heads is `relabel` of the mean of their logits. Training
    collapses if relabeling starts before the network is more accurate than its labels: the network trains on its own
    predictions until it predicts one class for all images, with a loss of 0.

    Raises:
        TITNError: images are mixed, so that no single class is the true one.
    """

    WARM_UP = 0.8  # the share of the run with the given labels
    DELTA = 0.2
    CAPTURABLE = False  # `forward` asks for the progress of the run

    def forward(
        self, images: Images, targets: MixedTargets, teacher_output: TeacherOutput | None = None
    ) -> LossAndLogits:
        """Returns the loss and the network's logits, the mean of both heads."""
        if targets.lam != 1:
            raise TITNError("relabeling can't use mixed images: set both cutmix and mixup to 0")
        _, heads = self.forward_heads(images)
        logits = (heads[0] + heads[1]) / 2
        labels = targets.a
        if self.progress >= self.WARM_UP:
            labels = relabel(logits.detach(), labels, self.DELTA)
        return self.label_loss(heads, MixedTargets(labels, labels)), logits


class RelabelingQuality(NamedTuple):
    """Precision and recall in 0–1; nan where the denominator is 0."""

    precision: float  # the share of the changed labels that are now right
    recall: float  # the share of the wrong labels that are now right


def relabeling_quality(
    relabeled: Int[Tensor, " image"], given: Int[Tensor, " image"], true: Int[Tensor, " image"]
) -> RelabelingQuality:
    """How well relabeling corrects wrong labels and leaves right ones alone.

    Args:
        relabeled: labels after `relabel`.
        given: labels after `add_label_noise`.
        true: labels before `add_label_noise`.
    """
    wrong = given != true
    changed = relabeled != given
    corrected = (wrong & (relabeled == true)).sum()
    return RelabelingQuality((corrected / changed.sum()).item(), (corrected / wrong.sum()).item())
