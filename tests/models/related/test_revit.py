"""ReViT against its equations in loops, against plain TITN, and with the attribution maps."""

import math

import pytest
import torch

from titn_lib import TITNError, count_macs, count_parameters, create_model, interpret, load_model, save_model
from titn_lib.models.layers import TransformerLayer
from titn_lib.models.related.revit import Carried, ResidualLayer, similarity

from . import contract
from .reference import layer_norm, linear

RESIDUALS = pytest.mark.parametrize("residuals", ["outer", "inner", "both"])


def test_size():
    titn, revit = create_model("titn_nano"), create_model("revit_nano")
    assert revit.config.residuals == "outer"
    assert count_parameters(revit) == count_parameters(titn) + 1 == 738_213
    assert count_macs(revit) == count_macs(titn)


def test_layers_equal_the_equations():
    """Three layers, one number at a time: A_1 = S_1, A_l = α S_l + (1 − α) A_{l−1}."""
    width, heads, length, alpha = 6, 2, 4, 0.3
    layers = [
        ResidualLayer(TransformerLayer(width, heads, mlp_ratio=2), first=place == 0).double() for place in range(3)
    ]
    for layer in layers:
        for parameter in layer.parameters():
            torch.nn.init.normal_(parameter, std=0.7)
    layers[0].alpha.data.fill_(alpha)
    stream = start = torch.randn(1, length, width, dtype=torch.float64)

    tokens, before = list(start[0]), None
    for layer in layers:
        stream, attention = layer(stream, return_attention=True)
        tokens, before, weights = reference(layer.state_dict(), tokens, heads, alpha, before)
        torch.testing.assert_close(attention[0], weights, atol=1e-12, rtol=0)
        torch.testing.assert_close(stream.tokens[0], torch.stack(tokens), atol=1e-12, rtol=0)


def reference(weights, tokens, heads, alpha, before):
    """A layer on an image's tokens: the new tokens, the scores A and softmax(A), both "head query key"."""
    width = len(tokens[0]) // heads
    qkv = [linear(weights, "attn.qkv", layer_norm(weights, "attention_norm", token)) for token in tokens]
    scores = torch.zeros(heads, len(tokens), len(tokens), dtype=torch.float64)
    attention, updates = torch.zeros_like(scores), [[] for _ in tokens]
    for head in range(heads):
        q, k, v = ([one[start + head * width :][:width] for one in qkv] for start in (0, 6, 12))
        for i in range(len(tokens)):
            for j in range(len(tokens)):
                own = sum(q[i][d] * k[j][d] for d in range(width)) / math.sqrt(width)
                scores[head, i, j] = own if before is None else alpha * own + (1 - alpha) * before[head, i, j]
            total = sum(math.exp(score) for score in scores[head, i])
            for j in range(len(tokens)):
                attention[head, i, j] = math.exp(scores[head, i, j]) / total
            updates[i].append(sum(attention[head, i, j] * v[j] for j in range(len(tokens))))
    tokens = [t + linear(weights, "attn.proj", torch.cat(u)) for t, u in zip(tokens, updates, strict=True)]
    for i, token in enumerate(tokens):
        hidden = linear(weights, "mlp.0", layer_norm(weights, "mlp_norm", token))
        gelu = torch.stack([h * (1 + math.erf(h / math.sqrt(2))) / 2 for h in hidden])
        tokens[i] = token + linear(weights, "mlp.2", gelu)
    return tokens, scores, attention


def pair(residuals, depth=3, **settings):
    """A TITN and a ReViT with its weights."""
    titn = create_model("titn_nano", depth=depth, **settings)
    for parameter in titn.parameters():
        if parameter.ndim > 1:  # large enough for attention that isn't uniform
            torch.nn.init.normal_(parameter, std=0.2)
    revit = create_model("revit_nano", depth=depth, residuals=residuals, **settings)
    missing, unexpected = revit.load_state_dict(titn.state_dict(), strict=False)
    streams = ["inner", "outer"] if residuals == "both" else [residuals]
    assert sorted(missing) == [f"blocks.0.{stream}.alpha" for stream in streams]  # one for each stream
    assert unexpected == []
    return titn.eval(), revit.eval()


def set_alpha(revit, value):
    for name, parameter in revit.named_parameters():
        if name.endswith("alpha"):
            assert parameter.item() == 0.5  # as published
            parameter.data.fill_(value)


