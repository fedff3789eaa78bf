"""The checks of 13_related_convolutions detect wrong answers and say what is wrong."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from titn_lib import create_model
from titn_lib.course import ex13_related_convolutions as exercise
from titn_lib.models.related.vitae import Reduction


def shifted(x, kernel, s, before=None):
    """Nine shifted copies of the padded map. before: rows and columns of zeros at the top and the left."""
    before = s if before is None else before
    padded = F.pad(x, (before, 2 * s - before, before, 2 * s - before))
    rows, columns = x.shape[2:]
    copies = [
        kernel[:, :, row, column, None] * padded[:, :, row * s : row * s + rows, column * s : column * s + columns]
        for row in range(3)
        for column in range(3)
    ]
    return sum(copies)


def pixel_by_pixel(x, kernel, s):
    out = torch.zeros_like(x)
    rows, columns = x.shape[2:]
    for y in range(rows):
        for z in range(columns):
            for i in (-1, 0, 1):
                for j in (-1, 0, 1):
                    if 0 <= y + i * s < rows and 0 <= z + j * s < columns:
                        out[:, :, y, z] += kernel[:, 0, i + 1, j + 1] * x[:, :, y + i * s, z + j * s]
    return out


def rolled(x, kernel, s):
    taps = [(i, j) for i in range(3) for j in range(3)]
    return sum(kernel[:, :, i, j, None] * x.roll(((1 - i) * s, (1 - j) * s), (2, 3)) for i, j in taps)


def as_one_dense_kernel(x, kernel, s):
    """An ordinary convolution with a kernel that has zeros in its gaps, and between the channels."""
    dense = torch.zeros(3, 3, 2 * s + 1, 2 * s + 1)
    for channel in range(3):
        dense[channel, channel, ::s, ::s] = kernel[channel, 0]
    return F.conv2d(x, dense, padding=s)


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (shifted, "✓"),
        (pixel_by_pixel, "✓"),
        (as_one_dense_kernel, "✓"),
        (lambda x, k, s: F.conv2d(x, k, padding=s, dilation=s, groups=3), "✓"),
        (lambda x, k, s: F.conv2d(x.double(), k.double(), padding="same", dilation=s, groups=3), "✓"),
        (lambda x, k, s: shifted(x, k, 1), "the dilation is ignored"),
        (lambda x, k, s: shifted(x, k, s + 1), "dilation + 1 pixels apart"),
        (lambda x, k, s: shifted(x, k.flip(2, 3), s), "the kernel is flipped"),
        (lambda x, k, s: shifted(x, k.mT, s), "rows and columns of the kernel are swapped"),
        (rolled, "the map wraps around"),
        (lambda x, k, s: F.conv2d(F.pad(x, [s] * 4, "replicate"), k, dilation=s, groups=3), "at the edge are repeated"),
        (lambda x, k, s: x + shifted(x, k, s), "x is added"),
        (lambda x, k, s: shifted(x, k[:1], s), "the kernel of channel 0"),
        (lambda x, k, s: shifted(x, k, s).sum(1, keepdim=True).expand(x.shape), "the channels are summed"),
        (lambda x, k, s: shifted(x, k, s, before=0), "the first tap is on the pixel itself"),
        (lambda x, k, s: shifted(x, k, s, before=2 * s), "the last tap is on the pixel itself"),
        (lambda x, k, s: F.conv2d(x, k, dilation=s, groups=3), "the shape is"),
        (lambda x, k, s: F.conv2d(x, k, padding=s, dilation=s), "it stopped"),
        (lambda x, k, s: 2 * shifted(x, k, s), "✗ the shape is right, the values are off"),
        (lambda x, k, s: ..., "not written yet"),
        (lambda x, k, s: None, "it returns None"),
    ],
)
def test_dilated(answer, says, expect):
    expect(says, exercise.check_dilated, answer)


def test_local_perception_is_a_dilation_of_one():
    """As CMT's block has it."""
    block = create_model("cmt_nano").stages[0][2]
    x = torch.randn(2, 48, 16, 16)
    with torch.no_grad():
        kernel = block.local[0]
        by_hand = x + exercise.dilated(x, kernel.weight, 1) + kernel.bias[:, None, None]
        torch.testing.assert_close(block.local(x), by_hand)


