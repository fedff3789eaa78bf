"""Every loss by name, as `Run.loss` and the command line's --loss know them.

    cross_entropy        labels only
    hard, soft, dkd      a loss on the distillation head's logits     `distillation.LOGIT_LOSSES`
    feature, manifold    a loss on the teacher's feature maps         `features.FEATURE_LOSSES`
    soft+feature         one of each
    contrastive, …       an objective of its own                      `OBJECTIVES`

A loss of your own: a function in `distillation.LOGIT_LOSSES`, a `FeatureDistillationLoss` in `features.FEATURE_LOSSES`,
or an `Objective` in `OBJECTIVES`. One entry is all it takes.
"""

from torch import nn

from titn_lib.errors import TITNError, unknown
from titn_lib.losses.budget import BudgetObjective
from titn_lib.losses.contrastive import Contrastive, LinearProbe
from titn_lib.losses.distillation import LOGIT_LOSSES
from titn_lib.losses.features import FEATURE_LOSSES
from titn_lib.losses.objective import Objective
from titn_lib.losses.relabeling import Relabeling
from titn_lib.models.base import Classifier, TokenClassifier

OBJECTIVES: dict[str, type[Objective]] = {
    "budget": BudgetObjective,
    "contrastive": Contrastive,
    "linear_probe": LinearProbe,
    "relabeling": Relabeling,
}


def list_losses() -> list[str]:
    """All names: cross-entropy, the losses that need a teacher and their combinations, then other objectives."""
    combined = [f"{logit}+{feature}" for logit in LOGIT_LOSSES for feature in FEATURE_LOSSES]
    return ["cross_entropy", *LOGIT_LOSSES, *FEATURE_LOSSES, *combined, *OBJECTIVES]


def needs_teacher(loss: str) -> bool:
    """Whether the loss is a distillation loss."""
    return loss != "cross_entropy" and loss not in OBJECTIVES


def check_loss(loss: str, network: Classifier | None = None) -> None:
    """Raises TITNError for an unknown loss, or a distillation loss for a network without tokens."""
    if loss not in list_losses():
        raise unknown("loss", loss, list_losses())
    if network is not None and needs_teacher(loss) and not isinstance(network, TokenClassifier):
        raise TITNError(
            f"{network.config.name} has no distillation or patch tokens for the loss {loss!r}: choose a TITN, TNT or "
            "ViT, or loss='cross_entropy'"
        )


def make_objective(
    network: Classifier,
    loss: str = "cross_entropy",
    teacher: nn.Module | None = None,
    temperature: float = 4.0,
    feature_weight: float = 2.5,
    label_smoothing: float = 0.0,
) -> Objective:
    """The network with the loss of this name.

    Raises:
        TITNError: an unknown loss, or one that doesn't fit the network or its teacher.
    """
    check_loss(loss, network)
    objective = OBJECTIVES.get(loss, Objective)
    method = "cross_entropy" if loss in OBJECTIVES else loss
    return objective(network, method, teacher, temperature, feature_weight, label_smoothing)
