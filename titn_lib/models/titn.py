"""TITN: a transformer in a transformer, with a distillation token (Rahman et al. 2025, arXiv 2502.16762).

An inner stream of pixel tokens runs inside every patch, an outer stream of patch tokens across the image. In each
block the inner stream speaks to the outer one. The original TNT (Han et al. 2021) is the same class with other
settings.

                        ┌ pixel tokens ─ inner layer ──────────────→ … (depth times)
    image → patches ──┤                    │ projection
                        └ class, patches, distillation ─ + ─ outer layer → … → heads → logits
"""

from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from titn_lib import kernels
from titn_lib.data.transforms import Images
from titn_lib.errors import TITNError
from titn_lib.kernels.dispatch import is_standard_layer
from titn_lib.models.base import AttentionMaps, Encoding, TokenClassifier, TokenConfig, check_student
from titn_lib.models.layers import Heads, TransformerLayer


@dataclass(frozen=True)
class TITNConfig(TokenConfig):
    """The settings of a TITN or TNT. The defaults are the published TITN for 32×32 images.

    Attributes:
        image_size: height and width in pixels; the patches must divide them.
        patch_size: side of a patch, in pixels.
        pixel_size: side of a "pixel" (an inner token), in pixels; it must divide the patch.
        pixel_embedding: "linear": each pixel's values, flattened, through one Linear (TITN);
            "conv": a 7×7 convolution inside each patch, padded with zeros at its border (original TNT, timm's `tnt_s`);
            "conv_across": the same over the whole image, so that it sees across patch borders (timm's legacy TNT);
            "stem": four convolutions with batch normalization over the whole image (ours, after Xiao et al. 2021,
            who found that a convolutional start lets transformers learn in fewer epochs).
        patch_tokens: where the outer stream starts: "learned" tables that know nothing of the image (TITN), or a
            projection of the "image"'s pixel tokens (TNT).
        projection_norm: how pixel tokens reach the outer stream: "pixel": LayerNorm of every pixel token → flatten →
            Linear (TITN, timm's legacy TNT); "patch": flatten → LayerNorm → Linear without bias → LayerNorm (original
            TNT).
        pooling: what the class head reads: the "mean" of class and patch tokens (TITN) or the "class" token (TNT).
        distillation_token: one more outer token, with a head of its own, that learns from the teacher.
        inner_head_width, outer_head_width: width of each head's queries, keys and values; None for the stream's width
            divided by its heads.
        qkv_bias: bias in the query, key and value projections.
        init: "normal": tokens and positions N(0, 1), all else PyTorch's default (TITN);
            "trunc_normal": N(0, 0.02²), zero biases (TNT, DeiT; the cut, at ±2, is a hundred deviations out).
        drop_path: stochastic depth: the chance that an image skips a step of the last block's outer layer in
            training; it grows evenly from 0 in the first block (none as published).
        local_perception: patch tokens hear their eight neighbors in every block (`LocalPerception`; not in TITN).
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

    def __post_init__(self) -> None:
        check_student(self)
        if not 0 <= self.drop_path < 1:
            raise TITNError(f"drop_path must be 0 or more and below 1 and is {self.drop_path}")
        if self.patch_size % self.pixel_size:
            raise TITNError(
                f"patches of {self.patch_size} can't be cut into pixels of {self.pixel_size}: choose a pixel_size "
                f"that divides {self.patch_size}"
            )
        if self.pixel_embedding in ("conv", "conv_across") and self.pixel_size > 7:
            raise TITNError(
                f"a 7×7 convolution would leave gaps between pixels of {self.pixel_size}: choose a pixel_size of 7 or "
                "less, or pixel_embedding='linear' or 'stem'"
            )

    @property
    def pixels(self) -> int:
        """Pixel tokens in a patch."""
        return (self.patch_size // self.pixel_size) ** 2


class PixelEmbedding(nn.Module):
    """Images → pixel tokens: every patch is cut into pixels, every pixel becomes a short vector, plus its position.

    The position table is shared by all patches.
    """

    def __init__(self, config: TITNConfig):
        super().__init__()
        self.config = config
        if config.pixel_embedding == "linear":
            self.embed: nn.Module = nn.Linear(config.in_channels * config.pixel_size**2, config.inner_width)
        elif config.pixel_embedding == "stem":
            hidden = 4 * config.inner_width
            layers: list[nn.Module] = []
            for channels, stride in ((config.in_channels, config.pixel_size), (hidden, 1), (hidden, 1)):
                side = max(3, 2 * stride - 1)  # larger pixels must not leave gaps
                convolution = nn.Conv2d(channels, hidden, side, stride, padding=side // 2, bias=False)
                layers += [convolution, nn.BatchNorm2d(hidden), nn.GELU()]
            last = nn.Conv2d(hidden, config.inner_width, kernel_size=1)
            self.embed = nn.Sequential(*layers, last).to(memory_format=torch.channels_last)
        else:
            self.embed = nn.Conv2d(
                config.in_channels, config.inner_width, kernel_size=7, stride=config.pixel_size, padding=3
            )
        self.pos_embed = nn.Parameter(torch.empty(config.pixels, config.inner_width))

    def forward(self, images: Images) -> Float[Tensor, "batch patch pixel inner_width"]:
        rows, columns = self.config.grid
        if self.config.pixel_embedding == "linear":
            pixels = rearrange(
                images,
                "batch channel (row y p) (column x q) -> batch (row column) (y x) (channel p q)",
                row=rows, column=columns, p=self.config.pixel_size, q=self.config.pixel_size,
            )  # fmt: skip
            tokens = self.embed(pixels)
        elif self.config.pixel_embedding == "conv":
            patches = rearrange(
                images,
                "batch channel (row y) (column x) -> (batch row column) channel y x",
                row=rows, column=columns,
            )  # fmt: skip
            tokens = rearrange(
                self.embed(patches), "(batch patch) width y x -> batch patch (y x) width", patch=rows * columns
            )
        else:
            tokens = rearrange(
                self.embed(images),
                "batch width (row y) (column x) -> batch (row column) (y x) width",
                row=rows, column=columns,
            )  # fmt: skip
        return tokens + self.pos_embed


class PixelToPatch(nn.Module):
    """The pixel tokens of a patch → one vector of the outer stream's width; `TITNConfig` names the two ways."""

    def __init__(self, config: TITNConfig, norm: Literal["pixel", "patch"], bias: bool):
        super().__init__()
        pixels, width = config.pixels, config.inner_width
        self.norm = nn.LayerNorm(width if norm == "pixel" else (pixels, width))
        self.linear = nn.Linear(pixels * width, config.outer_width, bias=bias)
        self.last_norm = nn.LayerNorm(config.outer_width) if norm == "patch" else nn.Identity()

    def forward(
        self, inner: Float[Tensor, "batch patch pixel inner_width"]
    ) -> Float[Tensor, "batch patch outer_width"]:
        return self.project(self.norm(inner))

    def project(
        self, normed: Float[Tensor, "batch patch pixel inner_width"]
    ) -> Float[Tensor, "batch patch outer_width"]:
        """What is left to do after the first LayerNorm."""
        return self.last_norm(self.linear(rearrange(normed, "batch patch pixel width -> batch patch (pixel width)")))


