"""Fusion: each way of fusing against the branches alone and its equation, and the receptive fields of the branches."""

import math

import pytest
import torch
from torch.nn import functional as F

from titn_lib import TITNError, count_macs, count_parameters, create_model
from titn_lib.models.related.fusion import FUSIONS

from . import contract

IMAGES = (4, 3, 32, 32)


@pytest.mark.parametrize(
    ("fusion", "parameters", "macs"),
    [
        ("concatenation", 822_538, 58.6e6),
        ("gate", 854_154, 58.6e6),
        ("convolution", 259_594, 19.8e6),
        ("attention", 562_954, 38.8e6),
    ],
)
def test_sizes(fusion, parameters, macs):
    model = create_model("fusion_nano", fusion=fusion)
    assert count_parameters(model) == parameters
    assert count_macs(model) == pytest.approx(macs, rel=0.01)


def single_branch(fused, branch, head_weight, head_bias):
    """The network with one branch only, with the fused one's weights for it and a head of our choice."""
    model = create_model("fusion_nano", fusion=branch)
    model.branches[branch].load_state_dict(fused.branches[branch].state_dict())
    model.head.load_state_dict({"weight": head_weight, "bias": head_bias})
    return model.eval()


def test_concatenation_adds_the_logits_of_two_classifiers():
    """U [a; b] = U_a a + U_b b, with networks that each have one branch."""
    fused = create_model("fusion_nano", fusion="concatenation").eval()
    weight, bias = fused.head.weight.detach(), fused.head.bias.detach()
    images = torch.randn(IMAGES)
    near = single_branch(fused, "convolution", weight[:, :128], bias)(images)
    whole = single_branch(fused, "attention", weight[:, 128:], torch.zeros(10))(images)
    torch.testing.assert_close(fused(images), near + whole, atol=1e-5, rtol=0)
    assert min(near.std(), whole.std()) > 0.1


def gated():
    model = create_model("fusion_nano", fusion="gate").eval()
    torch.nn.init.normal_(model.gate.weight, std=0.3)
    return model


def test_gate_equals_its_equation():
    """One number at a time: g = 1 / (1 + exp(−(W [a; b] + w))), f = g a + (1 − g) b, logits U f + u."""
    model, images = gated(), torch.randn(IMAGES)
    weights = {name: value.tolist() for name, value in model.state_dict().items() if not name.startswith("branches")}
    a, b = (model.branches[name](images).tolist() for name in ("convolution", "attention"))
    logits = model(images)
    shares = []
    for index in range(len(images)):
        both, mixed = a[index] + b[index], []
        for i in range(128):
            score = sum(w * x for w, x in zip(weights["gate.weight"][i], both, strict=True)) + weights["gate.bias"][i]
            shares.append(1 / (1 + math.exp(-score)))
            mixed.append(shares[-1] * a[index][i] + (1 - shares[-1]) * b[index][i])
        for k in range(10):
            logit = sum(u * x for u, x in zip(weights["head.weight"][k], mixed, strict=True)) + weights["head.bias"][k]
            assert logits[index, k].item() == pytest.approx(logit, abs=1e-4)
    assert min(shares) < 0.1  # gates that differ
    assert max(shares) > 0.9


@pytest.mark.parametrize(("branch", "score"), [("convolution", 1e4), ("attention", -1e4)])
def test_a_gate_that_selects_one_branch_is_that_branch(branch, score):
    fused, images = gated(), torch.randn(IMAGES)
    torch.nn.init.constant_(fused.gate.bias, score)
    single = single_branch(fused, branch, fused.head.weight.detach(), fused.head.bias.detach())
    torch.testing.assert_close(fused(images), single(images), atol=1e-5, rtol=0)


def test_the_transformer_pools_the_mean_of_its_tokens_and_has_small_initial_weights():
    vit, norm = create_model("fusion_nano").eval().branches["attention"]
    images = torch.randn(IMAGES)
    mean = vit.forward_features(images).hidden_states[-1].mean(dim=1)
    torch.testing.assert_close(norm(vit.heads.class_head(mean)), norm(vit(images)))
    for initial in (vit.pos_embed, vit.heads.class_head[1].weight):
        assert initial.std().item() == pytest.approx(0.02, rel=0.05)


def test_receptive_fields_of_the_branches():
    """Without position embeddings a transformer ignores the order of patches; convolutions see adjacent ones only."""
    images = torch.randn(IMAGES)
    patches = F.unfold(images, 4, stride=4)
    shuffled = F.fold(patches[:, :, torch.randperm(64)], 32, 4, stride=4)
    model = create_model("fusion_nano").eval()
    near, whole = model.branches["convolution"], model.branches["attention"]
    torch.nn.init.zeros_(whole[0].pos_embed)
    torch.testing.assert_close(whole(images), whole(shuffled), atol=1e-4, rtol=0)
    assert (near(images) - near(shuffled)).abs().max() > 0.05

    changed_image = images.clone()
    changed_image[:, :, 0, 0] += 1
    changed = (near[0](images) != near[0](changed_image)).any(dim=1)
    assert changed.shape == (4, 8, 8)
    assert changed[:, 0, 0].any()
    assert not changed[:, 4:].any()
    assert not changed[:, :, 4:].any()


def test_invalid_settings():
    with pytest.raises(TITNError, match="can't be cut into patches of 4"):
        create_model("fusion_nano", image_size=(32, 30))
    with pytest.raises(TITNError, match="choose an image_size of 4 or more"):
        create_model("fusion_nano", image_size=(2, 4), patch_size=2)
    with pytest.raises(TITNError, match="can't be divided among 5 heads"):
        create_model("fusion_nano", heads=5)


@pytest.mark.parametrize("fusion", FUSIONS)
def test_shapes_gradients_and_files(fusion, tmp_path):
    contract.check_shapes("fusion_nano", fusion=fusion)
    contract.check_gradients("fusion_nano", fusion=fusion)
    contract.check_file("fusion_nano", tmp_path, fusion=fusion)


@pytest.mark.parametrize(("fusion", "bound"), [("concatenation", 0.3), ("gate", 0.3), ("attention", 1.8)])
def test_learns(fusion, bound):
    contract.check_learns("fusion_nano", bound, fusion=fusion)
