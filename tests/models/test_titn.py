"""TITN against its published size, slow float64 references of all four published students, and timm's TNT."""

import math
import subprocess
import sys
from functools import partial

import pytest
import timm
import torch
from torch.autograd import forward_ad
from torch.nn import functional as F
from torch.nn.utils import prune

from titn_lib import TITNError, count_macs, count_parameters, create_model
from titn_lib.models.layers import DropPath, TransformerLayer


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


def test_the_published_tnt_reads_its_class_token_and_titn_the_mean():
    assert create_model("tnt_paper").config.pooling == "class"
    assert create_model("titn_paper").config.pooling == "mean"


# --- the reference: loops over images, patches, heads and tokens, in float64, from the equations alone


def norm(weights, name, x):
    mean = sum(x) / len(x)
    variance = sum((v - mean) ** 2 for v in x) / len(x)
    return (x - mean) / (variance + 1e-5) ** 0.5 * weights[f"{name}.weight"] + weights[f"{name}.bias"]


def linear(weights, name, x):
    return weights[f"{name}.weight"] @ x + weights[f"{name}.bias"]


def gelu(x):
    return 0.5 * x * (1 + torch.erf(x / math.sqrt(2)))


def reference_attention(weights, name, tokens, heads, head_width=None):
    """Softmax(q·k / √d) v, one head, one query and one key at a time."""
    normed = [norm(weights, f"{name}_norm", token) for token in tokens]
    query, key, value = zip(*(linear(weights, f"{name}.qkv", token).chunk(3) for token in normed), strict=True)
    width = head_width or len(tokens[0]) // heads
    updates, attention = [], []
    for i in range(len(tokens)):
        mixed = []
        for head in range(heads):
            part = slice(head * width, (head + 1) * width)
            scores = [torch.exp(query[i][part] @ key[j][part] / math.sqrt(width)) for j in range(len(tokens))]
            total = sum(scores)
            attention.append(torch.stack([score / total for score in scores]))
            mixed.append(sum(score / total * value[j][part] for j, score in enumerate(scores)))
        updates.append(linear(weights, f"{name}.output", torch.cat(mixed)))
    maps = torch.stack(attention).unflatten(0, (len(tokens), heads)).transpose(0, 1)
    return [token + update for token, update in zip(tokens, updates, strict=True)], maps


def reference_layer(weights, name, tokens, heads, head_width=None):
    tokens, attention = reference_attention(weights, f"{name}.attention", tokens, heads, head_width)
    for i, token in enumerate(tokens):
        hidden = gelu(linear(weights, f"{name}.mlp.0", norm(weights, f"{name}.mlp_norm", token)))
        tokens[i] = token + linear(weights, f"{name}.mlp.2", hidden)
    return tokens, attention


def head(weights, name, token):
    """LayerNorm → Linear."""
    return linear(weights, f"heads.{name}.1", norm(weights, f"heads.{name}.0", token))


def reference_titn(weights, image, depth, distilled=True, patch=8, pixel=2, head_widths=(3, 24)):
    """One image through the published TITN, or TNT without the distillation: the logits of each head, and both streams'
    attention."""
    channels, height, width = image.shape
    inner = []
    for top in range(0, height, patch):
        for left in range(0, width, patch):
            tokens = []
            for y in range(top, top + patch, pixel):
                for x in range(left, left + patch, pixel):
                    values = [
                        image[c, y + p, x + q] for c in range(channels) for p in range(pixel) for q in range(pixel)
                    ]
                    position = weights["pixel_embedding.positions"][len(tokens)]
                    tokens.append(linear(weights, "pixel_embedding.embed", torch.stack(values)) + position)
            inner.append(tokens)
    tables = [weights[f"outer_tokens.{name}"] for name in ("tokens", "positions")]
    tables += [weights["outer_tokens.distillation"]] if distilled else []
    outer = [sum(table[row] for table in tables) for row in range(1 + len(inner) + distilled)]
    maps = []
    for block in range(depth):
        name = f"blocks.{block}"
        inner_maps = []
        for index, tokens in enumerate(inner):
            inner[index], attention = reference_layer(weights, f"{name}.inner", tokens, 4, head_widths[0])
            inner_maps.append(attention)
            flat = torch.cat([norm(weights, f"{name}.projection.norm", token) for token in inner[index]])
            outer[1 + index] = outer[1 + index] + linear(weights, f"{name}.projection.linear", flat)
        outer, outer_map = reference_layer(weights, f"{name}.outer", outer, 8, head_widths[1])
        maps.append((torch.stack(inner_maps), outer_map))
    if not distilled:
        return [head(weights, "class_head", outer[0])], maps
    mean = sum(outer[:-1]) / (len(outer) - 1)
    return [head(weights, "class_head", mean), head(weights, "distillation_head", outer[-1])], maps


