"""Teachers: torchvision's networks, adapted to 32×32 images.

They were designed for 224×224 and halve the image five times, so that 32×32 images would shrink to a single position
half-way through. As usual on CIFAR, they are adapted:

- VGG: the convolutions stay; one global mean and one Linear replace the last pooling and the three wide layers
  (119 M parameters for 224×224).
- ResNet: a 3×3 stem of stride 1 and no max-pooling, so that the four stages work at 32, 16, 8 and 4.
- MobileNetV3 (large): the first two of five halvings are dropped: 32, 16, 8, 4.
- SqueezeNet 1.1: the stem keeps the size, so that the three poolings lead to 4.

Two more are for laptops, which can train them: `vgg7_bn` is ours, a small VGG, and `airbench` is the network of Jordan
(2024, arXiv 2404.00498), which was made to learn CIFAR-10 fast.

Every teacher is a chain of stages. A stage begins where the image is halved, and its output is the feature map that
feature distillation uses.

torchvision is imported where a network is built, because its import takes longer than torch's.
"""

import copy
from dataclasses import dataclass
from itertools import pairwise

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_eval

from titn_lib.data.transforms import Images
from titn_lib.errors import TITNError, unknown
from titn_lib.models.base import Classifier
from titn_lib.models.registry import register_model
from titn_lib.validation import check_settings


@dataclass(frozen=True)
class TeacherConfig:
    """The settings of a teacher: which network, for which images."""

    name: str = "vgg16_bn"
    num_classes: int = 10
    in_channels: int = 3
    image_size: tuple[int, int] = (32, 32)

    def __post_init__(self) -> None:
        check_settings(self)


class Teacher(Classifier):
    """A convolutional network in stages: images → feature maps → logits."""

    config: TeacherConfig

    def __init__(self, config: TeacherConfig):
        super().__init__()
        if config.name not in BUILDERS:
            raise unknown("teacher", config.name, BUILDERS)
        self.config = config
        layers, width, starts = BUILDERS[config.name](config.in_channels)
        smallest = 2 ** len(starts) + isinstance(layers[0], Whitening)  # whose output is a pixel smaller
        if min(config.image_size) < smallest:
            raise TITNError(
                f"{config.name} halves its images {len(starts)} times and can't take {config.image_size[0]}×"
                f"{config.image_size[1]}: choose an image_size of {smallest} or more, or another teacher"
            )
        edges = [0, *starts, len(layers)]
        self.stages = nn.ModuleList(nn.Sequential(*layers[a:b]) for a, b in pairwise(edges))
        self.head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, config.num_classes))
        self.to(memory_format=torch.channels_last)  # the fastest layout for convolutions, on a CPU and on a GPU

    def forward_features(self, images: Images) -> list[Tensor]:
        """The feature map of every stage, finest first, each "batch channel height width"."""
        self.check_images(images)
        maps = []
        for stage in self.stages:
            images = stage(images)
            maps.append(images)
        return maps

    def forward(self, images: Images) -> Float[Tensor, "batch classes"]:
        """Logits of normalized images.

        Raises:
            TITNError: the images have another size or number of channels than the teacher takes.
        """
        return self.head(self.forward_features(images)[-1])


