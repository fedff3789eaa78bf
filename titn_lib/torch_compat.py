"""PyTorch's private names, in one place, each with the version it was checked with."""

import torch
from torch.autograd import forward_ad


def is_tracing() -> bool:
    """Whether PyTorch is doing something else with the operations than computing or compiling them: writing them down
    (export, TorchScript), or following rules that the kernels don't have (`torch.func`, forward-mode derivatives)."""
    if torch.compiler.is_exporting() or torch.jit.is_tracing():
        return True
    if torch.compiler.is_compiling():
        return False
    return forward_ad._current_level >= 0 or torch._C._functorch.peek_interpreter_stack() is not None
