"""Faithfulness tests of attribution maps: deletion and insertion curves, randomized weights, rank correlation."""

import copy
import math
from collections.abc import Callable

import torch
from einops import rearrange
from jaxtyping import Float, Int64
from torch import Tensor, nn

from titn_lib.data.transforms import Images
from titn_lib.errors import TITNError
from titn_lib.interpret.attribution import Classes, require_attention
from titn_lib.models.base import TokenClassifier


def sum_cells(maps: Float[Tensor, "batch height width"], side: int) -> Float[Tensor, "batch cell"]:
    """Sums over cells of side × side image pixels, in reading order."""
    return rearrange(maps, "batch (row y) (column x) -> batch (row column) (y x)", y=side, x=side).sum(dim=-1)


def order_cells(maps: Float[Tensor, "batch height width"], side: int) -> Int64[Tensor, "batch cell"]:
    """The indices of the cells, the largest sum first, equal ones in reading order.

    Maps from `torch.rand` have a random order, the baseline.
    """
    return sum_cells(maps, side).argsort(dim=1, descending=True, stable=True)


def perturbation_curve(
    logits: Callable[[Images], Float[Tensor, "batch classes"]],
    start: Images,
    end: Images,
    order: Int64[Tensor, "batch cell"],
    classes: Classes,
    steps: int = 16,
) -> Float[Tensor, "batch step"]:
    """Deletion or insertion curve (Petsiuk, Das and Saenko 2018, arXiv 1806.07421).

    The cells of `start` are replaced by those of `end` in the given order, and the probability of each image's class is
    evaluated at steps + 1 evenly spaced fractions. Deletion goes from the image to a blank one: a faithful map makes
    the probability drop early. Insertion goes from a blank one to the image. Blank can be zeros (the mean color of
    normalized images) or `blur(images)`.

    Args:
        logits: a function from images to logits, such as `head_logits_fn(model)`.
        start, end: the images before and after.
        order: indices of the cells, such as `order_cells(maps, side)`.
        classes: the class of each image whose probability is measured.

    Raises:
        TITNError: the cells don't tile the images.
    """
    height, width = start.shape[2:]
    side = math.isqrt(height * width // order.shape[1])
    if side == 0 or height % side or width % side or height * width != order.shape[1] * side**2:
        raise TITNError(
            f"{order.shape[1]} cells don't tile images of {height}×{width}: make the order from maps of that size"
        )
    rank = order.argsort(dim=1)[..., None].expand(-1, -1, side**2)  # each cell's position in the order
    rank = rearrange(rank, "batch (row column) (y x) -> batch 1 (row y) (column x)", row=height // side, y=side)
    curve = []
    with torch.no_grad():
        for step in range(steps + 1):
            perturbed = torch.where(rank < round(order.shape[1] * step / steps), end, start)
            curve.append(logits(perturbed).softmax(dim=-1).gather(1, classes[:, None])[:, 0])
    return torch.stack(curve, dim=1)


def auc(curve: Float[Tensor, "batch step"]) -> Float[Tensor, " batch"]:
    """Area under each curve by the trapezoidal rule, on an x axis from 0 to 1: the mean probability."""
    return torch.trapezoid(curve, dx=1 / (curve.shape[1] - 1), dim=1)


def blur(images: Images, width: float = 4.0) -> Images:
    """Gaussian blur with a standard deviation of `width` image pixels: keeps the colors and removes the detail."""
    from torchvision.transforms.functional import gaussian_blur  # torchvision takes a second to import

    size = 2 * min(round(2 * width), (min(images.shape[2:]) - 1) // 2) + 1
    return gaussian_blur(images, [size, size], [width, width])


def bootstrap_ci(values: Float[Tensor, " image"], repeats: int = 2000, seed: int = 0) -> tuple[float, float]:
    """95 % bootstrap confidence interval of the mean over images (percentile method).

    To compare two maps, take the difference of their AUC on every image: if the interval excludes 0, they differ.
    """
    samples = torch.randint(len(values), (repeats, len(values)), generator=torch.Generator().manual_seed(seed))
    low, high = values.cpu()[samples].mean(dim=1).quantile(torch.tensor([0.025, 0.975]).to(values.cpu()))
    return float(low), float(high)


def randomize_weights(model: nn.Module, blocks: int, seed: int = 0) -> TokenClassifier:
    """A copy of the model whose heads and last `blocks` blocks are initialized again; with depth + 1, everything is.

    A map that stays the same does not depend on the weights (cascading randomization, Adebayo et al. 2018, arXiv
    1810.03292).
    """
    randomized = copy.deepcopy(require_attention(model))
    depth = randomized.config.depth
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(10**9 + seed)  # not a run's seed: trained weights resemble their initialization
        fresh = type(randomized)(randomized.config).state_dict()
    chosen = ("heads.", *(f"blocks.{index}." for index in range(depth - blocks, depth))) if blocks <= depth else ("",)
    randomized.load_state_dict({name: fresh[name] for name in fresh if name.startswith(chosen)}, strict=False)
    return randomized


def rank_correlation(a: Float[Tensor, "batch cell"], b: Float[Tensor, "batch cell"]) -> Float[Tensor, " batch"]:
    """Spearman's rank correlation of two maps: 1 for the same order of cells, 0 for unrelated ones.

    Equal values share their rank. A constant map has no order, and its correlation is 0.
    """

    def ranks(values: Tensor) -> Tensor:
        larger = (values[:, :, None] > values[:, None]).sum(dim=2)
        smaller = (values[:, :, None] < values[:, None]).sum(dim=2)
        return (larger - smaller).to(values)

    first, second = ranks(a), ranks(b)  # centered at 0
    return (first * second).sum(dim=1) / (first.norm(dim=1) * second.norm(dim=1)).clamp(min=1e-30)
