"""Devices, processes, deadlines and interrupts."""

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
from titn_lib.models.inference import choose_device

TIME_LIMIT = "the time limit"


@dataclass(frozen=True)
class Deadline:
    """The time at which to stop, in seconds of `time.monotonic`. By default there is none."""

    at: float = math.inf

    @classmethod
    def after(cls, minutes: float | None) -> "Deadline":
        """So many minutes from now; None for no deadline."""
        return cls() if minutes is None else cls(time.monotonic() + 60 * minutes)

    @property
    def minutes_left(self) -> float | None:
        """None if there is no deadline."""
        return None if math.isinf(self.at) else (self.at - time.monotonic()) / 60

    @property
    def passed(self) -> bool:
        """Whether it is time to stop."""
        return time.monotonic() > self.at


def start_fabric(precision: str, device: str | torch.device = "auto") -> Fabric:
    """Lightning Fabric for this process, which runs alone or was started by `torchrun`.

    Args:
        precision: as in `Recipe`.
        device: "auto" (a GPU if there is one), "cpu", "cuda" or "mps" (Apple's GPUs, in float32; not tested here).

    Raises:
        TITNError: `device` is "cuda" or "mps" and there is no such GPU, or it can't compute in this precision.
    """
    accelerator = choose_device(device)
    kernels.tune_malloc()
    logging.getLogger("lightning_fabric").setLevel(logging.WARNING)  # it logs each precision
    if accelerator == "mps" and precision not in ("auto", "32-true"):
        raise TITNError(f"Apple's GPUs train in float32 here, not in {precision}: choose --precision 32-true")
    local, world = (int(os.environ.get(name, 1)) for name in ("LOCAL_WORLD_SIZE", "WORLD_SIZE"))
    fabric = Fabric(
        accelerator=accelerator,
        devices=local,
        num_nodes=world // local,
        strategy="ddp" if world > 1 else "auto",
        plugins=[LightningEnvironment()] if world == 1 else None,  # else Fabric detects MPI, which may be broken
        precision=choose_precision(accelerator) if precision == "auto" else precision,  # type: ignore[arg-type]
    )
    fabric.launch()
    torch.backends.cudnn.benchmark = True  # on a GPU: choose the fastest convolution algorithms
    return fabric


def all_reduce_sum(fabric: Fabric, values: Tensor) -> Tensor:
    """The sum of `values` over all processes."""
    return cast(Tensor, fabric.all_reduce(values, reduce_op="sum"))


def sync_stop(fabric: Fabric, reason: str) -> str:
    """The reason to stop, or "". If one process has to stop, all do."""
    if fabric.world_size == 1:
        return reason
    flag = torch.tensor(float(bool(reason)), device=fabric.device)
    return (reason or "another process") if all_reduce_sum(fabric, flag) > 0 else ""


def is_main_process() -> bool:
    """Whether this process prints and writes files for all of them."""
    return int(os.environ.get("RANK", 0)) == 0


def choose_precision(accelerator: str) -> str:
    """bfloat16 if the hardware has instructions for it, else float16 on a GPU and float32 on a CPU or an Apple GPU."""
    if accelerator == "mps":
        return "32-true"
    if accelerator == "cuda":
        return "bf16-mixed" if torch.cuda.is_bf16_supported(including_emulation=False) else "16-mixed"
    capabilities: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    return "bf16-mixed" if capabilities.get("avx512_bf16") or capabilities.get("amx_bf16") else "32-true"


@contextmanager
def graceful_interrupt(deadline: Deadline) -> Iterator[Callable[[], str]]:
    """Context in which Ctrl-C, SIGTERM and the deadline end training between two steps.

    Yields a function that returns the reason to stop, or "". A second Ctrl-C interrupts at once. A signal that the
    process ignores stays ignored: a script's background jobs (`… &`) ignore Ctrl-C, which is not meant for them.
    """
    received = []

    def note(number: int, _: object) -> None:
        received.append(signal.Signals(number).name)
        signal.signal(number, before[signal.Signals(number)])

    before = {}
    for number in (signal.SIGINT, signal.SIGTERM):
        if signal.getsignal(number) is signal.SIG_IGN:
            continue
        before[number] = signal.getsignal(number)  # first: a signal may come at any time
        try:
            signal.signal(number, note)
        except ValueError:  # not the main thread: signals go elsewhere
            del before[number]
    try:
        yield lambda: received[0] if received else (TIME_LIMIT if deadline.passed else "")
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
