"""Throughput of the related systems, all in one run: images per second in training and in inference.

    uv run python benchmarks/related.py --out results/related-speed-cpu.json   # some ten minutes

Training is the library's own step with all that a system's training needs (data augmentation, two views, a teacher),
on noise in the shape of CIFAR-10. Inference is `titn_lib.predict`, uncompiled, in batches of 256 images. AdaViT's gates
are open, as after initialization. The networks take turns, round after round. `titn report` shows the medians next to
the accuracies.
"""

import argparse
import json
import tempfile
from pathlib import Path

import torch
from speed import rate, record_of

from titn_lib import create_model
from titn_lib.data.datasets import DataSplits
from titn_lib.data.images import ImageDataset
from titn_lib.experiments.settings import Experiment, load_experiments
from titn_lib.models.inference import predict
from titn_lib.training.config import Run
from titn_lib.training.distributed import start_fabric
from titn_lib.training.trainer import Trainer

FILES = (
    "cifar10-nano-laptop",
    "cifar10-contrastive-laptop",
    "cifar10-related-laptop",
    "cifar10-titn_mini-ideas-laptop",
)
NUM_IMAGES, BATCH = 45_000, 256  # CIFAR-10's training split, so that the same networks are compiled as in a run


class Entry:
    """An experiment's network, trained and run."""

    def __init__(self, experiment: Experiment, folder: Path):
        run = next(iter(experiment.runs.values()))
        torch.manual_seed(0)
        split = ImageDataset(
            torch.randint(0, 256, (NUM_IMAGES, 3, 32, 32), dtype=torch.uint8), torch.randint(10, (NUM_IMAGES,))
        )
        data = DataSplits("noise", tuple("0123456789"), (0.5, 0.5, 0.5), (0.25, 0.25, 0.25), split, split, split)
        teacher = create_model(run.teacher.model) if isinstance(run.teacher, Run) else None
        self.fabric = start_fabric("auto")
        self.trainer = Trainer(run, folder / experiment.name, data, teacher, self.fabric)
        self.train()
        self.infer()

    def train(self) -> None:
        """One step."""
        trainer = self.trainer
        trainer.objective.train()
        trainer.train_step(torch.arange(NUM_IMAGES, device=self.fabric.device))
        trainer.state.step = (trainer.state.step + 1) % trainer.steps

    def infer(self) -> None:
        images = self.trainer.train_set.images[:BATCH]
        with self.fabric.autocast(), torch.compiler.set_stance("force_eager"):
            predict(self.trainer.network, images, self.trainer.preprocessing).sum().item()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=1.0, help="a measurement's length")
    parser.add_argument("--out", type=Path, help="write the record here (JSON)")
    options = parser.parse_args()
    experiments = [experiment for experiment in load_experiments().values() if experiment.file in FILES]
    rates: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        entries = {}
        for experiment in experiments:
            entries[experiment.name] = Entry(experiment, Path(folder))
            print(f"{experiment.name}: ready", flush=True)
        for _ in range(options.rounds):
            for name, one in entries.items():
                device, batch = one.fabric.device, one.trainer.recipe.batch_size
                rates.setdefault(f"{name} training", []).append(rate(one.train, batch, options.seconds, device))
                rates.setdefault(f"{name} inference", []).append(rate(one.infer, BATCH, options.seconds, device))
    record = record_of(rates, "auto", device)
    if options.out:
        options.out.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
