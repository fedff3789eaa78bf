"""ReViT: attention residuals (Diko et al. 2024, arXiv 2402.11301), in TITN's streams.

In deep ViTs, tokens become more and more similar ("feature collapse"). In ReViT, every layer passes its attention
scores to the next, which mixes them with its own before the softmax:

    S_l = Q Kᵀ / √head_width     A_1 = S_1     A_l = α S_l + (1 − α) A_{l−1}     update = softmax(A_l) V

Published, in the paper and its code: the equations, and one learned α for all layers, initialized to 0.5 and not
limited to 0–1; ReViT-B reaches 82.4 % accuracy on ImageNet. Ours: TITN's streams instead of a ViT's, each with an α of
its own. With α = 1 it is TITN. LayerNorms keep TITN's eps of 1e-5 (1e-6 in the code). An inner stream with residuals
can't use TITN's C++ kernel, and is slower. `revit_nano` is `titn_nano` with residuals in the outer stream: 0.74 M
parameters (one more), 55 M MACs.
"""

from dataclasses import asdict, dataclass, replace
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from titn_lib.data.transforms import Images
from titn_lib.models import titn
from titn_lib.models.base import Encoding
from titn_lib.models.layers import TransformerLayer, adopt_children
from titn_lib.models.registry import register_model
from titn_lib.models.titn_presets import NANO


@dataclass(frozen=True)
class ReViTConfig(titn.TITNConfig):
    """The settings of a TITN, and one more.

    Attributes:
        residuals: the stream whose layers pass on their scores: "outer", "inner" (within every patch) or "both".
    """

    residuals: Literal["outer", "inner", "both"] = "outer"


class Carried(NamedTuple):
    """What a layer passes to the next: tokens, its scores A, and α."""

    tokens: Float[Tensor, "*batch token width"]
    scores: Float[Tensor, "*batch head token token"]
    alpha: Float[Tensor, ""]


Inner = Float[Tensor, "batch patch pixel inner_width"] | Carried
Outer = Float[Tensor, "batch token outer_width"] | Carried


class ResidualLayer(TransformerLayer):
    """A layer of TITN with scores A instead of S. A stream's first layer holds α and passes it on with its scores."""

    def __init__(self, layer: TransformerLayer, first: bool):
        adopt_children(self, layer)
        if first:
            self.alpha = nn.Parameter(torch.tensor(0.5))

    def forward(  # type: ignore[override]
        self, stream: Float[Tensor, "*batch token width"] | Carried, return_attention: bool = False
    ) -> tuple[Carried, Float[Tensor, "*batch head token token"] | None]:
        """Returns the input of the next layer and, if requested, the attention softmax(A)."""
        query, key, value = self.attn.split(self.attn.qkv(self.attention_norm(tokens_of(stream))))
        scores = query @ key.transpose(-2, -1)
        alpha = stream.alpha if isinstance(stream, Carried) else self.alpha
        if isinstance(stream, Carried):
            scores = alpha * scores + (1 - alpha) * stream.scores
        attention = scores.softmax(dim=-1)
        tokens = tokens_of(stream) + self.drop_path(self.attn.join(attention.to(value.dtype) @ value))
        tokens = tokens + self.drop_path(self.mlp(self.mlp_norm(tokens)))
        return Carried(tokens, scores, alpha), attention if return_attention else None


class ResidualBlock(titn.Block):
    """A block of TITN, of whose layers "inner", "outer" or "both" are `ResidualLayer`s."""

    def __init__(self, block: nn.Module, residuals: str, first: bool):
        adopt_children(self, block)
        for name in ("inner", "outer"):
            if residuals in (name, "both"):
                setattr(self, name, ResidualLayer(getattr(self, name), first))

    def forward(  # type: ignore[override]
        self, inner: Inner, outer: Outer, return_attention: bool = False
    ) -> tuple[Inner, Outer, Tensor | None, Tensor | None]:
        """As `titn.Block.forward`; a stream with residuals is `Carried`, except as the first block's input."""
        inner, normed, inner_attention = self.forward_inner(inner, return_attention)
        tokens = self.add_pixel_update(tokens_of(outer), self.projection.project(normed))
        outer = outer._replace(tokens=tokens) if isinstance(outer, Carried) else tokens
        outer, outer_attention = self.outer(outer, return_attention)
        return inner, outer, inner_attention, outer_attention

    def forward_inner(  # type: ignore[override]
        self, inner: Inner, return_attention: bool
    ) -> tuple[Inner, Float[Tensor, "batch patch pixel inner_width"], Tensor | None]:
        if not isinstance(self.inner, ResidualLayer):
            return super().forward_inner(tokens_of(inner), return_attention)
        inner, attention = self.inner(inner, return_attention)
        return inner, self.projection.norm(tokens_of(inner)), attention


class ReViT(titn.TITN):
    """A TITN with attention residuals; its blocks adopt the modules of TITN's blocks with their weights."""

    config: ReViTConfig

    def __init__(self, config: ReViTConfig):
        super().__init__(config)
        plain = self.blocks
        self.blocks = nn.ModuleList(ResidualBlock(block, config.residuals, block is plain[0]) for block in plain)

    def forward_features(self, images: Images, return_attention: bool = False) -> Encoding:
        encoding = super().forward_features(images, return_attention)
        return encoding._replace(hidden_states=[tokens_of(outer) for outer in encoding.hidden_states])


def tokens_of(stream: Float[Tensor, "*batch token width"] | Carried) -> Float[Tensor, "*batch token width"]:
    return stream.tokens if isinstance(stream, Carried) else stream


def similarity(tokens: Float[Tensor, "batch token width"]) -> Float[Tensor, " batch"]:
    """Mean cosine similarity of two different tokens of an image."""
    unit = F.normalize(tokens, dim=-1)
    count = tokens.shape[1]
    return ((unit @ unit.transpose(1, 2)).sum(dim=(1, 2)) - count) / (count * (count - 1))


PRESETS = {"revit_nano": ReViTConfig(**asdict(replace(NANO, name="revit_nano")))}
register_model("revit", ReViT, ReViTConfig, PRESETS)