def reference_vit(weights, image, depth, distilled, published=True, patch=8):
    """One image through the published ViT or distilled ViT: the logits of each head, and the attention. Unpublished:
    the textbook's, which reads the class token with one LayerNorm."""
    height, width = image.shape[1:]
    tokens = [weights["special"][0]]
    for top in range(0, height, patch):
        for left in range(0, width, patch):
            values = [
                value for channel in image[:, top : top + patch, left : left + patch] for value in channel.flatten()
            ]
            tokens.append(linear(weights, "embed", torch.stack(values)))
    tokens += [weights["special"][1]] if distilled else []
    tokens = [token + position for token, position in zip(tokens, weights["positions"], strict=True)]
    maps = []
    for block in range(depth):
        tokens, attention = reference_layer(weights, f"blocks.{block}", tokens, heads=8)
        maps.append((None, attention))
    if published:
        tokens = [norm(weights, "heads.pre_pool_norm", token) for token in tokens]
    averaged = tokens[: len(tokens) - distilled]
    logits = [head(weights, "class_head", sum(averaged) / len(averaged) if published else tokens[0])]
    return logits + ([head(weights, "distillation_head", tokens[-1])] if distilled else []), maps


STUDENTS = {
    "titn_paper": reference_titn,
    "tnt_paper": partial(reference_titn, distilled=False),
    "distilled_vit_paper": partial(reference_vit, distilled=True),
    "vit_paper": partial(reference_vit, distilled=False),
}
TEXTBOOK = {"pooling": "class", "pre_pool_norm": False}


def scrambled(name, **settings):
    """Norms start as ones and zeros: give them something to get wrong."""
    model = create_model(name, num_classes=5, **settings).double()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model


def check_equality(model, images, reference):
    """Logits in training and evaluation, and attention."""
    both, attention = model.train()(images, return_attention=True)
    mean, weights = model.eval()(images), model.state_dict()
    for i, image in enumerate(images):
        logits, maps = reference(weights, image)
        trained = [one[i] for one in both] if isinstance(both, tuple) else [both[i]]
        torch.testing.assert_close(trained, logits, atol=1e-9, rtol=0)
        torch.testing.assert_close(mean[i], sum(logits) / len(logits), atol=1e-9, rtol=0)
        for block, (inner, outer) in enumerate(maps):
            torch.testing.assert_close(attention.outer[block][i], outer, atol=1e-9, rtol=0)
            if inner is not None:
                torch.testing.assert_close(attention.inner[block][i], inner, atol=1e-9, rtol=0)


@pytest.mark.parametrize("size", [(32, 32), (16, 24)])
@pytest.mark.parametrize("name", STUDENTS)
def test_the_published_students_equal_their_equations(name, size):
    model = scrambled(name, image_size=size, depth=2)
    images = torch.randn(1 if size == (32, 32) else 2, 3, *size, dtype=torch.float64)
    check_equality(model, images, partial(STUDENTS[name], depth=2))


