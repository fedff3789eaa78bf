"""The checks of 03_outer_attention notice wrong answers and explain them."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from titn_lib import create_model
from titn_lib.course import ex03_outer_attention as exercise
from titn_lib.models.titn import TITN, PixelToPatch, TITNConfig


def by_library(inner, outer, scale, shift, weight, bias):
    """The library's own projection, with these weights."""
    pixels, width = inner.shape[1:]
    side = round(pixels**0.5)
    if side**2 != pixels:  # the library's patches are square
        return by_loops(inner, outer, scale, shift, weight, bias)
    config = TITNConfig(
        patch_size=2 * side, image_size=(2 * side,) * 2, inner_width=width, inner_heads=1, outer_width=len(bias)
    )
    projection = PixelToPatch(config, "pixel", bias=True)
    projection.load_state_dict({"norm.weight": scale, "norm.bias": shift, "linear.weight": weight, "linear.bias": bias})
    return outer + F.pad(projection(inner[None])[0], (0, 0, 1, 1))


def by_loops(inner, outer, scale, shift, weight, bias):
    rows = [outer[0]]
    for patch, token in zip(inner, outer[1:-1], strict=True):
        flat = torch.cat([F.layer_norm(pixel, pixel.shape, scale, shift) for pixel in patch])
        rows.append(token + weight @ flat + bias)
    return torch.stack([*rows, outer[-1]])


def variant(first=1, axes=1, norm=True, affine=True, swap=False, replace=False, transpose=False, biased=True):
    """A projection with one thing changed."""

    def answer(inner, outer, scale, shift, weight, bias):
        normed = F.layer_norm(inner, inner.shape[-axes:]) if norm else inner
        normed = normed * scale + shift if affine else normed
        flat = (normed.transpose(1, 2) if swap else normed).flatten(1)
        update = flat @ (weight if transpose else weight.T) + (bias if biased else 0)
        outer = outer.clone()
        rows = slice(first, first + len(update))
        outer[rows] = update[: len(outer) - first] + (0 if replace else outer[rows])
        return outer

    return answer


def update_for_all(inner, outer, *weights):
    return outer + exercise.project(F.pad(inner, (0, 0, 0, 0, 1, 1)), *weights)


def bias_for_all(inner, outer, *weights):
    return variant(biased=False)(inner, outer, *weights) + weights[-1]


def sample(inner, outer, *weights):
    scaled = (inner - inner.mean(-1, keepdim=True)) / inner.std(-1, keepdim=True)
    return variant(norm=False)(scaled, outer, *weights)


def another_eps(eps):
    def answer(inner, outer, *weights):
        deviation = (inner.var(-1, keepdim=True, correction=0) + eps).sqrt()
        return variant(norm=False)((inner - inner.mean(-1, keepdim=True)) / deviation, outer, *weights)

    return answer


def in_place(inner, outer, scale, shift, weight, bias, wrong=0):
    outer[1:-1] += F.layer_norm(inner, inner.shape[-1:], scale, shift).flatten(1) @ weight.T + bias + wrong
    return outer


def by_rms(inner, outer, *weights):
    return variant(norm=False)(inner / (inner**2).mean(-1, keepdim=True).sqrt(), outer, *weights)


def by_variance(inner, outer, *weights):
    centered = inner - inner.mean(-1, keepdim=True)
    return variant(norm=False)(centered / (centered**2).mean(-1, keepdim=True), outer, *weights)


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (in_place, "✗ the values are right, but the caller's own tokens change"),
        (lambda *a: in_place(*a, wrong=9), "the values are off by up to 9"),
        (by_rms, "RMSNorm"),
        (by_variance, "divided by the variance"),
        (by_library, "✓"),
        (another_eps(0), "✓"),
        (another_eps(1e-6), "✓"),
        (by_loops, "✓"),
        (variant(), "✓"),
        (variant(first=0), "begin at row 1"),
        (variant(first=2), "from row 2 on"),
        (variant(axes=2), "over the whole patch"),
        (variant(norm=False, affine=False), "LayerNorm is left out"),
        (variant(affine=False), "scale and shift are left out"),
        (sample, "n − 1"),
        (variant(swap=True), "feature by feature"),
        (variant(replace=True), "replaced"),
        (variant(transpose=True), "not transposed"),
        (variant(biased=False), "the bias is left out"),
        (update_for_all, "get an update"),
        (bias_for_all, "get the bias"),
        (lambda inner, outer, *_: outer, "nothing is added"),
        (lambda inner, outer, *weights: outer[1:-1], "the shape is"),
        (lambda inner, outer, *weights: outer * torch.nan, "not a number (nan)"),
        (lambda inner, *_: inner @ inner, "it stopped with RuntimeError"),
        (lambda *_: ..., "not written yet"),
    ],
)
def test_projection(answer, message, expect):
    expect(message, exercise.check_projection, answer)


