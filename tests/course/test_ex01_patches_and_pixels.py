"""The checks of 01_patches_and_pixels notice wrong answers and explain them; the framework that all checks share."""

import math
import re
from decimal import Decimal
from fractions import Fraction

import numpy as np
import pytest
import torch
from einops import rearrange
from torch import Tensor
from torch.nn import functional as F

from titn_lib.course import ex01_patches_and_pixels as exercise
from titn_lib.course.checks import NOT_YET, Verdict, all_of, call_answer, compare, describe, number


def twice(x):
    return 2 * x


def inputs():
    return (torch.rand(3, 2),)


@pytest.mark.parametrize(
    ("answer", "right", "message"),
    [
        (twice, True, "right, on three random inputs"),
        (lambda x: ..., False, "not written yet"),
        (lambda x: None, False, "it returns None: is the `return` missing"),
        (lambda x: {"twice": x}, False, r"returns dict of 1; a tensor of shape \(3, 2\) was asked for"),
        (lambda x: [x[0], x[0, 0]], False, "returns list of 2"),
        (lambda x: x.sum(), False, "returns Tensor with a single value; a tensor of shape"),
        (lambda x: x + 1j, False, "returns complex Tensor of shape"),
        (lambda x: x.to("meta"), False, "on the device meta"),
        (lambda x: 2 * x[:1], False, r"the shape is \(1, 2\); it should be \(3, 2\)"),
        (lambda x: x, False, "this is what comes out when nothing is doubled"),
        (lambda x: 2 * x + 0.5, False, "the values are off by up to 0.5"),
        (lambda x: 2 * x / 0, False, "off by up to inf"),
        (lambda x: 0 * x / 0, False, r"the values are not a number \(nan\)"),
        (
            lambda x: x[7],
            False,
            r"it stopped at `lambda x: x\[7\],` with IndexError: .* \(its arguments had the shapes \(3, 2\)\)",
        ),
        (lambda x: x.mul_(2), True, "right"),  # changing its own copy harms nobody
    ],
)
def test_functions_are_compared(answer, right, message):
    verdict = compare(answer, twice, inputs, {"nothing is doubled": lambda x: x})
    assert verdict.right is right
    assert re.search(message, repr(verdict))


@pytest.mark.parametrize("shape", [(), (1,)])
@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (lambda x: x.sum().item(), "✓"),
        (lambda x: x[0, 0].item(), "this is what comes out when the first is taken"),
        (lambda x: x.sum().item() + 0.5, "✗ the number is off by up to 0.5"),
        (lambda x: 1000, "off by up to 1e+03"),
        (lambda x: math.nan, "not a number (nan)"),
        (lambda x: 10**400, "off by up to inf"),
        (lambda x: x, "it returns Tensor of shape (3, 2); a number was asked for"),
        (lambda x: x.sum().numpy(), "✓"),
        (lambda x: x.sum().numpy()[()], "✓"),  # np.float32
        (lambda x: x.sum()[None], "✓"),
        (lambda x: x.sum() > 0, "it returns Tensor with a single value; a number was asked for"),
        (lambda x: True, "it returns bool True; a number was asked for"),
        (lambda x: str(x.sum().item()), "a number was asked for"),
    ],
)
def test_a_number_will_do_where_the_truth_is_one(answer, message, shape):
    mistakes = {"the first is taken": lambda x: x[0, 0].reshape(shape)}
    assert message in repr(compare(answer, lambda x: x.sum().reshape(shape), inputs, mistakes))


def test_a_number_will_not_do_for_several():
    assert "it returns float 0.5; a tensor of shape (3, 2)" in repr(compare(lambda x: 0.5, twice, inputs))


@pytest.mark.parametrize(
    ("answer", "message"),
    [(12, "✓"), (12.0, "✓"), (torch.tensor(12), "✓"), (7, "add or multiply"), (20, "too large"), (3, "too small"),
     (..., "not written yet"), ("a dozen", "a number was asked for"), ("12", "a number was asked for"),
     (1781688, "1,781,688 is too large"), (12.5, "12.5 is too large")],
)  # fmt: skip
def test_numbers_are_judged(answer, message):
    assert message in repr(number(answer, 12, {7: "did you add or multiply?"}))


