"""Layers of slow references: a network's layers by name, from its state_dict alone."""

import torch
from torch import nn
from torch.nn import functional as F

from titn_lib.training.config import Recipe
from titn_lib.training.optim import make_optimizer


def scramble(model):
    """Float64, in evaluation mode, with random norms, biases, scales and running statistics, so that mistakes show."""
    model = model.double().eval()
    for name, parameter in model.named_parameters():
        if not name.endswith("weight") or parameter.ndim == 1:
            nn.init.normal_(parameter, std=0.5)
    for name, buffer in model.named_buffers():
        if name.endswith("running_mean"):
            nn.init.normal_(buffer, std=0.5)
        elif name.endswith("running_var"):
            nn.init.uniform_(buffer, 0.5, 2)
    return model


def convolution(weights, name, x, stride=1, padding=0, dilation=1, groups=1):
    return F.conv2d(x, weights[f"{name}.weight"], weights[f"{name}.bias"], stride, padding, dilation, groups)


def depthwise(weights, name, x, padding):
    """Channel by channel."""
    kernels, biases = weights[f"{name}.weight"], weights[f"{name}.bias"]
    return torch.cat([F.conv2d(x[:, c : c + 1], kernels[c : c + 1], biases[c : c + 1], padding=padding)
                      for c in range(x.shape[1])], dim=1)  # fmt: skip


def batch_norm(weights, name, x):
    shift, scale, mean, variance = (
        weights[f"{name}.{part}"][:, None, None] for part in ("bias", "weight", "running_mean", "running_var")
    )
    return (x - mean) / (variance + 1e-5).sqrt() * scale + shift


def layer_norm(weights, name, x, eps=1e-5):
    """Over the last dimension."""
    mean = x.mean(dim=-1, keepdim=True)
    variance = ((x - mean) ** 2).mean(dim=-1, keepdim=True)
    return (x - mean) / (variance + eps).sqrt() * weights[f"{name}.weight"] + weights[f"{name}.bias"]


def linear(weights, name, x):
    return x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]


def gelu(x):
    return 0.5 * x * (1 + torch.erf(x / 2**0.5))


def silu(x):
    return x / (1 + torch.exp(-x))


def softmax_attention(query, key, value, bias=None):
    """One head, one query and one key at a time: "token width" → "token width"."""
    mixed = []
    for i, q in enumerate(query):
        scores = torch.stack([q @ k / len(q) ** 0.5 for k in key])
        shares = torch.exp(scores if bias is None else scores + bias[i])
        mixed.append(sum(share * v for share, v in zip(shares, value, strict=True)) / shares.sum())
    return torch.stack(mixed)


def check_equal(model, images, reference):
    """A network's logits are those of a reference (weights, "1 channel height width" → logits), image by image."""
    logits = model(images)
    for i in range(len(images)):
        expected = reference(model.state_dict(), images[i : i + 1])
        torch.testing.assert_close(logits[i : i + 1], expected.reshape(1, -1), atol=1e-9, rtol=0)


def check_decay(model):
    """AdamW decays the weights of convolutions and Linears, and nothing else."""
    decayed, others = (
        {id(p) for p in group["params"]} for group in make_optimizer(model, Recipe(weight_decay=0.05)).param_groups
    )
    matrices = {id(m.weight) for m in model.modules() if isinstance(m, (nn.Conv2d, nn.Linear))}
    assert decayed == matrices
    assert decayed | others == {id(p) for p in model.parameters()}
