"""CMT against a slow reference of its equations, and its published size."""

import pytest
import torch

from titn_lib import TITNError, count_macs, count_parameters, create_model

from . import contract
from .reference import (
    batch_norm,
    check_decay,
    check_equal,
    convolution,
    depthwise,
    gelu,
    layer_norm,
    linear,
    scramble,
    silu,
    softmax_attention,
)


def test_sizes():
    """The paper says 4.0 G. MindCV counts 26.09 M parameters in its port of the authors' code: with the running
    statistics of the batch norms, without the bias tables."""
    small = create_model("cmt_s")
    statistics = sum(buffer.numel() for name, buffer in small.named_buffers() if "running" in name)
    tables = 1 * 56**2 * 7**2 + 2 * 28**2 * 7**2 + 4 * 14**2 * 7**2 + 8 * 7**2 * 7**2
    assert (count_parameters(small) + statistics - tables) / 1e6 == pytest.approx(26.09, abs=0.005)
    assert count_macs(small) / 1e9 == pytest.approx(4.0, abs=0.05)
    assert count_parameters(create_model("cmt_nano")) == 976_794
    assert count_macs(create_model("cmt_nano")) == 55_437_824


def test_each_stage_has_one_position_bias_of_the_size_of_its_scores():
    model = create_model("cmt_nano", image_size=(32, 64))
    assert [tuple(table.shape) for table in model.biases] == [(3, 512, 32), (6, 128, 32), (8, 32, 32)]
    assert 0.9 < torch.cat([table.flatten() for table in model.biases]).std() < 1.1


# --- the reference


def channels_last(x):
    return x.movedim(1, -1)


def channels_first(x):
    return x.movedim(-1, 1)


def reference_attention(weights, name, x, bias, heads, k):
    """Softmax(q·k / √d + bias) v of one image's map."""
    _, width, rows, columns = x.shape
    small = x
    if k > 1:
        small = torch.zeros(1, width, rows // k, columns // k, dtype=x.dtype)
        for r in range(rows // k):
            for c in range(columns // k):
                window = x[0, :, r * k : (r + 1) * k, c * k : (c + 1) * k]
                small[0, :, r, c] = (window * weights[f"{name}.shrink.0.weight"][:, 0]).sum(dim=(1, 2))
        small = batch_norm(weights, f"{name}.shrink.1", small + weights[f"{name}.shrink.0.bias"][:, None, None])
    query = convolution(weights, f"{name}.query", x)[0].flatten(1).T
    key, value = convolution(weights, f"{name}.key_value", small)[0].flatten(1).T.chunk(2, dim=1)
    d = width // heads
    mixed = [
        softmax_attention(*(part[:, h * d : (h + 1) * d] for part in (query, key, value)), bias[h])
        for h in range(heads)
    ]
    mixed = torch.cat(mixed, dim=1).T.reshape(x.shape)
    return convolution(weights, f"{name}.output", mixed)


def reference_block(weights, name, x, bias, heads, k):
    x = x + depthwise(weights, f"{name}.local.0", x, padding=1)
    normed = channels_first(layer_norm(weights, f"{name}.norm", channels_last(x), eps=1e-6))
    x = x + reference_attention(weights, name, normed, bias, heads, k)
    y = channels_first(layer_norm(weights, f"{name}.feed_forward.0", channels_last(x), eps=1e-6))
    y = batch_norm(weights, f"{name}.feed_forward.3", gelu(convolution(weights, f"{name}.feed_forward.1", y)))
    y = gelu(y + depthwise(weights, f"{name}.feed_forward.4.0", y, padding=1))
    y = convolution(weights, f"{name}.feed_forward.7", batch_norm(weights, f"{name}.feed_forward.6", y))
    return x + batch_norm(weights, f"{name}.feed_forward.8", y)


def reference_cmt(weights, x, stem_stride, stages):
    for step in range(3):
        x = convolution(weights, f"stem.{3 * step}", x, stride=1 if step else stem_stride, padding=1)
        x = batch_norm(weights, f"stem.{3 * step + 2}", gelu(x))
    for stage, (_, depth, heads, k) in enumerate(stages):
        x = convolution(weights, f"stages.{stage}.0", x, stride=2)
        x = channels_first(layer_norm(weights, f"stages.{stage}.1", channels_last(x)))
        for block in range(depth):
            x = reference_block(weights, f"stages.{stage}.{block + 2}", x, weights[f"biases.{stage}"], heads, k)
    x = silu(batch_norm(weights, "widen.1", convolution(weights, "widen.0", x)))
    return linear(weights, "head", x.mean(dim=(2, 3)))


@pytest.mark.parametrize("stem_stride", [1, 2])
def test_cmt_equals_the_equations(stem_stride):
    stages = ((6, 1, 1, 4), (8, 2, 2, 2), (12, 1, 3, 1))
    size = (8 * stem_stride, 16 * stem_stride)
    settings = {"num_classes": 5, "image_size": size, "stem_width": 4, "stem_stride": stem_stride, "stages": stages}
    model = scramble(create_model("cmt_nano", ratio=1.5, head_width=7, **settings))
    images = torch.randn(2, 3, *size, dtype=torch.float64)
    check_equal(model, images, lambda weights, x: reference_cmt(weights, x, stem_stride, stages))


def test_invalid_settings():
    with pytest.raises(TITNError, match=r"cmt_nano needs an image_size that 8 divides, not \(28, 32\)"):
        create_model("cmt_nano", image_size=(28, 32))
    with pytest.raises(TITNError, match=r"an image_size that 64 divides, not \(32, 32\)"):  # no position left for a key
        create_model("cmt_nano", stages=((48, 1, 1, 1), (48, 1, 1, 16)))
    with pytest.raises(TITNError, match="a width of 50 can't be divided among 3 heads"):
        create_model("cmt_nano", stages=((50, 1, 3, 1),))


def test_shapes_gradients_and_files(tmp_path):
    contract.check_shapes("cmt_nano")
    contract.check_gradients("cmt_nano")
    contract.check_file("cmt_nano", tmp_path)
    check_decay(create_model("cmt_nano"))


def test_learns():
    contract.check_learns("cmt_nano", bound=0.3, steps=12)
