"""TITN: transformer-in-transformer with a distillation token (Rahman et al. 2025, arXiv 2502.16762).

An inner transformer attends to the pixel tokens inside each patch, an outer transformer to the patch tokens of the
image. In every block, the pixel tokens are projected and added to the patch tokens. TNT (Han et al. 2021, arXiv
2103.00112) is the same class with other settings.

    image ─→ pixel tokens ───── inner layer ──────────────────→ …  (depth times)
        │                           ↓ projection
        └──→ class, patches, ────── + ──────── outer layer ───→ … → heads → logits
             distillation
"""

from dataclasses import dataclass
from typing import Literal

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from titn_lib import kernels
from titn_lib.data.transforms import Images
from titn_lib.models.base import AttentionMaps, Encoding, TokenClassifier, TokenConfig, check_student
from titn_lib.models.layers import Heads, LocalPerception, TransformerLayer, conv_stem
from titn_lib.validation import require

Inner = Float[Tensor, "batch patch pixel inner_width"]
Outer = Float[Tensor, "batch token outer_width"]
InnerAttention = Float[Tensor, "batch patch inner_head pixel pixel"]
OuterAttention = Float[Tensor, "batch outer_head token token"]


@dataclass(frozen=True)
class TITNConfig(TokenConfig):
    """The settings of a TITN or TNT. The defaults are the published TITN for 32×32 images.

    Attributes:
        image_size: height and width in pixels, multiples of the patch size.
        patch_size: side of a patch in image pixels.
        pixel_size: side of a pixel token's square in image pixels (the paper's "pixel"); it must divide the patch.
        inner_width, outer_width: width of a pixel token and of a patch token.
        inner_heads, outer_heads: attention heads of a layer.
        depth, mlp_ratio: number of blocks; width of an MLP's hidden layer, as a multiple of the tokens' width.
        inner_head_width, outer_head_width: width of a head's queries, keys and values; None for width / heads.
        qkv_bias: bias in the query, key and value projections.
        pixel_embedding: "linear": a Linear of each square's values (TITN); "conv": 7×7 convolution within each patch,
            zero-padded (TNT, timm's `tnt_s`); "conv_across": the same over the whole image (timm's legacy TNT);
            "stem": convolutional stem over the whole image (ours, after Xiao et al. 2021).
        patch_tokens: initial patch tokens: "learned", the same for all images (TITN), or projected "from_pixels" (TNT).
        projection_norm: "pixel": LayerNorm of every pixel token → flatten → Linear (TITN, timm's legacy TNT); "patch":
            flatten → LayerNorm → Linear without bias → LayerNorm (TNT).
        pooling: input of the class head: the "mean" of class and patch tokens (TITN), or the "class" token (TNT).
        distillation_token: one more outer token, with a head of its own that learns from the teacher.
        init: "normal": tokens and position embeddings N(0, 1), all else PyTorch's default (TITN); "trunc_normal":
            N(0, 0.02²), zero biases (TNT, DeiT; the truncation, at ±2 or a hundred standard deviations, has no effect).
        drop_path: probability that a residual branch of the last block's outer layer is dropped for an image; it grows
            linearly from 0 in the first block (0 as published).
        local_perception: depthwise convolution on the grid of patch tokens in every block (ours, after CMT).
        mlp_convolution: one more inside the outer layer's MLP (ours, after CMT).
        inner_layers: whether blocks have inner layers; if not, every block projects the same pixel tokens (ours, to
            measure what inner attention adds).
    """

    name: str = "titn_paper"
    num_classes: int = 10
    in_channels: int = 3
    image_size: tuple[int, int] = (32, 32)
    patch_size: int = 8
    pixel_size: int = 2
    inner_width: int = 12
    inner_heads: int = 4
    inner_head_width: int | None = None
    outer_width: int = 192
    outer_heads: int = 8
    outer_head_width: int | None = None
    depth: int = 12
    mlp_ratio: float = 4
    qkv_bias: bool = True
    pixel_embedding: Literal["linear", "conv", "conv_across", "stem"] = "linear"
    patch_tokens: Literal["learned", "from_pixels"] = "learned"
    projection_norm: Literal["pixel", "patch"] = "pixel"
    pooling: Literal["mean", "class"] = "mean"
    distillation_token: bool = True
    init: Literal["normal", "trunc_normal"] = "normal"
    drop_path: float = 0.0
    local_perception: bool = False
    mlp_convolution: bool = False
    inner_layers: bool = True

    def __post_init__(self) -> None:
        check_student(self)
        require(0 <= self.drop_path < 1, f"drop_path must be at least 0 and below 1, not {self.drop_path}")
        require(
            self.patch_size % self.pixel_size == 0,
            f"patches of {self.patch_size} can't be cut into pixel tokens of {self.pixel_size}: choose a pixel_size "
            f"that divides {self.patch_size}",
        )
        require(
            self.pixel_size <= 7 or self.pixel_embedding in ("linear", "stem"),
            f"a 7×7 convolution of stride {self.pixel_size} would skip image pixels: choose a pixel_size of 7 or less, "
            "or pixel_embedding='linear' or 'stem'",
        )

    @property
    def num_pixel_tokens(self) -> int:
        """Pixel tokens per patch."""
        return (self.patch_size // self.pixel_size) ** 2


class PixelEmbedding(nn.Module):
    """Images → pixel tokens, with a position embedding that all patches share."""

    def __init__(self, config: TITNConfig):
        super().__init__()
        self.config = config
        channels, width, size = config.in_channels, config.inner_width, config.pixel_size
        if config.pixel_embedding == "linear":
            self.embed: nn.Module = nn.Linear(channels * size**2, width)
        elif config.pixel_embedding == "stem":
            self.embed = conv_stem(channels, width, stride=size)
        else:
            self.embed = nn.Conv2d(channels, width, kernel_size=7, stride=size, padding=3)
        self.pos_embed = nn.Parameter(torch.empty(config.num_pixel_tokens, width))

    def forward(self, images: Images) -> Inner:
        rows, columns = self.config.grid
        size = self.config.pixel_size
        if self.config.pixel_embedding == "linear":
            tokens = self.embed(rearrange(
                images, "batch channel (row y p) (column x q) -> batch (row column) (y x) (channel p q)",
                row=rows, column=columns, p=size, q=size,
            ))  # fmt: skip
        elif self.config.pixel_embedding == "conv":
            patches = rearrange(
                images, "batch channel (row y) (column x) -> (batch row column) channel y x", row=rows, column=columns
            )
            tokens = rearrange(
                self.embed(patches), "(batch patch) width y x -> batch patch (y x) width", patch=rows * columns
            )
        else:
            tokens = rearrange(
                self.embed(images), "batch width (row y) (column x) -> batch (row column) (y x) width",
                row=rows, column=columns,
            )  # fmt: skip
        return tokens + self.pos_embed


class PixelToPatch(nn.Module):
    """The pixel tokens of a patch → one vector of the outer width; see `TITNConfig.projection_norm`."""

    def __init__(self, config: TITNConfig, norm: Literal["pixel", "patch"], bias: bool):
        super().__init__()
        pixels, width = config.num_pixel_tokens, config.inner_width
        self.norm = nn.LayerNorm(width if norm == "pixel" else (pixels, width))
        self.linear = nn.Linear(pixels * width, config.outer_width, bias=bias)
        self.last_norm = nn.LayerNorm(config.outer_width) if norm == "patch" else nn.Identity()

    def forward(self, inner: Inner) -> Float[Tensor, "batch patch outer_width"]:
        return self.project(self.norm(inner))

    def project(self, normed: Inner) -> Float[Tensor, "batch patch outer_width"]:
        """All steps after the first LayerNorm."""
        return self.last_norm(self.linear(rearrange(normed, "batch patch pixel width -> batch patch (pixel width)")))


class PatchEmbedding(nn.Module):
    """The initial outer tokens: class, patches, distillation."""

    def __init__(self, config: TITNConfig):
        super().__init__()
        self.config = config
        width = config.outer_width
        self.pos_embed = nn.Parameter(torch.empty(config.num_tokens, width))
        if config.patch_tokens == "learned":
            # As published: three learned tables are added. One would do, but their number sets the scale of the sum.
            self.tokens = nn.Parameter(torch.empty(config.num_tokens, width))
            if config.distillation_token:
                self.dist_embed = nn.Parameter(torch.empty(config.num_tokens, width))
        else:
            self.projection = PixelToPatch(config, norm="patch", bias=True)
            self.cls_token = nn.Parameter(torch.empty(1, width))
            if config.distillation_token:
                self.dist_token = nn.Parameter(torch.empty(1, width))

    def forward(self, inner: Inner) -> Outer:
        batch = inner.shape[0]
        if self.config.patch_tokens == "learned":
            tokens = self.tokens + self.pos_embed
            if self.config.distillation_token:
                tokens = tokens + self.dist_embed
            return tokens.repeat(batch, 1, 1)  # not expand: with equal strides, all blocks share their compiled code
        patches = self.projection(inner)
        parts = [self.cls_token.to(patches.dtype).expand(batch, -1, -1), patches]
        if self.config.distillation_token:
            parts.append(self.dist_token.to(patches.dtype).expand(batch, -1, -1))
        return torch.cat(parts, dim=1) + self.pos_embed


class Block(nn.Module):
    """Inner layer, projection of the pixel tokens to the patch tokens, outer layer."""

    def __init__(self, config: TITNConfig, drop_path: float = 0.0):
        super().__init__()
        norm = config.projection_norm
        self.inner: nn.Module = nn.Identity()
        if config.inner_layers:
            self.inner = TransformerLayer(
                config.inner_width,
                config.inner_heads,
                config.mlp_ratio,
                config.qkv_bias,
                head_width=config.inner_head_width,
            )
        self.projection = PixelToPatch(config, norm, bias=norm == "pixel")
        self.local = LocalPerception(config.outer_width, config.grid) if config.local_perception else nn.Identity()
        self.outer = TransformerLayer(
            config.outer_width,
            config.outer_heads,
            config.mlp_ratio,
            config.qkv_bias,
            drop_path=drop_path,
            head_width=config.outer_head_width,
            mlp_grid=config.grid if config.mlp_convolution else None,
        )

    def forward(
        self, inner: Inner, outer: Outer, return_attention: bool = False
    ) -> tuple[Inner, Outer, InnerAttention | None, OuterAttention | None]:
        inner, normed, inner_attention = self.forward_inner(inner, return_attention)
        outer = self.add_pixel_update(outer, self.projection.project(normed))
        outer, outer_attention = self.outer(outer, return_attention)
        return inner, outer, inner_attention, outer_attention

    def forward_inner(self, inner: Inner, return_attention: bool) -> tuple[Inner, Inner, InnerAttention | None]:
        """The inner layer and the first LayerNorm of the projection; one call, where there is a kernel for them."""
        norm = self.projection.norm
        if isinstance(self.inner, nn.Identity):
            return inner, norm(inner), None
        fused = None if return_attention else kernels.fused_layer_or_none(self.inner, norm, inner)
        if fused is not None:
            return *fused, None
        inner, attention = self.inner(inner, return_attention)
        return inner, norm(inner), attention

    def add_pixel_update(self, outer: Outer, update: Float[Tensor, "batch patch outer_width"]) -> Outer:
        """Add the update to the patch tokens (and zeros to the others), then apply local perception, if it is on."""
        return self.local(outer + F.pad(update, (0, 0, 1, outer.shape[1] - update.shape[1] - 1)))


class TITN(TokenClassifier):
    """The whole model; see `TITNConfig` for its settings and `TokenClassifier.forward` for its output."""

    config: TITNConfig
    POS_EMBED_KEYS = ("patch_embedding.pos_embed", "patch_embedding.tokens", "patch_embedding.dist_embed")

    def __init__(self, config: TITNConfig):
        super().__init__()
        self.config = config
        self.pixel_embedding = PixelEmbedding(config)
        self.patch_embedding = PatchEmbedding(config)
        drop_paths = [config.drop_path * i / max(config.depth - 1, 1) for i in range(config.depth)]
        self.blocks = nn.ModuleList(Block(config, drop_path) for drop_path in drop_paths)
        self.token_width = config.outer_width
        self.heads = Heads(config.outer_width, config.num_classes, config.pooling, config.distillation_token)
        tables = [self.pixel_embedding.pos_embed, *self.patch_embedding.parameters(recurse=False)]
        self.init_weights(tables, config.init)

    def forward_features(self, images: Images, return_attention: bool = False) -> Encoding:
        """The outer tokens after every block and, if requested, the attention of both streams."""
        self.check_images(images)
        inner = self.pixel_embedding(images)
        outer = self.patch_embedding(inner)
        encoding = Encoding([], AttentionMaps([], []))
        for block in self.blocks:
            inner, outer, inner_attention, outer_attention = block(inner, outer, return_attention)
            encoding.hidden_states.append(outer)
            if inner_attention is not None:
                encoding.attention.inner.append(inner_attention)
            if return_attention:
                encoding.attention.outer.append(outer_attention)
        return encoding
