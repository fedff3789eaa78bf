"""Teachers: torchvision's networks, their stages and what 32×32 changes."""

import pytest
import torch
from torchvision import models

from titn_lib import TITNError, create_model
from titn_lib.models.registry import TEACHERS

SIDES = {"vgg16_bn": [32, 16, 8, 4, 2], "vgg19_bn": [32, 16, 8, 4, 2]}


@pytest.mark.parametrize("name", TEACHERS)
@pytest.mark.parametrize("in_channels", [1, 3])
def test_stages_halve_the_image(name, in_channels):
    teacher = create_model(name, num_classes=7, in_channels=in_channels).eval()
    images = torch.randn(2, in_channels, 32, 32)
    maps = teacher.forward_features(images)
    assert [m.shape[-1] for m in maps] == SIDES.get(name, [32, 16, 8, 4])
    logits = teacher(images)
    assert logits.shape == (2, 7)
    torch.testing.assert_close(logits, teacher.head(maps[-1]))
    assert (logits[0] - logits[1]).abs().max() > 0


def test_images_that_are_too_small():
    with pytest.raises(TITNError, match="vgg16_bn halves its images 4 times and can't take 8×8"):
        create_model("vgg16_bn", image_size=(8, 8))
    with pytest.raises(TITNError, match="can't take 32×8"):
        create_model("vgg16_bn", image_size=(32, 8))


@pytest.mark.parametrize(
    ("name", "original"),
    [("vgg16_bn", models.vgg16_bn), ("vgg19_bn", models.vgg19_bn), ("resnet18", models.resnet18),
     ("resnet50", models.resnet50), ("mobilenet_v3", models.mobilenet_v3_large), ("squeezenet", models.squeezenet1_1)],
)  # fmt: skip
def test_layers_are_torchvisions(name, original):
    """Every convolution but the stem has torchvision's shape, in torchvision's order."""

    def shapes(network):
        return [tuple(m.weight.shape) for m in network.modules() if isinstance(m, torch.nn.Conv2d)][1:]

    theirs = shapes(original())
    ours = shapes(create_model(name))
    assert ours == theirs[: len(ours)]
    assert len(theirs) - len(ours) == (1 if name == "squeezenet" else 0)  # SqueezeNet's last one is its classifier
