"""Attribution maps of trained students, tests of their faithfulness, and the attention explorer."""

from titn_lib.interpret.attribution import (
    Relevance,
    attention,
    gradient_rollout_step,
    head_logits_fn,
    input_gradient,
    outer_rollout,
    relevance,
    require_attention,
    rollout,
    rollout_step,
    rollouts,
)
from titn_lib.interpret.faithfulness import (
    auc,
    blur,
    bootstrap_ci,
    cells,
    order_cells,
    perturbation_curve,
    randomize_weights,
    rank_correlation,
)

__all__ = [
    "Relevance",
    "attention",
    "auc",
    "blur",
    "bootstrap_ci",
    "cells",
    "gradient_rollout_step",
    "head_logits_fn",
    "input_gradient",
    "order_cells",
    "outer_rollout",
    "perturbation_curve",
    "randomize_weights",
    "rank_correlation",
    "relevance",
    "require_attention",
    "rollout",
    "rollout_step",
    "rollouts",
]
