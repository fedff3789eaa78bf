"""LaCViT: label-aware contrastive training (Long et al. 2023, arXiv 2303.18013), two runs for any network with tokens.

    1. objective "contrastive"    `contrastive_loss` of z = P(x) / |P(x)| for two views of every image; x is what the
                                  class head reads (`pool`), P a projection: Linear D → D, ReLU, Linear D → 128
    2. objective "heads"          starts from the first run (`Run.start`): the encoder is frozen, the heads learn by CE

The first run leaves the heads as they were drawn, so its accuracies are those of guessing. In the second, LayerNorm and
Linear of each head learn: a linear classifier, since the one's scale and shift could as well be the other's.

Published: the loss, τ = 0.1, P, both stages, to fine-tune pretrained ViTs (up to 10.78 percentage points above CE, on
CUB-200-2011). The authors' code multiplies the loss by τ / 0.07, as does the code of supervised contrastive learning
that it comes from: a larger learning rate, but for Adam. Ours: the loss without this factor, as in the equation, and a
distillation head that learns in the second run what the class head learns.
"""

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from titn_lib.data.mixing import MixedTargets
from titn_lib.data.transforms import Images
from titn_lib.errors import TITNError
from titn_lib.losses.distillation import TeacherOutput
from titn_lib.losses.objective import LossAndLogits, Objective
from titn_lib.models.base import Classifier, TokenClassifier

TEMPERATURE = 0.1
PROJECTION_WIDTH = 128


def contrastive_loss(
    z: Float[Tensor, "image width"], labels: Int[Tensor, " image"], temperature: float = TEMPERATURE
) -> Float[Tensor, ""]:
    """Every image is an anchor i, drawn to the others of its class, P(i) (Khosla et al. 2020, eq. 2; their sum over
    anchors is a mean here):

        mean over i of  −1/|P(i)| Σ_{p∈P(i)} log( exp(z_i·z_p/τ) / Σ_{a≠i} exp(z_i·z_a/τ) )

    An anchor alone in its class is left out; where all are, the loss is 0. Anchors are compared within their batch (and
    process) only: gradients added up over small batches bring no image more to compare with.

    Args:
        z: rows of length 1.
    """
    with torch.autocast(z.device.type, enabled=False):  # bfloat16 would round what 1/τ then magnifies
        scores = z @ z.T / temperature
    itself = torch.eye(len(z), dtype=torch.bool, device=z.device)
    positives = (labels[:, None] == labels) & ~itself
    log_shares = scores.masked_fill(itself, -torch.inf).log_softmax(dim=-1).masked_fill(~positives, 0)
    count = positives.sum(dim=-1)
    return -(log_shares.sum(dim=-1) / count.clamp(min=1)).sum() / (count > 0).sum().clamp(min=1)


class Stage(Objective):
    """What both stages share; TITNError where the network has no tokens, or there is something to distill."""

    HEADS_LEARN: bool  # and nothing else does, or all but them
    network: TokenClassifier

    def __init__(self, network: Classifier, loss: str = "cross_entropy", *settings: Any):
        if loss != "cross_entropy":
            raise TITNError(f"contrastive training needs no teacher: choose the loss 'cross_entropy', not {loss!r}")
        if not isinstance(network, TokenClassifier):
            raise TITNError(f"{network.config.name} has no tokens for contrastive training: choose a TITN, TNT or ViT")
        super().__init__(network, loss, *settings)
        # Where several processes add up their gradients, they must not wait for those that never come.
        self._ddp_params_and_buffers_to_ignore = [
            f"network.{name}" for name, _ in network.named_parameters() if name.startswith("heads") != self.HEADS_LEARN
        ]

    def head_logits(self, tokens: Float[Tensor, "batch token width"]) -> Float[Tensor, "head batch classes"]:
        return torch.stack(list(self.network.heads.forward_all(tokens))).float()


class Contrastive(Stage):
    """The first stage, for the encoder and the projection, which is not kept; label smoothing has no place in it."""

    VIEWS = 2
    HEADS_LEARN = False

    def __init__(self, network: Classifier, *settings: Any):
        super().__init__(network, *settings)
        width = self.network.token_width
        self.projection = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, PROJECTION_WIDTH))

    def forward(
        self, images: Images, targets: MixedTargets, teacher_output: TeacherOutput | None = None
    ) -> LossAndLogits:
        """Returns the contrastive loss, and the mean of the heads' logits, without gradient."""
        tokens = self.network.forward_features(images).hidden_states[-1]
        z = F.normalize(self.projection(self.network.heads.pool(tokens)).float(), dim=-1)
        return contrastive_loss(z, targets.a), self.head_logits(tokens).mean(dim=0).detach()


class LinearProbe(Stage):
    """The second stage. The encoder gets no gradient, so the optimizer passes it by, weight decay and all; and it stays
    in evaluation mode, or its batch normalization would go on measuring."""

    HEADS_LEARN = True

    def train(self, mode: bool = True) -> "LinearProbe":
        super().train(mode)
        self.network.eval()
        return self

    def forward(
        self, images: Images, targets: MixedTargets, teacher_output: TeacherOutput | None = None
    ) -> LossAndLogits:
        """Returns the mean of the heads' CE, and of their logits."""
        with torch.no_grad():
            tokens = self.network.forward_features(images).hidden_states[-1]
        logits = self.head_logits(tokens)
        return self.label_loss(logits, targets), logits.mean(dim=0)


# --- how features lie on the sphere, once every row has length 1


def average_cosine(features: Float[Tensor, "image width"]) -> float:
    """The mean cosine of two different images: 0 where no direction is preferred (isotropy), 1 where all are one."""
    unit = F.normalize(features, dim=-1)
    n = len(features)
    return ((unit.sum(dim=0).square().sum() - n) / (n * (n - 1))).item()


def alignment(features: Float[Tensor, "image width"], labels: Int[Tensor, " image"]) -> float:
    """The mean squared distance of two images of one class (Wang and Isola 2020, α = 2; their pairs are views of one
    image): 0 where every class is a point."""
    unit = F.normalize(features, dim=-1)
    pairs = (labels[:, None] == labels).triu(diagonal=1)
    return (2 - 2 * unit @ unit.T)[pairs].mean().item()


def uniformity(features: Float[Tensor, "image width"]) -> float:
    """log of the mean of exp(−2 · squared distance) over all pairs (Wang and Isola 2020, t = 2): 0 where all images
    are one point, lower the more evenly they lie on the sphere."""
    return torch.pdist(F.normalize(features, dim=-1)).square().mul(-2).exp().mean().log().item()
