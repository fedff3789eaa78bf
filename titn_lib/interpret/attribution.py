"""Where a student looks, and tests of whether that is why it answers as it does. Arrays in, arrays out, no images.

    maps = relevance(model, images).image                     which points an answer was put together from
    order = order_cells(maps, side=2)                           2×2 points at a time, the most relevant first
    curve = perturbation_curve(head_logits_fn(model), images, blank, order, classes)  does the answer go when they go?

Everything here takes normalized images and a student in evaluation mode. A `head` is "class" or "distillation".
Maps made of attention don't know of `local_perception`, by which patches hear their neighbors past it, one patch
further in each block. Gradients do.
"""

import math
from collections.abc import Callable
from itertools import accumulate
from typing import NamedTuple, cast

import torch
from einops import einsum, rearrange
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.nn import functional as F

from titn_lib.data.transforms import Images
from titn_lib.errors import TITNError, unknown
from titn_lib.models.base import AttentionMaps, Encoding, TokenClassifier
from titn_lib.models.titn import TITN, PixelToPatch

Classes = Int64[Tensor, " batch"]


class Relevance(NamedTuple):
    """What an answer was put together from.

    Attributes:
        image: the share that came from each point of the image.
        sources: the same shares by the way they came in: at the start, in block 1 … depth, and last what came from
            learned tables and not from the image. They sum to 1.
    """

    image: Float[Tensor, "batch height width"]
    sources: Float[Tensor, "batch source"]


def require_attention(model: nn.Module, head: str = "class") -> TokenClassifier:
    """The model, if it has attention, such a head, and is in evaluation mode.

    Raises:
        TITNError: it doesn't.
    """
    if not isinstance(model, TokenClassifier):
        raise TITNError(f"{type(model).__name__} has no attention to look at: take a student (TITN, TNT or ViT)")
    if head not in ("class", "distillation"):
        raise unknown("head", head, ("class", "distillation"))
    if head == "distillation" and not model.config.distillation_token:
        raise TITNError(f"{model.config.name} has no distillation token: ask for head='class'")
    if model.training:
        raise TITNError("the model is in training mode: call model.eval() first")
    return model


def attention(model: nn.Module, images: Images) -> AttentionMaps:
    """Both streams' attention: for each block, inner "batch patch head query key" (no blocks for a ViT) and outer
    "batch head query key". Rows sum to 1."""
    with torch.no_grad():
        return require_attention(model).forward_features(images, return_attention=True).attention


def head_logits_fn(model: nn.Module, head: str = "class") -> Callable[[Images], Float[Tensor, "batch classes"]]:
    """The function from images to the logits of one head (`model(images)` gives the mean of both)."""
    student = require_attention(model, head)

    def logits(images: Tensor) -> Tensor:
        return student.heads.forward_all(student.forward_features(images).hidden_states[-1])[head == "distillation"]

    return logits


def input_gradient(model: nn.Module, images: Images, classes: Classes, head: str = "class") -> Images:
    """How the logit of each image's class moves with every value of the image: ∂z/∂x (Simonyan, Vedaldi and
    Zisserman 2014, arXiv 1312.6034)."""
    with torch.enable_grad():
        inputs = images.detach().requires_grad_()
        chosen = head_logits_fn(model, head)(inputs).gather(1, classes[:, None]).sum()
    return torch.autograd.grad(chosen, inputs)[0]


def rollout_step(attention: Float[Tensor, "*batch head query key"]) -> Float[Tensor, "*batch query key"]:
    """One step of rollout: Â = ½ mean over heads of A + ½ I, rows made to sum to 1; the ½ I is the residual path, on
    which a token keeps what it has (Abnar and Zuidema 2020, arXiv 2005.00928)."""
    mixed = (attention.mean(dim=-3) + torch.eye(attention.shape[-1]).to(attention)) / 2
    return mixed / mixed.sum(dim=-1, keepdim=True)


def gradient_rollout_step(
    attention: Float[Tensor, "*batch head query key"], gradient: Float[Tensor, "*batch head query key"]
) -> Float[Tensor, "*batch query key"]:
    """One step, weighted by a class: I + mean over heads of (A · ∂z/∂A)⁺ (Chefer, Gur and Wolf 2021, arXiv 2103.15679).
    Rows don't sum to 1."""
    return torch.eye(attention.shape[-1]).to(attention) + (attention * gradient).clamp(min=0).mean(dim=-3)


def rollout(attention: list[Float[Tensor, "*batch head query key"]]) -> Float[Tensor, "*batch query key"]:
    """What share of every token after the last block goes back to every token before the first: Â_L ⋯ Â_2 Â_1.

    Rows sum to 1. The last block stands on the left: its row says where the answer looks, the earlier ones where those
    tokens had looked.
    """
    return rollouts(attention)[-1]


