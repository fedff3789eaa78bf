"""Attribution maps of a student: attention rollout, gradients, and relevance through both streams.

    maps = relevance(model, images).image               the share of the prediction that comes from each image pixel
    order = order_cells(maps, side=2)                    cells of 2×2 image pixels, the most relevant first
    curve = perturbation_curve(head_logits_fn(model), images, blank, order, classes)         is the map faithful?

All functions take normalized images and a student in evaluation mode, and return tensors. A `head` is "class" or
"distillation". Maps made from attention ignore `local_perception` and `mlp_convolution`, convolutions that carry
information between neighboring patches. Gradients include them.
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
from titn_lib.models.base import AttentionMaps, Classifier, Encoding, TokenClassifier
from titn_lib.models.external import from_timm_vit
from titn_lib.models.titn import TITN, PixelToPatch

Classes = Int64[Tensor, " batch"]


class Relevance(NamedTuple):
    """Where a prediction comes from.

    Attributes:
        image: the share that comes from each image pixel.
        sources: the same shares by where they enter the outer stream: the embedding, blocks 1 … depth, and last the
            learned parameters (class and distillation token, position embeddings, biases). They sum to 1.
    """

    image: Float[Tensor, "batch height width"]
    sources: Float[Tensor, "batch source"]


def require_attention(model: nn.Module, head: str = "class") -> TokenClassifier:
    """Returns the model, if it has attention and this head and is in evaluation mode; timm's ViT or DeiT as our `ViT`.

    Raises:
        TITNError: otherwise.
    """
    if not isinstance(model, TokenClassifier):
        found = from_timm_vit(model)
        if found is None:
            what = model.config.name if isinstance(model, Classifier) else type(model).__name__
            raise TITNError(f"{what} has no attention maps: use a student (TITN, TNT or ViT), or timm's ViT or DeiT")
        model = found
    if not getattr(model.config, "inner_layers", True):
        raise TITNError(
            f"this {model.config.name} has no inner layers (inner_layers=False): for its outer attention, call "
            "model(images, return_attention=True)"
        )
    if head not in ("class", "distillation"):
        raise unknown("head", head, ("class", "distillation"))
    if head == "distillation" and not model.config.distillation_token:
        raise TITNError(f"{model.config.name} has no distillation token: choose head='class'")
    if model.training:
        raise TITNError("the model is in training mode: call model.eval() first")
    return model


def attention(model: nn.Module, images: Images) -> AttentionMaps:
    """The attention of both streams, block by block.

    Returns:
        Inner attention, "batch patch head query key" (an empty list for a ViT), and outer attention, "batch head query
        key". Rows sum to 1.
    """
    with torch.no_grad():
        return require_attention(model).forward_features(images, return_attention=True).attention


def head_logits_fn(model: nn.Module, head: str = "class") -> Callable[[Images], Float[Tensor, "batch classes"]]:
    """A function from images to the logits of one head (`model(images)` returns the mean of both heads)."""
    student = require_attention(model, head)

    def logits(images: Tensor) -> Tensor:
        return student.heads.forward_all(student.forward_features(images).hidden_states[-1])[head == "distillation"]

    return logits


def input_gradient(model: nn.Module, images: Images, classes: Classes, head: str = "class") -> Images:
    """Input gradient ∂z/∂x: the derivative of each image's class logit with respect to its input (Simonyan, Vedaldi and
    Zisserman 2014, arXiv 1312.6034)."""
    with torch.enable_grad():
        inputs = images.detach().requires_grad_()
        logit = head_logits_fn(model, head)(inputs).gather(1, classes[:, None]).sum()
    return torch.autograd.grad(logit, inputs)[0]


def rollout_step(attention: Float[Tensor, "*batch head query key"]) -> Float[Tensor, "*batch query key"]:
    """One block of attention rollout: Â = ½ (mean over heads of A) + ½ I, with rows normalized to sum to 1.

    The term ½ I stands for the residual connection (Abnar and Zuidema 2020, arXiv 2005.00928).
    """
    step = (attention.mean(dim=-3) + torch.eye(attention.shape[-1]).to(attention)) / 2
    return step / step.sum(dim=-1, keepdim=True)


def gradient_rollout_step(
    attention: Float[Tensor, "*batch head query key"], gradient: Float[Tensor, "*batch head query key"]
) -> Float[Tensor, "*batch query key"]:
    """One block of class-specific rollout: I + mean over heads of (A · ∂z/∂A)⁺ (Chefer, Gur and Wolf 2021, arXiv
    2103.15679). Rows don't sum to 1."""
    return torch.eye(attention.shape[-1]).to(attention) + (attention * gradient).clamp(min=0).mean(dim=-3)


def rollout(attention: list[Float[Tensor, "*batch head query key"]]) -> Float[Tensor, "*batch query key"]:
    """Attention rollout: the share of each token after the last block that comes from each token before the first.

    It is the product Â_L ⋯ Â_2 Â_1, and its rows sum to 1. The last block is on the left: its rows say which tokens the
    output attends to, and the earlier blocks say which tokens those had attended to.
    """
    return rollouts(attention)[-1]


