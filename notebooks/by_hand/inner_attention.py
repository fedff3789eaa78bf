"""What notebooks/02_inner_attention.ipynb writes by hand. Written by notebooks/collect.py."""

import torch


def attend(Y, layer, heads=4):
    """Attention by hand, head by head, with the weights of the library's layer."""
    Q, K, V = (Y @ layer.qkv.weight.T + layer.qkv.bias).chunk(3, dim=-1)
    width = Q.shape[-1] // heads
    outputs, maps = [], []
    for head in range(heads):
        part = slice(head * width, (head + 1) * width)
        S = Q[:, part] @ K[:, part].T / width**0.5
        A = S.softmax(dim=-1)
        outputs.append(A @ V[:, part])
        maps.append(A)
    return torch.cat(outputs, dim=-1) @ layer.proj.weight.T + layer.proj.bias, torch.stack(maps)


def layer_norm(y, norm):
    mean = y.mean(dim=-1, keepdim=True)
    variance = ((y - mean) ** 2).mean(dim=-1, keepdim=True)
    return (y - mean) / (variance + norm.eps) ** 0.5 * norm.weight + norm.bias


def gelu(x):
    return x * 0.5 * (1 + torch.erf(x / 2**0.5))


def mlp(y, first, second):
    return gelu(y @ first.weight.T + first.bias) @ second.weight.T + second.bias


def whole_layer(Y, layer):
    Y = Y + attend(layer_norm(Y, layer.attention_norm), layer.attn)[0]
    return Y + mlp(layer_norm(Y, layer.mlp_norm), layer.mlp[0], layer.mlp[2])
