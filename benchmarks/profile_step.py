"""Where the time of a training step goes on a GPU: host time, kernel time and kernel launches of each part.

    python benchmarks/profile_step.py --out benchmarks/profile-cuda.json   # one minute

The published recipe of `titn_paper` on noise in the shape of CIFAR-10, with its VGG16-BN teacher. The same batches are
used again and again, so the loss means nothing.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch.profiler import ProfilerActivity, profile

from titn_lib import create_model
from titn_lib.data.datasets import DataSplits
from titn_lib.data.images import ImageDataset
from titn_lib.losses.distillation import teacher_forward
from titn_lib.training.config import Run
from titn_lib.training.distributed import start_fabric
from titn_lib.training.evaluation import evaluate
from titn_lib.training.recipes import published_recipe
from titn_lib.training.records import run_metadata
from titn_lib.training.trainer import EPOCH_VAL_IMAGES, Trainer

IMAGES = 8192
MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)


def make_trainer(model: str, teacher: str | None, folder: str) -> Trainer:
    """A trainer after its first steps, on noise."""
    split = ImageDataset(torch.randint(0, 256, (IMAGES, 3, 32, 32), dtype=torch.uint8), torch.randint(10, (IMAGES,)))
    validation = split[:EPOCH_VAL_IMAGES]
    data = DataSplits("noise", tuple("0123456789"), MEAN, STD, split, validation, validation)
    recipe = published_recipe("cifar10")
    run = Run(
        "cifar10", model, recipe, loss="hard" if teacher else "cross_entropy",
        teacher=Run("cifar10", teacher, recipe) if teacher else None,
    )  # fmt: skip
    trainer = Trainer(run, Path(folder), data, create_model(teacher) if teacher else None, start_fabric("auto"))
    trainer.objective.train()
    order = torch.arange(IMAGES, device=trainer.fabric.device)
    for _ in range(6):
        next_step(trainer, order)
    return trainer


def next_step(trainer: Trainer, order: torch.Tensor) -> None:
    trainer.train_step(order)
    trainer.state.step = (trainer.state.step + 1) % trainer.steps


def parts_of(trainer: Trainer) -> dict[str, Callable[[], object]]:
    """The whole step and its parts."""
    order = torch.arange(IMAGES, device=trainer.fabric.device)
    images, targets = trainer.batch(order, np.random.default_rng(0))

    def teacher() -> None:
        with trainer.fabric.autocast():
            teacher_forward(trainer.teacher, images)

    parts: dict[str, Callable[[], object]] = {"whole step": lambda: next_step(trainer, order)}
    parts["augmentation, CutMix, normalization"] = lambda: trainer.batch(order, np.random.default_rng(0))
    if trainer.teacher is not None:
        parts["teacher"] = teacher
    parts["step without augmentation, launched one by one"] = lambda: trainer.step(images, targets, 1e-3)
    parts[f"evaluation of {EPOCH_VAL_IMAGES:,} images"] = lambda: evaluate(
        trainer.network, trainer.val_subset, trainer.preprocessing, trainer.fabric, predicted=trainer.predict
    )
    return parts


def measure(work: Callable[[], object], repeats: int = 20) -> dict[str, float]:
    """Milliseconds until the GPU is done and until the host is, milliseconds of kernels, and their number."""
    for _ in range(3):
        work()
    torch.cuda.synchronize()
    began = time.perf_counter()
    for _ in range(repeats):
        work()
    host = time.perf_counter() - began
    torch.cuda.synchronize()
    whole = time.perf_counter() - began
    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        for _ in range(3):
            work()
        torch.cuda.synchronize()
    kernels = [event for event in profiler.key_averages() if event.self_device_time_total > 0]
    return {
        "ms": 1e3 * whole / repeats,
        "host_ms": 1e3 * host / repeats,
        "kernel_ms": sum(event.self_device_time_total for event in kernels) / 3e3,
        "launches": round(sum(event.count for event in kernels) / 3),
        "kernels": {
            event.key[:110]: [round(event.self_device_time_total / 3e3, 3), event.count // 3]
            for event in sorted(kernels, key=lambda event: -event.self_device_time_total)[:30]
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="titn_paper")
    parser.add_argument("--teacher", default="vgg16_bn", help='"" for none')
    parser.add_argument("--out", type=Path, help="write the record here (JSON)")
    options = parser.parse_args()
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        trainer = make_trainer(options.model, options.teacher or None, folder)
        found = {name: measure(work) for name, work in parts_of(trainer).items()}
    batch = trainer.recipe.batch_size
    print(f"{'':50} {'ms':>8} {'host ms':>8} {'kernel ms':>9} {'launches':>8} {'images/s':>9}")
    for name, values in found.items():
        ms, host, kernel = (values[key] for key in ("ms", "host_ms", "kernel_ms"))
        row = f"{ms:8.2f} {host:8.2f} {kernel:9.2f} {values['launches']:8} {1e3 * batch / ms:9,.0f}"
        print(f"{name:50} {row}")
        for kernel, (milliseconds, count) in values["kernels"].items():
            print(f"    {milliseconds:8.3f} ms {count:6}x  {kernel}")
    if options.out:
        metadata = run_metadata(trainer.fabric.strategy.precision.precision, 1, trainer.fabric.device)
        options.out.write_text(
            json.dumps({"model": options.model, "batch": batch, "parts": found, **metadata}, indent=1) + "\n",
            encoding="utf-8",
        )


if __name__ == "__main__":
    main()
