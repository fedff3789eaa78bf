"""Attention of short sequences, and whole transformer layers of few and narrow tokens, as PyTorch operators.

Sixteen pixel tokens of width 12 are too small for a library's matrix products: a layer of them is memory-bound. On a
CPU, kernels in C++ (`fused_layer.cpp`) keep a group of sequences in the cache from the first product to the last. On a
GPU, a layer is one kernel in Triton (`fused_layer_triton.py`), which keeps a sequence in registers. Both are compiled
on first use for the sizes at hand, which takes a second or two, and kept in the user's cache folder. For longer or
wider tokens, without a compiler, or on another kind of device, `models.layers` computes the same in plain PyTorch.
"""

import ctypes
import importlib.util
import logging
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from titn_lib.errors import TITNError
from titn_lib.kernels import build
from titn_lib.torch_compat import constant_when_compiled, is_tracing

log = logging.getLogger(__name__)
MAX_WIDTH = 32  # of a layer's tokens, and of a head: a library's matrix products are faster for wider ones
MAX_SEQ_LEN = 32
MAX_GPU_ATTENTION = 128  # tokens: PyTorch's fused attention is made for longer sequences
MAX_GPU_SEQ_LEN, MAX_GPU_HIDDEN = 16, 96  # of a layer: what fits in the registers of a warp
MAX_GPU_WIDTH = {torch.float32: 15, torch.bfloat16: 31}  # with products in this dtype
MAX_STACK_FLOATS = 22_000  # that a layer keeps for each lane: 1.4 MB in all, of the 2 MB or more of a thread's stack
C_TYPES = {torch.float32: "float", torch.bfloat16: "bfloat16"}


def can_use_fused_attention(qkv: Float[Tensor, "*batch token three_widths"], heads: int, scale: float) -> bool:
    """Whether `attention` supports this shape, scale of the queries, dtype and device."""
    length, width = qkv.shape[-2], qkv.shape[-1] // 3 // heads
    if qkv.dtype not in C_TYPES or scale != width**-0.5:
        return False
    if qkv.device.type == "cuda":
        return 0 < length <= MAX_GPU_ATTENTION and width <= 64 and not is_tracing() and triton_available()
    return is_small_on_cpu(qkv, length, width) and build.available(length, width, 1)


def can_use_fused_layer(tokens: Float[Tensor, "*batch token width"], heads: int, hidden: int, norm_size: int) -> bool:
    """Whether `layer` supports this shape, dtype and device."""
    length, width = tokens.shape[-2:]
    dtype = matmul_dtype(tokens)
    if tokens.dtype != torch.float32 or dtype not in C_TYPES:
        return False
    if tokens.device.type == "cuda":
        small = 0 < length <= MAX_GPU_SEQ_LEN and width <= MAX_GPU_WIDTH[dtype] and hidden <= MAX_GPU_HIDDEN
        return small and not is_tracing() and triton_available()
    floats = heads * length**2 + 18 * length * width + 3 * length * hidden + 2 * width * (2 * width + hidden)
    small = is_small_on_cpu(tokens, length, width) and floats <= MAX_STACK_FLOATS
    return small and build.available(length, width, heads, hidden, norm_size)


def is_small_on_cpu(tokens: Tensor, length: int, width: int) -> bool:
    small = 0 < length <= MAX_SEQ_LEN and width <= MAX_WIDTH
    return small and tokens.device.type == "cpu" and not is_tracing()


@constant_when_compiled
def triton_available() -> bool:
    """Whether Triton is installed and can build, and the GPU one of NVIDIA's with tensor cores for bfloat16."""
    nvidia = torch.version.cuda is not None and torch.cuda.get_device_capability() >= (8, 0)
    return nvidia and importlib.util.find_spec("triton") is not None and triton_builds()


@cache
def triton_builds() -> bool:
    """Whether Triton builds and runs a small kernel. If not, the log says why: it needs a C compiler, for example."""
    try:
        call_triton("attention", torch.zeros(1, 16, 48, device="cuda"), 1)
    except Exception as problem:  # it raises its own, the compiler's and the driver's
        log.warning("the GPU runs without the Triton kernels, slower: %s", build.first_error(str(problem)))
        return False
    return True


def define(schema: str) -> str:
    """Define a PyTorch operator whose function on a GPU has its name in fused_layer_gpu.py, and return this name."""
    name = schema.partition("(")[0]
    torch.library.define(f"titn::{name}", schema.removeprefix(name), tags=torch.Tag.pt2_compliant_tag)
    torch.library.impl(f"titn::{name}", "CUDA", lambda *arguments: call_triton(name, *arguments))
    return name


