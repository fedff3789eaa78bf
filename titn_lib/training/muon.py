"""Muon, an optimizer for matrices (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon)."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from titn_lib.training.config import Recipe

MOMENTUM = 0.6  # Jordan's for a convolutional network and some hundred steps
ADAMW_SCALE = 0.04  # AdamW's learning rate for the other parameters, as a share of Muon's


class Muon(torch.optim.AdamW):
    """Muon for the groups with `orthogonal`, AdamW for the others.

    A gradient with momentum is a matrix with few large singular values and many small ones. Muon replaces all of them
    by about 1. So rare directions are learned as fast as frequent ones. A convolution's weight counts as a matrix with
    one row for each output channel. (PyTorch's own `torch.optim.Muon` takes 2D parameters only.)
    """

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step of both. The gradients of Muon's parameters are deleted, so that AdamW leaves these alone."""
        with torch.enable_grad():
            loss = closure() if closure else None
        for group in self.param_groups:
            for p in group["params"]:
                if not group["orthogonal"] or p.grad is None:
                    continue
                state = self.state[p]
                if not state:
                    # AdamW expects a step when a checkpoint is loaded.
                    state.update(step=torch.zeros(()), momentum=torch.zeros_like(p))
                state["momentum"].mul_(MOMENTUM).add_(p.grad)
                direction = p.grad.add(state["momentum"], alpha=MOMENTUM)  # Nesterov's
                p.mul_(1 - group["lr"] * group["weight_decay"])
                p.sub_(group["lr"] * orthogonalize(direction.flatten(1)).view_as(p))
                p.grad = None
        super().step()
        return loss


def orthogonalize(matrix: Float[Tensor, "row column"], steps: int = 3) -> Float[Tensor, "row column"]:
    """The matrix with its singular values moved to between 0.5 and 1.21, but for those below 1.3 % of its norm.

    An odd polynomial of a matrix changes its singular values alone: X Xᵀ X has the singular vectors of X. Jordan chose
    this one's coefficients so that small values grow fast (a Newton–Schulz iteration).
    """
    wide = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T
    wide = wide / (wide.norm() + 1e-7)  # no singular value above 1
    for _ in range(steps):
        gram = wide @ wide.T
        wide = 3.4445 * wide + (-4.7750 * gram + 2.0315 * gram @ gram) @ wide
    return wide if wide.shape == matrix.shape else wide.T


def is_matrix(name: str, p: nn.Parameter) -> bool:
    """Whether a parameter is the weight of a linear layer or a convolution, by its name and shape.

    TNT's norms over all pixels of a patch have matrices as weights and count, too.
    """
    return p.ndim > 1 and name.endswith("weight")


def make_muon(
    parameters: list[tuple[str, nn.Parameter]], recipe: Recipe, fused: bool, layers: Mapping[str, int]
) -> Muon:
    """Muon for the matrices and convolutions below the heads, AdamW for heads, biases, norms and embeddings.

    Args:
        layers: as for `make_optimizer`.
    """
    groups: dict[tuple[bool, int], list[nn.Parameter]] = {}
    for name, p in parameters:
        layer = layers.get(name, 0)
        orthogonal = layer > 0 and is_matrix(name, p)
        groups.setdefault((orthogonal, layer if recipe.layer_decay != 1 else 0), []).append(p)
    listed = [
        {
            "params": groups[orthogonal, layer],
            "orthogonal": orthogonal,
            "lr_scale": recipe.layer_decay**layer * (1 if orthogonal else ADAMW_SCALE),
            "weight_decay": recipe.weight_decay if orthogonal else 0.0,
        }
        for orthogonal, layer in sorted(groups, reverse=True)
    ]
    return Muon(listed, lr=recipe.lr, fused=fused)