@pytest.mark.parametrize("name", STUDENTS)
def test_the_published_students_have_the_gradients_of_their_equations(name):
    model = scrambled(name, image_size=(8, 16), depth=2)
    images = torch.randn(2, 3, 8, 16, dtype=torch.float64, requires_grad=True)
    both = model.train()(images)
    logits = torch.stack(both if isinstance(both, tuple) else (both,))  # "head batch classes"
    weigh = torch.randn_like(logits)
    weights = dict(model.named_parameters())
    wanted = [images, *weights.values()]
    got = torch.autograd.grad((logits * weigh).sum(), wanted)
    expected = torch.stack([torch.stack(STUDENTS[name](weights, image, 2)[0]) for image in images], dim=1)
    expected_gradients = torch.autograd.grad((expected * weigh).sum(), wanted)
    for parameter, ours, by_loops in zip(["images", *weights], got, expected_gradients, strict=True):
        scale = max(1.0, by_loops.abs().max().item())
        assert (ours - by_loops).abs().max() <= 1e-9 * scale, parameter


@pytest.mark.parametrize("distilled", [False, True])
def test_the_textbooks_vit_equals_its_equations(distilled):
    model = scrambled("vit_paper", image_size=(16, 24), depth=2, distillation_token=distilled, **TEXTBOOK)
    reference = partial(reference_vit, depth=2, distilled=distilled, published=False)
    check_equality(model, torch.randn(2, 3, 16, 24, dtype=torch.float64), reference)


def test_heads_may_be_narrower_or_wider_than_their_share():
    """As in titn_paper_224, whose tokens of 384 have 8 heads of 24; and inner heads wider than 12 / 4."""
    widths = {"inner_head_width": 5, "outer_head_width": 7}
    model = scrambled("titn_paper", image_size=(16, 24), depth=2, **widths)
    images = torch.randn(1, 3, 16, 24, dtype=torch.float64)
    check_equality(model, images, partial(reference_titn, depth=2, head_widths=(5, 7)))
    inner, outer = model.blocks[0].inner.attention, model.blocks[0].outer.attention
    assert (inner.qkv.weight.shape, inner.output.weight.shape) == ((3 * 20, 12), (12, 20))
    assert (outer.qkv.weight.shape, outer.output.weight.shape) == ((3 * 56, 192), (192, 56))
    single, images = model.float(), images.float()  # the kernels' way
    torch.testing.assert_close(single(images), single(images, return_attention=True)[0], atol=1e-4, rtol=1e-4)
    same = create_model("titn_paper", depth=1, inner_head_width=3, outer_head_width=24)
    assert count_parameters(same) == count_parameters(create_model("titn_paper", depth=1))


# --- TNT, a setting of the same class, against timm's