def fold_batch_norm(teacher: Teacher) -> Teacher:
    """A copy of the teacher in evaluation mode, with every batch normalization folded into the convolution before it.

    In evaluation mode, batch normalization multiplies each channel by a constant and adds another. The convolution's
    weights and biases can do both, so logits and feature maps stay the same up to rounding. Evaluation gets a few
    percent faster on a CPU (VGG; 30 % for MobileNetV3). The copy can't be trained further or saved.
    """
    folded = copy.deepcopy(teacher).eval()
    for part in list(folded.modules()):
        # A max-pooling between the two changes nothing: the scale of `airbench` is 1, so that maxima stay maxima.
        layers = [(name, layer) for name, layer in part.named_children() if not isinstance(layer, nn.MaxPool2d)]
        for (name, layer), (norm_name, norm) in pairwise(layers):
            if isinstance(layer, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
                setattr(part, name, fuse_conv_bn_eval(layer, norm))
                setattr(part, norm_name, nn.Identity().eval())
    return folded


# A builder returns a network's layers in order, the width of the last, and the indices where stages begin.
Layers = tuple[list[nn.Module], int, list[int]]


def build_vgg(plan: list[int | str], in_channels: int) -> Layers:
    """Convolutions of the given widths, each with batch normalization and ReLU; "M" halves the image."""
    from torchvision.models.vgg import make_layers

    layers = list(make_layers(plan, batch_norm=True))
    layers[0] = nn.Conv2d(in_channels, int(plan[0]), kernel_size=3, padding=1)
    poolings = [i for i, layer in enumerate(layers) if isinstance(layer, nn.MaxPool2d)]
    for layer in layers:
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
    return layers, int(plan[-1]), poolings


def build_resnet(name: str, in_channels: int) -> Layers:
    from torchvision import models

    network = models.get_model(name)
    stem = nn.Conv2d(in_channels, 64, kernel_size=3, padding=1, bias=False)
    nn.init.kaiming_normal_(stem.weight, mode="fan_out", nonlinearity="relu")
    stages = [network.layer1, network.layer2, network.layer3, network.layer4]
    return [stem, network.bn1, network.relu, *stages], network.fc.in_features, [4, 5, 6]


def build_mobilenet(in_channels: int) -> Layers:
    from torchvision import models

    network = models.mobilenet_v3_large()
    layers = list(network.features)
    halving = [module for module in network.features.modules() if getattr(module, "stride", 1) == (2, 2)]
    stem, first_halving = halving[0], halving[1]
    stem.stride, first_halving.stride = (1, 1), (1, 1)
    if in_channels != 3:
        replaced = nn.Conv2d(in_channels, stem.out_channels, 3, padding=1, bias=False)
        nn.init.kaiming_normal_(replaced.weight, mode="fan_out")
        layers[0][0] = replaced
    starts = [
        i for i, layer in enumerate(layers) if any(getattr(module, "stride", 1) == (2, 2) for module in layer.modules())
    ]
    return layers, layers[-1].out_channels, starts


def build_squeezenet(in_channels: int) -> Layers:
    from torchvision import models

    layers = list(models.squeezenet1_1().features)
    layers[0] = nn.Conv2d(in_channels, 64, kernel_size=3, padding=1)
    nn.init.kaiming_uniform_(layers[0].weight)
    nn.init.zeros_(layers[0].bias)
    return layers, 512, [i for i, layer in enumerate(layers) if isinstance(layer, nn.MaxPool2d)]


class Whitening(nn.Conv2d):
    """A frozen convolution whose outputs are uncorrelated and of variance 1, over all 2×2 patches of the images.

    Its filters are the principal components of the patches, each with both signs, so that the activation function after
    it loses nothing. `fit` computes them.
    """

    def __init__(self, in_channels: int):
        super().__init__(in_channels, 2 * 4 * in_channels, kernel_size=2)
        self.weight.requires_grad_(False)

    @torch.no_grad()
    def fit(self, images: Images) -> None:
        """Compute the filters from the patches of some training images."""
        patches = rearrange(F.unfold(images, 2), "image value position -> (image position) value")
        variances, components = torch.linalg.eigh(patches.T @ patches / len(patches))
        filters = (components / (variances + 5e-4).sqrt()).T.reshape(-1, *self.weight.shape[1:])
        self.weight.copy_(torch.cat([filters, -filters]))


def build_airbench(in_channels: int) -> Layers:
    """Whitened 2×2 patches, and three groups of two convolutions.

    A convolution starts as the identity for as many channels as it has inputs. Batch normalization has no scale, and
    its learned shifts alone decide how much of each channel GELU lets through.
    """

    def conv_norm(inputs: int, outputs: int, *pooling: nn.Module) -> list[nn.Module]:
        conv = nn.Conv2d(inputs, outputs, kernel_size=3, padding=1, bias=False)
        nn.init.dirac_(conv.weight[:inputs])
        norm = nn.BatchNorm2d(outputs, momentum=0.4)  # quick: the run has few steps
        norm.weight.requires_grad_(False)
        return [conv, *pooling, norm, nn.GELU()]

    layers: list[nn.Module] = [whitening := Whitening(in_channels), nn.GELU()]
    inputs, starts = whitening.out_channels, []
    for width in (64, 256, 256):
        starts.append(len(layers))
        layers += conv_norm(inputs, width, nn.MaxPool2d(2)) + conv_norm(width, width)
        inputs = width
    return layers, inputs, starts


VGG7: list[int | str] = [32, "M", 64, "M", 128, 128, "M", 256, 256]
VGG16: list[int | str] = [64, 64, "M", 128, 128, "M", 256, 256, 256, "M", 512, 512, 512, "M", 512, 512, 512]
VGG19: list[int | str] = [64, 64, "M", 128, 128, "M", *[256] * 4, "M", *[512] * 4, "M", *[512] * 4]
BUILDERS = {
    "airbench": build_airbench,
    "vgg7_bn": lambda channels: build_vgg(VGG7, channels),
    "vgg16_bn": lambda channels: build_vgg(VGG16, channels),
    "vgg19_bn": lambda channels: build_vgg(VGG19, channels),
    "resnet18": lambda channels: build_resnet("resnet18", channels),
    "resnet50": lambda channels: build_resnet("resnet50", channels),
    "mobilenet_v3": build_mobilenet,
    "squeezenet": build_squeezenet,
}
PRESETS = {name: TeacherConfig(name=name) for name in BUILDERS}
register_model("teacher", Teacher, TeacherConfig, PRESETS, teacher=True)
