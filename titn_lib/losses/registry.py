"""Every loss by name, for `Run.loss`, `make_objective` and the command line's --loss.

    cross_entropy        labels only
    hard, soft, dkd      a loss on the distillation head's logits     `distillation.LOGIT_LOSSES`
    feature, manifold    a loss on the teacher's feature maps         `features.FEATURE_LOSSES`
    soft+feature         one of each
    contrastive, …       an objective of its own                      `OBJECTIVES`

Three lines, in a notebook or in a module of your own, add a loss. Its name then works everywhere, also in combinations
such as "mse+feature":

    @titn_lib.losses.register_loss("mse")
    def mse_loss(student_logits, teacher_logits, labels, temperature):
        return (student_logits - teacher_logits).square().mean()

The same decorator takes a subclass of `FeatureDistillationLoss`, which compares feature maps, and a subclass of
`Objective`, which replaces the whole training loss and needs no teacher. It is called with a network and
`label_smoothing`.

On a GPU, a CUDA graph records the loss's kernels once and repeats them. So a loss computes from its arguments alone,
without Python state of its own. An objective that keeps to this says so with `CAPTURABLE = True`.
"""

import re
from collections.abc import Callable
from typing import TypeVar

from torch import nn

from titn_lib.errors import TITNError, unknown
from titn_lib.losses.budget import BudgetObjective
from titn_lib.losses.contrastive import Contrastive, LinearProbe
from titn_lib.losses.distillation import LOGIT_LOSSES, LogitLoss
from titn_lib.losses.features import FEATURE_LOSSES, FeatureDistillationLoss, no_patch_tokens
from titn_lib.losses.objective import Objective
from titn_lib.losses.relabeling import Relabeling
from titn_lib.models.base import Classifier, TokenClassifier

Loss = TypeVar("Loss", bound=LogitLoss | type[FeatureDistillationLoss] | type[Objective])

OBJECTIVES: dict[str, type[Objective]] = {
    "budget": BudgetObjective,
    "contrastive": Contrastive,
    "linear_probe": LinearProbe,
    "relabeling": Relabeling,
}


def list_losses() -> list[str]:
    """All names: cross-entropy, the distillation losses and their combinations, then other objectives."""
    combined = [f"{logit}+{feature}" for logit in LOGIT_LOSSES for feature in FEATURE_LOSSES]
    return ["cross_entropy", *LOGIT_LOSSES, *FEATURE_LOSSES, *combined, *OBJECTIVES]


BUILT_IN = frozenset(list_losses())


def register_loss(name: str) -> Callable[[Loss], Loss]:
    """Decorator that makes a loss available by name.

    Args:
        name: letters, digits and underscores. A loss of your own may be registered again, as a notebook cell that runs
            twice does; a built-in one can't be replaced.

    Raises:
        TITNError: the name is taken by a built-in loss, or has other characters.
    """
    if not re.fullmatch(r"\w+", name):
        raise TITNError(f"a loss can't be called {name!r}: use letters, digits and underscores")
    if name in BUILT_IN:
        raise TITNError(f"there is a built-in loss {name!r} already: choose another name")

    def register(loss: Loss) -> Loss:
        for table in (LOGIT_LOSSES, FEATURE_LOSSES, OBJECTIVES):
            table.pop(name, None)
        if not isinstance(loss, type):
            LOGIT_LOSSES[name] = loss
        elif issubclass(loss, FeatureDistillationLoss):
            FEATURE_LOSSES[name] = loss
        elif issubclass(loss, Objective):
            OBJECTIVES[name] = loss
        else:
            raise TITNError(f"{loss} is not a loss: register a function, a FeatureDistillationLoss or an Objective")
        return loss

    return register


def needs_teacher(loss: str) -> bool:
    """Whether the loss is a distillation loss."""
    return loss != "cross_entropy" and loss not in OBJECTIVES


def reads_feature_maps(loss: str) -> bool:
    """Whether the loss, or a part of it, compares the teacher's feature maps with the student's tokens."""
    return not FEATURE_LOSSES.keys().isdisjoint(loss.split("+"))


def check_loss(loss: str, network: Classifier | None = None) -> None:
    """Raises TITNError for an unknown loss, or a loss on feature maps for a network without patch tokens."""
    if loss not in list_losses():
        raise unknown("loss", loss, list_losses())
    if reads_feature_maps(loss) and network is not None and not isinstance(network, TokenClassifier):
        raise no_patch_tokens(network, loss)


def make_objective(
    network: Classifier,
    loss: str = "cross_entropy",
    teacher: nn.Module | None = None,
    temperature: float = 4.0,
    feature_weight: float = 2.5,
    label_smoothing: float = 0.0,
) -> Objective:
    """The network with the loss of this name. The arguments are those of `Objective`.

    Raises:
        TITNError: the loss is unknown, or doesn't fit the network or the teacher.
    """
    check_loss(loss, network)
    if loss in OBJECTIVES:
        return OBJECTIVES[loss](network, label_smoothing=label_smoothing)
    return Objective(network, loss, teacher, temperature, feature_weight, label_smoothing)
