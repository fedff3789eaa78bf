"""CMT: convolutions before, inside and after attention (Guo et al. 2021, arXiv 2107.06263).

    x ← x + DW3×3(x)                                 local perception (DW: depthwise, one kernel per channel)
    x ← x + softmax(Q Kᵀ / √head_width + bias) V     Q of LN(x); K and V of BN(DWk×k(LN(x))), stride k
    x ← x + BN(Conv1×1(BN(GELU(y + DW3×3(y)))))      y = BN(GELU(Conv1×1(LN(x)))), `ratio` times as wide

K and V come from a map with k times fewer rows and columns, so that n positions need n²/k² scores, not n². The learned
bias "head query key" encodes relative positions, and ties the network to its image_size.

Published: all of this, the stem, a Conv2×2 of stride 2 and LN before each stage, the wide head, and `cmt_s` for 224×224
(83.5 % accuracy on ImageNet; 25.1 M parameters in the paper, 26.3 M in its code and here; 4.0 G MACs). From the code:
the bias is initialized from N(0, 1) and shared by a stage's blocks; eps is 1e-6 in their LayerNorms, 1e-5 in all other
norms. Left out: stochastic depth and dropout. Ours: `cmt_nano` for 32×32, 0.98 M parameters (10 classes) and 55 M MACs,
and PyTorch's initialization of all else. Its results were measured with 1e-5 throughout, a difference far below their
standard deviation.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from titn_lib.data.transforms import Images
from titn_lib.errors import TITNError
from titn_lib.models.base import Classifier
from titn_lib.models.registry import register_model
from titn_lib.validation import check_division, check_settings


@dataclass(frozen=True)
class CMTConfig:
    """The settings of a CMT.

    Attributes:
        image_size: height and width in pixels.
        stem_width, stem_stride: of the stem, three times Conv3×3, GELU, BN; only the first has the stride.
        stages: width, blocks, heads and k of each. Each halves the map; k must divide the map's sides.
        ratio: width of the feed-forward network's hidden layer, relative to its input.
        head_width: output channels of the last Conv1×1.
    """

    name: str = "cmt_nano"
    num_classes: int = 10
    in_channels: int = 3
    image_size: tuple[int, int] = (32, 32)
    stem_width: int = 24
    stem_stride: int = 1
    stages: Sequence[Sequence[int]] = ((48, 2, 3, 4), (96, 3, 6, 2), (128, 2, 8, 1))
    ratio: float = 4
    head_width: int = 256

    def __post_init__(self) -> None:
        object.__setattr__(self, "stages", tuple(map(tuple, self.stages)))  # a file has lists
        check_settings(self)
        for i, (width, _, heads, k) in enumerate(self.stages):
            if width % heads:
                raise TITNError(f"a width of {width} can't be divided among {heads} heads: choose a divisor of {width}")
            check_division(self, self.stem_stride * 2 ** (i + 1) * k)


def depthwise(width: int, kernel: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(width, width, kernel, stride, padding=(kernel - stride) // 2, groups=width)


class LayerNorm2d(nn.LayerNorm):
    """LayerNorm over the channels of every position."""

    def forward(self, x: Float[Tensor, "batch width row column"]) -> Float[Tensor, "batch width row column"]:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class Residual(nn.Sequential):
    """x + f(x)."""

    def forward(self, x: Float[Tensor, "batch width row column"]) -> Float[Tensor, "batch width row column"]:
        return x + super().forward(x)


class Block(nn.Module):
    """Local perception, attention with shrunk keys and values, feed-forward network."""

    def __init__(self, width: int, heads: int, k: int, ratio: float):
        super().__init__()
        hidden = int(width * ratio)
        self.heads = heads
        self.scale = (width // heads) ** -0.5
        self.local = Residual(depthwise(width, 3))
        self.norm = LayerNorm2d(width, eps=1e-6)
        self.shrink = nn.Sequential(depthwise(width, k, k), nn.BatchNorm2d(width)) if k > 1 else nn.Identity()
        self.query = nn.Conv2d(width, width, 1)
        self.key_value = nn.Conv2d(width, 2 * width, 1)
        self.output = nn.Conv2d(width, width, 1)
        self.feed_forward = Residual(
            LayerNorm2d(width, eps=1e-6), nn.Conv2d(width, hidden, 1), nn.GELU(), nn.BatchNorm2d(hidden),
            Residual(depthwise(hidden, 3)), nn.GELU(), nn.BatchNorm2d(hidden),
            nn.Conv2d(hidden, width, 1), nn.BatchNorm2d(width),
        )  # fmt: skip

    def forward(
        self, x: Float[Tensor, "batch width row column"], bias: Float[Tensor, "head query key"]
    ) -> Float[Tensor, "batch width row column"]:
        x = self.local(x)
        normed = self.norm(x)
        to_heads = "batch (two head width) row column -> two batch head (row column) width"
        (query,) = rearrange(self.query(normed), to_heads, two=1, head=self.heads)
        key, value = rearrange(self.key_value(self.shrink(normed)), to_heads, two=2, head=self.heads)
        attention = (query * self.scale @ key.transpose(-2, -1) + bias).softmax(dim=-1).to(value.dtype)
        to_map = "batch head (row column) width -> batch (head width) row column"
        return self.feed_forward(x + self.output(rearrange(attention @ value, to_map, row=x.shape[2])))


class CMT(Classifier):
    """Stem → stages, each a map half as large, its bias and its blocks → Conv1×1, BN, Swish → mean → Linear."""

    def __init__(self, config: CMTConfig):
        super().__init__()
        self.config = config
        width = config.stem_width
        stride = config.stem_stride
        layers: list[nn.Module] = []
        for before, step in ((config.in_channels, stride), (width, 1), (width, 1)):
            layers += [nn.Conv2d(before, width, 3, step, padding=1), nn.GELU(), nn.BatchNorm2d(width)]
        self.stem = nn.Sequential(*layers)
        self.stages = nn.ModuleList()
        self.biases = nn.ParameterList()
        positions = config.image_size[0] * config.image_size[1] // stride**2
        for after, depth, heads, k in config.stages:
            blocks = [Block(after, heads, k, config.ratio) for _ in range(depth)]
            self.stages.append(nn.ModuleList([nn.Conv2d(width, after, 2, stride=2), LayerNorm2d(after), *blocks]))
            positions //= 4
            self.biases.append(nn.Parameter(torch.randn(heads, positions, positions // k**2)))
            width = after
        wide = config.head_width
        self.widen = nn.Sequential(nn.Conv2d(width, wide, 1), nn.BatchNorm2d(wide), nn.SiLU())
        self.head = nn.Linear(wide, config.num_classes)
        self.to(memory_format=torch.channels_last)

    def forward(self, images: Images) -> Float[Tensor, "batch classes"]:
        """Logits of normalized images; TITNError if they have another size or number of channels."""
        self.check_images(images)
        x = self.stem(images)
        for stage, bias in zip(self.stages, self.biases, strict=True):
            shrink, norm, *blocks = stage.children()
            x = norm(shrink(x))
            for block in blocks:
                x = block(x, bias)
        return self.head(self.widen(x).mean(dim=(2, 3)))


S = ((64, 3, 1, 8), (128, 3, 2, 4), (256, 16, 4, 2), (512, 3, 8, 1))
PRESETS = {"cmt_nano": CMTConfig(), "cmt_s": CMTConfig("cmt_s", 1000, 3, (224, 224), 32, 2, S, head_width=1280)}
register_model("cmt", CMT, CMTConfig, PRESETS)