class PatchEmbedding(nn.Module):
    """The outer stream's first tokens: class, patches, distillation."""

    def __init__(self, config: TITNConfig):
        super().__init__()
        table = (config.tokens, config.outer_width)
        self.config = config
        self.pos_embed = nn.Parameter(torch.empty(table))
        if config.patch_tokens == "learned":
            # Three tables whose sum is all that counts: that is how it was published, and it sets the initial scale.
            self.tokens = nn.Parameter(torch.empty(table))
            if config.distillation_token:
                self.dist_embed = nn.Parameter(torch.empty(table))
        else:
            self.projection = PixelToPatch(config, norm="patch", bias=True)
            self.cls_token = nn.Parameter(torch.empty(1, config.outer_width))
            if config.distillation_token:
                self.dist_token = nn.Parameter(torch.empty(1, config.outer_width))

    def forward(
        self, inner: Float[Tensor, "batch patch pixel inner_width"]
    ) -> Float[Tensor, "batch token outer_width"]:
        batch = inner.shape[0]
        if self.config.patch_tokens == "learned":
            start = self.tokens + self.pos_embed
            if self.config.distillation_token:
                start = start + self.dist_embed
            return start.repeat(batch, 1, 1)  # not expand: strides like every block's share their compiled code
        patches = self.projection(inner)
        tokens = [self.cls_token.to(patches.dtype).expand(batch, -1, -1), patches]
        if self.config.distillation_token:
            tokens.append(self.dist_token.to(patches.dtype).expand(batch, -1, -1))
        return torch.cat(tokens, dim=1) + self.pos_embed


