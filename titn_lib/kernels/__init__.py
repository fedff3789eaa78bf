"""Compiled kernels that make a CPU fast. Everything works without them."""

from titn_lib.kernels.build import find_compiler, keep_memory, load
from titn_lib.kernels.fused_layer import attention, attention_backward, flat, layer, suits_attention, suits_layer
from titn_lib.kernels.image_ops import count, cut, look_up, move, suits_bytes
from titn_lib.torch_compat import is_followed

__all__ = [
    "attention",
    "attention_backward",
    "count",
    "cut",
    "find_compiler",
    "flat",
    "is_followed",
    "keep_memory",
    "layer",
    "load",
    "look_up",
    "move",
    "suits_attention",
    "suits_bytes",
    "suits_layer",
]
