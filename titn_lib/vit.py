"""ViT (Dosovitskiy et al. 2021) and DeiT's distilled ViT (Touvron et al. 2021): the students TITN is compared with.

The code behind the paper shares one LayerNorm between the halves of a block and adds several position tables; this is
the textbook form. The counts differ by less than 0.06 %: 5,398,564 parameters here and 5,397,604 there for `vit_paper`
with 100 classes, 5,418,632 and 5,421,320 for `distilled_vit_paper`.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from einops import rearrange
from torch import nn

from .classifier import Images
from .transformer import AttentionMaps, Encoding, Heads, Layer, TokenClassifier, TokenConfig, check_student


@dataclass(frozen=True)
class ViTConfig(TokenConfig):
    """The settings of a ViT. The defaults are the paper's comparison student for 32×32 pictures.

    Attributes:
        image_size: height and width in picture elements; the patches must divide them.
        patch_size: side of a patch, in picture elements.
        pooling: what the class head reads: the "class" token, or the "mean" of class and patch tokens.
        distillation_token: one more token, with a head of its own, that learns from the teacher.
        initialisation: as in `titn.TITNConfig`.
    """

    name: str = "vit_paper"
    num_classes: int = 10
    in_channels: int = 3
    image_size: tuple[int, int] = (32, 32)
    patch_size: int = 8
    width: int = 192
    heads: int = 8
    depth: int = 12
    mlp_ratio: float = 4
    pooling: Literal["class", "mean"] = "class"
    distillation_token: bool = False
    initialisation: Literal["normal", "truncated"] = "normal"

    def __post_init__(self) -> None:
        check_student(self)


class ViT(TokenClassifier):
    """Patches → Linear → layers → heads; see `TokenClassifier.forward` for what it returns."""

    config: ViTConfig
    GRID_TABLES = ("positions",)

    def __init__(self, config: ViTConfig):
        super().__init__()
        self.config = config
        self.embed = nn.Linear(config.in_channels * config.patch_size**2, config.width)
        self.special = nn.Parameter(torch.empty(1 + config.distillation_token, config.width))
        self.positions = nn.Parameter(torch.empty(config.tokens, config.width))
        self.blocks = nn.ModuleList(Layer(config.width, config.heads, config.mlp_ratio) for _ in range(config.depth))
        self.token_width = config.width
        self.heads = Heads(config.width, config.num_classes, config.pooling, config.distillation_token)
        self.initialise([self.special, self.positions], config.initialisation)

    def encode(self, images: Images, return_attention: bool = False) -> Encoding:
        """The tokens after every block, and their attention if asked for."""
        self.check_images(images)
        patches = rearrange(
            images,
            "batch channel (row y) (column x) -> batch (row column) (channel y x)",
            y=self.config.patch_size, x=self.config.patch_size,
        )  # fmt: skip
        patches = self.embed(patches)
        special = self.special.to(patches.dtype).expand(len(images), -1, -1)
        tokens = torch.cat([special[:, :1], patches, special[:, 1:]], dim=1) + self.positions
        encoding = Encoding([], AttentionMaps([], []))
        for block in self.blocks:
            tokens, attention = block(tokens, return_attention)
            encoding.blocks.append(tokens)
            if return_attention:
                encoding.attention.outer.append(attention)
        return encoding


PRESETS = {
    "vit_paper": ViTConfig(),
    "distilled_vit_paper": ViTConfig(name="distilled_vit_paper", distillation_token=True),
}
