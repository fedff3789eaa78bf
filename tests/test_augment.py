"""Augmentation: each operation against torchvision or a plain loop, with the same draws."""

import numpy as np
import pytest
import torch
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as TF

from titn_lib import TITNError
from titn_lib.augment import PIPELINES, augment, cutmix_box, normalise, one_by_one, random_crop, random_flip


@pytest.fixture
def images():
    return torch.randint(0, 256, (16, 3, 32, 32), dtype=torch.uint8)


def test_crop_equals_torchvisions(images):
    cropped = random_crop(fill=128)(images, np.random.default_rng(5))
    tops, lefts = np.random.default_rng(5).integers(0, 9, size=(2, 16))
    for image, result, top, left in zip(images, cropped, tops, lefts, strict=True):
        assert torch.equal(result, TF.crop(TF.pad(image, [4], fill=128), int(top), int(left), 32, 32))
    assert len({(int(t), int(left)) for t, left in zip(tops, lefts, strict=True)}) > 8


def test_flip_mirrors_about_half(images):
    flipped = random_flip(images, np.random.default_rng(1))
    mirrored = [torch.equal(result, TF.horizontal_flip(image)) for image, result in zip(images, flipped, strict=True)]
    same = [torch.equal(result, image) for image, result in zip(images, flipped, strict=True)]
    assert all(a != b for a, b in zip(mirrored, same, strict=True))
    assert 3 < sum(mirrored) < 13


def test_one_by_one_draws_for_each_picture_and_leaves_torch_alone(images):
    operation = one_by_one(lambda v2: v2.RandomRotation(30))
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    turned = operation(images[:1].expand(16, -1, -1, -1), np.random.default_rng(0))
    assert torch.equal(torch.rand(3), expected)
    assert len({image.numpy().tobytes() for image in turned}) == 16
    torch.manual_seed(int(np.random.default_rng(0).integers(2**63, size=16)[2]))
    assert torch.equal(turned[2], v2.RandomRotation(30)(images[0]))


@pytest.mark.parametrize("name", PIPELINES)
def test_pipelines_depend_on_their_draws_alone(name, images):
    torch.manual_seed(1)
    first = augment(images, name, np.random.default_rng(3))
    torch.manual_seed(2)
    second = augment(images, name, np.random.default_rng(3))
    other = augment(images, name, np.random.default_rng(4))
    assert first.shape == images.shape
    assert first.dtype == torch.uint8
    assert torch.equal(first, second)
    assert torch.equal(first, other) == (name == "none")


def test_an_unknown_pipeline(images):
    with pytest.raises(TITNError, match="did you mean 'crop_flip'"):
        augment(images, "crop_flop", np.random.default_rng(0))


def test_normalise_equals_torchvisions(images):
    mean, std = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)
    expected = TF.normalize(images.float() / 255, list(mean), list(std))
    torch.testing.assert_close(normalise(images, mean, std), expected)


@pytest.mark.parametrize(
    ("weight", "row", "column", "expected"),
    [
        (0.75, 0.5, 0.5, (slice(8, 24), slice(8, 24), 0.75)),
        (0.75, 0.0, 0.0, (slice(0, 8), slice(0, 8), 1 - 64 / 1024)),  # a quarter of the box is left
        (0.75, 0.99, 0.5, (slice(23, 32), slice(8, 24), 1 - 9 * 16 / 1024)),
        (1.0, 0.5, 0.5, (slice(16, 16), slice(16, 16), 1.0)),
    ],
)
def test_cutmix_box_is_clipped_and_its_share_recomputed(weight, row, column, expected):
    assert cutmix_box(32, 32, weight, row, column) == expected
