"""How many kernels a training step launches on a GPU, counted on a machine without one.

    python benchmarks/launches.py --out benchmarks/launches.json   # two minutes

The step of `titn_paper` with a VGG16-BN teacher runs on fake tensors, which have a shape and no values, so nothing can
wait for one. torch.compile's generated code is read instead of run. On the way, the graphs' tensors move to a GPU that
isn't there. A CUDA graph contains the launches that are counted here, except the augmentation's. The operations' own
number is exact to a few: a library's matrix product or convolution sometimes takes two.
"""

import argparse
import json
import logging
import re
import tempfile
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from torch import Tensor
from torch._inductor import compile_fx, graph
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils import _triton
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

from titn_lib import create_model, kernels, torch_compat
from titn_lib.data.datasets import DataSplits
from titn_lib.data.images import ImageDataset
from titn_lib.data.mixing import MixedTargets
from titn_lib.kernels import dispatch, fused_layer, image_ops
from titn_lib.training import optim
from titn_lib.training.config import Run
from titn_lib.training.cuda_graph import StepInputs
from titn_lib.training.distributed import start_fabric
from titn_lib.training.evaluation import add_metrics
from titn_lib.training.networks import compile_on_gpu, compile_teacher
from titn_lib.training.optim import compile_blocks, make_optimizer
from titn_lib.training.recipes import published_recipe
from titn_lib.training.trainer import Trainer

GPU = torch.device("cuda", 0)
PROPERTIES = SimpleNamespace(
    name="NVIDIA H200", major=9, minor=0, multi_processor_count=132, warp_size=32, regs_per_multiprocessor=65536,
    max_threads_per_multi_processor=2048, max_threads_per_block=1024, total_memory=140 * 2**30,
    shared_memory_per_block=49152, shared_memory_per_block_optin=232448, shared_memory_per_multiprocessor=233472,
    L2_cache_size=50 * 2**20, clock_rate=1980000, memory_clock_rate=2619000, memory_bus_width=6144, is_integrated=0,
    gcnArchName="",
)  # fmt: skip
PRETENDED = {
    "is_available": lambda: True, "device_count": lambda: 1, "current_device": lambda: 0,
    "get_device_properties": lambda *_: PROPERTIES, "_get_device_properties": lambda *_: PROPERTIES,
    "get_device_capability": lambda *_: (9, 0), "_lazy_init": lambda: None, "_exchange_device": lambda _: 0,
    "_maybe_exchange_device": lambda _: 0, "get_rng_state": lambda *_: torch.zeros(1), "set_rng_state": lambda *_: None,
}  # fmt: skip
PROGRAMS = 8 * 132  # of an inner layer's gradient
NOT_LAUNCHED = "empty", "as_strided", "device", "lift_fresh", "_record_function"
TENSORS_PER_LAUNCH, BLOCKS_PER_LAUNCH, CHUNK = 48, 320, 65536  # of a fused optimizer with momentum


class Finished(Exception):
    """The generated code is there, and needn't be compiled."""


