"""MVT: mask vision transformer (Li et al. 2021, arXiv 2106.04520, for faces in the wild): mask out
irrelevant pixels, relabel images whose label may be wrong.

    mask          m = fold(σ(Linear(t))), t the patch tokens of a small ViT: a value in 0–1 for every pixel
    classifier    a ViT of x ⊙ m; masked pixels become 0, the data set's mean color
    relabeling   y' = argmax p where max p − p_y > δ, else y;  δ = 0.2, after a warm-up

Only the classification loss trains the mask. Relabeling is a loss of its own ("relabeling"), for any network.

From third-party code (we haven't seen the authors'): masks, relabeling, δ. Ours: relabeling starts from the given label
in every step, so that a changed label can change back; its warm-up; a LayerNorm before the mask's Linear; `mvt_nano`
for 32×32, 0.75 M parameters (10 classes) and 54 M MACs. The classifier is a ViT, as published, and not a TITN. With a
mask of ones it is a plain ViT, the baseline.
"""

from dataclasses import dataclass
from typing import Literal

from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from titn_lib.data.transforms import Images
from titn_lib.models.base import Encoding
from titn_lib.models.registry import register_model
from titn_lib.models.vit import ViT, ViTConfig


@dataclass(frozen=True)
class MVTConfig(ViTConfig):
    """The settings of a ViT, and three more.

    Attributes:
        mask_width, mask_heads, mask_depth: of the ViT that predicts the mask; it shares patch_size and mlp_ratio.
    """

    name: str = "mvt_nano"
    patch_size: int = 4
    width: int = 128
    heads: int = 4
    depth: int = 5
    mlp_ratio: float = 2
    pooling: Literal["class", "mean"] = "mean"
    init: Literal["normal", "trunc_normal"] = "trunc_normal"
    mask_width: int = 64
    mask_heads: int = 2
    mask_depth: int = 2


class MVT(ViT):
    """A ViT that masks its input with a learned mask."""

    config: MVTConfig
    POS_EMBED_KEYS = ("pos_embed", "mask_network.pos_embed")  # type: ignore[assignment]

    def __init__(self, config: MVTConfig):
        super().__init__(config)
        mask = ViTConfig(
            num_classes=config.patch_size**2,  # its head turns a patch token into the patch's mask
            in_channels=config.in_channels,
            image_size=config.image_size,
            patch_size=config.patch_size,
            width=config.mask_width,
            heads=config.mask_heads,
            depth=config.mask_depth,
            mlp_ratio=config.mlp_ratio,
            init=config.init,
        )
        self.mask_network = ViT(mask)

    def masks(self, images: Images) -> Float[Tensor, "batch 1 height width"]:
        """The masks of normalized images, from 0 (hidden) to 1 (visible), the same for all channels."""
        tokens = self.mask_network.forward_features(images).hidden_states[-1]
        patches = self.mask_network.heads.class_head(tokens[:, 1:]).float().sigmoid()
        side = self.config.patch_size
        return F.fold(patches.transpose(-2, -1), self.config.image_size, kernel_size=side, stride=side).to(images.dtype)

    def forward_features(self, images: Images, return_attention: bool = False) -> Encoding:
        """The tokens of the masked images after every block, and, if requested, their attention."""
        return super().forward_features(images * self.masks(images), return_attention)


PRESETS = {"mvt_nano": MVTConfig()}
register_model("mvt", MVT, MVTConfig, PRESETS)
