"""CARE: linear attention next to convolutions (Zhou et al. 2025, arXiv 2411.16170).

A block splits its channels into four parts of g. A memory passes unchanged, one part has a global receptive field, two
have local ones. Two interactions then mix them ("decoupled dual interaction"). With N positions in the map:

    [Z | a | b | c] = x                                      Z is the memory
    a' = φ(q) (φ(k)ᵀ v / N) / (φ(q)·mean φ(k) + 1e-6)        late stages: q, k = Conv1×1(a), v = a, φ = ELU + 1
    a' = DW11×1(a) + DW1×11(a)                               early stages (DW: depthwise, one kernel per channel)
    b' = DW3×3(b)     c' = DW7×7(c)     F = [a' | b' | c']
    Inter(F) = F + Conv1×1(DW3×3(GELU(Conv1×1(BN(F)))))      hidden layer `ratio` times as wide
    x ← x + γ ⊙ Inter([Z | Inter(F)])                        γ is initialized to 1e-6

φ(k)ᵀ v is a small matrix, head width × head width. The N×N attention matrix is never computed.

Published: all of this, the head, and `care_s0` for 224×224 (78.4 % accuracy on ImageNet). From the authors' code: the
last block has no last Conv1×1, γ or x, so that the head's input is wide. Left out: stochastic depth, and a second head
that learns from a teacher: `care_s0` has 6.31 M parameters, 7.34 M with it (7.3 M published), and 717 M MACs. Ours:
`care_nano` for 32×32, 0.95 M parameters (10 classes) and 55 M MACs, and PyTorch's initialization. Its results were
measured with eps = 1e-5 in the head's LayerNorm (1e-6 as published, and here), a difference far below their standard
deviation.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from titn_lib.data.transforms import Images
from titn_lib.errors import TITNError
from titn_lib.models.base import Classifier
from titn_lib.models.registry import register_model
from titn_lib.validation import check_division, check_settings


@dataclass(frozen=True)
class CAREConfig:
    """The settings of a CARE network.

    Attributes:
        image_size: height and width in pixels; `patch_size` × 2^(stages − 1) must divide them.
        patch_size: kernel and stride of the first convolution; each later stage halves the map.
        stages: g, blocks, heads of linear attention (0: none), ratios of the inner and outer interaction of each.
    """

    name: str = "care_nano"
    num_classes: int = 10
    in_channels: int = 3
    image_size: tuple[int, int] = (32, 32)
    patch_size: int = 2
    stages: Sequence[Sequence[int]] = ((12, 3, 0, 2, 4), (24, 4, 2, 2, 4), (32, 2, 2, 4, 4))

    def __post_init__(self) -> None:
        object.__setattr__(self, "stages", tuple(map(tuple, self.stages)))  # a file has lists
        check_settings(self)
        for part, _, heads, *_ in self.stages:
            if heads and part % heads:
                raise TITNError(
                    f"{part} channels can't be divided among {heads} heads: choose a number that divides them"
                )
        check_division(self, self.patch_size * 2 ** (len(self.stages) - 1))


def depthwise(width: int, tall: int, wide: int) -> nn.Conv2d:
    return nn.Conv2d(width, width, (tall, wide), padding=(tall // 2, wide // 2), groups=width)


class LinearAttention(nn.Module):
    """Linear attention; the values are the input itself."""

    def __init__(self, part: int, heads: int):
        super().__init__()
        self.heads = heads
        self.query_key = nn.Conv2d(part, 2 * part, kernel_size=1)

    def forward(self, a: Float[Tensor, "batch part row column"]) -> Float[Tensor, "batch part row column"]:
        maps = torch.cat([self.query_key(a), a], dim=1)
        to_heads = "batch (three head width) row column -> three batch head (row column) width"
        query, key, value = rearrange(maps, to_heads, three=3, head=self.heads)
        query = F.elu(query) + 1
        key = F.elu(key) + 1
        summary = key.transpose(-2, -1) @ value / key.shape[-2]  # batch head width width
        update = query @ summary / (query @ key.mean(dim=-2, keepdim=True).transpose(-2, -1) + 1e-6)
        return rearrange(update, "batch head (row column) width -> batch (head width) row column", row=a.shape[-2])


class Interaction(nn.Module):
    """Inter of the equations; the network's `last` one returns its hidden layer."""

    def __init__(self, width: int, ratio: int, last: bool = False):
        super().__init__()
        expand = nn.Conv2d(width, ratio * width, kernel_size=1)
        self.widen = nn.Sequential(nn.BatchNorm2d(width), expand, nn.GELU(), depthwise(ratio * width, 3, 3))
        self.narrow = None if last else nn.Conv2d(ratio * width, width, kernel_size=1)

    def forward(self, maps: Float[Tensor, "batch width row column"]) -> Float[Tensor, "batch _width row column"]:
        return self.widen(maps) if self.narrow is None else maps + self.narrow(self.widen(maps))