def from_timm(theirs, grid_pixels):
    """timm's TNT weights under our names."""
    special = {"pixel_embed.proj.": "pixel_embedding.embed.", "norm1_proj.": "outer_tokens.projection.norm.",
               "proj.": "outer_tokens.projection.linear.", "norm2_proj.": "outer_tokens.projection.last_norm.",
               "norm.": "heads.class_head.0.", "head.": "heads.class_head.1."}  # fmt: skip
    legacy = any(name.endswith("0.proj.bias") for name in theirs)
    place = {"norm_in.": "inner.attention_norm.", "attn_in.": "inner.attn.", "norm_mlp_in.": "inner.mlp_norm.",
             "mlp_in.fc1.": "inner.mlp.0.", "mlp_in.fc2.": "inner.mlp.2.",
             "norm1_proj.": "projection.norm.", "proj.": "projection.linear.",
             "norm2_proj.": "projection.last_norm.",
             "norm_out.": "outer.attention_norm.", "attn_out.": "outer.attn.",
             "norm_mlp.": "outer.mlp_norm.", "mlp.fc1.": "outer.mlp.0.", "mlp.fc2.": "outer.mlp.2."}  # fmt: skip
    ours = {}
    for name, value in theirs.items():
        if name == "cls_token":
            ours["outer_tokens.special"] = value[0]
        elif name == "patch_pos":
            ours["outer_tokens.positions"] = value[0]
        elif name == "pixel_pos":
            ours["pixel_embedding.positions"] = value[0].flatten(1).T
        elif name.startswith("blocks."):
            _, index, rest = name.split(".", 2)
            old = next(prefix for prefix in place if rest.startswith(prefix))
            new = f"blocks.{index}.{place[old]}{rest.removeprefix(old)}"
            if ".attention.v." not in new:
                ours[new.replace(".qk.", ".qkv.").replace("attention.proj.", "attention.output.")] = (
                    torch.cat([value, theirs[name.replace(".qk.", ".v.")]]) if ".qk." in new else value
                )
        else:
            old = next(prefix for prefix in special if name.startswith(prefix))
            ours[special[old] + name.removeprefix(old)] = value
    shapes = {"patch": ours["pixel_embedding.positions"].shape, "pixel": (-1,)}  # their LayerNorm of a patch is flat
    return {
        name: value.reshape(shapes["pixel" if legacy and name.startswith("blocks") else "patch"])
        if ".norm." in name and "projection" in name
        else value
        for name, value in ours.items()
    }


@pytest.mark.parametrize(
    ("preset", "their_name", "settings"),
    [
        ("tnt_s", "tnt_s_patch16_224", {}),
        ("tnt_s", "tnt_s_legacy_patch16_224", {"pixel_embedding": "conv_across", "projection_norm": "pixel"}),
        ("tnt_b", "tnt_b_patch16_224", {}),
    ],
)
def test_tnt_equals_timm(preset, their_name, settings):
    theirs = timm.create_model(their_name, pretrained=False).eval()
    torch.manual_seed(1)
    for name, parameter in theirs.named_parameters():
        if "norm" in name and name.endswith("weight"):
            torch.nn.init.normal_(parameter, mean=1, std=0.1)
        else:  # queries and keys large enough for attention to have opinions
            torch.nn.init.normal_(parameter, std=0.08 if ".qk." in name else 0.03)
    ours = create_model(preset, **settings).eval()
    ours.load_state_dict(from_timm(theirs.state_dict(), 16))
    images = torch.randn(2, 3, 224, 224)
    with torch.no_grad():
        logits, attention = ours(images, return_attention=True)
        assert (logits - theirs(images)).abs().max() <= 1e-5
    assert logits.std() > 0.3
    assert min(rows.max(-1).values.mean() * rows.shape[-1] for rows in attention.outer) > 2  # far from uniform
    assert count_parameters(ours) == sum(p.numel() for p in theirs.parameters())


def test_the_tiny_tnt_has_its_published_size():
    """6.1 M parameters and 1.4 G multiply-accumulates (Han et al. 2021, table 1)."""
    model = create_model("tnt_ti")
    assert count_parameters(model) == pytest.approx(6.1e6, rel=0.01)
    assert count_macs(model) == pytest.approx(1.4e9, rel=0.01)


# --- what the model promises


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
        assert attention.outer[0].shape[-2:] == (config.tokens, config.tokens)
        for rows in [*attention.inner, *attention.outer]:
            torch.testing.assert_close(rows.sum(-1), torch.ones(rows.shape[:-1]))
    if name.startswith("t"):
        assert attention.inner[0].shape == (3, config.patches, config.inner_heads, config.pixels, config.pixels)


def test_only_the_inner_stream_brings_the_picture():
    """The published outer tokens start from tables: with the projections at zero, all images look alike."""
    model = create_model("titn_paper", depth=2).eval()
    images = torch.randn(2, 3, 32, 32)
    assert (model(images)[0] - model(images)[1]).abs().max() > 1e-3
    for block in model.blocks:
        torch.nn.init.zeros_(block.projection.linear.weight)
    torch.testing.assert_close(model(images)[0], model(images)[1])


