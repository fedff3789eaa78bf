"""Attention of short sequences, and whole layers of few and narrow tokens, made for a CPU (`kernels.cpp`).

Sixteen pixel tokens of 12 numbers are too little for a library's kernels: most of the time goes to moving them between
memory and cores. The kernels here do all the arithmetic while the tokens stay in the cache. They are compiled for the
sizes at hand when these are first met (a second or two) and kept in the user's cache folder. On a GPU, for long or wide
tokens, or without a C++ compiler, `transformer` does without them.
"""

import ctypes
import hashlib
import logging
import os
import platform
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

SOURCE = Path(__file__).with_suffix(".cpp")
WIDEST = 32  # of a layer's tokens, and of a head: beyond, a library's matrix products win
LONGEST = 32  # sequence
MOST = 40_000  # numbers that a layer keeps for each lane: 2.5 MB in all, well within a thread's stack
FLAGS = ("-O3", "-funroll-loops", "-fno-math-errno", "-fno-trapping-math", "-march=native", "-shared", "-fPIC")
EXTRAS = (("-fopenmp", "-mprefer-vector-width=512"), ("-fopenmp",), ())  # the first that the compiler knows
NAMES = {torch.float32: "float", torch.bfloat16: "bfloat16"}


def suits_attention(qkv: Float[Tensor, "*batch token three_widths"], heads: int) -> bool:
    """Whether `attention` is made for this size, kind of numbers and machine."""
    length, width = qkv.shape[-2], qkv.shape[-1] // 3 // heads
    return qkv.dtype in NAMES and fits(qkv, length, width) and available(length, width)


def suits_layer(tokens: Float[Tensor, "*batch token width"], heads: int, hidden: int) -> bool:
    """Whether `layer` is made for this size, kind of numbers and machine."""
    length, width = tokens.shape[-2:]
    numbers = heads * length**2 + 14 * length * width + 3 * length * hidden + 2 * width * (2 * width + hidden)
    small = fits(tokens, length, width) and numbers <= MOST
    return tokens.dtype == torch.float32 and small and available(length, width, heads, hidden)


def fits(tokens: Tensor, length: int, width: int) -> bool:
    small = length <= LONGEST and width <= WIDEST
    return small and tokens.device.type == "cpu" and not torch.compiler.is_exporting()


