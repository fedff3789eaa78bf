"""TITN: published sizes, embeddings, stochastic depth, settings and error messages."""

from functools import partial

import pytest
import torch
from torch.nn import functional as F

from titn_lib import TITNError, count_macs, count_parameters, create_model
from titn_lib.models.layers import DropPath, TransformerLayer
from titn_lib.training.config import Recipe


@pytest.mark.parametrize(
    ("name", "settings", "parameters", "macs"),
    [
        ("titn_paper", {"num_classes": 100}, 5_856_020, 110.7e6),
        ("titn_paper", {"num_classes": 10}, 5_821_280, 110.7e6),
        ("titn_paper", {"num_classes": 10, "in_channels": 1}, 5_821_184, None),
        ("tnt_paper", {"num_classes": 100}, 5_832_496, 105.2e6),
        ("tnt_paper", {"num_classes": 10}, 5_815_126, 105.2e6),
        ("titn_paper_224", {"num_classes": 100}, 19_902_992, 4.27e9),
    ],
)
def test_published_sizes(name, settings, parameters, macs):
    model = create_model(name, **settings)
    assert count_parameters(model) == parameters
    if macs:
        assert count_macs(model) == pytest.approx(macs, rel=0.01)


def test_one_block_has_the_published_size():
    assert count_parameters(create_model("titn_paper").blocks[0]) == 483_828


def test_the_published_tnt_pools_its_class_token_and_titn_the_mean():
    assert create_model("tnt_paper").config.pooling == "class"
    assert create_model("titn_paper").config.pooling == "mean"


@pytest.mark.parametrize("name", ["titn_paper", "titn_nano", "tnt_paper", "vit_paper", "distilled_vit_paper"])
def test_logits_and_attention(name):
    model = create_model(name, num_classes=5, in_channels=2, image_size=(16, 32), depth=2)
    images = torch.randn(3, 2, 16, 32)
    config = model.config
    for training in (True, False):
        logits, attention = model.train(training)(images, return_attention=True)
        plain = model(images)
        if training and config.distillation_token:
            assert [tuple(part.shape) for part in logits] == [(3, 5), (3, 5)]
            torch.testing.assert_close(logits, plain)
        else:
            assert logits.shape == (3, 5)
            torch.testing.assert_close(logits, plain)
        assert len(attention.outer) == 2
        assert attention.outer[0].shape[-2:] == (config.num_tokens, config.num_tokens)
        for rows in [*attention.inner, *attention.outer]:
            torch.testing.assert_close(rows.sum(-1), torch.ones(rows.shape[:-1]))
    if name.startswith("t"):
        pixels = config.num_pixel_tokens
        assert attention.inner[0].shape == (3, config.num_patches, config.inner_heads, pixels, pixels)


def test_only_the_inner_stream_depends_on_the_image():
    """The published outer tokens are learned tables: with zero projections, all images have the same logits."""
    model = create_model("titn_paper", depth=2).eval()
    images = torch.randn(2, 3, 32, 32)
    assert (model(images)[0] - model(images)[1]).abs().max() > 1e-3
    for block in model.blocks:
        torch.nn.init.zeros_(block.projection.linear.weight)
    torch.testing.assert_close(model(images)[0], model(images)[1])


@pytest.mark.parametrize("name", ["titn_nano", "vit_paper"])
def test_initial_weights_have_the_documented_standard_deviation(name):
    def tables(model):
        return [p for name, p in model.named_parameters() if name.endswith(("pos_embed", "cls_token", "dist_token"))]

    truncated, normal = (create_model(name, init=init, depth=2) for init in ("trunc_normal", "normal"))
    linears = [module for module in truncated.modules() if isinstance(module, torch.nn.Linear)]
    for values in [*tables(truncated), *(module.weight for module in linears)]:
        assert values.std().item() == pytest.approx(0.02, rel=0.25)
        assert values.abs().max() < 0.12  # cut at ±2, a hundred standard deviations away: never
    assert all((module.bias == 0).all() for module in linears if module.bias is not None)
    assert all(table.std().item() == pytest.approx(1, rel=0.15) for table in tables(normal))