@pytest.mark.parametrize("name", ["titn_nano", "vit_paper"])
def test_first_weights_have_the_documented_spread(name):
    def tables(model):
        return [p for name, p in model.named_parameters() if name.endswith(("positions", "special"))]

    truncated, normal = (create_model(name, init=how, depth=2) for how in ("trunc_normal", "normal"))
    linears = [module for module in truncated.modules() if isinstance(module, torch.nn.Linear)]
    for values in [*tables(truncated), *(module.weight for module in linears)]:
        assert values.std().item() == pytest.approx(0.02, rel=0.25)
        assert values.abs().max() < 0.12  # cut at ±2, a hundred standard deviations away: never
    assert all((module.bias == 0).all() for module in linears if module.bias is not None)
    assert all(table.std().item() == pytest.approx(1, rel=0.15) for table in tables(normal))


def test_stem_tokens_lie_where_their_points_are():
    """Three 3×3 convolutions, the first with stride 2: a token sees eleven points each way, around its own."""
    embedding = create_model("titn_pico", image_size=(32, 24), in_channels=1).pixel_embedding.eval()
    images = torch.randn(1, 1, 32, 24)
    before = embedding(images)
    for y, x in [(0, 0), (7, 9), (31, 23), (14, 8)]:
        touched = images.clone()
        touched[0, 0, y, x] += 1
        changed = (embedding(touched) != before).any(dim=-1)[0].reshape(4, 3, 4, 4)  # patch row, column, pixel y, x
        grid = changed.permute(0, 2, 1, 3).reshape(16, 12)
        sees = [[abs(2 * row - y) <= 5 and abs(2 * column - x) <= 5 for column in range(12)] for row in range(16)]
        assert torch.equal(grid, torch.tensor(sees)), (y, x)


def test_stochastic_depth_leaves_out_whole_pictures_and_keeps_the_mean():
    torch.manual_seed(0)
    pixels = DropPath(0.5)(torch.ones(50, 50, 4, 2))
    assert all(len(picture.unique()) == 1 for picture in pixels), "an image's patches share its luck"
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
    assert [block.outer.drop for block in model.blocks[1:]] == drops
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
    assert changed == 1  # what is kept is strengthened, what is left out is not there


