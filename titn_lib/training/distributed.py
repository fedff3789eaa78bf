"""Devices, processes and interrupts."""

import logging
import math
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import torch
from lightning_fabric import Fabric
from lightning_fabric.plugins.environments import LightningEnvironment
from torch import Tensor

from titn_lib import kernels
from titn_lib.errors import TITNError

TIME_LIMIT = "the time limit"


@dataclass(frozen=True)
class Deadline:
    """When to stop, on the monotonic clock: never by default."""

    at: float = math.inf

    @classmethod
    def after(cls, minutes: float | None) -> "Deadline":
        return cls() if minutes is None else cls(time.monotonic() + 60 * minutes)

    @property
    def minutes_left(self) -> float | None:
        """None where there is no limit."""
        return None if math.isinf(self.at) else (self.at - time.monotonic()) / 60

    @property
    def passed(self) -> bool:
        return time.monotonic() > self.at


def start_fabric(precision: str, device: str = "auto") -> Fabric:
    """Fabric for this process: alone, or one of those that `torchrun` started.

    Raises:
        TITNError: a GPU was asked for and there is none.
    """
    if device == "cuda" and not torch.cuda.is_available():
        raise TITNError("no GPU that PyTorch can use is here: choose --device cpu, or install PyTorch for your GPU")
    kernels.tune_malloc()
    logging.getLogger("lightning_fabric").setLevel(logging.WARNING)  # it announces each precision
    accelerator = device if device != "auto" else ("cuda" if torch.cuda.is_available() else "cpu")
    local, world = (int(os.environ.get(name, 1)) for name in ("LOCAL_WORLD_SIZE", "WORLD_SIZE"))
    fabric = Fabric(
        accelerator=accelerator,
        devices=local,
        num_nodes=world // local,
        strategy="ddp" if world > 1 else "auto",
        plugins=[LightningEnvironment()] if world == 1 else None,  # else Fabric asks MPI, which may be there but broken
        precision=choose_precision(accelerator) if precision == "auto" else precision,  # type: ignore[arg-type]
    )
    fabric.launch()
    torch.backends.cudnn.benchmark = True  # of no effect without a GPU: the fastest of its convolutions
    return fabric


def all_reduce_sum(fabric: Fabric, values: Tensor) -> Tensor:
    """The sum over all processes."""
    return cast(Tensor, fabric.all_reduce(values, reduce_op="sum"))


def is_main_process() -> bool:
    """Whether this process is the one that prints and writes for all."""
    return int(os.environ.get("RANK", 0)) == 0


def choose_precision(accelerator: str) -> str:
    """bfloat16 where the processor has instructions for it; else float16 on a GPU and float32 on a CPU."""
    if accelerator == "cuda":
        return "bf16-mixed" if torch.cuda.is_bf16_supported(including_emulation=False) else "16-mixed"
    capabilities: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    return "bf16-mixed" if capabilities.get("avx512_bf16") or capabilities.get("amx_bf16") else "32-true"


@contextmanager
def graceful_interrupt(deadline: Deadline) -> Iterator[Callable[[], str]]:
    """Collects Ctrl-C, SIGTERM and the time limit, so that training can end between two steps.

    Yields a function that says why to stop, or "". A second Ctrl-C interrupts at once.
    """
    asked = []

    def note(number: int, _: object) -> None:
        asked.append(signal.Signals(number).name)
        signal.signal(number, before[signal.Signals(number)])

    before = {}
    for number in (signal.SIGINT, signal.SIGTERM):
        try:
            before[number] = signal.signal(number, note)
        except ValueError:  # not the main thread: signals go elsewhere
            continue
    try:
        yield lambda: asked[0] if asked else (TIME_LIMIT if deadline.passed else "")
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
