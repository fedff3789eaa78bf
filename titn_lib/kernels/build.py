"""Compile the C++ kernels, cache them, load them."""

import ctypes
import hashlib
import logging
import os
import platform
import re
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path

from torch import Tensor

from titn_lib.torch_compat import constant_when_compiled

LAYER_SOURCE = Path(__file__).with_name("fused_layer.cpp")
IMAGE_SOURCE = Path(__file__).with_name("image_ops.cpp")
SIZES = ("TOKENS", "WIDTH", "HEADS", "HIDDEN", "NORM_SIZE")
FLAGS = ("-O3", "-funroll-loops", "-fno-math-errno", "-fno-trapping-math", "-march=native", "-shared", "-fPIC")
# Optional flags: the first set that the compiler accepts is used.
OPTIONAL_FLAGS = (("-fopenmp", "-mprefer-vector-width=512"), ("-fopenmp",), ())


def data_pointers(*tensors: Tensor) -> list[ctypes.c_void_p]:
    return [ctypes.c_void_p(tensor.data_ptr()) for tensor in tensors]


def tune_malloc() -> None:
    """Make glibc keep freed memory for the next training step: fresh pages from the system take time."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if os.name == "posix" else None
    if mallopt:  # glibc
        for option in (-1, -3):  # M_TRIM_THRESHOLD, M_MMAP_THRESHOLD
            mallopt(option, 2**30)


@constant_when_compiled
def available(*sizes: int) -> bool:
    """Whether `load` succeeds for these sizes. The first failure is logged as a warning."""
    error = load_error(*sizes)
    if error:
        warn_once(error)
    return not error


def find_compiler() -> str | None:
    """Path of the C++ compiler: the one that CXX names, else g++, else clang++; None without any."""
    return next(filter(None, map(shutil.which, (os.environ.get("CXX", ""), "g++", "clang++"))), None)


@cache
def load_error(*sizes: int) -> str:
    """Why `load` fails; empty if it succeeds. Cached, so that a failure isn't tried again."""
    try:
        load(*sizes)
    except subprocess.CalledProcessError as error:
        return first_error(error.stderr.decode(errors="replace") or str(error))
    except (OSError, subprocess.SubprocessError) as error:
        return first_error(str(error))
    return ""


def first_error(message: str) -> str:
    """A compiler's first error in its own words, as one line: the rest of its output follows from it."""
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    return next((line for line in lines if re.search(r"error:|error [A-Z]+\d|not found", line)), (lines or [""])[0])[
        :300
    ]


@cache
def warn_once(reason: str) -> None:
    logging.getLogger(__name__).warning(
        "inner stream and data augmentation run without the C++ kernels, a good deal slower: %s", reason
    )


@cache
def load(*sizes: int) -> ctypes.CDLL:
    """Load a kernel library, and compile it first unless it is in the user's cache.

    Args:
        sizes: for fused_layer.cpp, in the order of `SIZES`: the three of an attention (sequence length, width, heads),
            or all five of a layer. None for image_ops.cpp.

    Raises:
        OSError, SubprocessError: there is no compiler, or compiling fails.
    """
    compiler = find_compiler()
    if not compiler:
        raise FileNotFoundError("there is no C++ compiler (install g++ or clang++)")
    source = LAYER_SOURCE if sizes else IMAGE_SOURCE
    macros = [f"-D{name}={size}" for name, size in zip(SIZES, sizes, strict=False)]
    key = "\n".join([source.read_text(encoding="utf-8"), compiler, processor(), *FLAGS, *macros])
    folder = cache_dir()
    path = folder / f"{hashlib.sha256(key.encode()).hexdigest()[:24]}.so"
    if not path.exists():
        with tempfile.TemporaryDirectory(dir=folder) as unfinished:  # another process may compile the same
            built = Path(unfinished) / path.name
            for optional in OPTIONAL_FLAGS:
                command = [compiler, *FLAGS, *optional, *macros, str(source), "-o", str(built)]
                result = subprocess.run(command, capture_output=True, timeout=120)
                if result.returncode == 0:
                    break
            result.check_returncode()
            built.replace(path)
    return ctypes.CDLL(str(path))


def cache_dir() -> Path:
    """The folder of compiled kernels: titn_lib in the user's cache, or a private one where temporary files are.

    The second serves a user without a home folder, or without permission to write there, as in many containers.

    Raises:
        OSError: neither can be written to.
    """
    try:
        folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "titn_lib"
        folder.mkdir(parents=True, exist_ok=True)
        if os.access(folder, os.W_OK):
            return folder
    except (OSError, RuntimeError):  # RuntimeError: no HOME, and a user that the system doesn't know
        pass
    owner = getattr(os, "getuid", int)()
    folder = Path(tempfile.gettempdir()) / f"titn_lib-{owner}"
    folder.mkdir(mode=0o700, exist_ok=True)
    if folder.stat().st_uid != owner:  # programs are loaded from there
        raise PermissionError(f"{folder} belongs to another user")
    return folder


def processor() -> str:
    """The processor's features, which -march=native depends on."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    return next((line for line in lines if line.startswith(("flags", "Features"))), platform.platform())
