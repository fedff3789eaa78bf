"""What a CPU needs C++ for: attention of short sequences and whole layers of few and narrow tokens (`kernels.cpp`),
pictures' bytes by table (`augment.cpp`).

Sixteen pixel tokens of 12 numbers are too little for a library's kernels: most of the time goes to moving them between
memory and cores. The kernels here do all the arithmetic while the tokens stay in the cache. They are compiled for the
sizes at hand when these are first met (a second or two) and kept in the user's cache folder. On a GPU, for long or wide
tokens, or without a C++ compiler, `transformer` and `augment` do without them.
"""

import ctypes
import hashlib
import logging
import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int32, Int64, UInt8
from torch import Tensor, nn
from torch.autograd import forward_ad

from .errors import TITNError

KERNELS, BYTES = Path(__file__).with_suffix(".cpp"), Path(__file__).with_name("augment.cpp")
SIZES = ("TOKENS", "WIDTH", "HEADS", "HIDDEN", "SPAN")
WIDEST = 32  # of a layer's tokens, and of a head: beyond, a library's matrix products win
LONGEST = 32  # sequence
MOST = 22_000  # numbers that a layer keeps for each lane: 1.4 MB in all, of the 2 MB or more of a thread's stack
FLAGS = ("-O3", "-funroll-loops", "-fno-math-errno", "-fno-trapping-math", "-march=native", "-shared", "-fPIC")
EXTRAS = (("-fopenmp", "-mprefer-vector-width=512"), ("-fopenmp",), ())  # the first that the compiler knows
NAMES = {torch.float32: "float", torch.bfloat16: "bfloat16"}


def suits_attention(qkv: Float[Tensor, "*batch token three_widths"], heads: int, scale: float) -> bool:
    """Whether `attention` is made for this size, scale of queries, kind of numbers and machine."""
    length, width = qkv.shape[-2], qkv.shape[-1] // 3 // heads
    usual = qkv.dtype in NAMES and scale == width**-0.5
    return usual and fits(qkv, length, width) and available(length, width, 1)


def suits_layer(tokens: Float[Tensor, "*batch token width"], heads: int, hidden: int, span: int) -> bool:
    """Whether `layer` is made for this size, kind of numbers and machine."""
    length, width = tokens.shape[-2:]
    numbers = heads * length**2 + 18 * length * width + 3 * length * hidden + 2 * width * (2 * width + hidden)
    small = fits(tokens, length, width) and numbers <= MOST
    return tokens.dtype == torch.float32 and small and available(length, width, heads, hidden, span)


def fits(tokens: Tensor, length: int, width: int) -> bool:
    small = 0 < length <= LONGEST and width <= WIDEST
    return small and tokens.device.type == "cpu" and not is_followed()


