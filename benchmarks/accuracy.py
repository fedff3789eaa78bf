"""Does speed cost accuracy? The same runs, plain and fast, three seeds each.

    uv run python benchmarks/accuracy.py --out benchmarks/accuracy-cpu.json   # a quarter of an hour on two cores

Plain is float32 without the C++ kernels and torch.compile; fast is bfloat16 with both. The standard deviation over
seeds is the scale for the difference.
"""

import argparse
import json
import statistics
import tempfile
from dataclasses import replace
from pathlib import Path

import torch

from titn_lib.kernels import build
from titn_lib.training import optim
from titn_lib.training.recipes import make_run
from titn_lib.training.records import run_metadata
from titn_lib.training.run import train

RUNS = {
    "digits": make_run("digits", loss="cross_entropy"),
    "cifar10": make_run("cifar10", loss="cross_entropy", epochs=8, train_images=8000),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path, help="write the record here (JSON)")
    options = parser.parse_args()
    available = build.available
    results = {}
    for name, run in RUNS.items():
        for mode in ("plain", "fast"):
            build.available = available if mode == "fast" else lambda *sizes: False
            optim.MIN_IMAGES_TO_COMPILE = 0 if mode == "fast" else float("inf")
            precision = "bf16-mixed" if mode == "fast" else "32-true"
            torch._dynamo.reset()
            records = []
            for seed in range(options.seeds):
                with tempfile.TemporaryDirectory() as folder:
                    wanted = replace(run, seed=seed, recipe=replace(run.recipe, precision=precision))
                    records.append(train(wanted, folder, device="cpu", progress=False))
            top1 = [record.test["top1"] for record in records]
            results[f"{name} {mode}"] = {
                "test_top1": top1,
                "train_loss": [record.history[-1]["train_loss"] for record in records],
                "images_per_second": [record.images_per_second for record in records],
                "images": records[0].test["num_images"],
            }
            losses = ", ".join(f"{record.history[-1]['train_loss']:.3f}" for record in records)
            print(
                f"{name:8} {mode:6} top-1 {', '.join(f'{x:.2f}' for x in top1)} %: mean {statistics.mean(top1):.2f}, "
                f"standard deviation {statistics.stdev(top1):.2f}; training loss {losses}; "
                f"{statistics.median(record.images_per_second for record in records):,.0f} images/s",
                flush=True,
            )
    if options.out:
        record = {"runs": results, **run_metadata("", 1, torch.device("cpu"))}
        options.out.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
