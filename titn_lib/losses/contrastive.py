"""LaCViT: label-aware contrastive training (Long et al. 2023, arXiv 2303.18013) of a network with tokens, in two runs.

    1. loss "contrastive"     `contrastive_loss` of z = P(x) / |P(x)| for two views of every image. x is the input of
                              the class head (`Heads.pool`); P is a projection: Linear D → D, ReLU, Linear D → 128.
    2. loss "linear_probe"    starts from the first run's weights (`Run.init_from`). The encoder is frozen, and the
                              heads are trained with cross-entropy.

The first run never updates the heads, so its accuracy is at chance level. The second run trains the LayerNorm and the
Linear of each head. This is a linear classifier, since the Linear can absorb the scale and shift of the LayerNorm.

Published: the loss, τ = 0.1, P and both stages, to fine-tune pretrained ViTs (up to 10.78 percentage points above CE,
on CUB-200-2011). The authors' code multiplies the loss by τ / 0.07, as does the code of supervised contrastive learning
that it builds on. This acts as a larger learning rate, except with Adam. Ours: the loss without this factor, as in the
equation, and a distillation head that is trained in the second run like the class head.
"""

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
    """Supervised contrastive loss (Khosla et al. 2020, eq. 2, with a mean over anchors instead of their sum).

    Every image is an anchor i, and P(i) are the other images of its class:

        mean over i of  −1/|P(i)| Σ_{p∈P(i)} log( exp(z_i·z_p/τ) / Σ_{a≠i} exp(z_i·z_a/τ) )

    An anchor without a second image of its class is left out. If all are, the loss is 0. Anchors are compared only
    within their batch and process, so accumulating gradients over small batches doesn't replace a large batch.

    Args:
        z: features, each row of length 1.
        labels: the class of each row.
        temperature: τ.
    """
    with torch.autocast(z.device.type, enabled=False):  # 1/τ would magnify bfloat16's rounding errors
        scores = z @ z.T / temperature
    itself = torch.eye(len(z), dtype=torch.bool, device=z.device)
    positives = (labels[:, None] == labels) & ~itself
    log_shares = scores.masked_fill(itself, -torch.inf).log_softmax(dim=-1).masked_fill(~positives, 0)
    count = positives.sum(dim=-1)
    return -(log_shares.sum(dim=-1) / count.clamp(min=1)).sum() / (count > 0).sum().clamp(min=1)


class ContrastiveStage(Objective):
    """What both stages share.

    Raises:
        TITNError: the network has no tokens.
    """

    TRAINS_HEADS: bool  # True: the heads and nothing else. False: everything but the heads.
    network: TokenClassifier

    def __init__(self, network: Classifier, label_smoothing: float = 0.0):
        if not isinstance(network, TokenClassifier):
            raise TITNError(f"{network.config.name} has no tokens for contrastive training: choose a TITN, TNT or ViT")
        super().__init__(network, label_smoothing=label_smoothing)
        # DistributedDataParallel must not wait for gradients that are never computed.
        self._ddp_params_and_buffers_to_ignore = [
            f"network.{name}" for name, _ in network.named_parameters() if name.startswith("heads") != self.TRAINS_HEADS
        ]

    def head_logits(self, tokens: Float[Tensor, "batch token width"]) -> Float[Tensor, "head batch classes"]:
        """Each head's logits, in float32."""
        return torch.stack(list(self.network.heads.forward_all(tokens))).float()


class Contrastive(ContrastiveStage):
    """The first stage: trains the encoder and the projection. The projection is discarded after training, and label
    smoothing has no effect."""

    VIEWS = 2
    CAPTURABLE = True
    TRAINS_HEADS = False

    def __init__(self, network: Classifier, label_smoothing: float = 0.0):
        super().__init__(network, label_smoothing)
        width = self.network.token_width
        self.projection = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, PROJECTION_WIDTH))

    def forward(
        self, images: Images, targets: MixedTargets, teacher_output: TeacherOutput | None = None
    ) -> LossAndLogits:
        """Returns the contrastive loss, and the mean of the heads' logits without gradient."""
        tokens = self.network.forward_features(images).hidden_states[-1]
        z = F.normalize(self.projection(self.network.heads.pool(tokens)).float(), dim=-1)
        return contrastive_loss(z, targets.a), self.head_logits(tokens).mean(dim=0).detach()


class LinearProbe(ContrastiveStage):
    """The second stage, linear probing. The encoder is frozen: it gets no updates and no weight decay, and it stays in
    evaluation mode so that the statistics of its batch normalization don't change."""

    CAPTURABLE = True
    TRAINS_HEADS = True

    def train(self, mode: bool = True) -> "LinearProbe":
        super().train(mode)
        self.network.eval()
        return self

    def forward(
        self, images: Images, targets: MixedTargets, teacher_output: TeacherOutput | None = None
    ) -> LossAndLogits:
        """Returns the mean of the heads' cross-entropies, and the mean of their logits."""
        with torch.no_grad():
            tokens = self.network.forward_features(images).hidden_states[-1]
        logits = self.head_logits(tokens)
        return self.label_loss(logits, targets), logits.mean(dim=0)


# --- measures of features on the unit sphere: every row is scaled to length 1 first


def average_cosine(features: Float[Tensor, "image width"]) -> float:
    """The mean cosine similarity of two different images: 0 for isotropic features, 1 if all are parallel."""
    unit = F.normalize(features, dim=-1)
    n = len(features)
    return ((unit.sum(dim=0).square().sum() - n) / (n * (n - 1))).item()


def alignment(features: Float[Tensor, "image width"], labels: Int[Tensor, " image"]) -> float:
    """The mean squared distance between two images of one class, 0 if every class is a single point.

    After Wang and Isola 2020 with α = 2; their pairs are two views of one image.
    """
    unit = F.normalize(features, dim=-1)
    pairs = (labels[:, None] == labels).triu(diagonal=1)
    return (2 - 2 * unit @ unit.T)[pairs].mean().item()


def uniformity(features: Float[Tensor, "image width"]) -> float:
    """log of the mean of exp(−2 · squared distance) over all pairs (Wang and Isola 2020, t = 2).

    0 if all images are a single point; lower the more evenly they are spread over the sphere.
    """
    return torch.pdist(F.normalize(features, dim=-1)).square().mul(-2).exp().mean().log().item()
