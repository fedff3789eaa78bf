"""What each attention head does over many images: how far it looks, how evenly, and what is lost without it.

summary = summarize_heads(model, images, labels)["outer"]
summary.effect                                       "block head": accuracy lost without the head
"""

import math
from typing import NamedTuple

import torch
from einops import einsum
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from titn_lib.data.transforms import Images
from titn_lib.errors import TITNError
from titn_lib.interpret.attribution import require_attention
from titn_lib.models.base import TokenClassifier
from titn_lib.models.layers import Attention


class HeadSummary(NamedTuple):
    """The heads of one stream, over many images.

    Attributes:
        distance: mean attention distance (Dosovitskiy et al. 2021, figure 7): between a query's patch and the patches
            that it attends to, weighted by attention; in patches, or pixel tokens in the inner stream.
        tokens: effective number of tokens that a query attends to, exp(entropy), mean over queries and images.
        effect: accuracy (%) with all heads minus accuracy without this one, its output set to 0 (Michel, Levy and
            Neubig 2019, arXiv 1905.10650). Negative where the model is better without it.
        error: the standard error of `effect`. Both accuracies are of the same images, so it is that of a paired
            difference.
        maps: mean attention of the class token to each patch; in the inner stream, of all queries to each pixel token.
        accuracy: with all heads (%).
    """

    distance: Float[Tensor, "block head"]
    tokens: Float[Tensor, "block head"]
    effect: Float[Tensor, "block head"]
    error: Float[Tensor, "block head"]
    maps: Float[Tensor, "block head token"]
    accuracy: float


def summarize_heads(
    model: nn.Module, images: Images, labels: Int64[Tensor, " batch"], batch_size: int = 64
) -> dict[str, HeadSummary]:
    """Summarize the heads of each stream, "outer" and, if there is one, "inner".

    One pass over the images for attention, and one for each head: for 256 images, `titn_mini` takes less than a minute
    on one CPU core.

    Args:
        images: normalized.

    Raises:
        TITNError: as `require_attention`; no images, or not as many labels; or another kind of attention.
    """
    student = require_attention(model)
    if not len(images) or len(images) != len(labels):
        raise TITNError(f"there are {len(images)} images and {len(labels)} labels: give one label for each image")
    with torch.no_grad():
        whole = classified_correctly(student, images, labels, batch_size)
        found = {}
        for stream, modules in attention_modules(student).items():
            parts = [statistics(student, batch, stream) for batch in images.split(batch_size)]
            weights = torch.tensor([len(batch) / len(images) for batch in images.split(batch_size)])
            distance, tokens, maps = (
                einsum(torch.stack(part), weights, "batch ..., batch -> ...") for part in zip(*parts, strict=True)
            )
            lost = torch.zeros(*distance.shape, len(images))
            for block, module in enumerate(modules):
                for head in range(module.heads):
                    with head_removed(module, head):
                        lost[block, head] = whole - classified_correctly(student, images, labels, batch_size)
            error = lost.std(dim=-1, correction=0) / len(images) ** 0.5
            accuracy = 100 * float(whole.mean())
            found[stream] = HeadSummary(distance, tokens, 100 * lost.mean(dim=-1), 100 * error, maps, accuracy)
    return found


def attention_modules(model: TokenClassifier) -> dict[str, list[Attention]]:
    """The attention of every block, by stream.

    Raises:
        TITNError: another kind of attention, whose heads can't be removed one by one.
    """
    blocks = list(model.blocks)  # type: ignore[arg-type]
    streams = {"outer": [getattr(block, "outer", block) for block in blocks]}
    if hasattr(blocks[0], "inner"):
        streams["inner"] = [block.inner for block in blocks]
    modules = {stream: [getattr(layer, "attn", None) for layer in layers] for stream, layers in streams.items()}
    if not all(isinstance(module, Attention) for one in modules.values() for module in one):
        raise TITNError(f"{model.config.name} has another kind of attention: summarize a TITN, TNT or ViT")
    return modules  # type: ignore[return-value]


def statistics(model: TokenClassifier, images: Images, stream: str) -> tuple[Tensor, Tensor, Tensor]:
    """Distance, effective number of tokens, and map of each head, means over a batch; see `HeadSummary`."""
    attention = torch.stack(getattr(model.forward_features(images, return_attention=True).attention, stream), dim=-4)
    attention = attention.flatten(0, -5)  # "image block head query key"; in the inner stream, "image" is each patch
    tokens = torch.special.entr(attention).sum(dim=-1).exp().mean(dim=(0, -1))
    if stream == "inner":
        side = math.isqrt(attention.shape[-1])
        between, maps = attention, attention.mean(dim=(0, -2))
        grid = (side, side)
    else:
        patches = slice(1, 1 + model.config.num_patches)  # after the class token
        between, maps, grid = (
            attention[..., patches, patches],
            attention[..., 0, patches].mean(dim=0),
            model.config.grid,
        )
    places = torch.cartesian_prod(*(torch.arange(float(count)) for count in grid)).to(attention)
    far = (between * torch.cdist(places, places)).sum(dim=-1) / between.sum(dim=-1)
    return far.mean(dim=(0, -1)), tokens, maps


def classified_correctly(
    model: TokenClassifier, images: Images, labels: Int64[Tensor, " batch"], batch_size: int
) -> Float[Tensor, " batch"]:
    """1 for each image that is classified correctly, else 0."""
    predicted = torch.cat([model(batch).argmax(dim=-1) for batch in images.split(batch_size)])
    return (predicted == labels).float()


def head_removed(attention: Attention, head: int) -> RemovableHandle:
    """Set a head's output to 0, as a context manager."""
    width = attention.proj.in_features // attention.heads

    def remove(_: nn.Module, inputs: tuple[Tensor]) -> tuple[Tensor]:
        kept = inputs[0].clone()
        kept[..., head * width : (head + 1) * width] = 0
        return (kept,)

    return attention.proj.register_forward_pre_hook(remove)
