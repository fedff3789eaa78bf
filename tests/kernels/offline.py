"""Compile Triton kernels for GPUs that needn't be there."""

import re
import subprocess
from pathlib import Path
from typing import Any, NamedTuple

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource


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
