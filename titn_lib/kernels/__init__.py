"""Kernels that make training and inference fast: in C++ for a CPU, in Triton for a GPU. Everything works without."""

from titn_lib.kernels.build import find_compiler, first_error, load, tune_malloc
from titn_lib.kernels.dispatch import fused_layer_or_none, fused_mlp_or_none, register_standard_layer
from titn_lib.kernels.fused_layer import (
    attention,
    attention_backward,
    can_use_fused_attention,
    can_use_fused_layer,
    flatten_params,
    layer,
    triton_available,
)
from titn_lib.kernels.image_ops import (
    KINDS,
    apply_lut,
    can_augment,
    can_use_image_ops,
    crop,
    crop_flip,
    histogram,
    mix_normalize,
    operate,
    remap,
)

__all__ = [
    "KINDS",
    "apply_lut",
    "attention",
    "attention_backward",
    "can_augment",
    "can_use_fused_attention",
    "can_use_fused_layer",
    "can_use_image_ops",
    "crop",
    "crop_flip",
    "find_compiler",
    "first_error",
    "flatten_params",
    "fused_layer_or_none",
    "fused_mlp_or_none",
    "histogram",
    "layer",
    "load",
    "mix_normalize",
    "operate",
    "register_standard_layer",
    "remap",
    "triton_available",
    "tune_malloc",
]
