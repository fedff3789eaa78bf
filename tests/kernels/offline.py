"""Run Triton kernels on a CPU, and compile them for GPUs that needn't be there."""

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

INSIDE = os.environ.get("TRITON_INTERPRET") == "1"
INTERPRETED = pytest.mark.skipif(not INSIDE, reason="run by test_in_interpreter")
COMPILED = pytest.mark.skipif(INSIDE, reason="needs Triton's compiler")


def run_interpreted(*files: str) -> str:
    """Run the tests of these files that are `INTERPRETED` in Triton's interpreter, and return what pytest prints.

    In a process of its own, because Triton's own functions, too, are interpreted only if it is set beforehand.
    """
    command = [sys.executable, "-m", "pytest", "-q", "-o", "addopts=", "-p", "no:nbval", "-p", "no:cacheprovider"]
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    result = subprocess.run([*command, *files], env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout
    return result.stdout


class Resources(NamedTuple):
    """What a kernel needs: registers, bytes of stack and of shared memory; and its assembler code."""

    registers: int
    stack: int
    shared: int
    ptx: str
    instructions: int


def compile_for(
    capability: int, kernel: Any, types: dict[str, str], options: dict[str, Any], folder: Path
) -> Resources:
    """Compile for a GPU of this compute capability.

    Args:
        types: of the arguments, where they aren't pointers to int32.
        options: the keyword arguments of the launch.
    """
    compiler = {name: options[name] for name in ("num_warps", "enable_fp_fusion")}
    constants = {name: value for name, value in options.items() if name not in compiler}
    signature = dict.fromkeys(kernel.arg_names, "*i32") | types | dict.fromkeys(constants, "constexpr")
    source = ASTSource(kernel, signature, {(kernel.arg_names.index(name),): value for name, value in constants.items()})
    compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=compiler)
    binary = folder / "kernel.cubin"
    binary.write_bytes(compiled.asm["cubin"])
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    output = subprocess.run([tool, "--dump-resource-usage", binary], capture_output=True, text=True).stdout
    registers, stack = map(int, re.search(r"REG:(\d+) STACK:(\d+)", output).groups())
    ptx = compiled.asm["ptx"]
    return Resources(registers, stack, compiled.metadata.shared, ptx, len(re.findall(r"^\t\S.*;$", ptx, re.M)))
