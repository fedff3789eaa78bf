"""AdaptoVision (Chowdhury and Sabrin 2025, arXiv 2504.12652): a convolutional network, trained from scratch.

Three ideas, where * is a convolution and σ normalizes and applies an ELU:

    unit          y = x + T(x),  T(x) = σ W₄ * σ W₃ * B(σ W₂ * σ W₁ * x),  B(z) = σ W_b * D * σ W_a * z
                  (W₁, W₄, W_a, W_b, V 1×1, W₂, W₃, W k×k, D depthwise k×k)
    transition    σ W * pool(x) + V * mean(x): half the size, plus the global mean at every position
    skips         X_k = units(transition(X_{k−1})) + α₁ P₁ X_{k−1} + α₂ P₂ X_{k−2}, with α learned and P 1×1

A global mean and a 1×1 convolution make the logits. Published: 95.3 % on CIFAR-10 and 85.77 % on CIFAR-100 with about
6.6 M parameters. We know of no code by the authors. The equations are those of a replication
(github.com/oktaylor/adaptovision-replication). It calls the paper ambiguous, could not train with the recipe as
reported (NaN), and reached 80.57 to 86.04 % on CIFAR-10 with changed recipes. As in its code: batch normalization in σ
and after P, max pooling, four stages. Ours: an ELU in every σ (a unit of its code has two, after sums of its own), none
after the transition's sum (one in its code), no batch normalization after V and D (both in its code), average pooling
where a skip leads to smaller maps (interpolation in its code), k = 3 (3 to 7 in its code), other widths, no dropout.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from titn_lib.data.transforms import Images
from titn_lib.errors import TITNError
from titn_lib.models.base import Classifier
from titn_lib.models.registry import register_model
from titn_lib.validation import check_settings

STAGES = 4


@dataclass(frozen=True)
class AdaptoVisionConfig:
    """The settings of an AdaptoVision.

    Attributes:
        image_size: height and width in pixels, 8 or more, because they are halved three times.
        width: channels of the first stage; each further stage has twice as many.
        widest: the maximum of that.
        units: residual units in every stage.
    """

    name: str = "adaptovision_nano"
    num_classes: int = 10
    in_channels: int = 3
    image_size: tuple[int, int] = (32, 32)
    width: int = 24
    widest: int = 96
    units: int = 1

    def __post_init__(self) -> None:
        check_settings(self)
        height, width = self.image_size
        if min(height, width) < 2 ** (STAGES - 1):
            raise TITNError(
                f"{self.name} halves its images {STAGES - 1} times and can't take {height}×{width}: choose an "
                f"image_size of {2 ** (STAGES - 1)} or more"
            )

    @property
    def widths(self) -> list[int]:
        """Channels of every stage."""
        return [min(self.width * 2**stage, self.widest) for stage in range(STAGES)]


def conv_bn_elu(width: int, new_width: int, kernel: int) -> nn.Sequential:
    """σ W: a convolution that keeps the size, batch normalization, ELU."""
    convolution = nn.Conv2d(width, new_width, kernel, padding=kernel // 2, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(new_width), nn.ELU())


class Unit(nn.Sequential):
    """The enhanced residual unit of the equations."""

    def __init__(self, width: int):
        depthwise = nn.Conv2d(width, width, kernel_size=3, padding=1, groups=width, bias=False)
        middle = [conv_bn_elu(width, width, 1), depthwise, conv_bn_elu(width, width, 1)]
        before = [conv_bn_elu(width, width, 1), conv_bn_elu(width, width, 3)]
        after = [conv_bn_elu(width, width, 3), conv_bn_elu(width, width, 1)]
        super().__init__(*before, *middle, *after)

    def forward(self, maps: Float[Tensor, "batch channel row column"]) -> Float[Tensor, "batch channel row column"]:
        return maps + super().forward(maps)


class Stage(nn.Module):
    """Every stage but the first: transition, units, skips.

    Args:
        widths: channels of all stages so far, this one's last.
    """

    def __init__(self, widths: list[int], units: int):
        super().__init__()
        *earlier, width = widths
        self.near = conv_bn_elu(earlier[-1], width, 3)
        self.everywhere = nn.Conv2d(earlier[-1], width, kernel_size=1)
        self.units = nn.Sequential(*(Unit(width) for _ in range(units)))
        skips = [(2**back, nn.Conv2d(earlier[-back], width, 1, bias=False)) for back in (1, 2) if back <= len(earlier)]
        self.skips = nn.ModuleList(nn.Sequential(nn.AvgPool2d(f), conv, nn.BatchNorm2d(width)) for f, conv in skips)
        self.alphas = nn.Parameter(torch.ones(len(skips)))

    def forward(self, stages: list[Tensor]) -> Float[Tensor, "batch channel row column"]:
        """This stage's maps from those of all stages so far."""
        last = stages[-1]
        maps = self.near(F.max_pool2d(last, 2)) + self.everywhere(last.mean(dim=(2, 3), keepdim=True))
        maps = self.units(maps)
        for back, (alpha, skip) in enumerate(zip(self.alphas, self.skips, strict=True), start=1):
            maps = maps + alpha * skip(stages[-back])
        return maps


class AdaptoVision(Classifier):
    """The whole network: stem and units, three stages, head."""

    config: AdaptoVisionConfig

    def __init__(self, config: AdaptoVisionConfig):
        super().__init__()
        self.config = config
        widths = config.widths
        units = config.units
        stem = [conv_bn_elu(config.in_channels, widths[0], 3), conv_bn_elu(widths[0], widths[0], 3)]
        self.start = nn.Sequential(*stem, *(Unit(widths[0]) for _ in range(units)))
        self.stages = nn.ModuleList(Stage(widths[: end + 1], units) for end in range(1, STAGES))
        self.head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(widths[-1], config.num_classes, 1), nn.Flatten())
        self.to(memory_format=torch.channels_last)

    def forward(self, images: Images) -> Float[Tensor, "batch classes"]:
        """Logits of normalized images.

        Raises:
            TITNError: the images have another size or number of channels than the network takes.
        """
        self.check_images(images)
        maps = [self.start(images)]
        for stage in self.stages:
            maps.append(stage(maps))
        return self.head(maps[-1])


PRESETS = {
    "adaptovision_nano": AdaptoVisionConfig(),  # 0.65 M parameters, 56 M MACs
    # 6.57 M parameters, 327 M MACs; our widths, chosen to match the published number of parameters.
    "adaptovision": AdaptoVisionConfig(name="adaptovision", width=40, widest=312, units=2),
}
register_model("adaptovision", AdaptoVision, AdaptoVisionConfig, PRESETS)
