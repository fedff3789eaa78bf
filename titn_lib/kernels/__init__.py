"""Compiled kernels that make a CPU fast. Everything works without them."""

from titn_lib.kernels.build import find_compiler, load, tune_malloc
from titn_lib.kernels.fused_layer import (
    attention,
    attention_backward,
    can_use_fused_attention,
    can_use_fused_layer,
    flat,
    layer,
)
from titn_lib.kernels.image_ops import can_use_image_ops, count, cut, look_up, move
from titn_lib.torch_compat import is_tracing

__all__ = [
    "attention",
    "attention_backward",
    "can_use_fused_attention",
    "can_use_fused_layer",
    "can_use_image_ops",
    "count",
    "cut",
    "find_compiler",
    "flat",
    "is_tracing",
    "layer",
    "load",
    "look_up",
    "move",
    "tune_malloc",
]