def test_stochastic_depth_leaves_out_attention_and_mlp_each_by_its_own_coin():
    layer = TransformerLayer(8, 2, drop=0.5)
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
def test_local_perception_hears_eight_neighbours(name):
    """One block, against its pieces by hand: a patch's news, then nine weights a channel, then the outer layer."""
    model = create_model(name, image_size=(16, 24), patch_size=8, depth=1, local_perception=True).double().eval()
    local, heard = model.blocks[0].local, []
    local.register_forward_hook(lambda _, given, out: heard.append((given[0], out)))
    images = torch.randn(2, 3, 16, 24, dtype=torch.float64)
    (after,) = model.forward_features(images).hidden_states
    ((before, told),) = heard
    kernel, bias = local.convolution.weight, local.convolution.bias
    for y, x in [(0, 0), (0, 1), (1, 2)]:
        expected = before[:, 1 + 3 * y + x] + bias
        for row in range(max(y - 1, 0), min(y + 2, 2)):
            for column in range(max(x - 1, 0), min(x + 2, 3)):
                expected = expected + kernel[:, 0, row - y + 1, column - x + 1] * before[:, 1 + 3 * row + column]
        torch.testing.assert_close(told[:, 1 + 3 * y + x], expected)
    assert torch.equal(told[:, 0], before[:, 0])
    assert torch.equal(told[:, 7:], before[:, 7:])

    plain = create_model(name, image_size=(16, 24), patch_size=8, depth=1).double().eval()
    plain.load_state_dict({name: value for name, value in model.state_dict().items() if ".local." not in name})
    assert not torch.allclose(after, plain.forward_features(images).hidden_states[0])
    for parameter in local.parameters():
        torch.nn.init.zeros_(parameter)
    assert torch.equal(model.forward_features(images).hidden_states[0], plain.forward_features(images).hidden_states[0])


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"image_size": (30, 32)}, "can't be cut into patches of 8"),
        ({"pixel_size": 3}, "can't be cut into pixels of 3"),
        ({"inner_heads": 5}, "can't be shared by 5 heads"),
        ({"depth": 0}, "depth must be 1 or more and is 0"),
        ({"num_classes": 0}, "num_classes must be 1 or more and is 0"),
        ({"inner_heads": 0}, "inner_heads must be 1 or more and is 0"),
        ({"inner_head_width": 0}, "inner_head_width must be 1 or more and is 0"),
        ({"pixel_size": 0}, "pixel_size must be 1 or more and is 0"),
        ({"patch_size": -8}, "patch_size must be 1 or more and is -8"),
        ({"image_size": (0, 32)}, r"image_size is a height and a width, .* not \(0, 32\)"),
        ({"mlp_ratio": -1}, "mlp_ratio must be more than 0 and is -1"),
        ({"pixel_embedding": "conv", "pixel_size": 8}, "would leave gaps between pixels of 8"),
        ({"drop_path": 1}, "drop_path must be 0 or more and below 1"),
        ({"wings": 2}, "unknown setting of titn_paper 'wings'"),
    ],
)
def test_impossible_settings(settings, says):
    with pytest.raises(TITNError, match=says):
        create_model("titn_paper", **settings)


def test_importing_draws_nothing():
    code = "import torch; torch.manual_seed(1); import titn_lib.neighbors; drawn = torch.rand(1)"
    code += "; torch.manual_seed(1); assert torch.equal(torch.rand(1), drawn)"
    subprocess.run([sys.executable, "-c", code], check=True)


def resize_mlp(hidden):
    """As structured pruning would."""

    def change(inner):
        inner.mlp[0], inner.mlp[2] = torch.nn.Linear(16, hidden), torch.nn.Linear(hidden, 16)

    return change


def halve_heads(inner):
    inner.attn.qkv, inner.attn.proj = torch.nn.Linear(16, 24), torch.nn.Linear(8, 16)


class LoRA(torch.nn.Module):
    """A Linear, and two narrow ones beside it."""

    def __init__(self, base):
        super().__init__()
        self.base, self.down = base, torch.nn.Linear(base.in_features, 2)
        self.up = torch.nn.Linear(2, base.out_features)

    def forward(self, x):
        return self.base(x) + self.up(self.down(x))


def normalised_and_doubled(linear):
    torch.nn.utils.parametrizations.weight_norm(linear).parametrizations.weight.original0.data.mul_(2)
    return linear


def exchange(name, make):
    def change(layer):
        parent, _, child = name.rpartition(".")
        setattr(layer.get_submodule(parent), child, make(layer.get_submodule(name)))

    return change


