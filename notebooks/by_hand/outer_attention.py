"""What notebooks/03_outer_attention.ipynb writes by hand. Written by notebooks/collect.py."""

from einops import rearrange


def layer_norm(y, norm):
    """Over the last axis: each pixel token on its own."""
    mean, variance = y.mean(dim=-1, keepdim=True), y.var(dim=-1, keepdim=True, correction=0)
    return (y - mean) / (variance + norm.eps) ** 0.5 * norm.weight + norm.bias


def project(Y, projection):
    flat = rearrange(layer_norm(Y, projection.norm), "batch patch pixel width -> batch patch (pixel width)")
    return flat @ projection.linear.weight.T + projection.linear.bias


def block_by_hand(Y, Z, block):
    Y, _ = block.inner(Y)  # pixel tokens attend to each other, patch by patch
    Z = Z.clone()
    Z[:, 1:17] += project(Y, block.projection)  # the update of the patch tokens
    updated = Z.clone()
    Z, _ = block.outer(Z)  # the eighteen attend to each other
    return Y, Z, updated


def both_heads(Z, heads):
    class_norm, class_linear = heads.class_head
    norm, linear = heads.distillation_head
    class_logits = layer_norm(Z[:, 0:17].mean(dim=1), class_norm) @ class_linear.weight.T + class_linear.bias
    distillation_logits = layer_norm(Z[:, 17], norm) @ linear.weight.T + linear.bias
    return class_logits, distillation_logits
