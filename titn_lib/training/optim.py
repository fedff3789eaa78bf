"""The learning-rate schedule, the optimizer, and torch.compile."""

import logging
import math
import warnings
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from titn_lib import kernels
from titn_lib.torch_compat import inductor, set_recompile_limit
from titn_lib.training.config import Recipe
from titn_lib.training.muon import is_matrix, make_muon

MIN_IMAGES_TO_COMPILE = 100_000  # over all epochs: two minutes for the smallest student
MIN_IMAGES_TO_COMPILE_ALL = 5_000_000  # on a GPU, in one piece: that takes minutes
COMPILED_NETWORKS = 64  # in one process; PyTorch's default limit is eight, after which it runs eagerly
FAILURES: list[str] = []  # of torch.compile in this process: the first one
log = logging.getLogger(__name__)


def learning_rate(recipe: Recipe, step: int, steps_per_epoch: int) -> float:
    """Linear warm-up, then cosine decay from `lr` to `min_lr` at the last step. `step` counts over all epochs."""
    warmup = round(recipe.warmup_epochs * steps_per_epoch)
    if step < warmup:
        return recipe.lr * (step + 1) / warmup
    last = max(recipe.epochs * steps_per_epoch - 1, warmup + 1)
    progress = (step - warmup) / (last - warmup)
    return recipe.min_lr + (recipe.lr - recipe.min_lr) * (1 + math.cos(math.pi * min(progress, 1.0))) / 2


def compile_blocks(network: nn.Module, num_images: int, device: torch.device, whole: nn.Module | None = None) -> bool:
    """Compile the network's blocks with torch.compile, if the run is long enough to amortize it.

    One block is compiled, and its code serves all. This takes some fifteen seconds. Compiling the whole network takes
    several times as long and, on a CPU, trains no faster. Nothing is compiled without a C++ compiler (on a CPU), or for
    a network without blocks, such as a teacher: its convolutions leave nothing to fuse.

    Args:
        num_images: number of training images over all epochs of the run.
        whole: in a long run, compile this instead of the blocks: the objective of a step that becomes a CUDA graph.
            There, only the number of kernels counts, and more of them can be fused.

    Returns:
        Whether anything is compiled.
    """
    blocks = getattr(network, "blocks", None)
    if blocks is None or num_images < MIN_IMAGES_TO_COMPILE:
        return False
    if device.type == "cpu" and not kernels.find_compiler():
        log.warning("training runs without torch.compile, a little slower: there is no C++ compiler (g++ or clang++)")
        return False
    if device.type == "cuda":
        kernels.triton_available()  # now, because its trial can't run while torch.compile traces
    set_recompile_limit(COMPILED_NETWORKS)
    for part in blocks if whole is None or num_images < MIN_IMAGES_TO_COMPILE_ALL else [whole]:
        part.compile(dynamic=False, backend=compile_or_run_eagerly)
    return True


def compile_or_run_eagerly(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Callable:
    """A backend for torch.compile that compiles until it fails for the first time, and then runs everything eagerly.

    A machine may have a compiler that PyTorch can't use: Python's headers are missing, or the folder of its cache
    can't be written to. The log then has one line with the compiler's own words.
    """
    if not compiling_failed():
        try:
            with warnings.catch_warnings(action="ignore"):  # they foretell the error
                return inductor(graph, inputs)
        except Exception as problem:  # each part of the compiler raises its own
            FAILURES.append(kernels.first_error(str(problem)))
            log.warning("training goes on without torch.compile, a little slower, because it failed: %s", FAILURES[0])
    return graph.forward


def compiling_failed() -> bool:
    """Whether torch.compile has failed in this process, so that everything runs eagerly since."""
    return bool(FAILURES)


def make_optimizer(
    module: nn.Module, recipe: Recipe, fused: bool = True, layers: Mapping[str, int] | None = None
) -> torch.optim.Optimizer:
    """The recipe's optimizer for the parameters that require a gradient.

    SGD applies weight decay to all of them, as published. AdamW applies it to matrices, but not to biases, embeddings
    and norms. TNT's norms over all pixels of a patch have matrices as weights and are decayed, too.

    Args:
        layers: the distance of each parameter from the logits, for the recipe's `layer_decay`; the others have 0. A
            group's learning rate is the step's times its `lr_scale`.
        fused: update all parameters in one kernel. PyTorch's doesn't support clipping with float16's gradient scaling.
    """
    parameters = [(name, p) for name, p in module.named_parameters() if p.requires_grad]
    if recipe.optimizer == "muon":
        return make_muon(parameters, recipe, fused, layers or {})
    groups: dict[tuple[int, bool], list[nn.Parameter]] = {}
    for name, p in parameters:
        layer = layers.get(name, 0) if layers and recipe.layer_decay != 1 else 0
        undecayed = recipe.optimizer != "sgd" and not is_matrix(name, p)
        groups.setdefault((layer, undecayed), []).append(p)
    listed = [
        {
            "params": groups[layer, undecayed],
            "lr_scale": recipe.layer_decay**layer,
            "weight_decay": 0.0 if undecayed else recipe.weight_decay,
        }
        for layer, undecayed in sorted(groups)
    ]
    if recipe.optimizer == "sgd":
        return torch.optim.SGD(listed, lr=recipe.lr, momentum=0.9, fused=fused)
    return torch.optim.AdamW(listed, lr=recipe.lr, fused=fused)


def set_learning_rate(optimizer: torch.optim.Optimizer, lr: float | Tensor) -> None:
    """Set each group's learning rate: this one times the group's `lr_scale`."""
    for group in optimizer.param_groups:
        scale = group.get("lr_scale", 1.0)  # a checkpoint's groups may lack it
        group["lr"] = lr if scale == 1 else lr * scale
