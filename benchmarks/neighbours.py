"""The neighbours' speed, all in one run: pictures a second while they learn, and while they answer.

    uv run python benchmarks/neighbours.py --out results/neighbours-speed-cpu.json   # some ten minutes

Learning is the library's own step with all that a neighbour's training asks for (augmentation, two views, a teacher),
on noise in the shape of CIFAR-10. Answering is `training.predict`, 256 pictures at a time; AdaViT's gates are open, as
at the start. Contestants take turns, round after round. `titn results` shows the medians beside the accuracies.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from titn_lib import create_model
from titn_lib.datasets import DataSplits, ImageSet
from titn_lib.experiments import Experiment, load_experiments
from titn_lib.recipes import Run
from titn_lib.records import circumstances
from titn_lib.training import Training, predict, start_fabric

FILES = (
    "cifar10-nano-laptop",
    "cifar10-contrastive-laptop",
    "cifar10-neighbours-laptop",
    "cifar10-titn_mini-ideas-laptop",
)
PICTURES, BATCH = 4096, 256


class Contestant:
    """An experiment's network at work."""

    def __init__(self, experiment: Experiment, folder: Path):
        run = next(iter(experiment.runs.values()))
        torch.manual_seed(0)
        split = ImageSet(
            torch.randint(0, 256, (PICTURES, 3, 32, 32), dtype=torch.uint8), torch.randint(10, (PICTURES,))
        )
        data = DataSplits("noise", tuple("0123456789"), (0.5, 0.5, 0.5), (0.25, 0.25, 0.25), split, split, split)
        teacher = create_model(run.teacher.model) if isinstance(run.teacher, Run) else None
        self.fabric = start_fabric("auto")
        self.training = Training(run, folder / experiment.name, data, teacher, self.fabric)
        self.training.resume()
        self.learn()
        self.answer()

    def learn(self) -> int:
        """One step; returns how many pictures it learned from."""
        training = self.training
        training.objective.train()
        training.train_step(np.arange(PICTURES))
        training.place.step = (training.place.step + 1) % training.steps
        return training.recipe.batch_size

    def answer(self) -> int:
        images = self.training.train_set.images[:BATCH]
        with self.fabric.autocast():
            predict(self.training.network, images, self.training.preprocessing).sum().item()
        return BATCH


def rate(work: Callable[[], int], seconds: float) -> float:
    work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    began, done = time.perf_counter(), 0
    while time.perf_counter() - began < seconds:
        done += work()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
    return done / (time.perf_counter() - began)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=1.0, help="a measurement's length")
    parser.add_argument("--out", type=Path, help="write the record here (JSON)")
    options = parser.parse_args()
    experiments = [experiment for experiment in load_experiments().values() if experiment.file in FILES]
    rounds: dict[str, dict[str, list[float]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        contestants = {}
        for experiment in experiments:
            contestants[experiment.name] = Contestant(experiment, Path(folder))
            print(f"{experiment.name}: ready", flush=True)
        for _ in range(options.rounds):
            for name, contestant in contestants.items():
                for job, work in (("learning", contestant.learn), ("answering", contestant.answer)):
                    rounds.setdefault(name, {}).setdefault(job, []).append(round(rate(work, options.seconds), 1))
    medians = {name: {job: statistics.median(values) for job, values in jobs.items()} for name, jobs in rounds.items()}
    for name, jobs in medians.items():
        print(f"{name:55} learning {jobs['learning']:9,.0f}   answering {jobs['answering']:9,.0f} images/s")
    if options.out:
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        record = {"medians": medians, "rounds": rounds, **circumstances("auto", 1, device)}
        options.out.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
