"""ViTAEv2 against a slow reference of its equations, its published size, and the reach of its windows."""

import pytest
import torch

from titn_lib import TITNError, count_macs, count_parameters, create_model
from titn_lib.models.related.vitae import Attention

from . import contract
from .reference import (
    batch_norm,
    check_decay,
    check_equal,
    convolution,
    gelu,
    layer_norm,
    linear,
    scramble,
    silu,
    softmax_attention,
)


def test_sizes():
    """Published: 19.2 M parameters, 5.7 G; the authors' code has 19,355,688."""
    small = create_model("vitae_v2_s")
    assert count_parameters(small) == 19_355_688
    assert count_parameters(create_model("vitae_v2_s", published_code=False)) == 19_355_688 + 3 * 256 + 3 * 512
    assert count_macs(small) / 1e9 == pytest.approx(5.7, rel=0.02)
    assert count_parameters(create_model("vitae_nano")) == 876_682
    assert count_macs(create_model("vitae_nano")) == 79_694_784


# --- the reference: one image as "row column width", window by window


def reference_attention(weights, name, x, heads, window, skip):
    rows, columns, _ = x.shape
    tall, wide = min(window or rows, rows), min(window or columns, columns)
    width = weights[f"{name}.output.weight"].shape[0]
    result = torch.zeros(rows, columns, width, dtype=x.dtype)
    for top in range(0, rows, tall):
        for left in range(0, columns, wide):
            places = [(r, c) for r in range(top, top + tall) for c in range(left, left + wide)]
            inside = [r < rows and c < columns for r, c in places]
            tokens = [x[p] if there else 0 * x[0, 0] for p, there in zip(places, inside, strict=True)]
            qkv = torch.stack(tokens) @ weights[f"{name}.qkv.weight"].T + weights.get(f"{name}.qkv.bias", 0)
            query, key, value = qkv.split(width, dim=1)
            d = width // heads
            heads_mixed = [
                softmax_attention(*(part[:, h * d : (h + 1) * d] for part in (query, key, value))) for h in range(heads)
            ]
            update = linear(weights, f"{name}.output", torch.cat(heads_mixed, dim=1))
            for place, there, mixed, own in zip(places, inside, update, value, strict=True):
                if there:
                    result[place] = mixed + own if skip else mixed
    return result


def reference_convolutions(weights, name, maps, groups, strides):
    for place, stride in enumerate(strides):
        maps = convolution(weights, f"{name}.{3 * place}", maps, stride=stride, padding=1, groups=groups)
        if place < 2:
            maps = silu(batch_norm(weights, f"{name}.{3 * place + 1}", maps))
    return maps[0].movedim(0, -1)


def reference_mlp(weights, name, x, eps):
    hidden = gelu(linear(weights, f"{name}.mlp.0", layer_norm(weights, f"{name}.mlp_norm", x, eps)))
    return x + linear(weights, f"{name}.mlp.2", hidden)


STRIDES = {1: (1, 1, 1), 2: (2, 1, 1), 4: (2, 2, 1)}
PADDING = {2: {1: 1, 2: 2, 3: 3}, 4: {1: 2, 2: 5, 3: 8, 4: 11}}  # ⌈((kernel − 1)·dilation + 1 − r) / 2⌉


def reference_vitae(weights, maps, stages, published_code):
    cell = 0
    for stage, (_, r, dilations, depth, heads, window) in enumerate(stages):
        name, before = f"cells.{cell}", maps.shape[1]
        scales = [
            gelu(convolution(weights, f"{name}.pyramid.{d - 1}", maps, stride=r, padding=PADDING[r][d], dilation=d))
            for d in range(1, dilations + 1)
        ]
        pyramid = layer_norm(weights, f"{name}.norm", torch.cat(scales, dim=1)[0].movedim(0, -1))
        skip = not (published_code and window)
        assert (f"{name}.attention.qkv.bias" in weights) == bool(window or not published_code)
        y = reference_attention(weights, f"{name}.attention", pyramid, max(heads // 2, 1), window, skip)
        groups = before // 4 if stage else 1
        y = y + reference_convolutions(weights, f"{name}.convolutions", maps, groups, STRIDES[r])
        x = reference_mlp(weights, name, y, eps=1e-5)
        for _ in range(depth):
            cell += 1
            name = f"cells.{cell}"
            groups = x.shape[-1] // 4 if stage else 1
            normed = layer_norm(weights, f"{name}.norm", x, eps=1e-6)
            update = reference_attention(weights, f"{name}.attention", normed, heads, window, skip=False)
            near = reference_convolutions(weights, f"{name}.convolutions", x.movedim(-1, 0)[None], groups, STRIDES[1])
            x = reference_mlp(weights, name, x + update + near, eps=1e-6)
        cell, maps = cell + 1, x.movedim(-1, 0)[None]
    return linear(weights, "head", x.mean(dim=(0, 1)))


@pytest.mark.parametrize("published_code", [False, True])
@pytest.mark.parametrize(
    ("size", "stages"),
    [
        ((16, 24), ((8, 4, 4, 1, 2, 4), (12, 2, 2, 2, 3, 2))),  # the second map, 2×3, is no multiple of its windows
        ((12, 20), ((4, 2, 3, 1, 1, 4), (8, 2, 2, 1, 4, 0))),  # nor is the first, 6×10
    ],
)
def test_vitae_equals_the_equations(size, stages, published_code):
    settings = {"num_classes": 5, "image_size": size, "stages": stages, "published_code": published_code}
    model = scramble(create_model("vitae_nano", **settings))
    images = torch.randn(2, 3, *size, dtype=torch.float64)
    check_equal(model, images, lambda weights, x: reference_vitae(weights, x, stages, published_code))


@pytest.mark.parametrize(("window", "reach"), [(4, {(4, 0), (7, 3)}), (0, {(0, 0), (7, 3), (7, 7)})])
def test_attention_stays_in_its_window(window, reach):
    """Another token at (5, 2) is changed in its window's corners and no further."""
    attention = Attention(6, 6, 2, window)
    x = torch.randn(1, 8, 8, 6)
    other = x.clone()
    other[0, 5, 2] += 1
    changed = (attention(x) - attention(other)).abs().amax(dim=-1)[0] > 1e-6
    assert all(changed[place] for place in reach)
    assert changed.sum() == (window or 8) ** 2


def test_invalid_settings():
    with pytest.raises(TITNError, match=r"vitae_nano needs an image_size that 8 divides, not \(32, 36\)"):
        create_model("vitae_nano", image_size=(32, 36))
    for row in ((30, 2, 2, 1, 2, 0), (32, 2, 2, 1, 3, 0), (32, 3, 2, 1, 2, 0)):
        with pytest.raises(TITNError, match="must be divisible by 4 and by its"):
            create_model("vitae_nano", stages=(row,))


def test_shapes_gradients_and_files(tmp_path):
    contract.check_shapes("vitae_nano")
    contract.check_gradients("vitae_nano")
    contract.check_file("vitae_nano", tmp_path)
    check_decay(create_model("vitae_nano"))


def test_learns():
    contract.check_learns("vitae_nano", bound=0.1, steps=12)