@pytest.mark.parametrize(
    "change",
    [
        exchange("attention.qkv", LoRA),
        exchange("attention.qkv", normalised_and_doubled),
        exchange("mlp.1", lambda _: torch.nn.ReLU()),
        exchange("mlp.1", lambda _: torch.nn.GELU(approximate="tanh")),
        exchange("attention_norm", lambda _: torch.nn.Identity()),
        exchange("mlp_norm", lambda norm: torch.nn.LayerNorm(norm.normalized_shape, eps=1.0)),
        exchange("mlp_norm", lambda norm: torch.nn.RMSNorm(norm.normalized_shape)),
        resize_mlp(24),
        resize_mlp(40),
        halve_heads,
        lambda inner: vars(inner.attention).update(scale=5.0),
        lambda inner: vars(inner.mlp).update(forward=torch.zeros_like),
        lambda inner: inner.mlp_norm.register_parameter("weight", None),
        lambda layer: prune.random_unstructured(layer.attn.qkv, "weight", 0.5),
        lambda layer: layer.attn.register_forward_hook(lambda _, __, out: (2 * out[0], out[1])),
        lambda layer: layer.mlp.register_forward_pre_hook(lambda _, inputs: (2 * inputs[0],)),
    ],
)
def test_an_inner_layer_that_somebody_changed_computes_what_it_says(change):
    """The fused kernel knows only the layer as it was made."""
    model = create_model("titn_nano", depth=2).eval()
    with torch.no_grad():
        for parameter in model.blocks.parameters():
            parameter.mul_(4)  # so that a change shows
    images = torch.randn(2, 3, 32, 32)
    before = model(images)
    change(model.blocks[0].inner)
    expected, _ = model(images, return_attention=True)
    assert (before - expected).abs().max() > 1e-4
    torch.testing.assert_close(model(images), expected, atol=2e-5, rtol=1e-5)


def test_a_hook_on_all_modules_sees_the_inner_layer():
    model, seen = create_model("titn_nano", depth=1).eval(), []
    with torch.nn.modules.module.register_module_forward_hook(lambda module, *_: seen.append(module)):
        model(torch.randn(1, 3, 32, 32))
    assert model.blocks[0].inner.attn.qkv in seen


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64], ids=str)
def test_weights_of_another_kind_than_the_tokens_are_refused_as_pytorch_does(dtype):
    model = create_model("titn_nano", depth=1).eval()
    model.blocks[0].inner.to(dtype)
    with pytest.raises(RuntimeError, match="dtype"):
        model(torch.randn(1, 3, 32, 32))


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:FutureWarning")  # torch.func's own
def test_what_follows_operations_by_its_own_rules_sees_them_all():
    """Forward-mode and per-image derivatives know nothing of the kernels."""
    model = create_model("titn_nano", depth=2).eval()
    images, direction = torch.randn(2, 2, 3, 32, 32)

    def slow(images):
        return model(images, return_attention=True)[0]

    expected = torch.func.jvp(slow, (images,), (direction,))
    torch.testing.assert_close(torch.func.jvp(model, (images,), (direction,)), expected, atol=1e-5, rtol=1e-4)
    with forward_ad.dual_level():
        tangent = forward_ad.unpack_dual(model(forward_ad.make_dual(images, direction))).tangent
    torch.testing.assert_close(tangent, expected[1], atol=1e-5, rtol=1e-4)
    each = torch.func.vmap(torch.func.grad(lambda image: model(image[None]).sum()))(images)
    pictures = images.clone().requires_grad_()
    torch.testing.assert_close(each, torch.autograd.grad(model(pictures).sum(), pictures)[0], atol=1e-5, rtol=1e-4)


def test_torchscript_needs_no_kernels_where_it_is_loaded(tmp_path):
    """Tracing gives tensors for sizes, which the tests' type checker doesn't like: two processes of their own, the
    second without this library."""
    make = (
        "import sys, torch, titn_lib; torch.manual_seed(0); model = titn_lib.create_model('titn_nano', depth=1).eval()"
    )
    make += "; x = torch.randn(2, 3, 32, 32); torch.jit.save(torch.jit.trace(model, x), sys.argv[1] + '/m.ts')"
    make += "; torch.save((x, model(x)), sys.argv[1] + '/x.pt')"
    load = "import sys, torch; x, y = torch.load(sys.argv[1] + '/x.pt')"
    load += "; torch.testing.assert_close(torch.jit.load(sys.argv[1] + '/m.ts')(x), y, atol=1e-5, rtol=1e-4)"
    for code in (make, load):
        subprocess.run([sys.executable, "-W", "ignore", "-c", code, tmp_path], check=True)