class LocalPerception(nn.Module):
    """x + DW3×3(x) on the map of patch tokens, DW depthwise: CMT's convolution before attention (Guo et al. 2021,
    eq. 1). Maps of attention don't show it."""

    def __init__(self, config: TITNConfig):
        super().__init__()
        self.config = config
        self.convolution = nn.Conv2d(
            config.outer_width, config.outer_width, kernel_size=3, padding=1, groups=config.outer_width
        )

    def forward(self, outer: Float[Tensor, "batch token outer_width"]) -> Float[Tensor, "batch token outer_width"]:
        last = self.config.patches + 1
        patches = rearrange(
            outer[:, 1:last], "batch (row column) width -> batch width row column", row=self.config.grid[0]
        )
        heard = rearrange(self.convolution(patches), "batch width row column -> batch (row column) width")
        return outer + F.pad(heard, (0, 0, 1, outer.shape[1] - last))


class Block(nn.Module):
    """One step of both streams: inner layer, projection into the patch tokens, outer layer."""

    def __init__(self, config: TITNConfig, drop: float = 0.0):
        super().__init__()
        ratio, bias = config.mlp_ratio, config.qkv_bias
        self.inner = TransformerLayer(
            config.inner_width, config.inner_heads, ratio, bias, head_width=config.inner_head_width
        )
        self.projection = PixelToPatch(config, config.projection_norm, bias=config.projection_norm == "pixel")
        self.local = LocalPerception(config) if config.local_perception else nn.Identity()
        self.outer = TransformerLayer(
            config.outer_width, config.outer_heads, ratio, bias, drop, config.outer_head_width
        )

    def forward(
        self,
        inner: Float[Tensor, "batch patch pixel inner_width"],
        outer: Float[Tensor, "batch token outer_width"],
        return_attention: bool = False,
    ) -> tuple[
        Float[Tensor, "batch patch pixel inner_width"],
        Float[Tensor, "batch token outer_width"],
        Float[Tensor, "batch patch inner_head pixel pixel"] | None,
        Float[Tensor, "batch outer_head token token"] | None,
    ]:
        inner, normed, inner_attention = self.forward_inner(inner, return_attention)
        outer = self.add_pixel_update(outer, self.projection.project(normed))
        outer, outer_attention = self.outer(outer, return_attention)
        return inner, outer, inner_attention, outer_attention

    def add_pixel_update(
        self, outer: Float[Tensor, "batch token outer_width"], news: Float[Tensor, "batch patch outer_width"]
    ) -> Float[Tensor, "batch token outer_width"]:
        """The pixels' news, added to the patch tokens. Class and distillation tokens get none: zero rows before, and
        after where there is one."""
        return self.local(outer + F.pad(news, (0, 0, 1, outer.shape[1] - news.shape[1] - 1)))

    def forward_inner(
        self, inner: Float[Tensor, "batch patch pixel inner_width"], return_attention: bool
    ) -> tuple[
        Float[Tensor, "batch patch pixel inner_width"],
        Float[Tensor, "batch patch pixel inner_width"],
        Float[Tensor, "batch patch inner_head pixel pixel"] | None,
    ]:
        """The inner layer and the first step of the projection, in one piece where the machine can and nobody has
        changed the layer."""
        norm = self.projection.norm
        parts: list[Any] = [*self.inner.modules(), norm]
        if not return_attention and is_standard_layer(parts):
            sizes = self.inner.attn.heads, len(parts[7].weight), norm.weight.numel()  # the MLP's hidden layer
            if kernels.can_use_fused_layer(inner, *sizes):
                return *kernels.layer(inner, kernels.flat(parts), *sizes), None
        inner, attention = self.inner(inner, return_attention)
        return inner, norm(inner), attention


