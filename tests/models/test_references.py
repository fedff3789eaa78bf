"""The published students against slow references in float64: loops over images, patches, heads and tokens, written from
the equations alone."""

import math
from functools import partial

import pytest
import torch

from titn_lib import count_parameters, create_model


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
    normed = [norm(weights, f"{name}.attention_norm", token) for token in tokens]
    query, key, value = zip(*(linear(weights, f"{name}.attn.qkv", token).chunk(3) for token in normed), strict=True)
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
        updates.append(linear(weights, f"{name}.attn.proj", torch.cat(mixed)))
    maps = torch.stack(attention).unflatten(0, (len(tokens), heads)).transpose(0, 1)
    return [token + update for token, update in zip(tokens, updates, strict=True)], maps


def reference_layer(weights, name, tokens, heads, head_width=None):
    tokens, attention = reference_attention(weights, name, tokens, heads, head_width)
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
                    position = weights["pixel_embedding.pos_embed"][len(tokens)]
                    tokens.append(linear(weights, "pixel_embedding.embed", torch.stack(values)) + position)
            inner.append(tokens)
    tables = [weights[f"patch_embedding.{name}"] for name in ("tokens", "pos_embed")]
    tables += [weights["patch_embedding.dist_embed"]] if distilled else []
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
    the textbook's, which classifies the class token with one LayerNorm."""
    height, width = image.shape[1:]
    tokens = [weights["cls_token"][0]]
    for top in range(0, height, patch):
        for left in range(0, width, patch):
            values = [
                value for channel in image[:, top : top + patch, left : left + patch] for value in channel.flatten()
            ]
            tokens.append(linear(weights, "embed", torch.stack(values)))
    tokens += [weights["dist_token"][0]] if distilled else []
    tokens = [token + position for token, position in zip(tokens, weights["pos_embed"], strict=True)]
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


def randomized(name, **settings):
    """Norms start as ones and zeros: random values make mistakes show."""
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
    model = randomized(name, image_size=size, depth=2)
    images = torch.randn(1 if size == (32, 32) else 2, 3, *size, dtype=torch.float64)
    check_equality(model, images, partial(STUDENTS[name], depth=2))


@pytest.mark.parametrize("name", STUDENTS)
def test_the_published_students_have_the_gradients_of_their_equations(name):
    model = randomized(name, image_size=(8, 16), depth=2)
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
    model = randomized("vit_paper", image_size=(16, 24), depth=2, distillation_token=distilled, **TEXTBOOK)
    reference = partial(reference_vit, depth=2, distilled=distilled, published=False)
    check_equality(model, torch.randn(2, 3, 16, 24, dtype=torch.float64), reference)


def test_heads_may_be_narrower_or_wider_than_their_share():
    """As in titn_paper_224, whose tokens of 384 have 8 heads of 24; and inner heads wider than 12 / 4."""
    widths = {"inner_head_width": 5, "outer_head_width": 7}
    model = randomized("titn_paper", image_size=(16, 24), depth=2, **widths)
    images = torch.randn(1, 3, 16, 24, dtype=torch.float64)
    check_equality(model, images, partial(reference_titn, depth=2, head_widths=(5, 7)))
    inner, outer = model.blocks[0].inner.attn, model.blocks[0].outer.attn
    assert (inner.qkv.weight.shape, inner.proj.weight.shape) == ((3 * 20, 12), (12, 20))
    assert (outer.qkv.weight.shape, outer.proj.weight.shape) == ((3 * 56, 192), (192, 56))
    single, images = model.float(), images.float()  # the kernels' way
    torch.testing.assert_close(single(images), single(images, return_attention=True)[0], atol=1e-4, rtol=1e-4)
    same = create_model("titn_paper", depth=1, inner_head_width=3, outer_head_width=24)
    assert count_parameters(same) == count_parameters(create_model("titn_paper", depth=1))
