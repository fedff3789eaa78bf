"""Augmentation: each operation against torchvision on every image, with the same random values."""

import numpy as np
import pytest
import torch
from torchvision.transforms import AutoAugmentPolicy, v2
from torchvision.transforms.v2 import functional as TF

from titn_lib import TITNError
from titn_lib import kernels as compiled
from titn_lib.data import autoaugment, image_ops, mixing, transforms
from titn_lib.data.image_ops import crop
from titn_lib.data.mixing import cutmix_box
from titn_lib.data.transforms import PIPELINES, augment, normalize, random_crop, random_horizontal_flip

BATCH = 64
RNG = np.random.default_rng(0)


@pytest.fixture(params=[3, 1], ids=["color", "gray"])
def images(request):
    """Noise, ramps, and images of one value: equalizing and stretching treat them differently."""
    images = torch.randint(0, 256, (BATCH, request.param, 32, 32), dtype=torch.uint8)
    images[:8] = torch.arange(32, dtype=torch.uint8) * 3 + 40
    images[8:12] = torch.arange(12, 16, dtype=torch.uint8).view(4, 1, 1, 1) * 9
    images[12:32] //= 3
    return images


def assert_each_equals(results, images, expected):
    """Every image's result is what `expected(image, index)` makes of it, to the last bit."""
    assert results.dtype == torch.uint8
    for i, (image, result) in enumerate(zip(images, results, strict=True)):
        assert torch.equal(result, expected(image, i)), i


FACTORS = np.concatenate([RNG.uniform(0.1, 1.9, BATCH - 4), [0.1, 1.0, 1.9, 0.7]])
BITS = RNG.integers(4, 9, BATCH).astype(float)
THRESHOLDS = np.linspace(255, 0, BATCH)