def rollouts(attention: list[Float[Tensor, "*batch head query key"]]) -> list[Float[Tensor, "*batch query key"]]:
    """`rollout` through each block."""
    return list(accumulate(map(rollout_step, attention), lambda before, step: step @ before))


def forward_with_attention(
    model: TokenClassifier, images: Tensor, head: str, classes: Tensor | None
) -> tuple[Encoding, Float[Tensor, "batch token"], list[Float[Tensor, "batch token token"]]]:
    """One pass: the encoding, the weights with which a head reads the last outer tokens, the mixing of each block."""
    with torch.set_grad_enabled(classes is not None):
        encoding = model.forward_features(images.detach().requires_grad_(), return_attention=True)
    maps, last = encoding.attention.outer, encoding.hidden_states[-1]
    reads = torch.zeros_like(last[..., 0])
    if head == "distillation":
        reads[:, -1] = 1
    elif model.heads.pooling == "class":
        reads[:, 0] = 1
    else:
        patches = model.config.patches
        reads[:, : 1 + patches] = 1 / (1 + patches)
    if classes is None:
        return encoding, reads, [rollout_step(one) for one in maps]
    with torch.enable_grad():
        chosen = model.heads.forward_all(last)[head == "distillation"].gather(1, classes[:, None]).sum()
    gradients = torch.autograd.grad(chosen, maps)
    mixed = [gradient_rollout_step(one.detach(), gradient) for one, gradient in zip(maps, gradients, strict=True)]
    return encoding, reads, mixed


def outer_rollout(
    model: nn.Module, images: Images, head: str = "class", classes: Classes | None = None
) -> Float[Tensor, "batch token"]:
    """How much of what a head reads goes back to every outer token of the start: the rollout's row of the class or
    distillation token, or, where the class head reads a mean (pooling="mean"), the mean of those tokens' rows.

    Args:
        classes: weigh attention by what it does for these classes' logits (`gradient_rollout_step`). The path without any
            attention, which weighs all that the head reads alike, is then left out.

    Returns:
        Shares that sum to 1.
    """
    student = require_attention(model, head)
    _, reads, mixed = forward_with_attention(student, images, head, classes)
    flow = reads
    for block in reversed(mixed):
        flow = einsum(flow, block, "batch query, batch query key -> batch key")
    flow = flow if classes is None else flow - reads
    return flow / flow.sum(dim=-1, keepdim=True).clamp(min=1e-30)


def relevance(model: nn.Module, images: Images, head: str = "class", classes: Classes | None = None) -> Relevance:
    """From which points of the image a head's answer was put together, through both streams. (Our own design.)

    An image enters a TITN's outer stream again in every block, through the projection; in the published model only
    there. So the relevance of pixel m of patch n is a sum over the ways in: the start (0) and blocks 1 … L,

        R[n, m] = Σ_l q_l[n] · β_l[n] · Σ_k s_l[n, k] · (Â_l ⋯ Â_1)[n, k, m]

    - (Â_l ⋯ Â_1)[n]: rollout of the *inner* stream inside patch n, up to block l.
    - s_l[n, k] = ‖u_k‖ / Σ_j ‖u_j‖: pixel token k's share in the news, with u_k = W_k LN(y_k) what the projection makes
      of it (W_k: the columns of its Linear that read token k). Norms, as in Kobayashi et al. 2020 (arXiv 2004.10102).
    - β_l[n] = ‖u‖ / (‖u‖ + ‖z‖): the share of the news u = Σ_k u_k in the patch token; z is all else in it (what it was
      before, in the start its position, and the projection's bias).
    - q_l: how much the head takes from every outer token after block l's news and before its outer attention. From the
      last block back, q_l = r_l Â_l with the *outer* Â; r_L is what the head reads, and r_l = (1 − β_{l+1}) q_{l+1} on
      the patches (q_{l+1} itself on class and distillation token): what came in later can't have come in before.

    So nothing is lost or made: Σ R and what is left on tables and positions sum to 1. For a ViT all comes in at the
    start, and R is `outer_rollout`, spread evenly over each patch. It is a model of the flow, not the flow: it doesn't
    see values, signs and the MLPs. A pixel token is drawn where it lies, though a convolution saw its surroundings.

    Args:
        classes: weigh the outer stream's attention by these classes (`gradient_rollout_step`), leave out the paths without
            attention, and scale to a sum of 1. The inner stream stays as it is: weighing it as well was no better on
            validation images.

    Raises:
        TITNError: a network without attention or without that head, or in training mode.
    """
    student = require_attention(model, head)
    encoding, reads, mixed = forward_with_attention(student, images, head, classes)
    with torch.no_grad():
        ways = injection_shares(student, images, encoding)
        arrived, rest = propagate_back(reads, mixed, ways)
        if classes is not None:
            idle, idle_rest = propagate_back(
                reads, [torch.eye(reads.shape[1]).to(one).expand_as(one) for one in mixed], ways
            )
            arrived, rest = arrived - idle, rest - idle_rest
    sources = torch.cat([arrived.sum(dim=(2, 3)), rest[:, None]], dim=1)
    total = sources.sum(dim=1, keepdim=True).clamp(min=1e-30)
    by_pixel = arrived.sum(dim=1) / total[..., None]
    return Relevance(to_pixels(by_pixel, student.config.grid, student.config.image_size), sources / total)


