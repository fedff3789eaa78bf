"""What a run leaves behind: a record with its settings, its curve and its result, and tables made from records."""

import dataclasses
import json
import os
import platform
import subprocess
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from titn_lib import __version__
from titn_lib.errors import TITNError
from titn_lib.io import repo_root, write_atomically
from titn_lib.training.config import Run

RECORD = "record.json"


@dataclass(frozen=True)
class RunResult:
    """One finished run.

    Attributes:
        run: its settings; enough to make it again.
        parameters, macs: the network's size, and multiply-accumulates for one image, with nothing left out.
        history: for every epoch: epoch, lr, train_loss, train_top1, and loss, top1, top5 on the validation split (2,000
            images of a large one).
        validation, test: loss, top1, top5 (per cent) and num_images, with the last weights, as
            `training.evaluate` measures them. The test split is read once, after training.
        seconds: training and validation together, over all sessions.
        images_per_second: images learned from, by the training time alone.
        hardware, versions: where it ran, and the code it ran.
        finished: date and time, UTC.
    """

    run: Run
    parameters: int
    macs: int
    history: list[dict[str, float]]
    validation: dict[str, float]
    test: dict[str, float]
    seconds: float
    images_per_second: float
    hardware: dict[str, object]
    versions: dict[str, str]
    finished: str


def save_record(record: RunResult, path: Path) -> None:
    write_atomically(path, json.dumps(dataclasses.asdict(record), indent=1).encode())


def to_json(records: dict[str, RunResult]) -> bytes:
    """Several records in one file."""
    return json.dumps({name: dataclasses.asdict(record) for name, record in records.items()}, indent=1).encode()


def load_record(path: str | Path) -> RunResult:
    """The record in a file, or in a folder's record.json.

    Raises:
        TITNError: there is none, or it is damaged.
    """
    path = Path(path)
    path = path / RECORD if path.is_dir() else path
    try:
        about = json.loads(path.read_text(encoding="utf-8"))
        return RunResult(**{**about, "run": Run.from_dict(about["run"])})
    except FileNotFoundError as problem:
        raise TITNError(f"there is no record {path}: check the path, or make the run first") from problem
    except (ValueError, KeyError, TypeError) as problem:
        raise TITNError(
            f"{path} is not a record of titn_lib or is damaged: delete it and make the run again"
        ) from problem


def hardware(precision: str, processes: int, device: torch.device) -> dict[str, object]:
    """What the run ran on."""
    cpu = platform.processor() or platform.machine()
    if (info := Path("/proc/cpuinfo")).exists():
        names = [line.split(":")[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")]
        cpu = names[0] if names else cpu
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "cpu": cpu,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "processes": processes,
        "precision": precision,
        "system": platform.platform(terse=True),
    }


def run_metadata(precision: str, processes: int, device: torch.device) -> dict[str, Any]:
    """Where and when something was measured: a record's last three lines."""
    now = datetime.now(UTC).isoformat(timespec="seconds")
    return {"hardware": hardware(precision, processes, device), "versions": versions(), "finished": now}


def versions() -> dict[str, str]:
    """The packages a result depends on; of titn-lib in a checkout also the commit, as in "0.1.0+1a2b3c4"."""
    found = {"python": platform.python_version(), "titn-lib": __version__}
    for package in ("torch", "torchvision", "numpy", "lightning-fabric", "pytorch-lightning"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    if top := repo_root():
        with suppress(OSError, subprocess.CalledProcessError):  # no git, or a copy without its history
            command = ["git", "-C", str(top), "describe", "--always", "--dirty", "--exclude=*"]
            commit = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
            found["titn-lib"] = f"{__version__}+{commit}"
    return found


def table(records: dict[str, RunResult]) -> str:
    """Records side by side, as a Markdown table."""
    head = ["", "model", "parameters", "epochs", "validation top-1", "test top-1", "test top-5", "minutes", "images/s"]
    rows = [
        [
            name,
            record.run.model,
            f"{record.parameters:,}",
            str(record.run.recipe.epochs),
            f"{record.validation['top1']:.2f} %",
            f"{record.test['top1']:.2f} %",
            f"{record.test['top5']:.2f} %",
            f"{record.seconds / 60:.1f}",
            f"{record.images_per_second:,.0f}",
        ]
        for name, record in records.items()
    ]
    widths = [max(len(row[i]) for row in [head, *rows]) for i in range(len(head))]
    rule = ["-" * width for width in widths]
    return "\n".join(
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |"
        for row in [head, rule, *rows]
    )
