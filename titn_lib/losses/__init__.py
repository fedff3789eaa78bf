"""What a student is trained on: labels, a teacher's logits, a teacher's feature maps.

registry.py names every loss; objective.py joins a network and its loss.
"""

from titn_lib.losses.distillation import (
    TeacherOutput,
    distillation_loss,
    dkd_loss,
    freeze,
    hard_loss,
    mixed_cross_entropy,
    soft_loss,
    teacher_forward,
)
from titn_lib.losses.features import FeatureLoss, ManifoldLoss, similarity_mse
from titn_lib.losses.objective import Objective
from titn_lib.losses.registry import list_losses, make_objective

__all__ = [
    "FeatureLoss",
    "ManifoldLoss",
    "Objective",
    "TeacherOutput",
    "distillation_loss",
    "dkd_loss",
    "freeze",
    "hard_loss",
    "list_losses",
    "make_objective",
    "mixed_cross_entropy",
    "similarity_mse",
    "soft_loss",
    "teacher_forward",
]
