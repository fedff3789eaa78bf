"""The MLP of a transformer layer, with the residual addition and the LayerNorm before it, as a PyTorch operator for a
GPU (`mlp_triton.py`).

Only under autocast to bfloat16, and on GPUs of compute capability 9.0 (Hopper) and above: on older ones, the gradient
doesn't fit in registers. Everywhere else, `models.layers` computes the same in plain PyTorch.
"""

import math
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from titn_lib.kernels.fused_layer import (
    contiguous_like,
    define,
    matmul_dtype,
    refuse_double_backward,
    triton_available,
)
from titn_lib.torch_compat import constant_when_compiled, is_tracing

MAX_WIDTH = 256  # a program keeps the results of its tokens in registers
ROWS = 64  # tokens of a program


def can_use_fused_mlp(tokens: Float[Tensor, "*batch token width"]) -> bool:
    """Whether `mlp` supports this width, dtype and device."""
    if tokens.device.type != "cuda" or tokens.dtype != torch.float32 or matmul_dtype(tokens) != torch.bfloat16:
        return False
    width = tokens.shape[-1]
    fits = width <= MAX_WIDTH and width % 16 == 0 and tokens.numel() > 0
    return fits and not is_tracing() and is_hopper() and triton_available()


@constant_when_compiled
def is_hopper() -> bool:
    return torch.cuda.get_device_capability() >= (9, 0)


def mlp(
    tokens: Float[Tensor, "*batch token width"],
    update: Float[Tensor, "*batch token width"],
    scale: Float[Tensor, " width"],
    shift: Float[Tensor, " width"],
    up: Float[Tensor, "hidden width"],
    up_bias: Float[Tensor, " hidden"],
    down: Float[Tensor, "width hidden"],
    down_bias: Float[Tensor, " width"],
) -> tuple[Float[Tensor, "*batch token width"], Float[Tensor, "*batch token width"]]:
    """x = tokens + update, and down(GELU(up(LN(x)))), where LN has scale and shift. Double backward raises TITNError.

    All but the update is float32; the matrix products, and the second result, have autocast's dtype.
    """
    dtype = matmul_dtype(tokens)
    return torch.ops.titn.mlp(tokens, update, scale, shift, up.to(dtype), up_bias, down.to(dtype), down_bias)


def setup_mlp_context(ctx: Any, inputs: tuple, output: tuple) -> None:
    _, _, *weights, _ = inputs
    ctx.save_for_backward(output[0], *weights)


def backward_mlp(ctx: Any, *gradients: Tensor) -> tuple:
    refuse_double_backward()
    d_x, normed, hidden, d_hidden, sums = torch.ops.titn.mlp_backward(*ctx.saved_tensors, *gradients)
    gradient, normed, hidden, d_hidden = (t.flatten(0, -2) for t in (gradients[1], normed, hidden, d_hidden))
    d_scale, d_shift = sums.sum(dim=0)
    d_up, d_down = d_hidden.T @ normed, gradient.T @ hidden
    d_up_bias, d_down_bias = (tensor.sum(dim=0, dtype=torch.float32) for tensor in (d_hidden, gradient))
    return d_x, d_x, d_scale, d_shift, d_up, d_up_bias, d_down, d_down_bias


def fake_mlp(tokens: Tensor, update: Tensor, scale: Tensor, shift: Tensor, up: Tensor, *_: Tensor) -> tuple:
    return contiguous_like(tokens), contiguous_like(tokens, up.dtype)


def fake_mlp_backward(x: Tensor, scale: Tensor, shift: Tensor, up: Tensor, *_: Tensor) -> tuple[Tensor, ...]:
    hidden = x.new_empty(*x.shape[:-1], len(up), dtype=up.dtype)
    sums = x.new_empty(num_programs(x), 2, len(scale))
    return contiguous_like(x), contiguous_like(x, up.dtype), hidden, torch.empty_like(hidden), sums


def num_programs(tokens: Tensor) -> int:
    return -(-math.prod(tokens.shape[:-1]) // ROWS)  # not numel, which torch.compile takes for a constant


define(
    "mlp(Tensor tokens, Tensor update, Tensor scale, Tensor shift, Tensor up, Tensor up_bias, Tensor down,"
    " Tensor down_bias) -> (Tensor, Tensor)"
)
define(
    "mlp_backward(Tensor x, Tensor scale, Tensor shift, Tensor up, Tensor up_bias, Tensor down, Tensor x_gradient,"
    " Tensor gradient) -> (Tensor, Tensor, Tensor, Tensor, Tensor)"
)
torch.library.register_fake("titn::mlp", fake_mlp)
torch.library.register_fake("titn::mlp_backward", fake_mlp_backward)
torch.library.register_autograd("titn::mlp", backward_mlp, setup_context=setup_mlp_context)
