"""What a CPU needs C++ for: attention of short sequences and whole layers of few and narrow tokens (`kernels.cpp`),
images' bytes by table (`augment.cpp`).

Sixteen pixel tokens of 12 numbers are too little for a library's kernels: most of the time goes to moving them between
memory and cores. The kernels here do all the arithmetic while the tokens stay in the cache. They are compiled for the
sizes at hand when these are first met (a second or two) and kept in the user's cache folder. On a GPU, for long or wide
tokens, or without a C++ compiler, `transformer` and `augment` do without them.
"""

import ctypes
from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from titn_lib.errors import TITNError
from titn_lib.kernels import build
from titn_lib.torch_compat import is_tracing

WIDEST = 32  # of a layer's tokens, and of a head: beyond, a library's matrix products win
LONGEST = 32  # sequence
MOST = 22_000  # numbers that a layer keeps for each lane: 1.4 MB in all, of the 2 MB or more of a thread's stack
NAMES = {torch.float32: "float", torch.bfloat16: "bfloat16"}


def can_use_fused_attention(qkv: Float[Tensor, "*batch token three_widths"], heads: int, scale: float) -> bool:
    """Whether `attention` is made for this size, scale of queries, kind of numbers and machine."""
    length, width = qkv.shape[-2], qkv.shape[-1] // 3 // heads
    usual = qkv.dtype in NAMES and scale == width**-0.5
    return usual and fits(qkv, length, width) and build.available(length, width, 1)


def can_use_fused_layer(tokens: Float[Tensor, "*batch token width"], heads: int, hidden: int, span: int) -> bool:
    """Whether `layer` is made for this size, kind of numbers and machine."""
    length, width = tokens.shape[-2:]
    numbers = heads * length**2 + 18 * length * width + 3 * length * hidden + 2 * width * (2 * width + hidden)
    small = fits(tokens, length, width) and numbers <= MOST
    return tokens.dtype == torch.float32 and small and build.available(length, width, heads, hidden, span)


def fits(tokens: Tensor, length: int, width: int) -> bool:
    small = 0 < length <= LONGEST and width <= WIDEST
    return small and tokens.device.type == "cpu" and not is_tracing()


def operation(schema: str) -> Callable[[Callable], Callable]:
    """A function as an operation of PyTorch, named in the schema; `torch.library.custom_op` costs 3 µs more a call."""

    def register(function: Callable) -> Callable:
        name = schema.partition("(")[0]
        torch.library.define(f"titn::{name}", schema.removeprefix(name), tags=torch.Tag.pt2_compliant_tag)
        torch.library.impl(f"titn::{name}", "CPU", function)
        return getattr(torch.ops.titn, name).default

    return register


