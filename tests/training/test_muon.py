"""Muon: steps by hand, which parameters it takes, and a resumed run."""

import copy

import pytest
import torch
from torch import nn

from titn_lib import create_model
from titn_lib.training.config import Recipe
from titn_lib.training.muon import MOMENTUM, Muon, orthogonalize
from titn_lib.training.networks import layers_below_head
from titn_lib.training.optim import make_optimizer, set_learning_rate


@pytest.mark.parametrize("shape", [(6, 20), (20, 6), (8, 8)])
def test_orthogonalized_matrices_keep_their_singular_vectors(shape):
    values = torch.linspace(0.05, 1, min(shape))
    left, right = (torch.linalg.qr(torch.randn(side, len(values)))[0] for side in shape)
    result = left.T @ orthogonalize(1000 * left @ torch.diag(values) @ right.T) @ right
    assert ((result.diagonal() > 0.5) & (result.diagonal() < 1.21)).all()
    torch.testing.assert_close(result, torch.diag(result.diagonal()), atol=1e-4, rtol=0)


def make(lr_scale=1.0):
    """A convolution and a bias, as Muon's two groups."""
    torch.manual_seed(0)
    conv, bias = nn.Parameter(torch.randn(4, 3, 2, 2)), nn.Parameter(torch.randn(4))
    groups = [
        {"params": [conv], "orthogonal": True, "weight_decay": 0.5, "lr_scale": 1.0},
        {"params": [bias], "orthogonal": False, "weight_decay": 0.0, "lr_scale": lr_scale},
    ]
    return conv, bias, Muon(groups, lr=0.1)


def step(optimizer, conv, bias, gradients):
    conv.grad, bias.grad = (gradient.clone() for gradient in gradients)
    optimizer.step()
    assert conv.grad is None


def test_two_steps_by_hand():
    """Nesterov momentum, decay and an orthogonal step for the convolution; AdamW for the bias."""
    conv, bias, optimizer = make()
    expected, momentum = conv.detach().clone(), torch.zeros(4, 12)
    alone = nn.Parameter(bias.detach().clone())
    adamw = torch.optim.AdamW([alone], lr=0.1, weight_decay=0.0)
    for _ in range(2):
        gradients = torch.randn(4, 3, 2, 2), torch.randn(4)
        step(optimizer, conv, bias, gradients)
        alone.grad = gradients[1]
        adamw.step()
        momentum = MOMENTUM * momentum + gradients[0].flatten(1)
        direction = orthogonalize(gradients[0].flatten(1) + MOMENTUM * momentum)
        expected = 0.95 * expected - 0.1 * direction.view(4, 3, 2, 2)
        torch.testing.assert_close(conv.detach(), expected)
        torch.testing.assert_close(bias, alone)


def test_a_closure_is_called_first():
    """Its gradients are of this step, and AdamW leaves Muon's parameters alone."""
    conv, bias, optimizer = make()
    again_conv, again_bias, again = make()
    gradients = torch.randn(4, 3, 2, 2), torch.randn(4)

    def closure():
        optimizer.zero_grad()
        loss = (conv * gradients[0]).sum() + (bias * gradients[1]).sum()
        loss.backward()
        return loss

    for _ in range(2):
        assert optimizer.step(closure).requires_grad
        step(again, again_conv, again_bias, gradients)
    assert torch.equal(conv, again_conv)
    assert torch.equal(bias, again_bias)


def test_saved_and_loaded_it_goes_on_as_before():
    conv, bias, optimizer = make()
    first, second = ((torch.randn(4, 3, 2, 2), torch.randn(4)) for _ in range(2))
    step(optimizer, conv, bias, first)
    again_conv, again_bias, again = make()
    again_conv.data.copy_(conv)
    again_bias.data.copy_(bias)
    again.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    step(optimizer, conv, bias, second)
    step(again, again_conv, again_bias, second)
    assert torch.equal(conv, again_conv)
    assert torch.equal(bias, again_bias)


@pytest.mark.parametrize(
    ("model", "below_heads", "others"),
    [("airbench", "stages.1.0.weight", ["head.2.weight", "head.2.bias", "stages.0.0.bias", "stages.1.2.bias"]),
     ("titn_nano", "blocks.0.outer.mlp.0.weight", ["heads.class_head.1.weight", "pixel_embedding.pos_embed"])],
)  # fmt: skip
def test_it_takes_the_matrices_below_the_heads(model, below_heads, others):
    """Heads and vectors are AdamW's, at a learning rate of their own."""
    network = create_model(model)
    names = {id(p): name for name, p in network.named_parameters()}
    recipe = Recipe(optimizer="muon", lr=0.5, weight_decay=0.1)
    optimizer = make_optimizer(network, recipe, layers=layers_below_head(network))
    muon, adamw = optimizer.param_groups
    assert (muon["orthogonal"], adamw["orthogonal"], muon["weight_decay"], adamw["weight_decay"]) == (1, 0, 0.1, 0)
    assert below_heads in {names[id(p)] for p in muon["params"]}
    assert set(others) <= {names[id(p)] for p in adamw["params"]}
    assert all(p.ndim > 1 for p in muon["params"])
    set_learning_rate(optimizer, 0.5)
    assert (muon["lr"], adamw["lr"]) == (0.5, pytest.approx(0.02))


def test_layer_decay_slows_the_early_layers():
    network = create_model("titn_nano", depth=2)
    recipe = Recipe(optimizer="muon", layer_decay=0.5)
    layers = layers_below_head(network)
    optimizer = make_optimizer(network, recipe, layers=layers)
    scales = {id(p): group["lr_scale"] for group in optimizer.param_groups for p in group["params"]}
    for name, p in network.named_parameters():
        if name.startswith("blocks") and p.ndim > 1 and name.endswith("weight"):
            assert scales[id(p)] == 0.5 ** layers[name], name