def is_followed() -> bool:
    """Whether PyTorch is doing something else with the operations than computing or compiling them: writing them down
    (export, TorchScript), or following rules that the kernels don't have (`torch.func`, forward-mode derivatives)."""
    if torch.compiler.is_exporting() or torch.jit.is_tracing():
        return True
    if torch.compiler.is_compiling():
        return False
    return forward_ad._current_level >= 0 or torch._C._functorch.peek_interpreter_stack() is not None


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
    library = load(length, width // 3 // heads, 1)
    call(library, f"attention_{NAMES[qkv.dtype]}", [qkv, mixed], mixed, heads)
    return mixed


@operation("attention_backward(Tensor qkv, Tensor gradient, int heads) -> Tensor")
def attention_backward(qkv: Tensor, gradient: Tensor, heads: int) -> Tensor:
    *_, length, width = qkv.shape
    qkv, result = qkv.contiguous(), new_like(qkv)
    library = load(length, width // 3 // heads, 1)
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
    library = load(*tokens.shape[-2:], heads, hidden, span)
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
    library = load(*tokens.shape[-2:], heads, hidden, span)
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
    getattr(library, name)(*addresses(*tensors), ctypes.c_int64(sequences), *size, torch.get_num_threads())


def addresses(*tensors: Tensor) -> list[ctypes.c_void_p]:
    return [ctypes.c_void_p(tensor.data_ptr()) for tensor in tensors]


# --- bytes, for `augment` (augment.cpp)


def suits_bytes(images: Tensor) -> bool:
    """Whether `look_up`, `count`, `cut` and `move` are made for this kind of numbers and machine."""
    return images.dtype == torch.uint8 and images.device.type == "cpu" and available()


def look_up(
    images: UInt8[Tensor, "batch channel height width"], table: UInt8[Tensor, "batch channel 1 256"]
) -> UInt8[Tensor, "batch channel height width"]:
    """What each picture's and channel's table makes of every point."""
    result = torch.empty(images.shape, dtype=torch.uint8)
    rows, length = images.shape[:2].numel(), images.shape[2:].numel()
    call_bytes("look_up", [images.contiguous(), table.contiguous(), result], rows, length)
    return result


def count(images: UInt8[Tensor, "batch channel height width"]) -> Int32[Tensor, "batch channel 1 256"]:
    """How many points of each picture and channel have each of the 256 values."""
    counts = torch.empty(*images.shape[:2], 1, 256, dtype=torch.int32)
    call_bytes("count", [images.contiguous(), counts], images.shape[:2].numel(), images.shape[2:].numel())
    return counts


def cut(
    images: UInt8[Tensor, "batch channel height width"],
    top: Int64[Tensor, " batch"],
    left: Int64[Tensor, " batch"],
    height: int,
    width: int,
) -> UInt8[Tensor, "batch channel new_height new_width"]:
    """A window of each picture, at its own place."""
    result = torch.empty(*images.shape[:2], height, width, dtype=torch.uint8)
    sizes = *images.shape[:2], height, width, *images.shape[2:]
    call_bytes("cut", [images.contiguous(), top, left, result], *sizes)
    return result


def move(
    images: UInt8[Tensor, "batch channel height width"],
    maps: Int64[Tensor, "map height width"],
    which: Int64[Tensor, " batch"],
) -> UInt8[Tensor, "batch channel height width"]:
    """Every place of a picture gets the point that its map names: counted from 1, or 0 for black."""
    result = torch.empty(images.shape, dtype=torch.uint8)
    call_bytes("move", [images.contiguous(), maps, which, result], *images.shape[:2], images.shape[2:].numel())
    return result


def call_bytes(name: str, tensors: list[Tensor], *sizes: int) -> None:
    getattr(load(), name)(*addresses(*tensors), *map(ctypes.c_int64, sizes), torch.get_num_threads())


# --- what autograd and torch.compile must know


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


# --- the compiler and the memory


def keep_memory() -> None:
    """Let the C library keep what is freed: the next step wants it again, and new pages from the system cost time."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if os.name == "posix" else None
    if mallopt:  # glibc
        for setting in (-1, -3):  # M_TRIM_THRESHOLD, M_MMAP_THRESHOLD
            mallopt(setting, 2**30)


def available(*sizes: int) -> bool:
    """Whether `load` has what it takes."""
    if reason := missing(*sizes):
        complain(reason)
    return not reason


# torch.compile need not look inside: what torch.compiler.assume_constant_result does, without its import of seconds.
available._dynamo_marked_constant = True  # type: ignore[attr-defined]


def find_compiler() -> str | None:
    """The C++ compiler: what CXX names, or else g++ or clang++."""
    return next(filter(None, map(shutil.which, (os.environ.get("CXX", ""), "g++", "clang++"))), None)


@cache
def missing(*sizes: int) -> str:
    """Why `load` can't, empty where it can: a failure is remembered, too."""
    try:
        load(*sizes)
    except (OSError, subprocess.SubprocessError) as problem:
        return str(problem)
    return ""


@cache
def complain(reason: str) -> None:
    """Say it once."""
    logging.getLogger(__name__).warning(
        "inner stream and augmentation run without kernels in C++, a good deal slower: %s", reason
    )


@cache
def load(*sizes: int) -> ctypes.CDLL:
    """A C++ file, compiled if it isn't in the cache yet: kernels.cpp for these sizes; for none, augment.cpp.

    Args:
        sizes: of a sequence: length, width, heads; of a layer also its MLP's hidden width and the span.

    Raises:
        OSError, SubprocessError: there is no compiler, or it doesn't manage.
    """
    compiler = find_compiler()
    if not compiler:
        raise FileNotFoundError("there is no C++ compiler (install g++ or clang++)")
    source = KERNELS if sizes else BYTES
    macros = [f"-D{name}={size}" for name, size in zip(SIZES, sizes, strict=False)]
    key = "\n".join([source.read_text(encoding="utf-8"), compiler, processor(), *FLAGS, *macros])
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "titn_lib"
    path = folder / f"{hashlib.sha256(key.encode()).hexdigest()[:24]}.so"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as unfinished:  # another process may be at it, too
            built = Path(unfinished) / path.name
            for extras in EXTRAS:
                command = [compiler, *FLAGS, *extras, *macros, str(source), "-o", str(built)]
                result = subprocess.run(command, capture_output=True, timeout=120)
                if result.returncode == 0:
                    break
            result.check_returncode()
            built.replace(path)
    return ctypes.CDLL(str(path))


def processor() -> str:
    """What -march=native depends on."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    return next((line for line in lines if line.startswith(("flags", "Features"))), platform.platform())
