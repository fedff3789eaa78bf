"""Faithfulness of attribution maps: deletion and insertion curves of several maps, on test images.

    uv run python benchmarks/faithfulness.py --out results/faithfulness-cifar10-titn_mini.json   # eight minutes

Squares of 2×2 image pixels are deleted (or inserted) in the order of each map. The measure is the area under the
curve of the predicted class's probability. A faithful map has a small area in deletion and a large one in insertion.
"""

import argparse
import json
import time
from pathlib import Path

import torch
from torch import Tensor

from titn_lib import interpret, load_model
from titn_lib.data.datasets import load_dataset
from titn_lib.data.transforms import normalize

CELL = 2
PAIRS = (
    ("relevance", "outer rollout"),
    ("relevance, by class", "outer rollout, by class"),
    ("relevance, by class", "relevance"),
    ("gradient x input", "relevance, by class"),
    ("relevance", "|gradient|"),
)


def make_maps(model: torch.nn.Module, images: Tensor) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """The predicted classes, the input gradient, and the maps ("batch height width") by name."""
    size, grid = model.config.image_size, model.config.grid
    classes = interpret.head_logits_fn(model)(images).argmax(dim=-1)
    gradient = interpret.input_gradient(model, images, classes)

    def rollout(chosen: Tensor | None) -> Tensor:
        patches = interpret.outer_rollout(model, images, classes=chosen)[:, 1 : 1 + grid[0] * grid[1], None]
        return interpret.to_pixels(patches, grid, size)

    maps = {
        "random": torch.rand(len(images), *size),
        "|gradient|": gradient.abs().sum(dim=1),
        "gradient x input": (gradient * images).sum(dim=1),
        "outer rollout": rollout(None),
        "outer rollout, by class": rollout(classes),
        "relevance": interpret.relevance(model, images).image,
        "relevance, by class": interpret.relevance(model, images, classes=classes).image,
    }
    return classes, gradient, maps


def summary(values: Tensor) -> tuple[float, list[float]]:
    """Mean, and 95 % bootstrap interval."""
    return round(float(values.mean()), 4), [round(bound, 4) for bound in interpret.bootstrap_ci(values)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--weights", default="titn_mini.cifar10")
    parser.add_argument("--images", type=int, default=500)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--out", type=Path, help="write the record here (JSON)")
    options = parser.parse_args()
    began = time.monotonic()
    model = load_model(options.weights).requires_grad_(False)
    data = load_dataset(model.preprocessing.data)
    images = normalize(data.test.images[: options.images], data.mean, data.std)
    logits = interpret.head_logits_fn(model)

    torch.manual_seed(0)
    parts = [make_maps(model, part) for part in images.split(100)]
    classes, gradients = (torch.cat([part[i] for part in parts]) for i in (0, 1))
    maps = {name: torch.cat([part[2][name] for part in parts]) for name in parts[0][2]}

    def area(start: Tensor, end: Tensor, order: Tensor) -> Tensor:
        batches = zip(*(whole.split(100) for whole in (start, end, order, classes)), strict=True)
        return torch.cat(
            [interpret.auc(interpret.perturbation_curve(logits, *batch, steps=options.steps)) for batch in batches]
        )

    record = {
        "model": options.weights,
        "head": "class",
        "images": len(images),
        "steps": options.steps,
        "cell": f"{CELL}x{CELL} image pixels",
        "accuracy of the class head": round(float((classes == data.test.labels[: len(images)]).float().mean()), 4),
        "probability at the start": round(float(logits(images).softmax(-1).gather(1, classes[:, None]).mean()), 4),
        "areas": {},
    }
    for title, blank in {"mean color": torch.zeros_like(images), "blur": interpret.blur(images)}.items():
        if title != "mean color":  # there, the blank is zero, and this is gradient x input
            maps["gradient x (input - blank)"] = (gradients * (images - blank)).sum(dim=1)
        areas = {}
        for name, values in maps.items():
            order = interpret.order_cells(values, CELL)
            areas[name] = {"deletion": area(images, blank, order), "insertion": area(blank, images, order)}
        rows: dict[str, dict] = {}
        for name, both in areas.items():
            rows[name] = {}
            for kind, values in both.items():
                mean, interval = summary(values)
                gap, gap_interval = summary(values - areas["random"][kind])
                rows[name][kind] = {
                    "mean": mean, "interval": interval, "minus random": gap, "its interval": gap_interval
                }  # fmt: skip
            print(f"{title:12} {name:28}", {kind: row["mean"] for kind, row in rows[name].items()}, flush=True)
        differences = {}
        for a, b in PAIRS:
            gaps = {kind: summary(areas[a][kind] - areas[b][kind]) for kind in ("deletion", "insertion")}
            differences[f"{a} minus {b}"] = {kind: [mean, *interval] for kind, (mean, interval) in gaps.items()}
        record["areas"][title] = {"maps": rows, "differences (mean, 95 % interval)": differences}
    record["minutes"] = round((time.monotonic() - began) / 60, 1)
    if options.out:
        options.out.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
