"""The data pipeline: batched augmentation compared with torchvision's, and a whole training step with teacher.

    uv run python benchmarks/pipeline.py --out benchmarks/pipeline-cpu.json

Augmentation is crop, flip, AutoAugment, CutMix and normalization of CIFAR-sized images. Ours works on whole batches in
the training process, torchvision's image by image in a DataLoader with two workers; they take turns. The whole step is
the library's own (`training.trainer.Trainer`): on a GPU `titn_paper`, batch 1024, with a VGG16-BN; on a CPU
`titn_nano`, batch 128, with our small VGG.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from speed import rate, record_of
from torch.utils.data import DataLoader, Dataset, default_collate
from torchvision.transforms import AutoAugmentPolicy, v2

from titn_lib import create_model
from titn_lib.data.datasets import DataSplits
from titn_lib.data.images import ImageDataset
from titn_lib.data.mixing import cutmix
from titn_lib.data.transforms import augment, normalize
from titn_lib.kernels.build import tune_malloc
from titn_lib.training.config import Run
from titn_lib.training.distributed import start_fabric
from titn_lib.training.recipes import published_recipe, student_recipe
from titn_lib.training.trainer import Trainer

MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)


class OneByOne(Dataset):
    """torchvision's way: the same operations, for each image."""

    def __init__(self, images: torch.Tensor, labels: torch.Tensor):
        self.images, self.labels = images, labels
        self.transform = v2.Compose([
            v2.RandomCrop(32, padding=4, fill=128), v2.RandomHorizontalFlip(),
            v2.AutoAugment(AutoAugmentPolicy.CIFAR10), v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, STD),
        ])  # fmt: skip

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        return self.transform(self.images[index]), self.labels[index]


def theirs(images: torch.Tensor, labels: torch.Tensor, batch: int) -> float:
    """Images per second from a DataLoader with two running workers and CutMix, over a whole epoch."""
    mix = v2.CutMix(num_classes=10)
    loader = DataLoader(
        OneByOne(images, labels), batch, num_workers=2, drop_last=True,
        collate_fn=lambda pairs: mix(*default_collate(pairs)), persistent_workers=True,
    )  # fmt: skip
    for _ in loader:  # start the workers
        pass
    began = time.perf_counter()  # before the workers prefetch
    done = sum(len(batch_images) for batch_images, _ in loader)
    return done / (time.perf_counter() - began)


def ours(images: torch.Tensor, labels: torch.Tensor, batch: int) -> float:
    """Images per second."""
    began = time.perf_counter()
    for start in range(0, len(images), batch):
        rng = np.random.default_rng(start)
        part = augment(images[start : start + batch], "paper_cifar", rng)
        normalize(cutmix(part, labels[start : start + batch], rng)[0], MEAN, STD)
    if images.is_cuda:
        torch.cuda.synchronize()
    return len(images) / (time.perf_counter() - began)


def whole(images: torch.Tensor, labels: torch.Tensor, gpu: bool, teacher: bool, seconds: float) -> float:
    """Images per second of the library's training step, on the same images again and again."""
    split = ImageDataset(images, labels)
    data = DataSplits("noise", tuple("0123456789"), MEAN, STD, split, split[:64], split[:64])
    recipe = published_recipe("cifar10") if gpu else student_recipe("cifar10", "laptop")
    name = "vgg16_bn" if gpu else "vgg7_bn"
    run = Run(
        "cifar10", "titn_paper" if gpu else "titn_nano", recipe, loss="hard" if teacher else "cross_entropy",
        teacher=Run("cifar10", name, recipe) if teacher else None,
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        network = create_model(name) if teacher else None
        trainer = Trainer(run, Path(folder), data, network, start_fabric("auto"))
        trainer.objective.train()
        order = torch.arange(len(images), device=trainer.fabric.device)

        def step() -> None:
            trainer.train_step(order)
            trainer.state.step = (trainer.state.step + 1) % trainer.steps

        for _ in range(3):
            step()
        return rate(step, recipe.batch_size, seconds, trainer.fabric.device)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--images", type=int, default=8192)
    parser.add_argument("--out", type=Path, help="write the record here (JSON)")
    options = parser.parse_args()
    gpu = torch.cuda.is_available()
    tune_malloc()  # for the workers, too
    torch.manual_seed(0)
    labels = torch.randint(10, (options.images,))
    images = torch.randint(0, 256, (options.images, 3, 32, 32), dtype=torch.uint8)
    measures: dict[str, list[float]] = {}

    def note(name: str, value: float) -> None:
        measures.setdefault(name, []).append(value)

    for _ in range(options.rounds):
        for batch in (128, 1024):
            note(f"augmentation, batch {batch}, torchvision, two workers", theirs(images, labels, batch))
            note(f"augmentation, batch {batch}, ours, CPU", ours(images, labels, batch))
            if gpu:
                note(f"augmentation, batch {batch}, ours, GPU", ours(images.cuda(), labels.cuda(), batch))
    for teacher in (False, True):
        note(f"training step {'with teacher' if teacher else 'alone'}", whole(images, labels, gpu, teacher, 10))
    record = record_of(measures, "auto", torch.device("cuda" if gpu else "cpu"))
    if options.out:
        options.out.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
