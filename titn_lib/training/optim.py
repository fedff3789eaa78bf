"""The learning-rate schedule, the optimizer, and compiling."""

import logging
import math

import torch
from torch import nn

from titn_lib.kernels import build
from titn_lib.training.config import Recipe

MIN_IMAGES_TO_COMPILE = 100_000  # images to learn from: two minutes for the smallest student
COMPILED_NETWORKS = 64  # different ones in a process; PyTorch by itself leaves off after eight, and says little
log = logging.getLogger(__name__)


def learning_rate(recipe: Recipe, step: int, steps_per_epoch: int) -> float:
    """A linear warm-up, then half a cosine from `lr` down to `min_lr` at the last step."""
    warmup = round(recipe.warmup_epochs * steps_per_epoch)
    if step < warmup:
        return recipe.lr * (step + 1) / warmup
    last = max(recipe.epochs * steps_per_epoch - 1, warmup + 1)
    along = (step - warmup) / (last - warmup)
    return recipe.min_lr + (recipe.lr - recipe.min_lr) * (1 + math.cos(math.pi * min(along, 1.0))) / 2


def compile_blocks(network: nn.Module, pictures: int, device: torch.device) -> bool:
    """Let torch.compile fuse what lies between matrix products, if the run is long enough to pay for it.

    One block is compiled and the code serves all: that takes some fifteen seconds, the whole network several times as
    long, and is as fast. Without a compiler (or for a teacher, whose convolutions have nothing to fuse) all stays as
    it is.
    """
    blocks = getattr(network, "blocks", None)
    if blocks is None or pictures < MIN_IMAGES_TO_COMPILE:
        return False
    if device.type == "cpu" and not build.find_compiler():
        log.warning("training runs without torch.compile, a little slower: there is no C++ compiler (g++ or clang++)")
        return False
    torch._dynamo.config.recompile_limit = COMPILED_NETWORKS
    for block in blocks:
        block.compile(dynamic=False)
    return True


def make_optimizer(module: nn.Module, recipe: Recipe, fused: bool = True) -> torch.optim.Optimizer:
    """SGD decays all weights, as published; AdamW decays matrices and not biases, token tables and norms (but TNT's
    norms over all pixels of a patch, whose weights are matrices).

    Args:
        fused: one kernel for all weights (PyTorch's can't work with float16's gradient scaling and clipping).
    """
    parameters = [(name, p) for name, p in module.named_parameters() if p.requires_grad]
    if recipe.optimizer == "sgd":
        return torch.optim.SGD(
            [p for _, p in parameters], lr=recipe.lr, momentum=0.9, weight_decay=recipe.weight_decay, fused=fused
        )
    decayed = [p for name, p in parameters if p.ndim > 1 and name.endswith("weight")]
    others = [p for name, p in parameters if p.ndim <= 1 or not name.endswith("weight")]
    groups = [{"params": decayed, "weight_decay": recipe.weight_decay}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=recipe.lr, fused=fused)