def rollouts(attention: list[Float[Tensor, "*batch head query key"]]) -> list[Float[Tensor, "*batch query key"]]:
    """`rollout` from the first block through each block."""
    return list(accumulate(map(rollout_step, attention), lambda earlier, step: step @ earlier))


def forward_with_attention(
    model: TokenClassifier, images: Tensor, head: str, classes: Tensor | None
) -> tuple[Encoding, Float[Tensor, "batch token"], list[Float[Tensor, "batch token token"]]]:
    """One forward pass, with a backward pass to the outer attention if there are `classes`.

    Returns:
        The encoding, the weights with which the head pools the last outer tokens, and one rollout step per block.
    """
    with torch.set_grad_enabled(classes is not None):
        encoding = model.forward_features(images.detach().requires_grad_(), return_attention=True)
    maps, last = encoding.attention.outer, encoding.hidden_states[-1]
    head_weights = torch.zeros_like(last[..., 0])
    if head == "distillation":
        head_weights[:, -1] = 1
    elif model.heads.pooling == "class":
        head_weights[:, 0] = 1
    else:
        patches = model.config.num_patches
        head_weights[:, : 1 + patches] = 1 / (1 + patches)
    if classes is None:
        return encoding, head_weights, [rollout_step(block) for block in maps]
    with torch.enable_grad():
        logit = model.heads.forward_all(last)[head == "distillation"].gather(1, classes[:, None]).sum()
    gradients = torch.autograd.grad(logit, maps)
    steps = [gradient_rollout_step(block.detach(), gradient) for block, gradient in zip(maps, gradients, strict=True)]
    return encoding, head_weights, steps


def outer_rollout(
    model: nn.Module, images: Images, head: str = "class", classes: Classes | None = None
) -> Float[Tensor, "batch token"]:
    """Attention rollout of the outer stream for one head: the share of each initial outer token in the head's input.

    It is the rollout's row of the class or distillation token. If the class head pools by a mean (pooling="mean"), it
    is the mean over the rows of the pooled tokens.

    Args:
        classes: weight the attention by its effect on the logits of these classes (`gradient_rollout_step`). The path
            through residual connections alone is then left out: it is the same for all tokens that the head pools.

    Returns:
        Shares that sum to 1.
    """
    student = require_attention(model, head)
    _, head_weights, steps = forward_with_attention(student, images, head, classes)
    flow = head_weights
    for step in reversed(steps):
        flow = einsum(flow, step, "batch query, batch query key -> batch key")
    flow = flow if classes is None else flow - head_weights
    return flow / flow.sum(dim=-1, keepdim=True).clamp(min=1e-30)


def relevance(model: nn.Module, images: Images, head: str = "class", classes: Classes | None = None) -> Relevance:
    """Relevance: the share of a head's prediction that comes from each image pixel, through both streams. (Our design.)

    Every block of a TITN adds a projection of the inner stream to the outer stream. So the image enters the outer
    stream in each block, and with `patch_tokens="from_pixels"` in the embedding, too. We call each entry an injection.
    The relevance of pixel token m of patch n is a sum over the injections, the embedding (l = 0) and blocks 1 … L:

        R[n, m] = Σ_l q_l[n] · β_l[n] · Σ_k s_l[n, k] · (Â_l ⋯ Â_1)[n, k, m]

    - (Â_l ⋯ Â_1)[n]: rollout of the *inner* stream of patch n, through block l.
    - s_l[n, k] = ‖u_k‖ / Σ_j ‖u_j‖: the share of pixel token k in the update, where u_k = W_k LN(y_k) is its part of
      the projection (W_k: the Linear's columns for token k). Norms, as in Kobayashi et al. 2020 (arXiv 2004.10102).
    - β_l[n] = ‖u‖ / (‖u‖ + ‖z‖): the share of the update u = Σ_k u_k in the patch token. z is the rest of the token:
      its value before the update (in the embedding: the position embedding) and the projection's bias.
    - q_l: the share of the head's prediction that comes from each outer token between block l's update and its outer
      attention. r_l is the same after block l, without what later blocks inject. They are computed backward: r_L are
      the head's weights, q_l = r_l Â_l with the *outer* Â, and q_0 = r_0. To leave out the injection of block l + 1,
      r_l = (1 − β_{l+1}) q_{l+1} for patch tokens; for class and distillation token, r_l = q_{l+1}.

    So the shares sum to 1: Σ R and the rest, which comes from the learned parameters. A ViT has one injection, the
    embedding, and R is `outer_rollout`, spread evenly over each patch. Relevance is a model of the information flow,
    not the flow itself: it ignores values, signs and MLPs. A pixel token is drawn at its own position, even if a
    convolutional stem gave it a larger receptive field.

    Args:
        classes: weight the outer stream's attention by these classes (`gradient_rollout_step`), leave out the paths
            without attention, and scale to a sum of 1. The inner stream's attention is not weighted: weighting it,
            too, was no better on validation images.

    Raises:
        TITNError: a model without attention or without that head, or in training mode.
    """
    student = require_attention(model, head)
    encoding, head_weights, steps = forward_with_attention(student, images, head, classes)
    with torch.no_grad():
        injections = injection_shares(student, images, encoding)
        shares, rest = propagate_back(head_weights, steps, injections)
        if classes is not None:  # subtract the paths without attention
            identity = [torch.eye(head_weights.shape[1]).to(step).expand_as(step) for step in steps]
            residual, residual_rest = propagate_back(head_weights, identity, injections)
            shares, rest = shares - residual, rest - residual_rest
    sources = torch.cat([shares.sum(dim=(2, 3)), rest[:, None]], dim=1)
    total = sources.sum(dim=1, keepdim=True).clamp(min=1e-30)
    by_pixel = shares.sum(dim=1) / total[..., None]
    return Relevance(to_pixels(by_pixel, student.config.grid, student.config.image_size), sources / total)


