"""ViTAEv2: the inductive bias of convolutions, built into a transformer (Zhang et al. 2022, arXiv 2202.10108).

Scale: a stage begins with a reduction cell, a pyramid of dilated convolutions with several receptive fields. Locality:
this cell, and the normal cells after it, add convolutions C to attention.

    P = LN([GELU(Conv_d(x)) for d = 1, 2, …])      stride r, kernel 2r − 1, dilation d
    y = V + Attention(P) + C_r(x)                  V, the values, are the skip: P and y differ in width
    y ← y + MLP(LN(y))                             reduction cell: the hidden layer as wide as y
    x ← x + Attention(LN(x)) + C(x)
    x ← x + MLP(LN(x))                             normal cell: 4 times as wide
    C = Conv3×3, BN, SiLU, Conv3×3, BN, SiLU, Conv3×3        first 4 times as wide; C_r shrinks the map by r instead

Attention in early stages is limited to fixed windows. C connects the windows, and its zero padding encodes positions.
Published: all of this, mean and Linear as the head, and `vitae_v2_s` for 224×224 (82.6 % accuracy on ImageNet; 19.2 M
parameters in the paper, 19.4 M in its code and here; 5.8 G MACs). In the authors' code, for classification as for
segmentation, a reduction cell with windows has no skip V, and one without windows no bias in its Q, K and V. So it is
in `vitae_v2_s` (`published_code`), but not in `vitae_nano`. From their code: eps = 1e-6 in normal cells' LayerNorms.
Left out: stochastic depth. Ours: `vitae_nano` for 32×32, 0.88 M parameters (10 classes) and 80 M MACs, PyTorch's
initialization, and windows padded at the end (in the code on both sides). The nano's results were measured with 1e-5 in
all LayerNorms, a difference far below their standard deviation.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import prod

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from titn_lib.data.transforms import Images
from titn_lib.errors import TITNError
from titn_lib.models.base import Classifier
from titn_lib.models.layers import MLP
from titn_lib.models.registry import register_model
from titn_lib.validation import check_division, check_settings


@dataclass(frozen=True)
class ViTAEConfig:
    """The settings of a ViTAEv2.

    Attributes:
        image_size: height and width in pixels; the product of all r must divide them.
        stages: width, r, dilations, normal cells, heads (half as many in the reduction cell) and window side (0: the
            whole map) of each. C has one group in the first stage, four channels per group in the others.
        published_code: omit, as the authors' code does, the skip V of reduction cells with windows, and the bias of Q,
            K and V in those without.
    """

    name: str = "vitae_nano"
    num_classes: int = 10
    in_channels: int = 3
    image_size: tuple[int, int] = (32, 32)
    stages: Sequence[Sequence[int]] = ((32, 2, 4, 2, 2, 4), (64, 2, 3, 2, 4, 4), (96, 2, 2, 2, 6, 0))
    published_code: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "stages", tuple(map(tuple, self.stages)))  # a file has lists
        check_settings(self)
        for width, r, _, _, heads, _ in self.stages:
            if width % 4 or width % heads or r not in (1, 2, 4, 8):
                raise TITNError(
                    f"width {width} must be divisible by 4 and by its {heads} heads, and r must be 1, 2, 4 or 8"
                )
        check_division(self, prod(stage[1] for stage in self.stages))


def convolutions(widths: tuple[int, int, int, int], groups: int, r: int = 1) -> nn.Sequential:
    """C of the equations. The first convolutions have stride 2, until the map is r times smaller."""
    layers: list[nn.Module] = []
    for i, (before, after) in enumerate(pairwise(widths)):
        stride = 2 if r >= 2 ** (i + 1) else 1
        layers += [nn.Conv2d(before, after, 3, stride, padding=1, groups=groups), nn.BatchNorm2d(after), nn.SiLU()]
    return nn.Sequential(*layers[:-2])


class Attention(nn.Module):
    """Attention within windows. Maps that aren't a multiple of the window are zero-padded; `skip` adds V."""

    def __init__(self, before: int, width: int, heads: int, window: int, skip: bool = False, bias: bool = True):
        super().__init__()
        self.heads = heads
        self.window = window
        self.skip = skip
        self.qkv = nn.Linear(before, 3 * width, bias)
        self.output = nn.Linear(width, width)

    def forward(self, x: Float[Tensor, "batch row column before"]) -> Float[Tensor, "batch row column width"]:
        rows, columns = x.shape[1:3]
        sides = {"y": min(self.window or rows, rows), "x": min(self.window or columns, columns)}
        qkv = self.qkv(F.pad(x, (0, 0, 0, -columns % sides["x"], 0, -rows % sides["y"])))
        cut = "batch (row y) (column x) (three head width) -> three batch row column head (y x) width"
        join = "batch row column head (y x) width -> batch (row y) (column x) (head width)"
        query, key, value = rearrange(qkv, cut, three=3, head=self.heads, **sides)
        update = self.output(rearrange(F.scaled_dot_product_attention(query, key, value), join, **sides))
        return (update + rearrange(value, join, **sides) if self.skip else update)[:, :rows, :columns]


