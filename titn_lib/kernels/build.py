"""The C++ compiler, its cache, and the loading of kernels."""

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

from torch import Tensor

KERNELS, BYTES = Path(__file__).with_name("fused_layer.cpp"), Path(__file__).with_name("image_ops.cpp")
SIZES = ("TOKENS", "WIDTH", "HEADS", "HIDDEN", "SPAN")
FLAGS = ("-O3", "-funroll-loops", "-fno-math-errno", "-fno-trapping-math", "-march=native", "-shared", "-fPIC")
EXTRAS = (("-fopenmp", "-mprefer-vector-width=512"), ("-fopenmp",), ())  # the first that the compiler knows


def addresses(*tensors: Tensor) -> list[ctypes.c_void_p]:
    return [ctypes.c_void_p(tensor.data_ptr()) for tensor in tensors]


def tune_malloc() -> None:
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