@torch.library.custom_op("titn::attention", mutates_args=())
def attention(qkv: Tensor, heads: int) -> Tensor:
    """softmax(Q Kᵀ / √head_width) V, for each head.

    It can be differentiated once.

    Args:
        qkv: "*batch token (three head head_width)", float32 or bfloat16; the arithmetic is float32's.

    Returns:
        "*batch token (head head_width)".
    """
    *batch, length, width = qkv.shape
    qkv, mixed = qkv.contiguous(), qkv.new_empty(*batch, length, width // 3)
    library = load(length, width // 3 // heads)
    call(library, f"attention_{NAMES[qkv.dtype]}", [qkv, mixed], mixed, heads)
    return mixed


@torch.library.custom_op("titn::attention_backward", mutates_args=())
def attention_backward(qkv: Tensor, gradient: Tensor, heads: int) -> Tensor:
    *_, length, width = qkv.shape
    qkv, result = qkv.contiguous(), torch.empty_like(qkv, memory_format=torch.contiguous_format)
    library = load(length, width // 3 // heads)
    call(library, f"attention_backward_{NAMES[qkv.dtype]}", [qkv, gradient.contiguous(), result], qkv, heads)
    return result


@torch.library.custom_op("titn::layer", mutates_args=())
def layer(tokens: Tensor, parameters: Tensor, heads: int, hidden: int) -> Tensor:
    """x += Attention(LN(x)); x += MLP(LN(x)).

    It can be differentiated once.

    Args:
        tokens: "*batch token width", float32.
        parameters: of the layer, one after the other, as `Parameters` in kernels.cpp has them.
    """
    tokens = tokens.contiguous()
    result = torch.empty_like(tokens)
    call(load(*tokens.shape[-2:], heads, hidden), "layer", [tokens, parameters, result], tokens)
    return result


@torch.library.custom_op("titn::layer_backward", mutates_args=())
def layer_backward(
    tokens: Tensor, parameters: Tensor, gradient: Tensor, heads: int, hidden: int
) -> tuple[Tensor, Tensor]:
    tokens, result = tokens.contiguous(), torch.empty_like(gradient, memory_format=torch.contiguous_format)
    sums = parameters.new_zeros(torch.get_num_threads(), len(parameters))
    library = load(*tokens.shape[-2:], heads, hidden)
    call(library, "layer_backward", [tokens, parameters, gradient.contiguous(), result, sums], tokens)
    return result, sums.sum(dim=0)


def call(library: ctypes.CDLL, name: str, tensors: list[Tensor], like: Tensor, *heads: int) -> None:
    """A function of kernels.cpp: tensors, then the number of sequences, heads where it asks for them, and threads."""
    sequences = like.shape[:-2].numel()
    addresses = [ctypes.c_void_p(tensor.data_ptr()) for tensor in tensors]
    getattr(library, name)(*addresses, ctypes.c_int64(sequences), *heads, torch.get_num_threads())


# --- what autograd and torch.compile must know

attention.register_fake(lambda qkv, heads: qkv.new_empty(*qkv.shape[:-1], qkv.shape[-1] // 3))
attention_backward.register_fake(lambda qkv, gradient, heads: torch.empty_like(qkv))
layer.register_fake(lambda tokens, parameters, heads, hidden: torch.empty_like(tokens))
layer_backward.register_fake(
    lambda tokens, parameters, gradient, heads, hidden: (torch.empty_like(tokens), torch.empty_like(parameters))
)


def remember_attention(ctx: Any, inputs: tuple, output: Tensor) -> None:
    qkv, ctx.heads = inputs
    ctx.save_for_backward(qkv)


def remember_layer(ctx: Any, inputs: tuple, output: Tensor) -> None:
    tokens, parameters, *ctx.sizes = inputs
    ctx.save_for_backward(tokens, parameters)


def differentiate_attention(ctx: Any, gradient: Tensor) -> tuple:
    return attention_backward(*ctx.saved_tensors, gradient, ctx.heads), None


def differentiate_layer(ctx: Any, gradient: Tensor) -> tuple:
    return *layer_backward(*ctx.saved_tensors, gradient, *ctx.sizes), None, None


attention.register_autograd(differentiate_attention, setup_context=remember_attention)
layer.register_autograd(differentiate_layer, setup_context=remember_layer)


# --- the compiler


def available(length: int, width: int, heads: int = 1, hidden: int = 0) -> bool:
    """Whether kernels.cpp is compiled for these sizes, or can be."""
    try:
        load(length, width, heads, hidden)
    except (OSError, subprocess.SubprocessError) as problem:
        complain(str(problem))
        return False
    return True


# torch.compile need not look inside: what torch.compiler.assume_constant_result does, without its import of seconds.
available._dynamo_marked_constant = True  # type: ignore[attr-defined]


def find_compiler() -> str | None:
    """The C++ compiler: what CXX names, or else g++ or clang++."""
    return shutil.which(os.environ.get("CXX", "g++")) or shutil.which("clang++")


@cache
def complain(reason: str) -> None:
    """Say it once."""
    logging.getLogger(__name__).warning("the inner stream runs without kernels.cpp, a good deal slower: %s", reason)


@cache
def load(length: int, width: int, heads: int = 1, hidden: int = 0) -> ctypes.CDLL:
    """kernels.cpp for these sizes (with `hidden`, the layer), compiled if it isn't in the cache yet.

    Raises:
        OSError, SubprocessError: there is no compiler, or it doesn't manage.
    """
    compiler = find_compiler()
    if not compiler:
        raise FileNotFoundError("there is no C++ compiler (install g++ or clang++)")
    sizes = [f"-DTOKENS={length}", f"-DWIDTH={width}", f"-DHEADS={heads}", *([f"-DHIDDEN={hidden}"] if hidden else [])]
    key = "\n".join([SOURCE.read_text(), compiler, processor(), *FLAGS, *sizes])
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "titn_lib"
    path = folder / f"{hashlib.sha256(key.encode()).hexdigest()[:24]}.so"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as unfinished:  # another process may be at it, too
            built = Path(unfinished) / path.name
            for extras in EXTRAS:
                command = [compiler, *FLAGS, *extras, *sizes, str(SOURCE), "-o", str(built)]
                result = subprocess.run(command, capture_output=True, timeout=120)
                if result.returncode == 0:
                    break
            result.check_returncode()
            built.replace(path)
    return ctypes.CDLL(str(path))


def processor() -> str:
    """What -march=native depends on."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    return next((line for line in lines if line.startswith(("flags", "Features"))), platform.platform())