class Reduction(nn.Module):
    """A reduction cell."""

    def __init__(
        self,
        before: int,
        width: int,
        r: int,
        dilations: int,
        heads: int,
        window: int,
        first: bool,
        published_code: bool,
    ):
        super().__init__()
        narrow = width if first else before
        skip = not (published_code and window)
        bias = not (published_code and not window)
        self.norm = nn.LayerNorm(dilations * narrow)
        self.pyramid = nn.ModuleList()
        for d in range(1, dilations + 1):
            self.pyramid.append(nn.Conv2d(before, narrow, 2 * r - 1, r, padding=(r - 1) * d - r // 2 + 1, dilation=d))
        self.attention = Attention(dilations * narrow, width, max(heads // 2, 1), window, skip, bias)
        self.convolutions = convolutions((before, narrow, narrow, width), 1 if first else narrow // 4, r)
        self.mlp_norm = nn.LayerNorm(width)
        self.mlp = MLP(width, 1)

    def forward(self, maps: Float[Tensor, "batch before _row _column"]) -> Float[Tensor, "batch width row column"]:
        pyramid = torch.cat([F.gelu(scale(maps)) for scale in self.pyramid], dim=1)
        y = self.attention(self.norm(pyramid.permute(0, 2, 3, 1))) + self.convolutions(maps).permute(0, 2, 3, 1)
        return (y + self.mlp(self.mlp_norm(y))).permute(0, 3, 1, 2)


class Normal(nn.Module):
    """A normal cell."""

    def __init__(self, width: int, heads: int, window: int, first: bool):
        super().__init__()
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.mlp_norm = nn.LayerNorm(width, eps=1e-6)
        self.attention = Attention(width, width, heads, window)
        self.mlp = MLP(width)
        self.convolutions = convolutions((width, 4 * width, width, width), 1 if first else width // 4)

    def forward(self, maps: Float[Tensor, "batch width row column"]) -> Float[Tensor, "batch width row column"]:
        x = maps.permute(0, 2, 3, 1)
        x = x + self.attention(self.norm(x)) + self.convolutions(maps).permute(0, 2, 3, 1)
        return (x + self.mlp(self.mlp_norm(x))).permute(0, 3, 1, 2)


class ViTAE(Classifier):
    """Cells → mean → Linear."""

    def __init__(self, config: ViTAEConfig):
        super().__init__()
        self.config = config
        before = config.in_channels
        cells: list[nn.Module] = []
        for width, r, dilations, depth, heads, window in config.stages:
            cell = Reduction(before, width, r, dilations, heads, window, not cells, config.published_code)
            cells.append(cell)
            cells += [Normal(width, heads, window, first=len(cells) == 1) for _ in range(depth)]
            before = width
        self.cells = nn.Sequential(*cells)
        self.head = nn.Linear(before, config.num_classes)
        self.to(memory_format=torch.channels_last)

    def forward(self, images: Images) -> Float[Tensor, "batch classes"]:
        """Logits of normalized images; TITNError if they have another size or number of channels."""
        self.check_images(images)
        return self.head(self.cells(images).mean(dim=(2, 3)))


S = ((64, 4, 4, 2, 1, 7), (128, 2, 3, 2, 2, 7), (256, 2, 2, 8, 4, 0), (512, 2, 2, 2, 8, 0))
PRESETS = {"vitae_nano": ViTAEConfig(), "vitae_v2_s": ViTAEConfig("vitae_v2_s", 1000, 3, (224, 224), S, True)}
register_model("vitae", ViTAE, ViTAEConfig, PRESETS)