def injection_shares(
    model: TokenClassifier, images: Tensor, encoding: Encoding
) -> Float[Tensor, "injection batch patch pixel"]:
    """β_l s_l (Â_l ⋯ Â_1) of `relevance`: the share of each patch token that is injected by the embedding and by each
    block, for each pixel token of the image."""
    batch, patches, depth = len(images), model.config.num_patches, len(encoding.hidden_states)
    if not isinstance(model, TITN):
        whole = torch.ones(1, batch, patches, 1).to(images)
        return torch.cat([whole, whole.new_zeros(depth, batch, patches, 1)])
    inner = model.pixel_embedding(images)
    outer = model.patch_embedding(inner)
    if model.config.patch_tokens == "from_pixels":
        projection = model.patch_embedding.projection
        pos_embed = model.patch_embedding.pos_embed[1 : 1 + patches]
        injections = [update_shares(projection, projection.norm(inner), pos_embed.expand(batch, -1, -1))]
    else:
        injections = [inner.new_zeros(inner.shape[:3])]
    rolled_inner = rollouts(encoding.attention.inner)
    for block, rolled, after in zip(model.blocks, rolled_inner, encoding.hidden_states, strict=True):
        inner, normed, _ = block.forward_inner(inner, False)  # type: ignore[operator]
        shares = update_shares(cast(PixelToPatch, block.projection), normed, outer[:, 1 : 1 + patches])
        injections.append(einsum(shares, rolled, "batch patch query, batch patch query key -> batch patch key"))
        outer = after
    return torch.stack(injections)


def update_shares(
    projection: PixelToPatch,
    normed: Float[Tensor, "batch patch pixel inner_width"],
    before: Float[Tensor, "batch patch outer_width"],
) -> Float[Tensor, "batch patch pixel"]:
    """β s of `relevance`: the share of each pixel token in the patch token after the projection was added.

    Args:
        normed: pixel tokens after the projection's normalization.
        before: the patch tokens before the update.
    """
    columns = rearrange(projection.linear.weight, "out (pixel width) -> pixel out width", pixel=normed.shape[2])
    parts = einsum(normed, columns, "batch patch pixel width, pixel out width -> batch patch pixel out").norm(dim=-1)
    bias = projection.project(torch.zeros_like(normed))
    update = projection.project(normed) - bias
    beta = update.norm(dim=-1) / (update.norm(dim=-1) + (before + bias).norm(dim=-1)).clamp(min=1e-30)
    return beta[..., None] * parts / parts.sum(dim=-1, keepdim=True).clamp(min=1e-30)


def propagate_back(
    head_weights: Float[Tensor, "batch token"],
    steps: list[Float[Tensor, "batch token token"]],
    injections: Float[Tensor, "injection batch patch pixel"],
) -> tuple[Float[Tensor, "batch injection patch pixel"], Float[Tensor, " batch"]]:
    """Propagate a head's weights back through the blocks, and subtract at each injection what comes from it.

    Returns:
        The share of each injection, by patch and pixel token, and what remains after all of them.
    """
    flow, shares = head_weights, []
    for injection in reversed(range(len(injections))):
        if injection:
            flow = einsum(flow, steps[injection - 1], "batch query, batch query key -> batch key")
        shares.append(flow[:, 1 : 1 + injections.shape[2], None] * injections[injection])
        injected = shares[-1].sum(dim=-1)
        flow = flow - F.pad(injected, (1, flow.shape[1] - injected.shape[1] - 1))
    return torch.stack(shares[::-1], dim=1), flow.sum(dim=1)


def to_pixels(
    shares: Float[Tensor, "batch patch pixel"], grid: tuple[int, int], image_size: tuple[int, int]
) -> Float[Tensor, "batch height width"]:
    """Spread each pixel token's share (or a whole patch's: one "pixel" per patch) evenly over its image pixels."""
    inside = math.isqrt(shares.shape[2])
    cells = rearrange(shares, "batch (row column) (y x) -> batch (row y) (column x)", row=grid[0], y=inside)
    side = image_size[0] // cells.shape[1]
    return (cells / side**2).repeat_interleave(side, dim=1).repeat_interleave(side, dim=2)