class Counting(TorchDispatchMode):
    """Counts the operations outside compiled code, and the launches of compiled code."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if name.startswith("_fused"):
            self.counts[name] += fused_launches(args[0])
            return None
        if not func.is_view and not name.startswith(NOT_LAUNCHED):
            self.counts[name] += 1
        return func(*args, **(kwargs or {}))

    def add_code(self, code: str, part: str) -> None:
        """The launches in the generated code of a graph."""
        body = code[code.index("def call(") :]
        self.counts[f"{part}: Triton"] += len(re.findall(r"^\s+triton_\w+\.run\(", body, re.M))
        self.counts[f"{part}: products and convolutions"] += len(re.findall(r"extern_kernels\.", body))
        for operator in re.findall(r"= torch\.ops\.titn\.(\w+)\.default\(", body):
            self.counts[f"{part}: titn::{operator}"] += 1
        for operator in re.findall(r"= torch\.ops\.aten\.(\w+)\.", body):
            self.counts[f"{part}: {operator}"] += 1

    def without(self, function: Callable) -> Callable:
        """The function, with no operation of it counted: its compiled code is. torch.compile needs that, too."""

        def paused(*args: Any, **kwargs: Any) -> Any:
            self.__exit__(None, None, None)
            try:
                return function(*args, **kwargs)
            finally:
                self.__enter__()

        return paused


def fused_launches(parameters: list[Tensor]) -> int:
    """How many launches a fused optimizer takes: each has a limited number of tensors and of blocks."""
    launches, tensors, blocks = 1, 0, 0
    for parameter in parameters:
        tensors += 1
        blocks += -(-parameter.numel() // CHUNK)
        if tensors == TENSORS_PER_LAUNCH or blocks >= BLOCKS_PER_LAUNCH:
            launches, tensors, blocks = launches + 1, 0, 0
    return launches


def on_gpu(value: Any) -> Any:
    """A fake tensor or a device, moved to the GPU; everything else as it is."""
    if isinstance(value, torch.device):
        return GPU
    if not isinstance(value, FakeTensor):
        return value
    with value.fake_mode:
        return torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device=GPU)


def recording_inductor(counting: Counting) -> Callable:
    """In place of `torch_compat.inductor`: it compiles for the GPU, and returns the graph itself to be run."""
    compile_inner = compile_fx.compile_fx_inner

    def record(module: torch.fx.GraphModule, inputs: list, **options: Any) -> Callable:
        part = "backward" if options.get("is_backward") else "forward"

        def keep(self: graph.GraphLowering) -> None:
            counting.add_code(self.codegen()[0].value, part)
            raise Finished

        for node in module.graph.nodes:
            node.meta = {name: tree_map(on_gpu, v) if name == "val" else v for name, v in node.meta.items()}
            node.args, node.kwargs = tree_map(on_gpu, node.args), tree_map(on_gpu, node.kwargs)
        module.recompile()
        with ExitStack() as stack:
            for name, value in PRETENDED.items():
                stack.enter_context(patch.object(torch.cuda, name, value, create=True))
            stack.enter_context(patch.object(_triton, "triton_hash_with_backend", lambda *_: ""))
            stack.enter_context(patch.object(graph.GraphLowering, "compile_to_module", keep))
            try:
                compile_inner(module, [on_gpu(given) for given in inputs], **options)
            except Finished:
                pass
            except torch._inductor.exc.InductorError as problem:
                if "Finished" not in str(problem):
                    raise
        return lambda *_: None

    def inductor(module: torch.fx.GraphModule, inputs: list[Tensor]) -> Callable:
        settings = {**torch_compat.combine_kernels(), "fx_graph_cache": False}
        with torch._functorch.config.patch(force_non_lazy_backward_lowering=True):
            compile_fx.compile_fx(module, inputs, inner_compile=record, config_patches=settings)
        return module.forward

    return inductor


def make_trainer(depth: int, teacher: bool, folder: str) -> Trainer:
    """A trainer of the published recipe, with nothing compiled."""
    split = ImageDataset(torch.zeros(1024, 3, 32, 32, dtype=torch.uint8), torch.zeros(1024, dtype=torch.long))
    data = DataSplits("noise", tuple("0123456789"), (0.5,) * 3, (0.25,) * 3, split, split, split)
    recipe = published_recipe("cifar10")
    run = Run(
        "cifar10", "titn_paper", recipe, loss="hard" if teacher else "cross_entropy", model_settings={"depth": depth},
        teacher=Run("cifar10", "vgg16_bn", recipe) if teacher else None,
    )  # fmt: skip
    with patch("titn_lib.training.trainer.compile_blocks", lambda *_: False):
        return Trainer(
            run, Path(folder), data, create_model("vgg16_bn") if teacher else None, start_fabric("bf16-mixed", "cpu")
        )


def make_fake(trainer: Trainer) -> None:
    """Replace the tensors of the step by fake ones."""
    torch.__future__.set_overwrite_module_params_on_conversion(True)
    for module in filter(None, (trainer.objective, trainer.teacher)):
        module.to_empty(device="cpu")
    torch.__future__.set_overwrite_module_params_on_conversion(False)
    trainer.objective.train()
    trainer.optimizer = make_optimizer(trainer.objective, trainer.recipe)
    trainer.sums, trainer.one = torch.zeros(2), torch.ones(())


def count_augmentation(trainer: Trainer) -> Counter[str]:
    """The launches that make a batch and copy it to the CUDA graph's inputs, counted on the device "meta"."""
    counting = Counting()

    def launch(name: str, images: Tensor, dtype: torch.dtype, *_: Any) -> Tensor:
        counting.counts[name] += 1
        return torch.empty(images.shape, dtype=dtype, device="meta")

    trainer.train_set = trainer.train_set.to(torch.device("meta"))
    order = torch.arange(len(trainer.train_set), device="meta")
    with patch.object(image_ops, "launch", launch), patch.object(kernels, "can_augment", lambda _: True):
        inputs = StepInputs.like(*trainer.batch(order, np.random.default_rng(0)))  # it creates what all batches share
        counting.counts.clear()
        with counting:
            inputs.fill(*trainer.batch(order, np.random.default_rng(0)), lr=0.1)
    return Counter({f"augmentation: {name}": number for name, number in counting.counts.items()})


