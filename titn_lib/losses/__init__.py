"""Training losses: cross-entropy with the labels, distillation from a teacher's logits or feature maps, and others.

registry.py names every loss and says how to add one. objective.py joins a network and its loss.
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
from titn_lib.losses.features import FeatureDistillationLoss, FeatureLoss, ManifoldLoss, similarity_mse
from titn_lib.losses.objective import Objective
from titn_lib.losses.registry import list_losses, make_objective, register_loss

__all__ = [
    "FeatureDistillationLoss",
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
    "register_loss",
    "similarity_mse",
    "soft_loss",
    "teacher_forward",
]