class TITN(TokenClassifier):
    """The whole model; see `TITNConfig` for its settings and `TokenClassifier.forward` for what it returns."""

    config: TITNConfig
    POS_EMBED_KEYS = ("patch_embedding.pos_embed", "patch_embedding.tokens", "patch_embedding.dist_embed")

    def __init__(self, config: TITNConfig):
        super().__init__()
        self.config = config
        self.pixel_embedding = PixelEmbedding(config)
        self.patch_embedding = PatchEmbedding(config)
        drops = [config.drop_path * place / max(config.depth - 1, 1) for place in range(config.depth)]
        self.blocks = nn.ModuleList(Block(config, drop) for drop in drops)
        self.token_width = config.outer_width
        self.heads = Heads(config.outer_width, config.num_classes, config.pooling, config.distillation_token)
        tables = [self.pixel_embedding.pos_embed, *self.patch_embedding.parameters(recurse=False)]
        self.init_weights(tables, config.init)

    def forward_features(self, images: Images, return_attention: bool = False) -> Encoding:
        """The outer tokens after every block, and both streams' attention if asked for."""
        self.check_images(images)
        inner = self.pixel_embedding(images)
        outer = self.patch_embedding(inner)
        encoding = Encoding([], AttentionMaps([], []))
        for block in self.blocks:
            inner, outer, inner_attention, outer_attention = block(inner, outer, return_attention)
            encoding.hidden_states.append(outer)
            if return_attention:
                encoding.attention.inner.append(inner_attention)
                encoding.attention.outer.append(outer_attention)
        return encoding


PAPER = TITNConfig()
TNT = TITNConfig(
    num_classes=1000,
    image_size=(224, 224),
    patch_size=16,
    pixel_size=4,
    inner_width=24,
    inner_heads=4,
    outer_width=384,
    outer_heads=6,
    qkv_bias=False,
    pixel_embedding="conv",
    patch_tokens="from_pixels",
    projection_norm="patch",
    pooling="class",
    distillation_token=False,
    init="trunc_normal",
)
PRESETS = {
    # The published model, and what its authors' call for 224×224 makes: tokens twice as wide, heads as in the small
    # one, so that queries, keys and values are half as wide as the tokens.
    "titn_paper": PAPER,
    "titn_paper_224": replace(
        PAPER,
        image_size=(224, 224),
        patch_size=16,
        pixel_size=4,
        inner_width=24,
        inner_head_width=3,
        outer_width=384,
        outer_head_width=24,
    ),
    # The paper's comparison student: the same without distillation, read from the class token.
    "tnt_paper": replace(PAPER, distillation_token=False, pooling="class"),
    # Han et al. 2021, table 1.
    "tnt_ti": replace(TNT, inner_width=12, inner_heads=2, outer_width=192, outer_heads=3),
    "tnt_s": TNT,
    "tnt_b": replace(TNT, inner_width=40, outer_width=640, outer_heads=10),
    # Ours, for a laptop: smaller patches, few and narrow layers, pixels that see across patch borders, outer tokens
    # from the image. Chosen for speed on two cores and not yet tuned.
    "titn_nano": replace(
        PAPER,
        patch_size=4,
        inner_width=16,
        inner_heads=2,
        outer_width=128,
        outer_heads=4,
        depth=5,
        mlp_ratio=2,
        pixel_embedding="conv_across",
        patch_tokens="from_pixels",
        init="trunc_normal",
    ),
}
# Ours, for photographs on a laptop: a convolutional start, wider pixel tokens, one block less. The trial that chose it:
# experiments/39-cifar10-steps_from_nano-laptop.toml.
PRESETS["titn_mini"] = replace(PRESETS["titn_nano"], inner_width=24, depth=4, pixel_embedding="stem")
# Ours, meant to go beyond the published model on a GPU: as `titn_nano`, wider and deeper, with stochastic depth and
# what helped `titn_mini` in short runs: a convolutional start, local perception, the published initial weights (which
# helped alone, and made no difference that shows beside local perception: results/README.md). What each is worth in
# long training is to be measured.
PRESETS["titn_plus"] = replace(
    PRESETS["titn_nano"],
    inner_width=24,
    inner_heads=4,
    outer_width=256,
    outer_heads=8,
    depth=7,
    mlp_ratio=3,
    pixel_embedding="stem",
    drop_path=0.1,
    local_perception=True,
    init="normal",
)
# Ours, for gray images of digits and clothes: half as deep, and the paper's large patches, which cost half the time.
PRESETS["titn_pico"] = replace(PRESETS["titn_nano"], depth=3, patch_size=8, pixel_embedding="stem")
PRESETS = {name: replace(config, name=name) for name, config in PRESETS.items()}
