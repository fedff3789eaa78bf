"""Teachers: torchvision's networks, their stages and what 32×32 changes."""

import pytest
import torch
from torchvision import models

from titn_lib import TITNError, create_model, load_model
from titn_lib.data import load_dataset, normalize
from titn_lib.models.registry import TEACHERS
from titn_lib.models.teachers import Whitening, fold_batch_norm

SIDES = {"vgg16_bn": [32, 16, 8, 4, 2], "vgg19_bn": [32, 16, 8, 4, 2], "airbench": [31, 15, 7, 3]}


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
    with pytest.raises(TITNError, match="choose an image_size of 9 or more"):
        create_model("airbench", image_size=8)
    assert create_model("airbench", image_size=9).eval()(torch.zeros(1, 3, 9, 9)).shape == (1, 10)


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


def test_whitened_patches_are_uncorrelated():
    """Over all patches, each filter's output has a variance of 1. The second half has the opposite signs."""
    images = torch.nn.functional.avg_pool2d(torch.randn(200, 3, 24, 24), 3, stride=1) + torch.randn(200, 1, 1, 1)
    layer = Whitening(3)
    layer.fit(images)
    outputs = torch.nn.functional.conv2d(images, layer.weight).transpose(0, 1).flatten(1)
    half, opposite = outputs.split(12)
    assert torch.equal(half, -opposite)
    covariance = half @ half.T / half.shape[1]
    torch.testing.assert_close(covariance, torch.eye(12), atol=0.05, rtol=0)
    assert not layer.weight.requires_grad
    assert layer.bias.requires_grad


def test_airbench_begins_with_identities():
    """Its convolutions pass on their inputs, whatever their other outputs are."""
    convs = [m for m in create_model("airbench").modules() if isinstance(m, torch.nn.Conv2d)][1:]
    assert [conv.out_channels for conv in convs] == [64, 64, 256, 256, 256, 256]
    for conv in convs:
        images = torch.randn(1, conv.in_channels, 5, 5)
        torch.testing.assert_close(conv(images)[:, : conv.in_channels], images)


@torch.no_grad()
@pytest.mark.parametrize("name", TEACHERS)
def test_folding_batch_normalization_changes_nothing_but_rounding(name):
    teacher, images = create_model(name).train(), torch.randn(2, 3, 32, 32)
    for part in teacher.modules():
        if isinstance(part, torch.nn.BatchNorm2d):
            part.momentum = None  # averages over all batches, so that the activations keep their size
            part.weight.uniform_(0.5, 1.5)
            part.bias.normal_()
    teacher(images)
    before = {key: value.clone() for key, value in teacher.state_dict().items()}
    folded = fold_batch_norm(teacher)
    assert teacher.training
    assert all(torch.equal(value, before[key]) for key, value in teacher.state_dict().items())
    parts = list(folded.modules())
    assert not any(part.training or isinstance(part, torch.nn.BatchNorm2d) for part in parts)
    for part in parts:
        if isinstance(part, torch.nn.Conv2d):
            assert part.weight.is_contiguous(memory_format=torch.channels_last)
    for mine, its in zip(folded.forward_features(images), teacher.eval().forward_features(images), strict=True):
        torch.testing.assert_close(mine, its, rtol=1e-4, atol=1e-4 * float(its.abs().max()))
    wanted = teacher(images)
    assert (folded(images) - wanted).abs().max() < 1e-4 * wanted.abs().max()


@torch.no_grad()
def test_a_folded_teacher_predicts_the_same_classes(real_data):
    """In float32, and in bfloat16 with weights cast once."""
    data = load_dataset("cifar10")
    images = normalize(data.validation.images[:500], data.mean, data.std)
    teacher = load_model("vgg7_bn.cifar10")
    folded = fold_batch_norm(teacher)
    logits, wanted = folded(images), teacher(images)
    assert (logits - wanted).abs().max() < 1e-4 * wanted.abs().max()
    assert (logits.argmax(dim=-1) == wanted.argmax(dim=-1)).float().mean() >= 0.999
    with torch.autocast("cpu", torch.bfloat16):
        rough = teacher(images)
        half = folded.to(torch.bfloat16)(images)
    error, rounding = (half - wanted).square().mean(), (rough - wanted).square().mean()
    assert error < 1.5 * rounding
    right, before = ((out.argmax(dim=-1) == data.validation.labels[:500]).float().mean() for out in (half, wanted))
    assert abs(right - before) < 0.005
