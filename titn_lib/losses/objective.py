"""A network and the loss it is trained with."""

from collections.abc import Iterable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from titn_lib.data.mixing import MixedTargets
from titn_lib.data.transforms import Images
from titn_lib.errors import TITNError
from titn_lib.losses.distillation import LOGIT_LOSSES, TeacherOutput, distillation_loss, mixed_cross_entropy
from titn_lib.losses.features import FEATURE_LOSSES, FeatureDistillationLoss, no_feature_maps, no_patch_tokens
from titn_lib.models.base import Classifier, TokenClassifier
from titn_lib.models.layers import TokenLogits
from titn_lib.models.teachers import Teacher

LossAndLogits = tuple[Float[Tensor, ""], Float[Tensor, "batch classes"]]


class Objective(nn.Module):
    """A network and the loss it is trained with, as one module.

        cross_entropy   the mean of both heads' CE with the labels (CE for a network with one head)
        hard            ½·CE(class head, labels) + ½·CE(distillation head, argmax of the teacher)    [TITN, published]
        soft            ½·CE(class head, labels) + ½·T²·KL(teacher ‖ distillation head)
        dkd             ½·CE(class head, labels) + ½·`dkd_loss`, with the dominant class of a mixed image
        +feature        adds `feature_weight` times `FeatureLoss`; without a logit loss, to cross-entropy
        +manifold       adds `ManifoldLoss`; without a logit loss, to cross-entropy

    A network without a distillation token uses its one head for both terms.

    Args:
        network: the student.
        loss: one of the above, such as "soft+feature".
        teacher: required by a distillation loss, and read only for the shapes of its feature maps. Its output for a
            batch is an argument of `forward`.
        temperature: T in "soft" and "dkd".
        feature_weight: the weight of "feature".
        label_smoothing: label smoothing in the cross-entropy with the labels.

    Raises:
        TITNError: a distillation loss without a teacher; or a feature loss with a teacher that is not one of
            `models.teachers`, or with a student without patch tokens.

    Attributes:
        progress: the finished share of the run, from 0 to 1; the trainer sets it before every step.
        class_weights: the weight of each class in the cross-entropy with the labels; None for equal weights.
    """

    VIEWS = 1  # augmented views of each image in a batch, as "(view batch) channel height width"
    class_weights: Float[Tensor, " classes"] | None = None
    CAPTURABLE = True  # `forward` reads no Python value that changes during training, so a CUDA graph can repeat it

    def __init__(
        self,
        network: Classifier,
        loss: str = "cross_entropy",
        teacher: nn.Module | None = None,
        temperature: float = 4.0,
        feature_weight: float = 2.5,
        label_smoothing: float = 0.0,
    ):
        super().__init__()
        if loss != "cross_entropy" and teacher is None:
            raise TITNError(f"the loss {loss!r} needs a teacher: name one, or choose 'cross_entropy'")
        parts = loss.split("+")
        self.network = network
        self.progress = 0.0
        self.loss = loss
        self.logit_loss = next((name for name in parts if name in LOGIT_LOSSES), "cross_entropy")
        self.temperature = temperature
        self.label_smoothing = label_smoothing
        self.feature_loss: FeatureDistillationLoss | None = None
        self.feature_weight = feature_weight
        feature = next((name for name in parts if name in FEATURE_LOSSES), None)
        if feature:
            if not isinstance(network, TokenClassifier):
                raise no_patch_tokens(network, loss)
            if not isinstance(teacher, Teacher):
                raise no_feature_maps(loss)
            self.feature_loss = FEATURE_LOSSES[feature](network, teacher)

    def forward(
        self, images: Images, targets: MixedTargets, teacher_output: TeacherOutput | None = None
    ) -> LossAndLogits:
        """Returns the loss and the network's logits, the mean of both heads.

        Raises:
            TITNError: the teacher's output is missing, or is for other classes.
        """
        if teacher_output is None and self.loss != "cross_entropy":
            raise TITNError(f"the loss {self.loss!r} needs the teacher's output: pass it (teacher_forward)")
        hidden_states, heads = self.forward_heads(images)
        teacher_logits = None if teacher_output is None else teacher_output.logits
        loss = distillation_loss(
            heads,
            teacher_logits,
            targets,
            self.logit_loss,
            self.temperature,
            self.label_smoothing,
            self.class_weights,
        )
        if self.feature_loss is not None and teacher_output is not None:
            weight = self.feature_weight if self.feature_loss.WEIGHTED else 1.0
            loss = loss + weight * self.feature_loss(hidden_states, teacher_output.maps)
        return loss, (heads.class_logits + heads.distillation_logits) / 2

    def train(self, mode: bool = True) -> "Objective":
        """Training mode, but for frozen batch normalization: it keeps the statistics that its weights belong to."""
        super().train(mode)
        for module in self.network.modules():
            if isinstance(module, nn.BatchNorm2d | nn.SyncBatchNorm) and module.weight is not None:
                module.train(mode and any(p.requires_grad for p in module.parameters()))
        return self

    @classmethod
    def capturable(cls) -> bool:
        """Whether the class itself is `CAPTURABLE`. A subclass, with a `forward` of its own, doesn't inherit that."""
        return vars(cls).get("CAPTURABLE", False)

    def forward_heads(self, images: Images) -> tuple[list[Float[Tensor, "batch token outer_width"]], TokenLogits]:
        """The tokens after every block, and both heads' logits in float32, in training and in evaluation mode.

        A network without tokens has no hidden states. A network with one head has the same logits twice.
        """
        if isinstance(self.network, TokenClassifier):
            hidden_states = self.network.forward_features(images).hidden_states
            heads = self.network.heads.forward_all(hidden_states[-1])
        else:
            logits = self.network(images)
            hidden_states = []
            heads = TokenLogits(logits, logits)
        return hidden_states, TokenLogits(*(logits.float() for logits in heads))

    def label_loss(self, heads: Iterable[Float[Tensor, "batch classes"]], targets: MixedTargets) -> Float[Tensor, ""]:
        """The mean of the heads' cross-entropies with the labels."""
        smoothing, weights = self.label_smoothing, self.class_weights
        return torch.stack([mixed_cross_entropy(logits, targets, smoothing, weights) for logits in heads]).mean()
