"""Throughput: images per second of titn_paper and two other transformer-in-transformers of the same size, in one run.

    uv run --group bench python benchmarks/speed.py --out benchmarks/speed-cpu.json     # some fifteen minutes
    uv run --group bench python benchmarks/speed.py --rounds 1 --only ours --jobs training

The peers are timm's `TNT` and lucidrains' `transformer-in-transformer`, both with the published TITN's geometry.
They have no distillation token, so 17 outer tokens per image instead of 18. In each job the networks take turns,
round after round, and a ratio compares measurements of the same round. This matters on a shared machine. The machine's
ceilings are measured too: a large matrix product, and a copy in memory.
"""

import argparse
import gc
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch._inductor.config
from torch import Tensor, nn
from torch.nn import functional as F

from titn_lib import create_model
from titn_lib.io import markdown_table
from titn_lib.kernels.build import tune_malloc
from titn_lib.training.distributed import choose_precision
from titn_lib.training.records import run_metadata

CLASSES = 100
MODES = ("float32", "bfloat16", "float32 compiled", "bfloat16 compiled")


def ours() -> nn.Module:
    return create_model("titn_paper", num_classes=CLASSES)


def timm_tnt() -> nn.Module:
    from timm.models.tnt import TNT

    return TNT(
        img_size=32, patch_size=8, first_stride=2, num_classes=CLASSES, embed_dim=192, inner_dim=12, depth=12,
        num_heads_inner=4, num_heads_outer=8, qkv_bias=True,
    )  # fmt: skip


def lucidrains_tnt() -> nn.Module:
    import transformer_in_transformer.tnt as package

    # As published (0.1.2) it can't be trained: it adds in place to a view of a parameter.
    repeat = package.repeat
    package.repeat = lambda *args, **sizes: repeat(*args, **sizes).clone()
    model = package.TNT(
        image_size=32, patch_size=8, pixel_size=2, patch_dim=192, pixel_dim=12, depth=12, num_classes=CLASSES,
        heads=8, dim_head=24,
    )  # fmt: skip
    for layer in model.layers:  # it has one head size for both streams: give the inner one the paper's
        layer[0].fn = package.Attention(dim=12, heads=4, dim_head=3)
    return model


MODELS = {"ours": ours, "timm": timm_tnt, "lucidrains": lucidrains_tnt}


class Entry:
    """A model in one mode (precision, compiled or not) and one job (training or inference)."""

    def __init__(self, model: str, mode: str, job: str, batch: int, device: torch.device):
        torch.manual_seed(0)
        self.model, self.mode, self.job, self.batch, self.device = model, mode, job, batch, device
        self.network = MODELS[model]().to(device).train(job == "training")
        self.optimizer = torch.optim.SGD(self.network.parameters(), lr=1e-3, momentum=0.9, fused="compiled" in mode)
        self.images = torch.randn(batch, 3, 32, 32, device=device)
        self.labels = torch.randint(CLASSES, (batch,), device=device)
        self.run = self.network
        if "compiled" in mode:
            self.run = torch.compile(self.network, dynamic=False, options=compiler_options(job, device))
        began = time.perf_counter()
        self.work()
        self.first_seconds = time.perf_counter() - began

    def forward(self) -> Tensor:
        with torch.autocast(self.device.type, torch.bfloat16, enabled="bfloat16" in self.mode):
            output = self.run(self.images)
        return (output[0] + output[1]) / 2 if isinstance(output, tuple) else output

    def work(self) -> None:
        if self.job == "training":
            F.cross_entropy(self.forward().float(), self.labels).backward()
            self.optimizer.step()
            self.optimizer.zero_grad()
        else:
            with torch.inference_mode():
                self.forward()

    def rate(self, seconds: float) -> float:
        """Images per second, measured for at least so many seconds."""
        return rate(self.work, self.batch, seconds, self.device)


