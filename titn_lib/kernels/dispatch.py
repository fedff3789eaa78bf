"""Whether a layer is one that the fused kernel computes."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import _has_any_global_hook

from titn_lib.models.layers import TransformerLayer

with torch.device("meta"):  # no numbers: an import must not draw from anybody's generator
    PLAIN = [*map(type, TransformerLayer(1, 1).modules()), nn.LayerNorm]  # an inner layer and the norm after it


WEIGHTS = {(nn.Parameter, torch.float32), (Tensor, torch.float32)}


def is_standard_layer(parts: list[Any]) -> bool:
    """Whether they compute what `kernels.layer` does: no part has been exchanged (for a LoRA's, say), cut to another
    size or kind of numbers, hooked, or set otherwise. It's asked for every block: each lookup counts."""
    if [type(part) for part in parts] != PLAIN or is_hooked(parts):
        return False
    weights = [part._parameters["weight"] for part in parts if "weight" in part._parameters]
    if not {(type(weight), getattr(weight, "dtype", None)) for weight in weights} <= WEIGHTS:
        return False
    _, norm, attention, _, _, next_norm, _, _, gelu, _, _, last_norm = parts
    *shapes, _ = [weight.shape for weight in weights]
    width, hidden = shapes[-1]
    return (
        shapes == [(width,), (3 * width, width), (width, width), (width,), (hidden, width), (width, hidden)]
        and attention.scale == (width // attention.heads) ** -0.5
        and norm.eps == next_norm.eps == last_norm.eps == 1e-5
        and gelu.approximate == "none"
    )


def is_hooked(parts: list[Any]) -> bool:
    """Whether any has a hook, or a `forward` of its own."""
    for about in map(vars, parts):
        before, after = about["_forward_pre_hooks"], about["_forward_hooks"]
        if before or after or about["_backward_pre_hooks"] or about["_backward_hooks"] or "forward" in about:
            return True
    return bool(_has_any_global_hook())
