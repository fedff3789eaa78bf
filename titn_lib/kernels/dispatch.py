"""Decide between the kernels of a whole layer or its MLP (C++ or Triton) and plain PyTorch.

The kernels compute what an unmodified `models.layers.TransformerLayer` and the LayerNorm after it compute, or its MLP
and the LayerNorm before it. A user may have replaced a submodule (LoRA, pruning, quantization), registered a hook or
changed a setting. Then the modules' own `forward` must run.
"""

from typing import Any

import torch
from torch import Tensor, nn

from titn_lib.kernels.fused_layer import can_use_fused_layer, flatten_params, layer
from titn_lib.kernels.fused_mlp import can_use_fused_mlp, mlp
from titn_lib.torch_compat import has_global_hooks

STANDARD_TYPES: list[type] = []  # of an unmodified layer's modules, and of the LayerNorm after it
WEIGHT_TYPES = {(nn.Parameter, torch.float32), (Tensor, torch.float32)}


def register_standard_layer(example: nn.Module) -> None:
    """Tell which modules, in the order of `modules()`, make up the layer that the kernel computes."""
    STANDARD_TYPES[:] = [*map(type, example.modules()), nn.LayerNorm]


def fused_layer_or_none(standard: nn.Module, norm: nn.Module, tokens: Tensor) -> tuple[Tensor, Tensor] | None:
    """The layer's output and norm(output), from the kernel; None if that doesn't apply.

    Args:
        standard: the transformer layer.
        norm: the LayerNorm after it.
        tokens: "*batch token width".
    """
    parts: list[Any] = [*standard.modules(), norm]
    if not is_standard_layer(parts):
        return None
    attention, mlp_in = parts[2], parts[7]  # in the order of `modules()`
    hidden, norm_size = len(mlp_in._parameters["weight"]), parts[-1]._parameters["weight"].numel()
    sizes = attention.heads, hidden, norm_size
    if not can_use_fused_layer(tokens, *sizes):
        return None
    return layer(tokens, flatten_params(parts), *sizes)


def fused_mlp_or_none(
    norm: nn.Module, standard: nn.Module, tokens: Tensor, update: Tensor
) -> tuple[Tensor, Tensor] | None:
    """tokens + update and mlp(norm(tokens + update)), from the kernel; None if that doesn't apply.

    Args:
        norm: the LayerNorm before the MLP.
        standard: the MLP.
        tokens, update: "*batch token width".
    """
    if not can_use_fused_mlp(tokens) or not is_standard_mlp(parts := [norm, *standard.modules()]):
        return None
    weights: list[Any] = [weight for part in parts for weight in part._parameters.values()]
    return mlp(tokens, update, *weights)


def is_standard_mlp(parts: list[Any]) -> bool:
    """As `is_standard_layer`."""
    if [type(part) for part in parts] != STANDARD_TYPES[5:10] or is_hooked(parts):
        return False
    norm, _, up, gelu, down = parts
    weights = [part._parameters[name] for part in (norm, up, down) for name in ("weight", "bias")]
    if not {(type(weight), getattr(weight, "dtype", None)) for weight in weights} <= WEIGHT_TYPES:
        return False
    hidden, width = up._parameters["weight"].shape
    shapes = [weight.shape for weight in weights]
    return (
        hidden % 16 == 0
        and shapes == [(width,), (width,), (hidden, width), (hidden,), (width, hidden), (width,)]
        and norm.eps == 1e-5
        and gelu.approximate == "none"
    )


def is_standard_layer(parts: list[Any]) -> bool:
    """Whether the kernel computes what these modules do: none is replaced, resized, hooked, of another dtype or set
    otherwise. Every block asks this in every forward pass, so each lookup counts."""
    if [type(part) for part in parts] != STANDARD_TYPES or is_hooked(parts):
        return False
    weights = [part._parameters["weight"] for part in parts if "weight" in part._parameters]
    biases = [part._parameters["bias"] for part in parts if part._parameters.get("bias") is not None]
    if not {(type(weight), getattr(weight, "dtype", None)) for weight in weights + biases} <= WEIGHT_TYPES:
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
    for attributes in map(vars, parts):
        if (
            attributes["_forward_pre_hooks"]
            or attributes["_forward_hooks"]
            or attributes["_backward_pre_hooks"]
            or attributes["_backward_hooks"]
            or "forward" in attributes
        ):
            return True
    return has_global_hooks()