def compiler_options(job: str, device: torch.device) -> dict[str, object]:
    """The same for every network: CUDA graphs on a GPU, the fewest checks for inference."""
    options: dict[str, object] = {"triton.cudagraphs": device.type == "cuda"}
    if job == "inference":
        options["guard_filter_fn"] = torch.compiler.skip_guard_on_all_nn_modules_unsafe
    return options


def rate(work: Callable[[], object], amount: float, seconds: float, device: torch.device) -> float:
    """`amount` of work per second, measured for at least so many seconds."""
    work()
    synchronize(device)
    burst = 10 if device.type == "cuda" else 1  # as in training, without synchronizing after every step
    began, done = time.perf_counter(), 0
    while time.perf_counter() - began < seconds:
        for _ in range(burst):
            work()
        synchronize(device)
        done += burst
    return done * amount / (time.perf_counter() - began)


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def ceilings(device: torch.device, modes: list[str]) -> dict[str, Callable[[float], float]]:
    """Limits of the machine, each a function of the seconds to measure; matrix products in the modes' dtypes."""
    size = 8192 if device.type == "cuda" else 2048
    measures = {}
    for kind in dict.fromkeys(mode.split()[0] for mode in modes):
        a, b = (torch.randn(size, size, device=device).to(getattr(torch, kind)) for _ in range(2))
        measures[f"matrix product {kind}, GFLOP/s"] = lambda s, a=a, b=b: rate(
            lambda: a @ b, 2 * size**3 / 1e9, s, device
        )
    here, there = (torch.empty(2**28, dtype=torch.uint8, device=device) for _ in range(2))
    measures["copy, GB/s read and written"] = lambda s: rate(lambda: there.copy_(here), 2 * 2**28 / 1e9, s, device)
    return measures


def record_of(rates: dict[str, list[float]], precision: str, device: torch.device, **more: object) -> dict:
    """The record of a benchmark: medians, all rounds and metadata. The medians are printed."""
    medians = {name: statistics.median(values) for name, values in rates.items()}
    for name, value in medians.items():
        print(f"{name:60} {value:12,.1f}   (from {min(rates[name]):,.1f} to {max(rates[name]):,.1f})")
    return {
        "medians": {name: round(value, 1) for name, value in medians.items()},
        "rounds": {name: [round(value, 1) for value in values] for name, values in rates.items()},
        **more,
        **run_metadata(precision, 1, device),
    }


def standings(medians: dict[str, float]) -> dict[str, dict[str, tuple[str, str]]]:
    """For each job ("training 128") and model: the names of its measurements as shipped and in its fastest mode."""
    modes: dict[str, dict[str, list[str]]] = {}
    for name in medians:
        if name.startswith(("training", "inference")):
            job, size, model, _ = name.split(maxsplit=3)
            modes.setdefault(f"{job} {size}", {}).setdefault(model, []).append(name)
    return {
        job: {model: (f"{job} {model} float32", max(names, key=medians.__getitem__)) for model, names in models.items()}
        for job, models in modes.items()
    }


def table(record: dict) -> str:
    """Images per second, as a Markdown table; ratios are medians over the rounds."""
    medians, rounds = record["medians"], record["rounds"]
    head = [
        "job",
        "",
        "as shipped (float32)",
        "at its best",
        "our speedup, both as shipped",
        "both at their best",
        "ours at its best, theirs as shipped",
    ]
    rows = []
    for job, models in standings(medians).items():
        where = f"{job.split()[0]}, batch {job.split()[1]}"
        for model, (shipped, top) in models.items():
            ratios = ["", "", ""]
            if model != "ours" and "ours" in models:
                plain, best = models["ours"]
                ratios = [
                    f"{statistics.median(a / b for a, b in zip(rounds[ours], rounds[theirs], strict=True)):.2f}"
                    for ours, theirs in ((plain, shipped), (best, top), (best, shipped))
                ]
            mode = top.removeprefix(f"{job} {model} ")
            rows.append([where, model, f"{medians[shipped]:,.0f}", f"{medians[top]:,.0f} ({mode})", *ratios])
            where = ""
    return markdown_table(head, rows)