@pytest.mark.parametrize(
    ("answer", "message"),
    [(0.353553, "✓"), (0.354, "✓"), (0.35, "✓"), (0.37, "too large"), (0.36, "the wrong root"),
     (0.34, "too small"), (0.4, "too large"),
     (0.3582, "the wrong root"), (0.357, "✓"), (-0.35, "too small"), (math.inf, "inf is too large"),
     (10**400, "too large"), (-(10**400), "too small"), (math.nan, "nan"), (True, "it is bool True; a number"),
     (np.bool_(True), "it is bool with a single value"), ([0.354], "it is list of 1; a number"),
     (torch.tensor([0.354]), "✓"), (np.array([0.354]), "✓"), (np.float16(0.354), "✓"), (b"0.354", "a number"),
     (torch.rand(2), "it is Tensor of shape (2,)"), (torch.rand(1, device="meta"), "on the device meta"),
     (0.354j, "a number was asked for"), (Fraction(354, 1000), "✓"), (Decimal("0.354"), "✓")],
)  # fmt: skip
def test_two_digits_will_do_and_the_nearest_counts(answer, message):
    assert message in repr(number(answer, 8**-0.5, {0.3625: "the wrong root."}))


def test_whole_numbers_are_exact():
    assert not number(1_781_689, 1_781_688).right
    assert not number(0.001, 0).right
    assert number(1_782_000, 1_781_688, within=0.003).right


def test_an_answer_changes_its_own_copy():
    arguments = torch.ones(3)
    call_answer(Tensor.zero_, arguments)
    assert arguments.all()


def test_what_a_check_shows_is_short():
    values = {"ndarray of shape (2, 3)": torch.rand(2, 3).numpy(), "tuple of 2": (torch.rand(9), 1), "None": None}
    assert [describe(value) for value in values.values()] == list(values)
    assert describe("b") == "str 'b'"


def test_whole_numbers_are_counted():
    verdict = compare(lambda x: 0 * x, lambda x: x.clone(), lambda: (torch.arange(5),), {"all is 1": torch.ones_like})
    assert "wrong in 4 of 5 places" in repr(verdict)


def test_together_is_right_if_all_are():
    right, wrong = Verdict(True, "yes"), Verdict(False, "no")
    assert all_of(a=right, b=right) is right
    assert repr(all_of(a=right, b=wrong, c=right)) == "✗ 2 of 3 right; `b`: no"
    assert repr(all_of(a=NOT_YET, b=wrong, c=right)).startswith("✗ 1 of 3 right; `a`: not written yet")
    assert all_of(a=NOT_YET, b=NOT_YET) is NOT_YET


def loops(image, size):
    rows, columns = image.shape[1] // size, image.shape[2] // size
    return torch.stack([image[:, r * size : r * size + size, c * size : c * size + size]
                        for r in range(rows) for c in range(columns)])  # fmt: skip


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (loops, "✓"),
        (lambda i, s: list(loops(i, s)), "✓"),  # without `stack`
        (lambda i, s: i.unfold(1, s, s).unfold(2, s, s).movedim(0, 2).flatten(0, 1), "✓"),
        (lambda i, s: F.unfold(i[None], s, stride=s)[0].T.reshape(-1, 3, s, s), "✓"),
        (lambda i, s: rearrange(i, "c (a y) (b x) -> (b a) c y x", y=s, x=s), "down the columns"),
        (lambda i, s: i.reshape(-1, 3, s, s), "adjacent in memory"),
        (lambda i, s: rearrange(i, "c (y a) (x b) -> (a b) c y x", y=s, x=s), "not adjacent ones"),
        (lambda i, s: rearrange(i, "c (a y) (b x) -> (a b) c x y", y=s, x=s), "swapped inside every patch"),
        (lambda i, s: 2 * loops(i, s), "✗ the shape is right"),
        (lambda i, s: loops(i, s).flip(0), "✗ the shape is right"),
        (lambda i, s: loops(i, s).movedim(1, -1), "✗ the shape is"),
        (lambda i, s: loops(i, 4), "the shape is"),
        (lambda i, s: i.view(-1, 3, s, s + 1), "it stopped with RuntimeError"),
    ],
)
def test_cut(answer, message, expect):
    expect(message, exercise.check_cut, answer)