@pytest.mark.parametrize(
    ("ours", "values", "theirs"),
    [
        (image_ops.saturation, FACTORS, TF.adjust_saturation),
        (image_ops.sharpness, FACTORS, TF.adjust_sharpness),
        (image_ops.brightness, FACTORS, TF.adjust_brightness),
        (image_ops.contrast, FACTORS, TF.adjust_contrast),
        (image_ops.posterize, BITS, lambda image, bits: TF.posterize(image, int(bits))),
        (image_ops.solarize, THRESHOLDS, TF.solarize),
        (image_ops.invert, FACTORS, lambda image, _: TF.invert(image)),
        (image_ops.autocontrast, FACTORS, lambda image, _: TF.autocontrast(image)),
        (image_ops.equalize, FACTORS, lambda image, _: TF.equalize(image)),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_color_operations_equal_torchvisions(images, ours, values, theirs):
    changed = ours(images, values)
    if ours in autoaugment.LUT_OPS.values():
        changed = image_ops.apply_lut(images, changed)
    assert_each_equals(changed, images, lambda image, i: theirs(image, float(values[i])))


def test_affine_equals_torchvisions(images):
    angle, scale = RNG.uniform(-180, 180, BATCH), RNG.uniform(0.5, 2, BATCH)
    shift, shear = (RNG.integers(-9, 10, (2, BATCH)).astype(float), RNG.uniform(-30, 30, (2, BATCH)))
    corner = RNG.random(BATCH) < 0.5
    center = np.where(corner, 0.0, 16.0), np.where(corner, 0.0, 16.0)
    results = image_ops.affine(images, angle, (shift[0], shift[1]), scale, (shear[0], shear[1]), center)
    assert_each_equals(
        results,
        images,
        lambda image, i: TF.affine(
            image, angle[i], [int(shift[0, i]), int(shift[1, i])], scale[i], [*shear[:, i]],
            center=[0, 0] if corner[i] else None,
        ),
    )  # fmt: skip


def test_random_affine_and_rotation_equal_torchvisions():
    """On oblong images, so that height and width are not confused."""
    images = torch.randint(0, 256, (BATCH, 3, 24, 40), dtype=torch.uint8)
    angle = np.random.default_rng(7).uniform(-30, 30, BATCH)
    turned = transforms.random_rotation(images, np.random.default_rng(7))
    assert_each_equals(turned, images, lambda image, i: TF.rotate(image, angle[i]))

    rng = np.random.default_rng(7)
    across, down = (np.round(rng.uniform(-most, most, BATCH)) for most in (4, 2.4))
    angle, scale = rng.uniform(-20, 20, BATCH), rng.uniform(0.9, 1.1, BATCH)
    assert_each_equals(
        transforms.random_affine(images, np.random.default_rng(7)), images,
        lambda image, i: TF.affine(image, angle[i], [int(across[i]), int(down[i])], scale[i], [0.0, 0.0]),
    )  # fmt: skip


@pytest.mark.parametrize("kernels", [True, False], ids=["kernels", "no kernels"])
@pytest.mark.parametrize("operation", [*autoaugment.GEOMETRIC_OPS, "color", "sharpness", *autoaugment.LUT_OPS])
def test_autoaugments_operations_equal_torchvisions(images, operation, kernels, monkeypatch):
    """Name and magnitude mean what they mean in torchvision's AutoAugment, both signs, all ten levels."""
    if not kernels:
        monkeypatch.setattr(compiled, "can_use_image_ops", lambda images: False)
    names = {"translate_x": "TranslateX", "translate_y": "TranslateY", "shear_x": "ShearX", "shear_y": "ShearY"}
    theirs = names.get(operation, {"autocontrast": "AutoContrast"}.get(operation, operation.capitalize()))
    transform = v2.AutoAugment(AutoAugmentPolicy.CIFAR10)
    spread, signed = transform._AUGMENTATION_SPACE[theirs]
    spread = spread(10, 32, 32)
    level, sign = np.arange(BATCH) % 10, np.where(signed & (np.arange(BATCH) % 3 == 0), -1.0, 1.0)
    values = autoaugment.magnitudes(operation, (32, 32))[level] * sign
    results = autoaugment.apply(images, np.full(BATCH, autoaugment.OPERATIONS.index(operation)), values)
    magnitude = [0.0 if spread is None else float(spread[k]) * s for k, s in zip(level, sign, strict=True)]
    assert_each_equals(
        results,
        images,
        lambda image, i: transform._apply_image_or_video_transform(
            image, theirs, magnitude[i], transform.interpolation, transform._fill
        ),
    )


def test_autoaugment_shifts_by_a_share_of_the_side_it_moves_along():
    assert autoaugment.magnitudes("translate_x", (16, 40))[9] == pytest.approx(150 / 331 * 40)
    assert autoaugment.magnitudes("translate_y", (16, 40))[9] == pytest.approx(150 / 331 * 16)


def test_the_policy_is_torchvisions():
    theirs = v2.AutoAugment(AutoAugmentPolicy.CIFAR10)._policies
    ours = [tuple((line[i].replace("_", ""), float(line[i + 1]), int(line[i + 2])) for i in (0, 3))
            for line in autoaugment.CIFAR10_POLICY]  # fmt: skip
    assert ours == [
        tuple((name.lower(), probability, level or 0) for name, probability, level in pair) for pair in theirs
    ]


def test_autoaugment_follows_its_probabilities():
    """How often an image comes out unchanged, against torchvision's, over many images."""
    image = torch.randint(0, 256, (3, 32, 32), dtype=torch.uint8)
    ours = autoaugment.auto_augment(image.expand(6000, -1, -1, -1), np.random.default_rng(0))
    torch.manual_seed(0)
    transform = v2.AutoAugment(AutoAugmentPolicy.CIFAR10)
    theirs = torch.stack([transform(image) for _ in range(3000)])
    kept = [(many == image).flatten(1).all(dim=1).float().mean().item() for many in (ours, theirs)]
    assert kept[0] == pytest.approx(kept[1], abs=0.035)  # four standard deviations
    means = [many.float().mean().item() for many in (ours, theirs)]
    assert means[0] == pytest.approx(means[1], abs=3)


def test_apply_gives_each_image_its_own_operation(images):
    numbers = np.array([autoaugment.OPERATIONS.index(name) for name in ("", "invert", "rotate", "equalize")])
    results = autoaugment.apply(images, numbers[np.arange(BATCH) % 4], np.full(BATCH, 30.0))
    expected = [lambda x: x, TF.invert, lambda x: TF.rotate(x, 30.0), TF.equalize]
    assert_each_equals(results, images, lambda image, i: expected[i % 4](image))


@pytest.mark.parametrize("kernels", [True, False], ids=["kernels", "no kernels"])
@pytest.mark.parametrize(("height", "width", "part"), [(32, 32, 8), (16, 32, 8), (32, 24, 8), (32, 16, 16)])
def test_crop_equals_torchvisions(images, height, width, part, kernels, monkeypatch):
    if not kernels:
        monkeypatch.setattr(compiled, "can_use_image_ops", lambda images: False)
    images, margin = images[:, :, :height, :width].contiguous(), (height // part, width // part)
    cropped = random_crop(fill=128, part=part)(images, np.random.default_rng(5))
    rng = np.random.default_rng(5)
    tops, lefts = (rng.integers(0, 2 * most + 1, BATCH) for most in margin)
    assert_each_equals(
        cropped, images,
        lambda image, i: TF.crop(
            TF.pad(image, [margin[1], margin[0]], fill=128), int(tops[i]), int(lefts[i]), height, width
        ),
    )  # fmt: skip
    assert [len(set(tops)), len(set(lefts))] == [2 * most + 1 for most in margin]


def test_flip_mirrors_about_half(images):
    draws = np.random.default_rng(1).random(BATCH) < 0.5
    flipped = random_horizontal_flip(images, np.random.default_rng(1))
    assert_each_equals(flipped, images, lambda image, i: TF.horizontal_flip(image) if draws[i] else image)
    assert BATCH / 4 < draws.sum() < 3 * BATCH / 4


def test_color_jitter_has_both_orders(images):
    rng = np.random.default_rng(2)
    bright, contrasted = (rng.uniform(0.8, 1.2, BATCH) for _ in range(2))
    first = rng.random(BATCH) < 0.5

    def expected(image, i):
        if first[i]:
            return TF.adjust_contrast(TF.adjust_brightness(image, bright[i]), contrasted[i])
        return TF.adjust_brightness(TF.adjust_contrast(image, contrasted[i]), bright[i])

    assert_each_equals(transforms.color_jitter(images, np.random.default_rng(2)), images, expected)


def test_mixup_mixes_images_and_labels_alike():
    values = torch.arange(0, 250, 10, dtype=torch.uint8)
    images, labels = values.view(-1, 1, 1, 1).expand(-1, 3, 8, 8), values.long()
    mixed, both = mixing.mixup(images, labels, np.random.default_rng(3))
    expected = both.lam * both.a + (1 - both.lam) * both.b
    assert 0.05 < both.lam < 0.95
    torch.testing.assert_close(mixed[:, 0, 0, 0].double(), expected.double(), atol=0.51, rtol=0)
    normalized, _ = mixing.mixup(images / 255 - 0.5, labels, np.random.default_rng(3))
    torch.testing.assert_close(normalized[:, 0, 0, 0].double(), expected.double() / 255 - 0.5, atol=1e-6, rtol=0)


@pytest.mark.parametrize("mix", [mixing.cutmix, mixing.mixup])
def test_alpha_shapes_the_shares(mix):
    """A small one leaves nearly all of an image or nearly nothing, a large one about half."""
    images, labels = torch.zeros(4, 1, 32, 32, dtype=torch.uint8), torch.arange(4)

    def spread(alpha):
        shares = [mix(images, labels, np.random.default_rng(seed), alpha)[1].lam for seed in range(200)]
        return np.abs(np.array(shares) - 0.5).mean()

    assert spread(0.1) > spread(1.0) + 0.03
    assert spread(20.0) < spread(1.0) - 0.03


def test_mix_batch_draws_only_if_both_have_an_alpha():
    images, labels = torch.randint(0, 256, (8, 3, 32, 32), dtype=torch.uint8), torch.arange(8)

    def pasted(seed, *alphas):
        mixed, both = mixing.mix_batch(images, labels, np.random.default_rng(seed), *alphas)
        return bool(((mixed == images) | (mixed == images[both.b])).all())

    assert all(pasted(seed, 1.0, 0.0) for seed in range(8))
    assert not any(pasted(seed, 0.0, 1.0) for seed in range(8))
    assert {pasted(seed, 1.0, 1.0) for seed in range(8)} == {True, False}


@pytest.mark.parametrize("name", PIPELINES)
def test_pipelines_depend_on_their_generator_alone(name, images):
    torch.manual_seed(1)
    first = augment(images, name, np.random.default_rng(3))
    torch.manual_seed(2)
    second = augment(images, name, np.random.default_rng(3))
    other = augment(images, name, np.random.default_rng(4))
    assert first.shape == images.shape
    assert first.dtype == torch.uint8
    assert torch.equal(first, second)
    assert torch.equal(first, other) == (name == "none")


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("shift", [random_crop(fill=0)]),
        ("crop_flip", [random_crop(fill=128), random_horizontal_flip]),
        ("small_crop_flip", [random_crop(fill=128, part=16), random_horizontal_flip]),
        ("affine", [transforms.random_affine]),
        ("paper_cifar", [random_crop(fill=128), random_horizontal_flip, autoaugment.auto_augment]),
        (
            "paper_mnist",
            [random_crop(fill=128), transforms.random_rotation, transforms.random_affine, transforms.color_jitter],
        ),
    ],
)
def test_pipelines_do_what_they_should_in_their_order(name, parts, images):
    rng, expected = np.random.default_rng(3), images
    for part in parts:
        expected = part(expected, rng)
    assert torch.equal(augment(images, name, np.random.default_rng(3)), expected)


def test_an_unknown_pipeline(images):
    with pytest.raises(TITNError, match="did you mean 'crop_flip'"):
        augment(images, "crop_flop", np.random.default_rng(0))


@pytest.mark.usefixtures("unchecked")
def test_what_would_give_wrong_pixels_is_refused(images):
    with pytest.raises(TITNError, match="augmentation expects uint8 images"):
        augment(torch.ones(2, 3, 8, 8), "shift", np.random.default_rng(0))
    zeros = np.zeros(len(images), dtype=np.int64)
    for offsets in (zeros - 1, zeros + 9):
        with pytest.raises(TITNError, match="crop offsets must be from 0 to 8"):
            crop(images, offsets, zeros, (4, 4), 0)
        with pytest.raises(TITNError, match="crop offsets must be from 0 to 8"):
            crop(images, zeros, offsets, (4, 4), 0)
    top = np.arange(len(images)) % 9
    expected = crop(images, top, zeros, (4, 4), 0)
    assert torch.equal(crop(images, top.astype(np.int32), zeros.astype(np.uint8), (4, 4), 0), expected)


def test_normalize_equals_torchvisions():
    images = torch.randint(0, 256, (4, 3, 9, 7), dtype=torch.uint8)
    mean, std = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)
    expected = TF.normalize(images.float() / 255, list(mean), list(std))
    torch.testing.assert_close(normalize(images, mean, std), expected)


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