def draw(record: dict, path: Path) -> None:
    """The table as a bar chart: a panel for each job, each model as shipped and in its fastest mode."""
    import matplotlib.pyplot as plt
    import seaborn as sns

    from titn_lib.plots import STYLE, save_figure

    medians = record["medians"]
    jobs = standings(medians)
    sns.set_theme(**STYLE)
    gray, orange = "0.65", sns.color_palette("colorblind")[1]
    figure, panels = plt.subplots(1, len(jobs), figsize=(12, 3.2), layout="constrained", squeeze=False)
    for axis, (job, models) in zip(panels[0], jobs.items(), strict=True):
        for offset, part, color, label in ((-0.2, 0, gray, "as shipped"), (0.2, 1, orange, "at its best")):
            values = [medians[names[part]] for names in models.values()]
            bars = axis.barh([row + offset for row in range(len(models))], values, 0.38, color=color, label=label)
            axis.bar_label(bars, fmt="{:,.0f}", padding=3, fontsize="small")
        axis.set_yticks(range(len(models)), models if axis is panels[0, 0] else [])
        best = max(medians[names[1]] for names in models.values())
        axis.set(title=job.replace(" ", ", batch "), xlabel="images a second", xlim=(0, 1.25 * best))
        axis.grid(visible=False, axis="y")
        axis.invert_yaxis()
    panels[0, 0].legend(loc="lower right", fontsize="small")
    save_figure(figure, path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--seconds", type=float, default=0.5, help="a measurement's length")
    parser.add_argument("--only", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--modes", nargs="+", choices=MODES, help="all that the machine has instructions for")
    parser.add_argument("--jobs", nargs="+", choices=("training", "inference"), default=["training", "inference"])
    parser.add_argument("--batch", type=int, help="of training: 128 on a CPU, 1024 on a GPU")
    parser.add_argument("--out", type=Path, help="write the record here (JSON), and a figure next to it")
    options = parser.parse_args()
    torch._dynamo.config.recompile_limit = 100  # every network is compiled
    torch._inductor.config.freezing = True  # constant-folded weights in inference; no effect in training
    tune_malloc()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    training = options.batch or (1024 if device.type == "cuda" else 128)
    jobs = [("training", training), ("inference", 1), ("inference", 256)]
    bfloat16 = choose_precision(device.type) == "bf16-mixed"
    modes = options.modes or [mode for mode in MODES if bfloat16 or mode.startswith("float32")]
    measures = ceilings(device, modes)
    rates: dict[str, list[float]] = {}
    first: dict[str, float] = {}
    for job, batch in [one for one in jobs if one[0] in options.jobs]:
        for model in options.only:
            for mode in modes:
                if (job, mode) == ("training", "float32 compiled") and "bfloat16 compiled" in modes:
                    continue  # bfloat16 is faster in training
                name = f"{job} {batch} {model} {mode}"
                entry = Entry(model, mode, job, batch, device)
                first[name] = round(entry.first_seconds, 1)
                print(f"{name}: ready after {first[name]} s", flush=True)
                measures[name] = entry.rate
        gc.collect()
        gc.freeze()  # or the collector scans all objects of torch.compile in every round
        for _ in range(options.rounds):
            for name, measure in measures.items():
                rates.setdefault(name, []).append(measure(options.seconds))
        measures = {}
        record = record_of(rates, "as named", device, first_seconds=first)
        if options.out:  # after every job, in case the next one is interrupted
            options.out.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    print(f"\n{table(record)}")
    if options.out:
        try:
            draw(record, options.out.with_suffix(".png"))
        except ModuleNotFoundError as missing:  # on a machine for measurements only
            print(f"no figure: the package {missing.name} is missing")


if __name__ == "__main__":
    main()