class Block(nn.Module):
    def __init__(self, part: int, heads: int, inner_ratio: int, outer_ratio: int, last: bool = False):
        super().__init__()
        self.far = LinearAttention(part, heads) if heads else depthwise(part, 11, 1)
        self.across = None if heads else depthwise(part, 1, 11)
        self.near = depthwise(part, 3, 3)
        self.around = depthwise(part, 7, 7)
        self.inner = Interaction(3 * part, inner_ratio)
        self.outer = Interaction(4 * part, outer_ratio, last)
        self.scale = None if last else nn.Parameter(torch.full((4 * part, 1, 1), 1e-6))

    def forward(self, x: Float[Tensor, "batch width row column"]) -> Float[Tensor, "batch _width row column"]:
        memory, a, b, c = x.chunk(4, dim=1)
        far = self.far(a) if self.across is None else self.far(a) + self.across(a)
        mixed = torch.cat([memory, self.inner(torch.cat([far, self.near(b), self.around(c)], dim=1))], dim=1)
        return self.outer(mixed) if self.scale is None else x + self.scale * self.outer(mixed)


class CARE(Classifier):
    """Patches → stages, with BN and a 2×2 convolution of stride 2 between → mean → GELU → LayerNorm → Linear."""

    config: CAREConfig

    def __init__(self, config: CAREConfig):
        super().__init__()
        self.config = config
        layers: list[nn.Module] = []
        before = config.in_channels
        side = config.patch_size
        for part, depth, heads, inner_ratio, outer_ratio in config.stages:
            shrink = nn.Conv2d(before, 4 * part, kernel_size=side, stride=side)
            layers += [nn.BatchNorm2d(before), shrink] if layers else [shrink, nn.BatchNorm2d(4 * part)]
            layers += [Block(part, heads, inner_ratio, outer_ratio) for _ in range(depth)]
            before = 4 * part
            side = 2
        layers[-1] = Block(part, heads, inner_ratio, outer_ratio, last=True)
        wide = before * outer_ratio
        self.layers = nn.Sequential(*layers)
        self.head = nn.Sequential(nn.GELU(), nn.LayerNorm(wide, eps=1e-6), nn.Linear(wide, config.num_classes))
        self.to(memory_format=torch.channels_last)

    def forward(self, images: Images) -> Float[Tensor, "batch classes"]:
        """Logits of normalized images; TITNError if they have another size or number of channels."""
        self.check_images(images)
        return self.head(self.layers(images).mean(dim=(2, 3)))


S0 = ((8, 2, 0, 2, 2), (16, 4, 0, 2, 4), (32, 8, 2, 4, 4), (64, 4, 2, 4, 4))
PRESETS = {"care_nano": CAREConfig(), "care_s0": CAREConfig("care_s0", 1000, 3, (224, 224), 4, S0)}
register_model("care", CARE, CAREConfig, PRESETS)
