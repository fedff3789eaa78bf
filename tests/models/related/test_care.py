"""CARE against a slow reference of its equations, its published size, and the cost of linear attention."""

import pytest
import torch

from titn_lib import TITNError, count_macs, count_parameters, create_model

from . import contract
from .reference import batch_norm, check_decay, check_equal, convolution, depthwise, gelu, layer_norm, linear, scramble


def test_sizes():
    """Published: 7.3 M parameters with the second head (LayerNorm and Linear of 1024 numbers), 0.7 G."""
    small = create_model("care_s0")
    assert (count_parameters(small) + 2 * 1024 + 1025 * 1000) / 1e6 == pytest.approx(7.3, abs=0.05)
    assert count_macs(small) / 1e9 == pytest.approx(0.7, abs=0.05)
    assert count_parameters(create_model("care_nano")) == 945_686
    assert count_macs(create_model("care_nano")) == 54_943_744


def test_cost_is_linear_in_the_number_of_positions():
    """Four times the positions, four times the MACs, except for the last Linear (512 × 10)."""
    once, four = (count_macs(create_model("care_nano", image_size=(side, side))) for side in (32, 64))
    assert four - 5120 == 4 * (once - 5120)


# --- the reference: explicit weights for every pair of positions, in float64


def phi(x):
    return torch.where(x > 0, x + 1, torch.exp(x))


def reference_attention(weights, name, a, heads):
    """Linear attention, position by position: Σⱼ φ(qᵢ)·φ(kⱼ) vⱼ / Σⱼ (φ(qᵢ)·φ(kⱼ) + 1e-6)."""
    part, rows, columns = a.shape[1:]
    query, key = convolution(weights, f"{name}.query_key", a)[0].flatten(1).split(part)
    value, mixed = a[0].flatten(1), torch.zeros(part, rows * columns, dtype=a.dtype)
    for head in range(heads):
        mine = slice(head * part // heads, (head + 1) * part // heads)
        for i in range(rows * columns):
            shares = [phi(query[mine, i]) @ phi(key[mine, j]) for j in range(rows * columns)]
            total = sum(share + 1e-6 for share in shares)
            for j, share in enumerate(shares):
                mixed[mine, i] += share / total * value[mine, j]
    return mixed.reshape(a.shape)


def reference_widening(weights, name, x):
    x = gelu(convolution(weights, f"{name}.widen.1", batch_norm(weights, f"{name}.widen.0", x)))
    return depthwise(weights, f"{name}.widen.3", x, padding=1)


def reference_interaction(weights, name, x):
    return x + convolution(weights, f"{name}.narrow", reference_widening(weights, name, x))


def reference_block(weights, name, x, heads, last):
    g = x.shape[1] // 4
    memory, a, b, c = x[:, :g], x[:, g : 2 * g], x[:, 2 * g : 3 * g], x[:, 3 * g :]
    if heads:
        far = reference_attention(weights, f"{name}.far", a, heads)
    else:
        far = depthwise(weights, f"{name}.far", a, padding=(5, 0))
        far = far + depthwise(weights, f"{name}.across", a, padding=(0, 5))
    near, around = depthwise(weights, f"{name}.near", b, 1), depthwise(weights, f"{name}.around", c, 3)
    mixed = reference_interaction(weights, f"{name}.inner", torch.cat([far, near, around], dim=1))
    joined = torch.cat([memory, mixed], dim=1)
    if last:
        return reference_widening(weights, f"{name}.outer", joined)
    return x + weights[f"{name}.scale"] * reference_interaction(weights, f"{name}.outer", joined)


def reference_care(weights, x, patch_size, stages):
    layer = 0
    for stage, (_, depth, heads, _, _) in enumerate(stages):
        if stage:
            x = convolution(weights, f"layers.{layer + 1}", batch_norm(weights, f"layers.{layer}", x), stride=2)
        else:
            x = batch_norm(weights, "layers.1", convolution(weights, "layers.0", x, stride=patch_size))
        layer += 2
        for index in range(depth):
            last = stage == len(stages) - 1 and index == depth - 1
            x = reference_block(weights, f"layers.{layer}", x, heads, last)
            layer += 1
    return linear(weights, "head.2", layer_norm(weights, "head.1", gelu(x.mean(dim=(2, 3))), eps=1e-6))


@pytest.mark.parametrize("patch_size", [1, 2])
def test_care_equals_the_equations(patch_size):
    stages = ((3, 2, 0, 2, 3), (4, 2, 1, 1, 2), (6, 2, 3, 2, 2))
    size = (8 * patch_size, 12 * patch_size)
    settings = {"num_classes": 5, "image_size": size, "patch_size": patch_size, "stages": stages}
    model = scramble(create_model("care_nano", **settings))
    images = torch.randn(2, 3, *size, dtype=torch.float64)
    check_equal(model, images, lambda weights, x: reference_care(weights, x, patch_size, stages))


def test_an_untrained_block_is_nearly_the_identity():
    """γ starts at 1e-6; the last block of all has none."""
    model = create_model("care_nano").eval()
    x = torch.randn(2, 48, 16, 16)
    change = (model.layers[2](x) - x).abs().max()
    assert 0 < change < 1e-4
    assert [block.scale is None for block in model.layers[-2:]] == [False, True]


def test_invalid_settings():
    with pytest.raises(TITNError, match=r"care_nano needs an image_size that 8 divides, not \(30, 32\)"):
        create_model("care_nano", image_size=(30, 32))
    with pytest.raises(TITNError, match="25 channels can't be divided among 2 heads"):
        create_model("care_nano", stages=((25, 1, 2, 2, 2),))


def test_shapes_gradients_and_files(tmp_path):
    contract.check_shapes("care_nano")
    contract.check_gradients("care_nano")
    contract.check_file("care_nano", tmp_path)
    check_decay(create_model("care_nano"))


def test_learns():
    contract.check_learns("care_nano", bound=0.3, steps=12)