def injection_shares(
    model: TokenClassifier, images: Tensor, encoding: Encoding
) -> Float[Tensor, "way batch patch pixel"]:
    """The share of every patch token that comes in at the start and in each block, by the pixel token it began as."""
    batch, patches, depth = len(images), model.config.patches, len(encoding.hidden_states)
    if not isinstance(model, TITN):
        whole = torch.ones(1, batch, patches, 1).to(images)
        return torch.cat([whole, whole.new_zeros(depth, batch, patches, 1)])
    inner = model.pixel_embedding(images)
    outer = model.patch_embedding(inner)
    if model.config.patch_tokens == "from_pixels":
        start = model.patch_embedding.projection
        positions = model.patch_embedding.pos_embed[1 : 1 + patches]
        ways = [update_shares(start, start.norm(inner), positions.expand(batch, -1, -1))]
    else:
        ways = [inner.new_zeros(inner.shape[:3])]
    inside = rollouts(encoding.attention.inner)
    for block, rolled, after in zip(model.blocks, inside, encoding.hidden_states, strict=True):
        inner, normed, _ = block.forward_inner(inner, False)  # type: ignore[operator]
        shares = update_shares(cast(PixelToPatch, block.projection), normed, outer[:, 1 : 1 + patches])
        ways.append(einsum(shares, rolled, "batch patch query, batch patch query key -> batch patch key"))
        outer = after
    return torch.stack(ways)


def update_shares(
    projection: PixelToPatch,
    normed: Float[Tensor, "batch patch pixel inner_width"],
    before: Float[Tensor, "batch patch outer_width"],
) -> Float[Tensor, "batch patch pixel"]:
    """β s of `relevance`: each pixel token's share in what the patch token is after the projection was added."""
    columns = rearrange(projection.linear.weight, "out (pixel width) -> pixel out width", pixel=normed.shape[2])
    parts = einsum(normed, columns, "batch patch pixel width, pixel out width -> batch patch pixel out").norm(dim=-1)
    bias = projection.project(torch.zeros_like(normed))
    news = projection.project(normed) - bias
    share = news.norm(dim=-1) / (news.norm(dim=-1) + (before + bias).norm(dim=-1)).clamp(min=1e-30)
    return share[..., None] * parts / parts.sum(dim=-1, keepdim=True).clamp(min=1e-30)


def propagate_back(
    reads: Float[Tensor, "batch token"],
    mixed: list[Float[Tensor, "batch token token"]],
    ways: Float[Tensor, "way batch patch pixel"],
) -> tuple[Float[Tensor, "batch way patch pixel"], Float[Tensor, " batch"]]:
    """From what a head reads back to the ways in: what arrives on each, and what is left when all have taken theirs."""
    flow, arrived = reads, []
    for way in reversed(range(len(ways))):
        if way:
            flow = einsum(flow, mixed[way - 1], "batch query, batch query key -> batch key")
        arrived.append(flow[:, 1 : 1 + ways.shape[2], None] * ways[way])
        taken = arrived[-1].sum(dim=-1)
        flow = flow - F.pad(taken, (1, flow.shape[1] - taken.shape[1] - 1))
    return torch.stack(arrived[::-1], dim=1), flow.sum(dim=1)


def to_pixels(
    shares: Float[Tensor, "batch patch pixel"], grid: tuple[int, int], image_size: tuple[int, int]
) -> Float[Tensor, "batch height width"]:
    """Shares of pixel tokens (or of whole patches: one "pixel" each), each spread evenly over its points."""
    inside = math.isqrt(shares.shape[2])
    cells = rearrange(shares, "batch (row column) (y x) -> batch (row y) (column x)", row=grid[0], y=inside)
    side = image_size[0] // cells.shape[1]
    return (cells / side**2).repeat_interleave(side, dim=1).repeat_interleave(side, dim=2)
