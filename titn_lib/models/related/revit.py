"""ReViT: attention residuals (Diko et al. 2024, arXiv 2402.11301), in TITN's streams.

In deep ViTs tokens grow alike ("feature collapse"). ReViT hands every layer's attention scores on to the next, which
mixes them with its own before the softmax:

    S_l = Q Kᵀ / √head_width     A_1 = S_1     A_l = α S_l + (1 − α) A_{l−1}     update = softmax(A_l) V

Published, in the paper and its code: the equations, and one learned α for all layers, 0.5 at first and free to leave
0–1; ReViT-B reaches 82.4 % on ImageNet. Ours: TITN's streams in the place of a ViT's, each with an α of its own. With
α = 1 it is TITN. LayerNorms keep TITN's eps of 1e-5 (there 1e-6). An inner stream with residuals does without the C++
kernels of TITN's, and is slower. `revit_nano` is `titn_nano` with residuals in the outer stream: 0.74 M parameters (one
more), 55 M multiply-accumulates.
"""

from dataclasses import asdict, dataclass
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from titn_lib.data.transforms import Images
from titn_lib.models import titn
from titn_lib.models.base import Encoding
from titn_lib.models.layers import TransformerLayer, adopt_children


@dataclass(frozen=True)
class ReViTConfig(titn.TITNConfig):
    """The settings of a TITN, and one more.

    Attributes:
        residuals: the stream whose layers hand on their scores: "outer", "inner" (within every patch) or "both".
    """

    residuals: Literal["outer", "inner", "both"] = "outer"


class Carried(NamedTuple):
    """What a layer hands on: tokens, the scores A that mixed them, and α."""

    tokens: Float[Tensor, "*batch token width"]
    scores: Float[Tensor, "*batch head token token"]
    alpha: Float[Tensor, ""]


Inner = Float[Tensor, "batch patch pixel inner_width"] | Carried
Outer = Float[Tensor, "batch token outer_width"] | Carried


class ResidualLayer(TransformerLayer):
    """A layer of TITN with A in the place of S. A stream's first layer has α, and hands it on with its scores."""

    def __init__(self, layer: TransformerLayer, first: bool):
        adopt_children(self, layer)
        if first:
            self.alpha = nn.Parameter(torch.tensor(0.5))

    def forward(  # type: ignore[override]
        self, stream: Float[Tensor, "*batch token width"] | Carried, return_attention: bool = False
    ) -> tuple[Carried, Float[Tensor, "*batch head token token"] | None]:
        """Returns what the next layer needs and, if asked for, the attention softmax(A)."""
        query, key, value = self.attn.split(self.attn.qkv(self.attention_norm(tokens_of(stream))))
        scores = query @ key.mT
        alpha = stream.alpha if isinstance(stream, Carried) else self.alpha
        if isinstance(stream, Carried):
            scores = alpha * scores + (1 - alpha) * stream.scores
        attention = scores.softmax(dim=-1)
        tokens = tokens_of(stream) + self.drop(self.attn.join(attention.to(value.dtype) @ value))
        tokens = tokens + self.drop(self.mlp(self.mlp_norm(tokens)))
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
        """As `titn.Block.forward`; a stream with residuals comes (but to the first block) and goes as `Carried`."""
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
    """A TITN with attention residuals; its blocks take over the modules of TITN's, weights and all."""

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
    """How much an image's tokens have grown alike: the mean cosine of two different ones."""
    unit = F.normalize(tokens, dim=-1)
    count = tokens.shape[1]
    return ((unit @ unit.transpose(1, 2)).sum(dim=(1, 2)) - count) / (count * (count - 1))


PRESETS = {"revit_nano": ReViTConfig(**{**asdict(titn.PRESETS["titn_nano"]), "name": "revit_nano"})}