def test_an_exported_model_takes_any_number_of_pictures():
    model = create_model("titn_nano", depth=1).eval()
    images = torch.randn(5, 3, 32, 32)
    with torch.no_grad():
        exported = torch.export.export(model, (images[:2],), dynamic_shapes=({0: torch.export.Dim("batch")},)).module()
        for few in (images, images[:1]):
            torch.testing.assert_close(exported(few), model(few), atol=1e-5, rtol=1e-4)


def test_a_second_derivative_is_refused_and_not_wrong():
    model = create_model("titn_nano", depth=1).eval()
    images = torch.randn(1, 3, 32, 32, requires_grad=True)
    with pytest.raises(TITNError, match="no second derivative: pass return_attention=True"):
        torch.autograd.grad(model(images).sum(), images, create_graph=True)
    (slope,) = torch.autograd.grad(model(images, return_attention=True)[0].sum(), images, create_graph=True)
    assert torch.autograd.grad(slope.square().sum(), images)[0].abs().max() > 0


@pytest.mark.parametrize(
    ("embedding", "pixel_size"), [("linear", 8), ("conv", 4), ("conv_across", 4), ("stem", 2), ("stem", 4), ("stem", 8)]
)
def test_every_point_of_a_picture_is_read(embedding, pixel_size):
    settings = {"pixel_embedding": embedding, "pixel_size": pixel_size, "patch_tokens": "image", "depth": 1}
    model = create_model("titn_paper", image_size=(32, 48), patch_size=16, **settings)
    images = torch.randn(2, 3, 32, 48, requires_grad=True)
    model.eval()(images).sum().backward()
    assert (images.grad != 0).all()


@pytest.mark.parametrize(
    "settings", ["depth=2.0", "outer_head_width=2.0", "num_classes='5'", "image_size=(64,)", "image_size='64'"]
)
def test_settings_of_another_kind(settings):
    """In a process without the tests' type checker, which would be first to complain."""
    code = f"from titn_lib import TITNError, create_model\ntry: create_model('titn_paper', {settings})\n"
    code += "except TITNError as problem: print(problem)"
    said = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert "must be a whole number" in said or "image_size is a height and a width" in said


def test_mistyped_words_are_noticed():
    """Without the tests' own checker of types, which would notice first."""
    code = """
from titn_lib import TITNError, create_model
from titn_lib.training.config import Recipe
for make in (
    lambda: create_model("titn_nano", pixel_embedding="conv_accross"),
    lambda: create_model("titn_nano", patch_tokens="images"),
    lambda: create_model("revit_nano", projection_norm="patches"),
    lambda: create_model("revit_nano", residuals="iner"),
    lambda: create_model("fusion_nano", fusion="gates"),
    lambda: create_model("vit_paper", pooling="means"),
    lambda: create_model("mvt_nano", init="truncate"),
    lambda: Recipe(optimizer="adam"),
    lambda: Recipe(precision="bf16-mix"),
):
    try:
        make()
    except TITNError as problem:
        assert ": did you mean '" in str(problem), problem
    else:
        raise SystemExit("nothing was noticed")
"""
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("shape", [(2, 3, 28, 28), (2, 1, 32, 32)])
@pytest.mark.parametrize("name", ["titn_nano", "vit_paper", "vgg7_bn"])
def test_pictures_that_do_not_fit(name, shape):
    with pytest.raises(TITNError, match=f"{name} takes batches of 3×32×32 images"):
        create_model(name)(torch.zeros(shape))


def test_one_picture_and_bytes_are_told_what_to_become():
    model = create_model("titn_nano", depth=1)
    with pytest.raises(TITNError, match=r"got a single one: make it one, with images\[None\]"):
        model.check_images(torch.zeros(3, 32, 32))
    with pytest.raises(TITNError, match="got bytes or whole numbers: call"):
        model.check_images(torch.zeros(2, 3, 32, 32, dtype=torch.uint8))