@RESIDUALS
def test_with_alpha_1_it_equals_titn_bit_for_bit(residuals):
    titn, revit = pair(residuals)
    images = torch.randn(4, 3, 32, 32)
    with torch.no_grad():
        logits, attention = titn(images, return_attention=True)
        assert (revit(images) - logits).abs().max() > 1e-3
        set_alpha(revit, 1.0)
        same, maps = revit(images, return_attention=True)
        assert torch.equal(same, logits)
        for ours, theirs in zip([*maps.inner, *maps.outer], [*attention.inner, *attention.outer], strict=True):
            assert torch.equal(ours, theirs)
        if residuals == "outer":  # its inner stream runs on TITN's kernels
            assert torch.equal(revit(images), titn(images))
        torch.testing.assert_close(revit(images), logits, atol=1e-5, rtol=0)


@pytest.mark.parametrize(("residuals", "stream"), [("outer", "outer"), ("inner", "inner"), ("both", "inner")])
def test_attention_of_the_second_block_is_a_geometric_mean(residuals, stream):
    """softmax(α S_2 + (1 − α) S_1) is the weighted geometric mean of softmax(S_2) and softmax(S_1), made to sum to 1;
    and up to there both networks have the same tokens."""
    alpha = 0.8
    titn, revit = pair(residuals, depth=2)
    set_alpha(revit, alpha)
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        first, second = getattr(titn.forward_features(images, True).attention, stream)
        our_first, our_second = getattr(revit.forward_features(images, True).attention, stream)
    torch.testing.assert_close(our_first, first)
    mean = first ** (1 - alpha) * second**alpha
    torch.testing.assert_close(our_second, mean / mean.sum(dim=-1, keepdim=True))
    assert min((our_second - first).abs().max(), (our_second - second).abs().max()) > 0.01


def test_the_initial_weights_are_titns():
    torch.manual_seed(3)
    titn = create_model("titn_nano", depth=2).state_dict()
    torch.manual_seed(3)
    revit = create_model("revit_nano", depth=2).state_dict()
    assert all(torch.equal(revit[name], value) for name, value in titn.items())


@RESIDUALS
def test_attribution_maps(residuals):
    revit = create_model("revit_nano", residuals=residuals, depth=3).eval()
    for parameter in revit.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    images, classes = torch.randn(2, 3, 32, 32), torch.tensor([1, 4])
    for chosen in (None, classes):
        found = interpret.relevance(revit, images, classes=chosen)
        torch.testing.assert_close(found.sources.sum(dim=1), torch.ones(2))
        assert interpret.outer_rollout(revit, images, classes=chosen).shape == (2, 66)
    assert interpret.input_gradient(revit, images, classes).abs().sum() > 0
    assert type(interpret.randomize_weights(revit, blocks=4)) is type(revit)
    inner = revit.pixel_embedding(images)  # relevance walks through the inner stream alone: it must be the same one
    for block, expected in zip(revit.blocks, interpret.attention(revit, images).inner, strict=True):
        inner, normed, attention = block.forward_inner(inner, True)
        assert normed.shape == (2, 64, 4, 16)
        torch.testing.assert_close(attention, expected)
    assert isinstance(inner, Carried) == (residuals != "outer")


def test_similarity_of_three_tokens():
    """Cosines of 0°, 45°, 90° and lengths that don't matter: (0 + √½ + √½) / 3; equal tokens have 1."""
    tokens = torch.tensor([[[3.0, 0.0], [0.0, 0.5], [2.0, 2.0]], [[1.0, 2.0], [2.0, 4.0], [3.0, 6.0]]])
    torch.testing.assert_close(similarity(tokens), torch.tensor([2 * math.sqrt(0.5) / 3, 1.0]))


def test_invalid_settings():
    with pytest.raises(TITNError, match="can't be cut into patches of 4"):
        create_model("revit_nano", image_size=(30, 32))


def test_position_embeddings_are_interpolated(tmp_path):
    save_model(create_model("revit_nano", depth=2), tmp_path / "m.safetensors")
    larger = load_model(tmp_path / "m.safetensors", image_size=(48, 64))
    assert larger(torch.zeros(1, 3, 48, 64)).shape == (1, 10)


@RESIDUALS
def test_shapes_gradients_and_files(residuals, tmp_path):
    contract.check_shapes("revit_nano", residuals=residuals, depth=2)
    contract.check_gradients("revit_nano", residuals=residuals)
    contract.check_file("revit_nano", tmp_path, residuals=residuals, depth=2)


def test_learns():
    contract.check_learns("revit_nano", bound=1.0, depth=3)
