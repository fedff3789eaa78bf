"""The private names of PyTorch that this library uses, in one place. All were checked with PyTorch 2.15."""

from collections.abc import Callable
from typing import Any, TypeVar, cast

import torch
from torch.autograd import forward_ad
from torch.nn.modules import module

Function = TypeVar("Function", bound=Callable)


def constant_when_compiled(function: Function) -> Function:
    """Decorator: torch.compile calls the function once, and treats its result as a constant.

    2.15: `torch.compiler.assume_constant_result` sets the same attribute, but imports the compiler, which takes
    seconds.
    """
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return function


@constant_when_compiled
def is_exporting() -> bool:
    """`torch.compiler.is_exporting`, which torch.compile took for True in every case up to PyTorch 2.11 at least."""
    return torch.compiler.is_exporting()


def is_tracing() -> bool:
    """True while exporting, tracing, or under `torch.func` or forward-mode AD, for which the kernels have no rules.

    It is False while torch.compile traces: the compiler knows the kernels as custom operators.

    2.15: `forward_ad._current_level` is −1 outside forward-mode AD, and `peek_interpreter_stack` returns None outside
    `torch.func`'s transforms.
    """
    if is_exporting() or torch.jit.is_tracing():
        return True
    if torch.compiler.is_compiling():
        return False
    return forward_ad._current_level >= 0 or torch._C._functorch.peek_interpreter_stack() is not None


def has_global_hooks() -> bool:
    """Whether hooks are registered that run for every module.

    2.15: `nn.Module.__call__` asks the same function.
    """
    return bool(module._has_any_global_hook())


def set_recompile_limit(limit: int) -> None:
    """How often torch.compile may compile one piece of code anew before it falls back to eager mode.

    2.15: 8 by default.
    """
    torch._dynamo.config.recompile_limit = limit


def inductor(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> Callable:
    """The default backend of `torch.compile`. It compiles the backward pass at once, too, so that it fails here or not
    at all.

    2.15: by default the backward pass is compiled when it first runs. 2.9: always at once, without a setting.
    """
    from torch._functorch import config
    from torch._inductor.compile_fx import compile_fx

    settings = combine_kernels() if any(isinstance(given, torch.Tensor) and given.is_cuda for given in inputs) else {}
    at_once = "force_non_lazy_backward_lowering"
    with config.patch({at_once: True} if hasattr(config, at_once) else {}):
        return cast(Callable, compile_fx(graph, inputs, config_patches=settings))


def combine_kernels() -> dict[str, Any]:
    """Settings of the compiler for a GPU: kernels that don't need each other's results become one.

    A transformer has dozens of small ones in each block: casts of weights, and sums for the gradients of biases.

    2.15: off by default, and at most 8 become one, within 64 of each other (−1: anywhere). The parameters of an inner
    layer are 14 tensors. `torch.cat` of more than 8 would be a kernel that is never combined with others.
    """
    from torch._inductor import config

    wanted = {
        "combo_kernels": True,
        "combo_kernel_max_num_nodes": 64,
        "combo_kernel_max_distance": -1,
        "max_pointwise_cat_inputs": 14,
    }
    return {name: value for name, value in wanted.items() if hasattr(config, name)}


def copy_all(targets: list[torch.Tensor], sources: list[torch.Tensor]) -> None:
    """Copy each source to its target; in one launch on a GPU, if all have one dtype.

    2.15: `torch.optim.swa_utils` uses the same function.
    """
    torch._foreach_copy_(targets, sources)