def test_the_stems_receptive_field_is_centered_on_its_token():
    """Three 3×3 convolutions, the first with stride 2: a token's receptive field is 11×11 pixels, around its own."""
    embedding = create_model("titn_pico", image_size=(32, 24), in_channels=1).pixel_embedding.eval()
    images = torch.randn(1, 1, 32, 24)
    before = embedding(images)
    for y, x in [(0, 0), (7, 9), (31, 23), (14, 8)]:
        changed_image = images.clone()
        changed_image[0, 0, y, x] += 1
        changed = (embedding(changed_image) != before).any(dim=-1)[0]
        changed = changed.reshape(4, 3, 4, 4)  # patch row, column, pixel y, x
        grid = changed.permute(0, 2, 1, 3).reshape(16, 12)
        receptive = [[abs(2 * row - y) <= 5 and abs(2 * column - x) <= 5 for column in range(12)] for row in range(16)]
        assert torch.equal(grid, torch.tensor(receptive)), (y, x)


def test_stochastic_depth_drops_whole_images_and_keeps_the_mean():
    torch.manual_seed(0)
    pixels = DropPath(0.5)(torch.ones(50, 50, 4, 2))
    assert all(len(image.unique()) == 1 for image in pixels), "an image's patches are dropped together"
    assert set(pixels.flatten().tolist()) == {0, 2}
    drop, ones = DropPath(0.25), torch.ones(4000, 3, 5)
    dropped = drop(ones)
    kept = dropped[:, 0, 0] > 0
    assert torch.equal(dropped, kept[:, None, None] * torch.tensor(1 / 0.75).expand_as(ones))
    assert abs(kept.float().mean().item() - 0.75) < 0.03  # four standard errors
    assert torch.equal(drop.eval()(ones), ones)


def test_stochastic_depth_grows_and_touches_the_outer_stream_only():
    model = create_model("titn_nano", depth=3, drop_path=0.2)
    drops = [module for module in model.modules() if isinstance(module, DropPath)]
    assert [block.outer.drop_path for block in model.blocks[1:]] == drops
    assert [drop.keep.item() for drop in drops] == pytest.approx([0.9, 0.8])

    plain = create_model("titn_nano", depth=3)
    plain.load_state_dict(model.state_dict())
    images = torch.randn(64, 3, 32, 32)
    assert torch.equal(model.eval()(images), plain.eval()(images))
    torch.manual_seed(0)
    with torch.no_grad():
        blocks, plain_blocks = (
            model.train().forward_features(images).hidden_states,
            plain.train().forward_features(images).hidden_states,
        )
    assert torch.equal(blocks[0], plain_blocks[0])
    changed = (blocks[1] != plain_blocks[1]).any(dim=(1, 2)).float().mean()
    assert changed == 1  # kept branches are scaled up, the others are dropped


def test_stochastic_depth_drops_attention_and_mlp_independently():
    layer = TransformerLayer(8, 2, drop_path=0.5)
    for part, update in ((layer.attn.proj, 1.0), (layer.mlp[2], 10.0)):
        torch.nn.init.zeros_(part.weight)
        torch.nn.init.constant_(part.bias, update)
    updated, _ = layer(torch.zeros(400, 1, 8))
    assert set(updated[:, 0, 0].tolist()) == {0.0, 2.0, 20.0, 22.0}  # twice what each adds, or nothing
    assert (updated == updated[:, :, :1]).all()


def test_conv_embeddings_differ_at_patch_borders_only():
    inside = create_model("titn_nano", pixel_embedding="conv", patch_size=16).pixel_embedding
    across = create_model("titn_nano", pixel_embedding="conv_across", patch_size=16).pixel_embedding
    across.load_state_dict(inside.state_dict())
    images = torch.randn(1, 3, 32, 32)
    a, b = (embed(images)[0, 0].reshape(8, 8, -1) for embed in (inside, across))  # the first patch, as a grid of pixels
    torch.testing.assert_close(a[:6, :6], b[:6, :6])
    assert (a[7] - b[7]).abs().max() > 1e-3
    assert F.mse_loss(a[:, 7], b[:, 7]) > 1e-6