def count_launches(depth: int = 12, teacher: bool = True) -> Counter[str]:
    """The launches of a training step: of each kind, and in which part of it."""
    counting = Counting()
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        for target, name, value in (
            (dispatch, "can_use_fused_layer", lambda *_: True),  # as on a GPU
            (dispatch, "can_use_fused_mlp", lambda *_: True),
            (fused_layer, "num_sums", lambda *_: PROGRAMS),
            (kernels, "can_use_fused_attention", lambda *_: True),
            (kernels, "triton_available", lambda: True),
            (optim, "inductor", recording_inductor(counting)),
        ):
            stack.enter_context(patch.object(target, name, value))
        trainer = make_trainer(depth, teacher, folder)
        augmentation = count_augmentation(trainer)
        stack.enter_context(FakeTensorMode(allow_non_fake_inputs=True))
        make_fake(trainer)
        compile_blocks(trainer.network, 10**9, GPU, whole=trainer.objective)
        if trainer.teacher is not None:
            compile_teacher(trainer.teacher, GPU)
            trainer.teacher.forward_features = counting.without(trainer.teacher.forward_features)  # type: ignore
        trainer.objective = counting.without(trainer.objective)  # type: ignore[assignment]
        trainer.add_metrics = counting.without(compile_on_gpu(add_metrics, GPU))
        trainer.fabric.backward = lambda loss, one: counting.without(loss.backward)(one)  # type: ignore
        images, labels = torch.empty(1024, 3, 32, 32), torch.zeros(1024, dtype=torch.long)
        inputs = StepInputs.like(images, MixedTargets(labels, labels))
        with counting:
            trainer.step(*inputs)
            outside = {name for name in counting.counts if ":" not in name}
            for name in outside:  # the first step creates the optimizer's state
                del counting.counts[name]
            trainer.step(*inputs)
    if optim.FAILURES:
        raise RuntimeError(f"torch.compile failed: {optim.FAILURES[0]}")
    return counting.counts + augmentation


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--depth", type=int, default=12)
    parser.add_argument("--out", type=Path, help="write the record here (JSON)")
    options = parser.parse_args()
    logging.basicConfig()
    counts = count_launches(options.depth)
    for name, number in sorted(counts.items()):
        print(f"{number:5} {name}")
    print(f"{counts.total():5} in all")
    if options.out:
        record = {
            "what": f"launches of a step: titn_paper ({options.depth} blocks), VGG16-BN teacher; counted, not run",
            "launches": counts.total(), "parts": dict(sorted(counts.items())), "torch": torch.__version__,
        }  # fmt: skip
        options.out.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
