"""Tests of attribution maps: deletion and insertion curves, randomized weights, rank correlation."""

import copy
import math
from collections.abc import Callable

import torch
from einops import rearrange
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torchvision.transforms.functional import gaussian_blur

from titn_lib.data.transforms import Images
from titn_lib.errors import TITNError
from titn_lib.interpret.attribution import Classes, require_attention
from titn_lib.models.base import TokenClassifier


def cells(maps: Float[Tensor, "batch height width"], side: int) -> Float[Tensor, "batch cell"]:
    """Sums over squares of side × side points, in reading order."""
    return rearrange(maps, "batch (row y) (column x) -> batch (row column) (y x)", y=side, x=side).sum(dim=-1)


def order_cells(maps: Float[Tensor, "batch height width"], side: int) -> Int64[Tensor, "batch cell"]:
    """The numbers of the cells, the largest sum first, equal ones in reading order. `torch.rand` maps give a random
    order, the baseline."""
    return cells(maps, side).argsort(dim=1, descending=True, stable=True)


def perturbation_curve(
    logits: Callable[[Images], Float[Tensor, "batch classes"]],
    start: Images,
    end: Images,
    order: Int64[Tensor, "batch cell"],
    classes: Classes,
    steps: int = 16,
) -> Float[Tensor, "batch step"]:
    """The probability of each image's class while `start` turns into `end`, cell by cell in the given order, at
    steps + 1 evenly spaced points (Petsiuk, Das and Saenko 2018, arXiv 1806.07421).

    Deletion goes from the image to a blank one (a good order makes the probability fall early), insertion from a
    blank one to the image. Blank can be zeros (the mean color of normalized images) or `blur(images)`.

    Raises:
        TITNError: the cells don't tile the images.
    """
    height, width = start.shape[2:]
    side = math.isqrt(height * width // order.shape[1])
    if side == 0 or height % side or width % side or height * width != order.shape[1] * side**2:
        raise TITNError(
            f"{order.shape[1]} cells don't tile images of {height}×{width}: make the order from maps of that size"
        )
    place = order.argsort(dim=1)[..., None].expand(-1, -1, side**2)  # of every cell in the order
    place = rearrange(place, "batch (row column) (y x) -> batch 1 (row y) (column x)", row=height // side, y=side)
    curve = []
    with torch.no_grad():
        for step in range(steps + 1):
            mixed = torch.where(place < round(order.shape[1] * step / steps), end, start)
            curve.append(logits(mixed).softmax(dim=-1).gather(1, classes[:, None])[:, 0])
    return torch.stack(curve, dim=1)


def auc(curve: Float[Tensor, "batch step"]) -> Float[Tensor, " batch"]:
    """The area under each curve (trapezoids), over a width of 1: the mean probability along the way."""
    return torch.trapezoid(curve, dx=1 / (curve.shape[1] - 1), dim=1)


def blur(images: Images, width: float = 4.0) -> Images:
    """The images through a Gaussian of that standard deviation, in points: no mean color, but no detail either."""
    size = 2 * min(round(2 * width), (min(images.shape[2:]) - 1) // 2) + 1
    return gaussian_blur(images, [size, size], [width, width])


def bootstrap_ci(values: Float[Tensor, " image"], repeats: int = 2000, seed: int = 0) -> tuple[float, float]:
    """A 95 % interval for the mean over images: percentiles of means over as many images, drawn with replacement.

    To compare two maps, take the difference of their areas on every image: an interval without 0 tells them apart.
    """
    drawn = torch.randint(len(values), (repeats, len(values)), generator=torch.Generator().manual_seed(seed))
    low, high = values.cpu()[drawn].mean(dim=1).quantile(torch.tensor([0.025, 0.975]).to(values.cpu()))
    return float(low), float(high)


def randomize_weights(model: nn.Module, blocks: int, seed: int = 0) -> TokenClassifier:
    """A copy whose heads and last so many blocks have fresh weights, as before training; with depth + 1, all has. A map
    that stays the same did not depend on the weights (Adebayo et al. 2018, arXiv 1810.03292: cascading randomization).
    """
    mixed = copy.deepcopy(require_attention(model))
    depth = mixed.config.depth
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(10**9 + seed)  # no run's own seed: trained weights resemble those that they started from
        fresh = type(mixed)(mixed.config).state_dict()
    chosen = ("heads.", *(f"blocks.{place}." for place in range(depth - blocks, depth))) if blocks <= depth else ("",)
    mixed.load_state_dict({name: fresh[name] for name in fresh if name.startswith(chosen)}, strict=False)
    return mixed


def rank_correlation(a: Float[Tensor, "batch cell"], b: Float[Tensor, "batch cell"]) -> Float[Tensor, " batch"]:
    """Spearman's: how alike two maps order the cells, 1 for the same order, 0 for unrelated ones. Equal values share
    their rank; a map of one value everywhere has no order, and gives 0."""

    def ranks(values: Tensor) -> Tensor:
        larger = (values[:, :, None] > values[:, None]).sum(dim=2) - (values[:, :, None] < values[:, None]).sum(dim=2)
        return larger.to(values)

    first, second = ranks(a), ranks(b)  # centerd at 0
    return (first * second).sum(dim=1) / (first.norm(dim=1) * second.norm(dim=1)).clamp(min=1e-30)