@pytest.mark.parametrize("name", ["titn_nano", "tnt_paper", "revit_nano"])
def test_local_perception_convolves_the_patch_grid(name):
    """One block, against its pieces by hand: the pixel update, then nine weights per channel, then the outer layer."""
    model = create_model(name, image_size=(16, 24), patch_size=8, depth=1, local_perception=True).double().eval()
    local, calls = model.blocks[0].local, []
    local.register_forward_hook(lambda _, given, out: calls.append((given[0], out)))
    images = torch.randn(2, 3, 16, 24, dtype=torch.float64)
    (after,) = model.forward_features(images).hidden_states
    ((before, convolved),) = calls
    kernel, bias = local.convolution.weight, local.convolution.bias
    for y, x in [(0, 0), (0, 1), (1, 2)]:
        expected = before[:, 1 + 3 * y + x] + bias
        for row in range(max(y - 1, 0), min(y + 2, 2)):
            for column in range(max(x - 1, 0), min(x + 2, 3)):
                expected = expected + kernel[:, 0, row - y + 1, column - x + 1] * before[:, 1 + 3 * row + column]
        torch.testing.assert_close(convolved[:, 1 + 3 * y + x], expected)
    assert torch.equal(convolved[:, 0], before[:, 0])
    assert torch.equal(convolved[:, 7:], before[:, 7:])

    plain = create_model(name, image_size=(16, 24), patch_size=8, depth=1).double().eval()
    plain.load_state_dict({name: value for name, value in model.state_dict().items() if ".local." not in name})
    assert not torch.allclose(after, plain.forward_features(images).hidden_states[0])
    for parameter in local.parameters():
        torch.nn.init.zeros_(parameter)
    assert torch.equal(model.forward_features(images).hidden_states[0], plain.forward_features(images).hidden_states[0])


@pytest.mark.parametrize("name", ["titn_nano", "tnt_paper", "revit_nano"])
def test_without_inner_layers_pixel_tokens_stay_as_they_are(name):
    """As in the whole model when both residual branches of its inner layers add nothing."""
    model, images = create_model(name, depth=2).double().eval(), torch.randn(2, 3, 32, 32, dtype=torch.float64)
    without = create_model(name, depth=2, inner_layers=False).double().eval()
    without.load_state_dict({key: value for key, value in model.state_dict().items() if ".inner." not in key})
    assert not torch.allclose(model(images), without(images))
    for block in model.blocks:
        for last in (block.inner.attn.proj, block.inner.mlp[-1]):
            torch.nn.init.zeros_(last.weight)
            torch.nn.init.zeros_(last.bias)
    logits, attention = without(images, return_attention=True)
    torch.testing.assert_close(logits, model(images))
    assert (len(attention.inner), len(attention.outer)) == (0, 2)
    inner = sum(value.numel() for block in model.blocks for value in block.inner.parameters())
    assert count_parameters(without) == count_parameters(model) - inner


