"""Launch the Triton kernels. Imported on first use, because Triton isn't installed everywhere.

The functions are the operators titn::attention, titn::layer, titn::mlp and their gradients on a GPU; see `fused_layer`
and `fused_mlp`.
"""

import math
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from titn_lib.kernels.attention_triton import attention_backward_kernel, attention_kernel
from titn_lib.kernels.fused_layer import check_parameters, contiguous_like
from titn_lib.kernels.fused_layer_triton import layer_backward_kernel, layer_kernel
from titn_lib.kernels.fused_mlp import ROWS, fake_mlp, fake_mlp_backward, num_programs
from titn_lib.kernels.mlp_triton import mlp_backward_kernel, mlp_kernel

WARPS_PER_PROCESSOR = 8  # as many as its registers hold; more programs would only have fewer tiles each


def attention(qkv: Tensor, heads: int) -> Tensor:
    qkv = qkv.contiguous()
    mixed = qkv.new_empty(*qkv.shape[:-1], qkv.shape[-1] // 3)
    programs, scale, options = plan_attention(qkv, heads)
    attention_kernel[(programs,)](qkv, mixed, heads, scale, **options)
    return mixed


def attention_backward(qkv: Tensor, gradient: Tensor, heads: int) -> Tensor:
    qkv, result = qkv.contiguous(), contiguous_like(qkv)
    programs, scale, options = plan_attention(qkv, heads)
    attention_backward_kernel[(programs,)](qkv, gradient.contiguous(), result, heads, scale, **options)
    return result


def plan_attention(qkv: Tensor, heads: int) -> tuple[int, float, dict[str, Any]]:
    """Number of programs, scale of the scores, and the sizes that the kernels are compiled for."""
    length, width = qkv.shape[-2], qkv.shape[-1] // 3 // heads
    rows, columns = (max(16, triton.next_power_of_2(size)) for size in (length, width))
    options = {
        "LENGTH": length,
        "WIDTH": width,
        "ROWS": rows,
        "COLUMNS": columns,
        "num_warps": 1 if rows <= 32 else 4,
        "enable_fp_fusion": True,
    }
    return qkv.shape[:-2].numel() * heads, width**-0.5, options


def layer(
    tokens: Tensor, parameters: Tensor, dtype: torch.dtype, heads: int, hidden: int, norm_size: int
) -> tuple[Tensor, Tensor]:
    check_parameters(tokens, parameters, hidden, norm_size)
    tokens, result, normed = tokens.contiguous(), contiguous_like(tokens), contiguous_like(tokens, dtype)
    programs, arguments, options = plan(tokens, heads, hidden, norm_size, dtype)
    layer_kernel[(programs,)](tokens, parameters, result, normed, *arguments, **options)
    return result, normed


def layer_backward(
    tokens: Tensor,
    parameters: Tensor,
    gradient: Tensor,
    normed_gradient: Tensor,
    heads: int,
    hidden: int,
    norm_size: int,
) -> tuple[Tensor, Tensor]:
    """One sum for each program, so that their order doesn't depend on the order of execution."""
    tokens, result = tokens.contiguous(), contiguous_like(tokens)
    programs, arguments, options = plan(tokens, heads, hidden, norm_size, normed_gradient.dtype, backward=True)
    per_tile = options["ROWS"] // tokens.shape[-2] if options["WHOLE"] else 1  # sums of the last norm
    before = len(parameters) - 2 * norm_size  # parameters before those of the last norm
    sums = tokens.new_empty(programs, before + 2 * per_tile * norm_size)
    gradients = gradient.contiguous(), normed_gradient.contiguous()
    layer_backward_kernel[(programs,)](tokens, parameters, *gradients, result, sums, *arguments, **options)
    if per_tile > 1:
        last = sums[:, before:].view(programs, 2, per_tile, norm_size).sum(dim=2)
        sums = torch.cat([sums[:, :before], last.flatten(1)], dim=1)
    return result, sums


def plan(
    tokens: Tensor, heads: int, hidden: int, norm_size: int, dtype: torch.dtype, backward: bool = False
) -> tuple[int, tuple[int, float], dict[str, Any]]:
    """A kernel's number of programs, its last arguments, and the sizes it is compiled for.

    The gradient of wide tokens takes four warps. In the registers of one, it would keep 2.6 KB in the stack.
    """
    length, width = tokens.shape[-2:]
    sequences = math.prod(tokens.shape[:-2])  # not numel, which torch.compile takes for a constant
    rows, columns = max(16, triton.next_power_of_2(length)), max(16, triton.next_power_of_2(width + 1))
    warps = 4 if backward and columns > 16 else 1
    programs = min(triton.cdiv(sequences, rows // length), max_programs(tokens.device) // warps)
    options: dict[str, Any] = {
        "LENGTH": length,
        "WIDTH": width,
        "HEADS": heads,
        "HIDDEN": hidden,
        "WHOLE": norm_size != width,
        "ROWS": rows,
        "COLUMNS": columns,
        "CHUNK": 16 if hidden <= 64 else 32,
        "DTYPE": tl.bfloat16 if dtype == torch.bfloat16 else tl.float32,
        "num_warps": warps,
        "enable_fp_fusion": True,
    }
    return max(programs, 1), (sequences, (width // heads) ** -0.5), options


def max_programs(device: torch.device) -> int:
    """As many as a GPU holds at once; a few on a CPU, where Triton's interpreter runs them one after the other."""
    if device.type == "cpu":
        return 2
    return WARPS_PER_PROCESSOR * torch.cuda.get_device_properties(device).multi_processor_count


def mlp(
    tokens: Tensor,
    update: Tensor,
    scale: Tensor,
    shift: Tensor,
    up: Tensor,
    up_bias: Tensor,
    down: Tensor,
    down_bias: Tensor,
) -> tuple[Tensor, Tensor]:
    given = [tensor.contiguous() for tensor in (tokens, update, scale, shift, up, up_bias, down, down_bias)]
    x, result = fake_mlp(*given)
    mlp_kernel[(num_programs(x),)](*given, x, result, x.shape[:-1].numel(), **plan_mlp(up))
    return x, result


def mlp_backward(
    x: Tensor,
    scale: Tensor,
    shift: Tensor,
    up: Tensor,
    up_bias: Tensor,
    down: Tensor,
    x_gradient: Tensor,
    gradient: Tensor,
) -> tuple[Tensor, ...]:
    given = [tensor.contiguous() for tensor in (x, scale, shift, up, up_bias, down, x_gradient, gradient)]
    results = fake_mlp_backward(*given)
    mlp_backward_kernel[(num_programs(x),)](*given, *results, x.shape[:-1].numel(), **plan_mlp(up))
    return results


def plan_mlp(up: Tensor) -> dict[str, Any]:
    """The sizes that the kernels are compiled for: parts and chunks are powers of two that divide width and hidden.

    With 64 in place of 32, or four warps in place of eight, the gradient wouldn't fit in registers.
    """
    hidden, width = up.shape
    return {
        "WIDTH": width,
        "HIDDEN": hidden,
        "PART": min(32, width & -width),
        "CHUNK": min(32, hidden & -hidden),
        "ROWS": ROWS,
        "DTYPE": tl.bfloat16 if up.dtype == torch.bfloat16 else tl.float32,
        "num_warps": 8,
        "enable_fp_fusion": True,
    }