@pytest.mark.parametrize(
    ("answers", "says"),
    [
        ((1024, 432, 19, 0.0625), "✓ all four"),
        ((64 * 16.0, torch.tensor(432), 7 + 6 * 2, 2 / 32), "✓"),
        ((np.int64(1024), 9 * 48, torch.tensor(19.0), np.float32(0.0625)), "✓"),
        ((1024, 432, 19, 0.063), "✓"),  # two digits
        ((4096, 432, 19, 0.0625), "full attention"),
        ((2048, 432, 19, 0.0625), "k² times fewer"),
        ((256, 432, 19, 0.0625), "every position of the full map"),
        ((64, 432, 19, 0.0625), "a score for every key"),
        ((16, 432, 19, 0.0625), "those are the keys"),
        ((1024, 20736, 19, 0.0625), "an ordinary convolution"),
        ((1024, 9, 19, 0.0625), "a kernel of its own"),
        ((1024, 48, 19, 0.0625), "a kernel has nine weights"),
        ((1024, 480, 19, 0.0625), "without its bias"),
        ((1024, 432, 21, 0.0625), "no gap behind it"),
        ((1024, 432, 18, 0.0625), "count both ends"),
        ((1024, 432, 13, 0.0625), "that is dilation 2"),
        ((1024, 432, 25, 0.0625), "not that three lie between"),
        ((1024, 432, 30, 0.0625), "30 is too large"),
        ((1024, 432, 19, 0.03125), "named beforehand"),
        ((1024, 432, 19, 0.1), "multiply"),
        ((1024, 432, 19, 6.25), "per cent"),
        ((1024, 432, 19, ...), "not written yet"),
        (("all", 432, 19, 0.0625), "a number was asked for"),
    ],
)
def test_counts(answers, says):
    assert says in repr(exercise.check_counts(*answers))


def test_the_counts_are_what_tensors_say():
    image = torch.zeros(1, 1, 41, 41)
    image[..., 20, 20] = 1
    reached = F.conv2d(image, torch.ones(1, 1, 7, 7), dilation=3)[0, 0].any(dim=0).nonzero()
    span = int(reached[-1] - reached[0]) + 1
    model = create_model("cmt_nano", image_size=(32, 32))
    assert model.config.stages[1][3] == 2
    weights = nn.Conv2d(48, 48, 3, groups=48, bias=False).weight.numel()
    outcomes = [[draws >> i & 1 for i in range(5)] for draws in range(32)]
    chance = sum(len(set(outcome)) == 1 for outcome in outcomes) / 32
    assert exercise.check_counts(model.biases[1][0].numel(), weights, span, chance).right


def filled(image, rows=slice(0, 0), columns=slice(0, 0), value=1.5):
    image = image.clone()
    image[:, rows] = value
    image[:, :, columns] = value
    return image


EVEN, ODD = slice(0, None, 2), slice(1, None, 2)


def masked(image):
    """The other way to the same: only odd rows and odd columns are kept."""
    keep = torch.zeros(16, 16)
    keep[ODD, ODD] = 1
    return image * keep - (1 - keep)


def just_enough(image):
    flat = image.flatten().clone()
    hidden = [row * 16 + column for row in range(16) for column in range(16) if row % 2 == 0 or column % 2 == 0]
    flat[hidden[: exercise.FEWEST]] += 1
    return flat.view(1, 16, 16)


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (lambda image: filled(image, EVEN, EVEN), "✓ done: 192 of 256"),
        (masked, "✓ done: 192"),
        (just_enough, "✓ done: 150"),
        (lambda image: filled(image, EVEN, EVEN).double(), "✓"),
        (lambda image: filled(image, EVEN, EVEN).numpy(), "✓"),
        (lambda image: filled(image, EVEN, EVEN).tolist(), "✓"),
        (lambda image: filled(image, EVEN, slice(0, 6, 2)), "✓"),
        (lambda image: filled(image, EVEN), "only 128 pixels are changed. Rows alone"),
        (lambda image: filled(image, slice(0, 4, 2)), "only 32 pixels are changed."),
        (lambda image: image, "only 0 pixels are changed"),
        (lambda image: filled(image, ODD, ODD), "the pixel in row 1, column 1 (counted from 0)"),
        (lambda image: filled(image, slice(0, 16)), "the map changes"),
        (lambda image: 1 - image, "the map changes"),
        (lambda image: image.flip(2), "the map changes"),
        (lambda image: filled(image, EVEN, EVEN, float("nan")), "not all pixels are finite"),
        (lambda image: filled(image, EVEN, EVEN)[0], "the shape is (16, 16)"),
        (lambda image: image[:, 20, 0], "it stopped"),
        (lambda image: 3, "it returns int"),
        (lambda image: ..., "not written yet"),
        (lambda image: None, "it returns None"),
    ],
)
def test_unseen(answer, says, expect):
    expect(says, exercise.check_unseen, answer)


def test_the_cells_second_kernel_sees_so_little():
    """ViTAEv2's own, with r = 4 on 16×16 pixels. The first and the third see all."""
    cell = Reduction(1, 8, r=4, dilations=3, heads=1, window=0, first=True, published_code=False)
    image = torch.rand(1, 1, 16, 16, requires_grad=True)
    seen = []
    for convolution in cell.pyramid:
        (gradient,) = torch.autograd.grad(convolution(image).square().sum(), image)
        seen.append(gradient[0, 0] != 0)
    assert torch.equal(seen[1], exercise.seen_pixels())
    assert [int(mask.sum()) for mask in seen] == [256, 64, 256]