def join(tokens, patch, pixel, pattern="(r k) (y x) (c p q) -> c (r y p) (k x q)"):
    return rearrange(tokens, pattern, r=round(len(tokens) ** 0.5), y=patch // pixel, p=pixel, q=pixel)


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("(r k) (y x) (c p q) -> c (r y p) (k x q)", "✓"),
        ("(r k) (y x) (c q p) -> c (r y p) (k x q)", "inside every pixel token"),
        ("(k r) (y x) (c p q) -> c (r y p) (k x q)", "of patches are swapped"),
        ("(r k) (y x) (p q c) -> c (r y p) (k x q)", "color axis is taken to be last"),
        ("(r k) (x y) (c p q) -> c (r y p) (k x q)", "of pixel tokens are swapped"),
        ("(r k) (y x) (c p q) -> c (y r p) (k x q)", "along the height"),
        ("(r k) (y x) (c p q) -> c (y r p) (x k q)", "✗ the shape is right"),
    ],
)
def test_join(pattern, message, expect):
    expect(message, exercise.check_join, lambda *arguments: join(*arguments, pattern))


def join_by_slices(tokens, patch, pixel):
    across, inside = round(len(tokens) ** 0.5), patch // pixel
    image = torch.zeros(tokens.shape[-1] // pixel**2, across * patch, across * patch)
    for p, pixels in enumerate(tokens):
        for t, values in enumerate(pixels):
            top, left = p // across * patch + t // inside * pixel, p % across * patch + t % inside * pixel
            image[:, top : top + pixel, left : left + pixel] = values.view(-1, pixel, pixel)
    return image


def test_join_by_slices(expect):
    expect("✓", exercise.check_join, join_by_slices)


@pytest.mark.parametrize("fixed", [{"r": 4}, {"y": 4}, {"p": 2, "q": 2}, {"r": 4, "y": 4, "p": 2, "q": 2}])
def test_join_is_asked_for_more_than_one_size(fixed):
    def answer(tokens, patch, pixel):
        sizes = {"r": round(len(tokens) ** 0.5), "y": patch // pixel, "p": pixel, "q": pixel} | fixed
        return rearrange(tokens, "(r k) (y x) (c p q) -> c (r y p) (k x q)", **sizes)

    assert not exercise.check_join(answer).right


@pytest.mark.parametrize(
    ("answers", "message"),
    [((12, 16, 48), "✓"), ((7, 16, 48), "multiply"), ((12, 4, 48), "rows and columns"), ((12, 16, 16), "three colors"),
     ((12, 192, 48), "in all patches"), ((192, 16, 48), "all pixel tokens"), ((12, 16, 12), "for 2×2"),
     ((12.0, torch.tensor(16), np.int64(48)), "✓"), (("12", 16, 48), "2 of 3 right; `patch_count`: it is str"),
     ((..., 16, 48), "not written yet")],
)  # fmt: skip
def test_sizes(answers, message):
    assert message in repr(exercise.check_sizes(*answers))


def test_symmetric():
    image = torch.rand(3, 32, 32)
    assert "256 pixel tokens" in repr(exercise.check_symmetric(image))
    assert "Tensor of shape (32, 32); a tensor of 3×32×32" in repr(exercise.check_symmetric(image[0]))
    assert "it is int 5" in repr(exercise.check_symmetric(5))
    assert "not written" in repr(exercise.check_symmetric(...))
    image[:, 1::2, 0::2] = image[:, 0::2, 1::2]
    for right in (image, image.double(), image.numpy(), image.tolist(), image.to_sparse(), (255 * image).byte()):
        assert exercise.check_symmetric(right).right
    assert not exercise.check_symmetric(image * torch.nan).right
    assert "on the device meta" in repr(exercise.check_symmetric(image.to("meta")))
    image[:, :2, :2] = 0.5
    assert "have a single color" in repr(exercise.check_symmetric(image))
