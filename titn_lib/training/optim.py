"""The learning-rate schedule, the optimizer, and torch.compile."""

import logging
import math

import torch
from torch import nn

from titn_lib import kernels
from titn_lib.torch_compat import set_recompile_limit
from titn_lib.training.config import Recipe

MIN_IMAGES_TO_COMPILE = 100_000  # over all epochs: two minutes for the smallest student
COMPILED_NETWORKS = 64  # in one process; PyTorch's default limit is eight, after which it runs eagerly
log = logging.getLogger(__name__)


def learning_rate(recipe: Recipe, step: int, steps_per_epoch: int) -> float:
    """Linear warm-up, then cosine decay from `lr` to `min_lr` at the last step. `step` counts over all epochs."""
    warmup = round(recipe.warmup_epochs * steps_per_epoch)
    if step < warmup:
        return recipe.lr * (step + 1) / warmup
    last = max(recipe.epochs * steps_per_epoch - 1, warmup + 1)
    progress = (step - warmup) / (last - warmup)
    return recipe.min_lr + (recipe.lr - recipe.min_lr) * (1 + math.cos(math.pi * min(progress, 1.0))) / 2


def compile_blocks(network: nn.Module, num_images: int, device: torch.device) -> bool:
    """Compile the network's blocks with torch.compile, if the run is long enough to amortize it.

    One block is compiled, and its code serves all. This takes some fifteen seconds. Compiling the whole network takes
    several times as long and trains no faster. Nothing is compiled without a C++ compiler (on a CPU), or for a network
    without blocks, such as a teacher: its convolutions leave nothing to fuse.

    Args:
        num_images: of the whole run, over all epochs.

    Returns:
        Whether the blocks are compiled.
    """
    blocks = getattr(network, "blocks", None)
    if blocks is None or num_images < MIN_IMAGES_TO_COMPILE:
        return False
    if device.type == "cpu" and not kernels.find_compiler():
        log.warning("training runs without torch.compile, a little slower: there is no C++ compiler (g++ or clang++)")
        return False
    set_recompile_limit(COMPILED_NETWORKS)
    for block in blocks:
        block.compile(dynamic=False)
    return True


def make_optimizer(module: nn.Module, recipe: Recipe, fused: bool = True) -> torch.optim.Optimizer:
    """The recipe's optimizer for the parameters that require a gradient.

    SGD applies weight decay to all of them, as published. AdamW applies it to matrices, but not to biases, embeddings
    and norms. TNT's norms over all pixels of a patch have matrices as weights and are decayed, too.

    Args:
        fused: update all parameters in one kernel. PyTorch's doesn't support clipping with float16's gradient scaling.
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
