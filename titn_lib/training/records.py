"""Records of finished runs: settings, training curves and results; and Markdown tables of them."""

import dataclasses
import hashlib
import json
import os
import platform
import subprocess
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from titn_lib import __version__
from titn_lib.errors import TITNError
from titn_lib.io import markdown_table, repo_root, write_atomically
from titn_lib.training.config import Run

RECORD, WEIGHTS = "record.json", "model.safetensors"  # in a run's folder


@dataclass(frozen=True)
class RunResult:
    """The record of a finished run.

    Attributes:
        run: its settings, which are enough to repeat it.
        parameters: number of parameters, frozen ones included.
        macs: multiply-accumulates for one image, with all gates open.
        history: for every epoch: epoch, lr, train_loss, train_top1, and validation_loss, validation_top1 and
            validation_top5 (on 2,000 images of a large validation split).
        validation, test: loss, top1 and top5 (in percent) and num_images of the final weights, as
            `training.evaluate` measures them. The test split is used once, after training.
        seconds: training and validation together, over all sessions.
        images_per_second: throughput of training alone.
        hardware: device, CPU, cores, threads, processes, precision, system, and whether the network was compiled and
            the training step a CUDA graph.
        versions: Python, this library and the packages that results depend on.
        finished: date and time, UTC.
        data: for images of your own: how many there were of each class, and a hash of their names, sizes
            and last bytes (`ImageList.fingerprint`); None for a data set of the library.
        recall: recall of each class on the test split, in percent.
        files: a hash of each weights file that the run started from (`hash_files`).
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
    data: dict[str, object] | None = None
    recall: dict[str, float] = field(default_factory=dict)
    files: dict[str, str] = field(default_factory=dict)


@dataclass
class TrainState:
    """The progress of a run.

    Attributes:
        epoch, step: finished epochs, and finished steps of the current one.
        history: metrics of each finished epoch.
        seconds: training and validation together, over all sessions.
        training_seconds: training alone.
    """

    epoch: int = 0
    step: int = 0
    history: list[dict[str, float]] = field(default_factory=list)
    seconds: float = 0.0
    training_seconds: float = 0.0


def hash_files(run: Run) -> dict[str, str]:
    """A hash of each weights file that a run starts from, by "teacher" and "init_from"; none of shipped weights."""
    files = {name: getattr(run, name) for name in ("teacher", "init_from")}
    found = {name: Path(file) for name, file in files.items() if isinstance(file, str) and os.path.isfile(file)}
    return {name: hashlib.sha256(file.read_bytes()).hexdigest() for name, file in found.items()}


def require_same_files(saved: dict[str, str] | None, now: dict[str, str], run: Run, out: Path) -> None:
    """Raises TITNError if a weights file has changed since the run in a folder began.

    Args:
        saved, now: what `hash_files` returned; files that are gone, or not in an older record, are not compared.
    """
    for name in (saved or {}).keys() & now.keys():
        if saved and saved[name] != now[name]:
            raise TITNError(
                f"the weights file {getattr(run, name)} has changed since the run in {out} began: choose another "
                f"folder (--out), or delete {out} to start anew there"
            )


def require_same_data(saved: dict[str, Any] | None, now: dict[str, Any] | None, out: Path) -> None:
    """Raises TITNError if the images have changed since the run in a folder began (`ImageList.fingerprint`).

    Args:
        saved, now: their fingerprints; None for a data set of the library, or an older record.
    """
    if not saved or not now or saved["sha256"] == now["sha256"]:
        return
    before, after = saved["images"], now["images"]
    changes = [
        f"{name} has {after.get(name, 0)} images and had {before.get(name, 0)}"
        for name in sorted({*before, *after})
        if before.get(name) != after.get(name)
    ]
    shown = ", ".join(changes[:5]) + (f", and {len(changes) - 5} more changes" if len(changes) > 5 else "")
    raise TITNError(
        f"the images have changed since the run in {out} began ({shown or 'files were renamed or replaced'}): choose "
        f"another folder (--out) to train on them as they are now, or delete {out} to start anew there"
    )


def save_record(record: RunResult, path: Path) -> None:
    """Write a record as JSON, atomically."""
    write_atomically(path, json.dumps(dataclasses.asdict(record), indent=1).encode())


def to_json(records: dict[str, RunResult]) -> bytes:
    """Several records by name, as the content of one JSON file."""
    return json.dumps({name: dataclasses.asdict(record) for name, record in records.items()}, indent=1).encode()


def load_record(path: str | Path) -> RunResult:
    """The record in a file, or in a folder's record.json.

    Raises:
        TITNError: there is none, or it is damaged or names something unknown.
    """
    path = Path(path)
    path = path / RECORD if path.is_dir() else path
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        record = RunResult(**{**values, "run": Run.from_dict(values["run"])})
        table({"": record})  # fails where a value is missing or of another type
        require_same_data(record.data, record.data, path)  # likewise
        return record
    except FileNotFoundError as problem:
        raise TITNError(f"there is no record {path}: check the path, or make the run first") from problem
    except TITNError as problem:
        raise TITNError(f"{path}: {problem}") from problem
    except (AttributeError, ValueError, KeyError, TypeError) as problem:
        raise TITNError(
            f"{path} is not a record of titn_lib or is damaged: delete it and make the run again"
        ) from problem


def hardware(precision: str, processes: int, device: torch.device) -> dict[str, object]:
    """The device, the machine and the settings that speed and rounding depend on."""
    cpu = platform.processor() or platform.machine()
    if (info := Path("/proc/cpuinfo")).exists():
        names = [
            line.split(":")[1].strip()
            for line in info.read_text(encoding="utf-8").splitlines()
            if line.startswith("model name")
        ]
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
    """Where, when and with which versions something was measured, for a record: hardware, versions, finished."""
    now = datetime.now(UTC).isoformat(timespec="seconds")
    return {"hardware": hardware(precision, processes, device), "versions": versions(), "finished": now}


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that a result depends on.

    In a checkout, the version of titn-lib includes the commit, as in "0.1.0+1a2b3c4".
    """
    found = {"python": platform.python_version(), "titn-lib": __version__}
    for package in ("torch", "torchvision", "numpy", "lightning-fabric", "pytorch-lightning"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    if top := repo_root():
        with suppress(OSError, subprocess.CalledProcessError):  # no git, or a copy without its history
            command = ["git", "-C", str(top), "describe", "--always", "--dirty", "--exclude=*"]
            commit = subprocess.run(command, capture_output=True, encoding="utf-8", check=True).stdout.strip()
            found["titn-lib"] = f"{__version__}+{commit}"
    return found


def table(records: dict[str, RunResult]) -> str:
    """Records side by side, as a Markdown table. For a folder of images, a second one has the recall of each class."""
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
    text = markdown_table(head, rows, align=True)
    own = {name: record for name, record in records.items() if record.data and record.recall}
    return f"{text}\n\n{recall_by_run(own)}" if own else text


def recall_by_run(records: dict[str, RunResult]) -> str:
    """Balanced accuracy, and the recall of each class on the test split (of many classes the twenty lowest)."""
    recalls = [record.recall for record in records.values()]
    classes = sorted(recalls[-1], key=recalls[-1].__getitem__)[:20] if len(recalls[-1]) > 20 else list(recalls[-1])
    rows = [["all (balanced accuracy)", *(f"{record.test['balanced_accuracy']:.2f} %" for record in records.values())]]
    rows += [[name, *(f"{recall[name]:.2f} %" if name in recall else "" for recall in recalls)] for name in classes]
    return markdown_table(["recall", *records], rows, align=True)
