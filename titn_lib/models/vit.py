"""ViT (Dosovitskiy et al. 2021) and DeiT's distilled ViT (Touvron et al. 2021): the students TITN is compared with.

`vit_paper` and `distilled_vit_paper` compute what the published students do, with `pooling="mean"` and
`pre_pool_norm=True`: LayerNorm of every token → mean of class and patch tokens → LayerNorm → Linear, and two
LayerNorms before the distillation token's Linear. The textbook's ViT has `pooling="class"` and `pre_pool_norm=False`.

The published code shares one LayerNorm between the two halves of a block; here, each half has its own. It adds up two
tables of position embeddings, and three in the distilled ViT. Here there is one, which starts with a variance of 1 and
not of 2 or 3. So our ViTs can compute all that the published ones compute, with other parameter counts: for 100
classes, `vit_paper` has 5,398,948 here and 5,397,604 there, `distilled_vit_paper` 5,419,016 and 5,421,320. One mistake
is not repeated: the published ViT takes its last token for a distillation token, so its mean leaves out the last patch.
Here, the mean is of the class token and all patches.
"""

from dataclasses import dataclass, replace
from typing import Literal

import torch
from einops import rearrange
from torch import nn

from titn_lib.data.transforms import Images
from titn_lib.models.base import AttentionMaps, Encoding, TokenClassifier, TokenConfig, check_student
from titn_lib.models.layers import Heads, TransformerLayer
from titn_lib.models.registry import register_model


@dataclass(frozen=True)
class ViTConfig(TokenConfig):
    """The settings of a ViT. The defaults are the textbook's, in the size of the paper's student for 32×32 images.

    Attributes:
        image_size: height and width in pixels, multiples of the patch size.
        patch_size: side of a patch, in pixels.
        pooling: input of the class head: the "class" token, or the "mean" of class and patch tokens.
        pre_pool_norm: LayerNorm of every token after the last block, before the LayerNorm of each head.
        distillation_token: one more token, with a head of its own, that learns from the teacher.
        init: as in `titn.TITNConfig`.
        norm_eps: ε of all LayerNorms; timm's ViTs have 1e-6.
    """

    name: str = "vit"
    num_classes: int = 10
    in_channels: int = 3
    image_size: tuple[int, int] = (32, 32)
    patch_size: int = 8
    width: int = 192
    heads: int = 8
    depth: int = 12
    mlp_ratio: float = 4
    pooling: Literal["class", "mean"] = "class"
    pre_pool_norm: bool = False
    distillation_token: bool = False
    init: Literal["normal", "trunc_normal"] = "normal"
    norm_eps: float = 1e-5

    def __post_init__(self) -> None:
        check_student(self)


class ViT(TokenClassifier):
    """Patches → Linear → layers → heads; see `TokenClassifier.forward` for what it returns."""

    config: ViTConfig
    POS_EMBED_KEYS = ("pos_embed",)

    def __init__(self, config: ViTConfig):
        super().__init__()
        self.config = config
        self.embed = nn.Linear(config.in_channels * config.patch_size**2, config.width)
        self.cls_token = nn.Parameter(torch.empty(1, config.width))
        if config.distillation_token:
            self.dist_token = nn.Parameter(torch.empty(1, config.width))
        self.pos_embed = nn.Parameter(torch.empty(config.num_tokens, config.width))
        self.blocks = nn.ModuleList(
            TransformerLayer(config.width, config.heads, config.mlp_ratio) for _ in range(config.depth)
        )
        self.token_width = config.width
        self.heads = Heads(
            config.width, config.num_classes, config.pooling, config.distillation_token, config.pre_pool_norm
        )
        self.init_weights(list(self.parameters(recurse=False)), config.init)
        for module in self.modules():
            if isinstance(module, nn.LayerNorm):
                module.eps = config.norm_eps

    def forward_features(self, images: Images, return_attention: bool = False) -> Encoding:
        """The tokens after every block and, if requested, their attention."""
        self.check_images(images)
        patches = rearrange(
            images,
            "batch channel (row y) (column x) -> batch (row column) (channel y x)",
            y=self.config.patch_size, x=self.config.patch_size,
        )  # fmt: skip
        patches = self.embed(patches)
        parts = [self.cls_token.to(patches.dtype).expand(len(images), -1, -1)]
        if self.config.distillation_token:
            parts.append(self.dist_token.to(patches.dtype).expand(len(images), -1, -1))
        tokens = torch.cat([parts[0], patches, *parts[1:]], dim=1) + self.pos_embed
        encoding = Encoding([], AttentionMaps([], []))
        for block in self.blocks:
            tokens, attention = block(tokens, return_attention)
            encoding.hidden_states.append(tokens)
            if return_attention:
                encoding.attention.outer.append(attention)
        return encoding


PAPER = ViTConfig(name="vit_paper", pooling="mean", pre_pool_norm=True)
PRESETS = {
    "vit_paper": PAPER,
    "distilled_vit_paper": replace(PAPER, name="distilled_vit_paper", distillation_token=True),
}
register_model("vit", ViT, ViTConfig, PRESETS)