@operation("attention(Tensor qkv, int heads) -> Tensor")
def attention(qkv: Tensor, heads: int) -> Tensor:
    """softmax(Q Kᵀ / √head_width) V, for each head.

    It can be differentiated once; twice raises TITNError.

    Args:
        qkv: "*batch token (three head head_width)", float32 or bfloat16; the arithmetic is float32's.

    Returns:
        "*batch token (head head_width)".
    """
    *batch, length, width = qkv.shape
    qkv, mixed = qkv.contiguous(), qkv.new_empty(*batch, length, width // 3)
    library = build.load(length, width // 3 // heads, 1)
    call(library, f"attention_{NAMES[qkv.dtype]}", [qkv, mixed], mixed, heads)
    return mixed


@operation("attention_backward(Tensor qkv, Tensor gradient, int heads) -> Tensor")
def attention_backward(qkv: Tensor, gradient: Tensor, heads: int) -> Tensor:
    *_, length, width = qkv.shape
    qkv, result = qkv.contiguous(), new_like(qkv)
    library = build.load(length, width // 3 // heads, 1)
    call(library, f"attention_backward_{NAMES[qkv.dtype]}", [qkv, gradient.contiguous(), result], qkv, heads)
    return result


def layer(
    tokens: Float[Tensor, "*batch token width"],
    parameters: Float[Tensor, " number"],
    heads: int,
    hidden: int,
    span: int,
) -> tuple[Float[Tensor, "*batch token width"], Float[Tensor, "*batch token width"]]:
    """x += Attention(LN(x)); x += MLP(LN(x)); news = LN(x).

    It can be differentiated once; twice raises TITNError.

    Args:
        tokens: x, float32.
        parameters: `flat` of the layer and the last LayerNorm.
        span: how many numbers the last LayerNorm takes at once: a token's, or a whole sequence's.

    Returns:
        x and news; under autocast to bfloat16 news is rounded to it, as what comes next will want it.
    """
    half = product_dtype(tokens) == torch.bfloat16
    return layer_op(tokens, parameters, heads, hidden, span, torch.bfloat16 if half else torch.float32)


@operation(
    "layer(Tensor tokens, Tensor parameters, int heads, int hidden, int span, ScalarType dtype) -> (Tensor, Tensor)"
)
def layer_op(
    tokens: Tensor, parameters: Tensor, heads: int, hidden: int, span: int, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    width = tokens.shape[-1]
    if parameters.numel() != 4 * width**2 + 2 * width * hidden + 9 * width + hidden + 2 * span:
        raise TITNError(f"{parameters.numel()} parameters are no layer's of this size")  # C++ would read past their end
    tokens, result, news = tokens.contiguous(), new_like(tokens), new_like(tokens, dtype)
    library = build.load(*tokens.shape[-2:], heads, hidden, span)
    call(library, f"layer_{NAMES[dtype]}", [tokens, parameters, result, news], tokens)
    return result, news


@operation(
    "layer_backward(Tensor tokens, Tensor parameters, Tensor gradient, Tensor news_gradient,"
    " int heads, int hidden, int span) -> (Tensor, Tensor)"
)
def layer_backward(
    tokens: Tensor, parameters: Tensor, gradient: Tensor, news_gradient: Tensor, heads: int, hidden: int, span: int
) -> tuple[Tensor, Tensor]:
    tokens, result = tokens.contiguous(), new_like(tokens)
    sums = parameters.new_zeros(torch.get_num_threads(), len(parameters))
    library = build.load(*tokens.shape[-2:], heads, hidden, span)
    tensors = [tokens, parameters, gradient.contiguous(), news_gradient.contiguous(), result, sums]
    call(library, f"layer_backward_{NAMES[news_gradient.dtype]}", tensors, tokens)
    return result, sums.sum(dim=0)


def flat(modules: list[nn.Module]) -> Float[Tensor, " number"]:
    """All that the modules learn, in the order of `Parameters` in kernels.cpp; a bias that they lack is zero."""
    leaves: list[Any] = [leaf for leaf in modules if hasattr(leaf, "weight")]
    biases = [leaf.weight.new_zeros(len(leaf.weight)) if leaf.bias is None else leaf.bias for leaf in leaves]
    pairs = zip(leaves, biases, strict=True)
    return torch.cat([tensor.flatten() for leaf, bias in pairs for tensor in (leaf.weight, bias)])


def product_dtype(tokens: Tensor) -> torch.dtype:
    """Of a matrix product of the tokens on a CPU: autocast's, or their own."""
    return torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else tokens.dtype


def call(library: ctypes.CDLL, name: str, tensors: list[Tensor], like: Tensor, *size: int) -> None:
    """A function of kernels.cpp: tensors, then the number of sequences, a size where it asks for one, and threads."""
    sequences = like.shape[:-2].numel()
    getattr(library, name)(*build.addresses(*tensors), ctypes.c_int64(sequences), *size, torch.get_num_threads())


def new_like(tensor: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """Of its size, the numbers in a row; not filled."""
    return torch.empty_like(tensor, dtype=dtype, memory_format=torch.contiguous_format)


torch.library.register_fake("titn::attention", lambda qkv, heads: qkv.new_empty(*qkv.shape[:-1], qkv.shape[-1] // 3))


torch.library.register_fake("titn::attention_backward", lambda qkv, *rest: new_like(qkv))


torch.library.register_fake(
    "titn::layer", lambda tokens, parameters, *sizes: (new_like(tokens), new_like(tokens, sizes[-1]))
)


torch.library.register_fake(
    "titn::layer_backward", lambda tokens, parameters, *rest: (new_like(tokens), new_like(parameters))
)


def remember_attention(ctx: Any, inputs: tuple, output: Tensor) -> None:
    qkv, ctx.heads = inputs
    ctx.save_for_backward(qkv)


def remember_layer(ctx: Any, inputs: tuple, output: tuple) -> None:
    tokens, parameters, *ctx.sizes, _ = inputs
    ctx.save_for_backward(tokens, parameters)


def refuse_second_derivative() -> None:
    if torch.is_grad_enabled():  # create_graph=True
        raise TITNError(
            "the kernels in C++ have no second derivative: pass return_attention=True, which goes without them"
        )


def differentiate_attention(ctx: Any, gradient: Tensor) -> tuple:
    refuse_second_derivative()
    return attention_backward(*ctx.saved_tensors, gradient, ctx.heads), None


def differentiate_layer(ctx: Any, *gradients: Tensor) -> tuple:
    refuse_second_derivative()
    return *layer_backward(*ctx.saved_tensors, *gradients, *ctx.sizes), None, None, None, None


torch.library.register_autograd("titn::attention", differentiate_attention, setup_context=remember_attention)


torch.library.register_autograd("titn::layer", differentiate_layer, setup_context=remember_layer)