def by_pieces(outer, first, second):
    both = [F.linear(F.layer_norm(token, token.shape[-1:], head[0].weight, head[0].bias), head[1].weight, head[1].bias)
            for token, head in ((outer[:, :17].sum(1) / 17, first), (outer[:, 17], second))]  # fmt: skip
    return torch.stack(both).mean(0)


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (by_pieces, "✓"),
        (lambda z, a, b: 0.5 * a(z[:, :-1].mean(1)) + 0.5 * b(z[:, -1]), "✓"),
        (lambda z, a, b: (a(z[:, :-1].sum(1)) + b(z[:, -1])) / 2, "✓"),  # LayerNorm takes the factor of 17 away
        (lambda z, a, b: (a(z[:, 0]) + b(z[:, -1])) / 2, "class token alone"),
        (lambda z, a, b: (a(z.mean(1)) + b(z[:, -1])) / 2, "includes the distillation token"),
        (lambda z, a, b: (a(z[:, 1:-1].mean(1)) + b(z[:, -1])) / 2, "leaves the class token out"),
        (lambda z, a, b: (a(z[:, :-1]).mean(1) + b(z[:, -1])) / 2, "before the mean"),
        (lambda z, a, b: a(z[:, :-1].mean(1)) + b(z[:, -1]), "added and not averaged"),
        (lambda z, a, b: (b(z[:, :-1].mean(1)) + a(z[:, -1])) / 2, "heads are swapped"),
        (lambda z, a, b: a(z[:, :-1].mean(1)), "class head is used alone"),
        (lambda z, a, b: b(z[:, -1]), "distillation head is used alone"),
        (lambda z, a, b: a(z), "the shape is"),
        (lambda z, a, b: (a(z[:, :-1].mean(1)), b(z[:, -1])), "✗ the shape is (2, 3, 7)"),
        (lambda z, a, b: None, "it returns None"),
    ],
)
def test_heads(answer, message, expect):
    expect(message, exercise.check_heads, answer)


def test_sizes_are_the_librarys():
    config = TITNConfig(
        image_size=(48, 64), patch_size=16, pixel_size=4, inner_width=20, inner_heads=4, outer_width=384, depth=1
    )
    projection = TITN(config).blocks[0].projection
    parameters = sum(weight.numel() for weight in projection.parameters())
    assert exercise.check_sizes(config.num_tokens, projection.linear.in_features, parameters).right


@pytest.mark.parametrize(
    ("answers", "message"),
    [
        ((14, 320, 123_304), "✓"),
        ((torch.tensor(3 * 4 + 2), 320.0, 320 * 384 + 384 + 40), "✓"),
        ((12, 320, 123_304), "stand for no patch"),
        ((13, 320, 123_304), "missing"),
        ((14, 16, 123_304), "each has 20 features"),
        ((14, 384, 123_304), "output features"),
        ((14, 768, 123_304), "a width of their own"),
        ((14, 320, 122_880), "are missing"),
        ((14, 320, 123_264), "LayerNorm is missing"),
        ((14, 320, 123_904), "not over the whole patch"),
        ((14, 320, 5), "too small"),
        ((..., ..., ...), "not written yet"),
        ((14, None, 5), "not written yet"),
    ],
)
def test_sizes(answers, message):
    assert message in repr(exercise.check_sizes(*answers))


def zero(what, blocks=slice(None)):
    def change(model):
        for block in model.blocks[blocks]:
            for name, weight in block.named_parameters():
                if what in name:
                    weight.zero_()

    return change


def zero_norms(model):
    for block in model.blocks:
        block.projection.norm.weight.zero_()
    return model


def spoil(model):
    for block in model.blocks:
        block.projection.linear.weight.fill_(torch.nan)


def remove(model):
    for block in model.blocks:
        block.projection = nn.Identity()


def no_heads(model):
    model.heads.class_head[1].weight.zero_()
    model.heads.distillation_head[1].weight.zero_()


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (zero("projection.linear.weight"), "✓"),
        (zero("projection"), "✓"),
        (zero_norms, "✓"),
        (zero("projection.linear.weight", slice(2)), "blocks [3, 4, 5, 6, 7, 8, 9, 10, 11, 12] still depend"),
        (zero("projection.linear.bias"), "blocks [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12] still depend"),
        (no_heads, "heads.class_head.1.weight, and 1 more: changed"),
        (zero("inner"), "blocks.0.inner"),
        (spoil, "no longer finite"),
        (remove, "it has other modules than before"),
        (lambda model: ..., "no weight has changed"),
        (lambda model: create_model("titn_paper", depth=1), "other modules"),
        (lambda model: model.no_such_part, "it stopped with AttributeError"),
    ],
)
def test_image_independent(answer, message, expect):
    expect(message, exercise.check_image_independent, answer, slow=True)
