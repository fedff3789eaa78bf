"""The training loop of notebooks 14 to 16: a small network, the digits, seconds.

`titn_lib.training.train` is for longer runs. It saves, resumes and records them.
"""

from collections.abc import Callable
from functools import cache

import numpy as np
import torch
from torch import nn

from titn_lib.data.datasets import DataSplits, load_dataset
from titn_lib.data.images import ImageDataset
from titn_lib.data.mixing import MixedTargets
from titn_lib.data.transforms import Images, UInt8Images, augment, normalize
from titn_lib.errors import TITNError
from titn_lib.losses.distillation import teacher_forward
from titn_lib.losses.objective import Objective
from titn_lib.models.base import Classifier
from titn_lib.models.registry import create_model


@cache
def digits() -> DataSplits:
    """The data set, loaded once."""
    return load_dataset("digits")


def prepare(images: UInt8Images) -> Images:
    """Normalized digits, as the networks take them."""
    return normalize(images, digits().mean, digits().std)


def make_network(model: str = "titn_nano", seed: int = 0, **settings: object) -> Classifier:
    """A network for the digits, with initial weights that depend on the seed alone.

    Args:
        settings: settings of the model to change, such as `depth=2`.
    """
    torch.manual_seed(seed)
    return create_model(model, in_channels=1, image_size=digits().image_size, **settings)


def fit(
    objective: Objective,
    part: ImageDataset,
    epochs: int,
    lr: float = 2e-3,
    batch_size: int = 64,
    seed: int = 0,
    teacher: nn.Module | None = None,
    after_epoch: Callable[[Classifier], None] | None = None,
    fast: str | None = None,
) -> Classifier:
    """Train the objective's network on some of the digits, which are shifted at random.

    AdamW with weight decay 0.05 and gradients clipped to norm 1. The learning rate rises to `lr` in the first tenth of
    the steps and falls to zero, and AdamW's β₁ does the opposite (PyTorch's `OneCycleLR`). An incomplete last batch is
    left out.

    Args:
        part: the training images, such as `digits().train`.
        seed: the random seed of the order of the images and their shifts. The initial weights are `make_network`'s.
        teacher: frozen; its output for each batch is passed to the objective.
        after_epoch: called with the network, in evaluation mode, after every epoch.
        fast: weights with this in their names get ten times the learning rate.

    Returns:
        The network, in evaluation mode.

    Raises:
        TITNError: there are fewer images than in a batch.
    """
    if len(part) < batch_size:
        raise TITNError(f"{len(part)} images don't fill a batch of {batch_size}: choose a smaller batch_size")
    steps, rng = len(part) // batch_size, np.random.default_rng(seed)
    optimizer = make_optimizer(objective, lr, fast)
    rates = [group["lr"] for group in optimizer.param_groups]
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rates, total_steps=epochs * steps, pct_start=0.1)
    for epoch in range(epochs):
        objective.train()
        for step, some in enumerate(torch.from_numpy(rng.permutation(len(part))).split(batch_size)[:steps]):
            views = [augment(part.images[some], "shift", rng) for _ in range(objective.VIEWS)]
            x, y = prepare(torch.cat(views)), part.labels[some].repeat(objective.VIEWS)
            objective.progress = (epoch + step / steps) / epochs
            loss, _ = objective(x, MixedTargets(y, y), teacher_forward(teacher, x) if teacher else None)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(objective.parameters(), 1.0)
            optimizer.step()
            schedule.step()
        if after_epoch:
            after_epoch(objective.network.eval())
    return objective.network.eval()


def make_optimizer(objective: Objective, lr: float, fast: str | None) -> torch.optim.Optimizer:
    """AdamW. Weights with `fast` in their names are a group of their own, with ten times the learning rate."""
    groups: dict[float, list[nn.Parameter]] = {}
    for name, weight in objective.named_parameters():
        groups.setdefault(10 * lr if fast and fast in name else lr, []).append(weight)
    return torch.optim.AdamW(
        [{"params": weights, "lr": rate} for rate, weights in groups.items()], weight_decay=0.05, fused=True
    )