def operator(schema: str) -> Callable[[Callable], Callable]:
    """Decorator: `define` an operator, and register the function for a CPU. `torch.library.custom_op` would cost 3 µs
    more per call."""

    def register(function: Callable) -> Callable:
        name = define(schema)
        torch.library.impl(f"titn::{name}", "CPU", function)
        return getattr(torch.ops.titn, name).default

    return register


# Attention


@operator("attention(Tensor qkv, int heads) -> Tensor")
def attention(qkv: Tensor, heads: int) -> Tensor:
    """softmax(Q Kᵀ / √head_width) V for each head. Double backward raises TITNError.

    Args:
        qkv: "*batch token (three head head_width)", float32 or bfloat16; computed in float32.

    Returns:
        "*batch token (head head_width)".
    """
    *batch, length, width = qkv.shape
    qkv, mixed = qkv.contiguous(), qkv.new_empty(*batch, length, width // 3)
    library = build.load(length, width // 3 // heads, 1)
    call(library, f"attention_{C_TYPES[qkv.dtype]}", [qkv, mixed], mixed, heads)
    return mixed


@operator("attention_backward(Tensor qkv, Tensor gradient, int heads) -> Tensor")
def attention_backward(qkv: Tensor, gradient: Tensor, heads: int) -> Tensor:
    *_, length, width = qkv.shape
    qkv, result = qkv.contiguous(), contiguous_like(qkv)
    library = build.load(length, width // 3 // heads, 1)
    call(library, f"attention_backward_{C_TYPES[qkv.dtype]}", [qkv, gradient.contiguous(), result], qkv, heads)
    return result


def setup_attention_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
    qkv, ctx.heads = inputs
    ctx.save_for_backward(qkv)


def backward_attention(ctx: Any, gradient: Tensor) -> tuple:
    refuse_double_backward()
    return attention_backward(*ctx.saved_tensors, gradient, ctx.heads), None


torch.library.register_fake("titn::attention", lambda qkv, heads: qkv.new_empty(*qkv.shape[:-1], qkv.shape[-1] // 3))
torch.library.register_fake("titn::attention_backward", lambda qkv, *rest: contiguous_like(qkv))
torch.library.register_autograd("titn::attention", backward_attention, setup_context=setup_attention_context)


# A whole layer, and the LayerNorm after it


def layer(
    tokens: Float[Tensor, "*batch token width"],
    parameters: Float[Tensor, " parameter"],
    heads: int,
    hidden: int,
    norm_size: int,
) -> tuple[Float[Tensor, "*batch token width"], Float[Tensor, "*batch token width"]]:
    """x += Attention(LN(x)); x += MLP(LN(x)); normed = LN(x). Double backward raises TITNError.

    Under autocast to bfloat16, a GPU multiplies in bfloat16; a CPU always in float32.

    Args:
        tokens: x, float32.
        parameters: `flatten_params` of the layer and the last LayerNorm.
        hidden: width of the MLP's hidden layer.
        norm_size: number of values that the last LayerNorm normalizes together: a token's, or a whole sequence's.

    Returns:
        x and normed. Under autocast to bfloat16, normed is bfloat16, the dtype that the next product takes.
    """
    bfloat16 = matmul_dtype(tokens) == torch.bfloat16
    return layer_op(tokens, parameters, torch.bfloat16 if bfloat16 else torch.float32, heads, hidden, norm_size)


@operator(  # torch.compile keeps code by this schema: change it, too, when the gradient's output changes
    "layer(Tensor tokens, Tensor parameters, ScalarType dtype, int heads, int hidden, int norm_size)"
    " -> (Tensor, Tensor)"
)
def layer_op(
    tokens: Tensor, parameters: Tensor, dtype: torch.dtype, heads: int, hidden: int, norm_size: int
) -> tuple[Tensor, Tensor]:
    check_parameters(tokens, parameters, hidden, norm_size)
    tokens, result, normed = tokens.contiguous(), contiguous_like(tokens), contiguous_like(tokens, dtype)
    library = build.load(*tokens.shape[-2:], heads, hidden, norm_size)
    call(library, f"layer_{C_TYPES[dtype]}", [tokens, parameters, result, normed], tokens)
    return result, normed


@operator(
    "layer_backward(Tensor tokens, Tensor parameters, Tensor gradient, Tensor normed_gradient,"
    " int heads, int hidden, int norm_size) -> (Tensor, Tensor)"
)
def layer_backward(
    tokens: Tensor,
    parameters: Tensor,
    gradient: Tensor,
    normed_gradient: Tensor,
    heads: int,
    hidden: int,
    norm_size: int,
) -> tuple[Tensor, Tensor]:
    """The gradient of the tokens, and sums of the parameters' gradients, one for each thread: "sum parameter"."""
    tokens, result = tokens.contiguous(), contiguous_like(tokens)
    sums = parameters.new_zeros(torch.get_num_threads(), len(parameters))
    library = build.load(*tokens.shape[-2:], heads, hidden, norm_size)
    tensors = [tokens, parameters, gradient.contiguous(), normed_gradient.contiguous(), result, sums]
    call(library, f"layer_backward_{C_TYPES[normed_gradient.dtype]}", tensors, tokens)
    return result, sums


def setup_layer_context(ctx: Any, inputs: tuple, output: tuple) -> None:
    tokens, parameters, _, *ctx.sizes = inputs
    ctx.save_for_backward(tokens, parameters)


def backward_layer(ctx: Any, *gradients: Tensor) -> tuple:
    """The last sum is here, and not in the kernel, so that torch.compile makes one launch of those of all layers."""
    refuse_double_backward()
    result, sums = layer_backward(*ctx.saved_tensors, *gradients, *ctx.sizes)
    return result, sums.sum(dim=0), None, None, None, None


def num_sums(tokens: Tensor, dtype: torch.dtype, *sizes: int) -> int:
    """How many sums `layer_backward` returns: one for each thread of a CPU, or each program of a GPU."""
    if tokens.device.type == "cpu":
        return torch.get_num_threads()
    return call_triton("plan", tokens, *sizes, dtype, True)[0]


def fake_layer_backward(
    tokens: Tensor, parameters: Tensor, gradient: Tensor, normed_gradient: Tensor, *sizes: int
) -> tuple[Tensor, Tensor]:
    sums = num_sums(tokens, normed_gradient.dtype, *sizes)
    return contiguous_like(tokens), parameters.new_empty(sums, len(parameters))


torch.library.register_fake(
    "titn::layer", lambda tokens, parameters, dtype, *_: (contiguous_like(tokens), contiguous_like(tokens, dtype))
)
torch.library.register_fake("titn::layer_backward", fake_layer_backward)
torch.library.register_autograd("titn::layer", backward_layer, setup_context=setup_layer_context)


# Shared by both


def flatten_params(modules: list[nn.Module]) -> Float[Tensor, " parameter"]:
    """The modules' weights and biases in one vector, in the order of `Parameters` in fused_layer.cpp. A missing bias is
    filled with zeros."""
    tensors = []
    for module in modules:
        if "weight" in module._parameters:  # not hasattr: nn.Module's is slow
            weight: Any = module._parameters["weight"]
            bias = module._parameters["bias"]
            tensors += [weight.flatten(), weight.new_zeros(len(weight)) if bias is None else bias.flatten()]
    return torch.cat(tensors)


def check_parameters(tokens: Tensor, parameters: Tensor, hidden: int, norm_size: int) -> None:
    """Raises TITNError for another number of parameters than a layer has: a kernel would read past their end."""
    width = tokens.shape[-1]
    wanted = 4 * width**2 + 2 * width * hidden + 9 * width + hidden + 2 * norm_size
    if parameters.numel() != wanted:
        raise TITNError(f"a layer of this size has {wanted} parameters, not {parameters.numel()}: use flatten_params")


def matmul_dtype(tokens: Tensor) -> torch.dtype:
    """The dtype of a matrix product of these tokens: autocast's, or their own."""
    device = tokens.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else tokens.dtype


def call_triton(name: str, *arguments: Any) -> Any:
    """Call a function of fused_layer_gpu.py, which is imported here because Triton isn't installed everywhere."""
    from titn_lib.kernels import fused_layer_gpu

    return getattr(fused_layer_gpu, name)(*arguments)


def call(library: ctypes.CDLL, name: str, tensors: list[Tensor], like: Tensor, *heads: int) -> None:
    """Call a function of fused_layer.cpp: tensors, number of sequences, heads (attention only), number of threads."""
    sequences = like.shape[:-2].numel()
    pointers = build.data_pointers(*tensors)
    getattr(library, name)(*pointers, ctypes.c_int64(sequences), *heads, torch.get_num_threads())


def contiguous_like(tensor: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """An uninitialized, contiguous tensor of the same shape."""
    return torch.empty_like(tensor, dtype=dtype, memory_format=torch.contiguous_format)


def refuse_double_backward() -> None:
    if torch.is_grad_enabled():  # create_graph=True
        raise TITNError("the kernels have no second derivative: pass return_attention=True to compute in plain PyTorch")