def test_the_mlps_convolution_is_local_perception_of_its_hidden_layer():
    settings = {"image_size": (16, 24), "patch_size": 8, "depth": 1}
    model = create_model("titn_nano", mlp_convolution=True, **settings).double().eval()
    layer = model.blocks[0].outer
    first, gelu, local, last = layer.mlp
    tokens = torch.randn(2, 8, model.token_width, dtype=torch.float64)  # class, 2×3 patches, distillation
    hidden = gelu(first(layer.mlp_norm(tokens)))
    around = F.conv2d(
        hidden[:, 1:7].mT.unflatten(-1, (2, 3)), local.convolution.weight, local.convolution.bias,
        padding=1, groups=hidden.shape[-1],
    )  # fmt: skip
    expected = hidden.clone()
    expected[:, 1:7] += around.flatten(2).mT
    torch.testing.assert_close(layer.mlp(layer.mlp_norm(tokens)), last(expected))
    plain = create_model("titn_nano", **settings)
    more = sum(parameter.numel() for parameter in local.parameters())
    assert count_parameters(model) == count_parameters(plain) + more > count_parameters(plain)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"image_size": (30, 32)}, "can't be cut into patches of 8"),
        ({"pixel_size": 3}, "can't be cut into pixel tokens of 3"),
        ({"inner_heads": 5}, "can't be divided among 5 heads"),
        ({"depth": 0}, "depth must be at least 1, not 0"),
        ({"num_classes": 0}, "num_classes must be at least 1, not 0"),
        ({"inner_heads": 0}, "inner_heads must be at least 1, not 0"),
        ({"inner_head_width": 0}, "inner_head_width must be at least 1, not 0"),
        ({"pixel_size": 0}, "pixel_size must be at least 1, not 0"),
        ({"patch_size": -8}, "patch_size must be at least 1, not -8"),
        ({"image_size": (0, 32)}, r"image_size must be a height and a width, .* not \(0, 32\)"),
        ({"mlp_ratio": -1}, "mlp_ratio must be greater than 0, not -1"),
        ({"pixel_embedding": "conv", "pixel_size": 8}, "stride 8 would skip image pixels"),
        ({"drop_path": 1}, "drop_path must be at least 0 and below 1"),
        ({"window": 2}, "unknown setting of titn_paper 'window'"),
    ],
)
def test_invalid_settings(settings, says):
    with pytest.raises(TITNError, match=says):
        create_model("titn_paper", **settings)


@pytest.mark.parametrize(
    ("embedding", "pixel_size"), [("linear", 8), ("conv", 4), ("conv_across", 4), ("stem", 2), ("stem", 4), ("stem", 8)]
)
def test_every_image_pixel_has_a_gradient(embedding, pixel_size):
    settings = {"pixel_embedding": embedding, "pixel_size": pixel_size, "patch_tokens": "from_pixels", "depth": 1}
    model = create_model("titn_paper", image_size=(32, 48), patch_size=16, **settings)
    images = torch.randn(2, 3, 32, 48, requires_grad=True)
    model.eval()(images).sum().backward()
    assert (images.grad != 0).all()


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("setting", "value"),
    [("depth", 2.0), ("outer_head_width", 2.0), ("num_classes", "5"), ("image_size", (64,)), ("image_size", "64")],
)
def test_settings_of_another_type(setting, value):
    with pytest.raises(TITNError, match=r"must be an integer|image_size must be a height and a width"):
        create_model("titn_paper", **{setting: value})


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("make", "setting", "value"),
    [
        (partial(create_model, "titn_nano"), "pixel_embedding", "conv_accross"),
        (partial(create_model, "titn_nano"), "patch_tokens", "from_pixel"),
        (partial(create_model, "revit_nano"), "projection_norm", "patches"),
        (partial(create_model, "revit_nano"), "residuals", "iner"),
        (partial(create_model, "fusion_nano"), "fusion", "gates"),
        (partial(create_model, "vit_paper"), "pooling", "means"),
        (partial(create_model, "mvt_nano"), "init", "trunc_norm"),
        (Recipe, "optimizer", "adam"),
        (Recipe, "precision", "bf16-mix"),
    ],
)
def test_misspelled_values_are_refused(make, setting, value):
    with pytest.raises(TITNError, match=": did you mean '"):
        make(**{setting: value})


@pytest.mark.parametrize("shape", [(2, 3, 28, 28), (2, 1, 32, 32)])
@pytest.mark.parametrize("name", ["titn_nano", "vit_paper", "vgg7_bn"])
def test_images_of_another_size_are_refused(name, shape):
    with pytest.raises(TITNError, match=f"{name} expects batches of 3×32×32 images"):
        create_model(name)(torch.zeros(shape))


def test_a_single_image_and_integers_are_refused():
    model = create_model("titn_nano", depth=1)
    with pytest.raises(TITNError, match=r"not a single one: pass images\[None\]"):
        model.check_images(torch.zeros(3, 32, 32))
    with pytest.raises(TITNError, match="not integers: call"):
        model.check_images(torch.zeros(2, 3, 32, 32, dtype=torch.uint8))
